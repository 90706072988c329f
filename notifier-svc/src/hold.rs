//! What waits for its time: quiet hours that end, digests that close, room in the limit.
//!
//! It sleeps until the next due time that the store knows, and no shorter. What is due is decided anew by the same rules,
//! with the wishes, the lists and the wedding's people as they are then; then it is sent, gathered, put off or dropped with
//! its reason, in one transaction that takes it only while it still waits.
//!
//! Guarantee: a crash loses nothing and repeats nothing: rows wait in the store until that transaction.

mod gathered;
mod release;

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::{OrganizationId, uuid},
    secret::DataKey,
    store::Tx,
    with,
};
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{
    gathered::{digest_of, goes_alone},
    release::{Release, gone},
};
use crate::{
    category,
    confirm::{self, Asked},
    digest::{Gathered, Item, gather},
    escalate::as_new,
    escalation, fact, inbox,
    kept::{self, Waiting},
    limit,
    notification::{NewMessage, NewNotification, Route, content_place, insert, insert_or_revive, message_uid, notice},
    policy::Stage,
    recipient::Person,
    resolve::{Fate, How, plan},
    tell::{Notifier, Subject, Text, count},
    template::{Texts, Wording},
    variable::{Variables, complete},
    workflow::{find, replaces},
};

/// People in one pass, and messages of one person.
const PEOPLE: i64 = 200;
const MESSAGES: i64 = 100;
/// How long to wait when something failed.
const PAUSE: Duration = Duration::from_secs(1);
/// What a gathered notification is called.
pub(crate) const WORKFLOW: &str = "digest";

/// A message that is due.
#[derive(sqlx::FromRow)]
struct Row {
    uid: Vec<u8>,
    notification_id: String,
    channel: String,
    how: i64,
    fact: String,
    created_at: i64,
}

/// A message that is due, and what came of it.
struct Verdict {
    uid: [u8; 16],
    channel: String,
    about: String,
    created_at: i64,
    how: i64,
    waiting: Arc<Waiting>,
    person: Option<Person>,
    /// As this person reads them.
    variables: Variables,
    /// How their organization puts things.
    wording: Arc<Wording>,
    fate: Fate,
    trail: Vec<String>,
    /// How long a confirmation is waited for, where one is asked for.
    asks: Option<Duration>,
}

/// Releases what is due until told to stop.
pub(crate) async fn run(notifier: Arc<Notifier>, stopping: CancellationToken) {
    let (clock, later) = (notifier.clock.clone(), Arc::clone(&notifier.later));
    while !stopping.is_cancelled() {
        match notifier.due().await {
            Ok(next) => {
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = later.notified() => {}
                    () = async { match next {
                        Some(next) => clock.sleep_until(next).await,
                        None => std::future::pending().await,
                    } } => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "what is due can't be released; trying again in a second");
                stopping.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }
}

impl Notifier {
    /// Does everything that is due; gives when the next is.
    async fn due(&self) -> Result<Option<Timestamp>> {
        // What goes wrong with one of them holds up none of the others.
        let (failed, released, escalated) = (self.fail_over().await, self.release().await, self.escalate().await);
        failed?;
        Ok(released?.into_iter().chain(escalated?).min())
    }

    /// Releases everything that is due; gives when the next is.
    ///
    /// # Errors
    /// Those of the store; one person's failure holds up nobody else.
    async fn release(&self) -> Result<Option<Timestamp>> {
        loop {
            let due = self.clock.now().as_microsecond();
            let people: Vec<(String, String)> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT DISTINCT organization_id, recipient_id FROM messages WHERE fate = 3 AND cancelled = 0 AND due_at <= $1 LIMIT $2",
            ).bind(due).bind(PEOPLE).fetch_all(c).await)?;
            if people.is_empty() {
                break;
            }
            let mut failed = None;
            for (organization, recipient) in people {
                let released = self.release_of(&OrganizationId::parse(&organization)?, &recipient).await;
                failed = released.err().or(failed);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let next: Option<i64> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT MIN(due_at) FROM messages WHERE fate = 3 AND cancelled = 0",
        ).fetch_one(c).await)?;
        Ok(next.map(from_micros))
    }

    /// Releases what is due of one person: first what goes out by itself, oldest first, then the digest.
    async fn release_of(&self, organization: &OrganizationId, recipient: &str) -> Result<()> {
        let _turn = self.turns.of(organization).await;
        // The turn may have come late: the limit counts from when they are told.
        let now = self.clock.now();
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT uid, notification_id, channel, how, fact, created_at FROM messages
             WHERE organization_id = $1 AND recipient_id = $2 AND fate = 3 AND cancelled = 0 AND due_at <= $3
             ORDER BY created_at LIMIT $4",
        )
        .bind(organization.as_str())
        .bind(recipient)
        .bind(now.as_microsecond())
        .bind(MESSAGES)
        .fetch_all(c).await)?;
        let mut notifications: Vec<(String, Vec<Row>)> = Vec::new();
        for row in rows {
            match notifications.iter_mut().find(|(id, _)| *id == row.notification_id) {
                Some((_, rows)) => rows.push(row),
                None => notifications.push((row.notification_id.clone(), vec![row])),
            }
        }
        let mut digest = Vec::new();
        for (id, rows) in notifications {
            let waiting = Arc::new(kept::read(&self.store, &self.keys, &id).await?);
            let (alone, others): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row| row.how == How::Deferred as i64 || goes_alone(&waiting));
            let verdicts = self.verdicts(&waiting, recipient, alone, now).await?;
            self.settle(organization, recipient, verdicts, Vec::new(), now).await?;
            digest.push((waiting, others));
        }
        // Only now: what went out by itself counts for the limit.
        let mut gathered = Vec::new();
        for (waiting, rows) in digest {
            gathered.extend(self.verdicts(&waiting, recipient, rows, now).await?);
        }
        self.close(organization, recipient, gathered, now).await
    }

    /// Decides anew about a person's messages of one notification.
    async fn verdicts(
        &self,
        waiting: &Arc<Waiting>,
        recipient: &str,
        rows: Vec<Row>,
        now: Timestamp,
    ) -> Result<Vec<Verdict>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (organization, kept) = (&waiting.organization, &waiting.kept);
        let mut people = self.directory.people(organization, kept.named()).await?;
        people.retain(|person| person.id == recipient);
        let fact = fact::of(waiting.workflow.name, &kept.variables);
        let wedding_day = self.wedding_day(organization, kept).await?;
        let urgency = kept.urgency(&waiting.asked, waiting.priority);
        let asks = escalation::asks(&waiting.asked);
        let asks = asks.then(|| escalation::wait(urgency, wedding_day, &self.escalation));
        let mut verdicts = Vec::with_capacity(rows.len());
        for row in rows {
            let uid: [u8; 16] =
                row.uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
            let known = self.known_of(organization, &people, fact.as_ref(), Some(&uid)).await?;
            known.localize(&mut people);
            let subject =
                Subject { asked: &waiting.asked, workflow: waiting.workflow, priority: waiting.priority, kept };
            let mut question = subject.question(&people, &known, now, Stage::Released, wedding_day);
            question.advertises = !self.postal_address.is_empty();
            question.news = fact.as_ref().map(|fact| &*fact.new);
            let mut planned = plan(&question, &self.channels);
            let planned =
                planned.iter().position(|planned| planned.channel == row.channel).map(|at| planned.remove(at));
            let (fate, trail) = planned.map_or_else(gone, |planned| (planned.fate, planned.trail));
            let person = people.first().cloned();
            let variables = person.as_ref().map_or_else(Variables::new, |person| {
                self.own(&known.variables(&kept.variables, person, &row.channel, fact.as_ref()), person)
            });
            verdicts.push(Verdict {
                uid,
                channel: row.channel,
                about: if replaces(&waiting.asked) { row.fact } else { String::new() },
                created_at: row.created_at,
                how: row.how,
                waiting: Arc::clone(waiting),
                person,
                variables,
                wording: known.wording,
                fate,
                trail,
                asks,
            });
        }
        Ok(verdicts)
    }

    /// Closes a person's digest: one message a channel, all of it in one transaction. A single notification goes out as
    /// it is.
    async fn close(
        &self,
        organization: &OrganizationId,
        recipient: &str,
        verdicts: Vec<Verdict>,
        now: Timestamp,
    ) -> Result<()> {
        let (sent, mut others): (Vec<_>, Vec<_>) =
            verdicts.into_iter().partition(|verdict| matches!(verdict.fate, Fate::Send(_)));
        let items = sent.into_iter().map(|verdict| Item {
            channel: verdict.channel.clone(),
            about: verdict.about.clone(),
            created_at: verdict.created_at,
            message: verdict,
        });
        let items: Vec<Item<Verdict>> = items.collect();
        let first = items.first().map(|item| item.message.waiting.id.clone());
        let alone = items.iter().all(|item| Some(&item.message.waiting.id) == first.as_ref());
        let mut digests = Vec::new();
        for mut digest in gather(items) {
            for mut stale in std::mem::take(&mut digest.stale) {
                stale.fate = Fate::Skip("a later message about the same is in the digest".to_owned());
                others.push(stale);
            }
            if alone {
                others.append(&mut digest.holds);
            } else {
                digests.push(digest);
            }
        }
        self.settle(organization, recipient, others, digests, now).await
    }

    /// Writes what came of a person's messages; what doesn't wait any more, since it was withdrawn, stays as it is.
    async fn settle(
        &self,
        organization: &OrganizationId,
        recipient: &str,
        verdicts: Vec<Verdict>,
        digests: Vec<Gathered<Verdict>>,
        now: Timestamp,
    ) -> Result<()> {
        if verdicts.is_empty() && digests.is_empty() {
            return Ok(());
        }
        let key = self.keys.of(organization).await?;
        let mut tx = self.store.begin().await?;
        let (mut changed, mut told) = (Vec::new(), None);
        for verdict in &verdicts {
            if self.write(&mut tx, &key, verdict, &mut changed, now).await? {
                ask(&mut tx, organization, recipient, verdict, now).await?;
                told = Some(verdict.waiting.id.clone());
            }
        }
        if let Some(first) = digests.first().and_then(|digest| digest.holds.first()) {
            let new = digest_of(organization, recipient, &digests, &first.uid);
            let id = uuid(now);
            if insert(&mut tx, &id, &new, None, "", now.as_microsecond()).await? {
                for digest in &digests {
                    changed.extend(self.write_digest(&mut tx, &key, &id, &new, digest, now).await?);
                }
                told = Some(id);
            }
        }
        if let Some(notification) = told {
            limit::note(&mut tx, organization, recipient, &notification, now).await?;
        }
        tx.commit().await?;
        changed.iter().for_each(|changed| self.inbox.publish(changed));
        self.wake.notify_one();
        Ok(())
    }

    /// Writes one verdict; says whether its person is told by it now.
    async fn write(
        &self,
        tx: &mut Tx,
        key: &DataKey,
        verdict: &Verdict,
        changed: &mut Vec<inbox::Changed>,
        now: Timestamp,
    ) -> Result<bool> {
        let mut release = Release::of(verdict);
        if let (Fate::Send(_), Some(person)) = (&verdict.fate, &verdict.person) {
            let waiting = &verdict.waiting;
            let text = Text {
                workflow: waiting.workflow,
                wording: &verdict.wording,
                asked: &waiting.asked,
                category: waiting.kept.category(&waiting.asked),
                variables: &verdict.variables,
                person,
                channel: &verdict.channel,
                uid: verdict.uid,
            };
            match self.render(&text, key, now) {
                Ok((route, content)) => (release.route, release.content) = (route, content),
                Err(error) => {
                    release.reason = format!("{}, but the text can't be made: {error}", release.reason);
                    release.route = Route::Skipped;
                }
            }
            release.address = self.address(&waiting.organization, person, &verdict.channel);
        }
        count(&verdict.channel, release.route);
        let sealed = (release.route == Route::Lane).then(|| key.seal(&content_place(&verdict.uid), &release.content));
        if !release.write(tx, verdict, sealed, now).await? {
            return Ok(false);
        }
        if release.route == Route::Record {
            let (new, message) = (as_new(&verdict.waiting), release.message(verdict));
            changed.push(notice(tx, key, &new, &message, now).await?);
        }
        Ok(matches!(release.route, Route::Lane | Route::Record))
    }

    /// Writes one channel's digest, and that its messages are in it.
    async fn write_digest(
        &self,
        tx: &mut Tx,
        key: &DataKey,
        id: &str,
        new: &NewNotification,
        digest: &Gathered<Verdict>,
        now: Timestamp,
    ) -> Result<Option<inbox::Changed>> {
        let known = digest.holds.iter().find_map(|verdict| Some((verdict.person.as_ref()?, &verdict.wording)));
        let Some((person, wording)) = known else { return Ok(None) };
        let uid = message_uid(&new.organization, &new.event_uid, WORKFLOW, &person.id, &digest.channel);
        // What was withdrawn since is left out.
        let mut held = Vec::with_capacity(digest.holds.len());
        for verdict in &digest.holds {
            let release = Release { route: Route::Carried, carried_by: Some(uid), ..Release::of(verdict) };
            if release.write(tx, verdict, None, now).await? {
                held.push(verdict);
            }
        }
        if held.is_empty() {
            return Ok(None);
        }
        let details: Vec<_> = held.iter().map(|verdict| self.line(verdict)).collect();
        let headline = match held.len() {
            1 => "1 message for you".to_owned(),
            number => format!("{number} messages for you"),
        };
        let variables = json!({ "headline": headline, "details": details });
        let workflow = find(WORKFLOW);
        let variables = complete(workflow, WORKFLOW, variables.as_object().cloned().unwrap_or_default());
        let text = Text {
            workflow,
            wording,
            asked: WORKFLOW,
            category: category::of(WORKFLOW),
            variables: &variables,
            person,
            channel: &digest.channel,
            uid,
        };
        let (route, content) = self
            .render(&text, key, now)
            .map_err(|error| Error::internal(anyhow::anyhow!("a digest can't be made: {error}")))?;
        let message = NewMessage {
            uid,
            recipient: person.id.clone(),
            channel: digest.channel.clone(),
            route,
            reason: format!("their digest, of {} messages", held.len()),
            content,
            trail: vec![format!("a digest of {} messages is closed", held.len())],
            address: self.address(&new.organization, person, &digest.channel),
            hold: None,
            carried_by: None,
        };
        let sealed = (route == Route::Lane).then(|| key.seal(&content_place(&uid), &message.content));
        insert_or_revive(tx, id, new, &message, sealed, now).await?;
        if route == Route::Record {
            return Ok(Some(notice(tx, key, new, &message, now).await?));
        }
        Ok(None)
    }

    /// What a digest says of one message: as the inbox would.
    fn line(&self, verdict: &Verdict) -> serde_json::Value {
        let locale = verdict.person.as_ref().and_then(|person| person.recipient.as_ref()).map(|known| &*known.locale);
        let workflow = verdict.waiting.workflow;
        let texts = Texts::new(&self.templates, &verdict.wording, workflow, locale.unwrap_or_default());
        let part = |part: &str| texts.line(part, &verdict.variables).unwrap_or_default();
        json!({ "name": part("in_app.title"), "value": part("in_app.body") })
    }
}

/// A confirmation is waited for from when its message goes out.
async fn ask(
    tx: &mut Tx,
    organization: &OrganizationId,
    recipient: &str,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<()> {
    let Some(wait) = verdict.asks else { return Ok(()) };
    let fact = fact::of(verdict.waiting.workflow.name, &verdict.waiting.kept.variables);
    let fact = fact.as_ref().map_or("", |fact| &fact.key);
    let asked = Asked { organization, notification: &verdict.waiting.id, recipient, fact, wait };
    confirm::ask(tx, &asked, now).await
}
