//! Every line of the log that an operator may see has a stable name, and `deploy/EVENTS.md` lists them all. To renew that page:
//! `RENEW=1 cargo test --test events`.

#![allow(clippy::unwrap_used, reason = "a test says what it expects, and fails where it does not come")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One place in the source where something is logged.
struct Site {
    place: String,
    level: &'static str,
    /// The `event` field.
    name: Option<String>,
    message: String,
    fields: Vec<String>,
}

#[test]
fn every_event_has_a_name_and_stands_in_the_page() {
    let mut rows: BTreeMap<String, Vec<Site>> = BTreeMap::new();
    for site in sites() {
        let Some(name) = site.name.clone() else { panic!("{}: logged without event = \"…\"", site.place) };
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}: {name}", site.place);
        rows.entry(name).or_default().push(site);
    }
    assert!(rows.len() > 80, "the search finds too little: {}", rows.len());
    let page = page(&rows);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/EVENTS.md");
    if std::env::var_os("RENEW").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "deploy/EVENTS.md is not what the source says; renew it: RENEW=1 cargo test --test events"
    );
}

fn page(rows: &BTreeMap<String, Vec<Site>>) -> String {
    let mut page = String::from(
        "# Events\n\nEvery line of the log from level `info` on has a field `event` with one of these names, which stay what they are between \
         versions; words and further fields may be added. `psyncd events`, the status page and `/api/v1/events` show the same lines. \
         Times are in milliseconds (`_ms`) or seconds (`_s`), sizes in bytes. This page is made from the source.\n\n\
         | event | level | message | fields |\n|---|---|---|---|\n",
    );
    for (name, sites) in rows {
        let each = |of: &dyn Fn(&Site) -> String| {
            let mut all: Vec<String> = Vec::new();
            for text in sites.iter().map(of) {
                if !all.contains(&text) {
                    all.push(text);
                }
            }
            all.join(" / ")
        };
        let mut fields: Vec<&str> = Vec::new();
        for field in sites.iter().flat_map(|site| &site.fields) {
            if !fields.contains(&field.as_str()) {
                fields.push(field);
            }
        }
        let (levels, messages) = (each(&|site| site.level.to_owned()), each(&|site| site.message.clone()));
        page.push_str(&format!("| `{name}` | {levels} | {messages} | {} |\n", fields.join(", ")));
    }
    page
}

fn sites() -> Vec<Site> {
    let mut found = Vec::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (level, call) in [("error", "error!("), ("warn", "warn!("), ("info", "info!(")] {
            for (at, _) in code.match_indices(call) {
                let before = code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let line = code[..at].lines().count();
                found.push(site(format!("{}:{line}", path.display()), level, arguments(&code[at + call.len()..])));
            }
        }
    }
    found
}

fn site(place: String, level: &'static str, arguments: Vec<String>) -> Site {
    let mut site = Site { place, level, name: None, message: String::new(), fields: Vec::new() };
    for argument in arguments {
        if let Some(name) = argument.strip_prefix("event = \"") {
            site.name = Some(name.trim_end_matches('"').to_owned());
        } else if argument.starts_with('"') {
            // A line break in the source is none in the message.
            let joined: Vec<&str> = argument.trim_matches('"').split("\\\n").map(str::trim_start).collect();
            site.message = joined.concat();
        } else {
            let name = argument.split('=').next().unwrap().trim();
            site.fields.push(format!("`{}`", name.trim_start_matches(['%', '?'])));
        }
    }
    assert!(!site.message.is_empty(), "{}: no message", site.place);
    site
}

/// What stands between a parenthesis that was opened and its end, by commas of the first level.
fn arguments(text: &str) -> Vec<String> {
    let (mut arguments, mut one) = (Vec::new(), String::new());
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for c in text.chars() {
        match c {
            _ if quoted => {
                quoted = c != '"' || escaped;
                escaped = c == '\\' && !escaped;
            }
            '"' => quoted = true,
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(std::mem::take(&mut one).trim().to_owned());
                continue;
            }
            _ => {}
        }
        one.push(c);
    }
    arguments.push(one.trim().to_owned());
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}
