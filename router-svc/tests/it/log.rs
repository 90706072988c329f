//! Publishing and reading back.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use proto::{
    common::v1::Priority,
    router::v1::{
        Event, GetEventRequest, ListEventsRequest, PublishBatchRequest, PublishResult, PublishStreamRequest, Receipt,
        Refusal, event::Payload, publish_result,
    },
};
use serde_json::json;
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::world::{Client, World, content, keyed, on_each, raw};

fn receipt(result: &PublishResult) -> &Receipt {
    match &result.result {
        Some(publish_result::Result::Receipt(receipt)) => receipt,
        other => panic!("{other:?}"),
    }
}

fn refusal(result: &PublishResult) -> &Refusal {
    match &result.result {
        Some(publish_result::Result::Refusal(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

async fn batch(client: &Client, events: Vec<Event>) -> Vec<PublishResult> {
    client.events().publish_batch(PublishBatchRequest { events }).await.unwrap().into_inner().results
}

fn sequence(receipt: &Receipt) -> u64 {
    receipt.position.as_ref().unwrap().sequence
}

#[tokio::test]
async fn an_event_published_twice_is_one_event_and_its_id_stands_for_one_content() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let first = a.publish(content("e1", "test.happened", json!({"n": 1}))).await;
        let second = a.publish(content("e1", "test.happened", json!({"n": 1}))).await;
        assert!(!first.duplicate && second.duplicate);
        assert_eq!((&first.uid, &first.position), (&second.uid, &second.position));
        let same = || content("e1", "test.happened", json!({"n": 1}));
        let others = [
            content("e1", "test.happened", json!({"n": 2})),
            content("e1", "test.ended", json!({"n": 1})),
            Event { subject: "s".to_owned(), ..same() },
            Event { source: "s".to_owned(), ..same() },
        ];
        for other in others {
            assert_eq!(a.try_publish(other).await.unwrap_err().code(), Code::AlreadyExists);
        }
        let b = world.organization("b").await;
        let foreign = b.publish(content("e1", "test.happened", json!({"n": 2}))).await;
        assert!(!foreign.duplicate, "ids are an organization's own");
        assert_eq!(sequence(&foreign), 2, "duplicates and refusals take no place in the log");
    })
    .await;
}

#[tokio::test]
async fn of_many_who_publish_one_event_at_once_one_is_first() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let receipts = join_all((0..24).map(|_| a.publish(keyed("same", "k")))).await;
        assert_eq!(receipts.iter().filter(|receipt| !receipt.duplicate).count(), 1);
        assert!(receipts.iter().all(|receipt| receipt.uid == receipts[0].uid && sequence(receipt) == 1));
        let results = batch(&a, vec![keyed("twice", "k"), keyed("twice", "k")]).await;
        assert!(!receipt(&results[0]).duplicate && receipt(&results[1]).duplicate);
        assert_eq!(a.all().await.len(), 2);
    })
    .await;
}

async fn publisher(world: &World, organization: &Client, number: usize) -> Vec<(u64, String)> {
    // A connection of its own.
    let client = Client(organization.0.separate());
    let mut published = Vec::new();
    for event in 0..20 {
        let id = format!("{number}-{event}");
        let sequence = sequence(&client.publish(keyed(&id, "k")).await);
        assert!(client.head().await.sequence >= sequence, "an acknowledged event can be read ({})", world.address);
        published.push((sequence, id));
    }
    assert!(published.is_sorted(), "whoever waits for each has them in order");
    published
}

#[tokio::test]
async fn thirty_two_publishers_leave_no_gap_and_the_log_has_each_where_its_receipt_says() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let published = join_all((0..32).map(|number| publisher(&world, &a, number))).await.concat();
        let sequences: BTreeSet<u64> = published.iter().map(|(sequence, _)| *sequence).collect();
        assert!(sequences.into_iter().eq(1..=640));
        let listed = a.all().await.into_iter().filter_map(|logged| logged.event);
        let listed: Vec<(u64, String)> = listed.map(|event| (event.position.unwrap().sequence, event.id)).collect();
        let mut expected = published;
        expected.sort();
        assert_eq!(listed, expected);
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_stored_in_its_order_and_each_event_is_answered_in_that_order() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let event = |number: u64| match number {
            500 => keyed("not an id", "k"),
            600 => keyed("e1", "k"),
            number => keyed(&format!("e{number}"), "k"),
        };
        let requests = (0..1_000)
            .map(move |number| PublishStreamRequest { correlation_id: number + 7, event: Some(event(number)) });
        let answers = a.events().publish_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let answers: Vec<_> = answers.collect::<Result<Vec<_>, _>>().await.unwrap();
        assert!(answers.iter().map(|answer| answer.correlation_id).eq(7..1_007));
        let mut next = 1;
        for (number, answer) in answers.iter().enumerate() {
            let result = answer.result.as_ref().unwrap();
            match number {
                500 => assert_eq!((refusal(result).code, &*refusal(result).field), (3, "event.id")),
                600 => assert!(receipt(result).duplicate && sequence(receipt(result)) == 2),
                _ => {
                    assert_eq!(sequence(receipt(result)), next, "event {number}");
                    next += 1;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_batch_refuses_one_without_the_others() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        a.publish(content("known", "test.happened", json!(1))).await;
        let events = vec![
            keyed("e1", "k"),
            raw("e2", "test.happened", b"{".to_vec()),
            content("known", "test.happened", json!(2)),
            Event { organization_id: "b".to_owned(), ..keyed("e4", "k") },
            keyed("e5", "k"),
        ];
        let results = batch(&a, events).await;
        assert_eq!([0, 4].map(|index| sequence(receipt(&results[index]))), [2, 3]);
        assert_eq!((refusal(&results[1]).code, &*refusal(&results[1]).field), (3, "event.content.data"));
        assert_eq!([2, 3].map(|index| refusal(&results[index]).code), [6, 5]);
        assert!(results[1..4].iter().all(|result| !refusal(result).retryable));
        let many = (0..1_001).map(|number| keyed(&format!("m{number}"), "k")).collect();
        let refused = a.events().publish_batch(PublishBatchRequest { events: many }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(a.head().await.sequence, 3);
    })
    .await;
}

#[tokio::test]
async fn what_is_read_back_is_what_was_sent_byte_by_byte() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let data = br#"{ "price": 1.10, "big": 12345678901234567890, "text": "\u00e9" }"#;
        let sent = Event {
            subject: "s".to_owned(),
            source: "there".to_owned(),
            channels: vec!["room:a".to_owned()],
            ..raw("e1", "test.happened", data.to_vec())
        };
        let receipt = a.publish(sent).await;
        for id in ["e1", &receipt.uid] {
            let found = a
                .events()
                .get_event(GetEventRequest { id: id.to_owned(), ..Default::default() })
                .await
                .unwrap()
                .into_inner();
            let event = found.event.unwrap().event.unwrap();
            let Some(Payload::Content(read)) = event.payload else { panic!("another payload") };
            assert_eq!((&read.data[..], &*read.content_type), (&data[..], "application/json"));
            assert_eq!(
                (&*event.subject, &*event.source, &event.channels[..]),
                ("s", "there", &["room:a".to_owned()][..])
            );
            assert_eq!((event.position, event.uid), (receipt.position.clone(), receipt.uid.clone()));
        }
        let unnamed = a.publish(keyed("", "k")).await;
        assert_eq!(unnamed.id, unnamed.uid, "an event without an id is known by its uid");
        assert_eq!(unnamed.priority(), Priority::Normal);
    })
    .await;
}

async fn pages(client: &Client, request: ListEventsRequest) -> Vec<Vec<String>> {
    let (mut pages, mut request) = (Vec::new(), request);
    loop {
        let page = client.events().list_events(request.clone()).await.unwrap().into_inner();
        pages.push(page.events.into_iter().map(|logged| logged.event.unwrap().id).collect());
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn listing_gives_each_event_of_the_organization_once_in_order_however_it_is_paged() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        for number in 0..30 {
            let type_ = if number % 10 == 0 { "rare.thing" } else { "test.happened" };
            a.publish(content(&format!("a{number}"), type_, json!(null))).await;
            b.publish(keyed(&format!("b{number}"), "k")).await;
        }
        let expected: Vec<String> = (0..30).map(|number| format!("a{number}")).collect();
        for page_size in [1, 7, 30, 0, 10_000] {
            let pages = pages(&a, ListEventsRequest { page_size, ..Default::default() }).await;
            assert_eq!(pages.concat(), expected, "pages of {page_size}");
            assert!(page_size == 0 || pages.iter().all(|page| page.len() <= page_size as usize));
        }
        let rare = ListEventsRequest { page_size: 2, types: vec!["rare.*".to_owned()], ..Default::default() };
        assert_eq!(pages(&a, rare).await.concat(), ["a0", "a10", "a20"]);
        let since = Some(a.position(55).await);
        assert_eq!(pages(&a, ListEventsRequest { since, ..Default::default() }).await.concat(), ["a28", "a29"]);
        let far = ListEventsRequest { page_token: u64::MAX.to_string(), ..Default::default() };
        assert!(pages(&a, far).await.concat().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_page_of_the_largest_events_still_fits_into_one_answer() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let large = serde_json::to_vec(&"x".repeat((1 << 20) - 2)).unwrap();
        assert_eq!(large.len(), 1 << 20);
        for number in 0..9 {
            a.publish(raw(&format!("e{number}"), "test.happened", large.clone())).await;
        }
        let pages = pages(&a, ListEventsRequest::default()).await;
        assert_eq!(pages.concat(), (0..9).map(|number| format!("e{number}")).collect::<Vec<_>>());
    })
    .await;
}
