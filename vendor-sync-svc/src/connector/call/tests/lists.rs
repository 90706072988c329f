//! Every kind of list, walked to its end.

use super::*;

/// Seven items in pages of three, in every style.
fn list(arrived: &Arrived) -> Said {
    let url = url::Url::parse(&format!("http://x{}", arrived.target)).expect("a URL");
    let query = |name: &str| url.query_pairs().find(|(other, _)| other == name).map(|(_, value)| value.into_owned());
    let from = match url.path() {
        "/v1/page" => (query("page").and_then(|page| page.parse().ok()).unwrap_or(1) - 1) * 3,
        _ => query("offset").or_else(|| query("cursor")).and_then(|from| from.parse().ok()).unwrap_or(0),
    };
    let items: Vec<usize> = (from..7).take(3).collect();
    let next = (from + 3 < 7).then_some(from + 3);
    match url.path() {
        "/v1/link" => {
            let link = next.map(|next| format!("<http://{}/v1/link?offset={next}>; rel=\"next\"", host(arrived)));
            let first = "</v1/link>; rel=\"first\"".to_owned();
            (
                200,
                vec![("link", link.map_or_else(|| first.clone(), |link| format!("{first}, {link}")))],
                json!({"items": items}).to_string(),
            )
        }
        "/v1/next" => {
            said(200, &json!({"items": items, "next": next.map(|next| format!("/v1/next?offset={next}"))}).to_string())
        }
        "/v1/away" => said(200, r#"{"items":[1],"next":"https://elsewhere.example/x"}"#),
        "/v1/same" => said(200, r#"{"items":[1],"next":"/v1/same?offset=1"}"#),
        _ => said(200, &json!({"items": items, "cursor": next.map(|next| next.to_string())}).to_string()),
    }
}

fn host(arrived: &Arrived) -> String {
    arrived.headers["host"].to_str().expect("ASCII").to_owned()
}

async fn walk(world: &World, integration: &Integration, operation: &str) -> Result<Vec<Json>, CallError> {
    let (mut all, mut position) = (Vec::new(), Position::default());
    for _ in 0..10 {
        let page = world.caller.page(integration, operation, &json!({}), &position).await?;
        all.extend(page.items);
        // As it is kept between two processes.
        let Some(next) = page.next else { return Ok(all) };
        position = Position::parse(&next.print());
    }
    panic!("{operation} never ends");
}

#[tokio::test]
async fn every_kind_of_list_is_walked_to_its_end_and_never_to_another_host() {
    on_each_store(async |store| {
        let peer = Peer::start(list).await;
        let pages = [
            ("page", "kind = 'page'\nparameter = 'page'"),
            ("offset", "kind = 'offset'\nparameter = 'offset'"),
            ("cursor", "kind = 'cursor'\nparameter = 'cursor'\ncursor = 'body.cursor'"),
            ("link", "kind = 'link'"),
            ("next", "kind = 'next'\nnext = 'body.next'"),
            ("away", "kind = 'next'\nnext = 'body.next'"),
            ("same", "kind = 'next'\nnext = 'body.next'"),
            ("few", "kind = 'offset'\nparameter = 'offset'\nmost = 2"),
        ];
        let declared: String = pages
            .iter()
            .map(|(name, pages)| {
                format!(
                    "[operations.{name}]\nmethod = 'GET'\npath = '/{name}'\n[operations.{name}.pages]\nitems = 'body.items'\n\
                     size = 3\nsize_parameter = 'per_page'\n{pages}\n"
                )
            })
            .collect();
        let world = World::open(&store).await;
        let integration = world.account("acme", &source(&peer, &declared), &Kept::None).await;
        for kind in ["page", "offset", "cursor", "link", "next"] {
            let items = walk(&world, &integration, kind).await.expect(kind);
            assert_eq!(Json::from(items), json!([0, 1, 2, 3, 4, 5, 6]), "{kind}");
        }
        for (kind, says) in [("away", "another host"), ("same", "names itself"), ("few", "more than 2 pages")] {
            let error = walk(&world, &integration, kind).await.expect_err(kind);
            assert!(error.class == Class::Permanent && error.reason.contains(says), "{kind}: {error}");
        }
    })
    .await;
}
