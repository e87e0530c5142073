//! The files of `deploy/`, which are what the scenarios run.

use std::path::PathBuf;

/// A file of `deploy` with these replacements, each of which must find its place.
#[track_caller]
pub fn deployed(name: &str, replacements: &[(&str, &str)]) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    let mut text = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    for (from, to) in replacements {
        assert!(text.contains(from), "{name} has no {from:?} any more");
        text = text.replace(from, to);
    }
    text
}
