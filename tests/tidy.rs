//! What the documents and settings files say is what the code does: README's commands are run by CI, and the settings
//! file that is shipped shows every setting with its default.

use std::{collections::BTreeSet, fs, process::Command};

use super::harness::{binary, root};

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(root().join(path)).ok();
    if text.is_none() {
        println!("skipped: there is no {path}");
    }
    text
}

/// Lines of the ```sh blocks of a Markdown text, without prompts and comments.
fn shell_lines(markdown: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in markdown.lines().map(str::trim) {
        match line.strip_prefix("```") {
            Some(language) => inside = !inside && ["sh", "shell", "bash", "console"].contains(&language),
            None if inside => lines.push(line),
            None => {}
        }
    }
    let command = |line: &str| {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        line.split(" #").next().unwrap_or_default().trim().to_owned()
    };
    let lines = lines.into_iter().filter(|line| !line.starts_with('#')).map(command);
    lines.filter(|line| !line.is_empty()).collect()
}

/// Recipe lines of `target` and of everything it asks for.
fn recipes(makefile: &str, target: &str) -> String {
    let mut lines = makefile.lines().skip_while(|line| !line.starts_with(&format!("{target}:")));
    let head = lines.next().unwrap_or_else(|| panic!("the Makefile has no target {target}"));
    let needed = head.split("##").next().unwrap_or_default().split_whitespace().skip(1);
    let mut text: String = needed.map(|needed| recipes(makefile, needed)).collect();
    text.extend(lines.take_while(|line| line.starts_with('\t')).map(|line| format!("{}\n", line.trim())));
    text
}

#[test]
fn every_command_of_the_readme_is_run_by_ci() {
    let (Some(readme), Some(makefile)) = (read("README.md"), read("Makefile")) else { return };
    // A flag that only pins versions doesn't make it another command.
    let run = recipes(&makefile, "check").replace(" --locked", "");
    let unproven: Vec<_> = shell_lines(&readme)
        .into_iter()
        .filter(|line| match line.strip_prefix("make ") {
            Some("check") => false,
            Some(target) => !run.contains(&recipes(&makefile, target).replace(" --locked", "")),
            None => !run.lines().any(|recipe| recipe == line || recipe.ends_with(&format!(" {line}"))),
        })
        .collect();
    assert!(unproven.is_empty(), "README shows commands that `make check` doesn't run: {unproven:#?}");
}

#[test]
fn the_shipped_settings_file_shows_every_setting_with_its_default() {
    let Some(shipped) = read("deploy/wedsync.toml") else { return };
    // An empty file: without one it would be development mode.
    let arguments = ["--config", "/dev/null", "--print-config"];
    let output = Command::new(binary()).args(arguments).output().expect("the binary was built");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("text");
    let lines = |text: &str| -> BTreeSet<String> {
        let table: toml::Table = text.parse().expect("TOML");
        flat("", &toml::Value::Table(table)).into_iter().collect()
    };
    let (shipped, printed) = (lines(&shipped), lines(&printed));
    let missing: Vec<_> = printed.difference(&shipped).collect();
    let wrong: Vec<_> = shipped.difference(&printed).collect();
    assert!(missing.is_empty() && wrong.is_empty(), "missing: {missing:#?}\nnot so: {wrong:#?}");
}

/// Each setting as `section.key = value`.
fn flat(above: &str, value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::Table(table) => {
            table.iter().flat_map(|(key, value)| flat(&format!("{above}.{key}"), value)).collect()
        }
        value => vec![format!("{} = {value}", above.trim_start_matches('.'))],
    }
}

#[test]
fn the_lines_that_tidy_reads_are_those_that_a_reader_types() {
    let markdown = "text\n```sh\n$ make test   # all\n# a comment\ncargo run -- demo\n```\n```rust\nlet x;\n```\n";
    assert_eq!(shell_lines(markdown), ["make test", "cargo run -- demo"]);
    let makefile = "check: lint test ## all\n\nlint:\n\tcargo fmt\n\ntest: ## t\n\tcargo test\n\nother:\n\trm\n";
    assert_eq!(recipes(makefile, "check"), "cargo fmt\ncargo test\n");
}
