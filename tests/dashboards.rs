//! What operators are given agrees with what psyncd says: every expression of the dashboard and of the alerts parses,
//! names metrics and labels that exist, and no panel hides another.
//!
//! Whether the expressions give numbers takes a real Prometheus; `.ci/validate` asks one.

#![allow(clippy::unwrap_used, reason = "a test says what it expects, and fails where it does not come")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use promql_parser::parser::{self, Expr};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&text("dashboards/psyncd.json")).unwrap()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a Vec<Value> {
    value.pointer(path).and_then(Value::as_array).unwrap_or_else(|| panic!("no list at {path} in {value}"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Every word of `text` that begins with `psyncd_`, up to the first character no metric's name has.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = text;
    while let Some(at) = rest.find("psyncd_") {
        let part_of_a_word = rest[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let name: String = rest[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        rest = &rest[at + name.len()..];
        if !part_of_a_word {
            found.insert(name);
        }
    }
    found
}

/// The metrics the program can write: its code names each as a literal. The page itself would not do, because some appear
/// with the first replica, or with a journal, only.
fn metrics_of_the_program() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let code = fs::read_to_string(&file).unwrap();
        // Tests at the foot of a file make metrics up.
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        let literals = code.split("\"psyncd_").skip(1).filter_map(|after| after.split_once('"'));
        names.extend(literals.map(|(name, _)| format!("psyncd_{name}")).filter(|name| metrics_in(name).contains(name)));
    }
    assert!(names.len() > 30 && names.contains("psyncd_upstream_link_up"), "not the metrics: {names:?}");
    names
}

/// Whether the program can write a series of that name: histograms have three.
fn is_written(name: &str, metrics: &BTreeSet<String>) -> bool {
    // The prometheus crate's, and Prometheus's own.
    name.starts_with("process_")
        || name == "up"
        || metrics.contains(name)
        || ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix).is_some_and(|family| metrics.contains(family)))
}

/// The expression as Grafana sends it.
fn filled(expression: &str) -> String {
    let filled =
        [("$__rate_interval", "1m"), ("$__range", "1h"), ("$instance", ".*"), ("$job", ".*"), ("$replica", ".*")]
            .iter()
            .fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!filled.contains('$'), "unknown variable in {expression}");
    filled
}

/// The names of all series the expression selects.
fn selected(expression: &Expr, names: &mut BTreeSet<String>) {
    match expression {
        Expr::VectorSelector(selector) => names.extend(selector.name.clone()),
        Expr::MatrixSelector(selector) => names.extend(selector.vs.name.clone()),
        Expr::Aggregate(aggregate) => {
            selected(&aggregate.expr, names);
            if let Some(parameter) = &aggregate.param {
                selected(parameter, names);
            }
        }
        Expr::Unary(unary) => selected(&unary.expr, names),
        Expr::Binary(binary) => {
            selected(&binary.lhs, names);
            selected(&binary.rhs, names);
        }
        Expr::Paren(inner) => selected(&inner.expr, names),
        Expr::Subquery(query) => selected(&query.expr, names),
        Expr::Call(call) => call.args.args.iter().for_each(|argument| selected(argument, names)),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

#[track_caller]
fn assert_asks_for_what_exists(expression: &str, metrics: &BTreeSet<String>) {
    let parsed = parser::parse(expression).unwrap_or_else(|why| panic!("{expression}: {why}"));
    let mut names = BTreeSet::new();
    selected(&parsed, &mut names);
    assert!(!names.is_empty(), "{expression} asks for nothing");
    for name in names {
        assert!(is_written(&name, metrics) || name.starts_with("psyncd:"), "{expression}: no metric is named {name}");
    }
}

#[test]
fn every_expression_of_the_dashboard_asks_for_metrics_that_exist() {
    let (dashboard, metrics) = (dashboard(), metrics_of_the_program());
    let panels = list(&dashboard, "/panels").iter().filter(|panel| panel["type"] != "row");
    for panel in panels {
        for target in list(panel, "/targets") {
            assert_asks_for_what_exists(&filled(target["expr"].as_str().unwrap()), &metrics);
        }
    }
    for annotation in list(&dashboard, "/annotations/list").iter().filter(|a| a["builtIn"] != 1) {
        assert_asks_for_what_exists(&filled(annotation["expr"].as_str().unwrap()), &metrics);
    }
    let queried = list(&dashboard, "/templating/list").iter().filter(|variable| variable["type"] == "query");
    for variable in queried {
        let query = filled(variable.pointer("/query/query").and_then(Value::as_str).unwrap());
        let (selector, _label) =
            query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", ")).unwrap();
        assert_asks_for_what_exists(selector, &metrics);
    }
}

#[test]
fn no_panel_lies_on_another_or_leaves_the_page() {
    let dashboard = dashboard();
    let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for panel in list(&dashboard, "/panels") {
        let title = panel["title"].as_str().unwrap();
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("{title} has no {name}"));
        assert!(ids.insert(panel["id"].as_u64()), "{title} has the id of another");
        assert!(side("x") + side("w") <= 24, "{title} is cut off");
        for column in side("x")..side("x") + side("w") {
            for line in side("y")..side("y") + side("h") {
                let other = taken.insert((column, line), title);
                assert_eq!(other, None, "{title} lies on it");
            }
        }
    }
}

#[test]
fn the_dashboard_works_with_any_prometheus_and_any_grafana_since_10_4() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "psyncd-overview", "links to it must stay good");
    assert_eq!(dashboard["schemaVersion"], 39, "older servers cannot read newer ones; newer ones migrate it");
    assert_eq!(dashboard.get("id"), None, "an id belongs to one server");
    assert_eq!(dashboard.pointer("/templating/list/0/type").unwrap(), "datasource", "the others depend on it");
    let ours = serde_json::json!({ "type": "prometheus", "uid": "${datasource}" });
    for panel in list(&dashboard, "/panels").iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"], ours, "{}", panel["title"]);
        assert!(
            panel["description"].as_str().is_some_and(|text| text.ends_with('.')),
            "{} explains itself",
            panel["title"]
        );
        for target in list(panel, "/targets") {
            assert_eq!(target["datasource"], ours, "{}", panel["title"]);
        }
    }
}

/// What stands behind `key:` in `text`, with the lines of a folded block (`>-`) put together.
fn values_of<'a>(key: &str, text: &'a str) -> Vec<String> {
    let mut lines = text.lines().peekable();
    let mut values = Vec::new();
    while let Some(line) = lines.next() {
        let Some(value) = line.trim_start().trim_start_matches("- ").strip_prefix(key) else { continue };
        let depth = |line: &'a str| line.len() - line.trim_start().len();
        let mut value = value.trim().to_owned();
        if value == ">-" {
            value.clear();
            while let Some(more) = lines.next_if(|next| depth(next) > depth(line)) {
                value.push_str(more.trim());
                value.push(' ');
            }
        }
        values.push(value.trim().to_owned());
    }
    values
}

#[test]
fn every_rule_asks_for_metrics_that_exist() {
    let (rules, metrics) = (text("deploy/prometheus/rules.yml"), metrics_of_the_program());
    let expressions = values_of("expr:", &rules);
    assert!(expressions.len() >= 15, "these are not all: {expressions:?}");
    for expression in expressions {
        assert_asks_for_what_exists(&expression, &metrics);
    }
    let recorded: BTreeSet<String> = values_of("record:", &rules).into_iter().collect();
    for word in rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')) {
        assert!(!word.starts_with("psyncd:") || recorded.contains(word), "{word} is never recorded");
    }
}

#[test]
fn every_alert_is_tested_both_ways_and_has_its_page_in_the_runbook() {
    let rules = text("deploy/prometheus/rules.yml");
    let (tests, runbook) = (text("deploy/prometheus/rules_test.yml"), text("deploy/RUNBOOK.md"));
    let alerts = values_of("alert:", &rules);
    for alert in &alerts {
        let about: Vec<&str> =
            tests.split("  - name: ").filter(|test| test.starts_with(&format!("{alert} "))).collect();
        let [about] = about[..] else { panic!("{alert} has {} tests", about.len()) };
        assert!(about.contains("exp_labels"), "{alert} is never shown firing");
        let series = about.matches("- series:").count();
        let quiet = about.contains("exp_alerts: []");
        assert!(quiet || series > 1, "{alert} is never shown quiet");

        assert!(rules.contains(&format!("deploy/RUNBOOK.md#{}\n", alert.to_lowercase())), "{alert} has no runbook_url");
        let section = runbook.split("\n## ").find(|section| section.starts_with(&format!("{alert}\n")));
        let section = section.unwrap_or_else(|| panic!("{alert} is not in the runbook"));
        for part in ["**Means.**", "**First.**", "**Usually.**"] {
            assert!(section.contains(part), "{alert}: the runbook lacks {part}");
        }
    }
    let urls = values_of("runbook_url:", &rules);
    assert_eq!(urls.len(), alerts.len(), "one each");
}

#[test]
fn what_people_read_names_metrics_that_exist() {
    let metrics = metrics_of_the_program();
    for path in pages().into_iter().chain(["deploy/prometheus/rules_test.yml".to_owned()]) {
        // "psyncd_…" stands for all of them.
        for name in metrics_in(&text(&path)).into_iter().filter(|name| name != "psyncd_") {
            assert!(is_written(&name, &metrics), "{path} names {name}, which psyncd does not have");
        }
    }
}

/// Everything written for people, by its path.
fn pages() -> Vec<String> {
    let mut found: Vec<String> =
        ["README.md", "benches/README.md", ".github/SECURITY.md"].into_iter().map(str::to_owned).collect();
    for entry in fs::read_dir(root().join("deploy")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            found.push(format!("deploy/{name}"));
        }
    }
    found
}

/// What a heading is called in a link, by GitHub's rule.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let mut followed = 0;
    for path in pages() {
        let page = text(&path);
        for link in page.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root().join(&path)
            } else {
                root().join(Path::new(&path).parent().unwrap()).join(file)
            };
            assert!(target.exists(), "{path} links to {link}, which is not there");
            if !heading.is_empty() {
                let there = fs::read_to_string(&target).unwrap();
                let headings = there.lines().filter(|line| line.starts_with('#'));
                let found =
                    headings.map(|line| anchor(line.trim_start_matches('#').trim())).any(|name| name == heading);
                assert!(found, "{path} links to {link}, and there is no such heading");
            }
            followed += 1;
        }
    }
    assert!(followed > 50, "only {followed} links were found");
}
