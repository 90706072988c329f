//! Stoplight's Prism with a vendor's own description: it holds requests against it and refuses what breaks it.
//!
//! One process serves a description for as long as the test binary runs, and ends with it: its standard input closes then.
//! A part of the tests of every crate that asks others.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

/// The longest that one may take to serve; the largest description takes a second on an idle machine.
const START_WITHIN: Duration = Duration::from_secs(60);

struct Prism {
    base: String,
    /// Its standard input is what keeps it.
    _process: Child,
}

static RUNNING: Mutex<BTreeMap<String, Prism>> = Mutex::new(BTreeMap::new());

/// The URL at which `file` of the vendors' descriptions is served. None, and a word about it, where the description or
/// Prism isn't there, which is a failure in CI.
pub(super) fn serve(file: &str) -> Option<String> {
    serve_file(&description(file)?)
}

/// The same for a description that is ours.
pub(super) fn serve_file(description: &Path) -> Option<String> {
    let file = description.display().to_string();
    let Some(modules) = variable("WEDSYNC_TEST_NODE_MODULES").map(PathBuf::from) else {
        return missing("Prism is not there: WEDSYNC_TEST_NODE_MODULES names no folder");
    };
    let mut running = RUNNING.lock().expect("no test failed while it started one");
    if !running.contains_key(&file) {
        running.insert(file.clone(), start(&modules, description));
    }
    running.get(&file).map(|prism| prism.base.clone())
}

/// A vendor's own description, from the folder that `WEDSYNC_VENDOR_SPECS` names. None, and a word about it, where it isn't
/// there, which is a failure in CI.
pub(super) fn description(file: &str) -> Option<PathBuf> {
    let folder =
        variable("WEDSYNC_VENDOR_SPECS").map_or_else(|| PathBuf::from("../../shared/vendor-specs"), PathBuf::from);
    let path = folder.join(file);
    if path.is_file() { Some(path) } else { missing(&format!("{file} is not there")) }
}

fn missing<T>(what: &str) -> Option<T> {
    assert!(variable("CI").as_deref() != Some("true"), "{what}");
    println!("skipped: {what}");
    None
}

fn start(modules: &Path, description: &Path) -> Prism {
    // The port may be taken by somebody else before Prism asks for it.
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let mut process = Command::new("node")
            .arg("../tests/harness/prism.mjs")
            .args([modules, description])
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("node runs");
        if is_serving(&mut process, port) {
            return Prism { base: format!("http://127.0.0.1:{port}"), _process: process };
        }
    }
    panic!("Prism doesn't serve {}", description.display());
}

/// False if it ended.
fn is_serving(process: &mut Child, port: u16) -> bool {
    let start = Instant::now();
    while start.elapsed() < START_WITHIN {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        if process.try_wait().expect("its state").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = process.kill();
    panic!("Prism takes longer than {START_WITHIN:?} to start");
}

fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests find the vendors' descriptions and npm's packages by the environment"
    )]
    std::env::var(name).ok()
}
