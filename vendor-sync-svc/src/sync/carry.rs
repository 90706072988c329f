//! One letter at one vendor: what is asked of it, in which order, and what is remembered of the answers.
//!
//! First the record, then what the event itself asks for. Nothing is asked where the vendor is known to have it. A record is
//! looked for before it is made, read before it is replaced, and merged anew where the vendor has another version. What the
//! vendor then has is committed before the letter counts as delivered.

mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chassis::{error::Error, fail, lane::Delivery};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    account::{Account, is_sql},
    known::{self, Known},
    letter::Letter,
};
use crate::{
    connector::{CallError, Class, RecordSpec, Reply, call::Caller},
    database::{Compared, Database, Row},
    integration::Integration,
    record::{Link, RecordKey, Records, Source},
    resolve::{Incoming, Origin, Resolved, Resolver},
};

/// How often a record is merged anew in one attempt.
const MERGES: usize = 3;
/// How often it is tried to note what a vendor did, and the first wait; each is twice as long as the one before.
const NOTE_TRIES: u32 = 8;
const NOTE_AGAIN: Duration = Duration::from_millis(100);

/// What came of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Applied,
    /// A person at the vendor must accept it.
    HandedOver,
    /// The vendor had it.
    Known,
    /// Nothing is asked of this vendor for this, and why.
    NotWanted(String),
}

/// Asks vendors. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Carrier {
    pub(crate) caller: Caller,
    pub(crate) records: Records,
    pub(crate) known: Known,
    pub(crate) resolver: Resolver,
    pub(crate) database: Database,
}

type Fields = BTreeMap<String, Value>;

/// One letter with what it is about.
struct Case<'a> {
    account: &'a Account,
    letter: &'a Letter,
    delivery: &'a Delivery,
}

/// A record as this vendor is to have it.
struct Wanted<'a> {
    key: RecordKey,
    spec: &'a RecordSpec,
    link: Option<Link>,
    fields: BTreeMap<String, Value>,
    /// Those that the vendor doesn't have.
    news: BTreeMap<String, Value>,
}

impl Carrier {
    /// Carries `letter` once.
    ///
    /// # Errors
    /// What the vendor, or our own store, had against it.
    pub(crate) async fn carry(
        &self,
        account: &Account,
        letter: &Letter,
        delivery: &Delivery,
    ) -> Result<Carried, CallError> {
        if is_sql(&account.connector) {
            return self.write_back(&account.integration, letter).await;
        }
        let case = Case { account, letter, delivery };
        let instead = self.rules(&case, true).await?;
        let record = if instead { Carried::Known } else { self.record(&case).await? };
        let by_rule = self.follow(&case).await?;
        Ok(by_rule.unwrap_or(record))
    }

    /// WedSync's own database is no vendor: its rows are to say what stands, whatever the letter says. It only tells that
    /// something changed.
    pub(crate) async fn write_back(&self, integration: &Integration, letter: &Letter) -> Result<Carried, CallError> {
        let Some(key) = letter.key(&integration.organization) else {
            return Ok(Carried::NotWanted("it is about no row".to_owned()));
        };
        let record = self.records.get(&key).await.map_err(ours)?;
        let Some(record) = record.filter(|_| !letter.deleted) else {
            return Ok(Carried::NotWanted("rows are never deleted".to_owned()));
        };
        let link = self.known.link(integration, &key).await.map_err(ours)?;
        let base = link.map(|link| link.synced).unwrap_or_default();
        let said = record.last_words(&Source::wedsync());
        let row = Row { key: &key, stands: &record.fields, base: &base, said: &said };
        let mut compared = self.database.look(integration, &row).await?;
        if !compared.behind.is_empty() {
            compared = self.write_row(integration, &row, &compared.behind).await?;
            fail::point("sync.answered");
        }
        let has: Fields = compared.same.union(&compared.behind).map(|name| (name.clone(), row.value(name))).collect();
        if !known::news(&has, &base).is_empty() {
            // Written again, it finds the row as it is.
            let reply = Reply { external_id: key.id.clone(), ..Reply::nothing() };
            self.known.written(integration, &key, &has, &reply).await.map_err(ours)?;
        }
        Ok(carried(&compared))
    }

    /// Writes these fields; our own words are noted before, since they may come back before the answer does.
    async fn write_row(
        &self,
        integration: &Integration,
        row: &Row<'_>,
        fields: &BTreeSet<String>,
    ) -> Result<Compared, CallError> {
        let mut news: Fields = fields.iter().map(|name| (name.clone(), row.value(name))).collect();
        let noted = self.known.intends(integration, row.key, &news).await.map_err(ours)?;
        let written = self.database.write(integration, row, fields).await;
        match &written {
            Ok(compared) => news.retain(|name, _| !compared.behind.contains(name)),
            Err(error) if may_have_arrived(error) => news.clear(),
            Err(_) => {}
        }
        // Of these nothing will come back.
        self.withdraw(integration, row.key, &news, noted).await;
        written
    }

    /// Whether some rule takes the place of the record's own operations.
    async fn rules(&self, case: &Case<'_>, instead: bool) -> Result<bool, CallError> {
        let settings = &case.account.integration.settings.parameters;
        for rule in case.account.connector.events(&case.letter.event_type) {
            let is_meant = rule.instead == instead;
            if is_meant && rule.holds(&self.seen(case, rule).await?, settings).map_err(CallError::permanent)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the event itself asks for; none: nothing. Each operation is done once, however often the letter is tried.
    async fn follow(&self, case: &Case<'_>) -> Result<Option<Carried>, CallError> {
        let (integration, connector) = (&case.account.integration, &case.account.connector);
        let mut carried = None;
        for rule in connector.events(&case.letter.event_type) {
            let scope = self.seen(case, rule).await?;
            if !rule.holds(&scope, &integration.settings.parameters).map_err(CallError::permanent)? {
                continue;
            }
            let done = self.known.is_done(integration, &case.letter.event_id, &rule.operation).await.map_err(ours)?;
            if !done {
                let reply = self.caller.call(integration, &rule.operation, &scope).await?;
                fail::point("sync.answered");
                let id = &case.letter.event_id;
                self.noted(|| self.known.done(integration, id, &rule.operation)).await?;
                carried = Some(if reply.handed_over { Carried::HandedOver } else { Carried::Applied });
            }
        }
        Ok(carried)
    }

    async fn record(&self, case: &Case<'_>) -> Result<Carried, CallError> {
        let organization = &case.account.integration.organization;
        let Some(key) = case.letter.key(organization) else {
            return Ok(Carried::NotWanted("the vendor isn't told of such events".to_owned()));
        };
        let Some(spec) = case.account.connector.record(key.kind) else {
            return Ok(Carried::NotWanted(format!("the vendor has no {}s", key.kind.as_str())));
        };
        let scope = self.scope(case, None).await?;
        if !spec.may_go_out(&scope, &case.account.integration.settings.parameters).map_err(CallError::permanent)? {
            return Ok(Carried::NotWanted("its connector says that this record doesn't go out".to_owned()));
        }
        if case.letter.deleted {
            return self.delete(case, spec, &key).await;
        }
        let mut merges = 0;
        loop {
            let wanted = self.wanted(case, spec, &key).await?;
            let asked = self.ask(case, wanted).await;
            match asked {
                Err(error) if error.class == Class::Conflict && merges < MERGES => {
                    merges += 1;
                    self.read_again(case, spec, &key).await?;
                }
                other => return other,
            }
        }
    }

    /// What the vendor is to have: what the letter says, but nothing that it has as it stands now is set back.
    async fn wanted<'a>(
        &self,
        case: &Case<'_>,
        spec: &'a RecordSpec,
        key: &RecordKey,
    ) -> Result<Wanted<'a>, CallError> {
        let link = self.known.link(&case.account.integration, key).await.map_err(ours)?;
        let now = self.records.get(key).await.map_err(ours)?.map(|record| record.values()).unwrap_or_default();
        let synced = link.as_ref().map(|link| link.synced.clone()).unwrap_or_default();
        let mut fields = case.letter.fields();
        fields.retain(|name, _| spec.fields.contains(name));
        known::keep_current(&mut fields, &synced, &now, &case.letter.changed, &spec.fields);
        let news = known::news(&fields, &synced);
        Ok(Wanted { key: key.clone(), spec, link, fields, news })
    }

    async fn ask(&self, case: &Case<'_>, mut wanted: Wanted<'_>) -> Result<Carried, CallError> {
        if wanted.link.is_none()
            && let Some(found) = self.find(case, &wanted).await?
        {
            self.adopt(case, &mut wanted, &found).await?;
        }
        match &wanted.link {
            Some(_) if wanted.news.is_empty() => Ok(Carried::Known),
            Some(link) if link.external_id.is_empty() && wanted.spec.update.is_none() => {
                Ok(Carried::NotWanted("it was handed over, and can't be changed there".to_owned()))
            }
            Some(_) => self.update(case, &wanted).await,
            None => self.create(case, &mut wanted).await,
        }
    }

    async fn find(&self, case: &Case<'_>, wanted: &Wanted<'_>) -> Result<Option<Reply>, CallError> {
        let Some(find) = &wanted.spec.find else { return Ok(None) };
        let reply = self.call(case, find, wanted, None).await?;
        Ok(Some(reply).filter(|reply| !reply.external_id.is_empty()))
    }

    /// What was found there is the record's: what it has is no news to it.
    async fn adopt(&self, case: &Case<'_>, wanted: &mut Wanted<'_>, found: &Reply) -> Result<(), CallError> {
        let settings = case.account.connector.filled(&case.account.integration.settings.parameters);
        let has = wanted.spec.item(&found.resource, &settings).map(|item| item.fields).unwrap_or_default();
        wanted.news = known::news(&wanted.fields, &has);
        let link = self.known.adopt(&case.account.integration, &wanted.key, found, has).await.map_err(ours)?;
        wanted.link = Some(link);
        Ok(())
    }

    async fn create(&self, case: &Case<'_>, wanted: &mut Wanted<'_>) -> Result<Carried, CallError> {
        let spec = wanted.spec;
        // Where there is nothing to make, an update makes it.
        let Some(create) = spec.create.as_ref().or(spec.update.as_ref()) else {
            return Ok(Carried::NotWanted("the vendor takes no new ones".to_owned()));
        };
        let making = self.resolver.making.begin(&case.account.integration.id, wanted.key.kind);
        let put = self.put(case, create, wanted, None).await;
        drop(making);
        match put {
            Err(error) if error.class == Class::Duplicate && spec.update.is_some() => {
                // It has another like it: that one is meant, if it can be found.
                let Some(found) = self.find(case, wanted).await? else { return Err(error) };
                self.adopt(case, wanted, &found).await?;
                if wanted.news.is_empty() { Ok(Carried::Known) } else { self.update(case, wanted).await }
            }
            other => other,
        }
    }

    async fn update(&self, case: &Case<'_>, wanted: &Wanted<'_>) -> Result<Carried, CallError> {
        let Some(update) = &wanted.spec.update else {
            return Ok(Carried::NotWanted("the vendor takes no changes".to_owned()));
        };
        let current = match &wanted.spec.read {
            Some(read) if wanted.spec.reads_before_update() => Some(self.read(case, read, wanted).await?),
            _ => None,
        };
        self.put(case, update, wanted, current.as_ref()).await
    }

    /// Has the vendor take it. Our own words are noted before: they may come back before the answer does.
    async fn put(
        &self,
        case: &Case<'_>,
        operation: &str,
        wanted: &Wanted<'_>,
        current: Option<&Value>,
    ) -> Result<Carried, CallError> {
        let (integration, key, news) = (&case.account.integration, &wanted.key, &wanted.news);
        let noted = match wanted.link {
            Some(_) => self.known.intends(integration, key, news).await,
            None => self.known.intends_to_make(integration, key, news).await,
        };
        let noted = noted.map_err(ours)?;
        match self.call(case, operation, wanted, current).await {
            Ok(reply) => self.remember(case, wanted, &reply).await,
            Err(error) => {
                if !may_have_arrived(&error) {
                    self.withdraw(integration, key, news, noted).await;
                }
                Err(error)
            }
        }
    }

    /// What stays noted though it was refused excuses one return too many: no reason to fail.
    async fn withdraw(&self, integration: &Integration, key: &RecordKey, news: &Fields, noted: Timestamp) {
        if let Err(error) = self.known.withdraw(integration, key, news, noted).await {
            tracing::warn!(%error, integration.id, "what a vendor refused stays noted as written");
        }
    }

    /// The vendor's resource, if it is the version that we know; else it must be merged first.
    async fn read(&self, case: &Case<'_>, read: &str, wanted: &Wanted<'_>) -> Result<Value, CallError> {
        let reply = self.call(case, read, wanted, None).await?;
        let version = wanted.link.as_ref().map(|link| link.external_version.as_str()).unwrap_or_default();
        if !version.is_empty() && !reply.external_version.is_empty() && version != reply.external_version {
            return Err(CallError { class: Class::Conflict, ..CallError::retry("the vendor changed it meanwhile") });
        }
        Ok(reply.resource)
    }

    /// Takes what the vendor has now into the record.
    async fn read_again(&self, case: &Case<'_>, spec: &RecordSpec, key: &RecordKey) -> Result<(), CallError> {
        let conflict =
            || CallError { class: Class::Conflict, ..CallError::retry("the vendor has another version of it") };
        let read = spec.read.as_ref().ok_or_else(conflict)?;
        let wanted = self.wanted(case, spec, key).await?;
        let reply = self.call(case, read, &wanted, None).await?;
        let integration = &case.account.integration;
        let settings = case.account.connector.filled(&integration.settings.parameters);
        let item = spec.item(&reply.resource, &settings).map_err(CallError::permanent)?;
        let incoming = Incoming {
            kind: key.kind,
            external_id: item.external_id,
            external_version: item.external_version,
            at: item.at.unwrap_or_else(|| self.known.now()),
            fields: item.fields,
            deleted: item.deleted,
            priority_low: false,
            origin: Origin::Poll,
        };
        match self.resolver.take(integration, vec![incoming]).await.map_err(ours)?.pop() {
            Some(Resolved::Refused { reason }) => Err(CallError::permanent(reason)),
            _ => Ok(()),
        }
    }

    async fn delete(&self, case: &Case<'_>, spec: &RecordSpec, key: &RecordKey) -> Result<Carried, CallError> {
        let wanted = self.wanted(case, spec, key).await?;
        let (Some(link), Some(delete)) = (&wanted.link, &spec.delete) else {
            let reason = if wanted.link.is_none() { "the vendor never had it" } else { "the vendor deletes nothing" };
            return Ok(Carried::NotWanted(reason.to_owned()));
        };
        match self.call(case, delete, &wanted, None).await {
            Ok(_) => {}
            Err(error) if error.class == Class::Gone => {}
            Err(error) => return Err(error),
        }
        fail::point("sync.answered");
        self.known.forget(link).await.map_err(ours)?;
        Ok(Carried::Applied)
    }

    async fn remember(&self, case: &Case<'_>, wanted: &Wanted<'_>, reply: &Reply) -> Result<Carried, CallError> {
        fail::point("sync.answered");
        let integration = &case.account.integration;
        self.noted(|| self.known.written(integration, &wanted.key, &wanted.fields, reply)).await?;
        Ok(if reply.handed_over { Carried::HandedOver } else { Carried::Applied })
    }

    /// Notes what a vendor did, though the store may be away for a moment: to be asked again, it might do it twice.
    async fn noted<F: Future<Output = Result<(), Error>>>(&self, note: impl Fn() -> F) -> Result<(), CallError> {
        for tried in 0..NOTE_TRIES {
            match note().await {
                Ok(()) => return Ok(()),
                Err(error @ Error::AlreadyExists(_)) => return Err(ours(error)),
                Err(error) => tracing::error!(%error, "what a vendor did can't be noted yet; trying again"),
            }
            self.known.clock.sleep(NOTE_AGAIN * 2_u32.pow(tried)).await;
        }
        let unknown = CallError::retry("the vendor has it, but our own store was away");
        Err(CallError { class: Class::Unknown, ..unknown })
    }

    async fn call(
        &self,
        case: &Case<'_>,
        operation: &str,
        wanted: &Wanted<'_>,
        current: Option<&Value>,
    ) -> Result<Reply, CallError> {
        let mut scope = self.scope(case, Some(wanted)).await?;
        if let (Some(current), Some(scope)) = (current, scope.as_object_mut()) {
            scope.insert("current".to_owned(), current.clone());
        }
        self.caller.call(&case.account.integration, operation, &scope).await
    }
}

/// What came of a row.
fn carried(compared: &Compared) -> Carried {
    if !compared.behind.is_empty() {
        Carried::Applied
    } else if !compared.newer.is_empty() {
        Carried::NotWanted("the row was changed since; that comes by itself".to_owned())
    } else if !compared.same.is_empty() {
        Carried::Known
    } else {
        Carried::NotWanted("none of it has a column".to_owned())
    }
}

/// Whether the vendor may have taken it all the same.
fn may_have_arrived(error: &CallError) -> bool {
    matches!(error.class, Class::Retry | Class::Unknown)
}

/// What our own store has against it passes, but for what another record has.
fn ours(error: Error) -> CallError {
    tracing::warn!(error = format!("{error:?}"), "what a vendor has could not be read or noted");
    match error {
        Error::AlreadyExists(reason) => CallError::permanent(reason),
        _ => CallError::retry("our own store is away"),
    }
}
