//! What a hub promises, whatever the order of things: nobody misses, nobody hears twice, nobody hears what isn't theirs.

use std::sync::Arc;

use proptest::prelude::*;
use proto::{
    common::v1::Position,
    router::v1::{Broadcast, Content, Event, Metadata, Operation},
};
use serde_json::{Value, json};

use super::*;
use crate::realtime::{
    claims::{Claims, Role},
    frame::{Encoding, Wire},
    join::Join,
    member::Subscribed,
    notice::tests::{change, content},
    outbox::Outbox,
    topic::Topic,
};

fn claims(role: Role, supplier: &str) -> Claims {
    Claims {
        organization: OrganizationId::parse("org").unwrap(),
        role,
        suppliers: vec![supplier.to_owned()],
        couple: None,
        weddings: Vec::new(),
        expires: jiff::Timestamp::MAX,
        subject: String::new(),
    }
}

/// A subscriber of `name` to changes, as `supplier`.
fn member(name: &str, changes: &Value, claims: Claims, limit: usize) -> Member {
    let join = Join::parse(&json!({ "config": { "postgres_changes": changes } }).to_string()).expect("an object");
    let predicate = Arc::new(claims.predicate());
    Member {
        topic: Topic::of_name(name).expect("a name"),
        encoding: Encoding::V2,
        outbox: Arc::new(Outbox::new(limit)),
        changes: Subscribed::all(&join.changes, &predicate),
        predicate,
        claims: Arc::new(claims),
        own: false,
        presence_key: "me".to_owned(),
        presence: true,
        positions: false,
        place: Place::Live(0),
    }
}

fn at(sequence: u64, event: Event) -> Event {
    Event { position: Some(Position { log_id: "log".to_owned(), sequence }), ..event }
}

fn frames(outbox: &Outbox) -> Vec<Value> {
    std::iter::from_fn(|| outbox.take()).map(read).collect()
}

/// As they are: not everything that is JSON has a form here.
fn texts(outbox: &Outbox) -> Vec<String> {
    std::iter::from_fn(|| outbox.take()).map(text).collect()
}

fn text(wire: Wire) -> String {
    let Wire::Text(text) = wire else { panic!("no text") };
    text.as_str().to_owned()
}

fn read(wire: Wire) -> Value {
    serde_json::from_str(&text(wire)).expect("JSON")
}

fn orders(filter: &str) -> Value {
    json!([{ "event": "*", "schema": "public", "table": "orders", "filter": filter, "leave": true }])
}

fn hub() -> Arc<Hub> {
    let hub = Hub::new(OrganizationId::parse("org").unwrap(), "gateway");
    hub.progress(Position { log_id: "log".to_owned(), sequence: 0 });
    Arc::new(hub)
}

#[test]
fn a_row_is_told_to_whom_it_belongs_and_its_leaving_to_whom_it_leaves() {
    let hub = hub();
    let join = |supplier: &str, filter: &str| {
        let member = member("room", &orders(filter), claims(Role::Supplier, supplier), 1 << 20);
        let outbox = member.outbox.clone();
        (hub.join(member, None, |_, _| {}), outbox)
    };
    let (one, two, other) = (join("s1", ""), join("s2", ""), join("s1", "id=eq.99"));
    hub.deliver(at(
        1,
        change("orders", Operation::Update, r#"{"id":1,"supplier_id":"s1"}"#, r#"{"id":1,"supplier_id":"s2"}"#),
    ));
    let data = |outbox: &Outbox| frames(outbox).iter().map(|frame| frame[4]["data"].clone()).collect::<Vec<_>>();
    let left = data(&one.1);
    assert_eq!((left.len(), &left[0]["type"], &left[0]["old_record"]["id"]), (1, &json!("DELETE"), &json!(1)));
    assert_eq!(left[0].get("record"), None, "the new row is another's");
    let came = data(&two.1);
    assert_eq!((came.len(), &came[0]["type"], &came[0]["old_record"]), (1, &json!("UPDATE"), &json!({})));
    assert!(data(&other.1).is_empty());
    hub.deliver(at(2, change("orders", Operation::Delete, r#"{"id":1,"supplier_id":"s2"}"#, "")));
    assert_eq!((data(&one.1).len(), data(&two.1).len()), (0, 1), "a DELETE by its old row");
}

#[test]
fn a_row_with_what_cannot_be_read_stays_its_owners_and_is_told() {
    let hub = hub();
    let join = |role: Role, supplier: &str| {
        let claims = Claims { weddings: vec!["w1".to_owned()], ..claims(role, supplier) };
        let member = member("wedding:w1", &orders(""), claims, 1 << 20);
        let outbox = member.outbox.clone();
        (hub.join(member, None, |_, _| {}), outbox)
    };
    let (owner, other, admin) = (join(Role::Supplier, "s1"), join(Role::Supplier, "s2"), join(Role::Admin, ""));
    let row =
        |supplier: &str| format!(r#"{{"supplier_id":"{supplier}","wedding_id":"w1","note":"\ud800","n":1e9999999}}"#);
    let told = |event: Event| {
        hub.deliver(Event { channels: vec!["wedding:w1".to_owned()], ..event });
        [&owner, &other, &admin].map(|(_, outbox)| texts(outbox))
    };
    let inserted = told(at(1, change("orders", Operation::Insert, "", &row("s1"))));
    assert_eq!(inserted.map(|frames| frames.len()), [2, 0, 2]);
    let unreadable = told(at(2, change("orders", Operation::Insert, "", r#"{"\ud800":1,"supplier_id":"s1"}"#)));
    assert_eq!(unreadable.map(|frames| frames.len()), [0, 0, 2], "whose it is can't be said");
    let updated = told(at(3, change("orders", Operation::Update, &row("s2"), &row("s1"))));
    let whole = updated.map(|frames| frames[0].contains(r#""old_record":{"supplier_id":"s2""#));
    assert_eq!(whole, [false, true, true], "the old row is another's");
}

#[test]
fn an_event_that_names_an_owner_is_told_on_a_weddings_channel_to_whom_its_row_would_be() {
    let hub = hub();
    let join = |role: Role, id: &str| {
        let couple = (role == Role::Couple).then(|| id.to_owned());
        let claims = Claims { weddings: vec!["w1".to_owned()], couple, ..claims(role, id) };
        let member = member("wedding:w1", &json!([]), claims, 1 << 20);
        let outbox = member.outbox.clone();
        (hub.join(member, None, |_, _| {}), outbox)
    };
    let all = [join(Role::Supplier, "s1"), join(Role::Supplier, "s2"), join(Role::Couple, "c1"), join(Role::Admin, "")];
    let mut sequence = 0;
    let mut told = |type_: &str, data: &str, metadata: Option<Metadata>| {
        sequence += 1;
        let event = Event { channels: vec!["wedding:w1".to_owned()], metadata, ..content(type_, data) };
        hub.deliver(at(sequence, event));
        all.each_ref().map(|(_, outbox)| texts(outbox).len())
    };
    let paid = r#"{"supplier_id":"s1","wedding_id":"w1","couple_id":"c1","amount":"1"}"#;
    assert_eq!(told("payment.received", paid, None), [1, 0, 1, 1]);
    let stated = Metadata { supplier_id: "s2".to_owned(), wedding_id: "w1".to_owned(), ..Metadata::default() };
    assert_eq!(
        told("integration.behind", "{}", Some(stated)),
        [0, 1, 1, 1],
        "of the couple's wedding, and no couple's"
    );
    let moved = r#"{"wedding_id":"w1","couple_id":"c1"}"#;
    assert_eq!(told("wedding.date_changed", moved, None), [1, 1, 1, 1], "no supplier's");
    assert_eq!(told("client.updated", r#"{"wedding_id":"w1","client_id":"c2"}"#, None), [1, 1, 0, 1]);
    assert_eq!(told("wedding.date_changed", r#"{"wedding_id":"w1"}"#, None), [1, 1, 1, 1]);
    assert_eq!(told("broadcast.chat", paid, None), [1, 1, 1, 1], "it was said to all");
}

#[test]
fn a_broadcast_reaches_the_room_by_either_name_and_its_sender_only_if_asked() {
    let hub = hub();
    let seats: Vec<_> = ["supplier_s1", "supplier:dashboard:s1", "client-updates"]
        .into_iter()
        .map(|name| {
            let member = member(name, &json!([]), claims(Role::Supplier, "s1"), 1 << 20);
            let outbox = member.outbox.clone();
            (hub.join(member, None, |_, _| {}), outbox)
        })
        .collect();
    let said = |channel: &str, sender_id: String| Broadcast {
        channel: channel.to_owned(),
        event: "e".to_owned(),
        content: Some(Content { content_type: String::new(), data: "{}".into() }),
        sender_id,
    };
    hub.broadcast(&said("supplier:dashboard:s1", seats[0].0.sender()));
    hub.broadcast(&said("couple:c1", String::new()));
    let heard: Vec<_> = seats.iter().map(|(_, outbox)| frames(outbox).len()).collect();
    assert_eq!(heard, [0, 1, 0], "a supplier may not join a couple's channel, so it doesn't hear it elsewhere");
    hub.broadcast(&said("supplier:dashboard:s1", "another gateway/1".to_owned()));
    assert_eq!(frames(&seats[0].1)[0][2], "realtime:supplier_s1", "each under its own name");
}

#[test]
fn who_leaves_is_no_longer_present_and_nothing_is_kept_of_it() {
    let hub = hub();
    let join = || {
        let member = member("room", &orders(""), claims(Role::Admin, ""), 1 << 20);
        let outbox = member.outbox.clone();
        (hub.join(member, None, |_, _| {}), outbox)
    };
    let (watching, gone) = (join(), join());
    gone.0.track(serde_json::Map::new()).expect("room");
    drop(gone.0);
    let told: Vec<_> = frames(&watching.1).iter().map(|frame| frame[4]["leaves"]["me"].is_object()).collect();
    assert_eq!(told, [false, true]);
    drop(watching.0);
    let state = hub.state();
    assert!(state.members.is_empty() && state.presences.is_empty() && state.is_empty());
}

#[test]
fn whoever_read_another_log_to_its_end_is_not_live_in_this_one() {
    let hub = hub();
    let member = member("room", &json!([]), claims(Role::Admin, ""), 1 << 20);
    let since = Position { log_id: "before".to_owned(), sequence: 1_000 };
    let seat = hub.join(member, Some(since.clone()), |_, _| {});
    assert!(!seat.go_live(|_| {}), "what comes below 1,000 would be taken for known");
    assert_eq!(seat.behind(), Some(since));
    seat.skip(|position| assert_eq!(position.log_id, "log"));
    assert_eq!(seat.behind(), None);
}

proptest! {
    /// Events are delivered, queues are emptied, the hub's latest and the log are read in any order; a queue holds a few.
    #[test]
    fn nobody_misses_or_hears_twice(steps in prop::collection::vec(0u8..5, 1..120), resume in prop::option::of(0u64..4)) {
        let hub = hub();
        let log: Vec<Event> = (1..=200)
            .map(|n| at(n, content("a.b", &json!({ "n": n }).to_string())))
            .map(|event| Event { channels: vec!["room".to_owned()], ..event })
            .collect();
        (0..4).for_each(|n| hub.deliver(log[n].clone()));
        let member = member("room", &json!([]), claims(Role::Supplier, "s1"), 1_000);
        let outbox = member.outbox.clone();
        let since = resume.map(|sequence| Position { log_id: "log".to_owned(), sequence });
        let seat = hub.join(member, since, |_, _| {});
        let (mut delivered, mut heard) = (4, Vec::new());
        let catch_up = |heard: &mut Vec<Value>, delivered: usize| {
            let Some(since) = seat.behind() else { return };
            heard.extend(frames(&outbox));
            // The log may be ahead of what was handed out.
            let (first, ahead) = (since.sequence as usize, (delivered + 1).min(log.len()));
            let page = &log[first..ahead.max(first).min(first + 3)];
            let told = seat.read(page);
            heard.extend(told.into_iter().map(read));
            if page.is_empty() {
                seat.go_live(|_| {});
            }
        };
        for step in steps {
            match step {
                0 | 1 => { hub.deliver(log[delivered].clone()); delivered += 1; }
                2 => heard.extend(frames(&outbox)),
                3 if seat.behind().is_some() => {
                    heard.extend(frames(&outbox));
                    heard.extend(seat.catch_up(|_| {}).into_iter().flatten().map(read));
                }
                _ => catch_up(&mut heard, delivered),
            }
        }
        for _ in 0..200 {
            catch_up(&mut heard, delivered);
        }
        heard.extend(frames(&outbox));
        let heard: Vec<_> = heard.iter().map(|frame| frame[4]["payload"]["n"].as_u64().expect("a number")).collect();
        let first = resume.unwrap_or(4) + 1;
        let expected: Vec<_> = (first..first + heard.len() as u64).collect();
        prop_assert_eq!(&heard, &expected);
        prop_assert!(first + heard.len() as u64 > delivered as u64, "up to what was handed out");
    }
}
