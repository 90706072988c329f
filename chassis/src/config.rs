//! Settings: defaults, then one TOML file, then environment variables; checked whole before the first socket is bound.
//!
//! One file may serve all services: a section of another service is tolerated, an unknown key in a section of ours is
//! not. `WEDSYNC_ROUTER__LISTEN` is `[router] listen`; variables without `__` are left alone (Kubernetes makes
//! `WEDSYNC_ROUTER_PORT` by itself).
//!
//! The defaults say which keys exist and what type each has, so every setting serializes: an absent value is `""`, `0`
//! or `[]`, never an `Option`; and the default of a secret is empty.

use std::{fmt, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned, de::Error as _};
use toml::{Table, Value};
use url::Url;

use crate::{outbound::OutboundSettings, secret::KeyringSettings};

/// Sections that the file may hold besides the shared ones, whoever reads it.
pub const SECTIONS: &[&str] = &["router", "vendor_sync", "notifier", "gateway"];

const PREFIX: &str = "WEDSYNC_";
const REDACTED: &str = "<redacted>";

/// The sections that every service has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Shared {
    /// What is logged, and how.
    pub telemetry: Telemetry,
    /// How services know each other.
    pub auth: Auth,
    /// The server's limits and its stop.
    pub server: ServerSettings,
    /// The keys that seal what is stored.
    pub secrets: KeyringSettings,
    /// The guarded way out.
    pub outbound: OutboundSettings,
}

impl Shared {
    /// Checks what types can't say.
    ///
    /// # Errors
    /// All problems at once, each with its section and key.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.auth.service_secret.expose().len() < 32 {
            problems
                .push("[auth] service_secret must have at least 32 characters, the same for all services".to_owned());
        }
        if let Err(error) = self.telemetry.filter.parse::<tracing_subscriber::EnvFilter>() {
            problems.push(format!("[telemetry] filter: {error}"));
        }
        if self.server.max_concurrent_streams == 0 || self.server.request_deadline_ms == 0 {
            problems.push("[server] max_concurrent_streams and request_deadline_ms must be above 0".to_owned());
        }
        all_of(problems)
    }
}

/// `[telemetry]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines look: `pretty` (default) or `json`.
    pub format: LogFormat,
    /// Which log lines are written, as directives of tracing's `EnvFilter`; default `info`.
    pub filter: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// `[auth]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// What services sign their tokens for each other with: at least 32 characters, the same for all; no default.
    pub service_secret: Secret,
}

/// `[server]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// How long a stop may take before what still runs is cut off, in milliseconds; default 15,000.
    pub stop_deadline_ms: u64,
    /// How long a call may take, in milliseconds; for a stream, until it answers. Default 30,000.
    pub request_deadline_ms: u64,
    /// How many calls and streams one connection carries at a time; default 100.
    pub max_concurrent_streams: u32,
    /// Whether the server describes its services to tools (gRPC server reflection); default false.
    pub reflection: bool,
    /// Whether we listen and call beyond loopback without TLS (behind a mesh or an ingress); default false.
    pub allow_plaintext: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            stop_deadline_ms: 15_000,
            request_deadline_ms: 30_000,
            max_concurrent_streams: 100,
            reflection: false,
            allow_plaintext: false,
        }
    }
}

impl ServerSettings {
    /// `stop_deadline_ms` as a duration.
    #[must_use]
    pub fn stop_deadline(&self) -> Duration {
        Duration::from_millis(self.stop_deadline_ms)
    }

    pub(crate) fn request_deadline(&self) -> Duration {
        Duration::from_millis(self.request_deadline_ms)
    }
}

/// Where a service keeps its data: `[router.store]` and its like.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// `sqlite:./data/router.db` or `postgres://user:password@host/database`; printed without its password.
    #[serde(serialize_with = "without_password")]
    pub url: Secret,
    /// The service's own PostgreSQL schema, `[a-z0-9_]+`; default `wedsync`. SQLite has none.
    pub schema: String,
    /// How many connections the pool may hold; default 8. On PostgreSQL there are two beside: of who owns the store, and of who
    /// commits all the time.
    pub max_connections: u32,
    /// Whether a commit may be lost in a power cut; for the control runs of power-cut tests alone. Default false.
    pub unsafe_durability: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            url: Secret::from("sqlite:./data/wedsync.db".to_owned()),
            schema: "wedsync".to_owned(),
            max_connections: 8,
            unsafe_durability: false,
        }
    }
}

fn without_password<S: Serializer>(url: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    let text = url.expose();
    if text.starts_with("sqlite:") {
        return serializer.serialize_str(text);
    }
    match Url::parse(text) {
        Ok(url) if url.password().is_none() && url.query().is_none() => serializer.serialize_str(text),
        Ok(mut url) => {
            url.set_query(None);
            // Only a URL without a host refuses one, and that has none to hide.
            let _ = url.set_password(Some("redacted"));
            serializer.serialize_str(url.as_str())
        }
        Err(_) => url.serialize(serializer),
    }
}

/// A setting that is never shown: neither printed, nor logged, nor in an error.
#[derive(Clone, Default)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }

    fn shown(&self) -> &'static str {
        if self.is_empty() { "" } else { REDACTED }
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == REDACTED { Err(D::Error::custom("is redacted: give the secret itself")) } else { Ok(text.into()) }
    }
}

/// This process's environment, for [`load`].
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    let variables = std::env::vars_os();
    variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// Reads all of `T`, whose fields are sections: defaults, then `file`, then `environment`.
///
/// # Errors
/// An unreadable file; else every unknown key and every wrong type at once, naming the file or the variable.
pub fn load<T>(file: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Result<T>
where
    T: Serialize + DeserializeOwned + Default,
{
    let defaults = Table::try_from(T::default()).context("default settings")?;
    let file = file.map(read).transpose()?;
    Ok(merged(defaults, file, environment)?.try_into()?)
}

/// Reads the shared sections and section `name` as `T`, for a service that runs by itself.
///
/// # Errors
/// As [`load`].
pub fn load_section<T>(
    name: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Shared, T)>
where
    T: Serialize + DeserializeOwned + Default,
{
    sections(name, file.map(read).transpose()?, environment)
}

fn sections<T>(
    name: &str,
    file: Option<Text>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Shared, T)>
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut defaults = Table::try_from(Shared::default()).context("default settings")?;
    defaults.insert(name.to_owned(), Value::Table(Table::try_from(T::default()).context("default settings")?));
    let mut table = merged(defaults, file, environment)?;
    let section = table.remove(name).expect("it stands among the defaults");
    let section = section.try_into().with_context(|| format!("[{name}]"))?;
    Ok((table.try_into()?, section))
}

/// `settings` as TOML that [`load`] takes, without the secrets.
#[must_use]
pub fn print<T: Serialize>(settings: &T) -> String {
    toml::to_string_pretty(settings).unwrap_or_else(|error| format!("# not printable: {error}\n"))
}

/// The shared sections and section `name`, as TOML, without the secrets.
#[must_use]
pub fn print_section<T: Serialize>(shared: &Shared, name: &str, section: &T) -> String {
    format!("{}\n{}", print(shared), print(&std::collections::BTreeMap::from([(name, section)])))
}

/// A file's content, and what it is called in errors.
struct Text {
    origin: String,
    text: String,
}

fn read(path: &Path) -> Result<Text> {
    let origin = path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| format!("read {origin}"))?;
    Ok(Text { origin, text })
}

fn merged(
    defaults: Table,
    file: Option<Text>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Table> {
    let mut table = defaults;
    let mut problems = Vec::new();
    if let Some(Text { origin, text }) = file {
        let mut given: Table = text.parse().map_err(|error| unparsable(&origin, &text, &error))?;
        given.retain(|name, _| !is_elsewhere(&table, name));
        overlay(&mut table, given, "", &origin, &mut problems);
    }
    for (variable, text) in environment {
        if let Err(problem) = overlay_variable(&mut table, &variable, &text) {
            problems.push(problem);
        }
    }
    all_of(problems)?;
    Ok(table)
}

/// Where a file isn't TOML, and why, without the line itself: it may hold a secret.
fn unparsable(origin: &str, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    anyhow::anyhow!("{origin}: line {line}, column {column}: {}", error.message())
}

/// Whether `section` belongs to a service that isn't running here.
fn is_elsewhere(table: &Table, section: &str) -> bool {
    !table.contains_key(section) && SECTIONS.contains(&section)
}

fn overlay(table: &mut Table, given: Table, above: &str, origin: &str, problems: &mut Vec<String>) {
    for (key, value) in given {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match (table.get_mut(&key), value) {
            (None, _) => problems.push(format!("{origin}: unknown key {path}")),
            // Nothing among the defaults: its keys are names that the file gives, and what they hold is read as its type.
            (Some(Value::Table(known)), Value::Table(given)) if known.is_empty() => *known = given,
            (Some(Value::Table(known)), Value::Table(given)) => overlay(known, given, &path, origin, problems),
            (Some(Value::Float(known)), Value::Integer(given)) => *known = given as f64,
            (Some(known), given) if known.same_type(&given) => *known = given,
            (Some(known), given) => {
                problems.push(format!("{origin}: {path} must be {}, not {}", known.type_str(), given.type_str()));
            }
        }
    }
}

fn overlay_variable(table: &mut Table, variable: &str, text: &str) -> Result<(), String> {
    let Some((section, rest)) = variable.strip_prefix(PREFIX).and_then(|name| name.split_once("__")) else {
        return Ok(());
    };
    let section = section.to_ascii_lowercase();
    if is_elsewhere(table, &section) {
        return Ok(());
    }
    let unknown = || format!("environment: unknown setting {variable}");
    let mut known = table.get_mut(&section).ok_or_else(unknown)?;
    for key in rest.split("__") {
        known = known.as_table_mut().and_then(|table| table.get_mut(&key.to_ascii_lowercase())).ok_or_else(unknown)?;
    }
    *known = parsed(text, known).ok_or_else(|| format!("environment: {variable} must be {}", known.type_str()))?;
    Ok(())
}

/// `text` as a value of the type of `like`; a list is separated by commas.
fn parsed(text: &str, like: &Value) -> Option<Value> {
    match like {
        Value::String(_) => Some(Value::String(text.to_owned())),
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Float(_) => text.parse().ok().map(Value::Float),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

fn all_of(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(default)]
    struct Router {
        listen: String,
        limit: u32,
        tags: Vec<String>,
        store: StoreSettings,
    }

    impl Default for Router {
        fn default() -> Self {
            let store =
                StoreSettings { url: Secret::from("sqlite:./router.db".to_owned()), ..StoreSettings::default() };
            Self { listen: "127.0.0.1:7410".to_owned(), limit: 10, tags: Vec::new(), store }
        }
    }

    fn router(file: &str, environment: &[(&str, &str)]) -> Result<(Shared, Router)> {
        let text = Text { origin: "wedsync.toml".to_owned(), text: file.to_owned() };
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        sections("router", Some(text), environment)
    }

    #[test]
    fn the_environment_overrides_the_file_and_the_file_the_defaults() {
        let file = "[router]\nlisten = '127.0.0.1:1'\nlimit = 2\n[router.store]\nschema = 'own'";
        let environment = [
            ("WEDSYNC_ROUTER__LIMIT", "3"),
            ("WEDSYNC_ROUTER__TAGS", "a, b"),
            ("WEDSYNC_ROUTER__STORE__MAX_CONNECTIONS", "4"),
        ];
        let (shared, router) = router(file, &environment).expect("well-formed settings");
        assert_eq!((router.listen.as_str(), router.limit), ("127.0.0.1:1", 3));
        assert_eq!(router.tags, ["a", "b"]);
        assert_eq!((router.store.schema.as_str(), router.store.max_connections), ("own", 4));
        assert_eq!(router.store.url.expose(), "sqlite:./router.db", "the service's own default stays");
        assert_eq!(shared.server.stop_deadline_ms, 15_000);
    }

    #[test]
    fn a_map_takes_names_of_the_files_and_the_environment_overrides_what_they_hold() {
        #[derive(Default, Serialize, Deserialize)]
        #[serde(default)]
        struct Named {
            sources: std::collections::BTreeMap<String, StoreSettings>,
        }
        let read = |file: &str, environment: &[(&str, &str)]| {
            let text = Text { origin: "wedsync.toml".to_owned(), text: file.to_owned() };
            let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            sections::<Named>("router", Some(text), environment).map(|(_, section)| section)
        };
        let file = "[router.sources.main]\nurl = ''\nschema = 'own'";
        let named = read(file, &[("WEDSYNC_ROUTER__SOURCES__MAIN__URL", "hunter2")]).expect("well-formed settings");
        let main = &named.sources["main"];
        assert_eq!((main.url.expose(), main.schema.as_str(), main.max_connections), ("hunter2", "own", 8));
        let error = read("[router.sources.main]\nschemas = 'own'", &[]).map(drop).expect_err("a mistake");
        assert!(format!("{error:#}").contains("schemas"), "{error:#}");
    }

    #[test]
    fn every_unknown_key_and_wrong_type_is_named_at_once() {
        let file = "[router]\nlisen = 'x'\nlimit = 'many'\n[ruoter]\n[telemetry]\nformat = 'json'\ncolour = true";
        let environment = [("WEDSYNC_ROUTER__LIMITS", "3"), ("WEDSYNC_AUTH__SERVICE_SECRET__X", "4")];
        let problems = router(file, &environment).expect_err("five mistakes").to_string();
        for named in [
            "unknown key router.lisen",
            "router.limit must be integer, not string",
            "unknown key ruoter",
            "unknown key telemetry.colour",
            "WEDSYNC_ROUTER__LIMITS",
            "WEDSYNC_AUTH__SERVICE_SECRET__X",
        ] {
            assert!(problems.contains(named), "{named} is missing in:\n{problems}");
        }
    }

    #[test]
    fn sections_of_other_services_and_foreign_variables_are_left_alone() {
        let file = "[gateway]\nanything = 1\n[vendor_sync.store]\nurl = 'x'";
        let environment =
            [("WEDSYNC_VENDOR_SYNC__LISTEN", "x"), ("WEDSYNC_ROUTER_PORT", "tcp://10.0.0.1:7410"), ("HOME", "/root")];
        router(file, &environment).expect("only others are named");
    }

    #[test]
    fn secrets_are_printed_nowhere_and_a_redacted_one_is_refused() {
        let secret = "an-example-of-a-secret-of-32-chars";
        let file =
            format!("[auth]\nservice_secret = '{secret}'\n[router.store]\nurl = 'postgres://me:{secret}@db/wedsync'");
        let (shared, section) = router(&file, &[]).expect("well-formed settings");
        let printed = print_section(&shared, "router", &section);
        assert!(printed.contains("service_secret = \"<redacted>\"") && printed.contains("@db/wedsync"), "{printed}");
        for shown in [printed.as_str(), &format!("{shared:?}"), &format!("{section:?}")] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let error = router(&printed, &[]).expect_err("a redacted secret").to_string();
        assert!(error.contains("give the secret itself"), "{error}");
    }

    #[test]
    fn a_slip_in_the_file_is_named_by_its_place_and_its_line_is_not_shown() {
        for (line, column) in [("service_secret = \"hunter2", 26), ("service_secret = hunter2", 18), ("hunter2", 8)] {
            let error = router(&format!("[router]\nlimit = 2\n[auth]\n{line}\n"), &[]).expect_err(line);
            let shown = format!("{error:#}");
            assert!(shown.starts_with(&format!("wedsync.toml: line 4, column {column}: ")), "{shown}");
            assert!(!shown.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn printed_defaults_are_a_valid_file() {
        let printed = print_section(&Shared::default(), "router", &Router::default());
        let (_, section) = router(&printed, &[]).expect("our own text");
        assert_eq!(section.store.url.expose(), "sqlite:./router.db");
    }

    #[test]
    fn several_services_read_one_file_whole() {
        #[derive(Default, Serialize, Deserialize)]
        struct All {
            #[serde(flatten)]
            shared: Shared,
            router: Router,
        }
        let environment = [("WEDSYNC_SERVER__STOP_DEADLINE_MS", "7"), ("WEDSYNC_ROUTER__LIMIT", "8")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all: All = load(None, environment).expect("well-formed settings");
        assert_eq!((all.shared.server.stop_deadline_ms, all.router.limit), (7, 8));
    }

    #[test]
    fn settings_that_cannot_hold_are_refused_together() {
        let mut shared = Shared::default();
        shared.telemetry.filter = "chassis=loud".to_owned();
        let problems = shared.check().expect_err("two mistakes").to_string();
        assert!(problems.contains("service_secret") && problems.contains("filter"), "{problems}");
    }
}
