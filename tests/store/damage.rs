//! Bits that flip, files that end early, vanish or cannot be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use psyncd::repl::Offset;
use psyncd::store::archive::{Archive, ReadError};
use psyncd::store::disk::Disk;
use psyncd::store::inspect::{Depth, inspect};
use psyncd::store::journal::{Journal, OpenError, Options};

use crate::block_on;
use crate::chance::Chance;
use crate::disk::{Crash, DiskFaults, SimDisk};
use crate::ledger::{Ledger, Op};
use crate::model::{DIR, Stream, check, options, read_all};

const SEGMENT_BYTES: u64 = 600;

fn append(length: usize) -> Op {
    Op::Append { length, boundary: 0 }
}

/// Three full segments and one that has just been begun, with a turn in it.
async fn written() -> (Arc<SimDisk>, Ledger, Journal) {
    let disk = Arc::new(SimDisk::new(Chance::new(3)));
    let mut ledger = Ledger::new();
    let mut journal = ledger.reopen(&disk, options(SEGMENT_BYTES)).await.unwrap();
    let ops = [append(200), append(300), append(100), Op::Turn, append(250), append(200), append(200), append(30)];
    for op in [Op::Begin { start: 500 }].into_iter().chain(ops).chain([Op::Turn, append(70), append(1)]) {
        ledger.apply(&mut journal, op).await.unwrap();
    }
    assert_eq!(journal.archive().segments(), 4);
    (disk, ledger, journal)
}

async fn segment(disk: &SimDisk, n: usize) -> PathBuf {
    Path::new(DIR).join(&disk.list(Path::new(DIR)).await.unwrap()[n])
}

/// Another disk with the same files, except for this one.
fn with(disk: &SimDisk, path: &Path, bytes: Vec<u8>) -> Arc<SimDisk> {
    let copy = disk.crash(Crash::Process, Chance::new(0));
    copy.plant(path, bytes);
    Arc::new(copy)
}

async fn open(disk: &Arc<SimDisk>) -> Result<(Journal, Option<psyncd::store::journal::Recovered>), OpenError> {
    Journal::open(Arc::clone(disk) as Arc<dyn Disk>, options(SEGMENT_BYTES)).await
}

/// Reads whatever can be read; what cannot must have been given up when the reader hears of it.
async fn read_on(archive: &Archive, stream: &Stream) -> u64 {
    let mut at = archive.window().unwrap().start;
    let mut damaged = 0;
    loop {
        match archive.read(at, 100).await {
            Ok(bytes) if bytes.is_empty() => return damaged,
            Ok(bytes) => {
                let next = at.forward(bytes.len() as u64);
                assert_eq!(bytes, stream.slice(at, next));
                at = next;
            }
            Err(ReadError::Damaged { lost_bytes, .. }) => {
                damaged += lost_bytes;
                assert!(archive.window().unwrap().start > at);
                at = archive.window().unwrap().start;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What the last segment leaves when `change` was done to it: always a state that was, never a wrong byte.
async fn expect_a_true_prefix(disk: &Arc<SimDisk>, ledger: &Ledger, head_version: bool) -> Option<usize> {
    let (journal, recovered) = match open(disk).await {
        Ok(opened) => opened,
        Err(OpenError::UnknownVersion { .. }) if head_version => return None,
        Err(error) => panic!("{error}"),
    };
    let bytes = read_all(&journal.archive(), 100).await;
    Some(ledger.judge(recovered.as_ref(), &bytes))
}

async fn flip_and_truncate_the_last(disk: &Arc<SimDisk>, ledger: &Ledger) -> usize {
    let path = segment(disk, 3).await;
    let whole = disk.peek(&path).unwrap();
    let mut states = std::collections::BTreeSet::new();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let version = (6..8).contains(&(bit / 8));
        states.extend(expect_a_true_prefix(&with(disk, &path, bytes), ledger, version).await);
    }
    for length in 0..whole.len() {
        states.extend(expect_a_true_prefix(&with(disk, &path, whole[..length].to_vec()), ledger, false).await);
    }
    states.len()
}

#[test]
fn every_flipped_bit_and_every_truncation_of_the_last_segment_leaves_a_true_prefix() {
    block_on(async {
        let (disk, mut ledger, journal) = written().await;
        ledger.expect_anything();
        drop(journal);
        // Four records are in it; each change costs at least the last of them.
        assert_eq!(flip_and_truncate_the_last(&disk, &ledger).await, 4);
        // Once a restart has sealed it, the seal can break without harm to them.
        let (journal, _) = open(&disk).await.unwrap();
        drop(journal);
        assert!(disk.peek(&segment(&disk, 3).await).unwrap().ends_with(b"jend"));
        assert_eq!(flip_and_truncate_the_last(&disk, &ledger).await, 5);
    });
}

#[test]
fn every_flipped_bit_of_an_older_segment_shrinks_the_claim_or_nothing() {
    block_on(async {
        let (disk, ledger, journal) = written().await;
        let stream = ledger.now().unwrap();
        drop(journal);
        let path = segment(&disk, 1).await;
        let whole = disk.peek(&path).unwrap();
        let (mut unharmed, mut condemned) = (0, 0);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let disk = with(&disk, &path, bytes);
            let journal = match open(&disk).await {
                Ok((journal, _)) => journal,
                Err(OpenError::UnknownVersion { .. }) if (6..8).contains(&(bit / 8)) => continue,
                Err(error) => panic!("{error}"),
            };
            let archive = journal.archive();
            let lost = read_on(&archive, stream).await;
            assert_eq!(archive.condemned_bytes(), lost);
            assert_eq!(archive.window().unwrap().end, stream.end());
            check(&journal, stream, 100).await;
            match lost {
                0 => unharmed += 1,
                _ => condemned += 1,
            }
        }
        // A broken index is made anew from the records.
        assert!(unharmed > 500 && condemned > 2000, "{unharmed} {condemned}");
    });
}

#[test]
fn a_segment_deleted_underfoot_takes_what_is_before_it_along_and_nothing_else() {
    block_on(async {
        let (disk, mut ledger, mut journal) = written().await;
        let archive = journal.archive();
        let stream = ledger.now().unwrap().clone();
        disk.remove(&segment(&disk, 1).await).await.unwrap();
        let before = archive.window().unwrap();
        let lost = read_on(&archive, &stream).await;
        let after = archive.window().unwrap();
        assert_eq!((lost, after.end), (after.start.since(before.start), before.end));
        assert!(lost > 0 && !after.is_empty());
        assert!(matches!(archive.read(before.start, 10).await, Err(ReadError::Gone)));
        // The files of what was given up go, and the journal goes on.
        ledger.note_dropped(&journal);
        ledger.apply(&mut journal, append(400)).await.unwrap();
        journal.trim(None).await;
        assert_eq!(archive.used_bytes(), disk.usage().0);
        check(&journal, ledger.now().unwrap(), 100).await;
        drop(journal);
        ledger.reopen(&disk, options(SEGMENT_BYTES)).await.unwrap();
    });
}

#[test]
fn when_the_segment_being_written_cannot_be_read_the_stream_goes_on_in_another() {
    block_on(async {
        let (disk, mut ledger, mut journal) = written().await;
        let archive = journal.archive();
        let end = archive.window().unwrap().end;
        disk.suffer(DiskFaults { failing: [1].into(), ..Default::default() });
        assert!(matches!(archive.read(end.back(1), 10).await, Err(ReadError::Damaged { .. })));
        assert!(archive.window().unwrap().is_empty());
        assert!(archive.read(end, 10).await.unwrap().is_empty());
        ledger.note_dropped(&journal);
        ledger.apply(&mut journal, append(400)).await.unwrap();
        let window = archive.window().unwrap();
        assert_eq!((window.start, window.len()), (end, 400));
        check(&journal, ledger.now().unwrap(), 100).await;
        ledger.apply(&mut journal, Op::Sync).await.unwrap();
        drop(journal);
        let journal = ledger.reopen(&disk, options(SEGMENT_BYTES)).await.unwrap();
        assert_eq!(journal.archive().window().unwrap(), window);
        assert_eq!(journal.archive().used_bytes(), disk.usage().0);
    });
}

#[test]
fn a_reader_keeps_its_bytes_when_what_it_reads_is_cut_or_dropped_meanwhile() {
    block_on(async {
        let (disk, mut ledger, mut journal) = written().await;
        let archive = journal.archive();
        let stream = ledger.now().unwrap().clone();
        let slow = DiskFaults { slowest: std::time::Duration::from_millis(50), ..Default::default() };
        disk.suffer(slow);
        let reader = tokio::spawn({
            let archive = Arc::clone(&archive);
            async move {
                let mut answers = Vec::new();
                for n in 0..2000u64 {
                    let Some(window) = archive.window() else { continue };
                    let at = Offset::new(window.start.get() + n * 37 % (window.len() + 1));
                    answers.push((at, archive.read(at, 100).await));
                }
                answers
            }
        });
        for back in [10u64, 0, 150, 300, 90] {
            ledger.apply(&mut journal, Op::Cut { back }).await.unwrap();
            ledger.apply(&mut journal, append(0)).await.unwrap();
        }
        let cut = ledger.now().unwrap().end();
        let mut served = 0;
        for (at, answer) in reader.await.unwrap() {
            match answer {
                Ok(bytes) => {
                    // Nothing but cuts happened, so what was there at any time is what the stream was at first.
                    assert_eq!(bytes, stream.slice(at, at.forward(bytes.len() as u64)));
                    served += 1;
                }
                Err(ReadError::Gone) => assert!(at > cut),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(served > 100);
        disk.suffer(DiskFaults::default());
        check(&journal, ledger.now().unwrap(), 100).await;
    });
}

#[test]
fn files_are_opened_a_few_at_a_time_and_many_segments_are_one_window() {
    block_on(async {
        let disk = Arc::new(SimDisk::new(Chance::new(3)));
        let mut ledger = Ledger::new();
        let options = Options { ..options(200) };
        let mut journal = ledger.reopen(&disk, options.clone()).await.unwrap();
        for _ in 0..300 {
            ledger.apply(&mut journal, append(150)).await.unwrap();
        }
        let archive = journal.archive();
        assert!(archive.segments() > 200);
        check(&journal, ledger.now().unwrap(), 1000).await;
        drop(journal);
        let journal = ledger.reopen(&disk, options).await.unwrap();
        check(&journal, ledger.now().unwrap(), 1000).await;
    });
}

#[test]
fn an_inspection_finds_every_flipped_bit_of_a_finished_segment() {
    block_on(async {
        let (disk, _, mut journal) = written().await;
        journal.sync().await.unwrap();
        let look = async |disk: &SimDisk, depth| inspect(disk, Path::new(DIR), depth, |_, _| {}).await.unwrap();
        for depth in [Depth::Ends, Depth::Records] {
            let report = look(&disk, depth).await;
            assert_eq!(report.damage, []);
            assert!(report.segments.len() == 4 && report.segments.iter().all(|segment| segment.claimed));
            let window = journal.archive().window().unwrap();
            assert_eq!(report.claimed(), Some((window.start, window.end)));
        }
        for n in 0..3 {
            let path = segment(&disk, n).await;
            let whole = disk.peek(&path).unwrap();
            for bit in 0..whole.len() * 8 {
                let mut bytes = whole.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let report = look(&with(&disk, &path, bytes), Depth::Records).await;
                assert!(report.damage.iter().any(|damage| damage.path == path), "bit {bit} of segment {n}: {report:?}");
            }
        }
        // What a crash, or a write under way, leaves of the newest is no damage.
        let path = segment(&disk, 3).await;
        let whole = disk.peek(&path).unwrap();
        for length in 0..whole.len() {
            let report = look(&with(&disk, &path, whole[..length].to_vec()), Depth::Records).await;
            assert_eq!(report.damage, [], "cut to {length}");
        }
    });
}
