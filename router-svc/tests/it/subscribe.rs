//! Live subscriptions: everything after a position, without gap or repeat, and nothing that wasn't asked for.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use chassis::clock::Clock;
use futures_util::future::join_all;
use proto::{
    common::v1::Position,
    router::v1::{Event, SubscribeRequest, SubscribeResponse, subscribe_response::Message},
};
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::world::{Client, PATIENCE, QUIET, content, keyed, on_each};

pub(crate) struct Subscriber(Streaming<SubscribeResponse>);

impl Subscriber {
    pub(crate) async fn start(client: &Client, request: SubscribeRequest) -> Result<Self, Status> {
        Ok(Self(client.subscriptions().subscribe(request).await?.into_inner()))
    }

    async fn since(client: &Client, sequence: u64) -> Self {
        let since = Some(client.position(sequence).await);
        Self::start(client, SubscribeRequest { since, ..Default::default() }).await.unwrap()
    }

    async fn message(&mut self) -> Message {
        let message = timeout(PATIENCE, self.0.message()).await.expect("a message in time");
        message.expect("the stream goes on").expect("the stream goes on").message.unwrap()
    }

    pub(crate) async fn event(&mut self) -> Event {
        let event = async {
            loop {
                if let Message::Event(event) = self.message().await {
                    return event;
                }
            }
        };
        timeout(PATIENCE, event).await.expect("an event in time")
    }

    async fn progress(&mut self) -> u64 {
        loop {
            if let Message::Progress(progress) = self.message().await {
                return progress.position.unwrap().sequence;
            }
        }
    }

    /// The ids of whatever comes until nothing does.
    async fn rest(&mut self) -> Vec<String> {
        let mut ids = Vec::new();
        while let Ok(event) = timeout(QUIET, self.event()).await {
            ids.push(event.id);
        }
        ids
    }
}

fn sequence(event: &Event) -> u64 {
    event.position.as_ref().unwrap().sequence
}

#[tokio::test]
async fn what_was_missed_comes_first_then_progress_then_whatever_happens() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        for number in 0..3 {
            a.publish(keyed(&format!("e{number}"), "k")).await;
        }
        let mut since = Subscriber::since(&a, 1).await;
        let mut live = Subscriber::start(&a, SubscribeRequest::default()).await.unwrap();
        assert_eq!((since.event().await.id, since.event().await.id), ("e1".to_owned(), "e2".to_owned()));
        assert_eq!((since.progress().await, live.progress().await), (3, 3));
        a.publish(keyed("e3", "k")).await;
        assert_eq!((since.event().await.id, live.event().await.id), ("e3".to_owned(), "e3".to_owned()));
    })
    .await;
}

/// A number below `bound`, other ones for each seed.
fn random(seed: u64, step: u64, bound: u64) -> u64 {
    let mut number = seed ^ step.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (number ^ (number >> 27)) % bound
}

/// Joins at a random time and place and reads to the end; what it has seen.
async fn joiner(client: &Client, seed: u64, number: u64, last: u64) -> (u64, Vec<u64>) {
    tokio::time::sleep(Duration::from_millis(random(seed, number, 400))).await;
    let since = random(seed, number + 1_000, client.head().await.sequence + 1);
    let mut subscriber = Subscriber::since(client, since).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let event = subscriber.event().await;
        assert_eq!(event.organization_id, "a");
        seen.push(sequence(&event));
    }
    (since, seen)
}

#[tokio::test]
async fn whoever_joins_whenever_under_load_sees_each_event_once_and_in_order() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let seed = RandomState::new().hash_one(0);
        println!("seed {seed}");
        let publish = async |client: &Client, publisher: u64, count: u64| {
            let mut sequences = Vec::new();
            for number in 0..count {
                sequences.push(client.sequence(keyed(&format!("{publisher}-{number}"), "k")).await);
            }
            sequences
        };
        let publishing = async {
            let (of_a, _) = tokio::join!(
                join_all((0..5).map(|number| publish(&a, number, 100))),
                join_all((0..2).map(|number| publish(&b, number, 100)))
            );
            // The last of all, so that everyone knows when to stop.
            [of_a.concat(), vec![a.sequence(Event { id: "last".to_owned(), ..keyed("", "k") }).await]].concat()
        };
        let joining = join_all((0..12).map(|number| joiner(&a, seed, number, 701)));
        let (mut published, joined) = tokio::join!(publishing, joining);
        published.sort_unstable();
        for (since, seen) in joined {
            let expected: Vec<u64> = published.iter().copied().filter(|sequence| *sequence > since).collect();
            assert_eq!(seen, expected, "seed {seed}, since {since}");
        }
    })
    .await;
}

#[tokio::test]
async fn only_what_is_on_the_channels_and_of_the_types_comes() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let filter = |channels: &[&str], types: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            SubscribeRequest { channels: texts(channels), types: texts(types), ..Default::default() }
        };
        let cases: [(SubscribeRequest, &[&str]); 8] = [
            (filter(&[], &[]), &["blue", "dashboard", "date", "plain"]),
            (filter(&["room:*"], &[]), &["blue"]),
            (filter(&["room:**", "wedding:w"], &[]), &["blue", "date"]),
            (filter(&["room"], &[]), &[]),
            (filter(&[], &["wedding.*"]), &["date"]),
            (filter(&["room:*"], &["wedding.*"]), &[]),
            (filter(&["supplier_s"], &[]), &["dashboard"]),
            (filter(&[], &["test.happened", "wedding.date_changed"]), &["blue", "dashboard", "date", "plain"]),
        ];
        let mut subscribers = Vec::new();
        for (request, expected) in cases {
            subscribers.push((Subscriber::start(&a, request.clone()).await.unwrap(), request, expected));
        }
        let on = |id: &str, channel: &str| Event { channels: vec![channel.to_owned()], ..keyed(id, "k") };
        for event in [
            on("blue", "room:blue"),
            on("dashboard", "supplier:dashboard:s"),
            content("date", "wedding.date_changed", json!({"wedding_id": "w"})),
            keyed("plain", "k"),
        ] {
            b.publish(event.clone()).await;
            a.publish(event).await;
        }
        for (mut subscriber, request, expected) in subscribers {
            assert_eq!(subscriber.rest().await, expected, "{request:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_subscriber_for_whom_nothing_matches_still_hears_how_far_it_is() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let mut quiet = Subscriber::start(&a, SubscribeRequest::default()).await.unwrap();
        assert_eq!(quiet.progress().await, 0);
        let others = async {
            loop {
                b.publish(keyed("", "k")).await;
                Clock::System.sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = others => {}
            position = quiet.progress() => assert!(position > 10, "{position}"),
        }
    })
    .await;
}

#[tokio::test]
async fn a_position_that_can_not_be_continued_is_out_of_range_with_what_is_needed_to_begin_anew() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        a.publish(keyed("e1", "k")).await;
        let head = a.head().await;
        let foreign = Position { log_id: "00000000-0000-7000-8000-000000000000".to_owned(), sequence: 0 };
        for since in
            [foreign, Position { sequence: 2, ..head.clone() }, Position { sequence: u64::MAX, ..head.clone() }]
        {
            let request = SubscribeRequest { since: Some(since.clone()), ..Default::default() };
            let refused = Subscriber::start(&a, request).await.err().unwrap();
            assert_eq!(refused.code(), Code::OutOfRange, "{since:?}");
            let metadata = refused.get_details_error_info().unwrap().metadata;
            assert_eq!((&*metadata["log_id"], &*metadata["oldest"], &*metadata["head"]), (&*head.log_id, "1", "1"));
        }
        let at_head = SubscribeRequest { since: Some(head), ..Default::default() };
        assert_eq!(Subscriber::start(&a, at_head).await.unwrap().progress().await, 1);
    })
    .await;
}
