//! `GET /realtime/inspector`: a page for developers that shows what happens on a channel, live, and sends broadcasts.
//!
//! It is one embedded file that speaks the sockets' own protocol. It is served in development mode alone, and gives
//! whoever opens it on this machine a token for any organization; so it answers only to names of loopback, which a page
//! from elsewhere can't take on (DNS rebinding), and not to requests that another site makes.

use std::{sync::LazyLock, time::Duration};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::error::Error;
use http::{
    HeaderMap, HeaderName, Uri,
    header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY},
};
use proto::router::v1::{ListOrganizationsRequest, organization_service_client::OrganizationServiceClient};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::json;

use crate::{Gateway, problem::Problem};

const PAGE: &str = include_str!("inspector.html");
/// Organizations that tokens are offered for.
const OFFERED: i32 = 500;
/// How long an offered token is good; the page asks for another before.
const GOOD_FOR: i64 = 3_600;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// What asks, as browsers say of themselves.
const ASKED_BY: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The page's own script and style, by their hashes, and nothing else; connections to here only.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (script, style) = (hash("<script>", "</script>"), hash("<style>", "</style>"));
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

fn hash(begin: &str, end: &str) -> String {
    let part = PAGE.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map_or("", |(part, _)| part);
    format!("sha256-{}", BASE64_STANDARD.encode(digest(&SHA256, part.as_bytes())))
}

/// What the page can connect as.
#[derive(Debug, Serialize)]
pub(crate) struct Offer {
    organizations: Vec<Offered>,
}

#[derive(Debug, Serialize)]
struct Offered {
    id: String,
    name: String,
    token: String,
}

/// The page.
pub(crate) async fn page(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response, Problem> {
    check(&gateway, &headers)?;
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, PAGE).into_response())
}

/// A token for each organization, which sees all of it.
pub(crate) async fn tokens(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Json<Offer>, Problem> {
    check(&gateway, &headers)?;
    if !is_own(&headers) {
        return Err(Problem::not_found());
    }
    let realtime = &gateway.realtime;
    let mut request = tonic::Request::new(ListOrganizationsRequest { page_size: OFFERED, page_token: String::new() });
    request.set_timeout(ANSWER_WITHIN);
    let mut router = OrganizationServiceClient::new(realtime.router.channel());
    let all = router.list_organizations(request).await.map_err(Error::from)?.into_inner().organizations;
    let now = realtime.chassis.clock.now().as_second();
    let offered = all.into_iter().filter_map(|organization| {
        let claims = json!({
            "organization_id": organization.id, "app_role": "admin", "role": "authenticated", "sub": "inspector",
            "aud": realtime.config.audience, "iss": realtime.config.issuer, "iat": now, "exp": now + GOOD_FOR,
        });
        let token = realtime.tokens.issue(&claims)?;
        Some(Offered { id: organization.id, name: organization.name, token })
    });
    Ok(Json(Offer { organizations: offered.collect() }))
}

fn check(gateway: &Gateway, headers: &HeaderMap) -> Result<(), Problem> {
    let allowed = gateway.realtime.config.inspector && is_loopback(headers);
    if allowed { Ok(()) } else { Err(Problem::not_found()) }
}

/// Whether the request was sent to this machine by a name that nobody else can give it.
fn is_loopback(headers: &HeaderMap) -> bool {
    let authority = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Uri>().ok()?.into_parts().authority);
    authority.is_some_and(|authority| matches!(authority.host(), "localhost" | "127.0.0.1" | "[::1]"))
}

/// Whether our own page asks, or something that is no browser.
fn is_own(headers: &HeaderMap) -> bool {
    headers.get(ASKED_BY).is_none_or(|site| site == "same-origin")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, http::HeaderValue::from_static(value))])
    }

    #[test]
    fn only_names_of_loopback_are_answered() {
        for host in ["localhost:7400", "127.0.0.1", "[::1]:7400"] {
            assert!(is_loopback(&headers(HOST, host)), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7400", "127.0.0.1.nip.io", "10.0.0.1:7400", "", "a b"] {
            assert!(!is_loopback(&headers(HOST, host)), "{host}");
        }
        assert!(!is_loopback(&HeaderMap::new()));
    }

    #[test]
    fn another_site_gets_no_token() {
        assert!(is_own(&headers(ASKED_BY, "same-origin")) && is_own(&HeaderMap::new()));
        assert!(!["cross-site", "same-site", "none"].into_iter().any(|site| is_own(&headers(ASKED_BY, site))));
    }

    #[test]
    fn the_page_has_one_script_one_style_and_no_way_around_its_policy() {
        for tag in ["<script", "<style"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        let script = PAGE.split_once("<script>").expect("a script").1;
        for way in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "localStorage"]
        {
            assert!(!script.contains(way), "{way}");
        }
        let markup = PAGE.split("<script>").next().expect("a page");
        assert!(!markup.contains(" on") || !markup.contains("=\"javascript"), "handlers are in the script");
        assert!(
            !PAGE.contains("src=") && !PAGE.contains("http://") && !PAGE.contains("https://"),
            "nothing is fetched"
        );
        assert!(POLICY.contains("script-src 'sha256-") && !POLICY.contains("unsafe"));
    }
}
