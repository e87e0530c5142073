//! Numbers, on the machine's own disk. `cargo test --release --test store -- --ignored measure --nocapture`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use psyncd::repl::Offset;
use psyncd::store::disk::RealDisk;
use psyncd::store::journal::{Journal, Options};

use crate::model::{Stream, options};

const GIB: u64 = 1 << 30;

fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes 4 GiB"]
async fn measure_appending_recovering_and_reading_four_gibibytes() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options { dir: dir.path().join("journal"), ..options(64 << 20) };
    let (mut journal, _) = Journal::open(Arc::new(RealDisk), options.clone()).await.unwrap();
    let stream = Stream::new(Offset::ZERO, 1);
    journal.begin(stream.start, &stream.history, stream.boundary, 0).await.unwrap();
    // The last segment is as good as full, so that the most is read through.
    let total = 4 * GIB - (2 << 20);
    for (name, piece, until) in [("64 KiB", 64 << 10, GIB), ("256 KiB", 256 << 10, 2 * GIB), ("1 MiB", 1 << 20, total)]
    {
        let bytes = Bytes::from((0..piece).map(|n: u32| n.wrapping_mul(2_654_435_761) as u8).collect::<Vec<u8>>());
        let started = Instant::now();
        let from = journal.end().unwrap();
        while journal.end().unwrap().get() < until {
            journal.append(std::slice::from_ref(&bytes), journal.end().unwrap(), 1).await.unwrap();
        }
        let appended = journal.end().unwrap().since(from);
        println!("append, {name} at a time: {:.0} MB/s", rate(appended, started.elapsed()));
    }
    let started = Instant::now();
    journal.sync().await.unwrap();
    println!("sync: {:?}", started.elapsed());
    let end = journal.end().unwrap();
    drop(journal);
    for state in ["as kill -9 leaves it", "sealed"] {
        let started = Instant::now();
        let (journal, recovered) = Journal::open(Arc::new(RealDisk), options.clone()).await.unwrap();
        let took = started.elapsed();
        let recovered = recovered.unwrap();
        assert_eq!(recovered.window.end, end);
        let segments = journal.archive().segments();
        println!("recovery, {state}: {took:?}; {segments} segments, {} marks", recovered.marks.len());
    }
    let (journal, _) = Journal::open(Arc::new(RealDisk), options).await.unwrap();
    let archive = journal.archive();
    for max in [64 << 10, 256 << 10, 1 << 20] {
        for (name, from) in [("64 KiB", 0), ("256 KiB", GIB), ("1 MiB", 2 * GIB)] {
            let started = Instant::now();
            let mut at = Offset::new(from);
            while at.get() < from + GIB / 2 {
                at = at.forward(archive.read(at, max).await.unwrap().len() as u64);
            }
            println!(
                "read {} KiB at a time, records of {name}: {:.0} MB/s",
                max >> 10,
                rate(GIB / 2, started.elapsed())
            );
        }
    }
}
