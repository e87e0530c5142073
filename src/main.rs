//! The outer shell: arguments, configuration, logging, runtime, daemon, exit code.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use psyncd::cli::{self, Asked, Exit, Task};
use psyncd::config::{self, Config, Flags, Loaded, Surroundings};
use psyncd::console::check::{self, Limits, State};
use psyncd::console::look::{Blind, Form, look};
use psyncd::console::{journal, manual, top};
use psyncd::control::{self, AdminPort, AdminUrl, Place, Question};
use psyncd::events::Events;
use psyncd::net::tls::{Tls, TlsNetwork};
use psyncd::net::{Network, TokioNetwork};
use psyncd::store::inspect::Depth;
use psyncd::{admin, daemon, doctor, log};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let judged = cli::is_check(&args);
    let done = match cli::parse(args) {
        Ok(Task::Run(flags)) => load(&flags).and_then(|loaded| run(loaded, &flags)),
        Ok(Task::CheckConfig(flags)) => load(&flags).and_then(check),
        Ok(Task::PrintConfig(flags)) => load(&flags).map(|loaded| {
            warn(&loaded.warnings);
            print(&loaded.values.print());
        }),
        Ok(Task::Ask(question, asked)) => place(&asked).and_then(|place| ask(&place, &question)),
        Ok(Task::Drain(wait, asked)) => place(&asked).and_then(|place| drain(&place, wait)),
        Ok(Task::Look(view, form, often, asked)) => {
            place(&asked).and_then(|place| block_on(look(&place, view, form, often)).map_err(blind))
        }
        Ok(Task::Top(every, asked)) => {
            place(&asked).and_then(|place| block_on(top::run(&place, every)).map_err(|error| fail(&error.to_string())))
        }
        Ok(Task::Check(limits, asked)) => return judge(&limits, &asked),
        Ok(Task::Journal(depth, form, flags)) => inspect(depth, form, &flags),
        Ok(Task::Doctor(options, form, flags)) => load(&flags).and_then(|loaded| examine(&loaded, options, form)),
        Ok(Task::Completions(shell)) => {
            emit(&manual::completions(&mut cli::command(), shell));
            Ok(())
        }
        Ok(Task::Man(words)) => match manual::page(&cli::command(), &words) {
            Some(page) => {
                emit(&page);
                Ok(())
            }
            None => {
                complain(&format!("no command is called {}: psyncd --help lists them", words.join(" ")));
                Err(Exit::Usage)
            }
        },
        Ok(Task::Reference) => {
            print(&manual::reference(&cli::command()));
            Ok(())
        }
        Ok(Task::PrintExample) => {
            print(&config::settings::example());
            Ok(())
        }
        Ok(Task::PrintSettings) => {
            print(&config::reference::reference());
            Ok(())
        }
        Err(usage) => {
            // Nobody is left to tell if even this cannot be written.
            let _ = usage.print();
            return match usage.use_stderr() {
                // To whoever calls a plugin the code for a usage error says that somebody must act.
                true if judged => ExitCode::from(State::Unknown as u8),
                true => Exit::Usage.into(),
                false => Exit::Ok.into(),
            };
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
        tracing::warn!(event = "config_questioned", warning, "configuration questioned");
    }
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(
            event = "core_dumps_left",
            error = &error as &dyn std::error::Error,
            "core dumps not switched off"
        );
    }
    let needed = config.files_needed();
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current
        && limit < needed
    {
        tracing::warn!(
            event = "open_files_few",
            limit,
            needed,
            "too few open files allowed for maxclients and max-replicas; raise ulimit -n"
        );
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(4))
        .enable_all()
        .build()
        .map_err(|error| {
            tracing::error!(event = "runtime_failed", error = &error as &dyn std::error::Error, "runtime not built");
            Exit::Failure
        })?;
    let ended = runtime.block_on(daemon::run(config, events, || Config::load(flags, &Surroundings::of_process())));
    // What still blocks in a thread has been given up by the daemon already and must not hold the process.
    runtime.shutdown_background();
    ended.map_err(|failure| {
        let error: &(dyn std::error::Error + 'static) = failure.error.as_ref();
        tracing::error!(event = "failed", error, "daemon failed");
        failure.exit
    })
}

/// Where the psyncd is that was meant.
fn place(asked: &Asked) -> Result<Place, Exit> {
    if let Some(text) = &asked.admin {
        let url = AdminUrl::parse(text).map_err(|why| {
            complain(&format!("--admin {text}: {why}"));
            Exit::Usage
        })?;
        return admin_port(url, &asked.flags).map(Place::Admin);
    }
    let socket = Config::socket(&asked.flags, &Surroundings::of_process()).map_err(|error| {
        complain(&error.to_string());
        Exit::Config
    })?;
    match socket.path() {
        Some(path) => Ok(Place::Socket(path.clone())),
        None => Err(fail("no control socket is configured: give --socket PATH, PSYNCD_SOCKET, or --dir")),
    }
}

/// An admin port with what it takes to call it.
fn admin_port(url: AdminUrl, flags: &Flags) -> Result<AdminPort, Exit> {
    let mistaken = |error: &dyn std::error::Error| {
        complain(&error.to_string());
        Exit::Config
    };
    let caller = Config::caller(flags, &Surroundings::of_process(), url.scheme).map_err(|error| mistaken(&error))?;
    warn(&caller.warnings);
    if caller.token.is_some() && url.is_overheard() {
        complain(&format!("warning: whatever has to show the token shows it in clear to {url}"));
    }
    let plain: Arc<dyn Network> = Arc::new(TokioNetwork::default());
    let network = match caller.tls {
        None => plain,
        Some(options) => {
            let tls = Arc::new(Tls::open(options).map_err(|error| mistaken(&error))?);
            Arc::new(TlsNetwork { inner: plain, tls, admit: None })
        }
    };
    Ok(AdminPort { url, network, token: caller.token })
}

/// Asks a running psyncd and prints its answer.
fn ask(place: &Place, question: &Question) -> Result<(), Exit> {
    let answer = block_on(control::ask(place, question)).map_err(|error| fail(&error.to_string()))?;
    if answer.done {
        print(&answer.text);
        Ok(())
    } else {
        Err(fail(answer.text.trim_end()))
    }
}

/// Drains, and waits until nobody needs psyncd any more.
fn drain(place: &Place, wait: Option<Duration>) -> Result<(), Exit> {
    ask(place, &Question::Do(admin::control::Verb::Drain))?;
    let Some(wait) = wait else { return Ok(()) };
    let left = block_on(psyncd::console::look::quiet(place, wait)).map_err(|error| fail(&error.to_string()))?;
    match left {
        None => {
            print("nobody needs it any more: no clients, and every replica has everything\n");
            Ok(())
        }
        Some(left) => Err(fail(&format!("{left} after {} s; it goes on draining", wait.as_secs()))),
    }
}

/// One line and the exit code of a plugin, whatever happens.
fn judge(limits: &Limits, asked: &Asked) -> ExitCode {
    let (state, line) = match place(asked) {
        Err(_) => (State::Unknown, State::Unknown.line("it is not known which psyncd to ask")),
        Ok(place) => match block_on(psyncd::console::look::status(&place)) {
            Ok(status) => check::check(&status, limits),
            Err(error @ (control::Error::NoSocket(_) | control::Error::NobodyAnswers(_))) => {
                (State::Critical, State::Critical.line(&error.to_string()))
            }
            Err(error) => (State::Unknown, State::Unknown.line(&error.to_string())),
        },
    };
    print(&format!("{line}\n"));
    ExitCode::from(state as u8)
}

fn inspect(depth: Depth, form: Form, flags: &Flags) -> Result<(), Exit> {
    let dir: PathBuf = Config::dir(flags, &Surroundings::of_process())
        .map_err(|error| {
            complain(&error.to_string());
            Exit::Config
        })?
        .ok_or_else(|| fail("no directory is configured: give --dir PATH"))?;
    let found = block_on(journal::look(&dir, depth, form)).map_err(|why| fail(&why))?;
    print(&found.text);
    for damage in &found.damage {
        complain(&format!("damaged: {damage}"));
    }
    if found.damage.is_empty() { Ok(()) } else { Err(Exit::Failure) }
}

fn examine(loaded: &Loaded, options: doctor::Options, form: Form) -> Result<(), Exit> {
    warn(&loaded.warnings);
    let (text, well) = block_on(doctor::examine(&loaded.config, options, form));
    print(&text);
    if well { Ok(()) } else { Err(Exit::Failure) }
}

fn blind(error: Blind) -> Exit {
    fail(&error.to_string())
}

fn fail(why: &str) -> Exit {
    complain(why);
    Exit::Failure
}

/// For whoever only asks: one thread does.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime of one thread needs no more than a few file descriptors");
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
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
    emit(text.as_bytes());
}

fn emit(text: &[u8]) {
    let _ = std::io::stdout().write_all(text);
}
