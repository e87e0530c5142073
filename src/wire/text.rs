//! Numbers and excerpts, as the protocol writes and people read them.

/// Longest excerpt of a peer's bytes that goes into an error or a log field, in bytes of input.
const EXCERPT: usize = 120;

/// A decimal number exactly as Redis reads one (util.c, `string2ll`): an optional minus, no plus, no
/// blanks, no leading zeros, within 64 bits.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let plain = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !plain {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// A non-negative [`integer`].
pub(super) fn natural(text: &[u8]) -> Option<u64> {
    integer(text).and_then(|n| u64::try_from(n).ok())
}

/// The front of a peer's bytes as one short printable line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let front = &bytes[..bytes.len().min(EXCERPT)];
    match str::from_utf8(front) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => front.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_is_read_only_as_redis_writes_it() {
        for (text, value) in [("0", 0), ("-1", -1), ("42", 42), ("9223372036854775807", i64::MAX)] {
            assert_eq!(integer(text.as_bytes()), Some(value), "{text}");
        }
        for bad in ["", "-", "-0", "+1", "01", " 1", "1 ", "1a", "9223372036854775808", "?"] {
            assert_eq!(integer(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(natural(b"-1"), None);
    }

    #[test]
    fn an_excerpt_is_short_and_printable() {
        assert_eq!(excerpt(b"NOAUTH Authentication required."), "NOAUTH Authentication required.");
        assert_eq!(excerpt(b"\x16\x03\x01"), "\\x16\\x03\\x01");
        assert_eq!(excerpt(&[b'x'; 1000]).len(), EXCERPT);
    }

    proptest! {
        #[test]
        fn every_number_survives_writing_and_reading(n: i64) {
            prop_assert_eq!(integer(n.to_string().as_bytes()), Some(n));
        }
    }
}
