//! What psyncd remembers across a restart besides the stream: a few facts in one small file, `psyncd.state`.
//!
//! The file is one JSON object:
//!
//! ```text
//! { "version": 1,
//!   "upstream": "10.0.0.1:6379",          the master's address at the time
//!   "master": {                           what it had when it was last counted; absent before that
//!     "replid": "<40 hex>", "offset": 1234,   where its stream was; absent when it did not say
//!     "keys": 5000, "rdb_bytes": 104857 },    each absent when it is not known
//!   "following": {                        what psyncd was told to follow; absent when it follows its configuration
//!     "address": "10.0.0.2:6379",
//!     "configured": "10.0.0.1:6379",      what the configuration followed at the time
//!     "epoch": 3 },                       the Sentinels' configuration, absent when there is none
//!   "run_id": "<40 hex>" }                who psyncd is to a Sentinel; absent when it never had a replica face
//! ```
//!
//! It is replaced as a whole (written beside, synced, renamed), so there is never half of one. A reader ignores fields
//! it does not know; what changes the meaning of a known one takes another version. A file of another version, or one
//! that makes no sense, is nobody's to delete: it is left as it is, and nothing is remembered until it is moved away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use tokio::sync::Mutex;

use crate::repl::guard::Known;
use crate::repl::{Offset, Position};

const NAME: &str = "psyncd.state";
const NEXT: &str = "psyncd.state.new";
const VERSION: u64 = 1;
/// No state is larger than this, in bytes.
const LIMIT_BYTES: usize = 64 << 10;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The address the master was found at; empty before it was.
    pub upstream: String,
    /// What it had.
    pub master: Option<Known>,
    /// Whom psyncd was told to follow.
    pub following: Option<Following>,
    /// Who psyncd is to a Sentinel.
    pub run_id: Option<String>,
}

/// An order to follow a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// The node.
    pub address: String,
    /// What the configuration followed at the time.
    pub configured: String,
    /// The number of the Sentinels' configuration that was agreed on by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

/// What was found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No file: nothing is remembered yet.
    Nothing,
    /// A file of ours.
    Remembered(Remembered),
    /// A file we must not touch, and why.
    Foreign(String),
}

/// The file. One process has it, because one process has the directory; within it several write their own facts.
pub struct StateFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// What it says. Held while it is written.
    says: Mutex<Remembered>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u64,
    upstream: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    master: Option<Master>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    following: Option<Following>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Master {
    #[serde(skip_serializing_if = "Option::is_none")]
    replid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdb_bytes: Option<u64>,
}

impl StateFile {
    /// The file of `dir`, whether it exists or not.
    pub fn of(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir, says: Mutex::default() }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Reads it. A disk that fails counts as a file we must not touch.
    pub async fn load(&self) -> Found {
        let bytes = match self.read(&self.path()).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Foreign(error.to_string()),
        };
        match parse(&bytes) {
            Ok(remembered) => {
                *self.says.lock().await = remembered.clone();
                Found::Remembered(remembered)
            }
            Err(why) => Found::Foreign(why),
        }
    }

    /// Has it say something else about one thing. After an error the old one is still there, and says what it said.
    pub async fn update(&self, change: impl FnOnce(&mut Remembered)) -> io::Result<()> {
        let mut says = self.says.lock().await;
        let mut next = says.clone();
        change(&mut next);
        self.save(&next).await?;
        *says = next;
        Ok(())
    }

    /// Replaces it. After an error the old one is still there. Not cancel-safe in that a dropped future may leave
    /// `psyncd.state.new` behind, which the next call removes.
    async fn save(&self, state: &Remembered) -> io::Result<()> {
        let next = self.dir.join(NEXT);
        match self.disk.remove(&next).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.create(&next).await?;
        file.write_at(0, Bytes::from(print(state))).await?;
        file.sync().await?;
        self.disk.rename(&next, &self.path()).await?;
        self.disk.sync_dir(&self.dir).await
    }

    async fn read(&self, path: &Path) -> io::Result<Bytes> {
        let file = self.disk.open(path).await?;
        file.read_at(0, LIMIT_BYTES + 1).await
    }
}

fn parse(bytes: &[u8]) -> Result<Remembered, String> {
    if bytes.len() > LIMIT_BYTES {
        return Err(format!("it is larger than {LIMIT_BYTES} bytes"));
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON: {error}"))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => return Err(format!("it has version {other}, and this psyncd reads version {VERSION}")),
        None => return Err("it has no version".to_owned()),
    }
    let document: Document = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let master = document.master.map(|master| {
        let position = match (master.replid, master.offset) {
            (Some(replid), Some(offset)) => {
                let id = replid.parse().map_err(|error| format!("replid {replid:?}: {error}"))?;
                Some(Position::new(id, Offset::new(offset)))
            }
            _ => None,
        };
        Ok::<_, String>(Known { position, keys: master.keys, rdb_bytes: master.rdb_bytes })
    });
    Ok(Remembered {
        upstream: document.upstream,
        master: master.transpose()?,
        following: document.following,
        run_id: document.run_id,
    })
}

fn print(state: &Remembered) -> String {
    let master = state.master.map(|known| Master {
        replid: known.position.map(|at| at.id.to_string()),
        offset: known.position.map(|at| at.offset.get()),
        keys: known.keys,
        rdb_bytes: known.rdb_bytes,
    });
    let Remembered { upstream, following, run_id, .. } = state.clone();
    let document = Document { version: VERSION, upstream, master, following, run_id };
    let json = serde_json::to_string_pretty(&document).expect("strings and numbers are always JSON");
    json + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::RealDisk;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn known() -> Known {
        let position = Position::new("a".repeat(40).parse().unwrap(), Offset::new(1234));
        Known { position: Some(position), keys: Some(5000), rdb_bytes: None }
    }

    fn state() -> Remembered {
        let following = Following { address: "b:2".into(), configured: "a:1".into(), epoch: Some(3) };
        let run_id = Some("c".repeat(40));
        Remembered { upstream: "10.0.0.1:6379".into(), master: Some(known()), following: Some(following), run_id }
    }

    fn file(dir: &tempfile::TempDir) -> StateFile {
        StateFile::of(Arc::new(RealDisk), dir.path().to_owned())
    }

    #[tokio::test]
    async fn what_was_saved_is_found_again_and_only_we_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        assert_eq!(file.load().await, Found::Nothing);
        file.save(&Remembered { upstream: "a:1".into(), ..Remembered::default() }).await.unwrap();
        // What a crash in the middle of the next one leaves behind is no obstacle.
        std::fs::write(dir.path().join(NEXT), "{").unwrap();
        file.save(&state()).await.unwrap();
        assert_eq!(file.load().await, Found::Remembered(state()));
        file.update(|state| state.following = None).await.unwrap();
        file.update(|state| state.master = None).await.unwrap();
        let left = Remembered { following: None, master: None, ..state() };
        assert_eq!(file.load().await, Found::Remembered(left), "each writes its own facts");
        assert_eq!(std::fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(RealDisk.list(dir.path()).await.unwrap(), [NAME]);
    }

    #[tokio::test]
    async fn what_is_not_ours_is_not_believed_and_not_touched() {
        for (text, why) in [
            ("{\"version\": 2, \"upstream\": \"a:1\"}", "version 2"),
            ("{\"upstream\": \"a:1\"}", "no version"),
            ("", "no JSON"),
            ("{\"version\": 1}", "upstream"),
            ("{\"version\": 1, \"upstream\": \"a:1\", \"master\": {\"replid\": \"x\", \"offset\": 1}}", "replid"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let file = file(&dir);
            std::fs::write(file.path(), text).unwrap();
            let found = file.load().await;
            assert!(matches!(&found, Found::Foreign(said) if said.contains(why)), "{text}: {found:?}");
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
        }
    }

    #[test]
    fn a_field_of_a_later_release_is_no_obstacle() {
        let text = print(&state()).replacen('{', "{ \"followed\": \"b:2\",", 1);
        assert_eq!(parse(text.as_bytes()), Ok(state()));
    }

    proptest! {
        #[test]
        fn whatever_is_printed_reads_back(
            upstream in "\\PC{0,40}", position in prop::option::of(("[0-9a-f]{40}", any::<u64>())),
            keys in prop::option::of(any::<u64>()), rdb_bytes in prop::option::of(any::<u64>()),
        ) {
            let position = position.map(|(id, offset)| Position::new(id.parse().unwrap(), Offset::new(offset)));
            let known = Known { position, keys, rdb_bytes };
            let state = Remembered { upstream, master: Some(known), ..Remembered::default() };
            prop_assert_eq!(parse(print(&state).as_bytes()), Ok(state));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
