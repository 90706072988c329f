use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chassis::{
    auth::{Caller, Role, Scopes},
    clock::Clock,
    lane::{Attempted, Courier, Delivery, Dispatcher, Outcome, Slots},
    secret::DataKeys,
    service::Chassis,
    testing::{manual_clock, noon, on_each_engine},
};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tonic::Code;

use super::*;
use crate::{
    integration::{Integrations, Kind, tests::settings},
    outbox::Outbox,
    record::{Links, Records, Update},
};

struct Nobody;

impl Courier for Nobody {
    async fn attempt(&self, _: Arc<Delivery>) -> Attempted {
        let (class, error) = ("delivered", String::new());
        Attempted { outcome: Outcome::Delivered, status_code: None, class, error, response: Bytes::new() }
    }

    async fn closed(&self, _: &str, _: &str) {}
}

struct World {
    rpc: RecordRpc,
    integrations: Integrations,
}

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, async |store| {
        let (chassis, (_, clock)) = (Chassis::for_test(), manual_clock());
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("keys"), clock.clone());
        let (courier, tasks, slots) = (Arc::new(Nobody), &chassis.tasks, Slots::default());
        let dispatcher = Dispatcher::start(store.clone(), keys.clone(), courier, slots, Clock::System, tasks)
            .await
            .expect("it starts");
        let records = Records::new(store.clone(), keys.clone(), clock.clone());
        let links = Links::new(store.clone(), keys.clone());
        let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher, clock.clone());
        let integrations = Integrations::new(store.clone(), keys.clone(), clock.clone());
        let resolver = Resolver::new(store, keys, clock, records, links, outbox);
        let world = World { rpc: RecordRpc { resolver }, integrations };
        for name in ["acme", "other"] {
            world.rpc.resolver.keys.of(&organization(name)).await.expect("a key");
        }
        test(world).await;
    })
    .await;
}

fn organization(name: &str) -> OrganizationId {
    OrganizationId::parse(name).expect("well-formed")
}

fn as_member<T>(name: &str, message: T) -> Request<T> {
    let organization = Some(organization(name));
    let caller = Caller { organization, role: Role::Member, scopes: Scopes::all(), name: "anna".to_owned() };
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

impl World {
    async fn say(&self, source: &str, minutes: i64, update: impl FnOnce(Update) -> Update) {
        let at = noon() - SignedDuration::from_hours(1) + SignedDuration::from_mins(minutes);
        let update = update(Update::new(Source(source.to_owned()), at, BTreeMap::new()));
        let key = RecordKey::new(organization("acme"), RecordKind::Wedding, "w1").expect("well-formed");
        let resolver = &self.rpc.resolver;
        let mut tx = resolver.store.begin().await.expect("begun");
        resolver.records.apply_in(&mut tx, &key, &update).await.expect("applied");
        tx.commit().await.expect("committed");
    }

    async fn count(&self, source: &str, minutes: i64, guests: i64) {
        let fields = BTreeMap::from([("guest_count".to_owned(), json!(guests))]);
        self.say(source, minutes, |update| Update { fields, ..update }).await;
    }

    async fn get(&self) -> wire::GetRecordResponse {
        let request = wire::GetRecordRequest { id: "w1".to_owned(), kind: WEDDING, ..Default::default() };
        self.rpc.get_record(as_member("acme", request)).await.expect("it is there").into_inner()
    }

    async fn resolve(
        &self,
        id: &str,
        resolution: wire::Resolution,
        value: &str,
    ) -> Result<wire::ResolveConflictResponse, Status> {
        let (id, value) = (id.to_owned(), value.to_owned());
        let request = wire::ResolveConflictRequest { id, value, resolution: resolution.into(), ..Default::default() };
        Ok(self.rpc.resolve_conflict(as_member("acme", request)).await?.into_inner())
    }

    /// Types and contents of what waits for the router.
    async fn told(&self) -> Vec<(String, Value)> {
        let (events, _) = self.rpc.resolver.outbox.look(&organization("acme")).await;
        let content = |event: &proto::router::v1::Event| match event.payload.as_ref() {
            Some(proto::router::v1::event::Payload::Content(content)) => {
                serde_json::from_slice(&content.data).expect("JSON")
            }
            other => panic!("no content: {other:?}"),
        };
        events.iter().map(|event| (event.r#type.clone(), content(event))).collect()
    }
}

const WEDDING: i32 = wire::RecordKind::Wedding as i32;

fn pin(source: &str, record_id: &str) -> wire::PinFieldRequest {
    let (field, record_id, source) = ("guest_count".to_owned(), record_id.to_owned(), source.to_owned());
    let pin = wire::Pin { kind: WEDDING, field, record_id, source, ..Default::default() };
    wire::PinFieldRequest { pin: Some(pin), ..Default::default() }
}

#[tokio::test]
async fn what_a_person_decides_stands_and_is_told_on() {
    in_each_world(async |world| {
        world.count("i1", 5, 100).await;
        world.count("i2", 2, 90).await;
        let got = world.get().await;
        let field = &got.record.as_ref().expect("a record").fields["guest_count"];
        assert_eq!((field.value.as_str(), field.source.as_str(), got.conflicts.len()), ("100", "i1", 1));
        let conflict = &got.conflicts[0];
        assert_eq!((conflict.state(), conflict.reason()), (wire::ConflictState::Settled, wire::ConflictReason::Older));
        let losing = conflict.losing.as_ref().expect("a value");
        assert_eq!((losing.value.as_str(), losing.source.as_str()), ("90", "i2"));

        for (resolution, value) in [
            (wire::Resolution::Unspecified, ""),
            (wire::Resolution::Keep, "1"),
            (wire::Resolution::Value, "not JSON"),
            (wire::Resolution::Value, ""),
        ] {
            let refused = world.resolve(&conflict.id, resolution, value).await.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{resolution:?} {value}");
        }
        let resolved = world.resolve(&conflict.id, wire::Resolution::Value, " 95 ").await.expect("resolved");
        assert_eq!(resolved.changes.len(), 1);
        assert_eq!((resolved.changes[0].old_value.as_str(), resolved.changes[0].new_value.as_str()), ("100", "95"));
        let told = world.told().await;
        assert_eq!((told.len(), told[0].0.as_str()), (1, "guest_count.changed"));
        assert_eq!((&told[0].1["guest_count"], &told[0].1["old"]["guest_count"]), (&json!(95), &json!(100)));
        let again = world.resolve(&conflict.id, wire::Resolution::Keep, "").await.expect_err("decided");
        assert_eq!(again.code(), Code::FailedPrecondition);
        let request = wire::ListConflictsRequest { integration_id: "i2".to_owned(), ..Default::default() };
        let listed = world.rpc.list_conflicts(as_member("acme", request)).await.expect("listed").into_inner().conflicts;
        assert_eq!((listed.len(), listed[0].resolved_by.as_str()), (1, "anna"));
        assert_eq!(listed[0].resolution(), wire::Resolution::Value);
    })
    .await;
}

#[tokio::test]
async fn a_deletion_against_an_edit_is_listed_as_open_and_goes_as_somebody_says() {
    in_each_world(async |world| {
        world.count("i1", 5, 100).await;
        world.say("i2", 3, |update| Update { deleted: true, ..update }).await;
        let request = wire::ListConflictsRequest { state: wire::ConflictState::Open.into(), ..Default::default() };
        let open = world.rpc.list_conflicts(as_member("acme", request)).await.expect("listed").into_inner().conflicts;
        assert_eq!((open.len(), open[0].field.as_str()), (1, ""));
        assert_eq!(open[0].reason(), wire::ConflictReason::DeletedAndEdited);
        world.resolve(&open[0].id, wire::Resolution::Take, "").await.expect("resolved");
        let record = world.get().await.record.expect("it is remembered");
        assert_eq!((record.deleted_at.is_some(), record.deleted_by.as_str()), (true, "person"));
        assert_eq!(world.told().await.len(), 1, "it is told on");
    })
    .await;
}

#[tokio::test]
async fn a_pin_of_a_record_counts_at_once_and_is_told_on_and_a_pin_to_nobody_is_refused() {
    in_each_world(async |world| {
        let acme = organization("acme");
        let mut vendor = settings(Kind::SignedWebhook);
        vendor.vendor = "tave".to_owned();
        let integration =
            world.integrations.create(acme, vendor, &"a-secret".to_owned().into()).await.expect("created");
        world.count(&integration.id, 1, 100).await;
        world.count("wedsync", 2, 120).await;
        for source in ["", "person", "a b", "01990000-0000-7000-8000-000000000009"] {
            assert!(world.rpc.pin_field(as_member("acme", pin(source, "w1"))).await.is_err(), "{source}");
        }
        let foreign = world.rpc.pin_field(as_member("other", pin(&integration.id, ""))).await.expect_err("not its own");
        assert_eq!(foreign.code(), Code::NotFound);
        let pinned = world.rpc.pin_field(as_member("acme", pin(&integration.id, "w1"))).await.expect("pinned");
        let pinned = pinned.into_inner();
        assert_eq!(pinned.changes[0].new_value, "100");
        assert_eq!(pinned.pin.expect("as it is kept").pinned_by, "anna");
        assert_eq!(world.told().await[0].0, "guest_count.changed");
        let request = wire::UnpinFieldRequest { kind: WEDDING, field: "guest_count".to_owned(), ..Default::default() };
        let none = world.rpc.unpin_field(as_member("acme", request.clone())).await.expect_err("it is the record's");
        assert_eq!(none.code(), Code::NotFound);
        let request = wire::UnpinFieldRequest { record_id: "w1".to_owned(), ..request };
        let unpinned = world.rpc.unpin_field(as_member("acme", request)).await.expect("unpinned").into_inner();
        assert_eq!(unpinned.changes[0].new_value, "120");
    })
    .await;
}

#[tokio::test]
async fn pages_hold_every_conflict_and_every_pin_once() {
    in_each_world(async |world| {
        for source in ["i1", "i2", "i3", "i4"] {
            world.count(source, i64::from(source.as_bytes()[1]), i64::from(source.as_bytes()[1])).await;
        }
        let (mut token, mut sources) = (String::new(), Vec::new());
        loop {
            let request = wire::ListConflictsRequest { page_size: 2, page_token: token, ..Default::default() };
            let page = world.rpc.list_conflicts(as_member("acme", request)).await.expect("a page").into_inner();
            sources
                .extend(page.conflicts.into_iter().filter_map(|conflict| conflict.losing).map(|losing| losing.source));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        sources.sort();
        assert_eq!(sources, ["i1", "i2", "i3"]);
        for record in ["", "w1", "w2"] {
            world.rpc.pin_field(as_member("acme", pin("wedsync", record))).await.expect("pinned");
        }
        let (mut token, mut records) = (String::new(), Vec::new());
        for _ in 0..2 {
            let request = wire::ListPinsRequest { page_size: 2, page_token: token, ..Default::default() };
            let page = world.rpc.list_pins(as_member("acme", request)).await.expect("a page").into_inner();
            records.extend(page.pins.into_iter().map(|pin| pin.record_id));
            token = page.next_page_token;
        }
        assert_eq!((records, token.as_str()), (vec![String::new(), "w1".to_owned(), "w2".to_owned()], ""));
        for token in ["x", "[1]", "[\"\\u0000\",\"\",\"\"]"] {
            let request = wire::ListPinsRequest { page_token: token.to_owned(), ..Default::default() };
            assert_eq!(
                world.rpc.list_pins(as_member("acme", request)).await.expect_err(token).code(),
                Code::InvalidArgument
            );
        }
    })
    .await;
}

#[tokio::test]
async fn another_organization_sees_and_changes_nothing_by_any_method() {
    in_each_world(async |world| {
        world.count("wedsync", 5, 100).await;
        world.count("i2", 2, 90).await;
        world.rpc.pin_field(as_member("acme", pin("wedsync", "w1"))).await.expect("pinned");
        let id = world.get().await.conflicts[0].id.clone();
        let rpc = &world.rpc;
        let get = wire::GetRecordRequest { id: "w1".to_owned(), kind: WEDDING, ..Default::default() };
        let got = rpc.get_record(as_member("other", get)).await.map(drop);
        let resolve =
            wire::ResolveConflictRequest { id, resolution: wire::Resolution::Take.into(), ..Default::default() };
        let resolved = rpc.resolve_conflict(as_member("other", resolve)).await.map(drop);
        let (field, record_id) = ("guest_count".to_owned(), "w1".to_owned());
        let unpin = wire::UnpinFieldRequest { kind: WEDDING, field, record_id, ..Default::default() };
        let unpinned = rpc.unpin_field(as_member("other", unpin)).await.map(drop);
        let named = wire::ListPinsRequest { organization_id: "acme".to_owned(), ..Default::default() };
        let named = rpc.list_pins(as_member("other", named)).await.map(drop);
        for answer in [got, resolved, unpinned, named] {
            assert_eq!(answer.expect_err("not its own").code(), Code::NotFound);
        }
        let conflicts = rpc.list_conflicts(as_member("other", wire::ListConflictsRequest::default())).await;
        assert!(conflicts.expect("listed").into_inner().conflicts.is_empty());
        let pins = rpc.list_pins(as_member("other", wire::ListPinsRequest::default())).await.expect("listed");
        assert!(pins.into_inner().pins.is_empty());
        let own = rpc.pin_field(as_member("other", pin("wedsync", "w1"))).await.expect("its own record of that name");
        assert!(own.into_inner().changes.is_empty());
        assert_eq!(world.get().await.record.expect("there").fields["guest_count"].value, "100");
    })
    .await;
}
