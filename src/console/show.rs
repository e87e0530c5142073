//! Documents as text, for `status`, `replicas`, `clients`, `history`, `events` and the frames of `top`.

use std::collections::HashMap;

use serde_json::Value;

use super::document::{Clients, Event, Replica, Status};
use super::ruler::{letter, ruler};
use super::words::{bytes, hung, moment, plain, progress, rate, seconds, table};

/// Columns that sentences may take.
const WIDTH: usize = 80;

/// How fast things move, measured between two looks.
#[derive(Debug, Clone, Default)]
pub struct Speeds {
    /// Of replicas that are sent a snapshot or the stream, by name and peer, in bytes a second.
    pub replicas: HashMap<(String, String), f64>,
    /// Of the snapshot that arrives.
    pub snapshot: Option<f64>,
}

impl Speeds {
    /// What moved from `before` to `now` within `elapsed` seconds.
    pub fn between(before: &Status, now: &Status, elapsed: f64) -> Speeds {
        if elapsed <= 0.0 {
            return Speeds::default();
        }
        let key = |replica: &Replica| (replica.replica.clone(), replica.peer.clone());
        let moved = |replica: &Replica| replica.sent_stream_bytes + replica.sent_snapshot_bytes;
        let earlier: HashMap<_, _> = before.replicas.iter().map(|replica| (key(replica), moved(replica))).collect();
        let replicas = now.replicas.iter().filter_map(|replica| {
            let more = moved(replica).checked_sub(*earlier.get(&key(replica))?)?;
            Some((key(replica), more as f64 / elapsed))
        });
        let snapshot = match (&before.snapshot.arriving, &now.snapshot.arriving) {
            (Some(before), Some(now)) if before.offset == now.offset => {
                now.received_bytes.checked_sub(before.received_bytes).map(|more| more as f64 / elapsed)
            }
            _ => None,
        };
        Speeds { replicas: replicas.collect(), snapshot }
    }

    fn of(&self, replica: &Replica) -> Option<f64> {
        self.replicas.get(&(replica.replica.clone(), replica.peer.clone())).copied()
    }
}

/// Everything in short.
pub fn status(status: &Status, speeds: &Speeds, width: usize) -> String {
    let mut text = headline(status);
    text.push('\n');
    let mut fact = |name: &str, what: String| text.push_str(&format!("{name:<10}{what}\n"));
    let upstream = &status.upstream;
    let mut link = format!("{} {}", plain(&upstream.address), upstream.link);
    if let Some(down) = upstream.down_seconds.filter(|_| !upstream.is_streaming()) {
        link.push_str(&format!(", lost for {}", seconds(down)));
    }
    if let Some(epoch) = upstream.sentinel_epoch {
        link.push_str(&format!(", Sentinel epoch {epoch}"));
    }
    fact("upstream", link);
    match &status.backlog {
        None => fact("backlog", "no stream yet".to_owned()),
        Some(backlog) => {
            let mut held =
                format!("{} in memory of {}", bytes(backlog.memory.used_bytes), bytes(backlog.memory.limit_bytes));
            if let Some(journal) = &backlog.journal {
                let used = journal.head_offset.zip(journal.first_offset).map_or(0, |(end, start)| end - start);
                held.push_str(&format!("; {} on disk of {}", bytes(used), bytes(journal.limit_bytes)));
                if journal.degraded {
                    held.push_str(" (DEGRADED: the disk does not follow)");
                }
            }
            fact("backlog", held);
            let runway = backlog.runway_seconds.unwrap_or(f64::INFINITY);
            let (back, growth) = (seconds(backlog.coverage_seconds), rate(backlog.bytes_per_second));
            fact("", format!("reaches back {back}, grows {growth}"));
            let away = if runway.is_finite() { seconds(runway) } else { "any length".to_owned() };
            fact("", format!("outlasts an absence of {away}"));
        }
    }
    fact("snapshot", snapshot(status, speeds.snapshot));
    fact("clients", status.clients.to_string());
    fact("up for", format!("{}, version {}", seconds(status.uptime_seconds as f64), plain(&status.version)));
    text.push('\n');
    text.push_str(&replicas(status, speeds, Detail::Some));
    if let Some(ruler) = ruler(status, width) {
        text.push('\n');
        text.push_str(&ruler);
    }
    text
}

/// How things stand, in a line, and a line for each thing that is wrong.
pub fn headline(status: &Status) -> String {
    let mut text = match &status.verdict {
        Some(verdict) => {
            let grade = format!("{}: ", plain(&verdict.grade).to_uppercase());
            let mut text = hung(&grade, &plain(&verdict.text), WIDTH);
            // The sentence begins with the worst; it only counts the others.
            for problem in verdict.problems.iter().filter(|_| verdict.problems.len() > 1) {
                text.push_str(&hung("  - ", &plain(&problem.text), WIDTH));
            }
            text
        }
        None => {
            let online = status.replicas.iter().filter(|replica| replica.is_online());
            let worst = online.clone().map(|replica| replica.lag_seconds).fold(0.0, f64::max);
            format!(
                "{} from {}, {} of {} replicas online, worst lag {}\n",
                status.upstream.link,
                plain(&status.upstream.address),
                online.count(),
                status.replicas.len(),
                seconds(worst)
            )
        }
    };
    if status.guard.active {
        text.push_str("  - `psyncd guard status` says what the wipe guard holds, and what can be done\n");
    }
    if status.draining {
        text.push_str("  - draining: nobody new is sent here until `psyncd undrain`\n");
    }
    text
}

/// What there is of a snapshot.
pub fn snapshot(status: &Status, speed: Option<f64>) -> String {
    let snapshots = &status.snapshot;
    let mut parts = Vec::new();
    if let Some(arriving) = &snapshots.arriving {
        parts.push(format!("receiving {}", progress(arriving.received_bytes, arriving.length_bytes, speed)));
    } else if snapshots.requested {
        parts.push("one is asked for".to_owned());
    }
    if let Some(ready) = &snapshots.ready {
        let behind = status.backlog.as_ref().map_or(0, |backlog| backlog.head_offset.saturating_sub(ready.offset));
        parts.push(format!("{} ready, {} behind the head", bytes(ready.received_bytes), bytes(behind)));
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join("; ") }
}

/// How much of each replica is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What fits into 80 columns.
    Some,
    /// Everything.
    All,
}

/// The table of replicas.
pub fn replicas(status: &Status, speeds: &Speeds, detail: Detail) -> String {
    if status.replicas.is_empty() {
        return "no replicas\n".to_owned();
    }
    let growth = status.backlog.as_ref().map_or(0.0, |backlog| backlog.bytes_per_second);
    let mut heads = vec!["", "replica", "state", ">lag", ">behind", ">rate", ">falls off in"];
    if detail == Detail::All {
        heads.extend([">acked offset", ">silent", ">attached", "version", "from"]);
    }
    let rows = status.replicas.iter().enumerate().map(|(at, replica)| {
        let behind = |text: String| if replica.state == "waiting" { "-".to_owned() } else { text };
        let mut row = vec![
            letter(at).to_string(),
            plain(&replica.replica),
            state(replica),
            behind(seconds(replica.lag_seconds)),
            behind(bytes(replica.lag_bytes)),
            speeds.of(replica).map_or("-".to_owned(), rate),
            match (replica.falls_off_in(growth), replica.backlog_remaining_bytes) {
                (Some(left), _) => seconds(left),
                (None, Some(left)) => bytes(left),
                (None, None) => "-".to_owned(),
            },
        ];
        if detail == Detail::All {
            row.extend([
                replica.acked_offset.to_string(),
                seconds(replica.silent_seconds),
                seconds(replica.attached_seconds),
                replica.version.as_deref().map_or("-".to_owned(), plain),
                plain(&replica.peer),
            ]);
        }
        row
    });
    let mut text = table(&heads, &rows.collect::<Vec<_>>());
    for (at, replica) in status.replicas.iter().enumerate().filter(|(_, replica)| replica.is_loading()) {
        let moved = progress(replica.sent_snapshot_bytes, replica.snapshot_bytes, speeds.of(replica));
        text.push_str(&format!("{} is sent a snapshot: {moved}\n", letter(at)));
    }
    text
}

fn state(replica: &Replica) -> String {
    match (&replica.waits_for, replica.queue_position, replica.snapshot_bytes) {
        (_, Some(place), _) => format!("in line, {place}."),
        (Some(what), None, _) => format!("waits for {}", plain(what)),
        (None, None, Some(whole)) if replica.is_loading() && whole > 0 => {
            format!("snapshot {} %", replica.sent_snapshot_bytes.min(whole) * 100 / whole)
        }
        _ => plain(&replica.state),
    }
}

/// The table of clients.
pub fn clients(clients: &Clients) -> String {
    if clients.count == 0 {
        return "no clients are passed through\n".to_owned();
    }
    let rows: Vec<_> = clients
        .clients
        .iter()
        .map(|client| {
            vec![
                plain(&client.peer),
                seconds(client.connected_seconds),
                bytes(client.to_upstream_bytes),
                bytes(client.to_client_bytes),
            ]
        })
        .collect();
    let mut text = table(&["client", ">connected", ">sent", ">received"], &rows);
    if let Some(more) = clients.count.checked_sub(rows.len() as u64).filter(|more| *more > 0) {
        text.push_str(&format!("and {more} more\n"));
    }
    text
}

/// The stream's names, newest first, each with what it stands for.
pub fn history(status: &Status) -> String {
    let (Some(history), Some(backlog)) = (&status.history, &status.backlog) else {
        return "no stream yet, so no history\n".to_owned();
    };
    let starts = history.ancestors.iter().map(|ancestor| Some(ancestor.boundary)).chain([None]);
    let names = std::iter::once((&history.replid, None))
        .chain(history.ancestors.iter().map(|ancestor| (&ancestor.replid, Some(ancestor.boundary))));
    let rows = names.zip(starts).map(|((name, end), start)| {
        let end_offset = end.unwrap_or(backlog.head_offset);
        let held = end_offset.saturating_sub(backlog.first_offset.max(start.unwrap_or(0)));
        vec![
            plain(name),
            start.map_or("its beginning".to_owned(), |start| start.to_string()),
            end.map_or(format!("{} (now)", backlog.head_offset), |end| end.to_string()),
            if end_offset >= backlog.first_offset { bytes(held) } else { "nothing".to_owned() },
        ]
    });
    let mut text = table(&["replication id", ">from", ">to", ">held of it"], &rows.collect::<Vec<_>>());
    text.push_str(&format!(
        "a replica continues if it stands at one of these from offset {} on; what is older costs it a full resync\n",
        backlog.first_offset
    ));
    text
}

/// One event as a line.
pub fn event(event: &Event) -> String {
    let mut line = format!("{}  {:<5}  {}", moment(event.unix_ms), plain(&event.level), plain(&event.message));
    for (name, value) in &event.fields {
        let value = match value {
            Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => plain(text),
            Value::String(text) => format!("{:?}", plain(text)),
            other => plain(&other.to_string()),
        };
        line.push_str(&format!(" {}={value}", plain(name)));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::super::document::example;
    use super::*;

    #[test]
    fn the_status_fits_into_a_terminal_and_says_what_matters() {
        let text = status(&example(), &Speeds::default(), 80);
        for part in ["streaming from 10.0.0.1:6379, 2 of 3 replicas online", "16 m 40 s", "snapshot 25 %", "1 h 01 m"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_transfer_is_shown_with_rate_and_time_left() {
        let (before, mut now) = (example(), example());
        now.replicas[2].sent_snapshot_bytes += 500;
        let text = replicas(&now, &Speeds::between(&before, &now, 2.0), Detail::Some);
        assert!(text.contains("c is sent a snapshot: 750 B of 1000 B (75 %), 250 B/s, 1.0 s left"), "{text}");
        // A connection of another life moves nothing.
        now.replicas[2].sent_snapshot_bytes = 0;
        assert_eq!(Speeds::between(&before, &now, 2.0).of(&now.replicas[2]), None);
    }

    #[test]
    fn the_history_says_from_where_a_replica_continues() {
        let text = history(&example());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with(&"a".repeat(40)) && lines[1].contains("4000") && lines[1].contains("10000 (now)"));
        assert!(lines[2].starts_with(&"b".repeat(40)) && lines[2].contains("3.91 KiB"), "{text}");
        assert!(lines[3].contains("from offset 0 on"), "{text}");
    }

    #[test]
    fn an_event_is_one_line_whatever_a_peer_said() {
        let happened: Event = serde_json::from_value(serde_json::json!({
            "seq": 1, "unix_ms": 0, "level": "warn", "message": "link lost",
            "fields": { "bytes": 5, "why": "a \"b\"\n\u{1b}[31m", "replica": "a:1" },
        }))
        .unwrap();
        let line = event(&happened);
        assert_eq!(line, "1970-01-01 00:00:00Z  warn   link lost bytes=5 replica=a:1 why=\"a \\\"b\\\"??[31m\"\n");
    }
}
