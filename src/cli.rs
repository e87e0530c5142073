//! The command line as text: what was asked for, and how the process ends. Knows no setting by name; the flags come
//! from the table in [`crate::config::settings`], and nothing here reads or writes anything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::admin::control::{Despite, Verb};
use crate::config::settings::{self, SETTINGS, Setting};
use crate::config::sources::{DEFAULT_FILE, FILE_VARIABLE, Flags};
use crate::config::units::{parse_bytes, parse_duration};
use crate::console::check::Limits;
use crate::console::look::{Form, Often, View};
use crate::control::Question;
use crate::doctor;
use crate::net::Address;
use crate::store::inspect::Depth;

/// What the user wants done.
#[derive(Debug)]
pub enum Task {
    /// Relay until told to stop.
    Run(Flags),
    /// Say whether the configuration is right.
    CheckConfig(Flags),
    /// Print the effective configuration.
    PrintConfig(Flags),
    /// Print the commented example file.
    PrintExample,
    /// Print the reference of all settings in Markdown.
    PrintSettings,
    /// Ask a running psyncd, or have it do something.
    Ask(Question, Asked),
    /// Have it say that it is not ready, and wait at most so long until nobody needs it.
    Drain(Option<Duration>, Asked),
    /// Look at a running psyncd.
    Look(View, Form, Often, Asked),
    /// Look at it in place.
    Top(Duration, Asked),
    /// Judge it as a monitoring plugin does.
    Check(Limits, Asked),
    /// Look at a journal.
    Journal(Depth, Form, Flags),
    /// Examine an upstream and this machine.
    Doctor(doctor::Options, Form, Flags),
    /// Print the completions of a shell.
    Completions(Shell),
    /// Print the manual page, of a command if one is named.
    Man(Vec<String>),
    /// Print the table of commands in Markdown.
    Reference,
}

/// Which psyncd is asked.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The admin port that was named.
    pub admin: Option<String>,
    /// What says where the control socket is, or what the admin port is called with.
    pub flags: Flags,
}

/// How the process ends: sysexits.h where it has a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A clean end.
    Ok = 0,
    /// Something failed while running.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The directory cannot be created or locked.
    CannotCreate = 73,
    /// Worth another try later, like a port that is taken.
    Temporary = 75,
    /// The system does not permit it.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// The exit that fits an error at start: a taken port is temporary, a forbidden one a matter of permission.
    pub fn for_error(error: &anyhow::Error) -> Exit {
        use std::io::ErrorKind;
        let kind = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
        match kind {
            Some(ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => Exit::Temporary,
            Some(ErrorKind::PermissionDenied) => Exit::Permission,
            _ => Exit::Failure,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from, if the build said so (`BUILD_REVISION`).
pub const REVISION: &str = match option_env!("BUILD_REVISION") {
    Some(revision) => revision,
    None => "unknown revision",
};

/// Reads the arguments. `--help`, `--version` and mistakes come back as clap's error, which knows its exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Task, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    Ok(match matches.subcommand() {
        Some(("check-config", sub)) if sub.get_flag("example") => Task::PrintExample,
        Some(("check-config", sub)) if sub.get_flag("reference") => Task::PrintSettings,
        Some(("check-config", sub)) if sub.get_flag("print") => Task::PrintConfig(flags(sub)),
        Some(("check-config", sub)) => Task::CheckConfig(flags(sub)),
        Some(("guard", sub)) => guard(sub),
        Some(("status", sub)) => Task::Look(View::Status, form(sub), often(sub), asked(sub)),
        Some(("replicas", sub)) => Task::Look(View::Replicas, form(sub), often(sub), asked(sub)),
        Some(("clients", sub)) => Task::Look(View::Clients, form(sub), Often::Once, asked(sub)),
        Some(("history", sub)) => Task::Look(View::History, form(sub), Often::Once, asked(sub)),
        Some(("events", sub)) => Task::Look(View::Events, form(sub), often(sub), asked(sub)),
        Some(("top", sub)) => Task::Top(time(sub, "interval").unwrap_or(EVERY), asked(sub)),
        Some(("check", sub)) => Task::Check(limits(sub), asked(sub)),
        Some(("drain", sub)) => Task::Drain(time(sub, "wait"), asked(sub)),
        Some(("undrain", sub)) => Task::Ask(Question::Do(Verb::Undrain), asked(sub)),
        Some(("reload", sub)) => Task::Ask(Question::Do(Verb::Reload), asked(sub)),
        Some(("repoint", sub)) => repoint(sub),
        Some(("snapshot", sub)) => snapshot(sub),
        Some(("journal", sub)) => journal(sub),
        Some(("doctor", sub)) => Task::Doctor(examination(sub), form(sub), flags(sub)),
        Some(("completions", sub)) => match sub.get_one::<Shell>("shell") {
            Some(shell) => Task::Completions(*shell),
            // clap has refused this already, because a shell is required.
            None => Task::Completions(Shell::Bash),
        },
        Some(("man", sub)) if sub.get_flag("reference") => Task::Reference,
        Some(("man", sub)) => Task::Man(sub.get_many("command").into_iter().flatten().cloned().collect()),
        Some((_, sub)) => Task::Run(flags(sub)),
        // clap has refused this already, because a subcommand is required.
        None => Task::Run(Flags::default()),
    })
}

/// Whether the command line is one of `psyncd check`, whose mistakes are no state of a psyncd either.
pub fn is_check(args: &[OsString]) -> bool {
    args.get(1).is_some_and(|word| word == "check")
}

/// Between two looks when nobody says.
const EVERY: Duration = Duration::from_secs(1);

fn form(matches: &ArgMatches) -> Form {
    if matches.get_flag("json") { Form::Json } else { Form::Text }
}

fn often(matches: &ArgMatches) -> Often {
    let follow = ["watch", "follow"].iter().any(|name| matches!(matches.try_get_one(name), Ok(Some(true))));
    if follow { Often::Every(time(matches, "interval").unwrap_or(EVERY)) } else { Often::Once }
}

fn time(matches: &ArgMatches, name: &str) -> Option<Duration> {
    matches.try_get_one::<Duration>(name).ok().flatten().copied()
}

fn asked(matches: &ArgMatches) -> Asked {
    let admin = matches.try_get_one::<String>("admin").ok().flatten();
    Asked { admin: admin.cloned(), flags: flags(matches) }
}

fn limits(matches: &ArgMatches) -> Limits {
    Limits {
        max_lag: time(matches, "max-lag"),
        warn_lag: time(matches, "warn-lag"),
        max_lag_bytes: matches.get_one("max-lag-bytes").copied(),
        min_replicas: matches.get_one("min-replicas").copied(),
        min_runway: time(matches, "min-runway"),
        max_link_down: time(matches, "max-link-down").unwrap_or_default(),
    }
}

fn repoint(matches: &ArgMatches) -> Task {
    let despite = if matches.get_flag("force") { Despite::Sentinels } else { Despite::Nobody };
    match matches.get_one::<Address>("node") {
        Some(to) => Task::Ask(Question::Do(Verb::Repoint { to: to.clone(), despite }), asked(matches)),
        // clap has refused this already, because the node is required.
        None => Task::Ask(Question::GuardStatus, asked(matches)),
    }
}

fn snapshot(matches: &ArgMatches) -> Task {
    match matches.subcommand() {
        Some(("drop", sub)) => Task::Ask(Question::Do(Verb::SnapshotDrop), asked(sub)),
        Some((_, sub)) => Task::Ask(Question::Do(Verb::SnapshotRefresh), asked(sub)),
        None => Task::Ask(Question::Do(Verb::SnapshotRefresh), asked(matches)),
    }
}

fn journal(matches: &ArgMatches) -> Task {
    match matches.subcommand() {
        Some(("verify", sub)) => Task::Journal(Depth::Records, form(sub), flags(sub)),
        Some((_, sub)) => Task::Journal(Depth::Ends, form(sub), flags(sub)),
        None => Task::Journal(Depth::Ends, Form::Text, flags(matches)),
    }
}

fn examination(matches: &ArgMatches) -> doctor::Options {
    let preset = doctor::Options::default();
    doctor::Options {
        sample: time(matches, "sample").unwrap_or(preset.sample),
        outage: time(matches, "outage").unwrap_or(preset.outage),
        strict: matches.get_flag("strict"),
    }
}

fn guard(matches: &ArgMatches) -> Task {
    match matches.subcommand() {
        Some(("release", sub)) => Task::Ask(Question::Do(Verb::GuardRelease), asked(sub)),
        Some(("reject", sub)) => Task::Ask(Question::Do(Verb::GuardReject), asked(sub)),
        Some((_, sub)) => Task::Ask(Question::GuardStatus, asked(sub)),
        None => Task::Ask(Question::GuardStatus, asked(matches)),
    }
}

fn flags(matches: &ArgMatches) -> Flags {
    // A subcommand need not know every setting.
    let given = |name: &'static str| Some((name, matches.try_get_one::<String>(name).ok()??.clone()));
    Flags {
        file: matches.try_get_one::<PathBuf>("config").ok().flatten().cloned(),
        values: SETTINGS.iter().filter(|setting| setting.is_flag()).filter_map(|setting| given(setting.name)).collect(),
    }
}

/// The whole grammar.
pub fn command() -> Command {
    let long = format!("{VERSION} ({REVISION}, {}-{})", std::env::consts::ARCH, std::env::consts::OS);
    Command::new("psyncd")
        .version(VERSION)
        // Once per process, and clap wants it to outlive everything.
        .long_version(&*long.leak())
        .about("Replication-aware TCP proxy for Redis and Valkey")
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(EXITS)
        .subcommand(configurable(Command::new("run").about("Follow a master and relay it to replicas and clients")))
        .subcommand(
            configurable(Command::new("check-config").about("Check the configuration without starting anything"))
                .arg(
                    Arg::new("print")
                        .long("print")
                        .action(ArgAction::SetTrue)
                        .help("Print the effective values with their origins, secrets masked"),
                )
                .arg(
                    Arg::new("example")
                        .long("example")
                        .action(ArgAction::SetTrue)
                        .exclusive(true)
                        .help("Print a commented configuration file"),
                )
                .arg(
                    Arg::new("reference")
                        .long("reference")
                        .action(ArgAction::SetTrue)
                        .exclusive(true)
                        .help("Print the reference of all settings in Markdown"),
                ),
        )
        .subcommand(
            Command::new("guard")
                .about("Rule on a master that lost its data and is held by the wipe guard")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .after_help("Exit codes: 0 done, 1 nothing is held or psyncd does not answer, 2 usage")
                .subcommand(looking("status", "Say what the wipe guard holds, and since when"))
                .subcommand(asking("release", "Let the replicas follow the master that is held, this once"))
                .subcommand(asking("reject", "Keep the replicas on their data, without further reminders")),
        )
        .subcommand(
            looking("status", "Say how things stand: upstream, backlog, snapshot, replicas, and who is where in the backlog")
                .arg(json())
                .arg(switch("watch", Some('w'), "Again and again, until ctrl-c"))
                .arg(interval()),
        )
        .subcommand(
            looking("top", "Show the status in place, live; q quits")
                .arg(interval())
                .after_help("Each replica's letter stands on the bar where the replica is: who is near its left end is about to \
                             need a full resync. S is the snapshot, | a change of the replication id; = is in memory, - on disk."),
        )
        .subcommand(
            looking("replicas", "List the replicas with everything known of them")
                .arg(json())
                .arg(switch("watch", Some('w'), "Again and again, until ctrl-c"))
                .arg(interval()),
        )
        .subcommand(looking("clients", "List the clients that are passed through to the upstream").arg(json()))
        .subcommand(looking("history", "List the replication ids a replica may continue from").arg(json()))
        .subcommand(
            looking("events", "Print what happened lately")
                .arg(json())
                .arg(switch("follow", Some('f'), "Go on with what happens from now on, until ctrl-c")),
        )
        .subcommand(
            looking("check", "Judge a running psyncd in one line with performance data, as monitoring plugins do")
                .arg(span("max-lag", "TIME", "Critical when an online replica lacks more than these seconds of data"))
                .arg(span("warn-lag", "TIME", "The same, for a warning"))
                .arg(size("max-lag-bytes", "Critical when an online replica lacks more than this"))
                .arg(
                    Arg::new("min-replicas")
                        .long("min-replicas")
                        .value_name("N")
                        .value_parser(value_parser!(u64))
                        .help("Critical when fewer replicas than this are online"),
                )
                .arg(span("min-runway", "TIME", "Warning when replicas may stay away for less than this from now on"))
                .arg(span("max-link-down", "TIME", "Critical only when the link to the upstream is lost for longer [default: 0]"))
                .after_help("Exit codes: 0 OK, 1 WARNING, 2 CRITICAL, which a psyncd that does not run is, 3 UNKNOWN"),
        )
        .subcommand(
            asking("drain", "Say on /readyz that psyncd is not ready, so that nobody new is sent to it; who is there stays")
                .arg(span("wait", "TIME", "Wait until no client is left and every replica has everything; exit 1 if that takes longer")),
        )
        .subcommand(asking("undrain", "Say that psyncd is ready again"))
        .subcommand(asking("reload", "Read the configuration again, as SIGHUP does, and say what is in force now and what needs a restart"))
        .subcommand(
            asking("repoint", "Follow another node from now on, as REPLICAOF does; what is held stays")
                .arg(
                    Arg::new("node")
                        .value_name("HOST:PORT")
                        .required(true)
                        .value_parser(|text: &str| text.parse::<Address>())
                        .help("The node to follow"),
                )
                .arg(switch("force", None, "Also where Sentinels say who is master, and may have psyncd go back")),
        )
        .subcommand(
            Command::new("snapshot")
                .about("Renew or forget the RDB that psyncd keeps for replicas that need one")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .subcommand(asking("refresh", "Fetch a fresh RDB now, although nobody waits for one"))
                .subcommand(asking("drop", "Forget the RDB there is; the next replica that needs one costs another")),
        )
        .subcommand(
            Command::new("journal")
                .about("Look at the journal on disk; reads only, and works while psyncd runs")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .after_help("Exit codes: 0 whole, 1 damaged or not readable, 2 usage")
                .subcommand(opening("ls", "List the segments and the offsets in them").arg(json()))
                .subcommand(opening("verify", "Read every record and compare its checksum").arg(json())),
        )
        .subcommand(
            configurable(Command::new("doctor").about(
                "Examine the upstream and this machine for what would cost a full resync, and say what mends it",
            ))
            .arg(json())
            .arg(span("sample", "TIME", "How long the master's writes are measured [default: 5s]"))
            .arg(span("outage", "TIME", "How long an absence has to cost no full resync, for the sizes recommended [default: 10m]"))
            .arg(switch("strict", None, "Exit 1 for warnings as well"))
            .after_help("Takes the settings of `run`, and changes nothing on either side.\n\
                         Exit codes: 0 nothing to mend, 1 something is, or the upstream does not answer, 2 usage, 78 configuration"),
        )
        .subcommand(
            Command::new("completions").about("Print the completions for a shell").arg(
                Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell)).help("The shell"),
            ),
        )
        .subcommand(
            Command::new("man")
                .about("Print the manual page, of psyncd or of one of its commands, for man -l")
                .arg(Arg::new("command").value_name("COMMAND").num_args(0..=2).help("The command, like `journal verify`"))
                .arg(switch("reference", None, "Print the table of commands in Markdown instead").exclusive(true)),
        )
}

const EXITS: &str = "Exit codes: 0 clean end, 1 failure, 2 usage, 73 directory cannot be created or locked, \
                     75 try again later (port taken), 77 not permitted, 78 configuration";

/// With the flags of these settings.
fn with(command: Command, settings: &[&str]) -> Command {
    let settings = settings.iter().filter_map(|name| Setting::named(name));
    settings.fold(command, |command, setting| command.arg(flag(setting)))
}

/// A look into the directory of a psyncd.
fn opening(name: &'static str, about: &'static str) -> Command {
    with(Command::new(name).about(about).arg(file()), &["dir"])
}

/// A look at a running psyncd, found by the settings that say where its socket is, or asked at its admin port.
fn looking(name: &'static str, about: &'static str) -> Command {
    let command = with(Command::new(name).about(about).arg(file()), &["socket", "dir"]).arg(
        Arg::new("admin")
            .long("admin")
            .value_name("URL")
            .help("Ask at the admin port, http://HOST:PORT or https://HOST:PORT, instead of the control socket"),
    );
    with(command, &["tls-ca-cert-file", "tls-client-cert-file", "tls-client-key-file", "tls-verify"])
}

/// An order to a running psyncd; the admin port wants a token for it.
fn asking(name: &'static str, about: &'static str) -> Command {
    with(looking(name, about), &["admin-token-file"])
}

fn json() -> Arg {
    switch("json", None, "As JSON, for programs")
}

fn switch(name: &'static str, short: Option<char>, help: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    match short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

/// Between two looks: not so short that looking becomes a load.
fn interval() -> Arg {
    span("interval", "TIME", "Between two looks, 100ms at least [default: 1s]").value_parser(|text: &str| {
        match parse_duration(text) {
            Ok(every) if every < Duration::from_millis(100) => Err("is less than 100ms".to_owned()),
            Ok(every) => Ok(every),
            Err(bad) => Err(bad.to_string()),
        }
    })
}

fn span(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(placeholder).value_parser(parse_duration).help(help)
}

fn size(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("SIZE").value_parser(parse_bytes).help(help)
}

fn file() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help(format!("The configuration file [default: {DEFAULT_FILE}, if there is one] [env: {FILE_VARIABLE}]"))
}

fn configurable(command: Command) -> Command {
    SETTINGS
        .iter()
        .filter(|setting| setting.is_flag())
        .fold(command.arg(file()), |command, setting| command.arg(flag(setting)))
}

fn flag(setting: &'static settings::Setting) -> Arg {
    Arg::new(setting.name)
        .long(setting.name)
        .value_name(setting.kind.placeholder())
        // So that -1 is judged as a value, by the one who knows the range.
        .allow_negative_numbers(true)
        .help(setting.long_help())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Task, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_grammar_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_are_taken_as_text() {
        let Ok(Task::Run(flags)) = parsed("psyncd run --upstream nonsense --port -1 --config /x") else {
            panic!("is a run")
        };
        assert_eq!(flags.values, [("upstream", "nonsense".to_owned()), ("port", "-1".to_owned())]);
        assert_eq!(flags.file, Some("/x".into()));
    }

    #[test]
    fn a_running_psyncd_is_asked_over_its_socket() {
        for (word, question) in [
            ("status", Question::GuardStatus),
            ("release", Question::Do(Verb::GuardRelease)),
            ("reject", Question::Do(Verb::GuardReject)),
        ] {
            let Ok(Task::Ask(said, asked)) = parsed(&format!("psyncd guard {word} --socket /s")) else {
                panic!("{word} is a question")
            };
            assert_eq!((said, asked.flags.values), (question, vec![("socket", "/s".to_owned())]));
        }
    }

    #[test]
    fn looks_know_form_pace_and_place() {
        let Ok(Task::Look(View::Status, Form::Json, Often::Every(every), asked)) =
            parsed("psyncd status --json --watch --interval 250ms --admin http://a:1")
        else {
            panic!("is a look")
        };
        assert_eq!((every, asked.admin.as_deref()), (Duration::from_millis(250), Some("http://a:1")));
        let Ok(Task::Look(View::Events, Form::Text, Often::Every(EVERY), _)) = parsed("psyncd events -f") else {
            panic!("follows")
        };
        let Ok(Task::Check(limits, _)) = parsed("psyncd check --max-lag 10 --min-replicas 2 --max-lag-bytes 1mb")
        else {
            panic!("is a check")
        };
        assert_eq!((limits.max_lag, limits.min_replicas), (Some(Duration::from_secs(10)), Some(2)));
        assert_eq!(limits.max_lag_bytes, Some(1 << 20));
    }

    #[test]
    fn orders_carry_what_they_need() {
        for (line, verb) in [
            ("psyncd repoint a:1", Verb::Repoint { to: "a:1".parse().unwrap(), despite: Despite::Nobody }),
            (
                "psyncd repoint [::1]:1 --force",
                Verb::Repoint { to: "[::1]:1".parse().unwrap(), despite: Despite::Sentinels },
            ),
            ("psyncd snapshot refresh", Verb::SnapshotRefresh),
            ("psyncd snapshot drop", Verb::SnapshotDrop),
            ("psyncd undrain", Verb::Undrain),
            ("psyncd reload", Verb::Reload),
        ] {
            let Ok(Task::Ask(Question::Do(asked), _)) = parsed(line) else { panic!("{line} is an order") };
            assert_eq!(asked, verb);
        }
    }

    #[test]
    fn an_admin_port_is_named_with_what_it_is_shown() {
        let Ok(Task::Drain(None, asked)) =
            parsed("psyncd drain --admin https://a:1 --admin-token-file /t --tls-ca-cert-file /c")
        else {
            panic!("is a drain")
        };
        assert_eq!(asked.admin.as_deref(), Some("https://a:1"));
        let given = [("admin-token-file", "/t".to_owned()), ("tls-ca-cert-file", "/c".to_owned())];
        assert_eq!(asked.flags.values, given);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "psyncd",
            "psyncd fly",
            "psyncd run --prot 1",
            "psyncd run --port",
            "psyncd run --masterauth x",
            "psyncd guard",
            "psyncd guard free",
            "psyncd guard release --port 1",
            "psyncd repoint",
            "psyncd repoint nowhere",
            "psyncd snapshot",
            "psyncd journal",
            "psyncd status --interval 1ms",
            "psyncd check --min-replicas many",
            "psyncd completions tcsh",
        ] {
            assert_eq!(parsed(line).map_err(|error| error.exit_code()).err(), Some(Exit::Usage as i32), "{line}");
        }
    }

    #[test]
    fn an_error_at_start_finds_its_exit() {
        let exit = |kind| Exit::for_error(&anyhow::Error::from(std::io::Error::from(kind)).context("listen"));
        assert_eq!(exit(std::io::ErrorKind::AddrInUse), Exit::Temporary);
        assert_eq!(exit(std::io::ErrorKind::PermissionDenied), Exit::Permission);
        assert_eq!(Exit::for_error(&anyhow::anyhow!("else")), Exit::Failure);
    }
}
