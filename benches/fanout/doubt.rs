//! Doubt of ourselves: before anything is measured, the checks are shown wrong bytes and have to notice.

use anyhow::{Result, bail, ensure};

use super::rdb::Rdb;
use super::stream::{Checker, Layout, PERIOD, Writer};

/// Fails unless right bytes pass and wrong ones do not.
pub fn check_the_checks() -> Result<()> {
    let layout = Layout::new(100, 1);
    let slot_bytes = layout.slot_bytes();
    // From the last commands of one period, over one that begins with a GETACK, into the next.
    let start = slot_bytes * (PERIOD - 2) + 7;
    let bytes = written(&layout, start, slot_bytes * (PERIOD + 2));
    right_bytes_pass(&layout, start, &bytes)?;
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x20;
        ensure!(every(&layout, start, &wrong).is_err(), "a wrong byte of the stream went unnoticed at {at}");
    }
    for shift in [1, slot_bytes, slot_bytes * PERIOD] {
        ensure!(every(&layout, start + shift, &bytes).is_err(), "a stream shifted by {shift} went unnoticed");
    }
    snapshots_are_checked()
}

fn written(layout: &Layout, start: u64, end: u64) -> Vec<u8> {
    let mut writer = Writer::new(layout, start / layout.slot_bytes(), Some(1));
    let mut bytes = Vec::new();
    while start + (bytes.len() as u64) < end {
        bytes.extend_from_slice(writer.bytes(layout, start + bytes.len() as u64, end, 2, |_| {}));
    }
    bytes
}

fn every(layout: &Layout, offset: u64, bytes: &[u8]) -> Result<(), super::stream::Wrong> {
    // The first command is cut: its stamp may have begun before.
    let skip = (layout.slot_bytes() - offset % layout.slot_bytes()) as usize;
    let mut checker = Checker::new();
    let head = written(layout, offset - offset % layout.slot_bytes(), offset);
    checker.every(layout, offset - head.len() as u64, &head, |_| {})?;
    checker.every(layout, offset, &bytes[..skip], |_| {})?;
    checker.every(layout, offset + skip as u64, &bytes[skip..], |_| {})
}

fn right_bytes_pass(layout: &Layout, start: u64, bytes: &[u8]) -> Result<()> {
    for piece in [1, 5, 23, 1000, usize::MAX] {
        let mut checker = Checker::new();
        let mut at = start;
        let mut commands = 0;
        for part in bytes.chunks(piece) {
            if let Err(wrong) = checker.every(layout, at, part, |_| commands += 1) {
                bail!("a right byte was taken for wrong, in pieces of {piece}: {wrong:?}");
            }
            at += part.len() as u64;
        }
        ensure!(commands == 4, "{commands} commands were counted instead of 4");
    }
    Ok(())
}

fn snapshots_are_checked() -> Result<()> {
    let rdb = Rdb::new(40_000);
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < rdb.len() {
        rdb.piece(bytes.len() as u64, 16, &mut bytes);
    }
    ensure!(rdb.check(0, &bytes).is_ok(), "a right snapshot was taken for wrong");
    ensure!(rdb.check(0, &[&bytes[..], b"x"].concat()).is_err(), "a byte behind the snapshot went unnoticed");
    for at in (0..bytes.len()).step_by(61).chain(0..64).chain(bytes.len() - 16..bytes.len()) {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        ensure!(rdb.check(0, &wrong).is_err(), "a wrong byte of the snapshot went unnoticed at {at}");
    }
    Ok(())
}
