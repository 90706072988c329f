//! Systems of others on loopback, as their own documentation describes them: WedSync's database as PostgREST serves it, and
//! WedMe's API of couples' profiles. They hold a request to its form, keep what it says, and tell what they kept.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

/// What callers show.
pub(super) const KEY: &str = "rose-and-oak-key";
/// Changes that wait to be read; whoever makes more is told to come back.
const WAITING_MAX: usize = 1_000;

/// A row that was changed.
pub(super) struct Changed {
    pub(super) table: String,
    pub(super) old: Value,
    pub(super) new: Value,
}

/// Tables of one row each, by name: the row's key, and the row.
type Rows = HashMap<String, (&'static str, Value)>;

/// The database.
#[derive(Clone)]
pub(super) struct Database {
    rows: Arc<Mutex<Rows>>,
    changes: mpsc::Sender<Changed>,
}

impl Database {
    /// Serves these rows; what is written by others can be read from what it gives.
    pub(super) async fn start(rows: Rows) -> std::io::Result<(SocketAddr, Self, mpsc::Receiver<Changed>)> {
        let (changes, changed) = mpsc::channel(WAITING_MAX);
        let database = Self { rows: Arc::new(Mutex::new(rows)), changes };
        let app = Router::new().route("/{table}", get(select).patch(update)).with_state(database.clone());
        Ok((serve(app).await?, database, changed))
    }

    /// Sets columns of a table's row, as the application does.
    pub(super) fn set(&self, table: &str, columns: &Value) -> Option<Changed> {
        let mut rows = lock(&self.rows);
        let (_, row) = rows.get_mut(table)?;
        let old = row.clone();
        columns.as_object()?.iter().for_each(|(name, value)| row[name] = value.clone());
        Some(Changed { table: table.to_owned(), old, new: row.clone() })
    }

    /// The row that a request asks for, in a list.
    fn found(&self, table: &str, query: &HashMap<String, String>) -> Option<Value> {
        let rows = lock(&self.rows);
        let (key, row) = rows.get(table)?;
        let is_meant = query.get(*key).and_then(|filter| filter.strip_prefix("eq.")) == row[*key].as_str();
        Some(if is_meant { json!([row]) } else { json!([]) })
    }
}

async fn select(
    State(database): State<Database>,
    Path(table): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if !shows_key(&headers) {
        return refused();
    }
    database.found(&table, &query).map_or_else(not_found, |rows| Json(rows).into_response())
}

async fn update(
    State(database): State<Database>,
    Path(table): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    Json(columns): Json<Value>,
) -> Response {
    if !shows_key(&headers) {
        return refused();
    }
    match database.found(&table, &query) {
        None => not_found(),
        Some(rows) if rows == json!([]) => Json(rows).into_response(),
        Some(_) => match database.set(&table, &columns) {
            Some(changed) => {
                let row = json!([changed.new]);
                let taken = database.changes.try_send(changed);
                taken.map_or_else(|_| StatusCode::SERVICE_UNAVAILABLE.into_response(), |()| Json(row).into_response())
            }
            None => not_found(),
        },
    }
}

/// WedMe: one couple's profile, whose fields have each a version.
#[derive(Clone)]
pub(super) struct WedMe(Arc<Mutex<Value>>);

impl WedMe {
    pub(super) async fn start(couple: &str) -> std::io::Result<(SocketAddr, Self)> {
        let wedme = Self(Arc::new(Mutex::new(json!({ "id": couple, "version": 0, "fields": {} }))));
        let app = Router::new()
            .route("/v1/clients", get(profiles))
            .route("/v1/clients/{id}", get(profile).patch(merge))
            .with_state(wedme.clone());
        Ok((serve(app).await?, wedme))
    }

    /// Sets fields; the profile's version then.
    pub(super) fn set(&self, fields: &Map<String, Value>, at: &str) -> u64 {
        let mut profile = lock(&self.0);
        let version = profile["version"].as_u64().unwrap_or_default() + 1;
        for (name, value) in fields {
            profile["fields"][name] = json!({ "value": value, "version": version, "at": at });
        }
        profile["version"] = version.into();
        version
    }
}

async fn profiles(State(wedme): State<WedMe>, headers: HeaderMap) -> Response {
    if !shows_key(&headers) {
        return refused();
    }
    Json(json!({ "items": [*lock(&wedme.0)] })).into_response()
}

async fn profile(State(wedme): State<WedMe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let profile = lock(&wedme.0);
    match (shows_key(&headers), profile["id"] == id) {
        (false, _) => refused(),
        (true, false) => not_found(),
        (true, true) => Json(profile.clone()).into_response(),
    }
}

/// No field here is changed by anybody meanwhile, so that what is seen is never too old.
async fn merge(
    State(wedme): State<WedMe>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if !shows_key(&headers) {
        return refused();
    }
    let Some(given) = body["fields"].as_object() else { return StatusCode::UNPROCESSABLE_ENTITY.into_response() };
    let fields = given.iter().map(|(name, field)| (name.clone(), field["value"].clone())).collect();
    let version = wedme.set(&fields, "2026-01-01T00:00:00Z");
    Json(json!({ "id": id, "version": version, "skipped": [] })).into_response()
}

fn shows_key(headers: &HeaderMap) -> bool {
    headers.get(AUTHORIZATION).is_some_and(|shown| shown == format!("Bearer {KEY}").as_str())
}

fn refused() -> Response {
    (StatusCode::UNAUTHORIZED, Json(json!({ "message": "no such key" }))).into_response()
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "message": "not found" }))).into_response()
}

async fn serve(app: Router) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    #[expect(clippy::disallowed_methods, reason = "peers outside of the system, which no chassis drains")]
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
