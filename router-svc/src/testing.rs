//! For the benches of the whole system: what one event's plan costs, without a server around it. Feature `testing`.

use std::{collections::HashSet, hint::black_box, sync::Arc};

use bytes::Bytes;
use chassis::id::OrganizationId;
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    channel::ChannelPattern,
    destination::Wish,
    event::{Change, Event, Metadata, Operation, Payload},
    event_type::{EventType, TypePattern},
    facts::Facts,
    plan::{Question, Routes},
    route::{BuiltIn, Route, RouteCondition},
    table::Tables,
    wedding::Wedding,
};

/// Tables that the routes are spread over; the event is of the first.
const TABLES: usize = 200;
/// Routes of a table that hold everywhere; the others hold on one wedding's channel each.
const EVERYWHERE: usize = 4;
const OLD: &str =
    r#"{"id":"w0","couple_id":"c1","wedding_date":"2026-06-20","guest_count":80,"vendor_ids":["v1","v2"]}"#;
const NEW: &str =
    r#"{"id":"w0","couple_id":"c1","wedding_date":"2026-06-20","guest_count":90,"vendor_ids":["v1","v2"]}"#;

/// Plans one update of a wedding per call, among the built-in routes and `count` of the organization's own, of which a
/// handful fit its type and channels.
pub fn planner(count: usize) -> impl FnMut() {
    let built_in = BuiltIn::load().expect("the built-in routes are tested");
    let routes = Routes::new(&built_in, &HashSet::new(), (0..count).map(|number| Arc::new(route(number))), Vec::new());
    let mut event = update();
    let mut facts = Facts::read(&event, &Tables::new(&Default::default()).expect("the built-in tables are tested"));
    facts.identify(&mut event.metadata);
    let wedding = Wedding::read(&facts.old, None, &TimeZone::UTC);
    facts.complete(&mut event, Some(&wedding));
    let now = "2026-05-01T12:00:00Z".parse().expect("a time");
    move || {
        let question = Question { event: &event, facts: &facts, wedding: Some(&wedding), zone: &TimeZone::UTC, now };
        black_box(routes.plan(black_box(question)));
    }
}

fn route(number: usize) -> Route {
    let (table, place) = (number % TABLES, number / TABLES);
    let table = if table == 0 { "wedding_details".to_owned() } else { format!("table_{table}") };
    let type_ = if place.is_multiple_of(2) { format!("{table}.*") } else { format!("{table}.update") };
    let channel = (place >= EVERYWHERE).then(|| format!("wedding:w{}", place - EVERYWHERE));
    let condition = if place % 4 == 1 { "new.guest_count != old.guest_count" } else { "" };
    Route {
        id: format!("route-{number}"),
        description: String::new(),
        types: vec![TypePattern::parse(&type_).expect("a pattern")],
        channel_pattern: channel.map(|channel| ChannelPattern::parse(&channel).expect("a pattern")),
        condition: RouteCondition::parse(condition).expect("a condition"),
        wishes: vec![Wish::webhooks()],
        collapse: None,
        disabled: false,
        built_in: false,
        version: 1,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn update() -> Event {
    let change = Change {
        schema: "public".to_owned(),
        table: "wedding_details".to_owned(),
        operation: Operation::Update,
        old: Some(Bytes::from_static(OLD.as_bytes())),
        new: Some(Bytes::from_static(NEW.as_bytes())),
    };
    Event {
        organization: OrganizationId::parse("bench").expect("well-formed"),
        id: "e1".to_owned(),
        uid: String::new(),
        type_: EventType::of_change("wedding_details", Operation::Update.as_str()),
        source: "bench".to_owned(),
        subject: String::new(),
        time: Timestamp::UNIX_EPOCH,
        ordering_key: String::new(),
        channels: Vec::new(),
        payload: Payload::Change(change),
        metadata: Metadata::default(),
        lowered: false,
    }
}
