//! The offsets that are held as a bar, with everybody's place on it: who is near the left end is about to fall off.

use super::document::Status;

/// The narrowest bar drawn.
const NARROWEST: usize = 20;

/// Three lines, at most `width` columns wide: what stands where, the bar, and its ends. Of the bar `=` is held in memory, `-`
/// on disk. Letters are replicas in the order of the table, `*` for several; `S` is the snapshot, `|` a change of history.
/// Nothing while there is no stream.
pub fn ruler(status: &Status, width: usize) -> Option<String> {
    let backlog = status.backlog.as_ref()?;
    let (first, head) = (backlog.first_offset, backlog.head_offset);
    let columns = width.max(NARROWEST) - 2;
    let column = |offset: u64| -> Option<usize> {
        if offset < first || offset > head {
            return None;
        }
        let part = (offset - first) as f64 / ((head - first).max(1)) as f64;
        Some(((part * (columns - 1) as f64).round() as usize).min(columns - 1))
    };
    let mut marks = vec![' '; columns];
    for (at, replica) in status.replicas.iter().enumerate() {
        let place = if replica.is_online() { replica.acked_offset } else { replica.sent_offset };
        if replica.is_loading() || replica.state == "waiting" {
            continue;
        }
        if let Some(column) = column(place) {
            marks[column] = if marks[column] == ' ' { letter(at) } else { '*' };
        }
    }
    let memory = column(backlog.memory.first_offset).unwrap_or(0);
    let mut bar: Vec<char> = (0..columns).map(|at| if at < memory { '-' } else { '=' }).collect();
    let switches = status.history.iter().flat_map(|history| &history.ancestors).map(|ancestor| ancestor.boundary);
    for place in switches.filter_map(column) {
        bar[place] = '|';
    }
    if let Some(place) = status.snapshot.ready.as_ref().and_then(|snapshot| column(snapshot.offset)) {
        bar[place] = 'S';
    }
    let (left, right) = (first.to_string(), head.to_string());
    let gap = (columns + 2).saturating_sub(left.len() + right.len()).max(1);
    let marks: String = marks.into_iter().collect();
    Some(format!(
        " {}\n[{}]\n{left}{}{right}\n",
        marks.trim_end(),
        bar.into_iter().collect::<String>(),
        " ".repeat(gap)
    ))
}

/// What stands for the replica of that row.
pub fn letter(row: usize) -> char {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
    LETTERS.get(row).map_or('+', |letter| char::from(*letter))
}

#[cfg(test)]
mod tests {
    use super::super::document::example;
    use super::*;

    #[test]
    fn everybody_stands_at_his_place() {
        let drawn = ruler(&example(), 42).unwrap();
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(
            lines,
            [
                "           b                            a",
                "[--------S-------|---====================]",
                "0                                    10000"
            ]
        );
    }

    #[test]
    fn nothing_is_wider_than_asked_for() {
        for width in [20, 80, 200] {
            assert!(ruler(&example(), width).unwrap().lines().all(|line| line.len() <= width), "{width}");
        }
    }

    #[test]
    fn an_empty_stream_has_an_empty_bar() {
        let mut status = example();
        let backlog = status.backlog.as_mut().unwrap();
        (backlog.first_offset, backlog.head_offset, backlog.memory.first_offset) = (10_000, 10_000, 10_000);
        assert!(ruler(&status, 40).unwrap().contains("10000"));
        status.backlog = None;
        assert_eq!(ruler(&status, 40), None);
    }
}
