//! The statements that append to the log, in both dialects side by side: PostgreSQL takes whole columns (UNNEST), SQLite
//! rows of values, `OR FAIL`: a statement that fails ends the transaction, so that there is nothing to undo within it, and
//! no journal of it.

use std::collections::{HashMap, hash_map};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    store::{self, Engine, Kept, Tx, Writer},
};
use sqlx::{Postgres, QueryBuilder, Sqlite, postgres::PgArguments, query::Query};

use super::{Appended, Draft, number, stored};

/// Drafts in one statement on SQLite: for more, further statements cost little beside the rows, and would each be another
/// text to prepare.
const AT_ONCE_MAX: usize = 8;

/// Appends drafts that the log doesn't know in one trip to the store, a transaction of its own. False when it holds one of
/// them, when its head isn't `head` or its epoch another: then nothing was written, and the steps one by one say why.
///
/// # Errors
/// Those of the store; whether it was committed is not known then.
pub(super) async fn at_once(
    kept: &mut Engine<Writer, Kept>,
    drafts: &[&Draft],
    head: u64,
    epoch: i64,
    now: i64,
) -> Result<bool> {
    let fresh: Vec<_> = (head + 1..).map(stored).zip(drafts.iter().copied()).collect();
    let new_head = stored(head + fresh.len() as u64);
    let done = match kept {
        Engine::Sqlite(_) if fresh.len() > AT_ONCE_MAX => return Ok(false),
        Engine::Sqlite(writer) => {
            // `OR ROLLBACK`: `OR FAIL` would keep the rows before the one that is refused.
            let mut query = QueryBuilder::new("INSERT OR ROLLBACK ");
            query.push(INTO_EVENTS).push("SELECT * FROM (");
            push_values(&mut query, &fresh, now);
            query.push(") WHERE EXISTS (SELECT 1 FROM log WHERE epoch = ").push_bind(epoch);
            query.push(" AND head = ").push_bind(stored(head)).push(")");
            query.build().execute(&*writer).await.map(|done| done.rows_affected() > 0)
        }
        Engine::Postgres(kept) => {
            let mut connection = kept.take().await?;
            // An epoch or head that isn't ours makes the new head null, which the column refuses: nothing is written then.
            let query = sqlx::query(
                "WITH moved AS (UPDATE log SET head = CASE WHEN epoch = $11 AND head = $12 THEN $13 END)
                 INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
                 SELECT sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, $9, body
                 FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::bytea[], $10::bytea[])
                     AS t (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, body)",
            );
            let query = bind_columns(query, &fresh, now).bind(epoch).bind(stored(head)).bind(new_head);
            let done = store::answered(query.execute(&mut connection)).await;
            if done.as_ref().err().is_none_or(is_refusal) {
                kept.put_back(connection);
            }
            done.map(|_| true)
        }
    };
    match done {
        Ok(done) => Ok(done),
        Err(error) if is_refusal(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The log holds one of them, or isn't as it was believed to be.
fn is_refusal(error: &sqlx::Error) -> bool {
    let refusal = error.as_database_error();
    refusal.is_some_and(|it| it.is_unique_violation() || it.kind() == sqlx::error::ErrorKind::NotNullViolation)
}

/// Numbers and stores the drafts that the log doesn't know, and says what became of each.
pub(super) async fn step_by_step(tx: &mut Tx, drafts: &[&Draft], head: u64, now: i64) -> Result<Vec<Result<Appended>>> {
    let mut known = find_known(tx, drafts).await?;
    let mut appended = Vec::with_capacity(drafts.len());
    let mut fresh = Vec::with_capacity(drafts.len());
    for draft in drafts {
        match known.entry((draft.organization.clone(), draft.id.as_str())) {
            hash_map::Entry::Occupied(known) => appended.push(known.get().answer(draft)),
            hash_map::Entry::Vacant(unknown) => {
                let sequence = head + 1 + fresh.len() as u64;
                fresh.push((stored(sequence), *draft));
                unknown.insert(Known { sequence: stored(sequence), uid: draft.uid, content_hash: draft.content_hash });
                appended.push(Ok(draft.appended(sequence)));
            }
        }
    }
    insert_fresh(tx, &fresh, now).await?;
    Ok(appended)
}

/// An event that the log holds under the same id.
struct Known {
    sequence: i64,
    uid: [u8; 16],
    content_hash: [u8; 32],
}

impl Known {
    fn answer(&self, draft: &Draft) -> Result<Appended> {
        if self.content_hash != draft.content_hash {
            return Err(Error::AlreadyExists(format!(
                "event {} exists with other content: give this one an id of its own",
                draft.id
            )));
        }
        Ok(Appended { sequence: number(self.sequence), uid: self.uid, duplicate: true })
    }
}

/// Which of the drafts the log holds, by organization and id.
async fn find_known<'a>(tx: &mut Tx, drafts: &[&'a Draft]) -> Result<HashMap<(OrganizationId, &'a str), Known>> {
    type Row = (i64, i64, Vec<u8>, Vec<u8>);
    let mut rows: Vec<Row> = Vec::new();
    match tx.on() {
        Engine::Sqlite(connection) => {
            let placed: Vec<(i64, &Draft)> = (0..).zip(drafts.iter().copied()).collect();
            for part in store::parts(&placed) {
                let mut query = QueryBuilder::new("SELECT t.column1, e.sequence, e.uid, e.content_hash FROM (");
                query.push_values(part, |mut row, (place, draft)| {
                    row.push_bind(*place).push_bind(draft.organization.as_str()).push_bind(draft.id.as_str());
                });
                query.push(") AS t CROSS JOIN events AS e WHERE e.organization_id = t.column2 AND e.id = t.column3");
                rows.extend(query.build_query_as::<Row>().fetch_all(&mut *connection).await?);
            }
        }
        Engine::Postgres(connection) => {
            let query = sqlx::query_as(
                "SELECT t.place, e.sequence, e.uid, e.content_hash
                 FROM UNNEST($1::bigint[], $2::text[], $3::text[]) AS t (place, organization_id, id)
                 JOIN events AS e ON e.organization_id = t.organization_id AND e.id = t.id",
            )
            .bind((0..stored(drafts.len() as u64)).collect::<Vec<_>>())
            .bind(drafts.iter().map(|draft| draft.organization.as_str()).collect::<Vec<_>>())
            .bind(drafts.iter().map(|draft| draft.id.as_str()).collect::<Vec<_>>());
            rows = store::answered(query.fetch_all(connection)).await?;
        }
    }
    let known = rows.into_iter().map(|(place, sequence, uid, content_hash)| {
        let malformed = || Error::internal(anyhow::anyhow!("event {sequence} has a malformed uid or hash"));
        let draft = usize::try_from(place).ok().and_then(|place| drafts.get(place)).ok_or_else(malformed)?;
        let uid = uid.try_into().map_err(|_| malformed())?;
        let content_hash = content_hash.try_into().map_err(|_| malformed())?;
        Ok(((draft.organization.clone(), draft.id.as_str()), Known { sequence, uid, content_hash }))
    });
    known.collect()
}

async fn insert_fresh(tx: &mut Tx, fresh: &[(i64, &Draft)], now: i64) -> Result<()> {
    if fresh.is_empty() {
        return Ok(());
    }
    match tx.on() {
        Engine::Sqlite(connection) => {
            for part in store::parts(fresh) {
                let mut query = QueryBuilder::new("INSERT OR FAIL ");
                query.push(INTO_EVENTS);
                push_values(&mut query, part, now);
                query.build().execute(&mut *connection).await?;
            }
        }
        Engine::Postgres(connection) => {
            let query = sqlx::query(
                "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
                 SELECT sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, $9, body
                 FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::bytea[], $10::bytea[])
                     AS t (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, body)",
            );
            store::answered(bind_columns(query, fresh, now).execute(connection)).await?;
        }
    }
    Ok(())
}

/// What SQLite takes rows of values by; its trigger moves the head.
const INTO_EVENTS: &str =
    "INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body) ";

fn push_values(query: &mut QueryBuilder<Sqlite>, fresh: &[(i64, &Draft)], now: i64) {
    query.push_values(fresh, |mut row, (sequence, draft)| {
        row.push_bind(*sequence)
            .push_bind(draft.organization.as_str())
            .push_bind(draft.id.as_str())
            .push_bind(&draft.uid[..])
            .push_bind(draft.type_.as_str())
            .push_bind(draft.ordering_key.as_str())
            .push_bind(draft.priority)
            .push_bind(&draft.content_hash[..])
            .push_bind(now)
            .push_bind(&draft.body[..]);
    });
}

fn bind_columns<'q>(
    query: Query<'q, Postgres, PgArguments>,
    fresh: &[(i64, &Draft)],
    now: i64,
) -> Query<'q, Postgres, PgArguments> {
    let drafts = || fresh.iter().map(|(_, draft)| *draft);
    query
        .bind(fresh.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>())
        .bind(drafts().map(|draft| draft.organization.as_str()).collect::<Vec<_>>())
        .bind(drafts().map(|draft| draft.id.as_str()).collect::<Vec<_>>())
        .bind(drafts().map(|draft| &draft.uid[..]).collect::<Vec<_>>())
        .bind(drafts().map(|draft| draft.type_.as_str()).collect::<Vec<_>>())
        .bind(drafts().map(|draft| draft.ordering_key.as_str()).collect::<Vec<_>>())
        .bind(drafts().map(|draft| draft.priority).collect::<Vec<_>>())
        .bind(drafts().map(|draft| &draft.content_hash[..]).collect::<Vec<_>>())
        .bind(now)
        .bind(drafts().map(|draft| &draft.body[..]).collect::<Vec<_>>())
}
