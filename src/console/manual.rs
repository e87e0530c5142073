//! The manual page, the completions and the table of commands, all from the grammar that also makes `--help`.

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The completions of a shell, to be sourced by it.
pub fn completions(grammar: &mut Command, shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, grammar, "psyncd", &mut text);
    text
}

/// The page of psyncd, or that of one of its commands, in roff: `psyncd man status | man -l -`. None where there is no such
/// command.
pub fn page(grammar: &Command, words: &[String]) -> Option<Vec<u8>> {
    let mut command = grammar.clone();
    command.build();
    let version = command.get_version().map(str::to_owned);
    let mut name = command.get_name().to_owned();
    for word in words {
        command = command.find_subcommand(word)?.clone();
        name = format!("{name}-{}", command.get_name());
    }
    let shown = name.clone();
    // A page is named for its command, as git's are.
    let mut command = command.name(&*shown.leak());
    if let Some(version) = version {
        command = command.version(&*version.leak());
    }
    let mut text = Vec::new();
    Man::new(command).title(name.to_uppercase()).manual("psyncd manual").render(&mut text).ok()?;
    Some(text)
}

/// Every command with what it is for, as a table in Markdown.
pub fn reference(grammar: &Command) -> String {
    let mut text = String::from("| command | what it does |\n|---|---|\n");
    list(grammar, "psyncd", &mut text);
    text
}

fn list(command: &Command, prefix: &str, text: &mut String) {
    for sub in command.get_subcommands() {
        let name = format!("{prefix} {}", sub.get_name());
        if sub.has_subcommands() {
            list(sub, &name, text);
            continue;
        }
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("| `{name}` | {about} |\n"));
    }
}
