//! Vendors' webhooks in numbers: copies of one have one effect, and many updates of many records end in one state, whatever
//! the order in which they come.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, civil::date};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use vendor_sync_svc::testing::vendor::profile::Profile;

use super::{
    inbound::Sender,
    linked::{Linked, on_each_engine_linked, taken},
    story::{eventually, now},
};
use crate::harness::{PATIENCE, variable};

const COPIES: usize = 50;
/// Without `WEDSYNC_TEST_RECORDS`: fifty of them, a thousand updates, take a loaded machine minutes.
const RECORDS: usize = 10;
/// Updates of each record.
const UPDATES: usize = 20;
/// Webhooks under way at once.
const AT_ONCE: usize = 16;
/// As long as whoever was told to come again waits.
const AGAIN: Duration = Duration::from_millis(100);

#[tokio::test]
async fn fifty_copies_of_one_webhook_at_once_have_one_effect() {
    on_each_engine_linked(async |linked| {
        let bo = linked.profiled("crm", Profile::Crm, "bo").await;
        let hall = linked.profiled("venue", Profile::Venue, "hall").await;
        let database = linked.link_database().await;
        linked.wedding_is("wedding_date = '2027-06-19'").await;
        bo.took(1).await;
        hall.took(1).await;

        let data = json!({ "wedding_id": "w1", "wedding_date": "2027-07-03" });
        let body = json!({ "type": "wedding.date_changed", "timestamp": now().to_string(), "data": data }).to_string();
        let mut copies = JoinSet::new();
        for _ in 0..COPIES {
            let (sender, body) = (bo.sender.clone(), body.clone());
            copies.spawn(async move { sender.send_standard("copied", 0, &body).await });
        }
        let answers = copies.join_all().await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        let first = answers.iter().filter(|answer| answer.json()["duplicate"] != true).count();
        assert_eq!(first, 1, "{answers:?}");

        linked.comes_to_say("wedding_details", "wedding_date", "2027-07-03").await;
        linked.wedding_is("wedding_date = '2027-07-10'").await;
        let dates: Vec<_> = hall.took(3).await.iter().map(|body| body["event_date"].clone()).collect();
        assert_eq!(dates, ["2027-06-19", "2027-07-03", "2027-07-10"]);
        assert_eq!(linked.story.acme.logged(&["wedding.date_changed"]).await.len(), 1);
        assert_eq!(linked.deliveries(&database).await.len(), 1);
    })
    .await;
}

fn records() -> usize {
    variable("WEDSYNC_TEST_RECORDS").map_or(RECORDS, |count| count.parse().expect("a number of records"))
}

/// One field of one record, as a vendor says it.
#[derive(Clone, Copy, Debug)]
struct Update {
    record: usize,
    number: usize,
    vendor: usize,
    at: Timestamp,
}

impl Update {
    /// Name in the CRM's words, in ours, and the value; each value is said once.
    fn said(&self) -> (&'static str, &'static str, Value) {
        let number = i64::try_from(self.number).expect("small");
        match self.number / records() % 4 {
            0 => (
                "wedding_date",
                "wedding_date",
                json!((date(2028, 1, 1) + number * jiff::Span::new().days(1)).to_string()),
            ),
            1 => ("guest_count", "guest_count", json!(number + 10)),
            2 => ("photographer_notes", "special_requests", json!(format!("note {number}"))),
            _ => ("venue_name", "venue_name", json!(format!("Hall {number}"))),
        }
    }

    fn body(&self) -> String {
        let (name, _, value) = self.said();
        let data = json!({ "wedding_id": format!("m{}", self.record), name: value });
        json!({ "type": "booking.updated", "timestamp": self.at.to_string(), "data": data }).to_string()
    }
}

/// Each record's fields by whatever was said last, by the time of who said it.
fn merged(updates: &[Update]) -> BTreeMap<usize, BTreeMap<&'static str, Value>> {
    let mut updates = updates.to_vec();
    updates.sort_by_key(|update| update.at);
    let mut merged: BTreeMap<usize, BTreeMap<&str, Value>> = BTreeMap::new();
    for update in updates {
        let (_, field, value) = update.said();
        merged.entry(update.record).or_default().insert(field, value);
    }
    merged
}

/// All updates, in an order by chance.
fn shuffled(seed: u64, since: Timestamp) -> Vec<Update> {
    let mut chance = seed | 1;
    let mut next = |below: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        usize::try_from(chance % below as u64).expect("small")
    };
    let mut updates: Vec<Update> = (0..records() * UPDATES)
        .map(|number| Update {
            record: number % records(),
            number,
            vendor: next(2),
            at: since + SignedDuration::from_millis(i64::try_from(number).expect("small") * 7),
        })
        .collect();
    for last in (1..updates.len()).rev() {
        updates.swap(last, next(last + 1));
    }
    updates
}

async fn send_all(updates: &[Update], vendors: &[Sender; 2]) {
    let mut under_way = JoinSet::new();
    for update in updates {
        if under_way.len() >= AT_ONCE {
            under_way.join_next().await.expect("some").expect("it doesn't panic");
        }
        let (sender, update) = (vendors[update.vendor].clone(), *update);
        under_way.spawn(async move { sent(&sender, &update).await });
    }
    under_way.join_all().await;
}

/// As vendors do, it comes again while there is no room for it.
async fn sent(sender: &Sender, update: &Update) {
    let (id, body, began) = (format!("update-{}", update.number), update.body(), Instant::now());
    loop {
        let answer = sender.send_standard(&id, 0, &body).await;
        if answer.status == 200 {
            return;
        }
        assert!(answer.status == 503 && began.elapsed() < PATIENCE, "{update:?}: {answer:?}");
        sleep(AGAIN).await;
    }
}

/// What the database says of each record, in the fields of `merged`.
async fn rows(linked: &Linked) -> BTreeMap<usize, BTreeMap<&'static str, Value>> {
    let rows: Vec<(String, String, i32, String, String)> = sqlx::query_as(
        "SELECT id, wedding_date::text, guest_count, COALESCE(special_requests, ''), venue_name FROM wedding_details WHERE id LIKE 'm%'",
    )
    .fetch_all(&linked.source.pool)
    .await
    .expect("the database answers");
    let row = |(id, date, guests, notes, venue): (String, String, i32, String, String)| {
        let fields = [
            ("wedding_date", json!(date)),
            ("guest_count", json!(guests)),
            ("special_requests", json!(notes)),
            ("venue_name", json!(venue)),
        ];
        (id[1..].parse().expect("a number"), BTreeMap::from(fields))
    };
    rows.into_iter().map(row).collect()
}

#[tokio::test]
async fn many_updates_of_many_records_from_two_vendors_end_in_one_state() {
    on_each_engine_linked(async |linked| {
        let ada = linked.profiled("crm", Profile::Crm, "ada").await;
        let bo = linked.profiled("crm", Profile::Crm, "bo").await;
        linked.link_database().await;
        let insert = format!(
            "INSERT INTO wedding_details (id, organization_id, couple_id, bride_name, groom_name, wedding_date, venue_name,
             guest_count, vendor_ids) SELECT 'm' || n, '{}', 'mc' || n, 'B' || n, 'G' || n, '2027-06-12', 'Oak Hall', 100,
             '{{ada,bo}}' FROM generate_series(0, {}) n",
            linked.organization,
            records() - 1
        );
        linked.source.run(&insert).await;
        let touch = "UPDATE wedding_details SET wedding_date = '2027-06-19', updated_at = now() WHERE id LIKE 'm%'";
        linked.source.run(touch).await;
        // Vendors speak of weddings that they were told of.
        let is_moved = |body: &&Value| body["wedding_date"] == "2027-06-19";
        for count in 1..=records() {
            taken(&bo.server, "weddings that are known", |receiver| {
                let moved = receiver.taken.iter().filter(is_moved).count();
                if moved >= count { Ok(()) } else { Err(format!("{moved} of {count}")) }
            })
            .await;
        }

        let seed = u64::from_le_bytes(chassis::secret::random());
        let updates = shuffled(seed, now());
        println!("seed {seed}");
        let began = Instant::now();
        send_all(&updates, &[ada.sender.clone(), bo.sender.clone()]).await;
        println!("{} webhooks were answered in {:?}", updates.len(), began.elapsed());
        // Each has its own patience: together they may take a slow machine long.
        for (record, fields) in merged(&updates) {
            eventually(&format!("the row of m{record} says what was said last"), async || {
                let row = rows(linked).await.remove(&record);
                if row.as_ref() == Some(&fields) { Ok(()) } else { Err(format!("{row:?} for {fields:?}")) }
            })
            .await;
        }
        println!("and written back in {:?}", began.elapsed());
    })
    .await;
}
