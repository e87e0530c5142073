//! Asks once, or again and again, and prints.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::document::{Clients, Events, Status};
use super::show::{self, Detail, Speeds};
use crate::control::{self, Error, Place};

/// How wide what is drawn may be.
const WIDTH: usize = 80;
/// Between two looks that show how fast things move, where one look is all that is asked for.
const GLANCES_APART: Duration = Duration::from_millis(500);
/// Between two questions for new events.
const EVENTS_EVERY: Duration = Duration::from_millis(500);

/// Seconds a replica may be behind that has everything: it says so once a second.
const ACKED_EVERY: f64 = 2.0;

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Everything in short.
    Status,
    /// The replicas.
    Replicas,
    /// The clients.
    Clients,
    /// The names of the stream.
    History,
    /// What happened.
    Events,
}

/// For whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// People.
    Text,
    /// Programs: the document as psyncd gives it.
    Json,
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Often {
    /// Once.
    Once,
    /// Until somebody ends it, with this between two looks.
    Every(Duration),
}

/// Why looking ended.
#[derive(Debug, thiserror::Error)]
pub enum Blind {
    /// Nobody answered.
    #[error(transparent)]
    Control(#[from] Error),
    /// Nobody reads.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl View {
    const fn path(self) -> &'static str {
        match self {
            View::Status | View::Replicas | View::History => "/api/v1/status",
            View::Clients => "/api/v1/clients",
            View::Events => "/api/v1/events",
        }
    }
}

/// Prints what `view` shows, once or again and again.
///
/// # Errors
/// When psyncd does not answer or nobody reads; a reader that went away, like `head`, is no error.
pub async fn look(place: &Place, view: View, form: Form, often: Often) -> Result<(), Blind> {
    let ended = match (view, form, often) {
        (View::Events, _, _) => events(place, form, often).await,
        (_, Form::Json, Often::Once) => print(&control::text(place, view.path()).await?),
        (_, Form::Json, Often::Every(every)) => loop {
            // One document a line, as programs like to read them.
            let document: serde_json::Value = control::document(place, view.path()).await?;
            if let Err(end) = print(&format!("{document}\n")) {
                break Err(end);
            }
            sleep(every).await;
        },
        (View::Clients, Form::Text, _) => {
            let clients: Clients = control::document(place, view.path()).await?;
            print(&show::clients(&clients))
        }
        (View::History, Form::Text, _) => print(&show::history(&status(place).await?)),
        (View::Status | View::Replicas, Form::Text, Often::Once) => {
            let mut now = status(place).await?;
            let mut speeds = Speeds::default();
            // A transfer without a rate says nothing about when it will be over.
            if now.snapshot.arriving.is_some() || now.replicas.iter().any(|replica| replica.is_loading()) {
                let (before, since) = (now, Instant::now());
                sleep(GLANCES_APART).await;
                now = status(place).await?;
                speeds = Speeds::between(&before, &now, since.elapsed().as_secs_f64());
            }
            print(&drawn(view, &now, &speeds))
        }
        (View::Status | View::Replicas, Form::Text, Often::Every(every)) => watch(place, view, every).await,
    };
    match ended {
        Err(Blind::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => ended,
    }
}

/// The status now.
pub async fn status(place: &Place) -> Result<Status, Error> {
    control::document(place, View::Status.path()).await
}

/// Waits at most `wait` until no client is passed through and every replica has everything; returns what is left.
///
/// # Errors
/// When psyncd does not answer.
pub async fn quiet(place: &Place, wait: Duration) -> Result<Option<String>, Error> {
    let deadline = Instant::now() + wait;
    loop {
        let now = status(place).await?;
        let behind =
            now.replicas.iter().filter(|replica| !replica.is_online() || replica.lag_seconds > ACKED_EVERY).count();
        if now.clients == 0 && behind == 0 {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Ok(Some(format!("{} clients are left, {behind} replicas lack something", now.clients)));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn drawn(view: View, status: &Status, speeds: &Speeds) -> String {
    match view {
        View::Replicas => show::replicas(status, speeds, Detail::All),
        View::Status | View::Clients | View::History | View::Events => show::status(status, speeds, WIDTH),
    }
}

/// One look after the other, with a line between them, so that it can go into a file.
async fn watch(place: &Place, view: View, every: Duration) -> Result<(), Blind> {
    let mut before: Option<(Status, Instant)> = None;
    loop {
        let (now, at) = (status(place).await?, Instant::now());
        let speeds = match &before {
            Some((earlier, then)) => Speeds::between(earlier, &now, at.duration_since(*then).as_secs_f64()),
            None => Speeds::default(),
        };
        let rule = before.as_ref().map_or(String::new(), |_| format!("\n{}\n", "-".repeat(WIDTH)));
        print(&format!("{rule}{}", drawn(view, &now, &speeds)))?;
        before = Some((now, at));
        sleep(every).await;
    }
}

/// Those that are kept, then whatever comes. A psyncd that was started again counts from the beginning.
async fn events(place: &Place, form: Form, often: Often) -> Result<(), Blind> {
    let mut after = 0;
    let mut lost = false;
    loop {
        let path = format!("{}?after={after}", View::Events.path());
        if form == Form::Json && often == Often::Once {
            return print(&control::text(place, &path).await?);
        }
        let answered: Result<serde_json::Value, Error> = control::document(place, &path).await;
        match (answered, often) {
            (Ok(document), _) => {
                lost = false;
                let parsed = Events::deserialized(&document)
                    .map_err(|error| Error::Broken { place: place.clone(), why: format!("{path}: {error}") })?;
                if parsed.last_seq < after {
                    after = 0;
                    continue;
                }
                after = parsed.last_seq;
                match form {
                    Form::Text => print(&parsed.events.iter().map(show::event).collect::<String>())?,
                    Form::Json => {
                        let lines = document["events"].as_array().into_iter().flatten();
                        print(&lines.map(|event| format!("{event}\n")).collect::<String>())?;
                    }
                }
            }
            // While one is followed, psyncd may well be restarted.
            (Err(error @ (Error::NoSocket(_) | Error::NobodyAnswers(_))), Often::Every(_)) if after > 0 => {
                if !lost {
                    let _ = writeln!(io::stderr(), "psyncd: {error}; waiting for it");
                }
                lost = true;
            }
            (Err(error), _) => return Err(error.into()),
        }
        match often {
            Often::Once => return Ok(()),
            Often::Every(_) => sleep(EVENTS_EVERY).await,
        }
    }
}

impl Events {
    fn deserialized(document: &serde_json::Value) -> Result<Events, serde_json::Error> {
        serde::Deserialize::deserialize(document)
    }
}

fn print(text: &str) -> Result<(), Blind> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
