//! A vendor's list, read page by page through its connector and spooled: what it had at one time, counted and then applied.
//!
//! Where the walk is, is committed with each page, so that it goes on there after a stop. What can't be read of an item is
//! a refusal; it holds nothing else up.

use std::collections::BTreeMap;

use chassis::{
    error::{Error, Result},
    secret::place,
    store::Tx,
    with,
};
use serde_json::{Value, json};

use super::Reconcile;
use crate::{
    connector::{CallError, Class, Item, Position, RecordSpec},
    import::{
        Import, Phase, Refusal, State,
        read::Listed,
        spool,
        work::{Pages, Step},
    },
    record::{RecordKind, external_hash},
    sync::{account::Account, poll},
};

/// Records of one import.
const MOST: u64 = 1_000_000;

impl Reconcile {
    /// Reads the list from where it is, to its end, or to that of the turn.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` where the connector can't list; `Error::Unavailable` while vendor or store are away.
    pub(crate) async fn list(&self, import: &mut Import, turn: &mut Pages) -> Result<Step> {
        let account = self.accounts.of(&import.order.organization, &import.order.integration_id)?;
        if import.next == Default::default() {
            // One that is listed anew forgets what it had.
            spool::forget(&self.store, &import.id).await?;
        }
        for (kind, spec, operation) in listed(&account)? {
            if kind.as_str() >= import.next.kind.as_str()
                && !self.walk(&account, import, (kind, spec, operation), turn).await?
            {
                return Ok(Step::Over);
            }
        }
        import.total = import.next.position;
        import.enter(Phase::Counting);
        self.imports.save(State::Running, import).await?;
        Ok(Step::Phase)
    }

    /// False if the turn is over before the end.
    async fn walk(
        &self,
        account: &Account,
        import: &mut Import,
        (kind, spec, operation): (RecordKind, &RecordSpec, &str),
        turn: &mut Pages,
    ) -> Result<bool> {
        let (integration, connector) = (&account.integration, &account.connector);
        let is_begun = import.next.kind == kind.as_str();
        if is_begun && import.next.page.is_empty() {
            return Ok(true);
        }
        let mut position = if is_begun { Position::parse(&import.next.page) } else { Position::default() };
        let (settings, scope) = (connector.filled(&integration.settings.parameters), json!({"since": null}));
        loop {
            let page = self.caller.page(integration, operation, &scope, &position).await;
            let page = page.map_err(|error| theirs(import, error))?;
            let mut tx = self.store.begin().await?;
            for item in &page.items {
                self.spool_in(&mut tx, import, kind, spec, item, &settings).await?;
            }
            kind.as_str().clone_into(&mut import.next.kind);
            import.next.page = page.next.as_ref().map(Position::print).unwrap_or_default();
            self.imports.save_in(&mut tx, State::Running, import).await?;
            tx.commit().await?;
            self.imports.tell();
            match page.next {
                Some(_) if turn.spend() => return Ok(false),
                Some(next) => position = next,
                None => return Ok(true),
            }
        }
    }

    async fn spool_in(
        &self,
        tx: &mut Tx,
        import: &mut Import,
        kind: RecordKind,
        spec: &RecordSpec,
        item: &Value,
        settings: &BTreeMap<String, String>,
    ) -> Result<()> {
        let number = import.next.position;
        if number >= MOST {
            return Err(Error::invalid("list", format!("has more than {MOST} records")));
        }
        import.next.position += 1;
        let (external_id, listed) = match spec.item(item, settings) {
            Ok(item) if !item.external_id.is_empty() => {
                import.counts.seen += 1;
                // What the vendor doesn't date is as old as the list.
                let at = item.at.unwrap_or(import.updated_at);
                let Item { external_id, external_version, fields, deleted, .. } = item;
                (external_id.clone(), Some(Listed { external_id, external_version, at, fields, deleted }))
            }
            unread => {
                import.refuse(refusal(number + 1, unread.err().unwrap_or_else(|| "has no id".to_owned())));
                // Whose it is may be legible all the same: then it hasn't vanished.
                let Some(external_id) = spec.external_id(item, settings) else { return Ok(()) };
                (external_id, None)
            }
        };
        let key = self.keys.of(&import.order.organization).await?;
        let row = spool::row(&import.id, number.cast_signed());
        let body =
            key.seal(&place("import_items", "body", &row), &serde_json::to_vec(&listed).map_err(Error::internal)?);
        self.imports.spooled_in(tx, import, body.len()).await?;
        with!(tx.on(), c => sqlx::query(
            "INSERT INTO import_items (import_id, number, record_kind, external_hash, body) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&import.id)
        .bind(number.cast_signed())
        .bind(kind.as_str())
        .bind(external_hash(&key, &external_id))
        .bind(body)
        .execute(c).await.map(drop))?;
        Ok(())
    }
}

/// What can be listed, in a fixed order.
///
/// # Errors
/// `Error::FailedPrecondition` where nothing can.
pub(super) fn listed(account: &Account) -> Result<Vec<(RecordKind, &RecordSpec, &str)>> {
    let connector = &account.connector;
    let mut listed: Vec<(RecordKind, &RecordSpec, &str)> = RecordKind::ALL
        .into_iter()
        .filter_map(|kind| connector.record(kind).and_then(|spec| Some((kind, spec, spec.list.as_deref()?))))
        .collect();
    listed.sort_by_key(|(kind, ..)| kind.as_str());
    if listed.is_empty() {
        let reason = format!("{} gives no list: import a file", connector.title());
        return Err(Error::FailedPrecondition(reason));
    }
    Ok(listed)
}

/// What passes is tried again; what doesn't ends the walk, to be resumed once somebody has seen to it. What the vendor says
/// of that may name people: it is kept with the refusals, which are sealed.
fn theirs(import: &mut Import, error: CallError) -> Error {
    match error.class {
        Class::Retry | Class::Throttled | Class::Unknown => return poll::theirs(error),
        // Nobody was asked: why is in our own words.
        Class::Unauthorized => return Error::FailedPrecondition(error.reason),
        _ => {}
    }
    let refused = Error::FailedPrecondition(format!("the vendor refuses its list: {error}"));
    import.keep_refusals(&[refusal(0, error.reason)]);
    refused
}

/// Line 0: the list itself.
fn refusal(line: u64, reason: String) -> Refusal {
    Refusal { line, external_id: String::new(), reason }
}
