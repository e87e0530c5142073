//! The verbs, one by one.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use psyncd::repl::{Offset, Span};
use psyncd::store::archive::ReadError;
use psyncd::store::disk::Disk;
use psyncd::store::journal::{Journal, OpenError, Options, Room};

use crate::chance::Chance;
use crate::disk::SimDisk;
use crate::model::{DIR, Stream, check, check_recovered, id, options};

fn disk() -> Arc<SimDisk> {
    Arc::new(SimDisk::new(Chance::new(1)))
}

async fn open(disk: &Arc<SimDisk>, options: Options) -> (Journal, Option<psyncd::store::journal::Recovered>) {
    Journal::open(Arc::clone(disk) as Arc<dyn Disk>, options).await.unwrap()
}

async fn begun(disk: &Arc<SimDisk>, options: Options, start: u64) -> (Journal, Stream) {
    let (mut journal, _) = open(disk, options).await;
    let stream = Stream::new(Offset::new(start), 1);
    journal.begin(stream.start, &stream.history, stream.boundary, 1_000).await.unwrap();
    (journal, stream)
}

async fn append(journal: &mut Journal, stream: &mut Stream, length: usize) {
    let bytes = stream.make(length);
    let boundary = stream.end().forward(length as u64);
    journal.append(std::slice::from_ref(&bytes), boundary, 1_000 + stream.end().get()).await.unwrap();
    stream.push(&bytes, boundary);
}

async fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new(DIR)).await.unwrap()
}

fn span(start: u64, end: u64) -> Option<Span> {
    Some(Span { start: Offset::new(start), end: Offset::new(end) })
}

#[tokio::test]
async fn what_was_appended_is_read_back_across_segments_and_restarts() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(4096), 100).await;
    for n in 1..200 {
        append(&mut journal, &mut stream, n * 7 % 1500 + 1).await;
    }
    assert!(names(&disk).await.len() > 20);
    for max in [1000, 70_000, usize::MAX] {
        check(&journal, &stream, max).await;
    }
    drop(journal);
    for _ in 0..3 {
        let (mut journal, recovered) = open(&disk, options(4096)).await;
        check_recovered(&recovered.unwrap(), &stream);
        check(&journal, &stream, 5000).await;
        append(&mut journal, &mut stream, 5000).await;
        check(&journal, &stream, 5000).await;
    }
}

#[tokio::test]
async fn an_empty_directory_holds_nothing_and_only_a_beginning_helps() {
    let disk = disk();
    let (mut journal, recovered) = open(&disk, options(4096)).await;
    assert_eq!((recovered, journal.end(), journal.archive().window()), (None, None, None));
    assert!(journal.append(&[Bytes::from_static(b"x")], Offset::ZERO, 0).await.is_err());
    assert!(journal.sync().await.is_err());
    assert!(matches!(journal.archive().read(Offset::ZERO, 10).await, Err(ReadError::Gone)));
}

#[tokio::test]
async fn bytes_longer_than_a_record_become_several() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(64 << 20), 0).await;
    let pieces: Vec<Bytes> = (0..5).map(|n| Bytes::from(vec![n; 700_000])).collect();
    journal.append(&pieces, Offset::new(3_500_000), 7).await.unwrap();
    pieces.iter().for_each(|piece| stream.push(piece, Offset::new(3_500_000)));
    check(&journal, &stream, usize::MAX).await;
    check(&journal, &stream, 300_000).await;
}

#[tokio::test]
async fn a_turn_renames_the_stream_and_is_there_after_a_restart() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(1 << 20), 0).await;
    append(&mut journal, &mut stream, 100).await;
    stream.turn(2);
    journal.turn(&stream.history).await.unwrap();
    let (_, recovered) = open(&disk, options(1 << 20)).await;
    check_recovered(&recovered.unwrap(), &stream);
    append(&mut journal, &mut stream, 100).await;
    check(&journal, &stream, 1000).await;
}

#[tokio::test]
async fn a_cut_is_a_lower_beginning_and_what_lay_behind_it_is_removed() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(1000), 0).await;
    for _ in 0..20 {
        append(&mut journal, &mut stream, 500).await;
    }
    let before = names(&disk).await.len();
    let archive = journal.archive();
    let at = Offset::new(4_200);
    stream.cut(at, 2);
    journal.cut(at, &stream.history, at, 5).await.unwrap();
    assert!(names(&disk).await.len() < before - 3);
    assert!(matches!(archive.read(Offset::new(4_201), 10).await, Err(ReadError::Gone)));
    check(&journal, &stream, 300).await;
    append(&mut journal, &mut stream, 5000).await;
    check(&journal, &stream, 300).await;
    drop(journal);
    let (journal, recovered) = open(&disk, options(1000)).await;
    check_recovered(&recovered.unwrap(), &stream);
    check(&journal, &stream, 300).await;
}

#[tokio::test]
async fn a_new_beginning_removes_what_was_before() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(1000), 0).await;
    for _ in 0..20 {
        append(&mut journal, &mut stream, 500).await;
    }
    let mut stream = Stream::new(Offset::new(77), 9);
    journal.begin(stream.start, &stream.history, stream.boundary, 5).await.unwrap();
    assert_eq!(names(&disk).await.len(), 1);
    assert_eq!(journal.archive().window(), span(77, 77));
    append(&mut journal, &mut stream, 10).await;
    let (_, recovered) = open(&disk, options(1000)).await;
    check_recovered(&recovered.unwrap(), &stream);
}

#[tokio::test]
async fn trimming_drops_whole_old_segments_but_none_that_is_pinned_below_the_hard_limit() {
    let disk = disk();
    let options = Options { room: Room { limit_bytes: 5_000, hard_limit_bytes: 12_000, keep: None }, ..options(1000) };
    let (mut journal, mut stream) = begun(&disk, options, 0).await;
    let archive = journal.archive();
    for _ in 0..10 {
        append(&mut journal, &mut stream, 900).await;
    }
    assert_eq!(journal.trim(Some(Offset::new(0))).await, 0);
    assert_eq!(journal.trim(Some(Offset::new(2000))).await, 1800);
    assert!(journal.trim(None).await > 0);
    assert!(archive.used_bytes() <= 5_000);
    assert_eq!(archive.used_bytes(), disk.usage().0);
    for _ in 0..10 {
        append(&mut journal, &mut stream, 900).await;
    }
    assert!(journal.trim(Some(Offset::new(0))).await > 0);
    assert!((10_500..=12_000).contains(&archive.used_bytes()));
    check(&journal, &stream, 300).await;
}

#[tokio::test(start_paused = true)]
async fn retention_by_time_goes_by_running_time_whatever_the_wall_clock_says() {
    let disk = disk();
    let minute = std::time::Duration::from_secs(60);
    let options = Options { room: Room { keep: Some(10 * minute), ..options(1000).room }, ..options(1000) };
    let (mut journal, mut stream) = begun(&disk, options.clone(), 0).await;
    for n in 0..5u64 {
        // A wall clock that jumps by years, forwards and backwards.
        let bytes = stream.make(1000);
        journal.append(std::slice::from_ref(&bytes), stream.end(), (n % 2) * 1_000_000_000_000).await.unwrap();
        let end = stream.end();
        stream.push(&bytes, end);
        assert_eq!(journal.trim(None).await, 0);
        tokio::time::advance(2 * minute).await;
    }
    drop(journal);
    let (mut journal, _) = open(&disk, options).await;
    assert_eq!(journal.trim(None).await, 0, "time psyncd was not running does not count");
    append(&mut journal, &mut stream, 1).await;
    tokio::time::advance(5 * minute).await;
    assert!((1000..=3000).contains(&journal.trim(None).await));
    check(&journal, &stream, 300).await;
}

#[tokio::test]
async fn a_journal_of_another_upstream_or_version_is_refused_and_left_as_it_is() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(1000), 0).await;
    append(&mut journal, &mut stream, 5000).await;
    append(&mut journal, &mut stream, 10).await;
    drop(journal);
    let before = (names(&disk).await, disk.usage().0);
    let other = Options { upstream: "elsewhere:1".to_owned(), ..options(1000) };
    let Err(refused) = Journal::open(Arc::clone(&disk) as Arc<dyn Disk>, other).await else { panic!("taken over") };
    assert!(matches!(refused, OpenError::Foreign { .. }));
    assert!(refused.to_string().contains("master:6379") && refused.to_string().contains("elsewhere:1"));
    let future = disk.create(&Path::new(DIR).join("journal-00000000000000ff.seg")).await.unwrap();
    future.write_at(0, Bytes::from_static(b"PSYNCJ\x02\x00whatever")).await.unwrap();
    let Err(refused) = Journal::open(Arc::clone(&disk) as Arc<dyn Disk>, options(1000)).await else { panic!("read") };
    assert!(matches!(refused, OpenError::UnknownVersion { version: 2, .. }), "{refused}");
    disk.remove(&Path::new(DIR).join("journal-00000000000000ff.seg")).await.unwrap();
    drop(future);
    assert_eq!((names(&disk).await, disk.usage().0), before);
    let (journal, recovered) = open(&disk, options(1000)).await;
    check_recovered(&recovered.unwrap(), &stream);
    check(&journal, &stream, 300).await;
}

#[tokio::test]
async fn a_file_that_is_no_segment_is_left_alone() {
    let disk = disk();
    let path = Path::new(DIR).join("journal-0000000000000007.seg");
    disk.private_dir(Path::new(DIR)).await.unwrap();
    disk.create(&path).await.unwrap().write_at(0, Bytes::from_static(b"somebody's diary")).await.unwrap();
    let (mut journal, mut stream) = begun(&disk, options(1000), 0).await;
    append(&mut journal, &mut stream, 10).await;
    assert_eq!(names(&disk).await.len(), 2);
    assert_eq!(id(1), stream.history.current());
    check(&journal, &stream, 300).await;
}

#[tokio::test]
async fn a_journal_that_was_taken_over_bears_the_new_name_from_then_on() {
    let disk = disk();
    let (mut journal, mut stream) = begun(&disk, options(1000), 0).await;
    append(&mut journal, &mut stream, 1500).await;
    append(&mut journal, &mut stream, 10).await;
    drop(journal);
    let renamed = Options { upstream: "elsewhere:1".to_owned(), ..options(1000) };
    let (mut journal, recovered) = open(&disk, Options { adopt: true, ..renamed.clone() }).await;
    check_recovered(&recovered.unwrap(), &stream);
    journal.sync().await.unwrap();
    drop(journal);
    let (journal, recovered) = open(&disk, renamed).await;
    check_recovered(&recovered.unwrap(), &stream);
    check(&journal, &stream, 300).await;
    let Err(refused) = Journal::open(Arc::clone(&disk) as Arc<dyn Disk>, options(1000)).await else { panic!("read") };
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
}
