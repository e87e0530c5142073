//! Where values come from: flags, the environment, the file, and the defaults, in this order of precedence. Every
//! value keeps its origin, because an error that does not say where the value stands is half an error.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::settings::{Preset, SETTINGS, Setting};
use super::{Error, LIMIT_FILE_BYTES, users};

/// Where the configuration file is looked for when nobody says.
pub const DEFAULT_FILE: &str = "/etc/psyncd/psyncd.toml";
/// Names the configuration file; the one variable that is no setting.
pub const FILE_VARIABLE: &str = "PSYNCD_CONFIG";

/// What the command line gave, as text.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Setting names and their values.
    pub values: Vec<(&'static str, String)>,
}

/// What the process stands in: tests put their own in its place.
pub struct Surroundings<'a> {
    /// The environment; variables without our prefix are ignored.
    pub env: Vec<(String, OsString)>,
    /// Reads a small file.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<SmallFile>,
}

/// A file as it was read.
#[derive(Debug, Clone)]
pub struct SmallFile {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

impl SmallFile {
    /// Reads at most [`LIMIT_FILE_BYTES`]; a larger file is an error.
    pub fn read(path: &Path) -> io::Result<SmallFile> {
        use std::io::Read;
        use std::os::unix::fs::PermissionsExt;
        let file = std::fs::File::open(path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut bytes = Vec::new();
        file.take(LIMIT_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT_FILE_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "is larger than 1 MiB"));
        }
        Ok(SmallFile { bytes, mode })
    }

    /// Whether users other than the owner and the group may read it, or others than the owner may write it.
    pub fn is_too_open(&self) -> bool {
        self.mode & 0o026 != 0
    }
}

impl Surroundings<'_> {
    /// The real ones.
    pub fn of_process() -> Surroundings<'static> {
        let env = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Surroundings { env, read_file: &SmallFile::read }
    }
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag(&'static str),
    /// In the environment.
    Env(String),
    /// In the file.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Nowhere.
    Default,
}

impl Origin {
    /// Whether both have the same precedence.
    pub(super) fn ranks_with(&self, other: &Origin) -> bool {
        self.rank() == other.rank()
    }

    /// Whether this one wins over `other`.
    pub(super) fn wins_over(&self, other: &Origin) -> bool {
        self.rank() > other.rank()
    }

    fn rank(&self) -> u8 {
        match self {
            Origin::Flag(_) => 3,
            Origin::Env(_) => 2,
            Origin::File { .. } => 1,
            Origin::Default => 0,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag --{name}"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One value as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// A setting as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its key.
    pub name: &'static str,
    /// Its value; `***` for a secret, none where nothing is set.
    pub value: Option<String>,
    /// Where the value comes from, or what it means that there is none.
    pub origin: String,
}

/// The values of one source, by the names of [`SETTINGS`].
/// One `[[user]]` of the file, as text.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its keys and their values.
    pub(super) values: BTreeMap<&'static str, String>,
    /// Where it stands.
    pub(super) origin: Origin,
}

type Row = Vec<(&'static str, Given)>;

/// Every value that holds, by the names of [`SETTINGS`]; those without a value are absent.
///
/// Has no `Debug`, for it holds secrets.
pub struct Values {
    map: BTreeMap<&'static str, Given>,
    pub(super) users: Vec<Entry>,
    /// The file that was looked for, read or not.
    pub(super) file: PathBuf,
}

impl Values {
    /// Gathers all sources. Checks names and types, not values.
    pub(super) fn gather(flags: &Flags, around: &Surroundings<'_>) -> Result<(Values, Vec<String>), Error> {
        let mut map = BTreeMap::new();
        for setting in SETTINGS {
            if let Preset::Value(text) = setting.preset {
                map.insert(setting.name, Given { text: text.to_owned(), origin: Origin::Default });
            }
        }
        let (env, named) = from_env(&around.env)?;
        let explicit = flags.file.clone().or(named);
        let file = explicit.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let mut warnings = Vec::new();
        let mut users = Vec::new();
        match (around.read_file)(&file) {
            Ok(read) => {
                let (found, entries) = from_file(&file, &read.bytes)?;
                map.extend(found);
                users = entries;
                let holds_secret = map.keys().any(|name| Setting::named(name).is_some_and(Setting::is_secret));
                if (holds_secret || !users.is_empty()) && read.is_too_open() {
                    warnings.push(too_open(&file, read.mode));
                }
            }
            Err(error) if explicit.is_none() && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::File { path: file, why: error.to_string() }),
        }
        map.extend(env);
        for (name, text) in &flags.values {
            map.insert(name, Given { text: text.clone(), origin: Origin::Flag(name) });
        }
        Ok((Values { map, users, file }, warnings))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Given> {
        self.map.get(name)
    }

    /// Every setting with its effective value and origin; secrets are masked.
    pub(super) fn shown(&self) -> Arc<[Shown]> {
        let show = |setting: &Setting| {
            let (value, origin) = match (self.map.get(setting.name), setting.preset) {
                (Some(given), _) if setting.is_secret() => (Some("***".to_owned()), given.origin.to_string()),
                (Some(given), _) => (Some(given.text.clone()), given.origin.to_string()),
                (None, Preset::Nothing(meaning)) => (None, meaning.to_owned()),
                (None, Preset::Value(_) | Preset::Required) => (None, "not set".to_owned()),
            };
            Shown { name: setting.name, value, origin }
        };
        SETTINGS.iter().map(show).collect()
    }

    /// The effective values as a configuration file, each with its origin; secrets are masked.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for setting in SETTINGS {
            let (value, origin) = match (self.map.get(setting.name), setting.preset) {
                (Some(given), _) if setting.is_secret() => ("\"***\"".to_owned(), given.origin.to_string()),
                (Some(given), _) => (setting.kind.quoted(&given.text), given.origin.to_string()),
                (None, Preset::Nothing(meaning)) => {
                    text.push_str(&format!("# {} is not set: {meaning}\n", setting.name));
                    continue;
                }
                (None, Preset::Value(_) | Preset::Required) => continue,
            };
            text.push_str(&format!("{} = {value}  # {origin}\n", setting.name));
        }
        text + &users::print(&self.users)
    }
}

/// The warning about a file with a secret in it that too many may read.
pub(super) fn too_open(path: &Path, mode: u32) -> String {
    format!(
        "{} holds a password and has mode {:04o}: let only its owner and group read it",
        path.display(),
        mode & 0o7777
    )
}

/// Our variables, and the name of the file if one of them gives it. An empty variable counts as not set, because
/// container manifests cannot unset one.
fn from_env(env: &[(String, OsString)]) -> Result<(Row, Option<PathBuf>), Error> {
    let mut found = Vec::new();
    let mut file = None;
    for (name, value) in env {
        if !name.starts_with("PSYNCD_") || value.is_empty() {
            continue;
        }
        if name == FILE_VARIABLE {
            file = Some(PathBuf::from(value));
            continue;
        }
        if is_service_link(name, &value.to_string_lossy()) {
            continue;
        }
        let origin = Origin::Env(name.clone());
        let Some(setting) = SETTINGS.iter().find(|setting| setting.env() == *name) else {
            let key = name["PSYNCD_".len()..].to_ascii_lowercase().replace('_', "-");
            let hint = match meant(&key) {
                Some(setting) => format!("did you mean {}?", setting.env()),
                None => format!("no setting has a name like it; {KNOWN}"),
            };
            return Err(Error::Variable { name: name.clone(), hint });
        };
        let Some(text) = value.to_str() else {
            return Err(Error::Type { name: setting.name, origin, why: "is not UTF-8".to_owned() });
        };
        found.push((setting.name, Given { text: text.to_owned(), origin }));
    }
    Ok((found, file))
}

const KNOWN: &str = "psyncd run --help lists them";

/// Whether a variable is one Kubernetes puts into every container for a Service called `psyncd…`: `PSYNCD_PORT` would
/// be `tcp://10.0.0.1:6380` there, and refusing to start on account of one's own Service would be a poor joke.
fn is_service_link(name: &str, value: &str) -> bool {
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let numbered = name.match_indices("_PORT_").any(|(at, link)| {
        let rest = &name[at + link.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && matches!(rest.as_bytes().get(digits), Some(b'_'))
    });
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || numbered || (url && name.ends_with("_PORT"))
}

fn from_file(path: &Path, bytes: &[u8]) -> Result<(Row, Vec<Entry>), Error> {
    let broken = |why: String| Error::File { path: path.to_owned(), why };
    let text = std::str::from_utf8(bytes).map_err(|_| broken("is not UTF-8".to_owned()))?;
    let line_at = |at: usize| text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_at(error.span().map_or(0, |span| span.start));
        broken(format!("line {line}: {}", error.message().replace('\n', ", ")))
    })?;
    let mut found = Vec::new();
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let at = |span: std::ops::Range<usize>| Origin::File { path: path.to_owned(), line: line_at(span.start) };
        let origin = at(key.span());
        let key: &str = key.get_ref();
        if let (true, DeValue::Array(list)) = (users::is_ours(key), value.get_ref()) {
            for one in list.iter() {
                let DeValue::Table(table) = one.get_ref() else { break };
                let mut entry = Entry { values: BTreeMap::new(), origin: at(one.span()) };
                for (key, value) in table {
                    let origin = at(key.span());
                    let Some(key) = users::KEYS.iter().find(|known| **known == key.get_ref().as_ref()) else {
                        return Err(users::unknown(key.get_ref(), origin));
                    };
                    let text = plain(value).map_err(|why| Error::Type { name: key, origin, why })?;
                    entry.values.insert(key, text);
                }
                entries.push(entry);
            }
            if entries.len() == list.len() {
                continue;
            }
        }
        let Some(setting) = Setting::named(key) else {
            return Err(Error::Key { key: key.to_owned(), hint: hint(key, value.get_ref()), origin });
        };
        match plain(value) {
            Ok(text) => found.push((setting.name, Given { text, origin })),
            Err(why) => return Err(Error::Type { name: setting.name, origin, why }),
        }
    }
    Ok((found, entries))
}

/// What to say about a key nobody knows.
fn hint(key: &str, value: &DeValue<'_>) -> String {
    if let Some(why) = super::tls::unsupported(key) {
        return why.to_owned();
    }
    match (meant(key), value) {
        (Some(setting), DeValue::Table(_)) => format!("there are no sections; did you mean {} = ...?", setting.name),
        (Some(setting), _) => format!("did you mean {}?", setting.name),
        (None, DeValue::Table(_)) => "there are no sections: every key stands at the top level".to_owned(),
        (None, _) => format!("no setting has a name like it; {KNOWN}"),
    }
}

/// The setting somebody who wrote `key` probably meant.
fn meant(key: &str) -> Option<&'static Setting> {
    let lower = key.to_ascii_lowercase().replace('_', "-");
    SETTINGS
        .iter()
        .find(|setting| setting.also.contains(&lower.as_str()))
        .or_else(|| nearest(key, SETTINGS.iter().map(|setting| setting.name)).and_then(Setting::named))
}

/// The text of a value of the file: a string, a whole number, or a list of these.
fn plain(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "is too large".to_owned()),
        DeValue::Array(list) => {
            let items: Result<Vec<String>, String> = list.iter().map(plain).collect();
            Ok(items?.join(","))
        }
        other => Err(format!("is a {}, not a string or a whole number", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_kubernetes_services_are_not_ours() {
        for (name, value) in [
            ("PSYNCD_SERVICE_HOST", "10.0.0.1"),
            ("PSYNCD_SERVICE_PORT", "6380"),
            ("PSYNCD_SERVICE_PORT_ADMIN", "9379"),
            ("PSYNCD_PORT", "tcp://10.0.0.1:6380"),
            ("PSYNCD_PORT_6380_TCP", "tcp://10.0.0.1:6380"),
            ("PSYNCD_PORT_6380_TCP_ADDR", "10.0.0.1"),
            ("PSYNCD_ADMIN_PORT_9379_TCP_PROTO", "tcp"),
        ] {
            assert!(is_service_link(name, value), "{name}={value}");
        }
        for (name, value) in [("PSYNCD_PORT", "6380"), ("PSYNCD_ANNOUNCE_PORT", "1"), ("PSYNCD_PORTS", "1")] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }

    #[test]
    fn names_of_redis_conf_lead_to_ours() {
        for (key, name) in [("replicaof", "upstream"), ("replica_announce_ip", "announce-ip")] {
            assert_eq!(meant(key).map(|setting| setting.name), Some(name));
        }
    }
}
