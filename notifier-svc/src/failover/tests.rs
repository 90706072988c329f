//! What counts as stalled and what can be withdrawn, on each engine: never what was sent, is being sent or may have arrived.

use std::collections::HashMap;

use chassis::{
    id::OrganizationId,
    lane::{self, State},
    store::{self, Store},
    testing::on_each_engine,
};

use super::*;
use crate::{
    MIGRATIONS,
    confirm::{Confirms, acknowledge},
};

const NOW: i64 = 1_777_636_800_000_000;
const MINUTE: i64 = 60_000_000;

/// A message in a lane, as it may stand there.
#[derive(Clone, Copy)]
struct Case {
    state: State,
    minutes: i64,
    priority: i64,
    lane_fails: bool,
    /// How its last attempt ended.
    ended: &'static str,
    reported: bool,
    cancelled: bool,
}

const STALLED: Case = Case {
    state: State::Waiting,
    minutes: 10,
    priority: 3,
    lane_fails: true,
    ended: "down",
    reported: false,
    cancelled: false,
};

async fn put(store: &Store, number: u8, case: Case) -> [u8; 16] {
    let (uid, name) = ([number; 16], format!("n{number}"));
    let at = NOW - case.minutes * MINUTE;
    let failing = case.lane_fails.then_some(NOW);
    let number = i64::from(number);
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at, kept)
         VALUES ($1, 'o', 'w', $1, $1, $2, '', $3, $4, $3)",
    ).bind(&name).bind(case.priority).bind(&uid[..]).bind(at).execute(c).await.map(drop)).unwrap();
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority, created_at)
         VALUES ($1, $2, 'o', 'r', 'email', 0, $3, '', $4, $5)",
    ).bind(&uid[..]).bind(&name).bind(i64::from(case.cancelled)).bind(case.priority).bind(at).execute(c).await.map(drop)).unwrap();
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO lanes (number, id, organization_id, breaker_openings, failing_since) VALUES ($1, $2, 'o', 0, $3)",
    ).bind(number).bind(&name).bind(failing).execute(c).await.map(drop))
    .unwrap();
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state, origin, attempts,
             reopened_after, next_at, created_at, reason)
         VALUES ($1, $1, 'o', $2, $3, 'w', 'r', $4, $5, 'realtime', 1, 0, $6, $6, '')",
    ).bind(number).bind(&uid[..]).bind(&name).bind(case.priority).bind(case.state as i64).bind(at).execute(c).await.map(drop)).unwrap();
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO attempts (delivery, number, lane, started_at, duration, outcome, error) VALUES ($1, 1, $1, $2, 0, $3, '')",
    ).bind(number).bind(at).bind(case.ended).execute(c).await.map(drop)).unwrap();
    if case.reported {
        with!(store.writer(), c => sqlx::query("INSERT INTO receipts (uid, stage, code, reported_at) VALUES ($1, 1, '', $2)")
            .bind(&uid[..]).bind(NOW).execute(c).await.map(drop)).unwrap();
    }
    uid
}

/// Of these cases, those that count as stalled.
async fn found(store: &Store, cases: &[(&'static str, Case)]) -> Vec<&'static str> {
    let mut names = HashMap::new();
    for (number, (name, case)) in (1..).zip(cases) {
        names.insert(put(store, number, *case).await.to_vec(), *name);
    }
    let stalled = stalled(store, &Failover::default(), from_micros(NOW)).await.unwrap();
    stalled.iter().map(|row| names[&row.uid]).collect()
}

#[tokio::test]
async fn only_what_certainly_wasnt_sent_counts_as_stalled_and_only_after_its_time() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let urgent = Case { priority: 1, minutes: 1, ..STALLED };
        let cases = [
            ("waiting", STALLED),
            ("behind another", Case { state: State::Blocked, ..STALLED }),
            ("throttled, though others get through", Case { lane_fails: false, ended: "throttled", ..STALLED }),
            ("urgent", urgent),
            ("being sent", Case { state: State::Sending, ..STALLED }),
            ("delivered", Case { state: State::Delivered, ..STALLED }),
            ("dead", Case { state: State::Dead, ..STALLED }),
            ("cancelled", Case { state: State::Cancelled, ..STALLED }),
            ("unknown", Case { state: State::Unknown, ..STALLED }),
            ("put off by itself", Case { ended: "postponed", ..STALLED }),
            ("cut, and not found so far", Case { ended: "unsettled", ..STALLED }),
            ("reported of", Case { reported: true, ..STALLED }),
            ("withdrawn", Case { cancelled: true, ..STALLED }),
            ("too soon", Case { minutes: 9, ..STALLED }),
            ("urgent, too soon", Case { minutes: 0, ..urgent }),
            ("quiet hours", Case { lane_fails: false, ended: "quiet", ..STALLED }),
        ];
        let mut found = found(&store, &cases).await;
        found.sort_unstable();
        assert_eq!(found, ["behind another", "throttled, though others get through", "urgent", "waiting"]);
    })
    .await;
}

#[tokio::test]
async fn what_is_looked_at_later_isnt_found_before() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let uid = put(&store, 1, STALLED).await;
        let number = async |at| stalled(&store, &Failover::default(), from_micros(at)).await.unwrap().len();
        look_again(&store, &uid, from_micros(NOW + MINUTE)).await.unwrap();
        assert_eq!((number(NOW).await, number(NOW + MINUTE).await), (0, 1));
        look_again(&store, &uid, NEVER).await.unwrap();
        assert_eq!(number(NOW + 1_000_000 * MINUTE).await, 0);
    })
    .await;
}

#[tokio::test]
async fn what_left_or_is_leaving_isnt_withdrawn_and_what_waits_is_once() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        for (number, state) in (1..).zip(State::ALL) {
            let uid = put(&store, number, Case { state, ..STALLED }).await;
            for again in [false, true] {
                let mut tx = store.begin().await.unwrap();
                let withdrawn = withdraw(&mut tx, &uid).await.unwrap();
                tx.commit().await.unwrap();
                let waits = matches!(state, State::Waiting | State::Blocked);
                assert_eq!(withdrawn, waits && !again, "{state:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_begins_to_be_sent_while_it_is_withdrawn_sees_that_it_was() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let uid = put(&store, 1, STALLED).await;
        let mut tx = store.begin().await.unwrap();
        assert!(withdraw(&mut tx, &uid).await.unwrap());
        #[expect(clippy::disallowed_methods, reason = "the test awaits it itself")]
        let sending = {
            let store = store.clone();
            tokio::spawn(async move {
                // As its lane does: it is written that it is being sent, then it is looked at for the last time.
                with!(store.writer(), c => sqlx::query("UPDATE deliveries SET state = 1 WHERE id = 1").execute(c).await.map(drop)).unwrap();
                let cancelled: i64 = with!(store.reader(), c => sqlx::query_scalar("SELECT cancelled FROM messages")
                    .fetch_one(c).await).unwrap();
                cancelled
            })
        };
        // However far it comes by itself, it can't be past the withdrawal.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert!(!sending.is_finished(), "it waits for the row");
        tx.commit().await.unwrap();
        assert_eq!(sending.await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn what_is_confirmed_after_it_failed_goes_on_nowhere() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let uid = put(&store, 1, Case { priority: 1, state: State::Dead, ..STALLED }).await;
        let mut tx = store.begin().await.unwrap();
        assert!(note(&mut tx, &uid, from_micros(NOW)).await.unwrap());
        tx.commit().await.unwrap();
        let confirms = Confirms {
            organization: OrganizationId::parse("o").unwrap(),
            notification: "n1".to_owned(),
            recipient: "r".to_owned(),
            by: "r".to_owned(),
            how: "link",
        };
        acknowledge(&store, &confirms, None, from_micros(NOW)).await.unwrap();
        let failed: i64 = with!(store.reader(), c => sqlx::query_scalar(
            "SELECT COUNT(*) FROM messages WHERE failed_at IS NOT NULL",
        ).fetch_one(c).await)
        .unwrap();
        assert_eq!(failed, 0);
    })
    .await;
}
