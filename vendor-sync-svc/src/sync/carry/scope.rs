//! What a connector's expressions see of a letter: the record, what of it changed, its link and the event.

use serde_json::{Map, Value, json};

use super::{Carrier, Case, Wanted, ours};
use crate::{
    connector::{CallError, EventRule},
    record::{Record, RecordKey, RecordKind},
};

impl Carrier {
    /// What a rule sees: the record that it wants, which need not be the one that the event is about, with its link. What the
    /// event says is newer than what is known of that record, and fills what it hasn't.
    pub(super) async fn seen(&self, case: &Case<'_>, rule: &EventRule) -> Result<Value, CallError> {
        let (letter, integration) = (case.letter, &case.account.integration);
        let mut scope = self.scope(case, None).await?;
        let id = match rule.record {
            Some(kind) if kind.as_str() == letter.kind => &letter.record_id,
            Some(RecordKind::Client) => &letter.couple_id,
            Some(RecordKind::Wedding) => &letter.wedding_id,
            Some(RecordKind::Booking) | None => return Ok(scope),
        };
        let key = rule.record.map(|kind| RecordKey::new(integration.organization.clone(), kind, id.clone()));
        let Some(Ok(key)) = key else { return Ok(scope) };
        let known = self.records.get(&key).await.map_err(ours)?;
        let mut record = known.as_ref().map(Record::values).unwrap_or_default();
        for (name, value) in letter.fields() {
            if letter.changed.contains(&name) || !record.contains_key(&name) {
                record.insert(name, value);
            }
        }
        record.insert("id".to_owned(), json!(key.id));
        scope["record"] = json!(record);
        if let Some(link) = self.known.link(integration, &key).await.map_err(ours)? {
            scope["link"] = json!({
                "external_id": link.external_id, "external_version": link.external_version, "handed_over": link.handed_over,
            });
        }
        Ok(scope)
    }

    /// What expressions see.
    pub(super) async fn scope(&self, case: &Case<'_>, wanted: Option<&Wanted<'_>>) -> Result<Value, CallError> {
        let letter = case.letter;
        let fields = wanted.map_or_else(
            || letter.fields(),
            |wanted| letter.fields().into_iter().chain(wanted.fields.clone()).collect(),
        );
        let mut record: Map<String, Value> = fields.into_iter().collect();
        record.insert("id".to_owned(), json!(letter.record_id));
        let link = wanted.and_then(|wanted| wanted.link.as_ref());
        let given: Value = serde_json::from_str(&letter.content).unwrap_or_default();
        Ok(json!({
            "record": record,
            "old": letter.old(),
            "changed": letter.changed,
            "given": given,
            "link": link.map(|link| json!({
                "external_id": link.external_id,
                "external_version": link.external_version,
                "handed_over": link.handed_over,
            })),
            "event": {
                "id": letter.event_id,
                "delivery_id": format!("msg_{}", letter.event_uid),
                "type": letter.event_type,
                "time": letter.time,
                "source": letter.source,
                "origin": case.delivery.origin,
                "wedding_id": letter.wedding_id,
                "couple_id": letter.couple_id,
                "supplier_id": letter.supplier_id,
            },
        }))
    }
}
