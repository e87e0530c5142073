//! The life of the process. Builds and supervises everything else.

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Exit;
use crate::config::Config;

/// Why the daemon ended other than cleanly.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What happened.
    pub error: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::for_error(&error), error }
    }
}

/// Runs until a signal ends it.
pub async fn run(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    tracing::info!(
        upstream = %config.upstream,
        port = config.port,
        backlog_bytes = config.repl_backlog_bytes,
        "started"
    );
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    Ok(())
}
