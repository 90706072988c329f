//! What the router knows of weddings, and what that does to priority and channels.

use futures_util::future::join_all;
use proto::{
    common::v1::Priority,
    router::v1::{
        GetWeddingRequest, Operation, PublishBatchRequest, PublishStreamRequest, UpsertWeddingRequest, Wedding,
        publish_result,
    },
};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

use crate::world::{Client, change, content, on_each};

pub(crate) async fn wedding(client: &Client, id: &str) -> Option<Wedding> {
    let request = GetWeddingRequest { id: id.to_owned(), ..Default::default() };
    client.weddings().get_wedding(request).await.ok().map(|answer| answer.into_inner().wedding.unwrap())
}

async fn upsert(client: &Client, wedding: Wedding) {
    client.weddings().upsert_wedding(UpsertWeddingRequest { wedding: Some(wedding) }).await.unwrap();
}

fn guests(id: &str) -> proto::router::v1::Event {
    content(id, "guest_count.changed", json!({"wedding_id": "w"}))
}

fn inserted(id: &str, table: &str, row: Value) -> proto::router::v1::Event {
    change(id, table, Operation::Insert, Value::Null, row)
}

/// The clock stands at midday on 2026-05-01, UTC.
const TOMORROW: &str = "2026-05-02";

#[tokio::test]
async fn within_a_day_of_the_ceremony_in_the_venues_zone_a_change_is_critical() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let at = |date: &str, time: &str, zone: &str| Wedding {
            id: "w".to_owned(),
            wedding_date: date.to_owned(),
            ceremony_time: time.to_owned(),
            time_zone: zone.to_owned(),
            ..Wedding::default()
        };
        let cases = [
            (at(TOMORROW, "11:59", ""), Priority::Critical),
            (at(TOMORROW, "12:00", ""), Priority::High),
            (at(TOMORROW, "12:30", "Europe/London"), Priority::Critical),
            (at(TOMORROW, "08:30", "America/New_York"), Priority::High),
            (at("2026-05-08", "12:00", ""), Priority::High),
            (at("2026-05-09", "12:00", ""), Priority::Normal),
            (at("2026-05-01", "09:00", ""), Priority::Critical),
            (at("2026-04-30", "12:00", ""), Priority::Normal),
        ];
        assert_eq!(a.publish(guests("unknown")).await.priority(), Priority::Normal);
        for (number, (known, expected)) in cases.into_iter().enumerate() {
            upsert(&a, known.clone()).await;
            assert_eq!(a.publish(guests(&format!("e{number}"))).await.priority(), expected, "{known:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_rows_teach_is_known_to_the_next_event_and_after_a_restart() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        a.publish(inserted("e1", "wedding_details", json!({"id": "w", "wedding_date": TOMORROW, "ceremony_time": "11:00", "couple_id": "c", "vendor_ids": ["s1"]}))).await;
        a.publish(inserted("e2", "wedding_vendors", json!({"wedding_id": "w", "supplier_id": "s2"}))).await;
        assert_eq!(a.publish(guests("e3")).await.priority(), Priority::Critical);
        let known = wedding(&a, "w").await.unwrap();
        assert_eq!((&*known.wedding_date, &*known.couple_id, &known.supplier_ids[..]), (TOMORROW, "c", &["s1".to_owned(), "s2".to_owned()][..]));
        let world = world.restart().await;
        let a = world.client(&world.key("a", &[proto::router::v1::Scope::Admin]).await.1);
        assert_eq!(wedding(&a, "w").await.as_ref(), Some(&known));
        assert_eq!(a.publish(guests("e4")).await.priority(), Priority::Critical);
        let of_couple = a.publish(content("e5", "guest_count.changed", json!({"couple_id": "c"}))).await;
        assert_eq!(of_couple.priority(), Priority::Critical, "a couple's event is their wedding's");
        a.publish(change("e6", "wedding_details", Operation::Delete, json!({"id": "w"}), Value::Null)).await;
        assert!(wedding(&a, "w").await.is_none());
        assert_eq!(a.publish(guests("e7")).await.priority(), Priority::Normal);
    })
    .await;
}

fn rows() -> Vec<proto::router::v1::Event> {
    let mut rows = vec![inserted(
        "d",
        "wedding_details",
        json!({"id": "w", "wedding_date": TOMORROW, "ceremony_time": "11:00", "couple_id": "c"}),
    )];
    rows.extend((0..20).map(|number| {
        inserted(
            &format!("v{number}"),
            "wedding_vendors",
            json!({"wedding_id": "w", "supplier_id": format!("s{number:02}")}),
        )
    }));
    rows.push(guests("g"));
    rows.push(content("g-of-couple", "guest_count.changed", json!({"couple_id": "c"})));
    rows
}

#[tokio::test]
async fn rows_that_come_together_teach_all_of_it_and_each_is_planned_with_those_before_it() {
    on_each(|world| async move {
        for (organization, is_stream) in [("a", false), ("b", true)] {
            let client = world.organization(organization).await;
            let results: Vec<_> = if is_stream {
                let requests =
                    rows().into_iter().map(|event| PublishStreamRequest { correlation_id: 0, event: Some(event) });
                let answers = client.events().publish_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
                answers.map(|answer| answer.unwrap().result.unwrap()).collect().await
            } else {
                client
                    .events()
                    .publish_batch(PublishBatchRequest { events: rows() })
                    .await
                    .unwrap()
                    .into_inner()
                    .results
            };
            let priorities: Vec<Priority> = results
                .into_iter()
                .map(|result| match result.result {
                    Some(publish_result::Result::Receipt(receipt)) => receipt.priority(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(priorities[21..], [Priority::Critical; 2], "behind the row that says when it is");
            let known = wedding(&client, "w").await.unwrap();
            assert_eq!((&*known.wedding_date, known.supplier_ids.len()), (TOMORROW, 20), "{organization}");
        }
    })
    .await;
}

#[tokio::test]
async fn rows_that_come_at_once_from_many_publishers_do_not_undo_each_other() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let details = a.publish(inserted("d", "wedding_details", json!({"id": "w", "wedding_date": TOMORROW})));
        let vendors = join_all((0..30).map(|number| {
            a.publish(inserted(
                &format!("v{number}"),
                "wedding_vendors",
                json!({"wedding_id": "w", "supplier_id": format!("s{number}")}),
            ))
        }));
        tokio::join!(details, vendors);
        let known = wedding(&a, "w").await.unwrap();
        assert_eq!((&*known.wedding_date, known.supplier_ids.len()), (TOMORROW, 30));
    })
    .await;
}

#[tokio::test]
async fn an_old_row_that_is_sent_again_teaches_nothing() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let old = || inserted("e1", "wedding_details", json!({"id": "w", "wedding_date": "2026-09-01"}));
        a.publish(old()).await;
        a.publish(change(
            "e2",
            "wedding_details",
            Operation::Update,
            Value::Null,
            json!({"id": "w", "wedding_date": TOMORROW}),
        ))
        .await;
        assert!(a.publish(old()).await.duplicate);
        let results = a
            .events()
            .publish_batch(PublishBatchRequest {
                events: vec![old(), inserted("v", "wedding_vendors", json!({"wedding_id": "w", "supplier_id": "s"}))],
            })
            .await;
        assert_eq!(results.unwrap().into_inner().results.len(), 2);
        let known = wedding(&a, "w").await.unwrap();
        assert_eq!((&*known.wedding_date, known.supplier_ids.len()), (TOMORROW, 1));
    })
    .await;
}
