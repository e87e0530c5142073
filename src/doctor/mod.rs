//! `psyncd doctor`: everything on the upstream and on this machine that would cost a full resync, or have somebody refused,
//! later; each with what mends it. Asks, and changes nothing.
//!
//! [`probe`] asks, [`facts`] is what was answered, [`rules`] judges it without asking anybody, [`report`] says it.

pub mod facts;
pub mod probe;
pub mod report;
pub mod rules;

use std::time::Duration;

use crate::config::Config;
use crate::console::look::Form;

/// How to examine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long writes are measured.
    pub sample: Duration,
    /// How long an absence has to cost no full resync.
    pub outage: Duration,
    /// Whether warnings fail as well.
    pub strict: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { sample: Duration::from_secs(5), outage: Duration::from_secs(600), strict: false }
    }
}

/// Examines, and returns what there is to say and whether nothing needs mending.
pub async fn examine(config: &Config, options: Options, form: Form) -> (String, bool) {
    let upstream = probe::upstream(config, options.sample).await;
    let machine = probe::machine(config).await;
    let findings = rules::judge(config, upstream.as_ref().map_err(ToString::to_string), &machine, options.outage);
    let well = findings.iter().all(|finding| match finding.severity {
        rules::Severity::Ok | rules::Severity::Note => true,
        rules::Severity::Warning => !options.strict,
        rules::Severity::Problem => false,
    });
    let sizing = upstream.ok().map(|facts| rules::sizing(config, &facts, options.outage));
    let text = match form {
        Form::Text => report::text(config, &findings, sizing.as_ref()),
        Form::Json => format!("{:#}\n", report::document(config, &findings, sizing.as_ref(), well)),
    };
    (text, well)
}
