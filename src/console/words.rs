//! Numbers and tables as people read them. Peers' words are stripped of whatever a terminal would obey.

/// `text` without control characters, and not wider than a line can take.
pub fn plain(text: &str) -> String {
    const LONGEST: usize = 400;
    text.chars().take(LONGEST).map(|c| if is_harmless(c) { c } else { '?' }).collect()
}

/// Neither does anything to a terminal nor changes the direction of writing.
fn is_harmless(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A size in the largest unit that leaves a number of one or more, with three digits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut rest, mut unit) = (bytes as f64, 0);
    while rest >= 1023.5 && unit + 1 < UNITS.len() {
        (rest, unit) = (rest / 1024.0, unit + 1);
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if rest < 9.995 => format!("{rest:.2} {}", UNITS[unit]),
        _ if rest < 99.95 => format!("{rest:.1} {}", UNITS[unit]),
        _ => format!("{rest:.0} {}", UNITS[unit]),
    }
}

/// Bytes a second.
pub fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.max(0.0).round() as u64))
}

/// A time in its two largest units; tenths below ten seconds.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "for ever".to_owned();
    }
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (1000.., _, _) => "more than 1000 d".to_owned(),
        (1.., _, _) => format!("{days} d {hours} h"),
        (0, 1.., _) => format!("{hours} h {minutes:02} m"),
        (0, 0, 1..) => format!("{minutes} m {:02} s", whole % 60),
        (0, 0, 0) => format!("{whole} s"),
    }
}

/// Some of a whole that is being moved: how much, how fast, how long still.
pub fn progress(done: u64, whole: Option<u64>, bytes_per_second: Option<f64>) -> String {
    let mut text = match whole {
        Some(whole) if whole > 0 => {
            format!("{} of {} ({} %)", bytes(done), bytes(whole), done.min(whole) * 100 / whole)
        }
        Some(_) | None => format!("{} so far, size unknown", bytes(done)),
    };
    if let Some(speed) = bytes_per_second.filter(|speed| *speed >= 1.0) {
        text.push_str(&format!(", {}", rate(speed)));
        if let Some(whole) = whole.filter(|whole| *whole > done) {
            text.push_str(&format!(", {} left", seconds((whole - done) as f64 / speed)));
        }
    }
    text
}

/// A moment in milliseconds since 1970 as `2026-11-22 20:31:07Z`.
pub fn moment(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that a leap day is the last of its year (Hinnant, days_from_civil inverted).
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02} {:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

/// Columns under their heads, each as wide as its widest cell. A head that begins with `>` has its column stand to the
/// right, as numbers do.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = heads.iter().map(|head| head.starts_with('>')).collect();
    let heads: Vec<String> = heads.iter().map(|head| head.trim_start_matches('>').to_owned()).collect();
    let lines = || std::iter::once(&heads).chain(rows);
    let widest = |at: usize| lines().map(|row| width(&row[at])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(widest).collect();
    let mut text = String::new();
    for row in lines() {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            let gap = " ".repeat(widths[at].saturating_sub(width(cell)));
            if right[at] { format!("{gap}{cell}") } else { format!("{cell}{gap}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `text` behind `head`, its further lines under its first. No line is wider than `columns`, unless it is one word.
pub fn hung(head: &str, text: &str, columns: usize) -> String {
    let indent = width(head);
    let mut out = String::from(head);
    let mut column = indent;
    for (at, word) in text.split(' ').enumerate() {
        if at > 0 && column + 1 + width(word) > columns {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width(word);
    }
    out.push('\n');
    out
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (1_047_552, "1023 KiB"),
            (1_048_064, "1.00 MiB"),
            (256 << 30, "256 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn times_have_two_units() {
        for (number, text) in [
            (0.0, "0.0 s"),
            (0.24, "0.2 s"),
            (9.96, "10 s"),
            (59.6, "1 m 00 s"),
            (7800.0, "2 h 10 m"),
            (90_000.0, "1 d 1 h"),
            (f64::INFINITY, "for ever"),
            (-1.0, "0.0 s"),
        ] {
            assert_eq!(seconds(number), text);
        }
    }

    #[test]
    fn a_moment_is_what_date_says() {
        assert_eq!(moment(0), "1970-01-01 00:00:00Z");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(moment(1_795_379_467_999), "2026-11-22 20:31:07Z");
    }

    #[test]
    fn a_transfer_shows_how_much_how_fast_and_how_long_still() {
        assert_eq!(progress(50, Some(200), Some(10.0)), "50 B of 200 B (25 %), 10 B/s, 15 s left");
        assert_eq!(progress(50, None, Some(10.0)), "50 B so far, size unknown, 10 B/s");
        assert_eq!(progress(200, Some(200), None), "200 B of 200 B (100 %)");
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let rows = vec![vec!["a".into(), "5 B".into()], vec!["long".into(), "-".into()]];
        assert_eq!(table(&["name", ">bytes"], &rows), "name  bytes\na       5 B\nlong      -\n");
    }

    #[test]
    fn a_long_text_hangs_under_its_own_beginning() {
        let text = hung("warning  backlog  ", &["word"; 40].join(" "), 80);
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(18))), "{text}");
        assert_eq!(text.split_whitespace().count(), 42);
    }

    #[test]
    fn nothing_a_terminal_obeys_passes() {
        assert_eq!(plain("a\u{1b}[2Jb\r\nc\u{202e}d\u{9b}e"), "a?[2Jb??c?d?e");
        assert_eq!(plain(&"x".repeat(1000)).len(), 400);
    }
}
