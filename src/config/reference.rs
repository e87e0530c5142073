//! The reference of all settings in Markdown, `deploy/SETTINGS.md`: what the one table of settings says, for people.

use super::settings::{Kind, Preset, SETTINGS, Setting, USERS, wrapped};

/// How the reference is printed.
const COMMAND: &str = "psyncd check-config --reference";

/// The whole page. Each setting is a heading, so that it can be linked to.
pub fn reference() -> String {
    let live: Vec<String> = SETTINGS.iter().filter(|setting| setting.is_live()).map(linked).collect();
    let mut text = format!(
        "# Settings\n\n\
         Printed by `{COMMAND}`; a test compares it. [psyncd.example.toml](psyncd.example.toml) has the same as a file to begin with.\n\n\
         Each setting is a flag (`--repl-backlog-size 1gb`), an environment variable (`PSYNCD_REPL_BACKLOG_SIZE=1gb`) and a key of a\n\
         TOML file (`repl-backlog-size = \"1gb\"`). A flag wins over the environment, the environment over the file, the file over the\n\
         default. Passwords are no flags, because other users of the machine can see those. An unknown key, a value that is not\n\
         understood and one out of range are refused at start, with exit code 78 and the line they are in.\n\n\
         Sizes are Redis's: 1k is 1000, 1kb is 1024. Times are seconds, or `200us`, `500ms`, `10s`, `1m30s`, `2h`. Ends of ranges are allowed.\n\n\
         {}\n",
        paragraph(&format!(
            "**A reload** (`psyncd reload`, SIGHUP, `systemctl reload`) changes these, and cuts no link: {}. Files with certificates and \
             passwords are read again, too. The others wait for a restart, which the log says, and which costs nobody a \
             full resync.",
            live.join(", ")
        ))
    );
    for setting in SETTINGS {
        text.push_str(&format!(
            "\n## {}\n\n{}\n\n{}\n",
            setting.name,
            paragraph(&escaped(setting.help)),
            facts(setting)
        ));
    }
    text.push_str("\n## [[user]]\n\n");
    let (told, shown): (Vec<&str>, Vec<&str>) =
        USERS.lines().filter(|line| !line.is_empty()).partition(|line| line.starts_with("# "));
    let told: Vec<&str> = told.iter().map(|line| line.trim_start_matches("# ")).collect();
    let shown: Vec<&str> = shown.iter().map(|line| line.trim_start_matches('#')).collect();
    text.push_str(&format!("{}\n\n```toml\n{}\n```\n", escaped(&told.join("\n")), shown.join("\n")));
    text
}

/// `text` in lines of a readable length.
fn paragraph(text: &str) -> String {
    wrapped(text).join("\n")
}

/// A setting's name as a link to its heading.
fn linked(setting: &Setting) -> String {
    format!("[{0}](#{0})", setting.name)
}

/// Default, allowed values, whether a reload changes it, and what else it is called.
fn facts(setting: &Setting) -> String {
    let preset = match setting.preset {
        Preset::Value(value) => format!("`{value}`"),
        Preset::Required => "none, it has to be set".to_owned(),
        Preset::Nothing(meaning) => format!("none ({})", escaped(meaning)),
    };
    let allowed = match setting.kind {
        Kind::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        _ => escaped(&setting.kind.allowed()),
    };
    let mut facts = vec![
        format!("Default: {preset}"),
        format!("Values: {allowed}"),
        format!("Changed by a {}", if setting.is_live() { "reload" } else { "restart" }),
    ];
    if !setting.is_flag() {
        facts.push("Not a flag".to_owned());
    }
    if !setting.also.is_empty() {
        let names: Vec<String> = setting.also.iter().map(|name| format!("`{name}`")).collect();
        facts.push(format!("Elsewhere called {}", names.join(", ")));
    }
    facts.iter().map(|fact| format!("- {fact}")).collect::<Vec<_>>().join("\n")
}

/// `text` with nothing in it that Markdown would take for its own.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '<' | '>' | '*' | '_' | '[' | ']' | '|' | '`') {
            safe.push('\\');
        }
        safe.push(c);
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_heading_with_its_default_and_whether_a_reload_changes_it() {
        let text = reference();
        for setting in SETTINGS {
            let section = text.split("\n## ").find(|section| section.starts_with(&format!("{}\n", setting.name)));
            let section = section.unwrap_or_else(|| panic!("{} is missing", setting.name));
            assert!(section.contains("- Default: ") && section.contains("- Values: "), "{section}");
            assert_eq!(section.contains("- Changed by a reload"), setting.is_live(), "{section}");
        }
    }

    #[test]
    fn what_markdown_would_take_for_its_own_is_escaped() {
        assert_eq!(escaped("lost-*.resp and [[user]]"), "lost-\\*.resp and \\[\\[user\\]\\]");
    }
}
