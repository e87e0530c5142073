//! The findings for people and for programs.

use serde_json::{Value, json};

use super::rules::{Finding, Severity, Sizing};
use crate::config::Config;
use crate::config::units::print_bytes;
use crate::console::words::{bytes, hung, plain, rate, seconds};

/// What is worst first, each with what mends it, and the sizes recommended.
pub fn text(config: &Config, findings: &[Finding], sizing: Option<&Sizing>) -> String {
    let upstream = config.upstream.as_ref().map_or_else(|| "no upstream".to_owned(), ToString::to_string);
    let mut text = format!("{upstream}\n\n");
    for finding in findings {
        let head = format!("{:<8} {:<15} ", finding.severity.as_str(), finding.check);
        text.push_str(&hung(&head, &plain(&finding.text), WIDTH));
        if let Some(mend) = &finding.mend {
            text.push_str(&hung(&format!("{:<8} {:<15} -> ", "", ""), &plain(mend), WIDTH));
        }
    }
    if let Some(sizing) = sizing.filter(|sizing| sizing.rate >= 1.0) {
        text.push_str(&format!(
            "\nat {}, with as much again for busier times:\n  an absence of a replica of {} needs a backlog of {} here ({})\n  an absence \
             of psyncd of 2 m 00 s needs a repl-backlog-size of {} at the upstream\n",
            rate(sizing.rate),
            seconds(sizing.outage.as_secs_f64()),
            bytes(sizing.backlog),
            match config.dir {
                Some(_) => format!("backlog-disk-size = \"{}\"", print_bytes(sizing.backlog)),
                None => format!("repl-backlog-size = \"{}\"", print_bytes(sizing.backlog)),
            },
            print_bytes(sizing.upstream_backlog),
        ));
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    text.push_str(&format!("\nproblems: {}, warnings: {}\n", count(Severity::Problem), count(Severity::Warning)));
    text
}

/// Columns a line may take, unless it is one word.
const WIDTH: usize = 100;

/// The same as a document.
pub fn document(config: &Config, findings: &[Finding], sizing: Option<&Sizing>, well: bool) -> Value {
    let findings = findings.iter().map(|finding| {
        json!({
            "severity": finding.severity.as_str(), "check": finding.check, "text": finding.text, "mend": finding.mend,
        })
    });
    json!({
        "upstream": config.upstream.as_ref().map(ToString::to_string),
        "ok": well,
        "findings": findings.collect::<Vec<_>>(),
        "sizing": sizing.map(|sizing| json!({
            "bytes_per_second": sizing.rate,
            "outage_seconds": sizing.outage.as_secs_f64(),
            "backlog_bytes": sizing.backlog,
            "upstream_backlog_bytes": sizing.upstream_backlog,
            "runway_seconds": sizing.runway_seconds,
        })),
    })
}
