//! Whole imports on a real store, through the real resolver: what they count, what stops them, and what being killed leaves.

mod bounds;
mod refused;

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
};

use chassis::{
    clock::Clock,
    config::{Secret, StoreSettings},
    error::Error,
    id::OrganizationId,
    lane::{Dispatcher, Slots},
    outbound::{Outbound, OutboundSettings},
    secret::DataKeys,
    service::Chassis,
    store::{Migrations, Store},
    testing::on_each_engine,
    with,
};
use jiff::ToSpan as _;
use tokio::sync::mpsc;

use super::{
    Import, Order, Origin, State, Work,
    columns::Options,
    run::Came,
    spool::Upload,
    store::Imports,
    work::{Pages, Worker},
};
use crate::{
    endpoint::book::Book,
    integration::{Integration, Integrations, Kind, tests::settings},
    record::RecordKind,
    sync::{Engine, courier::Couriers, tests::engine},
    webhook::Webhooks,
};

pub(crate) struct World {
    pub(crate) worker: Worker,
    pub(crate) store: Store,
    integration: Option<Integration>,
    pub(crate) engine: Engine,
    pub(crate) chassis: Chassis,
}

pub(crate) const MIGRATIONS: &[&Migrations] =
    &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    on_each_engine(MIGRATIONS, |store| async { test(World::over(store, Chassis::for_test()).await).await }).await;
}

impl World {
    /// Over a fresh store, with an integration.
    pub(crate) async fn over(store: Store, chassis: Chassis) -> Self {
        let mut world = Self::around(store, chassis).await;
        let secret = Secret::from("a secret of 24 characters".to_owned());
        let settings = settings(Kind::SignedWebhook);
        let created = world.worker.integrations.create(organization("acme"), settings, &secret).await;
        world.integration = Some(created.expect("an integration"));
        world
    }

    /// Over a store that is there.
    pub(crate) async fn open(settings: &StoreSettings, chassis: Chassis) -> Self {
        Self::around(Store::open(settings, MIGRATIONS).await.expect("a store"), chassis).await
    }

    async fn around(store: Store, chassis: Chassis) -> Self {
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("keys"), chassis.clock.clone());
        let integrations = Integrations::new(store.clone(), keys.clone(), chassis.clock.clone());
        let (engine, worker) = parts(&store, &keys, integrations, &chassis).await;
        Self { worker, store, integration: None, engine, chassis }
    }

    pub(crate) fn order(&self, origin: Origin, kind: RecordKind) -> Order {
        let integration = self.integration.as_ref().expect("it was made");
        Order {
            organization: integration.organization.clone(),
            integration_id: integration.id.clone(),
            work: Work::Import,
            origin,
            kind,
            options: Options::default(),
            dry_run: false,
        }
    }

    pub(crate) async fn upload(&self, order: Order, file: &[u8]) -> Import {
        let import = self.worker.imports.begin(order).await.expect("it begins");
        let mut upload = Upload::new(self.worker.imports.clone(), import);
        for piece in file.chunks(100_000) {
            upload.push(piece).await.expect("it is taken in");
        }
        upload.complete().await.expect("it is whole")
    }

    /// Uploads clients, works at the import, and gives it as it is then.
    pub(crate) async fn import(&self, file: &str) -> Import {
        let import = self.upload(self.order(Origin::Csv, RecordKind::Client), file.as_bytes()).await;
        self.go_on(&import).await
    }

    pub(crate) async fn go_on(&self, import: &Import) -> Import {
        loop {
            match self.worker.attend(&import.order.organization, &import.id).await {
                Came::Ended => break,
                Came::HasMore => {}
                Came::Waits(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        self.worker.imports.forget_spools().await.expect("it is forgotten");
        self.get(import).await
    }

    pub(crate) async fn get(&self, import: &Import) -> Import {
        self.worker.imports.get(&import.order.organization, &import.id).await.expect("it is there")
    }

    pub(crate) async fn count(&self, text: &'static str) -> i64 {
        with!(self.store.reader(), c => sqlx::query_scalar(text).fetch_one(c).await).expect("a number")
    }

    pub(crate) async fn age(&self, text: &'static str) {
        with!(self.store.writer(), c => sqlx::query(text).execute(c).await.map(drop)).expect("it is older");
    }

    pub(crate) async fn told(&self) -> i64 {
        self.count("SELECT COUNT(*) FROM outbox").await
    }
}

async fn parts(store: &Store, keys: &DataKeys, integrations: Integrations, chassis: &Chassis) -> (Engine, Worker) {
    let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    let outbound = Outbound::new(&loopback).expect("a client");
    let webhooks = Webhooks::new(Book::default(), outbound.clone(), Clock::System, mpsc::channel(8).0);
    let vendors = Arc::new(OnceLock::new());
    let courier = Arc::new(Couriers { webhooks, vendors: vendors.clone() });
    let started =
        Dispatcher::start(store.clone(), keys.clone(), courier, Slots::default(), Clock::System, &chassis.tasks);
    let engine = engine(store, keys, &started.await.expect("it starts"), &outbound, &vendors).await;
    let imports = Imports::new(store.clone(), keys.clone(), Clock::System);
    let worker = Worker::new(imports, integrations, &engine);
    (engine, worker)
}

pub(crate) fn organization(id: &str) -> OrganizationId {
    OrganizationId::parse(id).expect("well-formed")
}

pub(crate) fn table(rows: usize, guests: impl Fn(usize) -> usize) -> String {
    let rows = (0..rows).map(|row| format!("c{row},Ann{row},ann{row}@example.com,{}\n", guests(row)));
    format!("id,first name,e-mail,guests\n{}", rows.collect::<String>())
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_tells_nobody() {
    in_each_world(async |world| {
        let file = table(1_203, |row| row);
        let first = world.import(&file).await;
        assert_eq!(
            (first.state, first.counts.created, first.counts.changed),
            (State::Done, 1_203, 0),
            "{}",
            first.reason
        );
        let told = world.told().await;
        assert_eq!(told, 1_203, "each new client is told once");
        let second = world.import(&file).await;
        assert_eq!(
            (second.state, second.counts.seen, second.counts.unchanged),
            (State::Done, 1_203, 1_203),
            "{}",
            second.reason
        );
        assert_eq!(world.told().await, told);
        assert_eq!(world.count("SELECT COUNT(*) FROM import_chunks").await, 0, "what was taken in is forgotten");
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_its_line_and_the_rest_is_taken() {
    in_each_world(async |world| {
        let import = world.import("id,e-mail,guests\n1,a@b.c,10\n2,b@b.c,many\n\n3,c@b.c,30\n").await;
        assert_eq!((import.state, import.counts.created, import.counts.refused), (State::Done, 2, 1));
        assert_eq!(
            (import.refusals[0].line, import.refusals[0].reason.as_str()),
            (3, "guest_count: many is no number of people")
        );
        let stored: Vec<u8> =
            with!(world.store.reader(), c => sqlx::query_scalar("SELECT refusals FROM imports").fetch_one(c).await)
                .expect("a row");
        assert!(!String::from_utf8_lossy(&stored).contains("many"), "refusals quote people: they are sealed");
        let refused = world.import("shoe,size\n1,2\n").await;
        assert_eq!((refused.state, refused.counts.seen), (State::Failed, 0));
        assert!(refused.reason.contains("no column is known"), "{}", refused.reason);
    })
    .await;
}

#[tokio::test]
async fn a_calendar_becomes_bookings() {
    in_each_world(async |world| {
        let event = |uid, more| {
            format!("BEGIN:VEVENT\r\nUID:{uid}\r\nDTSTART:20270619T140000Z\r\nSUMMARY:Tasting\r\n{more}END:VEVENT\r\n")
        };
        let file =
            format!("BEGIN:VCALENDAR\r\n{}{}END:VCALENDAR\r\n", event("a", ""), event("b", "RRULE:FREQ=DAILY\r\n"));
        let import = world.upload(world.order(Origin::Ics, RecordKind::Booking), file.as_bytes()).await;
        let import = world.go_on(&import).await;
        assert_eq!(
            (import.state, import.counts.created, import.counts.refused),
            (State::Done, 1, 1),
            "{}",
            import.reason
        );
        assert_eq!(import.refusals[0].line, 7);
    })
    .await;
}

#[tokio::test]
async fn a_mass_change_asks_before_anything_is_applied_and_goes_on_when_a_person_says_so() {
    in_each_world(async |world| {
        world.import(&table(300, |row| row)).await;
        let told = world.told().await;
        let asked = world.import(&table(300, |row| row + 1)).await;
        assert_eq!((asked.state, asked.counts.linked, asked.counts.planned), (State::Asked, 300, 300));
        assert_eq!(asked.examples.len(), super::KEPT);
        assert_eq!(world.told().await, told + 1, "that it asks, and nothing else");
        let again = world.worker.imports.begin(world.order(Origin::Csv, RecordKind::Client)).await;
        assert!(matches!(again, Err(Error::FailedPrecondition(_))), "one at a time");
        let resumed = world.worker.imports.resume(&asked.order.organization, &asked.id).await.expect("it asks");
        let done = world.go_on(&resumed).await;
        assert_eq!((done.state, done.counts.changed), (State::Done, 300), "{}", done.reason);
        assert_eq!(world.told().await, told + 301);
    })
    .await;
}

#[tokio::test]
async fn a_small_change_asks_nobody_and_a_dry_run_changes_nothing() {
    in_each_world(async |world| {
        world.import(&table(300, |row| row)).await;
        let changed = table(310, |row| if row < 60 { row + 1 } else { row });
        let told = world.told().await;
        let mut order = world.order(Origin::Csv, RecordKind::Client);
        order.dry_run = true;
        let dry = world.upload(order, changed.as_bytes()).await;
        let dry = world.go_on(&dry).await;
        assert_eq!((dry.state, dry.counts.created, dry.counts.changed), (State::Done, 10, 60));
        assert_eq!(world.told().await, told, "nothing was done");
        let done = world.import(&changed).await;
        assert_eq!((done.state, done.counts.created, done.counts.changed), (State::Done, 10, 60));
    })
    .await;
}

/// What comes of it, unless it has waited so often: then it is dropped where it is, as by a process that is killed.
async fn cut_after<T>(mut waits: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(came) => Poll::Ready(Some(came)),
        Poll::Pending if waits == 0 => Poll::Ready(None),
        Poll::Pending => {
            waits -= 1;
            Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn what_is_cut_short_at_any_page_goes_on_where_it_was_and_does_nothing_twice() {
    in_each_world(async |world| {
        let file = table(1_300, |row| row);
        let import = world.upload(world.order(Origin::Csv, RecordKind::Client), file.as_bytes()).await;
        let (mut steps, mut cuts) = (1, 0);
        while !world.get(&import).await.state.has_ended() {
            let attended = world.worker.attend(&import.order.organization, &import.id);
            match cut_after(steps, attended).await {
                None => cuts += 1,
                Some(Came::Waits(error)) => panic!("{error}"),
                Some(_) => {}
            }
            steps += steps / 3 + 1;
        }
        assert!(cuts >= 6, "cut {cuts} times");
        let done = world.go_on(&import).await;
        assert_eq!((done.state, done.counts.seen, done.counts.created), (State::Done, 1_300, 1_300), "{}", done.reason);
        assert_eq!((done.counts.changed, done.counts.unchanged), (0, 0), "nothing was taken twice");
        assert_eq!(world.told().await, 1_300);
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_import_stops_and_its_page_is_undone() {
    in_each_world(async |world| {
        let import = world.upload(world.order(Origin::Csv, RecordKind::Client), table(900, |row| row).as_bytes()).await;
        let cancelled = world.worker.imports.cancel(&import.order.organization, &import.id).await.expect("it runs");
        assert_eq!(cancelled.state, State::Cancelled);
        // Somebody who still has it in hand can't commit any more.
        let mut stale = import.clone();
        let refused = world.worker.work(&mut stale, &mut Pages::of_a_turn()).await.expect_err("it was cancelled");
        assert!(matches!(refused, Error::Aborted(_)), "{refused}");
        assert_eq!((world.told().await, world.get(&import).await.state), (0, State::Cancelled));
        let resumed = world.worker.imports.resume(&import.order.organization, &import.id).await;
        assert!(matches!(resumed, Err(Error::FailedPrecondition(_))));
    })
    .await;
}

#[tokio::test]
async fn another_organizations_import_is_not_found() {
    in_each_world(async |world| {
        let import = world.import(&table(1, |row| row)).await;
        let (imports, other) = (&world.worker.imports, organization("other"));
        let found = [
            imports.get(&other, &import.id).await.err(),
            imports.cancel(&other, &import.id).await.err(),
            imports.resume(&other, &import.id).await.err(),
        ];
        assert!(found.iter().all(|error| matches!(error, Some(Error::NotFound(_)))), "{found:?}");
        assert!(imports.list(&other, "", "", 10).await.expect("a page").is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_cut_off_or_no_text_never_runs() {
    in_each_world(async |world| {
        let import = world.worker.imports.begin(world.order(Origin::Csv, RecordKind::Client)).await.expect("it begins");
        let imports = &world.worker.imports;
        imports.fail_cut_off(import.created_at - 1.microseconds()).await.expect("a look");
        assert_eq!(world.get(&import).await.state, State::Receiving, "whoever began it may not have come to it yet");
        let arriving = imports.arrives(&import.id);
        imports.fail_cut_off(import.created_at).await.expect("a look");
        assert_eq!(world.get(&import).await.state, State::Receiving, "however long it takes");
        drop(arriving);
        imports.fail_cut_off(import.created_at).await.expect("a look");
        assert_eq!(world.get(&import).await.state, State::Failed);
        let import =
            world.worker.imports.begin(world.order(Origin::Csv, RecordKind::Client)).await.expect("another one may");
        let mut upload = Upload::new(world.worker.imports.clone(), import.clone());
        upload.push(b"\xFF\xFEi\0d\0").await.expect("it is taken in");
        let refused = upload.complete().await.expect_err("UTF-16");
        assert!(refused.to_string().contains("UTF-16"), "{refused}");
        upload.fail(&refused).await;
        let failed = world.get(&import).await;
        assert_eq!((failed.state, failed.reason.as_str()), (State::Failed, "the file is UTF-16: save it as CSV UTF-8"));
        world.import("id,e-mail\n1,a@b.c\n").await;
    })
    .await;
}

#[tokio::test]
async fn what_was_spooled_goes_in_small_steps_after_its_import_has_ended_and_when_its_integration_has_gone() {
    in_each_world(async |world| {
        let fill = async |import: &Import| {
            for number in 0..1_100_i64 {
                with!(world.store.writer(), c => {
                    let text = "INSERT INTO import_items (import_id, number, record_kind, external_hash, body) VALUES ($1, $2, 'client', $3, $3)";
                    sqlx::query(text).bind(&import.id).bind(number).bind(vec![0_u8]).execute(c).await.map(drop)
                })
                .expect("an item");
            }
        };
        let left = async || world.count("SELECT (SELECT COUNT(*) FROM import_items) + (SELECT COUNT(*) FROM import_chunks)").await;
        let mut done = world.upload(world.order(Origin::Csv, RecordKind::Client), table(1, |row| row).as_bytes()).await;
        fill(&done).await;
        world.worker.end(&mut done, State::Done).await.expect("it ends");
        assert_eq!(left().await, 1_101, "not in the transaction of its end");
        world.worker.imports.purge().await.expect("it is forgotten");
        assert_eq!(left().await, 0);

        let mut failed = world.upload(world.order(Origin::Csv, RecordKind::Client), table(1, |row| row).as_bytes()).await;
        fill(&failed).await;
        world.worker.end(&mut failed, State::Failed).await.expect("it ends");
        world.worker.imports.purge().await.expect("nothing is over");
        assert_eq!(left().await, 1_101, "it can be resumed");
        world.age("DELETE FROM integrations").await;
        world.worker.imports.purge().await.expect("it is forgotten");
        assert_eq!(left().await, 0);
    })
    .await;
}
