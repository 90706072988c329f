//! Looks for a person in what is sealed and named by no column: deliveries, events on their way, webhooks that were set aside,
//! lines of imports. A page is read at a time, and what concerns them goes row by row, so that others may write between.

use std::sync::Arc;

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    lane::{State, rows::open_content},
    secret::{DataKey, place},
    with,
};
use prost::Message as _;
use proto::router::v1 as wire;

use super::{Subject, Taken};
use crate::{
    import::{Example, Refusal},
    resolve::Resolver,
    sync::letter::Letter,
};

const PAGE: i64 = 200;

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    /// A lane or a name, whatever tells what the body is.
    name: String,
    state: i64,
    body: Option<Vec<u8>>,
}

/// One place where a person may be.
struct Place {
    /// Of an organization, after an id, ordered by either of two keys.
    select: &'static str,
    forget: &'static str,
}

const DELIVERIES: Place = Place {
    select: "SELECT id, event_id AS name, CAST(state AS BIGINT) AS state, content AS body FROM deliveries WHERE organization_id = $1 AND id > $2 \
         AND ordering_key IN ($3, $4) ORDER BY id LIMIT $5",
    forget: "UPDATE deliveries SET content = NULL WHERE organization_id = $1 AND id = $2",
};
const OUTBOX: Place = Place {
    select: "SELECT sequence AS id, event_id AS name, CAST(CASE WHEN lane_id = '' THEN 0 ELSE 1 END AS BIGINT) AS state, event AS body \
         FROM outbox WHERE organization_id = $1 AND sequence > $2 AND ordering_key IN ($3, $4) ORDER BY sequence LIMIT $5",
    forget: "DELETE FROM outbox WHERE organization_id = $1 AND sequence = $2",
};
/// What waits will be taken as said before the erasure.
const SPOOL: Place = Place {
    select: "SELECT sequence AS id, event_id AS name, CAST(0 AS BIGINT) AS state, body FROM inbound_spool \
         WHERE organization_id = $1 AND sequence > $2 AND refused <> '' AND $3 IS NOT NULL AND $4 IS NOT NULL \
         ORDER BY sequence LIMIT $5",
    forget: "DELETE FROM inbound_spool WHERE organization_id = $1 AND sequence = $2",
};
const ANSWERS: &str = "UPDATE attempts SET response = NULL WHERE delivery = $1 AND response IS NOT NULL";

impl Resolver {
    /// Forgets what concerns the person; with `dry`, only counts it.
    pub(super) async fn sweep(&self, subject: &Subject<'_>, dry: bool) -> Result<Taken> {
        let key = self.keys.of(&subject.key.organization).await?;
        let mut taken = Taken::default();
        self.deliveries(subject, &key, dry, &mut taken).await?;
        let about = |row: &Row| {
            let sealed = row.body.as_deref().unwrap_or_default();
            let plain = Bytes::from(key.open(&place("outbox", "event", &row.name), sealed)?);
            Ok(if row.state == 0 { is_event(subject, plain) } else { is_about(subject, &Letter::open(plain)?) })
        };
        taken.events = self.forget(&OUTBOX, subject, dry, about).await?;
        let about = |row: &Row| {
            let sealed = row.body.as_deref().unwrap_or_default();
            Ok(subject.is_in(&key.open(&place("inbound_spool", "body", &row.name), sealed)?))
        };
        taken.webhooks += self.forget(&SPOOL, subject, dry, about).await?;
        taken.lines = self.lines(subject, &key, dry).await?;
        Ok(taken)
    }

    /// Letters lose what they say, and end at their time; so do webhooks that have ended and could be sent again. What was
    /// answered to anything of the same order goes.
    async fn deliveries(&self, subject: &Subject<'_>, key: &Arc<DataKey>, dry: bool, taken: &mut Taken) -> Result<()> {
        let mut after = i64::MIN;
        loop {
            let rows = self.page(&DELIVERIES, subject, after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id;
            for row in rows {
                let content = row.body.as_deref().map(|sealed| open_content(key, row.id, sealed)).transpose()?;
                let is_final = State::from_number(row.state).is_none_or(State::is_final);
                let (letter, webhook) = match content {
                    Some(plain) => {
                        match Letter::open(plain.clone()).ok().filter(|letter| letter.event_id == row.name) {
                            Some(letter) => (is_about(subject, &letter), false),
                            None => (false, is_final && subject.is_in(&plain)),
                        }
                    }
                    None => (false, false),
                };
                taken.letters += u64::from(letter);
                taken.webhooks += u64::from(webhook);
                if dry {
                    continue;
                }
                if letter || webhook {
                    self.forget_row(&DELIVERIES, subject, row.id).await?;
                }
                with!(self.store.writer(), c => sqlx::query(ANSWERS).bind(row.id).execute(c).await.map(drop))?;
            }
        }
    }

    async fn forget(
        &self,
        place: &Place,
        subject: &Subject<'_>,
        dry: bool,
        concerns: impl Fn(&Row) -> Result<bool>,
    ) -> Result<u64> {
        let (mut after, mut count) = (i64::MIN, 0);
        loop {
            let rows = self.page(place, subject, after).await?;
            let Some(last) = rows.last() else { return Ok(count) };
            after = last.id;
            for row in rows {
                if concerns(&row)? {
                    count += 1;
                    if !dry {
                        self.forget_row(place, subject, row.id).await?;
                    }
                }
            }
        }
    }

    async fn page(&self, place: &Place, subject: &Subject<'_>, after: i64) -> Result<Vec<Row>> {
        let [own, wedding] = &subject.orders;
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as(place.select)
                .bind(subject.key.organization.as_str())
                .bind(after)
                .bind(own)
                .bind(wedding)
                .bind(PAGE)
                .fetch_all(c)
                .await
        })?;
        Ok(rows)
    }

    async fn forget_row(&self, place: &Place, subject: &Subject<'_>, id: i64) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query(place.forget).bind(subject.key.organization.as_str()).bind(id).execute(c).await.map(drop)
        })?;
        Ok(())
    }

    /// What imports quote: refused rows, and records that differed.
    async fn lines(&self, subject: &Subject<'_>, key: &DataKey, dry: bool) -> Result<u64> {
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let rows: Vec<(String, Vec<u8>, Vec<u8>)> = with!(self.store.reader(), c => {
                sqlx::query_as(
                    "SELECT id, refusals, examples FROM imports WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3",
                )
                .bind(subject.key.organization.as_str())
                .bind(&after)
                .bind(PAGE)
                .fetch_all(c)
                .await
            })?;
            let Some((last, ..)) = rows.last() else { return Ok(count) };
            after.clone_from(last);
            for (id, refusals, examples) in rows {
                let place = |column| place("imports", column, &id);
                let mut refused: Vec<Refusal> = read(&key.open(&place("refusals"), &refusals)?)?;
                let mut differed: Vec<Example> = read(&key.open(&place("examples"), &examples)?)?;
                let before = refused.len() + differed.len();
                refused.retain(|line| !subject.is_in(&print(line)));
                differed.retain(|line| line.record_id != subject.key.id && !subject.is_in(&print(line)));
                let gone = before - refused.len() - differed.len();
                count += gone as u64;
                if gone > 0 && !dry {
                    let refusals = key.seal(&place("refusals"), &print(&refused));
                    let examples = key.seal(&place("examples"), &print(&differed));
                    with!(self.store.writer(), c => {
                        sqlx::query("UPDATE imports SET refusals = $2, examples = $3 WHERE id = $1")
                            .bind(&id)
                            .bind(&refusals)
                            .bind(&examples)
                            .execute(c)
                            .await
                            .map(drop)
                    })?;
                }
            }
        }
    }
}

fn is_event(subject: &Subject<'_>, plain: Bytes) -> bool {
    wire::Event::decode(plain).is_ok_and(|event| event.subject == subject.key.id)
}

/// About the record, or of what the couple or the wedding itself said.
fn is_about(subject: &Subject<'_>, letter: &Letter) -> bool {
    let is_record = letter.kind == subject.key.kind.as_str() && letter.record_id == subject.key.id;
    let is_theirs = letter.kind.is_empty() && [&letter.couple_id, &letter.wedding_id].contains(&&subject.key.id);
    is_record || is_theirs
}

fn read<T: serde::de::DeserializeOwned>(plain: &[u8]) -> Result<T> {
    serde_json::from_slice(plain).map_err(Error::internal)
}

fn print(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what was JSON is JSON")
}
