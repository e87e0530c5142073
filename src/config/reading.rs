//! From text to typed values. Every failure names the setting, the origin and what is allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::settings::{Kind, Setting};
use super::sources::Values;
use super::{Error, SENTINELS_MAX, Socket, units};
use crate::access::allow::AllowList;
use crate::net::{Address, InvalidAddress};

/// The name of the control socket in `dir`.
const SOCKET: &str = "psyncd.sock";

pub(super) fn missing(name: &'static str, values: &Values) -> Error {
    let setting = row(name);
    Error::Missing { name, placeholder: setting.kind.placeholder(), env: setting.env(), file: values.file.clone() }
}

/// The row of a name this file spells out.
pub(super) fn row(name: &str) -> &'static Setting {
    Setting::named(name).expect("the names used here are those of the table")
}

/// Typed reading. Every failure names the setting, the origin and what is allowed.
impl Values {
    pub(super) fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        let setting = row(name);
        let Some(given) = self.get(name) else { return Ok(None) };
        let parsed = if given.text.is_empty() { Err("is empty".to_owned()) } else { parse(&setting.kind, &given.text) };
        parsed.map(Some).map_err(|why| Error::Value {
            name,
            shown: if setting.is_secret() { "***".to_owned() } else { format!("{:?}", given.text) },
            origin: given.origin.clone(),
            why,
            allowed: setting.kind.allowed(),
        })
    }

    pub(super) fn required<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Result<T, Error> {
        self.parsed(name, parse)?.ok_or_else(|| missing(name, self))
    }

    pub(super) fn address(&self, name: &'static str) -> Result<Option<Address>, Error> {
        self.parsed(name, |_, text| {
            text.parse().map_err(|error| match error {
                // The general advice in it is what "allowed" says anyway.
                InvalidAddress::NoPort(_) => "has no port".to_owned(),
                other => format!("is no address: {other}"),
            })
        })
    }

    pub(super) fn hosts(&self, name: &'static str) -> Result<Vec<IpAddr>, Error> {
        self.required(name, |_, text| parse_hosts(text))
    }

    pub(super) fn path(&self, name: &'static str) -> Result<Option<PathBuf>, Error> {
        self.parsed(
            name,
            |_, text| {
                if text.contains('\0') { Err("has a NUL in it".to_owned()) } else { Ok(PathBuf::from(text)) }
            },
        )
    }

    pub(super) fn socket(&self) -> Result<Socket, Error> {
        Ok(match (self.path("socket")?, self.path("dir")?) {
            (Some(path), _) if path.as_os_str() == "none" => Socket::None,
            (Some(path), _) => Socket::At(path),
            (None, Some(dir)) => Socket::InDir(dir.join(SOCKET)),
            (None, None) => Socket::None,
        })
    }

    pub(super) fn networks(&self, name: &'static str) -> Result<AllowList, Error> {
        Ok(self.parsed(name, |_, text| text.parse())?.unwrap_or_default())
    }

    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, Error> {
        self.parsed(name, |_, text| Ok(text.to_owned()))
    }

    pub(super) fn number(&self, name: &'static str) -> Result<u64, Error> {
        self.required(name, parse_number)
    }

    /// A number whose range in the table fits `T`.
    pub(super) fn narrow<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, Error> {
        self.number(name).map(fit)
    }

    pub(super) fn narrow_or_none<T: TryFrom<u64>>(&self, name: &'static str) -> Result<Option<T>, Error> {
        Ok(self.parsed(name, parse_number)?.map(fit))
    }

    pub(super) fn time(&self, name: &'static str) -> Result<Duration, Error> {
        self.required(name, parse_time)
    }

    pub(super) fn time_or_none(&self, name: &'static str) -> Result<Option<Duration>, Error> {
        self.parsed(name, parse_time)
    }
}

pub(super) fn parse_yes(kind: &Kind, text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("must be one of: {}", kind.allowed())),
    }
}

pub(super) fn parse_time(kind: &Kind, text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text).map_err(|why| why.to_string())?;
    match kind {
        Kind::Time { min, .. } if time < *min => Err("is too short".to_owned()),
        Kind::Time { max, .. } if time > *max => Err("is too long".to_owned()),
        _ => Ok(time),
    }
}

pub(super) fn fit<T: TryFrom<u64>>(number: u64) -> T {
    T::try_from(number).ok().expect("the table's range fits the field")
}

pub(super) fn parse_number(kind: &Kind, text: &str) -> Result<u64, String> {
    let (number, min, max) = match kind {
        Kind::Bytes { min, max } => (units::parse_bytes(text).map_err(|why| why.to_string())?, *min, *max),
        Kind::Count { min, max } => (parse_count(text)?, *min, *max),
        _ => return Err("is no number".to_owned()),
    };
    if number < min {
        return Err("is too small".to_owned());
    }
    if number > max {
        return Err("is too large".to_owned());
    }
    Ok(number)
}

/// Bytes a second; 0 is no limit.
pub(super) fn parse_rate(kind: &Kind, text: &str) -> Result<Option<u64>, String> {
    /// Below, a replica would see too few bytes to believe in the transfer.
    const LEAST: u64 = 64 << 10;
    match parse_number(kind, text)? {
        0 => Ok(None),
        rate if rate < LEAST => Err("is too small: give 0 for no limit, or at least 64kb".to_owned()),
        rate => Ok(Some(rate)),
    }
}

pub(super) fn parse_percent(kind: &Kind, text: &str) -> Result<u8, String> {
    let Kind::Percent { min, max } = kind else { return Err("is no percentage".to_owned()) };
    let number = text.strip_suffix('%').unwrap_or(text);
    let percent: u8 = number.parse().map_err(|_| "is no whole number of percent".to_owned())?;
    if (*min..=*max).contains(&percent) { Ok(percent) } else { Err("is out of range".to_owned()) }
}

pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    use std::num::IntErrorKind::PosOverflow;
    text.parse().map_err(|error: std::num::ParseIntError| {
        if *error.kind() == PosOverflow { "is too large".to_owned() } else { "is no number".to_owned() }
    })
}

pub(super) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        // Redis's way to say every address.
        "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        _ => {
            let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
            bare.parse().map_err(|_| format!("has {text:?} in it, which is no IP address"))
        }
    }
}

pub(super) fn parse_hosts(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut hosts = Vec::new();
    for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
        let host = parse_ip(part)?;
        if hosts.contains(&host) {
            return Err(format!("names {host} twice"));
        }
        hosts.push(host);
    }
    if hosts.is_empty() { Err("names no address".to_owned()) } else { Ok(hosts) }
}

pub(super) fn parse_names(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> =
        text.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_ascii_lowercase).collect();
    let is_odd = |name: &&String| *name != "*" && parse_host(name.strip_prefix('.').unwrap_or(name)).is_err();
    match names.iter().find(is_odd) {
        Some(odd) => Err(format!("has {odd:?} in it, which is no name of a host (leave out the port)")),
        None if names.is_empty() => Err("names nobody".to_owned()),
        None => Ok(names),
    }
}

pub(super) fn parse_addresses(text: &str) -> Result<Vec<Address>, String> {
    let mut addresses = Vec::new();
    for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
        match part.parse::<Address>() {
            Ok(address @ Address::Tcp { .. }) if addresses.contains(&address) => {
                return Err(format!("names {part} twice"));
            }
            Ok(address @ Address::Tcp { .. }) => addresses.push(address),
            Ok(Address::Unix(_)) => return Err("has a unix socket in it".to_owned()),
            Err(why) => return Err(format!("has {part:?} in it: {why}")),
        }
    }
    match addresses.len() {
        0 => Err("names no address".to_owned()),
        1..=SENTINELS_MAX => Ok(addresses),
        _ => Err("names too many".to_owned()),
    }
}

pub(super) fn parse_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "none" {
        return Ok(None);
    }
    let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
    if host.contains(':') && !host.starts_with('[') {
        return Err("needs brackets around its IPv6 address".to_owned());
    }
    let port = port.parse().map_err(|_| format!("has {port:?} where a port should be"))?;
    Ok(Some(SocketAddr::new(parse_ip(host)?, port)))
}

pub(super) fn parse_host(text: &str) -> Result<String, String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(text.to_owned());
    }
    match format!("{text}:1").parse::<Address>() {
        Ok(Address::Tcp { host, .. }) => Ok(host),
        Ok(Address::Unix(_)) | Err(_) => Err("is no host".to_owned()),
    }
}
