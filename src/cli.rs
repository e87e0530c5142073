//! The command line as text: what was asked for, and how the process ends. Knows no setting by name; the flags come
//! from the table in [`crate::config::settings`], and nothing here reads or writes anything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::admin::control::Verb;
use crate::config::settings::{self, SETTINGS, Setting};
use crate::config::sources::{DEFAULT_FILE, FILE_VARIABLE, Flags};
use crate::control::Question;

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
    /// Ask a running psyncd.
    Ask(Question, Flags),
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
        Some(("check-config", sub)) if sub.get_flag("print") => Task::PrintConfig(flags(sub)),
        Some(("check-config", sub)) => Task::CheckConfig(flags(sub)),
        Some(("guard", sub)) => guard(sub),
        Some((_, sub)) => Task::Run(flags(sub)),
        // clap has refused this already, because a subcommand is required.
        None => Task::Run(Flags::default()),
    })
}

fn guard(matches: &ArgMatches) -> Task {
    match matches.subcommand() {
        Some(("release", sub)) => Task::Ask(Question::Do(Verb::GuardRelease), flags(sub)),
        Some(("reject", sub)) => Task::Ask(Question::Do(Verb::GuardReject), flags(sub)),
        Some((_, sub)) => Task::Ask(Question::GuardStatus, flags(sub)),
        None => Task::Ask(Question::GuardStatus, flags(matches)),
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
                ),
        )
        .subcommand(
            Command::new("guard")
                .about("Rule on a master that lost its data and is held by the wipe guard")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .after_help("Exit codes: 0 done, 1 nothing is held or psyncd does not answer, 2 usage")
                .subcommand(asking("status", "Say what the wipe guard holds, and since when"))
                .subcommand(asking("release", "Let the replicas follow the master that is held, this once"))
                .subcommand(asking("reject", "Keep the replicas on their data, without further reminders")),
        )
}

const EXITS: &str = "Exit codes: 0 clean end, 1 failure, 2 usage, 73 directory cannot be created or locked, \
                     75 try again later (port taken), 77 not permitted, 78 configuration";

/// A question to a running psyncd, found by the settings that say where its socket is.
fn asking(name: &'static str, about: &'static str) -> Command {
    ["socket", "dir"]
        .iter()
        .filter_map(|name| Setting::named(name))
        .fold(Command::new(name).about(about).arg(file()), |command, setting| command.arg(flag(setting)))
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
            let Ok(Task::Ask(asked, flags)) = parsed(&format!("psyncd guard {word} --socket /s")) else {
                panic!("{word} is a question")
            };
            assert_eq!((asked, flags.values), (question, vec![("socket", "/s".to_owned())]));
        }
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
