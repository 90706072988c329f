//! Shapes that more than one service of ours reads or prints: the router's events, times, pages.

use std::time::Duration;

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::{self, OrganizationId},
};
use jiff::Timestamp;
use proto::router::v1::{self as wire, event::Payload as WirePayload};

use crate::event::{Event, Metadata, Operation, Payload, Priority};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 500;

/// An event as the router's log gives it.
///
/// # Errors
/// `Error::Invalid` for what the router wouldn't have accepted.
pub(crate) fn event(event: wire::Event) -> Result<Event> {
    let priority = Priority::from_number(event.priority.into());
    let position = event.position.unwrap_or_default();
    Ok(Event {
        organization: OrganizationId::parse(&event.organization_id)?,
        uid: id::parse_uuid(&event.uid).ok_or_else(|| Error::invalid("uid", "must be a UUID"))?,
        id: event.id,
        type_: event.r#type,
        source: event.source,
        subject: event.subject,
        time: event.time.map_or(Ok(Timestamp::UNIX_EPOCH), |time| timestamp("time", time))?,
        ordering_key: event.ordering_key,
        channels: event.channels,
        payload: payload(event.payload)?,
        metadata: metadata(event.metadata.unwrap_or_default()),
        log_id: position.log_id,
        sequence: position.sequence,
        priority,
    })
}

fn payload(payload: Option<WirePayload>) -> Result<Payload> {
    match payload.ok_or_else(|| Error::invalid("payload", "must be `content` or `change`"))? {
        WirePayload::Content(content) => {
            Ok(Payload::Content { content_type: content.content_type, data: content.data })
        }
        WirePayload::Change(change) => {
            let operation = match change.operation() {
                wire::Operation::Insert => Operation::Insert,
                wire::Operation::Update => Operation::Update,
                wire::Operation::Delete => Operation::Delete,
                wire::Operation::Unspecified => return Err(Error::invalid("change.operation", "must be set")),
            };
            let record = |bytes: bytes::Bytes| (!bytes.is_empty()).then_some(bytes);
            let (old, new) = (record(change.old_record), record(change.new_record));
            Ok(Payload::Change { schema: change.schema, table: change.table, operation, old, new })
        }
    }
}

fn metadata(metadata: wire::Metadata) -> Metadata {
    let origin = if metadata.origin.is_empty() { "realtime".to_owned() } else { metadata.origin };
    Metadata {
        wedding_id: metadata.wedding_id,
        supplier_id: metadata.supplier_id,
        couple_id: metadata.couple_id,
        traceparent: metadata.traceparent,
        cause: metadata.cause,
        origin,
    }
}

/// A time, in the stores' resolution.
///
/// # Errors
/// `Error::Invalid` naming `field` for one that doesn't exist.
pub(crate) fn timestamp(field: &'static str, time: prost_types::Timestamp) -> Result<Timestamp> {
    let parsed =
        if (0..1_000_000_000).contains(&time.nanos) { Timestamp::new(time.seconds, time.nanos).ok() } else { None };
    let parsed = parsed.ok_or_else(|| Error::invalid(field, "must be a time between the years -9999 and 9999"))?;
    Ok(from_micros(parsed.as_microsecond()))
}

pub(crate) fn print_timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Times before 1970 count their fraction upwards on the wire, and downwards in `jiff`.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    match nanos < 0 {
        true => prost_types::Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 },
        false => prost_types::Timestamp { seconds, nanos },
    }
}

/// A duration; `default` where none is given.
///
/// # Errors
/// `Error::Invalid` naming `field` for a negative one.
pub(crate) fn duration(
    field: &'static str,
    given: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration> {
    given.map_or(Ok(default), |given| {
        Duration::try_from(given).map_err(|_| Error::invalid(field, "must not be negative"))
    })
}

pub(crate) fn print_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

/// How many rows a page has.
///
/// # Errors
/// `Error::Invalid` for a negative number.
pub(crate) fn page_size(asked: i32) -> Result<u32> {
    match u32::try_from(asked) {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(asked) => Ok(asked.min(PAGE_MAX)),
        Err(_) => Err(Error::invalid("page_size", "must not be negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged() -> wire::Event {
        wire::Event {
            uid: "01890a5d-ac96-774b-bcce-b302099a8057".to_owned(),
            organization_id: "acme".to_owned(),
            r#type: "a.b".to_owned(),
            payload: Some(WirePayload::Change(wire::Change {
                operation: 1,
                new_record: "{}".into(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    #[test]
    fn an_event_without_an_origin_happened_now_and_an_empty_record_is_none() {
        let event = event(logged()).expect("the router would give it");
        assert_eq!(event.metadata.origin, "realtime");
        let Payload::Change { old, new, operation, .. } = event.payload else { panic!("a change") };
        assert_eq!((old, new.is_some(), operation), (None, true, Operation::Insert));
    }

    #[test]
    fn what_the_router_would_not_give_is_refused() {
        for spoil in [
            (|event| event.uid = "x".to_owned()) as fn(&mut wire::Event),
            |event| event.organization_id.clear(),
            |event| event.payload = None,
            |event| event.payload = Some(WirePayload::Change(wire::Change::default())),
        ] {
            let mut spoilt = logged();
            spoil(&mut spoilt);
            assert!(event(spoilt).is_err());
        }
    }

    #[test]
    fn times_survive_the_wire_on_either_side_of_1970() {
        for micros in [-1, -1_500_000, 0, 1, 1_777_636_800_000_001] {
            let time = from_micros(micros);
            assert_eq!(timestamp("t", print_timestamp(time)).expect("in range"), time);
        }
        assert!(timestamp("t", prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
        assert!(timestamp("t", prost_types::Timestamp { seconds: 0, nanos: -1 }).is_err());
    }
}
