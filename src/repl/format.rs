//! Which RDB files which servers can load.

use std::fmt;
use std::str::FromStr;

/// The format an RDB file declares in its first nine bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RdbFormat {
    /// `REDIS` and four digits: written by Redis, Redict, and Valkey up to 8.x.
    Redis(u32),
    /// `VALKEY` and three digits: written by Valkey 9.0 and later, and read by nobody else.
    Valkey(u32),
}

impl fmt::Display for RdbFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RdbFormat::Redis(version) => write!(f, "REDIS{version:04}"),
            RdbFormat::Valkey(version) => write!(f, "VALKEY{version:03}"),
        }
    }
}

/// The text is no format as files declare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no RDB format")]
pub struct InvalidRdbFormat;

impl FromStr for RdbFormat {
    type Err = InvalidRdbFormat;

    /// Reads exactly what `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let version = |digits: &str| digits.parse().map_err(|_| InvalidRdbFormat);
        let format = match (text.strip_prefix("REDIS"), text.strip_prefix("VALKEY")) {
            (Some(digits), _) => RdbFormat::Redis(version(digits)?),
            (None, Some(digits)) => RdbFormat::Valkey(version(digits)?),
            (None, None) => return Err(InvalidRdbFormat),
        };
        if format.to_string() == text { Ok(format) } else { Err(InvalidRdbFormat) }
    }
}

/// The version a Valkey replica announces (`REPLCONF version`, Valkey 8.0 and later). Nobody else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl ServerVersion {
    /// Reads `8.1.1`; a missing third number is 0, anything behind the digits of the third is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = parts.next().map_or("0", |p| p.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("0"));
        Some(Self { major, minor, patch: patch.parse().ok()? })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl RdbFormat {
    /// The version, meaningful only with its family.
    pub const fn version(self) -> u32 {
        match self {
            RdbFormat::Redis(version) | RdbFormat::Valkey(version) => version,
        }
    }

    /// Whether a replica that announced `version` (or none) may be able to load this.
    ///
    /// A wrong yes makes the replica throw its data away and come back for ever; a wrong no only makes it wait.
    /// But what a server that announces nothing can load is not to be known from the wire, so only what is
    /// certain is refused: `VALKEY` files to whoever did not announce Valkey 9 or later, and Redis 7.4's
    /// formats (12 and up) to Valkey, which treats them as foreign.
    pub fn suits(&self, version: Option<ServerVersion>) -> bool {
        match (self, version) {
            (RdbFormat::Valkey(_), Some(version)) => version.major >= 9,
            (RdbFormat::Valkey(_), None) => false,
            (RdbFormat::Redis(format), Some(_)) => *format < 12,
            (RdbFormat::Redis(_), None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_nobody_else_can_load_goes_only_to_valkey_nine() {
        let of = |text| ServerVersion::parse(text);
        assert!(RdbFormat::Valkey(80).suits(of("9.0.0")));
        assert!(!RdbFormat::Valkey(80).suits(of("8.1.1")));
        assert!(!RdbFormat::Valkey(80).suits(None));
        assert!(RdbFormat::Redis(11).suits(of("8.1.1")));
        assert!(RdbFormat::Redis(11).suits(of("9.1.2")));
        assert!(!RdbFormat::Redis(12).suits(of("9.1.2")));
        assert!(RdbFormat::Redis(13).suits(None));
    }

    #[test]
    fn a_format_reads_back_as_it_is_written_and_nothing_else_does() {
        for text in ["REDIS0011", "VALKEY080"] {
            assert_eq!(text.parse::<RdbFormat>().unwrap().to_string(), text);
        }
        for bad in ["", "REDIS", "REDIS11", "REDIS+011", "VALKEY80", "redis0011"] {
            assert_eq!(bad.parse::<RdbFormat>(), Err(InvalidRdbFormat), "{bad}");
        }
    }

    #[test]
    fn versions_are_read_and_ordered() {
        let v = |text| ServerVersion::parse(text).unwrap();
        assert!(v("8.1.9") < v("9.0.0"));
        assert!(v("9.0") < v("9.0.1"));
        assert_eq!(v("9.1.2-rc1"), v("9.1.2"));
        assert_eq!(v("8.0.1").to_string(), "8.0.1");
        for bad in ["", "9", "nine.0.0", "9.x.1", "-1.0.0"] {
            assert_eq!(ServerVersion::parse(bad), None, "{bad}");
        }
    }
}
