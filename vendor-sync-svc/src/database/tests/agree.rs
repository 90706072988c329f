//! Everybody agrees in the end: two vendors and an application say things about one wedding, and what they say meets on its
//! way. Whatever comes first, row and record say in the end what was said last.
//!
//! The row is a real one; a trigger keeps its images in the order of their commits, as a replication stream does. When they,
//! the resolved events and the letters are handed on is the script's choice. Here are the wedding and the steps, in
//! [`scripts`] the orders that they come in: some that can lose, and many by chance.

mod scripts;

use std::{collections::VecDeque, time::Duration};

use chassis::config::Secret;
use tokio::time::timeout;

use super::*;
use crate::{
    event::{Event, Priority},
    resolve::{Incoming, Origin},
    rpc::wire,
    sync::{Engine, account::Account, carry::Carrier, letter::Letter},
};

const IMAGES: &str = "CREATE TABLE images (id bigserial PRIMARY KEY, old jsonb, new jsonb);
     CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
     INSERT INTO images (old, new) VALUES (CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END, to_jsonb(NEW)); RETURN NULL; END $$;
     CREATE TRIGGER kept AFTER INSERT OR UPDATE ON wedding_details FOR EACH ROW EXECUTE FUNCTION keep()";

/// Columns that are spoken of, with how a number is said in each.
const FIELDS: [&str; 3] = ["guest_count", "venue_name", "venue_notes"];

fn said(field: &str, number: i64) -> Value {
    if field == "guest_count" { json!(number) } else { json!(format!("no. {number}")) }
}

/// A wedding, what is said of it, and what is on its way.
struct Play<'a> {
    world: &'a World,
    engine: Engine,
    carrier: Carrier,
    database: Arc<Account>,
    vendors: [Integration; 2],
    /// Whether images tell what the row was before.
    full: bool,
    /// The last image that was handed on.
    image: i64,
    letters: VecDeque<Letter>,
    /// Whether that tells when each thing was said. Else a row's whole image counts from its own time, and an older word of
    /// the application's that comes with it may win: all agree, though not on what was said last.
    exact: bool,
    /// What was said last of each field, and when.
    expected: BTreeMap<&'static str, (Timestamp, Value)>,
}

impl<'a> Play<'a> {
    async fn open(world: &'a World, full: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("play-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let organization = OrganizationId::parse(&name).expect("well-formed");
        world
            .run("DROP TABLE IF EXISTS images; DROP FUNCTION IF EXISTS keep CASCADE; DELETE FROM wedding_details")
            .await;
        world.run(IMAGES).await;
        let engine = crate::sync::tests::with_keys(&world.store, &world.keys).await;
        let database = Self::account(&engine, &organization, "database", world.url.as_str()).await;
        let vendor = async |connector: &'static str| Self::account(&engine, &organization, connector, "k").await;
        let vendors = [vendor("crm").await, vendor("venue").await];
        let (caller, resolver) = (engine.caller.clone(), engine.resolver.clone());
        let (records, known) = (resolver.records.clone(), engine.known.clone());
        let database_of = Database::new(engine.credentials.clone(), outbound(true));
        let carrier = Carrier { caller, records, known, resolver, database: database_of };
        let database = engine.accounts.get(&database.id).expect("it is told");
        let (letters, expected) = (VecDeque::new(), BTreeMap::new());
        Self { world, engine, carrier, database, vendors, full, exact: true, image: 0, letters, expected }
    }

    async fn account(engine: &Engine, organization: &OrganizationId, connector: &str, key: &str) -> Integration {
        let parameters = (connector != "database").then(|| ("url".to_owned(), "http://127.0.0.1:9".to_owned()));
        // Its lane stands still: letters are carried by hand.
        let settings = Settings {
            connector: connector.to_owned(),
            vendor: connector.to_owned(),
            parameters: parameters.into_iter().collect(),
            supplier_id: String::new(),
            paused: true,
            ..settings(Kind::Connector)
        };
        let secret = Secret::from("s".to_owned());
        let made = engine.accounts.integrations.create(organization.clone(), settings, &secret).await.expect("made");
        let kept = Kept::Key(key.to_owned().into());
        engine.credentials.connections.connect(&made, &kept, &BTreeMap::new(), None).await.expect("connected");
        engine.accounts.refresh(organization, &made.id).await.expect("known");
        made
    }

    fn expect(&mut self, field: &'static str, at: Timestamp, value: Value) {
        let last = self.expected.get(field).map(|(last, _)| *last);
        if last.is_none_or(|last| last < at) {
            self.expected.insert(field, (at, value));
        }
    }

    async fn begins(&mut self) {
        self.world.wedding(self.database.integration.organization.as_str(), 1, minutes(-90)).await;
        self.expect("guest_count", minutes(-90), json!(1));
        self.expect("venue_name", minutes(-90), json!("Mill"));
    }

    /// The application says so; the statement that does.
    fn statement(&mut self, field: &'static str, number: i64, minute: i64) -> String {
        let value = said(field, number);
        self.expect(field, minutes(minute), value.clone());
        let text = value.as_str().map_or_else(|| value.to_string(), |text| format!("'{text}'"));
        let at = minutes(minute);
        format!("UPDATE wedding_details SET {field} = {text}, updated_at = '{at}'::timestamptz AT TIME ZONE 'UTC'")
    }

    async fn app(&mut self, field: &'static str, number: i64, minute: i64) {
        let statement = self.statement(field, number, minute);
        self.world.run(&statement).await;
    }

    /// A vendor says so.
    async fn vendor(&mut self, vendor: usize, field: &'static str, number: i64, minute: i64) {
        let value = said(field, number);
        self.expect(field, minutes(minute), value.clone());
        let incoming = Incoming {
            kind: RecordKind::Wedding,
            external_id: ID.to_owned(),
            external_version: String::new(),
            at: minutes(minute),
            fields: BTreeMap::from([(field.to_owned(), value)]),
            deleted: false,
            priority_low: false,
            origin: Origin::Webhook,
        };
        self.engine.resolver.take(&self.vendors[vendor], vec![incoming]).await.expect("it is taken");
    }

    async fn offer(&mut self, event: &Event, again: bool) {
        let kinds = [("database".to_owned(), Priority::Normal)].into();
        let offers = self.engine.offers.of(event, &kinds, "realtime", again).await.expect("they are made");
        let own = offers.into_iter().filter(|offer| *offer.lane_id == *self.database.integration.id);
        self.letters.extend(own.map(|offer| Letter::open(offer.content).expect("a letter")));
    }

    /// Hands the next resolved event on; whether there was one.
    async fn resolved(&mut self) -> bool {
        // What the vendors are told isn't looked at.
        self.deletes("DELETE FROM outbox WHERE lane_id <> $1", "").await;
        let organization = &self.database.integration.organization;
        let (events, _) = self.engine.resolver.outbox.look(organization).await;
        let Some(mut event) = events.into_iter().next() else { return false };
        event.uid = id::uuid(Clock::System.now());
        self.deletes("DELETE FROM outbox WHERE event_id = $1", &event.id).await;
        self.offer(&wire::event(event).expect("an event"), false).await;
        true
    }

    async fn deletes(&self, text: &'static str, value: &str) {
        let delete = async || chassis::with!(self.world.store.writer(), c => sqlx::query(text).bind(value).execute(c).await.map(drop));
        // The store gives a row that somebody holds up after five seconds, which a busy machine can take.
        for _ in 0..10 {
            match delete().await {
                Ok(()) => return,
                Err(error) => println!("{error}"),
            }
        }
        panic!("{text} never ends");
    }

    /// Hands the next image on; whether there was one.
    async fn row(&mut self) -> bool {
        let Some(image) = self.look_at(self.image).await else { return false };
        self.image = image.sequence.cast_signed();
        self.offer(&image, false).await;
        true
    }

    /// The stream breaks: the last images come again.
    async fn rows_again(&mut self, count: i64) {
        let mut image = (self.image - count).max(0);
        while image < self.image {
            let event = self.look_at(image).await.expect("it came before");
            image = event.sequence.cast_signed();
            self.offer(&event, true).await;
        }
    }

    async fn look_at(&self, after: i64) -> Option<Event> {
        let mut connection = PgConnection::connect(self.world.url.as_str()).await.expect("the server is there");
        let row: Option<(i64, Option<String>, String)> =
            sqlx::query_as("SELECT id, old::text, new::text FROM images WHERE id > $1 ORDER BY id LIMIT 1")
                .bind(after)
                .fetch_optional(&mut connection)
                .await
                .expect("read");
        let (number, old, new) = row?;
        // The column has no zone; a stream gives it in UTC.
        let zoned = |row: &str| {
            let mut row: Value = serde_json::from_str(row).expect("JSON");
            row["updated_at"] = json!(format!("{}Z", row["updated_at"].as_str().expect("a time")));
            row.to_string()
        };
        let old = old.map(|old| if self.full { zoned(&old) } else { json!({ "id": ID }).to_string() });
        let mut event = change(&old.unwrap_or_default(), &zoned(&new));
        event.organization = self.database.integration.organization.clone();
        (event.id, event.sequence) = (format!("image-{number}"), number.unsigned_abs());
        Some(event)
    }

    /// Carries the next letter; it is tried again at the next turn where that failed, unless it is dead.
    async fn carry(&mut self) -> bool {
        let Some(letter) = self.letters.front() else { return false };
        match self.carrier.write_back(&self.database.integration, letter).await {
            Err(error) if error.class != Class::Permanent => println!("to be tried again: {error:?}"),
            _ => drop(self.letters.pop_front()),
        }
        true
    }

    /// The process dies between the row's commit and ours; the letter is tried again.
    async fn carry_and_die(&mut self) {
        let Some(letter) = self.letters.front() else { return };
        let (integration, before) = (&self.database.integration, self.images().await);
        let turn = self.engine.resolver.turns.of(&integration.organization).await;
        let committed = async {
            while self.images().await == before {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            // What isn't written needs no turn to be noted.
            _ = self.carrier.write_back(integration, letter) => {}
            () = committed => {}
            () = Clock::System.sleep(Duration::from_millis(500)) => {}
        }
        drop(turn);
    }

    /// The application's statement is under way when the letter comes, and committed before it.
    async fn carry_behind(&mut self, field: &'static str, number: i64, minute: i64) {
        let Some(letter) = self.letters.front().cloned() else { return };
        let statement = self.statement(field, number, minute);
        let mut app = PgConnection::connect(self.world.url.as_str()).await.expect("the server is there");
        let mut tx = app.begin().await.expect("it begins");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut *tx).await.expect("it is said");
        let carried = async { self.carrier.write_back(&self.database.integration, &letter).await.is_ok() };
        let commit = async {
            let mut watch = PgConnection::connect(self.world.url.as_str()).await.expect("the server is there");
            let waits = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND pid IN \
                 (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
            let wait = async {
                while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watch).await.expect("counted") == 0 {
                    tokio::task::yield_now().await;
                }
            };
            // One that has nothing to write waits for nobody.
            drop(timeout(Duration::from_millis(300), wait).await);
            tx.commit().await.expect("it is committed");
        };
        if tokio::join!(carried, commit).0 {
            self.letters.pop_front();
        }
    }

    async fn images(&self) -> i64 {
        let mut connection = PgConnection::connect(self.world.url.as_str()).await.expect("the server is there");
        sqlx::query_scalar("SELECT COUNT(*) FROM images").fetch_one(&mut connection).await.expect("counted")
    }

    /// Until nothing is on its way; then all say what was said last.
    async fn ends(&mut self, what: &str) {
        for _ in 0..1_000 {
            if !self.row().await && !self.resolved().await && !self.carry().await {
                return self.agrees(what).await;
            }
        }
        panic!("{what}: it never ends");
    }

    async fn agrees(&self, what: &str) {
        let organization = self.database.integration.organization.clone();
        let key = RecordKey::new(organization, RecordKind::Wedding, ID).expect("well-formed");
        let record = self.engine.resolver.records.get(&key).await.expect("read").expect("known").values();
        let row = self.world.row().await;
        for (field, (_, value)) in &self.expected {
            let (stands, has) = (record.get(*field).cloned().unwrap_or_default(), &row[field]);
            assert_eq!(stands, *has, "{what}: {field} of the record, and of the row");
            assert!(!self.exact || stands == *value, "{what}: {field} is {stands} for {value}");
        }
    }
}

/// Plays `script` on each engine, with images that tell what was before, and with such that don't.
async fn played(what: &str, script: impl AsyncFn(&mut Play<'_>)) {
    in_a_database(async |world| {
        for full in [true, false] {
            let mut play = Play::open(&world, full).await;
            play.begins().await;
            script(&mut play).await;
            play.ends(&format!("{what}, {full}")).await;
        }
    })
    .await;
}
