//! The page for developers: there in development mode alone, and only for whoever is on this machine.

use chassis::service::Chassis;

use crate::world::World;

const PAGE: &str = "/realtime/inspector";
const TOKENS: &str = "/realtime/inspector/tokens";

#[tokio::test]
async fn without_development_mode_there_is_no_page_and_no_token() {
    let world = World::start().await;
    for path in [PAGE, TOKENS] {
        assert_eq!(world.get(path).send().await.expect("an answer").status(), 404, "{path}");
    }
}

#[tokio::test]
async fn the_page_runs_its_own_script_alone_and_answers_to_names_of_this_machine() {
    let world = World::with(|config| config.realtime.inspector = true).await;
    let page = world.get(PAGE).send().await.expect("an answer");
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    for path in [PAGE, TOKENS] {
        let elsewhere = world.get(path).header("host", "rebound.example").send().await.expect("an answer");
        assert_eq!(elsewhere.status(), 404, "{path}");
    }
    let foreign = world.get(TOKENS).header("sec-fetch-site", "cross-site").send().await.expect("an answer");
    assert_eq!(foreign.status(), 404);
}

#[tokio::test]
async fn a_gateway_that_others_can_reach_refuses_to_offer_tokens() {
    let mut config = gateway::Config { listen: ([0, 0, 0, 0], 0).into(), ..gateway::Config::default() };
    config.realtime.inspector = true;
    let refused = gateway::start(config, &Chassis::for_test()).await.expect_err("it is refused").to_string();
    assert!(refused.contains("inspector"), "{refused}");
}
