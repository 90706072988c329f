//! The links of messages, as people and the programs before them follow them.

use chassis::auth::Role;
use reqwest::Response;
use tonic::Status;

use crate::world::{World, problem};

const TOKEN: &str = "AZ-_09";

async fn page(answer: Response, status: u16) -> String {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    assert_eq!(answer.headers()["referrer-policy"], "no-referrer", "the link is a secret");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let policy = answer.headers()["content-security-policy"].to_str().expect("plain text").to_owned();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let page = answer.text().await.expect("text");
    assert!(!page.contains("<script") && !page.contains(TOKEN), "{page}");
    page
}

#[tokio::test]
async fn a_link_that_is_followed_shows_a_page_and_does_nothing() {
    let world = World::start().await;
    for link in ["/acknowledge/AZ-_09", "/unsubscribe/AZ-_09"] {
        let page = page(world.get(link).send().await.unwrap(), 200).await;
        assert!(page.contains("<form method=\"post\"><button>"), "{page}");
        assert_eq!(world.request(reqwest::Method::HEAD, link).send().await.unwrap().status(), 200);
    }
    assert!(world.peers.links.acknowledge.asked().is_empty() && world.peers.links.unsubscribe.asked().is_empty());
}

#[tokio::test]
async fn its_button_and_one_click_hand_the_token_to_the_notifier() {
    let world = World::start().await;
    page(world.post("/acknowledge/AZ-_09").send().await.unwrap(), 200).await;
    let asked = world.peers.links.acknowledge.only();
    assert_eq!((asked.request.token.as_str(), asked.caller.role), (TOKEN, Role::Service));
    assert_eq!((asked.request.notification_id.as_str(), asked.request.recipient_id.as_str()), ("", ""));

    let form = "application/x-www-form-urlencoded";
    let one_click = world.post("/unsubscribe/AZ-_09").header("content-type", form).body("List-Unsubscribe=One-Click");
    page(one_click.send().await.unwrap(), 200).await;
    assert_eq!(world.peers.links.unsubscribe.only().request.token, TOKEN);
}

#[tokio::test]
async fn a_link_that_is_not_good_says_so_and_one_that_cannot_be_followed_now_can_be_later() {
    let world = World::start().await;
    world.peers.links.acknowledge.answers(Err(Status::not_found("link of organization secret")));
    let gone = page(world.post("/acknowledge/AZ-_09").send().await.unwrap(), 404).await;
    assert!(!gone.contains("secret"), "{gone}");
    world.peers.links.unsubscribe.answers(Err(Status::unavailable("10.0.0.7 is away")));
    let answer = world.post("/unsubscribe/AZ-_09").send().await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert!(!page(answer, 503).await.contains("10.0.0.7"));
    for no_token in ["/acknowledge/a.b", "/unsubscribe/%3Cb%3E", &*format!("/acknowledge/{}", "a".repeat(129))] {
        problem(world.get(no_token).send().await.unwrap(), 404).await;
        problem(world.post(no_token).send().await.unwrap(), 404).await;
    }
    assert_eq!(world.peers.links.acknowledge.asked().len(), 1);
}
