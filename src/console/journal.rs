//! `psyncd journal`: what is on disk, listed or read through, whether a psyncd runs or not.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use serde_json::json;
use tokio::time::Instant;

use super::look::Form;
use super::words::{bytes, moment, plain, progress, table};
use crate::store::disk::RealDisk;
use crate::store::inspect::{Depth, Report, inspect};

/// Between two lines of progress, in seconds.
const TOLD_EVERY: f64 = 1.0;

/// What is said, and whether all is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// For standard output.
    pub text: String,
    /// For standard error, a line each.
    pub damage: Vec<String>,
}

/// Looks at the journal in `dir`.
///
/// # Errors
/// When the directory cannot be read, with a line that says so.
pub async fn look(dir: &Path, depth: Depth, form: Form) -> Result<Findings, String> {
    let (began, mut told) = (Instant::now(), 0.0);
    let watched = io::stderr().is_terminal() && depth == Depth::Records;
    let report = inspect(&RealDisk, dir, depth, |done, whole| {
        let elapsed = began.elapsed().as_secs_f64();
        if watched && elapsed - told >= TOLD_EVERY {
            told = elapsed;
            let moved = progress(done, Some(whole), Some(done as f64 / elapsed));
            // Nobody is left to tell if this cannot be written.
            let _ = write!(io::stderr(), "\r\x1b[K{moved}");
        }
    });
    let report = report.await.map_err(|error| format!("{}: {error}", dir.display()))?;
    if watched && told > 0.0 {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    let damage = report.damage.iter().map(|damage| format!("{}: {}", damage.path.display(), damage.what)).collect();
    let text = match form {
        Form::Text => text(&report, dir, depth),
        Form::Json => format!("{:#}\n", document(&report)),
    };
    Ok(Findings { text, damage })
}

fn text(report: &Report, dir: &Path, depth: Depth) -> String {
    if report.segments.is_empty() {
        return format!("no journal in {}\n", dir.display());
    }
    let rows: Vec<_> = report
        .segments
        .iter()
        .map(|segment| {
            let state = match (segment.claimed, segment.sealed) {
                (true, true) => "whole",
                (true, false) => "being written",
                (false, _) => "left over",
            };
            vec![
                segment.serial.to_string(),
                segment.start.get().to_string(),
                segment.end.get().to_string(),
                bytes(segment.bytes),
                moment(segment.unix_ms),
                state.to_owned(),
                format!("{}...", &segment.replid.as_str()[..8]),
                plain(&segment.upstream),
            ]
        })
        .collect();
    let heads = [">segment", ">from", ">to", ">size", "begun", "state", "replid", "upstream"];
    let mut text = table(&heads, &rows);
    let loose: u64 = report.segments.iter().map(|segment| segment.loose_bytes).sum();
    if loose > 0 {
        text.push_str(&format!("{} behind the last whole record: being written, or torn by a crash\n", bytes(loose)));
    }
    if let Some((start, end)) = report.claimed() {
        let read = if depth == Depth::Records { "every record read" } else { "ends read" };
        let how_bad = match report.damage.len() {
            0 => "no damage found".to_owned(),
            count => format!("{count} damaged"),
        };
        text.push_str(&format!(
            "a psyncd started here offers offsets {} to {} ({}); {read}, {how_bad}\n",
            start.get(),
            end.get(),
            bytes(end.since(start))
        ));
    }
    text
}

fn document(report: &Report) -> serde_json::Value {
    let segments = report.segments.iter().map(|segment| {
        json!({
            "file": segment.path.display().to_string(), "serial": segment.serial, "sequence": segment.sequence,
            "first_offset": segment.start.get(), "end_offset": segment.end.get(), "file_bytes": segment.bytes,
            "begun_unix_ms": segment.unix_ms, "sealed": segment.sealed, "loose_bytes": segment.loose_bytes,
            "claimed": segment.claimed, "replid": segment.replid.as_str(), "upstream": segment.upstream,
        })
    });
    let damage = report.damage.iter();
    json!({
        "segments": segments.collect::<Vec<_>>(),
        "claimed": report.claimed().map(|(start, end)| json!({ "first_offset": start.get(), "end_offset": end.get() })),
        "damage": damage.map(|d| json!({ "file": d.path.display().to_string(), "what": d.what })).collect::<Vec<_>>(),
    })
}
