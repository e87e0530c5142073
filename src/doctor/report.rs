//! The findings for people and for programs.

use serde_json::{Value, json};

use super::rules::{Finding, Severity, Sizing};
use crate::config::Config;
use crate::config::units::print_bytes;
use crate::console::words::{bytes, plain, rate, seconds};

/// What is worst first, each with what mends it, and the sizes recommended.
pub fn text(config: &Config, findings: &[Finding], sizing: Option<&Sizing>) -> String {
    let upstream = config.upstream.as_ref().map_or_else(|| "no upstream".to_owned(), ToString::to_string);
    let mut text = format!("{upstream}\n\n");
    for finding in findings {
        let head = format!("{:<8} {:<15} ", finding.severity.as_str(), finding.check);
        text.push_str(&hung(&head, &plain(&finding.text)));
        if let Some(mend) = &finding.mend {
            text.push_str(&hung(&format!("{:<8} {:<15} -> ", "", ""), &plain(mend)));
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

/// `text` behind `head`, its further lines under its first.
fn hung(head: &str, text: &str) -> String {
    let indent = head.chars().count();
    let mut out = String::from(head);
    let mut column = indent;
    for (at, word) in text.split(' ').enumerate() {
        let width = word.chars().count();
        if at > 0 && column + 1 + width > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
    out
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_finding_hangs_under_its_own_beginning() {
        let text = hung("warning  backlog  ", &["word"; 40].join(" "));
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(18))), "{text}");
        assert_eq!(text.split_whitespace().count(), 42);
    }
}
