//! The real binary: exit codes and messages. Nothing here listens or connects.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs psyncd with nothing in its environment but `env`.
fn psyncd(args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_psyncd"))
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("psyncd starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("psyncd writes UTF-8");
    (output.status.code().expect("psyncd exits by itself"), text(output.stdout), text(output.stderr))
}

/// A configuration file that lives as long as the value.
fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(text.as_bytes()).expect("and written");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("temporary paths are UTF-8")
}

/// Expects a refusal with status 78, in one line, that contains each of `parts`.
fn refused(args: &[&str], env: &[(&str, &str)], parts: &[&str]) {
    let (code, out, err) = psyncd(args, env);
    assert_eq!((code, out.as_str()), (78, ""), "{args:?}: {err}");
    assert!(err.starts_with("psyncd: ") && err.lines().count() == 1, "{args:?}: {err}");
    for part in parts {
        assert!(err.contains(part), "{part:?} is missing in {err}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_usage_errors() {
    for args in [
        &["run", "--upstraem", "a:1"][..],
        &["fly"],
        &["run", "--port"],
        &["run", "extra"],
        &[],
        &["run", "--masterauth", "x"],
    ] {
        let (code, out, err) = psyncd(args, &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains("--help"), "{args:?}: {err}");
    }
    let (_, _, err) = psyncd(&["run", "--upstraem", "a:1"], &[]);
    assert!(err.contains("--upstream"), "{err}");
}

#[test]
fn help_and_version_are_answers_not_errors() {
    let (code, out, _) = psyncd(&["run", "--help"], &[]);
    assert_eq!(code, 0);
    for part in ["--repl-backlog-size <SIZE>", "256mb", "PSYNCD_REPL_BACKLOG_SIZE", "--config <FILE>"] {
        assert!(out.contains(part), "{out}");
    }
    assert!(!out.contains("--masterauth <"), "a password is no flag:\n{out}");
    let (code, out, _) = psyncd(&["--version"], &[]);
    assert!(code == 0 && out.starts_with(concat!("psyncd ", env!("CARGO_PKG_VERSION"), " (")), "{out}");
    let (code, out, _) = psyncd(&["-V"], &[]);
    assert_eq!((code, out.as_str()), (0, concat!("psyncd ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn an_unknown_key_of_the_file_is_refused_with_the_nearest() {
    let file = file("upstream = \"a:1\"\nrepl_backlog_size = \"1mb\"\n");
    refused(
        &["check-config", "--config", path(&file)],
        &[],
        &["\"repl_backlog_size\"", path(&file), "line 2", "did you mean repl-backlog-size?"],
    );
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest() {
    refused(
        &["check-config", "--upstream", "a:1"],
        &[("PSYNCD_REPL_BACKLOG_SISE", "1mb")],
        &["PSYNCD_REPL_BACKLOG_SISE", "did you mean PSYNCD_REPL_BACKLOG_SIZE?"],
    );
}

#[test]
fn impossible_values_are_refused_with_their_origin_and_range() {
    let file = file("upstream = \"a:1\"\nrepl-backlog-size = \"999999999gb\"\n");
    let range = "a size from 16kb to 1024gb";
    refused(&["run", "--config", path(&file)], &[], &["repl-backlog-size", "line 2", "too large", range]);
    refused(
        &["run", "--upstream", "a:1"],
        &[("PSYNCD_REPL_BACKLOG_SIZE", "1kb")],
        &["environment variable PSYNCD_REPL_BACKLOG_SIZE", "too small", range],
    );
    refused(&["run", "--upstream", "a:1", "--repl-backlog-size", "-1"], &[], &["flag --repl-backlog-size", "negative"]);
    refused(&["run", "--upstream", "nonsense"], &[], &["\"nonsense\"", "flag --upstream", "HOST:PORT"]);
    refused(&["run", "--upstream", "a:1", "--loglevel", "loud"], &[], &["\"loud\"", "notice"]);
}

#[test]
fn a_missing_upstream_is_refused() {
    let empty = file("");
    refused(&["run", "--config", path(&empty)], &[], &["--upstream HOST:PORT", "PSYNCD_UPSTREAM", path(&empty)]);
}

#[test]
fn a_question_to_no_psyncd_fails_and_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = dir.path().join("psyncd.sock");
    let socket = socket.to_str().expect("temporary paths are UTF-8");
    for (args, env, part) in [
        (&["guard", "release"][..], &[][..], "--socket"),
        (&["guard", "release", "--socket", socket], &[], socket),
        (&["guard", "status"], &[("PSYNCD_SOCKET", socket)], socket),
        (&["guard", "reject"], &[("PSYNCD_DIR", dir.path().to_str().expect("UTF-8"))], socket),
    ] {
        let (code, out, err) = psyncd(args, env);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{args:?}: {err}");
    }
    let (code, _, err) = psyncd(&["guard", "free"], &[]);
    assert_eq!(code, 2, "{err}");
}

#[test]
fn a_file_asked_for_and_not_there_is_refused() {
    let (flag, env) = (["run", "--config", "/nonexistent/a.toml"], [("PSYNCD_CONFIG", "/nonexistent/b.toml")]);
    refused(&flag, &[], &["/nonexistent/a.toml", "No such file"]);
    refused(&["run"], &env, &["/nonexistent/b.toml", "No such file"]);
}

#[test]
fn psyncd_refuses_to_follow_itself() {
    refused(&["run", "--upstream", "localhost:6380"], &[], &["follow itself"]);
}

#[test]
fn an_unreadable_password_file_is_refused() {
    refused(
        &["run", "--upstream", "a:1", "--masterauth-file", "/nonexistent/password"],
        &[],
        &["masterauth-file", "/nonexistent/password"],
    );
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let file = file("upstream = \"a:1\"\nport = 1\nmaxclients = 1\nmax-replicas = 1\n");
    let (code, out, err) = psyncd(
        &["check-config", "--print", "--config", path(&file), "--port", "3"],
        &[("PSYNCD_PORT", "2"), ("PSYNCD_MAXCLIENTS", "2"), ("PSYNCD_MASTERAUTH", "hunter2")],
    );
    assert_eq!((code, err.as_str()), (0, ""));
    for line in [
        "port = 3  # flag --port",
        "maxclients = 2  # environment variable PSYNCD_MAXCLIENTS",
        &format!("max-replicas = 1  # {}, line 4", path(&file)),
        "tcp-backlog = 511  # default",
        "masterauth = \"***\"  # environment variable PSYNCD_MASTERAUTH",
    ] {
        assert!(out.lines().any(|printed| printed == line), "{line} is missing in\n{out}");
    }
    assert!(!out.contains("hunter2"));
}

#[test]
fn a_right_configuration_is_accepted_in_silence() {
    assert_eq!(psyncd(&["check-config"], &[("PSYNCD_UPSTREAM", "[::1]:6379")]), (0, String::new(), String::new()));
}

#[test]
fn the_printed_example_is_a_right_configuration() {
    let (code, example, _) = psyncd(&["check-config", "--example"], &[]);
    assert_eq!(code, 0);
    let file = file(&example);
    assert_eq!(psyncd(&["check-config", "--config", path(&file)], &[]), (0, String::new(), String::new()));
}

#[test]
fn the_manual_knows_every_setting_and_every_command() {
    let (code, page, _) = psyncd(&["man", "run"], &[]);
    assert!(code == 0 && page.contains(".TH PSYNCD-RUN"), "{page}");
    let page = page.replace("\\-", "-");
    for setting in psyncd::config::settings::SETTINGS.iter().filter(|setting| setting.is_flag()) {
        assert!(page.contains(&format!("--{}", setting.name)), "{} is missing in the manual page", setting.name);
    }
    let (_, reference, _) = psyncd(&["man", "--reference"], &[]);
    for line in reference.lines().skip(2) {
        let command = line.split('`').nth(1).unwrap_or_else(|| panic!("no command in {line}"));
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let (code, page, err) = psyncd(&[&["man"], words.as_slice()].concat(), &[]);
        let title = format!(".TH PSYNCD-{}", words.join("-").to_uppercase());
        assert!(code == 0 && page.contains(&title), "{command}: {err}{page}");
        let (code, help, _) = psyncd(&[words.as_slice(), &["--help"]].concat(), &[]);
        assert!(code == 0 && help.contains(&format!("Usage: {command}")), "{command}: {help}");
    }
    let (code, _, err) = psyncd(&["man", "fly"], &[]);
    assert!(code == 2 && err.contains("fly"), "{err}");
}

#[test]
fn the_readme_lists_the_commands_as_they_are() {
    let (_, reference, _) = psyncd(&["man", "--reference"], &[]);
    let readme = include_str!("../README.md");
    assert!(readme.contains(&reference), "the table of commands in README.md has to be\n{reference}");
}

#[test]
fn the_example_file_is_as_it_is_printed() {
    let (_, example, _) = psyncd(&["check-config", "--example"], &[]);
    let kept = include_str!("../deploy/psyncd.example.toml");
    assert!(kept == example, "run: psyncd check-config --example > deploy/psyncd.example.toml");
}

#[test]
fn the_reference_of_settings_is_as_it_is_printed() {
    let (code, reference, _) = psyncd(&["check-config", "--reference"], &[]);
    let kept = include_str!("../deploy/SETTINGS.md");
    assert!(code == 0 && kept == reference, "run: psyncd check-config --reference > deploy/SETTINGS.md");
}

#[test]
fn completions_are_what_their_shell_understands() {
    for (shell, part) in [("bash", "complete -F _psyncd"), ("zsh", "#compdef psyncd"), ("fish", "complete -c psyncd")] {
        let (code, script, _) = psyncd(&["completions", shell], &[]);
        assert!(code == 0 && script.contains(part), "{shell}: {script}");
        assert!(script.contains("repl-backlog-size") && script.contains("doctor"), "{shell}");
    }
    let (_, script, _) = psyncd(&["completions", "bash"], &[]);
    let file = file(&script);
    let read = Command::new("bash").args(["-n", path(&file)]).status().expect("bash is installed");
    assert!(read.success());
}

#[test]
fn a_plugin_that_cannot_know_says_unknown() {
    for args in [&["check", "--min-replicas", "x"][..], &["check", "--fly"], &["check"]] {
        let (code, _, _) = psyncd(args, &[]);
        assert_eq!(code, 3, "{args:?}");
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (code, out, _) = psyncd(&["check", "--dir", dir.path().to_str().expect("is UTF-8")], &[]);
    assert!(code == 2 && out.starts_with("PSYNCD CRITICAL - ") && out.lines().count() == 1, "{out}");
}

#[test]
fn a_journal_that_is_not_there_is_told_from_a_directory_that_is_not() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let at = dir.path().to_str().expect("is UTF-8");
    for word in ["ls", "verify"] {
        let (code, out, _) = psyncd(&["journal", word, "--dir", at], &[]);
        assert!(code == 0 && out.contains("no journal in"), "{out}");
        let missing = format!("{at}/nothing");
        let (code, _, err) = psyncd(&["journal", word, "--dir", &missing], &[]);
        assert!(code == 1 && err.contains(&missing), "{err}");
        let (code, _, err) = psyncd(&["journal", word], &[]);
        assert!(code == 1 && err.contains("--dir"), "{err}");
    }
}

#[test]
fn top_is_for_terminals() {
    let (code, out, err) = psyncd(&["top", "--socket", "/nonexistent"], &[]);
    assert!(code == 1 && out.is_empty() && err.contains("status --watch"), "{out}{err}");
}
