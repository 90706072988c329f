//! Endpoints as the store holds them. Secrets and custom headers are sealed with the organization's data key, each bound
//! to its endpoint.

use std::{collections::BTreeMap, sync::Arc};

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKeys, place},
    signature::WebhookSecret,
    store::Store,
    with,
};
use serde::{Deserialize, Serialize};

use super::{Endpoint, KeptSecret, Settings, Since, State};

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    settings: String,
    sealed: Vec<u8>,
    state: i64,
    state_reason: String,
    announce: i64,
    version: i64,
    log_id: String,
    sequence: i64,
    created_at: i64,
    updated_at: i64,
}

/// What nobody may read in the store.
#[derive(Serialize, Deserialize)]
struct Sealed {
    secrets: Vec<(String, Option<i64>)>,
    headers: BTreeMap<String, String>,
}

/// Keeps a new endpoint.
///
/// # Errors
/// Those of the store.
pub(crate) async fn insert(store: &Store, keys: &DataKeys, endpoint: &Endpoint) -> Result<()> {
    let (settings, sealed) = (print(&endpoint.settings)?, seal(keys, endpoint).await?);
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO endpoints (id, organization_id, supplier_id, settings, sealed, state, state_reason, announce, version, log_id,
             sequence, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(&*endpoint.id)
    .bind(endpoint.organization.as_str())
    .bind(&endpoint.settings.supplier_id)
    .bind(settings)
    .bind(sealed)
    .bind(endpoint.state as i64)
    .bind(&endpoint.state_reason)
    .bind(i64::from(endpoint.announce))
    .bind(number(endpoint.version))
    .bind(&endpoint.since.log_id)
    .bind(number(endpoint.since.sequence))
    .bind(endpoint.created_at.as_microsecond())
    .bind(endpoint.updated_at.as_microsecond())
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Keeps an endpoint's next version.
///
/// # Errors
/// `Error::Aborted` if the store doesn't hold the version before it; those of the store.
pub(crate) async fn update(store: &Store, keys: &DataKeys, endpoint: &Endpoint) -> Result<()> {
    let (settings, sealed) = (print(&endpoint.settings)?, seal(keys, endpoint).await?);
    let updated = with!(store.writer(), c => sqlx::query(
        "UPDATE endpoints SET supplier_id = $3, settings = $4, sealed = $5, state = $6, state_reason = $7, announce = $8, version = $9,
             updated_at = $10
         WHERE id = $1 AND organization_id = $2 AND version = $9 - 1",
    )
    .bind(&*endpoint.id)
    .bind(endpoint.organization.as_str())
    .bind(&endpoint.settings.supplier_id)
    .bind(settings)
    .bind(sealed)
    .bind(endpoint.state as i64)
    .bind(&endpoint.state_reason)
    .bind(i64::from(endpoint.announce))
    .bind(number(endpoint.version))
    .bind(endpoint.updated_at.as_microsecond())
    .execute(c).await.map(|done| done.rows_affected()))?;
    if updated == 1 { Ok(()) } else { Err(Error::Aborted("the endpoint was changed meanwhile: read it again".into())) }
}

/// Forgets an endpoint.
///
/// # Errors
/// Those of the store.
pub(crate) async fn delete(store: &Store, endpoint: &Endpoint) -> Result<()> {
    with!(store.writer(), c => sqlx::query("DELETE FROM endpoints WHERE id = $1 AND organization_id = $2")
        .bind(&*endpoint.id).bind(endpoint.organization.as_str()).execute(c).await.map(drop))?;
    Ok(())
}

/// Notes that an endpoint's end was published, if it still is at that version.
///
/// # Errors
/// Those of the store.
pub(crate) async fn announced(store: &Store, endpoint: &Endpoint) -> Result<()> {
    with!(store.writer(), c => sqlx::query("UPDATE endpoints SET announce = 0 WHERE id = $1 AND version = $2")
        .bind(&*endpoint.id).bind(number(endpoint.version)).execute(c).await.map(drop))?;
    Ok(())
}

/// Up to `limit` endpoints of all organizations, by id, after `after`.
///
/// # Errors
/// Those of the store; `Error::Internal` for a row that can't be opened.
pub(crate) async fn page(store: &Store, keys: &DataKeys, after: &str, limit: u32) -> Result<Vec<Endpoint>> {
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT id, organization_id, settings, sealed, state, state_reason, announce, version, log_id, sequence, created_at, updated_at
         FROM endpoints WHERE id > $1 ORDER BY id LIMIT $2",
    ).bind(after).bind(i64::from(limit)).fetch_all(c).await)?;
    let mut endpoints = Vec::with_capacity(rows.len());
    for row in rows {
        endpoints.push(open(keys, row).await?);
    }
    Ok(endpoints)
}

/// Ids of an organization's endpoints, in order, after `after`; only a supplier's if one is named.
///
/// # Errors
/// Those of the store.
pub(crate) async fn ids(
    store: &Store,
    organization: &OrganizationId,
    supplier: &str,
    after: &str,
    limit: u32,
) -> Result<Vec<String>> {
    let ids = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT id FROM endpoints WHERE organization_id = $1 AND id > $2 AND ($3 = '' OR supplier_id = $3) ORDER BY id LIMIT $4",
    ).bind(organization.as_str()).bind(after).bind(supplier).bind(i64::from(limit)).fetch_all(c).await)?;
    Ok(ids)
}

async fn seal(keys: &DataKeys, endpoint: &Endpoint) -> Result<Vec<u8>> {
    let secret = |kept: &KeptSecret| (kept.secret.expose().to_owned(), kept.expires_at.map(|at| at.as_microsecond()));
    let sealed =
        Sealed { secrets: endpoint.secrets.iter().map(secret).collect(), headers: endpoint.settings.headers.clone() };
    let plain = serde_json::to_vec(&sealed).map_err(Error::internal)?;
    Ok(keys.of(&endpoint.organization).await?.seal(&place("endpoints", "sealed", &endpoint.id), &plain))
}

async fn open(keys: &DataKeys, row: Row) -> Result<Endpoint> {
    let organization = OrganizationId::parse(&row.organization_id)?;
    let plain = keys.of(&organization).await?.open(&place("endpoints", "sealed", &row.id), &row.sealed)?;
    let sealed: Sealed = serde_json::from_slice(&plain).map_err(Error::internal)?;
    let mut settings: Settings = serde_json::from_str(&row.settings).map_err(Error::internal)?;
    settings.headers = sealed.headers;
    let secret = |(text, expires_at): (String, Option<i64>)| {
        WebhookSecret::parse(&text).map(|secret| KeptSecret { secret, expires_at: expires_at.map(from_micros) })
    };
    let mut endpoint = Endpoint {
        id: row.id.into(),
        organization,
        compiled: Arc::default(),
        settings,
        secrets: sealed.secrets.into_iter().map(secret).collect::<Result<_>>()?,
        state: State::from_number(row.state).unwrap_or(State::Disabled),
        state_reason: row.state_reason,
        announce: row.announce != 0,
        version: unsigned(row.version),
        since: Since { log_id: row.log_id, sequence: unsigned(row.sequence) },
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
    };
    match endpoint.settings.check() {
        Ok(compiled) => endpoint.compiled = Arc::new(compiled),
        // An older version took what this one refuses: that must not keep the others from starting.
        Err(error) => {
            tracing::error!(endpoint.id = %endpoint.id, %error, "an endpoint's settings don't hold any more: it gets nothing");
            (endpoint.state, endpoint.state_reason) =
                (State::Disabled, format!("its settings don't hold any more: {error}"));
        }
    }
    Ok(endpoint)
}

fn print(settings: &Settings) -> Result<String> {
    serde_json::to_string(settings).map_err(Error::internal)
}

fn number(unsigned: u64) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use chassis::{
        clock::Clock,
        config::Secret,
        secret::{Keyring, KeyringSettings, generate_master_key},
        testing::{noon, on_each_engine},
    };

    use super::*;
    use crate::{
        MIGRATIONS,
        endpoint::tests::{endpoint, settings},
    };

    fn keys(store: &Store) -> DataKeys {
        let master_keys: Vec<Secret> = vec![generate_master_key(&Clock::System)];
        DataKeys::new(store.clone(), Keyring::new(&KeyringSettings { master_keys }).expect("a key"), Clock::System)
    }

    fn full() -> Endpoint {
        let mut settings = settings();
        settings.headers.insert("authorization".to_owned(), "Bearer hush".to_owned());
        settings.condition = "new.a".to_owned();
        settings.schedule = vec![Duration::from_millis(1_500)];
        settings.granted_fields = BTreeSet::from(["email".to_owned()]);
        let mut endpoint = endpoint("11111111-1111-7111-8111-111111111111", settings);
        endpoint.rotate(WebhookSecret::generate(), Duration::from_secs(60), noon()).expect("one secret signs");
        endpoint
    }

    #[tokio::test]
    async fn an_endpoint_comes_back_as_it_was_kept_and_its_secrets_are_not_legible() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &MIGRATIONS], async |store: Store| {
            let (keys, kept) = (keys(&store), full());
            insert(&store, &keys, &kept).await.expect("it is kept");
            let read = page(&store, &keys, "", 10).await.expect("it is read").pop().expect("one endpoint");
            assert_eq!(
                (&read.settings, &read.since, read.state, read.version),
                (&kept.settings, &kept.since, kept.state, kept.version)
            );
            assert_eq!(read.signing(noon()).len(), 2);
            assert_eq!(read.secrets[0].secret.expose(), kept.secrets[0].secret.expose());
            assert!(read.compiled.condition.is_some() && read.compiled.headers.contains_key("authorization"));
            let (settings, sealed): (String, Vec<u8>) =
                with!(store.reader(), c => sqlx::query_as("SELECT settings, sealed FROM endpoints").fetch_one(c).await)
                    .expect("the row");
            assert!(!settings.contains("hush") && !String::from_utf8_lossy(&sealed).contains("whsec_"));
        })
        .await;
    }

    #[tokio::test]
    async fn only_the_next_version_is_kept() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &MIGRATIONS], async |store: Store| {
            let (keys, mut endpoint) = (keys(&store), full());
            insert(&store, &keys, &endpoint).await.expect("it is kept");
            endpoint.version = 2;
            update(&store, &keys, &endpoint).await.expect("version 2 follows 1");
            assert!(matches!(update(&store, &keys, &endpoint).await, Err(Error::Aborted(_))));
        })
        .await;
    }
}
