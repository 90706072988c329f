//! The caller's API key. It is handed on as it was shown: the service that is asked decides whose it is and what it may.

use axum::extract::FromRequestParts;
use chassis::grpc::{Connection, Peer};
use http::{HeaderMap, header::AUTHORIZATION, request::Parts};

use crate::problem::Problem;

const KEY_BYTES: usize = 4096;

/// What stands in `Authorization: Bearer <API key>`, which a request has once.
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// `peer`, called in the name of the key's holder.
    pub(crate) fn calls(&self, peer: &Peer) -> Result<Connection, Problem> {
        Ok(peer.with_bearer(&self.0)?.channel())
    }
}

impl<S: Sync> FromRequestParts<S> for ApiKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        bearer(&parts.headers).map(|key| Self(key.to_owned())).ok_or_else(Problem::unauthenticated)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    let usable = (1..=KEY_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && usable).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn a_key_is_shown_once_and_as_a_bearer() {
        assert_eq!(shown(&["Bearer wsk_1"]).as_deref(), Some("wsk_1"));
        assert_eq!(shown(&["bearer wsk_1"]).as_deref(), Some("wsk_1"));
        let long = format!("Bearer {}", "k".repeat(KEY_BYTES + 1));
        for bad in
            [&[][..], &["Bearer a", "Bearer a"], &["Basic YTpi"], &["Bearer "], &["wsk_1"], &["Bearer a b"], &[&long]]
        {
            assert_eq!(shown(bad), None, "{bad:?}");
        }
    }
}
