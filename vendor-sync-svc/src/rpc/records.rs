//! `RecordService`: parsed, handed to `record`, printed. What a person decides is told on with the change, by `resolve`.

use chassis::{
    auth::caller,
    error::{Error, Result},
    id::{OrganizationId, parse_uuid},
};
use proto::vendorsync::v1::{self as wire, record_service_server::RecordService};
use tonic::{Request, Response, Status};

use super::wire::{page_size, print_timestamp};
use crate::{
    erase::{self, Erasure},
    record::{
        Applied, Change, Field, Link, Reason, Record, RecordKey, RecordKind, Source,
        conflict::{Entry, Filter, State},
        decide::Resolution,
        pin::Pin,
    },
    resolve::{
        Resolver, Taking,
        sight::Sight,
        tell::{self, Told},
    },
};

/// Conflicts that are shown with a record.
const MOST_SHOWN: i64 = 500;
const VALUE_BYTES: usize = 64 * 1024;

/// Records over gRPC.
pub(crate) struct RecordRpc {
    pub(crate) resolver: Resolver,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RecordService for RecordRpc {
    async fn get_record(&self, request: Request<wire::GetRecordRequest>) -> Answer<wire::GetRecordResponse> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let key = RecordKey::new(organization.clone(), kind(request.kind())?, request.id)?;
        let record = self.resolver.records.get(&key).await?.ok_or_else(|| Error::NotFound("record".into()))?;
        let links = self.resolver.links.of_record(&organization, key.kind, &key.id).await?;
        let filter = Filter { kind: Some(key.kind), record_id: key.id.clone(), ..Filter::default() };
        let mut conflicts = Vec::new();
        for state in [State::Open, State::Settled] {
            let filter = Filter { state: Some(state), ..filter.clone() };
            conflicts.extend(self.resolver.records.conflicts(&organization, &filter, "", MOST_SHOWN).await?);
        }
        conflicts.truncate(MOST_SHOWN as usize);
        Ok(Response::new(wire::GetRecordResponse {
            record: Some(print_record(&record)),
            links: links.into_iter().map(print_link).collect(),
            conflicts: conflicts.into_iter().map(print_conflict).collect(),
        }))
    }

    async fn list_conflicts(
        &self,
        request: Request<wire::ListConflictsRequest>,
    ) -> Answer<wire::ListConflictsResponse> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let (size, filter) = (page_size(request.page_size)?, filter(&request)?);
        if !request.page_token.is_empty() && parse_uuid(&request.page_token).is_none() {
            return Err(Error::invalid("page_token", "must be from the previous answer").into());
        }
        let records = &self.resolver.records;
        let page = records.conflicts(&organization, &filter, &request.page_token, i64::from(size)).await?;
        let next_page_token = page.last().filter(|_| page.len() == size as usize).map(|last| last.id.clone());
        Ok(Response::new(wire::ListConflictsResponse {
            next_page_token: next_page_token.unwrap_or_default(),
            conflicts: page.into_iter().map(print_conflict).collect(),
        }))
    }

    async fn resolve_conflict(
        &self,
        request: Request<wire::ResolveConflictRequest>,
    ) -> Answer<wire::ResolveConflictResponse> {
        let caller = caller(&request)?.clone();
        let organization = caller.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let resolution = resolution(&request)?;
        let mut taking = self.resolver.begin(&organization).await?;
        let records = &self.resolver.records;
        let applied = records.decide_in(&mut taking.tx, &organization, &request.id, &resolution, &caller.name).await?;
        self.tell(taking, Some(&applied)).await?;
        let (record, changes) = (Some(print_record(&applied.record)), print_changes(applied.changes));
        Ok(Response::new(wire::ResolveConflictResponse { record, changes }))
    }

    async fn pin_field(&self, request: Request<wire::PinFieldRequest>) -> Answer<wire::PinFieldResponse> {
        let caller = caller(&request)?.clone();
        let organization = caller.organization(&request.get_ref().organization_id)?;
        let pin = request.into_inner().pin.unwrap_or_default();
        let pin = self.pin(pin, caller.name).map_err(|error| error.within("pin"))?;
        if pin.source != Source::wedsync() {
            self.check_integration(&organization, pin.source.as_str()).await?;
        }
        let mut taking = self.resolver.begin(&organization).await?;
        let applied = self.resolver.records.pin_in(&mut taking.tx, &organization, &pin).await?;
        self.tell(taking, applied.as_ref()).await?;
        let changes = applied.map(|applied| print_changes(applied.changes)).unwrap_or_default();
        Ok(Response::new(wire::PinFieldResponse { pin: Some(print_pin(pin)), changes }))
    }

    async fn unpin_field(&self, request: Request<wire::UnpinFieldRequest>) -> Answer<wire::UnpinFieldResponse> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let (kind, field, id) = (kind(request.kind())?, request.field.as_str(), request.record_id.as_str());
        if [field, id].into_iter().any(|text| text.contains('\0')) {
            return Err(Error::NotFound("pin".into()).into());
        }
        let mut taking = self.resolver.begin(&organization).await?;
        let applied = self.resolver.records.unpin_in(&mut taking.tx, &organization, kind, field, id).await?;
        self.tell(taking, applied.as_ref()).await?;
        let changes = applied.map(|applied| print_changes(applied.changes)).unwrap_or_default();
        Ok(Response::new(wire::UnpinFieldResponse { changes }))
    }

    async fn list_pins(&self, request: Request<wire::ListPinsRequest>) -> Answer<wire::ListPinsResponse> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let (size, after) = (page_size(request.page_size)?, pins_after(&request.page_token)?);
        let after = (after.0.as_str(), after.1.as_str(), after.2.as_str());
        let pins = self.resolver.records.pins(&organization, after, i64::from(size)).await?;
        let last = pins.last().filter(|_| pins.len() == size as usize);
        let next_page_token = last.map(pins_token).transpose()?.unwrap_or_default();
        Ok(Response::new(wire::ListPinsResponse { pins: pins.into_iter().map(print_pin).collect(), next_page_token }))
    }

    async fn erase_record(&self, request: Request<wire::EraseRecordRequest>) -> Answer<wire::EraseRecordResponse> {
        let caller = caller(&request)?.clone();
        let organization = caller.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let key = RecordKey::new(organization, kind(request.kind())?, request.id)?;
        let taken = self.resolver.erase(&key, &caller.name, request.dry_run).await?;
        Ok(Response::new(wire::EraseRecordResponse {
            links: taken.links.into_iter().map(print_link).collect(),
            letters: taken.letters,
            events: taken.events,
            webhooks: taken.webhooks,
            lines: taken.lines,
            related: taken.related,
        }))
    }

    async fn list_erasures(&self, request: Request<wire::ListErasuresRequest>) -> Answer<wire::ListErasuresResponse> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let (size, after) = (page_size(request.page_size)?, erasures_after(&request.page_token)?);
        let after = (after.0, after.1.as_str(), after.2.as_str());
        let erasures = erase::list(&self.resolver.store, &organization, after, i64::from(size)).await?;
        let last = erasures.last().filter(|_| erasures.len() == size as usize);
        let next_page_token = last.map(erasures_token).transpose()?.unwrap_or_default();
        let erasures = erasures.into_iter().map(print_erasure).collect::<Result<_>>()?;
        Ok(Response::new(wire::ListErasuresResponse { erasures, next_page_token }))
    }
}

impl RecordRpc {
    /// Commits what was decided with the events that it leads to. No linked system said it: every one is told.
    async fn tell(&self, mut taking: Taking, applied: Option<&Applied>) -> Result<()> {
        let (source, at) = ("integration:person".to_owned(), self.resolver.clock.now());
        let suppliers = match applied {
            Some(applied) => Sight::of_in(&mut taking.tx, &applied.record.key).await?,
            None => Vec::new(),
        };
        let told = Told { source, supplier_id: "", suppliers, at, low: false, import: false };
        for event in applied.map(|applied| tell::events(applied, &told)).unwrap_or_default() {
            taking.publish(&event).await?;
        }
        taking.commit().await
    }

    fn pin(&self, pin: wire::Pin, by: String) -> Result<Pin> {
        let kind = kind(pin.kind())?;
        if pin.record_id.len() > 256 || pin.record_id.chars().any(char::is_control) {
            return Err(Error::invalid("record_id", "must be at most 256 bytes without control characters"));
        }
        let (pinned_at, source) = (self.resolver.clock.now(), Source(pin.source));
        Pin { kind, field: pin.field, record_id: pin.record_id, source, pinned_by: by, pinned_at }.check()
    }

    /// A pin to nobody would hold its field for ever.
    async fn check_integration(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        let there = chassis::with!(self.resolver.store.reader(), c => {
            sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM integrations WHERE organization_id = $1 AND id = $2")
                .bind(organization.as_str())
                .bind(id)
                .fetch_one(c)
                .await
        })?;
        if there == 0 { Err(Error::NotFound("integration".into())) } else { Ok(()) }
    }
}

fn kind(kind: wire::RecordKind) -> Result<RecordKind> {
    match kind {
        wire::RecordKind::Client => Ok(RecordKind::Client),
        wire::RecordKind::Wedding => Ok(RecordKind::Wedding),
        wire::RecordKind::Booking => Ok(RecordKind::Booking),
        wire::RecordKind::Unspecified => Err(Error::invalid("kind", "must be one of the kinds")),
    }
}

fn print_kind(kind: RecordKind) -> wire::RecordKind {
    match kind {
        RecordKind::Client => wire::RecordKind::Client,
        RecordKind::Wedding => wire::RecordKind::Wedding,
        RecordKind::Booking => wire::RecordKind::Booking,
    }
}

fn filter(request: &wire::ListConflictsRequest) -> Result<Filter> {
    let state = match request.state() {
        wire::ConflictState::Unspecified => None,
        wire::ConflictState::Open => Some(State::Open),
        wire::ConflictState::Settled => Some(State::Settled),
        wire::ConflictState::Resolved => Some(State::Resolved),
    };
    let kind = (request.kind() != wire::RecordKind::Unspecified).then(|| kind(request.kind())).transpose()?;
    for (field, text) in [("record_id", &request.record_id), ("integration_id", &request.integration_id)] {
        if text.contains('\0') {
            return Err(Error::invalid(field, "must not hold NUL"));
        }
    }
    Ok(Filter { state, kind, record_id: request.record_id.clone(), source: request.integration_id.clone() })
}

fn resolution(request: &wire::ResolveConflictRequest) -> Result<Resolution> {
    let is_value = request.resolution() == wire::Resolution::Value;
    if !is_value && !request.value.is_empty() {
        return Err(Error::invalid("value", "is for RESOLUTION_VALUE alone"));
    }
    match request.resolution() {
        wire::Resolution::Keep => Ok(Resolution::Keep),
        wire::Resolution::Take => Ok(Resolution::Take),
        wire::Resolution::Value if request.value.len() > VALUE_BYTES => {
            Err(Error::invalid("value", "must be at most 64 KiB"))
        }
        wire::Resolution::Value => {
            let value = serde_json::from_str(&request.value);
            value.map(Resolution::Value).map_err(|_| Error::invalid("value", "must be JSON"))
        }
        wire::Resolution::Unspecified => Err(Error::invalid("resolution", "must be keep, take or value")),
    }
}

fn print_field(field: &Field) -> wire::FieldValue {
    let (value, source) = (field.value.to_string(), field.source.as_str().to_owned());
    wire::FieldValue { value, at: Some(print_timestamp(field.at)), source }
}

fn print_record(record: &Record) -> wire::Record {
    let deleted = record.deleted.as_ref();
    wire::Record {
        kind: print_kind(record.key.kind).into(),
        id: record.key.id.clone(),
        organization_id: record.key.organization.to_string(),
        fields: record.fields.iter().map(|(name, field)| (name.clone(), print_field(field))).collect(),
        version: record.version,
        deleted_at: deleted.map(|(at, _)| print_timestamp(*at)),
        deleted_by: deleted.map(|(_, by)| by.as_str().to_owned()).unwrap_or_default(),
    }
}

fn print_link(link: Link) -> wire::RecordLink {
    let Link { integration_id, external_id, external_version, synced_at, handed_over, .. } = link;
    let synced_at = Some(print_timestamp(synced_at));
    wire::RecordLink { integration_id, external_id, external_version, synced_at, handed_over }
}

fn print_conflict(entry: Entry) -> wire::Conflict {
    let reason = match entry.conflict.reason {
        Reason::Older => wire::ConflictReason::Older,
        Reason::Tie => wire::ConflictReason::Tie,
        Reason::Pinned => wire::ConflictReason::Pinned,
        Reason::DeletedAndEdited => wire::ConflictReason::DeletedAndEdited,
    };
    let state = match entry.state {
        State::Open => wire::ConflictState::Open,
        State::Settled => wire::ConflictState::Settled,
        State::Resolved => wire::ConflictState::Resolved,
    };
    let resolution = match entry.decision.as_ref().map(|decision| decision.resolution.as_str()) {
        Some("keep") => wire::Resolution::Keep,
        Some("take") => wire::Resolution::Take,
        Some(_) => wire::Resolution::Value,
        None => wire::Resolution::Unspecified,
    };
    wire::Conflict {
        id: entry.id,
        kind: print_kind(entry.key.kind).into(),
        record_id: entry.key.id,
        field: entry.conflict.field,
        kept: entry.conflict.kept.as_ref().map(print_field),
        losing: Some(print_field(&entry.conflict.losing)),
        reason: reason.into(),
        state: state.into(),
        found_at: Some(print_timestamp(entry.found_at)),
        resolution: resolution.into(),
        resolved_at: entry.decision.as_ref().map(|decision| print_timestamp(decision.at)),
        resolved_by: entry.decision.map(|decision| decision.by).unwrap_or_default(),
    }
}

fn print_changes(changes: Vec<Change>) -> Vec<wire::FieldChange> {
    let print = |Change { field, old, new }: Change| {
        let (old_value, new_value) = (old.to_string(), new.to_string());
        wire::FieldChange { field, old_value, new_value }
    };
    changes.into_iter().map(print).collect()
}

fn print_pin(pin: Pin) -> wire::Pin {
    let Pin { kind, field, record_id, source, pinned_by, pinned_at } = pin;
    let (kind, pinned_at) = (print_kind(kind).into(), Some(print_timestamp(pinned_at)));
    wire::Pin { kind, field, record_id, source: source.0, pinned_by, pinned_at }
}

fn print_erasure(erasure: Erasure) -> Result<wire::Erasure> {
    let kind = erasure.kind().ok_or_else(|| Error::internal(anyhow::anyhow!("an erasure is of an unknown kind")))?;
    let erased_at = Some(print_timestamp(erasure.at()));
    Ok(wire::Erasure { kind: print_kind(kind).into(), id: erasure.record_id, erased_at, erased_by: erasure.erased_by })
}

/// Time, kind and record of the last one.
fn erasures_token(last: &Erasure) -> Result<String> {
    let kind = last.kind().map(RecordKind::as_str).unwrap_or_default();
    serde_json::to_string(&(last.at().as_microsecond(), kind, &last.record_id)).map_err(Error::internal)
}

fn erasures_after(token: &str) -> Result<(i64, String, String)> {
    if token.is_empty() {
        return Ok((i64::MIN, String::new(), String::new()));
    }
    let after: Option<(i64, String, String)> = serde_json::from_str(token).ok();
    let after = after.filter(|(_, kind, id)| ![kind, id].into_iter().any(|text| text.contains('\0')));
    after.ok_or_else(|| Error::invalid("page_token", "must be from the previous answer"))
}

/// Kind, record and field of the last one.
fn pins_token(last: &Pin) -> Result<String> {
    serde_json::to_string(&(last.kind.as_str(), &last.record_id, &last.field)).map_err(Error::internal)
}

fn pins_after(token: &str) -> Result<(String, String, String)> {
    if token.is_empty() {
        return Ok(Default::default());
    }
    let after: Option<(String, String, String)> = serde_json::from_str(token).ok();
    let plain = |text: &String| !text.contains('\0');
    let after = after.filter(|(kind, id, field)| [kind, id, field].into_iter().all(plain));
    after.ok_or_else(|| Error::invalid("page_token", "must be from the previous answer"))
}

#[cfg(test)]
mod tests;
