use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::sources::{DEFAULT_FILE, SmallFile};
use super::*;
use std::net::Ipv4Addr;

/// A world of one default configuration file, one password file, and some variables.
#[derive(Default)]
struct World<'a> {
    flags: &'a [(&'static str, &'a str)],
    env: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
    password: Option<(&'a [u8], u32)>,
}

impl World<'_> {
    fn load(&self) -> Result<Loaded, Error> {
        let read = |path: &Path| match (path.to_str(), self.file, self.password) {
            (Some(DEFAULT_FILE), Some(text), _) => Ok(SmallFile { bytes: text.into(), mode: 0o100600 }),
            (Some("/secret"), _, Some((bytes, mode))) => Ok(SmallFile { bytes: bytes.into(), mode }),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let env = self.env.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        let values = self.flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Config::load(&Flags { file: None, values }, &Surroundings { env, read_file: &read })
    }

    fn config(&self) -> Config {
        match self.load() {
            Ok(loaded) => loaded.config,
            Err(error) => panic!("{error}"),
        }
    }

    fn why(&self) -> String {
        match self.load() {
            Ok(_) => panic!("was accepted"),
            Err(error) => error.to_string(),
        }
    }
}

/// What a configuration file of this text makes.
pub(super) fn loaded_from(text: &str) -> Result<Config, Error> {
    World { file: Some(text), ..World::default() }.load().map(|loaded| loaded.config)
}

const UPSTREAM: (&str, &str) = ("upstream", "10.0.0.1:6379");

fn with(name: &'static str, value: &str) -> Result<Config, String> {
    World { flags: &[UPSTREAM, (name, value)], ..World::default() }
        .load()
        .map(|loaded| loaded.config)
        .map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let config = World { flags: &[UPSTREAM], ..World::default() }.config();
    assert_eq!(config.bind, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    assert_eq!(config.port, 6380);
    assert_eq!(config.admin_bind, Some("127.0.0.1:9379".parse().unwrap()));
    assert_eq!(config.dir, None);
    assert_eq!(config.repl_backlog_bytes, 256 << 20);
    assert_eq!(config.history_depth, 16);
    assert_eq!(config.repl_timeout, Duration::from_secs(60));
    assert_eq!(config.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.max_replicas, 64);
    assert_eq!(config.max_clients, 10_000);
    assert_eq!(config.log_level, log::Level::Info);
    assert_eq!(config.log_format, log::Format::Auto);
    assert!(config.masterauth.is_none() && config.announce_port.is_none());
}

#[test]
fn the_wipe_guard_holds_by_default_and_takes_percent_with_or_without_the_sign() {
    let config = with("guard-min-ratio", "10").unwrap();
    assert_eq!(config.guard, guard::Rules { mode: guard::Mode::Hold, min_keys: 1000, min_percent: 10 });
    assert_eq!(with("guard-min-ratio", "100%").unwrap().guard.min_percent, 100);
    assert_eq!(with("wipe-guard", "off").unwrap().guard.mode, guard::Mode::Off);
    for wrong in ["0.1", "101%", "-1", "%", "ten", ""] {
        let why = with("guard-min-ratio", wrong).unwrap_err();
        assert!(why.contains("a percentage from 0% to 100%"), "{why}");
    }
    assert!(with("wipe-guard", "yes").unwrap_err().contains("off, warn, hold"));
}

#[test]
fn the_control_socket_is_in_the_directory_unless_somebody_chose() {
    let socket = |flags: &[(&'static str, &str)]| {
        World { flags: &[&[UPSTREAM], flags].concat(), ..World::default() }.config().socket
    };
    assert_eq!(socket(&[]), Socket::None);
    assert_eq!(socket(&[("dir", "/d")]), Socket::InDir("/d/psyncd.sock".into()));
    assert_eq!(socket(&[("dir", "/d"), ("socket", "/s")]), Socket::At("/s".into()));
    assert_eq!(socket(&[("dir", "/d"), ("socket", "none")]), Socket::None);
    // Who only asks need not know the upstream.
    let around = Surroundings {
        env: vec![("PSYNCD_DIR".into(), "/e".into())],
        read_file: &|_| Err(io::ErrorKind::NotFound.into()),
    };
    let flags = Flags::default();
    assert_eq!(Config::socket(&flags, &around).ok(), Some(Socket::InDir("/e/psyncd.sock".into())));
}

#[test]
fn the_replica_face_is_what_is_announced_and_never_the_master_or_the_front() {
    let config = |flags: &[(&'static str, &str)]| {
        World { flags: &[&[UPSTREAM], flags].concat(), ..World::default() }.load().map(|loaded| loaded.config)
    };
    let announced = |flags: &[(&'static str, &str)]| config(flags).map(|config| config.announced_port()).unwrap();
    assert_eq!(announced(&[]), None);
    assert_eq!(announced(&[("replica-port", "6390")]), Some(6390));
    assert_eq!(announced(&[("replica-port", "6390"), ("announce-port", "16390")]), Some(16390));
    assert_eq!(announced(&[("replica-port", "0")]), None);
    let face = config(&[("replica-port", "6390"), ("replica-bind", "10.0.0.9")]).unwrap();
    assert_eq!(face.face().collect::<Vec<_>>(), ["10.0.0.9:6390".parse().unwrap()]);
    let why = |flags: &[(&'static str, &str)]| config(flags).map(|_| ()).unwrap_err().to_string();
    assert!(
        why(&[("announce-ip", "10.0.0.1"), ("announce-port", "6379")]).contains("the upstream 10.0.0.1:6379 itself")
    );
    assert!(why(&[("announce-port", "6380")]).contains("passes commands on"), "that is the front");
    assert!(why(&[("replica-port", "6380")]).contains("port and replica-port are both 6380"));
    // The same port elsewhere is somebody else's.
    assert_eq!(announced(&[("announce-ip", "10.0.0.2"), ("announce-port", "6379")]), Some(6379));
}

#[test]
fn sentinels_take_the_place_of_an_upstream() {
    let load = |flags: &[(&'static str, &str)]| World { flags, ..World::default() }.load().map(|loaded| loaded.config);
    let both = [("sentinels", "a:1, [::1]:2"), ("sentinel-master", "m"), ("replica-port", "6390")];
    let config = load(&both).unwrap();
    let sentinels = config.sentinels.unwrap();
    assert_eq!((config.upstream, sentinels.addresses.len(), sentinels.master.as_str()), (None, 2, "m"));
    let why = |flags: &[(&'static str, &str)]| load(flags).map(|_| ()).unwrap_err().to_string();
    assert!(why(&both[..1]).contains("sentinel-master is not"));
    assert!(why(&both[..2]).contains("replica-port is not"), "a ghost in every Sentinel's list");
    assert!(why(&both[1..]).contains("sentinels is not"));
    assert!(why(&[("sentinels", "a:1,a:1"), both[1], both[2]]).contains("names a:1 twice"));
    assert!(why(&[("sentinels", "unix:/s"), both[1], both[2]]).contains("has a unix socket in it"));
    let env = [("PSYNCD_MASTERAUTH", "one"), ("PSYNCD_SENTINEL_PASSWORD", "two")];
    let config = World { flags: &both, env: &env, ..World::default() }.config();
    assert_eq!(config.replica_requirepass.unwrap().reveal(), b"one");
    assert_eq!(config.sentinels.unwrap().password.unwrap().reveal(), b"two");
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = Some("upstream = \"10.0.0.1:1\"\nport = 1\nmaxclients = 1\nmax-replicas = 1");
    let env: &[(&str, &str)] = &[("PSYNCD_PORT", "2"), ("PSYNCD_MAXCLIENTS", "2")];
    let config = World { flags: &[("port", "3")], env, file, ..World::default() }.config();
    assert_eq!((config.port, config.max_clients, config.max_replicas, config.tcp_backlog), (3, 2, 1, 511));
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = World { flags: &[UPSTREAM], env: &[("PSYNCD_PORT", "")], ..World::default() }.config();
    assert_eq!(config.port, 6380);
}

#[test]
fn a_missing_upstream_is_told_with_all_ways_to_give_it() {
    let why = World::default().why();
    for part in ["--upstream HOST:PORT", "PSYNCD_UPSTREAM", DEFAULT_FILE] {
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn an_unknown_key_names_itself_its_line_and_the_nearest_key() {
    let why = World { file: Some("port = 1\nrepl-backlog-sice = \"1mb\""), ..World::default() }.why();
    assert_eq!(
        why,
        "unknown key \"repl-backlog-sice\" (/etc/psyncd/psyncd.toml, line 2): did you mean repl-backlog-size?"
    );
}

#[test]
fn a_section_is_an_unknown_key_with_advice() {
    let why = World { file: Some("[limits]\nmax-replicas = 3"), ..World::default() }.why();
    assert!(why.contains("\"limits\"") && why.contains("no sections"), "{why}");
}

#[test]
fn an_unknown_variable_names_itself_and_the_nearest_one() {
    let why = World { env: &[("PSYNCD_UPSTREEM", "a:1")], ..World::default() }.why();
    assert_eq!(why, "unknown environment variable PSYNCD_UPSTREEM: did you mean PSYNCD_UPSTREAM?");
}

#[test]
fn a_broken_file_is_told_in_one_line_with_its_line() {
    let why = World { file: Some("port = 1\nupstream = \"a"), ..World::default() }.why();
    assert!(why.starts_with("/etc/psyncd/psyncd.toml: line 2: ") && !why.contains('\n'), "{why}");
}

#[test]
fn values_of_the_wrong_type_are_told() {
    let why = World { file: Some("port = true"), ..World::default() }.why();
    assert_eq!(why, "port (/etc/psyncd/psyncd.toml, line 1) is a boolean, not a string or a whole number");
}

#[test]
fn numbers_and_strings_are_both_right_in_the_file() {
    let file = Some(
        "upstream = \"unix:/run/redis.sock\"\nport = \"7\"\nrepl-backlog-size = 0x10_0000\nrepl-timeout = 9\nbind = [\"127.0.0.1\", \"::1\"]",
    );
    let config = World { file, ..World::default() }.config();
    assert_eq!((config.port, config.repl_backlog_bytes), (7, 1 << 20));
    assert_eq!(config.repl_timeout, Duration::from_secs(9));
    assert_eq!(config.bind.len(), 2);
    assert_eq!(config.upstream, Some(Address::Unix("/run/redis.sock".into())));
}

#[test]
fn impossible_values_name_key_origin_and_range() {
    let table: [(&'static str, &str, &str); 18] = [
        ("repl-backlog-size", "1kb", "too small; allowed: a size from 16kb to 1024gb"),
        ("repl-backlog-size", "99999999999gb", "too large"),
        ("repl-backlog-size", "-1", "negative"),
        ("repl-backlog-size", "lots", "whole number"),
        ("port", "65536", "a number from 0 to 65535"),
        ("port", "http", "is no number"),
        ("announce-port", "0", "too small"),
        ("repl-timeout", "1", "too short; allowed: a time from 2s to 1d"),
        ("tcp-keepalive", "0", "too short"),
        ("history-depth", "0", "too small"),
        ("sender-rate-limit", "1kb", "0 for no limit, or at least 64kb"),
        ("max-senders", "0", "too small"),
        ("bind", "example.org", "no IP address"),
        ("bind", "::1,::1", "twice"),
        ("admin-bind", "9379", "has no port"),
        ("announce-ip", "two words", "is no host"),
        ("log-format", "xml", "auto, logfmt, json, pretty"),
        ("dir", "", "is empty"),
    ];
    for (name, value, part) in table {
        let why = with(name, value).unwrap_err();
        assert!(why.starts_with(&format!("{name} = {value:?} (flag --{name}) ")) && why.contains(part), "{why}");
    }
}

#[test]
fn no_rate_limit_is_none_and_a_limit_is_bytes_a_second() {
    assert_eq!(with("sender-rate-limit", "0").unwrap().sender_rate_limit, None);
    assert_eq!(with("sender-rate-limit", "64kb").unwrap().sender_rate_limit, Some(65_536));
    assert_eq!(with("max-senders", "2").unwrap().max_senders, 2);
}

#[test]
fn addresses_take_redis_spellings() {
    assert_eq!(with("bind", "* ::1").unwrap().bind, [IpAddr::from([0, 0, 0, 0]), "::1".parse().unwrap()]);
    assert_eq!(with("admin-bind", "none").unwrap().admin_bind, None);
    assert_eq!(with("admin-bind", "[::1]:0").unwrap().admin_bind, Some("[::1]:0".parse().unwrap()));
    assert_eq!(with("announce-ip", "::1").unwrap().announce_ip.as_deref(), Some("::1"));
}

#[test]
fn psyncd_does_not_follow_itself() {
    let table = [
        ("127.0.0.1:6380", "127.0.0.1", true),
        ("localhost:6380", "127.0.0.1", true),
        ("localhost:6380", "0.0.0.0", true),
        ("127.0.0.5:6380", "0.0.0.0", true),
        ("127.0.0.1:6380", "::", true),
        ("[::1]:6380", "::", true),
        ("0.0.0.0:6380", "127.0.0.1", true),
        ("10.0.0.1:6380", "10.0.0.1", true),
        ("127.0.0.1:9379", "127.0.0.1", true),
        ("10.0.0.1:6380", "0.0.0.0", false),
        ("127.0.0.2:6380", "127.0.0.1", false),
        ("127.0.0.1:6379", "127.0.0.1", false),
        ("[::1]:6380", "0.0.0.0", false),
        ("redis:6380", "0.0.0.0", false),
    ];
    for (upstream, bind, refused) in table {
        let flags: &[(&'static str, &str)] = &[("upstream", upstream), ("bind", bind)];
        let loaded = World { flags, ..World::default() }.load();
        assert_eq!(loaded.is_err(), refused, "{upstream} with {bind}");
    }
}

#[test]
fn two_listeners_on_one_port_are_refused() {
    assert!(with("admin-bind", "127.0.0.1:6380").unwrap_err().contains("are the same"));
    assert!(with("admin-bind", "127.0.0.2:6380").is_ok());
}

#[test]
fn a_password_file_loses_one_line_end_and_nothing_else() {
    for (bytes, password) in
        [(&b"pw"[..], &b"pw"[..]), (b"pw\n", b"pw"), (b"pw\r\n", b"pw"), (b" p\xff \n\n", b" p\xff \n")]
    {
        let flags: &[(&'static str, &str)] = &[UPSTREAM, ("masterauth-file", "/secret")];
        let world = World { flags, password: Some((bytes, 0o100400)), ..World::default() };
        assert_eq!(world.config().masterauth.unwrap().reveal(), password);
        assert!(world.load().map(|loaded| loaded.warnings.is_empty()).unwrap_or(false));
    }
}

#[test]
fn a_password_file_everybody_may_read_is_only_a_warning() {
    let flags: &[(&'static str, &str)] = &[UPSTREAM, ("masterauth-file", "/secret")];
    let world = World { flags, password: Some((b"pw", 0o100644)), ..World::default() };
    let warnings = world.load().map(|loaded| loaded.warnings).unwrap_or_default();
    assert!(warnings[0].contains("mode 0644"), "{warnings:?}");
}

#[test]
fn an_unusable_password_file_is_an_error() {
    let flags: &[(&'static str, &str)] = &[UPSTREAM, ("masterauth-file", "/secret")];
    let absent = World { flags, ..World::default() }.why();
    assert!(absent.starts_with("masterauth-file (flag --masterauth-file) cannot be read from /secret"), "{absent}");
    let empty = World { flags, password: Some((b"\n", 0o600)), ..World::default() }.why();
    assert!(empty.contains("/secret, which is empty"), "{empty}");
}

#[test]
fn of_two_passwords_the_one_with_precedence_holds_and_equals_are_refused() {
    let file = Some("masterauth-file = \"/secret\"");
    let password = Some((&b"pw"[..], 0o600));
    let env: &[(&str, &str)] = &[("PSYNCD_MASTERAUTH", "env")];
    let config = World { flags: &[UPSTREAM], env, file, password }.config();
    assert_eq!(config.masterauth.unwrap().reveal(), b"env");

    let file = Some("masterauth = \"x\"\nmasterauth-file = \"/secret\"");
    let why = World { flags: &[UPSTREAM], file, password, ..World::default() }.why();
    assert!(why.contains("give one of them"), "{why}");
}

#[test]
fn a_secret_is_never_shown() {
    let env: &[(&str, &str)] = &[("PSYNCD_MASTERAUTH", "hunter2")];
    let world = World { flags: &[UPSTREAM], env, ..World::default() };
    let printed = world.load().map(|loaded| loaded.values.print()).unwrap_or_default();
    let config = world.config();
    let secret = config.masterauth.clone().unwrap();
    for shown in [printed, format!("{config:?}"), secret.to_string()] {
        assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    }
}

#[test]
fn what_is_printed_can_be_read_again_and_names_every_origin() {
    let env: &[(&str, &str)] = &[("PSYNCD_PORT", "7")];
    let world = World { flags: &[UPSTREAM], env, file: Some("maxclients = 5"), ..World::default() };
    let printed = world.load().map(|loaded| loaded.values.print()).unwrap_or_default();
    for line in [
        "upstream = \"10.0.0.1:6379\"  # flag --upstream",
        "port = 7  # environment variable PSYNCD_PORT",
        "maxclients = 5  # /etc/psyncd/psyncd.toml, line 1",
        "repl-backlog-size = \"256mb\"  # default",
        "# dir is not set: a private temporary directory",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} is missing in\n{printed}");
    }
    World { file: Some(&printed), ..World::default() }.config();
}

#[test]
fn a_failover_is_assisted_only_among_those_who_share_a_secret() {
    let flags: &[(&'static str, &str)] = &[UPSTREAM, ("assist-failover", "yes"), ("assist-secret-file", "/secret")];
    let world = World { flags, password: Some((b"between us\n", 0o600)), ..World::default() };
    assert_eq!(world.config().assist_secret.unwrap().reveal(), b"between us");
    let why = World { flags: &flags[..2], ..World::default() }.why();
    assert!(why.contains("assist-failover needs assist-secret"), "{why}");
    let flags: &[(&'static str, &str)] = &[UPSTREAM, ("assist-secret-file", "/secret")];
    let world = World { flags, password: Some((b"between us", 0o600)), ..World::default() };
    assert!(world.config().assist_secret.is_none());
    let warnings = world.load().map(|loaded| loaded.warnings).unwrap_or_default();
    assert_eq!(warnings, ["assist-secret has no effect without assist-failover"]);
}

#[test]
fn tls_settings_that_make_no_sense_together_are_refused() {
    let tls =
        |flags: &[(&'static str, &str)]| World { flags: &[&[UPSTREAM], flags].concat(), ..World::default() }.load();
    let why = |flags: &[(&'static str, &str)]| tls(flags).err().map_or_else(String::new, |error| error.to_string());
    let pair = [("tls-cert-file", "/c"), ("tls-key-file", "/k")];
    assert!(why(&[("tls-port", "6390")]).contains("give tls-cert-file and tls-key-file"));
    assert!(why(&[("tls-cert-file", "/c")]).contains("tls-cert-file is set without tls-key-file"));
    assert!(why(&[pair[0], pair[1], ("tls-port", "6390")]).contains("give tls-ca-cert-file, or tls-auth-clients no"));
    assert!(why(&[pair[0], pair[1], ("tls-port", "6380"), ("tls-auth-clients", "no")]).contains("are the same"));
    assert!(why(&[("upstream-tls", "yes")]).contains("give tls-ca-cert-file, or tls-verify none"));
    for what in ["peer-tls", "sentinel-tls"] {
        assert!(why(&[(what, "yes")]).starts_with(&format!("{what} cannot check certificates")));
        assert!(why(&[(what, "perhaps")]).contains("is none of these words"));
        let tls = tls(&[(what, "yes"), ("tls-verify", "none")]).unwrap().config.tls;
        assert_eq!((tls.upstream, tls.peers, tls.sentinels), (false, what == "peer-tls", what == "sentinel-tls"));
    }
    let plain = tls(&[("upstream-tls", "yes"), ("tls-verify", "none"), ("peer-tls", "no")]).unwrap().config.tls;
    assert_eq!((plain.upstream, plain.peers, plain.sentinels), (true, false, true));
    assert!(why(&[("tls-allow-replicas", "a")]).contains("needs the certificates of replicas"));
    assert!(why(&[("tls-only", "yes")]).contains("give tls-port"));
    assert_eq!(tls(&[pair[0], pair[1]]).unwrap().config.tls.options.map(|_| ()), None, "nobody speaks it");
    let both = [pair[0], pair[1], ("tls-ca-cert-file", "/a"), ("tls-port", "6390"), ("upstream-tls", "yes")];
    let options = tls(&both).unwrap().config.tls.options.unwrap();
    assert_eq!(options.client, options.server, "one pair for both sides unless there are two");
    let own = [("upstream", "127.0.0.1:6390"), both[0], both[1], both[2], both[3]];
    let why = World { flags: &own, ..World::default() }.why();
    assert!(why.contains("its own TLS port"), "{why}");
}

#[test]
fn settings_of_redis_that_have_no_counterpart_are_explained() {
    let table = [
        ("tls-dh-params-file = \"/dh\"", "DH parameters are not supported"),
        ("tls-protocols = \"TLSv1.1\"", "older versions are not supported"),
        ("tls-key-file-pass = \"x\"", "encrypted private keys are not supported"),
        ("tls-ciphers = \"ALL\"", "cipher lists are not supported"),
    ];
    for (line, expected) in table {
        let why = World { flags: &[UPSTREAM], file: Some(line), ..World::default() }.why();
        assert!(why.contains(expected) && !why.contains('\n'), "{why}");
    }
}

#[test]
fn users_of_our_own_are_read_and_what_is_wrong_with_one_is_said() {
    const HASH: &str = "27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9";
    let load = |users: &str| {
        let file = format!("upstream = \"10.0.0.1:6379\"\n{users}");
        World { file: Some(&file), password: Some((b"pw\n", 0o100600)), ..World::default() }.load()
    };
    let text = format!(
        "[[user]]\nname = \"b\"\npassword-hash = \"#{HASH}\"\nreplicate = \"no\"\n\
         [[user]]\nname = \"a\"\npassword-file = \"/secret\"\n"
    );
    let loaded = load(&text).unwrap_or_else(|error| panic!("{error}"));
    let users = &loaded.config.users;
    let shown: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.may_replicate)).collect();
    assert_eq!(shown, [("a", true), ("b", false)]);
    assert!(loaded.values.print().contains("name = \"b\"") && !loaded.values.print().contains(HASH));
    for (wrong, why) in [
        ("[[user]]\nname = \"a\"\n", "has neither password-file nor password-hash"),
        ("[[user]]\npassword-file = \"/secret\"\n", "has no name"),
        ("[[user]]\nname = \"a\"\npassword-file = \"/none\"\n", "password-file cannot be read"),
        ("[[user]]\nname = \"a\"\npassword-hash = \"right\"\n", "64 hexadecimal digits"),
        ("[[user]]\nname = \"a\"\npassword = \"right\"\n", "a [[user]] has name, password-file"),
        ("user = \"a\"\n", "did you mean masteruser?"),
    ] {
        match load(wrong) {
            Ok(_) => panic!("{wrong} was accepted"),
            Err(error) => assert!(error.to_string().contains(why), "{wrong}: {error}"),
        }
    }
    let twice = load(&format!("{text}{text}")).err().map(|error| error.to_string());
    assert!(twice.unwrap().contains("is the second one called \"b\""));
    let short = with("admin-token-file", "/none").unwrap_err();
    assert!(short.contains("cannot be read"), "{short}");
}

#[test]
fn what_would_be_guessed_or_fill_the_memory_is_refused() {
    let users = |count: usize| {
        (0..count)
            .map(|n| format!("[[user]]\nname = \"u{n}\"\npassword-hash = \"{}\"\n", "a".repeat(64)))
            .collect::<String>()
    };
    let load = |file: &str| World { flags: &[UPSTREAM], file: Some(file), ..World::default() }.load().map(drop);
    assert!(load(&users(256)).is_ok());
    assert!(load(&users(257)).unwrap_err().to_string().contains("there are 257 [[user]], and at most 256"));
    assert!(load("admin-token = \"0123456789abcdef\"").is_ok());
    let why = load("admin-token = \"0123456789abcde\"").unwrap_err().to_string();
    assert!(why.contains("too short") && !why.contains("0123"), "{why}");
}

#[test]
fn the_names_of_the_admin_port_are_names() {
    let names = |text: &str| {
        let loaded = World { flags: &[UPSTREAM, ("admin-hosts", text)], ..World::default() }.load();
        loaded.map(|loaded| loaded.config.admin_hosts).map_err(|error| error.to_string())
    };
    let expected = ["psyncd-0.psyncd", ".svc", "*"].map(str::to_owned).to_vec();
    assert_eq!(names("Psyncd-0.psyncd, .svc *"), Ok(Some(expected)));
    assert!(names("psyncd:9379").unwrap_err().contains("leave out the port"));
    assert!(names(" ,").unwrap_err().contains("names nobody"));
}
