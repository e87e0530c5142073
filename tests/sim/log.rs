//! What happened, in virtual time, and what must not have happened.

use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: Duration,
    pub actor: String,
    pub what: String,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>10.3} {:<8} {}", self.at.as_secs_f64(), self.actor, self.what)
    }
}

/// The record every actor writes to. The lock is held for one push or one copy.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    violations: Vec<String>,
    echo: bool,
}

impl Log {
    /// Prints every event as it happens as well.
    pub fn echo(&self) {
        self.inner().echo = true;
    }

    pub fn note(&self, actor: &str, what: impl Into<String>) {
        let event =
            Event { at: turmoil::sim_elapsed().unwrap_or_default(), actor: actor.to_owned(), what: what.into() };
        let mut inner = self.inner();
        if inner.echo {
            println!("{event}");
        }
        inner.events.push(event);
    }

    /// A law was broken. The run ends at the next step.
    pub fn violation(&self, actor: &str, what: impl Into<String>) {
        let what = what.into();
        self.note(actor, format!("VIOLATION {what}"));
        self.inner().violations.push(format!("{actor}: {what}"));
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    pub fn events(&self) -> Vec<Event> {
        self.inner().events.clone()
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }
}
