//! The outer shell: arguments, configuration, logging, runtime, daemon, exit code.

use std::io::Write;
use std::process::ExitCode;

use psyncd::cli::{self, Exit, Task};
use psyncd::config::{self, Config, Flags, Loaded, Surroundings};
use psyncd::control::{self, Question};
use psyncd::events::Events;
use psyncd::net::tls::Tls;
use psyncd::{daemon, log};

fn main() -> ExitCode {
    let done = match cli::parse(std::env::args_os()) {
        Ok(Task::Run(flags)) => load(&flags).and_then(|loaded| run(loaded, &flags)),
        Ok(Task::CheckConfig(flags)) => load(&flags).and_then(check),
        Ok(Task::PrintConfig(flags)) => load(&flags).map(|loaded| {
            warn(&loaded.warnings);
            print(&loaded.values.print());
        }),
        Ok(Task::Ask(question, flags)) => ask(question, &flags),
        Ok(Task::PrintExample) => {
            print(&config::settings::example());
            Ok(())
        }
        Err(usage) => {
            // Nobody is left to tell if even this cannot be written.
            let _ = usage.print();
            return if usage.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(exit) => exit.into(),
    }
}

fn load(flags: &Flags) -> Result<Loaded, Exit> {
    Config::load(flags, &Surroundings::of_process()).map_err(|error| {
        complain(&error.to_string());
        Exit::Config
    })
}

/// Looks at what only the start would look at otherwise: certificates and keys.
fn check(loaded: Loaded) -> Result<(), Exit> {
    warn(&loaded.warnings);
    let Some(options) = loaded.config.tls.options else { return Ok(()) };
    let tls = Tls::open(options).map_err(|error| {
        complain(&error.to_string());
        Exit::Config
    })?;
    warn(&tls.doubts());
    Ok(())
}

fn run(loaded: Loaded, flags: &Flags) -> Result<(), Exit> {
    let Loaded { config, warnings, .. } = loaded;
    let events = Events::default();
    log::init(config.log_format, config.log_level, events.clone());
    for warning in warnings {
        tracing::warn!(warning, "configuration questioned");
    }
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(error = &error as &dyn std::error::Error, "core dumps not switched off");
    }
    let needed = config.files_needed();
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current
        && limit < needed
    {
        tracing::warn!(limit, needed, "too few open files allowed for maxclients and max-replicas; raise ulimit -n");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores.min(4)).enable_all().build().map_err(
            |error| {
                tracing::error!(error = &error as &dyn std::error::Error, "runtime not built");
                Exit::Failure
            },
        )?;
    let ended = runtime.block_on(daemon::run(config, events, || Config::load(flags, &Surroundings::of_process())));
    // What still blocks in a thread has been given up by the daemon already and must not hold the process.
    runtime.shutdown_background();
    ended.map_err(|failure| {
        let error: &(dyn std::error::Error + 'static) = failure.error.as_ref();
        tracing::error!(error, "daemon failed");
        failure.exit
    })
}

/// Asks a running psyncd and prints its answer.
fn ask(question: Question, flags: &Flags) -> Result<(), Exit> {
    let fail = |why: String| {
        complain(&why);
        Exit::Failure
    };
    let socket = Config::socket(flags, &Surroundings::of_process()).map_err(|error| {
        complain(&error.to_string());
        Exit::Config
    })?;
    let Some(path) = socket.path() else {
        return Err(fail("no control socket is configured: give --socket PATH, PSYNCD_SOCKET, or --dir".to_owned()));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| fail(format!("cannot start: {error}")))?;
    let answer = runtime.block_on(control::ask(path, question)).map_err(|error| fail(error.to_string()))?;
    if answer.done {
        print(&answer.text);
        Ok(())
    } else {
        Err(fail(answer.text.trim_end().to_owned()))
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        complain(&format!("warning: {warning}"));
    }
}

fn complain(line: &str) {
    // Unlike eprintln, this survives a closed standard error.
    let _ = writeln!(std::io::stderr(), "psyncd: {line}");
}

fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
