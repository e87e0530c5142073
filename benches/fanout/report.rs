//! What came out: JSON lines as it happens, a table of ratios at the end.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::device::Kind;
use super::scenario::{Outcome, Scenario, metric};

/// Metrics that are compared; the others are only told.
const COMPARED: [&str; 15] = [
    "delivered_mb_s",
    "cpu_s_per_gb",
    "p50_us",
    "hop_p50_us",
    "cold_s",
    "cold_cpu_s",
    "warm_s",
    "warm_cpu_s",
    "back_ms",
    "back_cpu_s",
    "p1_set_rps",
    "p1_get_rps",
    "p16_set_rps",
    "p16_get_rps",
    "peak_rss_mib",
];

/// All results of one invocation.
pub struct Report {
    json: Option<File>,
    runs: Vec<Run>,
    /// What was not reported, and why.
    pub refused: Vec<(String, Kind, String)>,
}

struct Run {
    scenario: Scenario,
    kind: Kind,
    round: usize,
    outcome: Outcome,
}

impl Report {
    /// Writes JSON lines to `path`, if there is one.
    pub fn new(path: Option<&Path>) -> io::Result<Self> {
        Ok(Self { json: path.map(File::create).transpose()?, runs: Vec::new(), refused: Vec::new() })
    }

    /// Values of one run.
    pub fn add(&mut self, scenario: Scenario, kind: Kind, round: usize, outcome: Outcome) -> io::Result<()> {
        let values: serde_json::Map<String, serde_json::Value> =
            outcome.values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        self.line(&json!({
            "scenario": scenario.name(), "device": kind.as_str(), "round": round, "values": values,
            "other_cores": outcome.other_cores.is_finite().then_some(outcome.other_cores),
        }))?;
        let text: Vec<String> =
            outcome.values.iter().map(|(name, value)| format!("{name}={}", short(*value))).collect();
        println!("  {:12} {:15} round {round}  {}", scenario.name(), kind.as_str(), text.join(" "));
        self.runs.push(Run { scenario, kind, round, outcome });
        Ok(())
    }

    /// A run that gives no result.
    pub fn refuse(&mut self, scenario: Scenario, kind: Kind, round: usize, why: String) -> io::Result<()> {
        self.line(&json!({"scenario": scenario.name(), "device": kind.as_str(), "round": round, "refused": why}))?;
        println!("  {:12} {:15} round {round}  REFUSED: {why}", scenario.name(), kind.as_str());
        self.refused.push((scenario.name(), kind, why));
        Ok(())
    }

    /// A fact about the whole.
    pub fn fact(&mut self, name: &str, value: &str) -> io::Result<()> {
        println!("{name}: {value}");
        self.line(&json!({"fact": name, "value": value}))
    }

    fn line(&mut self, value: &serde_json::Value) -> io::Result<()> {
        match &mut self.json {
            Some(file) => writeln!(file, "{value}"),
            None => Ok(()),
        }
    }

    /// The table. Ratios are taken within a round, between neighbours in time; then their median is told.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "\n| scenario | metric | device | median | against | ratio | min | max | runs | other cores |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        let mut scenarios: Vec<Scenario> = Vec::new();
        for run in &self.runs {
            if !scenarios.contains(&run.scenario) {
                scenarios.push(run.scenario);
            }
        }
        for scenario in scenarios {
            for name in self.metrics(scenario) {
                for kind in scenario.devices() {
                    self.rows(&mut out, scenario, name, *kind);
                }
            }
        }
        out
    }

    fn metrics(&self, scenario: Scenario) -> Vec<&'static str> {
        let mut names = Vec::new();
        for run in self.runs.iter().filter(|run| run.scenario == scenario) {
            for (name, _) in &run.outcome.values {
                if !names.contains(name) {
                    names.push(*name);
                }
            }
        }
        names
    }

    fn of(&self, scenario: Scenario, name: &str, kind: Kind) -> Vec<(usize, f64)> {
        let runs = self.runs.iter().filter(|run| run.scenario == scenario && run.kind == kind);
        runs.filter_map(|run| Some((run.round, metric(&run.outcome.values, name)?))).collect()
    }

    fn rows(&self, out: &mut String, scenario: Scenario, name: &str, kind: Kind) {
        let values = self.of(scenario, name, kind);
        if values.is_empty() {
            return;
        }
        let others: Vec<f64> = self
            .runs
            .iter()
            .filter(|run| run.scenario == scenario && run.kind == kind && run.outcome.other_cores.is_finite())
            .map(|run| run.outcome.other_cores)
            .collect();
        let other = spread(&others).map_or("-".to_owned(), |spread| format!("{:.1}", spread.median));
        let plain: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
        let Some(all) = spread(&plain) else { return };
        let mut compared = false;
        for baseline in scenario.baselines().iter().filter(|&&baseline| baseline != kind && COMPARED.contains(&name)) {
            let base = self.of(scenario, name, *baseline);
            let ratios: Vec<f64> = values
                .iter()
                .filter_map(|(round, value)| {
                    let (_, base) = base.iter().find(|(other, _)| other == round)?;
                    (*base != 0.0).then_some(value / base)
                })
                .collect();
            if let Some(ratio) = spread(&ratios) {
                compared = true;
                out.push_str(&format!(
                    "| {} | {name} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {} | {other} |\n",
                    scenario.name(),
                    kind.as_str(),
                    short(all.median),
                    baseline.as_str(),
                    ratio.median,
                    ratio.min,
                    ratio.max,
                    ratios.len()
                ));
            }
        }
        if !compared {
            out.push_str(&format!(
                "| {} | {name} | {} | {} | - | - | {} | {} | {} | {other} |\n",
                scenario.name(),
                kind.as_str(),
                short(all.median),
                short(all.min),
                short(all.max),
                plain.len()
            ));
        }
    }
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    Some(Spread { median, min, max })
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        ..10.0 => format!("{value:.3}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
