//! Sizes and times as Redis writes them, read and printed. A size is a number of bytes with an optional unit
//! (`1k` is 1000, `1kb` is 1024); a time is a number of seconds, or numbers with units (`500ms`, `1m30s`).

use std::time::Duration;

/// Why a text is no size or no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// A sign where only amounts make sense.
    #[error("is negative")]
    Negative,
    /// No digits where a number should start.
    #[error("does not start with a whole number")]
    Number,
    /// A unit nobody knows.
    #[error("has the unknown unit \"{0}\"")]
    Unit(String),
    /// A number without a unit behind a number with one.
    #[error("has a number without a unit")]
    NoUnit,
    /// `30s1m` or `1m1m`: more likely a slip than a wish.
    #[error("does not name its units once each, largest first")]
    Order,
    /// More than 64 bits hold.
    #[error("is too large")]
    Overflow,
}

/// Reads a size in bytes, by the rules of redis 7.0 util.c, memtoull: `b`, `k`, `kb`, `m`, `mb`, `g`, `gb`, case-blind.
///
/// ```
/// use psyncd::config::units::parse_bytes;
/// assert_eq!(parse_bytes("256mb"), Ok(256 * 1024 * 1024));
/// assert_eq!(parse_bytes("1k"), Ok(1000));
/// ```
pub fn parse_bytes(text: &str) -> Result<u64, BadUnit> {
    let (number, unit) = split_number(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return Err(BadUnit::Unit(unit.to_owned())),
    };
    number.checked_mul(factor).ok_or(BadUnit::Overflow)
}

/// Prints a size so that [`parse_bytes`] reads it back.
pub fn print_bytes(bytes: u64) -> String {
    for (shift, unit) in [(30, "gb"), (20, "mb"), (10, "kb")] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// The units of time, largest first, in microseconds.
const TIMES: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1000), ("us", 1)];

/// Reads a time: bare seconds, or units from `d` down to `us`, each once, largest first.
///
/// ```
/// use std::time::Duration;
/// use psyncd::config::units::parse_duration;
/// assert_eq!(parse_duration("60"), Ok(Duration::from_secs(60)));
/// assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let (number, rest) = split_number(text)?;
    if rest.is_empty() {
        return number.checked_mul(1_000_000).map(Duration::from_micros).ok_or(BadUnit::Overflow);
    }
    let mut rest = text;
    let mut units = TIMES.iter();
    let mut total = 0u64;
    while !rest.is_empty() {
        let (number, tail) = split_number(rest)?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let lower = unit.to_ascii_lowercase();
        let factor = match units.find(|(name, _)| *name == lower) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => return Err(BadUnit::NoUnit),
            None if TIMES.iter().any(|(name, _)| *name == lower) => return Err(BadUnit::Order),
            None => return Err(BadUnit::Unit(unit.to_owned())),
        };
        let part = number.checked_mul(factor).ok_or(BadUnit::Overflow)?;
        total = total.checked_add(part).ok_or(BadUnit::Overflow)?;
        rest = tail;
    }
    Ok(Duration::from_micros(total))
}

/// Prints a time, to the microsecond, so that [`parse_duration`] reads it back.
pub fn print_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in TIMES {
        if rest >= factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    text
}

fn split_number(text: &str) -> Result<(u64, &str), BadUnit> {
    if text.is_empty() {
        return Err(BadUnit::Empty);
    }
    if text.starts_with('-') {
        return Err(BadUnit::Negative);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(BadUnit::Number);
    }
    // Only digits are left, so the one thing that can go wrong is their number.
    let number = digits.parse().map_err(|_| BadUnit::Overflow)?;
    Ok((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_redis_reads_them() {
        let table = [
            ("0", 0),
            ("1", 1),
            ("100b", 100),
            ("1k", 1000),
            ("1kb", 1024),
            ("1KB", 1024),
            ("5m", 5_000_000),
            ("5Mb", 5 << 20),
            ("2g", 2_000_000_000),
            ("2gB", 2 << 30),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason() {
        let table = [
            ("", BadUnit::Empty),
            ("-1mb", BadUnit::Negative),
            ("mb", BadUnit::Number),
            ("+1", BadUnit::Number),
            (" 1", BadUnit::Number),
            ("1.5gb", BadUnit::Unit(".5gb".into())),
            ("1 mb", BadUnit::Unit(" mb".into())),
            ("1tb", BadUnit::Unit("tb".into())),
            ("18446744073709551616", BadUnit::Overflow),
            ("99999999999gb", BadUnit::Overflow),
        ];
        for (text, why) in table {
            assert_eq!(parse_bytes(text), Err(why), "{text}");
        }
    }

    #[test]
    fn times_are_bare_seconds_or_carry_units() {
        let table = [
            ("0", 0),
            ("60", 60_000_000),
            ("200us", 200),
            ("500ms", 500_000),
            ("10s", 10_000_000),
            ("1m30s", 90_000_000),
            ("2h", 7_200_000_000),
            ("1D1H1M1S1MS1US", 90_061_001_001),
        ];
        for (text, micros) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_its_reason() {
        let table = [
            ("", BadUnit::Empty),
            ("-5", BadUnit::Negative),
            ("s", BadUnit::Number),
            ("5x", BadUnit::Unit("x".into())),
            ("1m30", BadUnit::NoUnit),
            ("30s1m", BadUnit::Order),
            ("1s1s", BadUnit::Order),
            ("1.5s", BadUnit::Unit(".".into())),
            ("99999999999999999999", BadUnit::Overflow),
            ("18446744073709551615", BadUnit::Overflow),
        ];
        for (text, why) in table {
            assert_eq!(parse_duration(text), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_reads_back_what_it_prints(bytes: u64) {
            prop_assert_eq!(parse_bytes(&print_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn a_time_reads_back_what_it_prints(micros in 0u64..u64::MAX / 2) {
            let duration = Duration::from_micros(micros);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = parse_bytes(&text);
            let _ = parse_duration(&text);
        }
    }
}
