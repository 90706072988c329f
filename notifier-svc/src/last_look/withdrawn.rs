//! A withdrawal and the last look at the same moment: one of both sees the other.

use std::{pin::pin, sync::Arc, time::Duration};

use chassis::{
    clock::Clock,
    id::OrganizationId,
    lane,
    secret::{Keyring, KeyringSettings, generate_master_key},
    store::{self, Engine, Store, Tx},
    testing::{noon, on_each_engine},
    with,
};

use super::*;
use crate::{
    MIGRATIONS,
    channel::peer::delivery,
    confirm::{Confirms, acknowledge_in},
    fact, recipient,
};

#[derive(Debug, Clone, Copy)]
enum Way {
    Withdrawn,
    Confirmed,
    Erased,
}

async fn end(tx: &mut Tx, way: Way, uid: &[u8; 16]) {
    let organization = OrganizationId::parse("o").unwrap();
    match way {
        Way::Withdrawn => drop(fact::withdraw(tx, uid, "it became another").await.unwrap()),
        Way::Confirmed => {
            let (notification, recipient, by) = ("n".to_owned(), "r".to_owned(), "r".to_owned());
            let confirms = Confirms { organization, notification, recipient, by, how: "reply" };
            acknowledge_in(tx, &confirms, noon()).await.unwrap();
        }
        Way::Erased => drop(recipient::erase(tx, &organization, "r", 1).await.unwrap()),
    }
}

fn keys(store: &Store) -> DataKeys {
    let settings = KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] };
    DataKeys::new(store.clone(), Keyring::new(&settings).unwrap(), Clock::System)
}

async fn put(store: &Store, uid: &[u8; 16]) {
    with!(store.writer(), c => sqlx::query("DELETE FROM deliveries").execute(c).await.map(drop)).unwrap();
    with!(store.writer(), c => sqlx::query("DELETE FROM messages").execute(c).await.map(drop)).unwrap();
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at)
         VALUES ('n', 'o', 'w', 'e', 'e', 3, '', $1, 1) ON CONFLICT DO NOTHING",
    ).bind(&b""[..]).execute(c).await.map(drop)).unwrap();
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority, content, created_at)
         VALUES ($1, 'n', 'o', 'r', 'sms', 0, 0, 'because', 3, $1, 1)",
    ).bind(&uid[..]).execute(c).await.map(drop)).unwrap();
}

/// Its lane has it, and says that it is being sent.
async fn sending(store: &Store, uid: &[u8; 16]) {
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state, origin, attempts,
             reopened_after, next_at, created_at, reason)
         VALUES (1, 1, 'o', $1, 'e', 'w', 'r', 3, 1, 'realtime', 0, 0, 1, 1, '')",
    ).bind(&uid[..]).execute(c).await.map(drop)).unwrap();
}

#[tokio::test]
async fn what_is_withdrawn_while_its_lane_takes_it_is_not_sent() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let delivery = Arc::new(delivery("".into(), 0));
        for way in [Way::Withdrawn, Way::Confirmed, Way::Erased] {
            put(&store, &delivery.event).await;
            let mut tx = store.begin().await.unwrap();
            end(&mut tx, way, &delivery.event).await;
            let Engine::Postgres(connection) = tx.on() else {
                // One writer: the lane's word waits for the commit.
                tx.commit().await.unwrap();
                sending(&store, &delivery.event).await;
                let seen = last_look(&store, &keys(&store), &Clock::System, &delivery).await.unwrap();
                assert!(matches!(seen, Look::Drop("cancelled", _)), "{way:?}: {seen:?}");
                continue;
            };
            let ours: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.unwrap();
            sending(&store, &delivery.event).await;
            let (keys, clock) = (keys(&store), Clock::System);
            let mut looking = pin!(last_look(&store, &keys, &clock, &delivery));
            let early = tokio::select! {
                seen = &mut looking => Some(seen),
                () = waited_for(&store, ours) => None,
            };
            tx.commit().await.unwrap();
            let seen = match early {
                Some(seen) => seen.unwrap(),
                None => looking.await.unwrap(),
            };
            assert!(matches!(seen, Look::Drop("cancelled", _)), "{way:?}: {seen:?}");
        }
    })
    .await;
}

/// Until somebody waits for a process of PostgreSQL's.
async fn waited_for(store: &Store, process: i32) {
    let Engine::Postgres(pool) = store.reader() else { return };
    let query = "SELECT COUNT(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))";
    while sqlx::query_scalar::<_, i64>(query).bind(process).fetch_one(pool).await.unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_being_sent_is_not_withdrawn_any_more() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let delivery = Arc::new(delivery("".into(), 0));
        for way in [Way::Withdrawn, Way::Confirmed, Way::Erased] {
            put(&store, &delivery.event).await;
            sending(&store, &delivery.event).await;
            let mut tx = store.begin().await.unwrap();
            end(&mut tx, way, &delivery.event).await;
            tx.commit().await.unwrap();
            assert_eq!(
                last_look(&store, &keys(&store), &Clock::System, &delivery).await.unwrap(),
                Look::Send,
                "{way:?}"
            );
        }
    })
    .await;
}
