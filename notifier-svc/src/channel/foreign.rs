//! For tests: programs that aren't ours (Python and npm packages), which read what goes out as its receivers do, and sign
//! what comes in as its senders do.
//!
//! The interpreters come from `make test`; without them a test says that it is skipped, which is a failure in CI.

use std::{io::Write as _, path::PathBuf, process::Command};

use serde_json::Value;

/// Where npm's packages are.
pub(crate) fn modules() -> Option<PathBuf> {
    variable("WEDSYNC_TEST_NODE_MODULES").map(PathBuf::from)
}

/// What a script for Node answers to each question; none where there is no Node.
pub(crate) fn node(script: &str, questions: &[Value]) -> Option<Vec<Value>> {
    let Some(modules) = modules() else { return missing("WEDSYNC_TEST_NODE_MODULES") };
    let mut command = Command::new("node");
    command.arg(folder().join(script)).arg(modules);
    Some(answers(command, questions))
}

/// Likewise for Python.
pub(crate) fn python(script: &str, questions: &[Value]) -> Option<Vec<Value>> {
    let Some(python) = variable("WEDSYNC_TEST_PYTHON") else { return missing("WEDSYNC_TEST_PYTHON") };
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(folder().join(script));
    Some(answers(command, questions))
}

/// Questions and answers are lines of JSON; the questions are in a file, so that nobody waits for anybody.
fn answers(mut command: Command, questions: &[Value]) -> Vec<Value> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    for question in questions {
        writeln!(file, "{question}").expect("room for it");
    }
    let output = command.arg(file.path()).output().expect("the program is there");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    let text = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(answers.len(), questions.len(), "{command:?}: {complaint}");
    answers
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign"))
}

fn missing<T>(what: &str) -> Option<T> {
    assert!(variable("CI").as_deref() != Some("true"), "{what} is not set");
    println!("skipped: {what} is not set");
    None
}

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests find their programs by the environment")]
    std::env::var(name).ok()
}
