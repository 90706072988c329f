//! Wire types to domain types and back. Nothing is decided here.
//!
//! Errors name fields as the protos do, below the message that was parsed: `type`, `destinations[2].integration.kind`.

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use jiff::{Timestamp, tz::TimeZone};
use proto::{
    common::v1 as common,
    router::v1::{self as wire, destination::Kind, event::Payload as WirePayload},
};

use crate::{
    broadcast::Broadcast,
    channel::{ChannelName, ChannelPattern},
    destination::{Target, Wish},
    event::{CHANNEL_LIMIT, Change, Event, Metadata, Operation, Origin, Payload},
    event_type::{EventType, TypePattern},
    live::type_of,
    plan::{Decision, Destination, Outcome, Plan},
    priority::Priority,
    route::{ChannelConfiguration, Route, RouteCondition},
    wedding::{SUPPLIER_LIMIT, Wedding},
};

/// A published event, held to every limit. `uid` and position are the router's to give, and are not read.
///
/// # Errors
/// `Error::Invalid` naming the field.
pub(crate) fn event(event: wire::Event, organization: OrganizationId, now: Timestamp) -> Result<Event> {
    let asked = priority(event.priority)?;
    let payload = payload(event.payload)?;
    let channels = event.channels.iter().take(CHANNEL_LIMIT + 1);
    let parsed = Event {
        organization,
        id: event.id,
        uid: String::new(),
        type_: type_(&event.r#type, &payload)?,
        source: event.source,
        subject: event.subject,
        time: event.time.map_or(Ok(now), |time| timestamp("time", time))?,
        ordering_key: event.ordering_key,
        channels: channels.map(|name| ChannelName::parse(name)).collect::<Result<_>>()?,
        payload,
        metadata: metadata(event.metadata.unwrap_or_default())?,
        lowered: asked == Some(Priority::Low),
    };
    parsed.check()
}

/// A message to whoever listens.
///
/// # Errors
/// `Error::Invalid` naming the field.
pub(crate) fn broadcast(request: wire::BroadcastRequest) -> Result<Broadcast> {
    let content = super::given("content", request.content)?;
    let broadcast = Broadcast {
        channel: request.channel,
        event: request.event,
        content_type: content.content_type,
        data: content.data,
        sender: request.sender_id,
    };
    broadcast.check()
}

/// The event that stands for a durable broadcast.
///
/// # Errors
/// As for a broadcast; and names that an event can't have.
pub(crate) fn durable(request: wire::BroadcastRequest, organization: OrganizationId, now: Timestamp) -> Result<Event> {
    let Broadcast { channel, event, content_type, data, .. } = broadcast(request)?;
    let content = wire::Content { content_type, data };
    let logged = wire::Event {
        r#type: type_of(&event),
        subject: event,
        ordering_key: channel.clone(),
        channels: vec![channel],
        payload: Some(WirePayload::Content(content)),
        ..wire::Event::default()
    };
    self::event(logged, organization, now).map_err(|error| match error {
        Error::Invalid { field, reason } if field == "channels" => Error::invalid("channel", reason),
        other => other,
    })
}

/// A message as those who listen get it.
pub(crate) fn print_broadcast(broadcast: &Broadcast) -> wire::Broadcast {
    let content = wire::Content { content_type: broadcast.content_type.clone(), data: broadcast.data.clone() };
    wire::Broadcast {
        channel: broadcast.channel.clone(),
        event: broadcast.event.clone(),
        content: Some(content),
        sender_id: broadcast.sender.clone(),
    }
}

/// An event as readers get it, with the priority of its plan.
pub(crate) fn print_event(event: &Event, priority: Priority, position: Option<common::Position>) -> wire::Event {
    wire::Event {
        id: event.id.clone(),
        uid: event.uid.clone(),
        organization_id: event.organization.to_string(),
        r#type: event.type_.to_string(),
        source: event.source.clone(),
        subject: event.subject.clone(),
        time: Some(print_timestamp(event.time)),
        ordering_key: event.ordering_key.clone(),
        priority: priority.number(),
        channels: event.channels.iter().map(ChannelName::to_string).collect(),
        payload: Some(print_payload(&event.payload)),
        metadata: Some(print_metadata(&event.metadata)),
        position,
    }
}

fn type_(text: &str, payload: &Payload) -> Result<EventType> {
    let Payload::Change(change) = payload else { return EventType::parse(text) };
    let derived = EventType::of_change(&change.table, change.operation.as_str());
    match text {
        "" => EventType::parse(derived.as_str())
            .map_err(|_| Error::invalid("change.table", "must match [A-Za-z0-9_$-]{1,63}")),
        text if text == derived.as_str() => EventType::parse(text),
        _ => Err(Error::invalid("type", format!("must be {derived} for this change, or empty"))),
    }
}

fn payload(payload: Option<WirePayload>) -> Result<Payload> {
    match payload {
        None => Err(Error::invalid("payload", "must be `content` or `change`")),
        Some(WirePayload::Content(content)) => {
            Ok(Payload::Content { content_type: content.content_type, data: content.data })
        }
        Some(WirePayload::Change(change)) => {
            let operation = operation(change.operation())?;
            let record = |bytes: Bytes| Some(bytes).filter(|bytes| !bytes.is_empty());
            let (old, new) = (record(change.old_record), record(change.new_record));
            Ok(Payload::Change(Change { schema: change.schema, table: change.table, operation, old, new }))
        }
    }
}

fn print_payload(payload: &Payload) -> WirePayload {
    match payload {
        Payload::Content { content_type, data } => {
            WirePayload::Content(wire::Content { content_type: content_type.clone(), data: data.clone() })
        }
        Payload::Change(change) => WirePayload::Change(wire::Change {
            schema: change.schema.clone(),
            table: change.table.clone(),
            operation: print_operation(change.operation).into(),
            old_record: change.old.clone().unwrap_or_default(),
            new_record: change.new.clone().unwrap_or_default(),
        }),
    }
}

fn operation(operation: wire::Operation) -> Result<Operation> {
    match operation {
        wire::Operation::Insert => Ok(Operation::Insert),
        wire::Operation::Update => Ok(Operation::Update),
        wire::Operation::Delete => Ok(Operation::Delete),
        wire::Operation::Unspecified => Err(Error::invalid("change.operation", "must be INSERT, UPDATE or DELETE")),
    }
}

fn print_operation(operation: Operation) -> wire::Operation {
    match operation {
        Operation::Insert => wire::Operation::Insert,
        Operation::Update => wire::Operation::Update,
        Operation::Delete => wire::Operation::Delete,
    }
}

fn metadata(metadata: wire::Metadata) -> Result<Metadata> {
    Ok(Metadata {
        origin: Origin::parse(&metadata.origin)?,
        wedding_id: metadata.wedding_id,
        supplier_id: metadata.supplier_id,
        couple_id: metadata.couple_id,
        traceparent: metadata.traceparent,
        cause: metadata.cause,
        depth: metadata.depth,
    })
}

fn print_metadata(metadata: &Metadata) -> wire::Metadata {
    wire::Metadata {
        wedding_id: metadata.wedding_id.clone(),
        supplier_id: metadata.supplier_id.clone(),
        couple_id: metadata.couple_id.clone(),
        traceparent: metadata.traceparent.clone(),
        cause: metadata.cause.clone(),
        depth: metadata.depth,
        origin: metadata.origin.to_string(),
    }
}

/// A plan as it is stored and answered.
pub(crate) fn print_plan(plan: &Plan) -> wire::Plan {
    wire::Plan {
        destinations: plan.destinations.iter().map(print_destination).collect(),
        priority: plan.priority.number(),
        priority_reason: plan.priority_reason.clone(),
        decisions: plan.decisions.iter().map(print_decision).collect(),
    }
}

fn print_destination(destination: &Destination) -> wire::Destination {
    wire::Destination {
        kind: Some(print_target(&destination.target, destination.channels.clone())),
        collapse_key: destination.collapse_key.clone(),
        priority: destination.priority.number(),
    }
}

fn print_decision(decision: &Decision) -> wire::RouteDecision {
    wire::RouteDecision {
        route_id: decision.route_id.clone(),
        matched: decision.outcome == Outcome::Matched,
        reason: decision.reason.clone(),
        failed: decision.outcome == Outcome::Failed,
    }
}

fn target(kind: Option<&Kind>) -> Result<Target> {
    match kind {
        Some(Kind::Webhooks(_)) => Ok(Target::Webhooks),
        Some(Kind::Notification(notification)) => Ok(Target::Notification { workflow: notification.workflow.clone() }),
        Some(Kind::Integration(integration)) => Ok(Target::Integration { kind: integration.kind.clone() }),
        None => Err(Error::invalid("kind", "must be `webhooks`, `notification` or `integration`")),
    }
}

fn offered(kind: Option<&Kind>) -> &[String] {
    match kind {
        Some(Kind::Notification(notification)) => &notification.channels,
        _ => &[],
    }
}

fn print_target(target: &Target, channels: Vec<String>) -> Kind {
    match target {
        Target::Webhooks => Kind::Webhooks(wire::Webhooks {}),
        Target::Notification { workflow } => {
            Kind::Notification(wire::Notification { workflow: workflow.clone(), channels })
        }
        Target::Integration { kind } => Kind::Integration(wire::Integration { kind: kind.clone() }),
    }
}

/// A route of an organization's own. What the router gives (version, whether it is built in) is not read.
///
/// # Errors
/// `Error::Invalid` naming the field; for a condition with line and reason.
pub(crate) fn route(route: &wire::Route, now: Timestamp) -> Result<Route> {
    let pattern = &route.channel_pattern;
    let parsed = Route {
        id: route.id.clone(),
        description: route.description.clone(),
        types: route.types.iter().map(|text| TypePattern::parse(text)).collect::<Result<_>>()?,
        channel_pattern: if pattern.is_empty() { None } else { Some(channel_pattern(pattern)?) },
        condition: RouteCondition::parse(&route.condition)?,
        wishes: wishes(&route.destinations)?,
        collapse: None,
        disabled: route.disabled,
        built_in: false,
        version: route.version,
        updated_at: route.updated_at.map_or(Ok(now), |time| timestamp("updated_at", time))?,
    };
    parsed.check()
}

fn channel_pattern(text: &str) -> Result<ChannelPattern> {
    ChannelPattern::parse(text).map_err(|error| match error {
        Error::Invalid { reason, .. } => Error::invalid("channel_pattern", reason),
        other => other,
    })
}

/// A route as it is listed, with the failures of its condition since the router started.
pub(crate) fn print_route(route: &Route, failures: u64, last_failure: &str) -> wire::Route {
    wire::Route {
        id: route.id.clone(),
        description: route.description.clone(),
        types: route.types.iter().map(TypePattern::to_string).collect(),
        channel_pattern: route.channel_pattern.as_ref().map(ChannelPattern::to_string).unwrap_or_default(),
        condition: route.condition.as_ref().map(|condition| condition.source.clone()).unwrap_or_default(),
        destinations: route.wishes.iter().map(print_wish).collect(),
        disabled: route.disabled,
        built_in: route.built_in,
        version: route.version,
        updated_at: Some(print_timestamp(route.updated_at)),
        failures,
        last_failure: last_failure.to_owned(),
    }
}

/// An organization's own channel configuration.
///
/// # Errors
/// `Error::Invalid` naming the field.
pub(crate) fn channel_configuration(pattern: &str, destinations: &[wire::Destination]) -> Result<ChannelConfiguration> {
    ChannelConfiguration::new(ChannelPattern::parse(pattern)?, wishes(destinations)?)
}

/// A channel configuration as it is listed.
pub(crate) fn print_channel_configuration(configuration: &ChannelConfiguration) -> wire::ChannelConfiguration {
    wire::ChannelConfiguration {
        pattern: configuration.pattern.to_string(),
        destinations: configuration.wishes.iter().map(print_wish).collect(),
        built_in: configuration.built_in,
    }
}

fn wishes(destinations: &[wire::Destination]) -> Result<Vec<Wish>> {
    let parse =
        |(index, destination)| wish(destination).map_err(|error| error.within(&format!("destinations[{index}]")));
    destinations.iter().enumerate().map(parse).collect()
}

fn wish(destination: &wire::Destination) -> Result<Wish> {
    let wish = match target(destination.kind.as_ref())? {
        Target::Webhooks => Wish::webhooks(),
        Target::Notification { workflow } => Wish::notification(&workflow, offered(destination.kind.as_ref()))?,
        Target::Integration { kind } => Wish::integration(&kind)?,
    };
    Ok(Wish { at_most: priority(destination.priority)?, ..wish })
}

fn print_wish(wish: &Wish) -> wire::Destination {
    let channels = wish.offers.iter().map(ToString::to_string).collect();
    let kind = Some(print_target(&wish.target, channels));
    wire::Destination { kind, collapse_key: String::new(), priority: wish.at_most.map_or(0, Priority::number) }
}

/// What `UpsertWedding` says; `default` is the organization's zone.
///
/// # Errors
/// `Error::Invalid` naming the field.
pub(crate) fn wedding(wedding: &wire::Wedding, default: &TimeZone) -> Result<Wedding> {
    if wedding.supplier_ids.len() > SUPPLIER_LIMIT {
        return Err(Error::invalid("supplier_ids", format!("must be at most {SUPPLIER_LIMIT}")));
    }
    for (field, texts) in [
        ("venue_id", std::slice::from_ref(&wedding.venue_id)),
        ("couple_id", std::slice::from_ref(&wedding.couple_id)),
        ("supplier_ids", &wedding.supplier_ids),
    ] {
        texts.iter().try_for_each(|text| crate::event::check_text(field, text))?;
    }
    let parsed =
        Wedding::parse(&wedding.id, &wedding.wedding_date, &wedding.ceremony_time, &wedding.time_zone, default)?;
    Ok(Wedding {
        venue_id: wedding.venue_id.clone(),
        couple_id: wedding.couple_id.clone(),
        listed: wedding.supplier_ids.iter().filter(|id| !id.is_empty()).cloned().collect(),
        ..parsed
    })
}

/// What is known of a wedding.
pub(crate) fn print_wedding(wedding: &Wedding, organization: &OrganizationId) -> wire::Wedding {
    wire::Wedding {
        id: wedding.id.clone(),
        organization_id: organization.to_string(),
        wedding_date: wedding.date.map(|date| date.to_string()).unwrap_or_default(),
        ceremony_time: wedding.time.map(|time| time.to_string()).unwrap_or_default(),
        time_zone: wedding.zone.clone(),
        venue_id: wedding.venue_id.clone(),
        couple_id: wedding.couple_id.clone(),
        supplier_ids: wedding.supplier_ids().map(str::to_owned).collect(),
        ceremony_at: wedding.ceremony_at.map(print_timestamp),
    }
}

/// None where it is unspecified.
pub(crate) fn priority(number: i32) -> Result<Option<Priority>> {
    match number {
        0 => Ok(None),
        number => Priority::from_number(number).map(Some).ok_or_else(|| Error::invalid("priority", "is unknown")),
    }
}

/// # Errors
/// `Error::Invalid` for an instant outside the years -9999 to 9999, or nanoseconds that are none.
pub(crate) fn timestamp(field: &'static str, time: prost_types::Timestamp) -> Result<Timestamp> {
    let valid = (0..1_000_000_000).contains(&time.nanos);
    let parsed = valid.then(|| Timestamp::new(time.seconds, time.nanos).ok()).flatten();
    parsed.ok_or_else(|| Error::invalid(field, "must be a valid time"))
}

pub(crate) fn print_timestamp(time: Timestamp) -> prost_types::Timestamp {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    // Before 1970 the fraction counts backwards here, forwards on the wire.
    if nanos < 0 {
        (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
    }
    prost_types::Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::BuiltIn;

    fn organization() -> OrganizationId {
        OrganizationId::parse("org").unwrap()
    }

    fn published() -> wire::Event {
        let content = wire::Content { content_type: String::new(), data: Bytes::from_static(b"{\"a\":1.10}") };
        wire::Event { r#type: "a.b".to_owned(), payload: Some(WirePayload::Content(content)), ..Default::default() }
    }

    fn changed(type_: &str, operation: wire::Operation) -> wire::Event {
        let new_record = Bytes::from_static(b"{}");
        let change = wire::Change {
            schema: "public".into(),
            table: "T-x".into(),
            operation: operation.into(),
            new_record,
            ..Default::default()
        };
        wire::Event { r#type: type_.to_owned(), payload: Some(WirePayload::Change(change)), ..Default::default() }
    }

    fn parse(event: wire::Event) -> Result<Event> {
        super::event(event, organization(), Timestamp::UNIX_EPOCH)
    }

    fn fault(event: wire::Event) -> String {
        match parse(event) {
            Err(Error::Invalid { field, .. }) => field.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_change_may_leave_its_type_out_and_can_not_claim_another() {
        assert_eq!(parse(changed("", wire::Operation::Insert)).unwrap().type_.as_str(), "t_x.insert");
        assert!(parse(changed("t_x.insert", wire::Operation::Insert)).is_ok());
        assert_eq!(fault(changed("t_x.update", wire::Operation::Insert)), "type");
        assert_eq!(fault(changed("", wire::Operation::Unspecified)), "change.operation");
    }

    #[test]
    fn what_is_missing_or_malformed_names_its_field() {
        assert_eq!(fault(wire::Event { payload: None, ..published() }), "payload");
        assert_eq!(fault(wire::Event { r#type: String::new(), ..published() }), "type");
        assert_eq!(fault(wire::Event { channels: vec!["a:*".into()], ..published() }), "channels");
        assert_eq!(fault(wire::Event { channels: vec!["a".into(); 65], ..published() }), "channels");
        let time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
        assert_eq!(fault(wire::Event { time, ..published() }), "time");
    }

    #[test]
    fn a_publisher_lowers_and_can_not_raise() {
        let asked = |priority: common::Priority| {
            parse(wire::Event { priority: priority.into(), ..published() }).unwrap().lowered
        };
        assert!(asked(common::Priority::Low));
        assert!(!asked(common::Priority::Critical) && !asked(common::Priority::Unspecified));
    }

    #[test]
    fn the_built_in_routes_read_back_from_what_was_printed() {
        for built in BuiltIn::load().unwrap().routes {
            let printed = print_route(&built, 0, "");
            let read = route(&printed, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(read.wishes, built.wishes, "{}", built.id);
            assert_eq!(print_route(&Route { built_in: true, ..read }, 0, ""), printed);
        }
    }

    #[test]
    fn a_routes_fault_names_the_destination() {
        let bad = wire::Integration { kind: "no kind".to_owned() };
        let destination = wire::Destination { kind: Some(Kind::Integration(bad)), ..Default::default() };
        let bad = wire::Route { types: vec!["*".into()], destinations: vec![destination], ..Default::default() };
        assert!(
            matches!(route(&bad, Timestamp::UNIX_EPOCH), Err(Error::Invalid { field, .. }) if field == "destinations[0].integration.kind")
        );
    }

    #[test]
    fn a_wedding_reads_back_from_what_was_printed() {
        let said = wire::Wedding {
            id: "w".into(),
            wedding_date: "2026-06-20".into(),
            ceremony_time: "15:00:00".into(),
            time_zone: "Europe/London".into(),
            supplier_ids: vec!["a".into(), "b".into()],
            ..Default::default()
        };
        let printed = print_wedding(&wedding(&said, &TimeZone::UTC).unwrap(), &organization());
        assert_eq!(printed.ceremony_at.as_ref().unwrap().seconds, 1_781_964_000);
        assert_eq!(wire::Wedding { ceremony_at: None, organization_id: String::new(), ..printed }, said);
    }

    proptest! {
        #[test]
        fn times_read_back_on_both_sides_of_1970(micros in -4_000_000_000_000_000i64..4_000_000_000_000_000) {
            let time = chassis::clock::from_micros(micros);
            prop_assert_eq!(timestamp("time", print_timestamp(time)).unwrap(), time);
        }
    }
}
