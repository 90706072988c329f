//! A browser on its way to a vendor and back, as browsers go it.

use chassis::auth::Role;
use proto::vendorsync::v1::{CompleteConnectionResponse, ConnectionResult, OpenConnectionResponse};
use reqwest::{Method, Response};
use tonic::Status;

use crate::world::{World, problem};

const RAW: &str = "<script>alert(1)</script>";

async fn page(answer: Response, status: u16) -> String {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let page = answer.text().await.expect("text");
    assert!(!page.contains("script") && !page.contains("secret"), "{page}");
    page
}

fn completed(result: ConnectionResult, integration_id: &str) -> CompleteConnectionResponse {
    CompleteConnectionResponse { result: result.into(), integration_id: integration_id.to_owned() }
}

#[tokio::test]
async fn a_browser_gets_a_secret_of_its_own_keeps_it_and_shows_it_when_it_comes_back() {
    let world = World::start().await;
    let location = "https://vendor.example/authorize?state=s";
    world.peers.vendor_sync.open.answers(Ok(OpenConnectionResponse { location: location.to_owned() }));
    let answer = world.get("/oauth/start/AZ-_09").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (303, &location.parse().unwrap()));
    assert_eq!(answer.headers()["referrer-policy"], "no-referrer", "the ticket is a secret");
    let cookie = answer.headers()["set-cookie"].to_str().expect("plain text").to_owned();
    let (pair, attributes) = cookie.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; Max-Age=600; Secure; HttpOnly; SameSite=Lax");
    let secret = pair.strip_prefix("__Host-wedsync-oauth=").expect("its name");
    let asked = world.peers.vendor_sync.open.only();
    assert_eq!((asked.request.ticket.as_str(), asked.request.browser.as_str()), ("AZ-_09", secret));
    assert_eq!((asked.caller.role, secret.len()), (Role::Service, 43));

    world.get("/oauth/start/second").header("cookie", pair).send().await.unwrap();
    assert_eq!(
        world.peers.vendor_sync.open.asked()[1].request.browser,
        secret,
        "another connection is no other browser"
    );

    world.peers.vendor_sync.complete.answers(Ok(completed(ConnectionResult::Connected, "i1")));
    let back = world.get("/oauth/callback?code=c%2F1&state=st").header("cookie", pair).send().await.unwrap();
    page(back, 200).await;
    let asked = world.peers.vendor_sync.complete.only().request;
    assert_eq!((asked.state.as_str(), asked.code.as_str(), asked.browser.as_str()), ("st", "c/1", secret));
}

#[tokio::test]
async fn without_the_cookie_a_state_is_not_even_asked_about() {
    let world = World::start().await;
    for (query, cookie) in [
        ("code=c&state=st", ""),
        ("code=c&state=st", "__Host-wedsync-oauth=a; __Host-wedsync-oauth=b"),
        ("code=c", "__Host-wedsync-oauth=a"),
        ("code=c&state=a&state=b", "__Host-wedsync-oauth=a"),
        ("code=c&state=a%20b", "__Host-wedsync-oauth=a"),
        ("code=c&state=%FF", "__Host-wedsync-oauth=a"),
    ] {
        let answer = world.get(&format!("/oauth/callback?{query}")).header("cookie", cookie).send().await.unwrap();
        page(answer, 404).await;
    }
    assert!(world.peers.vendor_sync.complete.asked().is_empty());
}

#[tokio::test]
async fn what_a_vendor_says_is_never_shown_and_an_error_is_a_no() {
    let world = World::start().await;
    let cookie = "__Host-wedsync-oauth=abc";
    world.peers.vendor_sync.complete.answers(Ok(completed(ConnectionResult::Denied, "")));
    let query = format!("state=st&code=c&error={RAW}&error_description={RAW}");
    let answer = world.get(&format!("/oauth/callback?{query}")).header("cookie", cookie).send().await.unwrap();
    page(answer, 400).await;
    assert_eq!(world.peers.vendor_sync.complete.only().request.code, "", "a code beside an error counts for nothing");
    for (told, status) in [
        (Ok(completed(ConnectionResult::Failed, "")), 400),
        (Ok(completed(ConnectionResult::Unknown, "")), 404),
        (Err(Status::unavailable("the secret host is away")), 503),
        (Err(Status::internal("secret")), 503),
    ] {
        world.peers.vendor_sync.complete.answers(told);
        let answer = world.get("/oauth/callback?state=st&code=c").header("cookie", cookie).send().await.unwrap();
        page(answer, status).await;
    }
}

#[tokio::test]
async fn a_browser_is_sent_to_the_configured_dashboard_alone() {
    let world = World::with(|config| config.dashboard_url = "https://app.example.com/integrations".to_owned()).await;
    let cookie = "__Host-wedsync-oauth=abc";
    let back = async |query: &str| {
        let url = format!("/oauth/callback?state=st&code=c&{query}");
        world.get(&url).header("cookie", cookie).send().await.unwrap()
    };
    world.peers.vendor_sync.complete.answers(Ok(completed(ConnectionResult::Connected, "i1")));
    let answer = back("redirect=https://evil.example&next=//evil.example").await;
    assert_eq!(answer.status(), 303);
    assert_eq!(answer.headers()["location"], "https://app.example.com/integrations?integration=i1&result=connected");
    world.peers.vendor_sync.complete.answers(Ok(completed(ConnectionResult::Unknown, "")));
    page(back("").await, 404).await;
}

#[tokio::test]
async fn a_ticket_that_is_not_good_says_so_and_looking_ahead_uses_none_up() {
    let world = World::start().await;
    let ahead = world.get("/oauth/start/AZ-_09").header("sec-purpose", "prefetch").send().await.unwrap();
    assert!(ahead.headers().contains_key("retry-after"));
    page(ahead, 503).await;
    assert_eq!(world.request(Method::HEAD, "/oauth/start/AZ-_09").send().await.unwrap().status(), 503);
    assert!(world.peers.vendor_sync.open.asked().is_empty());
    world.peers.vendor_sync.open.answers(Err(Status::not_found("a secret")));
    page(world.get("/oauth/start/AZ-_09").send().await.unwrap(), 404).await;
    for no_ticket in ["/oauth/start/a.b", "/oauth/start/%3Cb%3E", &*format!("/oauth/start/{}", "a".repeat(129))] {
        problem(world.get(no_ticket).send().await.unwrap(), 404).await;
    }
    assert_eq!(world.peers.vendor_sync.open.asked().len(), 1);
}
