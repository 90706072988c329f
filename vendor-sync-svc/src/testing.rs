//! For the tests and benches of the whole system, behind the feature `testing`: vendors on loopback, and what it costs to
//! find an event's endpoints without a server around it.

pub mod vendor;

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::Arc,
};

use bytes::Bytes;
use chassis::{id::OrganizationId, signature::WebhookSecret};
use jiff::Timestamp;

use crate::{
    endpoint::{DISABLE_AFTER, Endpoint, KeptSecret, RATE_LIMIT, Settings, Since, State, TIMEOUT},
    event::{Event, Metadata, Operation, Payload, Priority},
    matching::Index,
};

/// Tables that the whole organization's endpoints are spread over; the event is of the first.
const TABLES: usize = 200;
/// One endpoint in so many is the whole organization's; of the others each supplier has two.
const SHARED: usize = 100;
const OLD: &str =
    r#"{"id":"w0","couple_id":"c1","wedding_date":"2026-06-20","guest_count":80,"vendor_ids":["v1","v2"]}"#;
const NEW: &str =
    r#"{"id":"w0","couple_id":"c1","wedding_date":"2026-06-20","guest_count":90,"vendor_ids":["v1","v2"]}"#;

/// Finds the endpoints of one update of a wedding per call, among `count` of its organization: those of its supplier,
/// and a handful of the whole organization's.
pub fn matcher(count: usize) -> impl FnMut() {
    let mut index = Index::default();
    (0..count).for_each(|number| index.insert(&Arc::new(endpoint(number))));
    let event = update();
    move || {
        black_box(index.find(black_box(&event)));
    }
}

fn endpoint(number: usize) -> Endpoint {
    let is_shared = number.is_multiple_of(SHARED);
    let type_ = match (is_shared, number / SHARED % TABLES) {
        (false, _) if number.is_multiple_of(2) => "*".to_owned(),
        (false, _) | (true, 0) => "wedding_details.*".to_owned(),
        (true, table) => format!("table_{table}.*"),
    };
    let settings = Settings {
        supplier_id: if is_shared { String::new() } else { format!("s{}", number / 2) },
        url: "https://hooks.example.com/in".to_owned(),
        event_types: vec![type_],
        condition: if number % 4 == 1 { "new.guest_count != old.guest_count".to_owned() } else { String::new() },
        transformation: String::new(),
        headers: BTreeMap::new(),
        description: String::new(),
        rate_limit: RATE_LIMIT,
        ordered: false,
        timeout: TIMEOUT,
        schedule: Vec::new(),
        granted_fields: BTreeSet::new(),
        allowed_fields: BTreeSet::new(),
        disable_after: DISABLE_AFTER,
    };
    Endpoint {
        id: format!("endpoint-{number}").into(),
        organization: organization(),
        compiled: Arc::new(settings.check().expect("settings that pass")),
        settings,
        secrets: vec![KeptSecret { secret: WebhookSecret::generate(), expires_at: None }],
        state: State::Active,
        state_reason: String::new(),
        announce: false,
        version: 1,
        since: Since { log_id: "log".to_owned(), sequence: 5 },
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn update() -> Event {
    Event {
        organization: organization(),
        id: "e1".to_owned(),
        uid: [7; 16],
        type_: "wedding_details.update".to_owned(),
        source: "bench".to_owned(),
        subject: "w0".to_owned(),
        time: Timestamp::UNIX_EPOCH,
        ordering_key: "w0".to_owned(),
        channels: vec!["wedding:w0".to_owned()],
        payload: Payload::Change {
            schema: "public".to_owned(),
            table: "wedding_details".to_owned(),
            operation: Operation::Update,
            old: Some(Bytes::from_static(OLD.as_bytes())),
            new: Some(Bytes::from_static(NEW.as_bytes())),
        },
        metadata: Metadata { supplier_id: "s2".to_owned(), origin: "realtime".to_owned(), ..Metadata::default() },
        log_id: "log".to_owned(),
        sequence: 10,
        priority: Priority::Normal,
    }
}

fn organization() -> OrganizationId {
    OrganizationId::parse("bench").expect("well-formed")
}
