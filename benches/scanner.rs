//! What looking at the stream costs by itself: `cargo bench --bench scanner`.
//!
//! The stream is what the other benchmark sends, SET with small keys; it is scanned from memory that is in the cache, as it
//! is when the link has just read it.

use std::hint::black_box;
use std::time::Instant;

use psyncd::repl::Offset;
use psyncd::wire::resp::encode_command;
use psyncd::wire::scan::Scanner;

/// What the link reads at once at full speed.
const ROUND: usize = 256 * 1024;
/// Bytes of each measurement.
const TOTAL: usize = 1 << 30;
/// Of which the best counts: what disturbs only adds.
const TIMES: usize = 5;

fn main() {
    // What `cargo test --benches` asks for is whether it runs.
    let total = if std::env::args().any(|argument| argument == "--bench") { TOTAL } else { ROUND };
    println!("| values of | read by | GB/s | of a core at 100 MB/s |\n|---|---|---|---|");
    for value_bytes in [16, 100, 256, 4096] {
        let stream = stream(value_bytes);
        for read_bytes in [ROUND, 4096] {
            let speed = (0..TIMES).map(|_| speed(&stream, read_bytes, total)).fold(0.0, f64::max);
            println!("| {value_bytes} B | {} KiB | {:.1} | {:.1} % |", read_bytes / 1024, speed / 1e9, 1e10 / speed);
        }
    }
}

/// Whole commands, about a round of them.
fn stream(value_bytes: usize) -> Vec<u8> {
    let value = "v".repeat(value_bytes);
    let mut stream = Vec::new();
    for n in 0.. {
        stream.extend_from_slice(&encode_command(&["SET", &format!("key:{n:05}"), &value]));
        if stream.len() >= ROUND {
            break;
        }
    }
    stream
}

/// Bytes a second.
fn speed(stream: &[u8], read_bytes: usize, total: usize) -> f64 {
    let mut scanner = Scanner::new(Offset::ZERO);
    let begun = Instant::now();
    let mut scanned = 0;
    while scanned < total {
        for read in stream.chunks(read_bytes) {
            let end = scanner.scan(black_box(read));
            assert_eq!(end.error, None, "the stream is one");
        }
        scanned += stream.len();
    }
    assert_eq!(scanner.boundary(), scanner.head(), "it ends with a command");
    scanned as f64 / begun.elapsed().as_secs_f64()
}
