//! Who calls, and what that lets them do: credentials, roles, scopes, and the table that says what each RPC asks for.
//!
//! Credentials come in one way: `authorization: Bearer <secret>`, exactly once. Services sign a short-lived JWT (RFC 7519,
//! HS256) with the secret that they share; everything else is a matter for the [`Authenticator`].
//!
//! Invariant: the organization of a request comes from the caller; only services and the operator name one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use futures_util::future::BoxFuture;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::{SignedDuration, Timestamp};
use moka::sync::Cache;
use proto::router::v1::{self as router, organization_service_client::OrganizationServiceClient};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    clock::Clock,
    config::Secret,
    error::{Error, Result},
    grpc::{self, Peer},
    id::OrganizationId,
};

/// What kind of caller it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the installation.
    Operator,
    /// One of our own services.
    Service,
    /// Belongs to one organization.
    Member,
}

/// What an API key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Put events in.
    Publish,
    /// Take events out.
    Consume,
    /// Change routes, endpoints, integrations and recipients.
    Manage,
    /// The other three, and the organization's keys.
    Admin,
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope.
    #[must_use]
    pub fn all() -> Self {
        [Scope::Admin].into_iter().collect()
    }

    /// Whether `scope` is in it, by itself or by way of `Admin`.
    #[must_use]
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & (bit(scope) | bit(Scope::Admin)) != 0
    }
}

fn bit(scope: Scope) -> u8 {
    1 << scope as u8
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | bit(scope)))
    }
}

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose data it may touch; none for services and the operator.
    pub organization: Option<OrganizationId>,
    /// What kind of caller it is.
    pub role: Role,
    /// What it may do.
    pub scopes: Scopes,
    /// The key's id, or the service's name; for logs and the audit.
    pub name: String,
}

impl Caller {
    /// The organization that a request is about, given what it names: a member's own, named or not; services and the
    /// operator must name one.
    ///
    /// # Errors
    /// `Error::NotFound` for another organization than the member's, `Error::Invalid` if there is none.
    pub fn organization(&self, requested: &str) -> Result<OrganizationId> {
        match &self.organization {
            Some(own) if requested.is_empty() || requested == own.as_str() => Ok(own.clone()),
            Some(_) => Err(Error::NotFound("organization".into())),
            None if requested.is_empty() => Err(Error::invalid("organization_id", "must be given by this caller")),
            None => OrganizationId::parse(requested),
        }
    }

    /// Whether a method that asks for `access` is open to it.
    #[must_use]
    pub fn may(&self, access: Access) -> bool {
        match access {
            Access::Open | Access::Any => true,
            Access::Scope(scope) => self.role != Role::Member || self.scopes.contains(scope),
            Access::Service => self.role == Role::Service,
            Access::Operator => self.role == Role::Operator,
        }
    }
}

/// Who sent `request`.
///
/// # Errors
/// `Error::Unauthenticated` where the method is open and the server therefore didn't ask.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller> {
    request.extensions().get::<Caller>().cloned().ok_or_else(unauthenticated)
}

/// What a method asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing, not even credentials.
    Open,
    /// A member with this scope, a service or the operator.
    Scope(Scope),
    /// One of our services.
    Service,
    /// The operator.
    Operator,
    /// Anybody with credentials that we know.
    Any,
}

/// What each method asks for, by its path: `("/wedsync.router.v1.EventService/Publish", Access::Scope(Scope::Publish))`.
pub type AccessTable = &'static [(&'static str, Access)];

/// The RPCs of `package` (`wedsync.router.v1`) that `access` doesn't mention, and that are therefore denied to all.
#[must_use]
pub fn uncovered(access: AccessTable, package: &str) -> Vec<String> {
    let covered: HashSet<_> = access.iter().map(|(method, _)| *method).collect();
    let prefix = format!("/{package}.");
    let rpcs = grpc::rpcs(proto::DESCRIPTORS).into_iter().map(|rpc| rpc.path);
    rpcs.filter(|path| path.starts_with(&prefix) && !covered.contains(path.as_str())).collect()
}

/// Says whose a secret is.
pub trait Authenticator: Send + Sync {
    /// The caller who holds `secret`.
    ///
    /// # Errors
    /// `Error::Unauthenticated` if nobody does, `Error::Unavailable` if that can't be said now.
    fn authenticate<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, Result<Caller>>;
}

/// The way in: finds the caller behind a call's headers and holds them against what the method asks for.
pub(crate) struct Gate {
    pub(crate) tokens: ServiceTokens,
    pub(crate) authenticator: Option<Arc<dyn Authenticator>>,
}

impl Gate {
    /// The caller, where the method isn't open; a method without `access` is denied to everybody who is known.
    pub(crate) async fn admit(&self, access: Option<Access>, headers: &HeaderMap) -> Result<Option<Caller>> {
        if access == Some(Access::Open) {
            return Ok(None);
        }
        let secret = bearer(headers)?;
        let caller = match (self.tokens.verify(secret), &self.authenticator) {
            (Some(service), _) => service,
            (None, Some(authenticator)) => authenticator.authenticate(secret).await?,
            (None, None) => return Err(unauthenticated()),
        };
        match access {
            Some(access) if caller.may(access) => Ok(Some(caller)),
            Some(Access::Scope(scope)) => Err(Error::PermissionDenied(format!("this key lacks the scope {scope:?}"))),
            _ => Err(Error::PermissionDenied("this caller may not use this method".to_owned())),
        }
    }
}

/// The secret that a call shows.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(unauthenticated()) };
    let (scheme, secret) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(unauthenticated)?;
    let usable = scheme.eq_ignore_ascii_case("bearer") && (1..=4096).contains(&secret.len());
    if usable { Ok(secret) } else { Err(unauthenticated()) }
}

fn unauthenticated() -> Error {
    Error::Unauthenticated("unknown or missing credentials: send `authorization: Bearer <API key>`".into())
}

/// How long a service's token is good.
const TOKEN_LIFE: i64 = 60;
/// How far the clocks of two machines may be apart, in seconds.
const CLOCK_SKEW: i64 = 10;
const ISSUER: &str = "wedsync";
/// `{"alg":"HS256","typ":"JWT"}`: the only header there is, so that a token can't choose its own algorithm.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// Makes and checks the tokens that services show each other. Cheap to clone.
#[derive(Clone)]
pub struct ServiceTokens {
    mac: Hmac<Sha256>,
    clock: Clock,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: i64,
    exp: i64,
}

impl ServiceTokens {
    /// Signs with `secret`, the same for all services.
    #[must_use]
    pub fn new(secret: &Secret, clock: Clock) -> Self {
        let mac = Hmac::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
        Self { mac, clock }
    }

    /// A token for `service`, good for 60 s.
    #[must_use]
    pub fn issue(&self, service: &str) -> String {
        let iat = self.clock.now().as_second();
        let claims = Claims { iss: ISSUER.to_owned(), sub: service.to_owned(), iat, exp: iat + TOKEN_LIFE };
        let claims = serde_json::to_vec(&claims).expect("strings and numbers have a JSON form");
        let signed = format!("{HEADER}.{}", BASE64.encode(claims));
        let mac = self.mac.clone().chain_update(&signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64.encode(mac))
    }

    /// The service behind `token`, if it is one of ours and still good.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Caller> {
        let (signed, mac) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        if header != HEADER {
            return None;
        }
        self.mac.clone().chain_update(signed).verify_slice(&BASE64.decode(mac).ok()?).ok()?;
        let claims: Claims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let now = self.clock.now().as_second();
        let good = claims.iss == ISSUER
            && claims.iat <= now + CLOCK_SKEW
            && claims.exp > now - CLOCK_SKEW
            && claims.exp - claims.iat <= TOKEN_LIFE;
        good.then_some(Caller { organization: None, role: Role::Service, scopes: Scopes::all(), name: claims.sub })
    }
}

/// How long an answer of the router is taken as it is: a revoked key works no longer than this.
const FRESH: SignedDuration = SignedDuration::from_secs(5);
/// How long "nobody holds this" is taken as it is.
const FRESH_REFUSAL: SignedDuration = SignedDuration::from_secs(1);
/// How long an answer is used while the router is away.
const STALE: SignedDuration = SignedDuration::from_secs(60);
/// How long the router may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const CACHED: u64 = 10_000;

/// Asks the router whose an API key is, and remembers the answer for a few seconds, by the key's SHA-256.
///
/// The router answers NOT_FOUND for a secret that nobody holds; UNAUTHENTICATED would be about our own token.
pub struct RouterAuthenticator {
    router: OrganizationServiceClient<grpc::Connection>,
    cache: Cache<[u8; 32], Answer>,
    clock: Clock,
}

#[derive(Clone)]
struct Answer {
    caller: Option<Caller>,
    at: Timestamp,
}

impl Answer {
    fn is_fresh(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) < if self.caller.is_some() { FRESH } else { FRESH_REFUSAL }
    }

    fn into_result(self) -> Result<Caller> {
        self.caller.ok_or_else(unauthenticated)
    }
}

impl RouterAuthenticator {
    /// Asks `router`.
    #[must_use]
    pub fn new(router: &Peer, clock: Clock) -> Self {
        let cache = Cache::builder().max_capacity(CACHED).time_to_live(STALE.unsigned_abs()).build();
        Self { router: OrganizationServiceClient::new(router.channel()), cache, clock }
    }

    async fn ask(&self, secret: &str) -> Result<Option<Caller>> {
        let mut request = tonic::Request::new(router::AuthenticateRequest { secret: secret.to_owned() });
        request.set_timeout(ANSWER_WITHIN);
        match self.router.clone().authenticate(request).await.map_err(Error::from) {
            Ok(answer) => parse(answer.into_inner()).map(Some),
            Err(Error::NotFound(_) | Error::Invalid { .. }) => Ok(None),
            Err(Error::Unauthenticated(_) | Error::PermissionDenied(_)) => {
                tracing::error!(
                    "the router refuses our token: [auth] service_secret must be the same for all services"
                );
                Err(Error::Unavailable("credentials can't be checked now".to_owned()))
            }
            Err(error) => Err(error),
        }
    }
}

fn parse(answer: router::AuthenticateResponse) -> Result<Caller> {
    let scopes = answer.scopes().filter_map(scope).collect();
    if answer.operator {
        return Ok(Caller { organization: None, role: Role::Operator, scopes, name: answer.key_id });
    }
    let organization = OrganizationId::parse(&answer.organization_id).map_err(Error::internal)?;
    Ok(Caller { organization: Some(organization), role: Role::Member, scopes, name: answer.key_id })
}

fn scope(wire: router::Scope) -> Option<Scope> {
    match wire {
        router::Scope::Unspecified => None,
        router::Scope::Publish => Some(Scope::Publish),
        router::Scope::Consume => Some(Scope::Consume),
        router::Scope::Manage => Some(Scope::Manage),
        router::Scope::Admin => Some(Scope::Admin),
    }
}

impl Authenticator for RouterAuthenticator {
    fn authenticate<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, Result<Caller>> {
        Box::pin(async move {
            let key: [u8; 32] = Sha256::digest(secret).into();
            let now = self.clock.now();
            let known = self.cache.get(&key);
            if let Some(fresh) = known.clone().filter(|answer| answer.is_fresh(now)) {
                return fresh.into_result();
            }
            match self.ask(secret).await {
                Ok(caller) => {
                    let answer = Answer { caller, at: now };
                    self.cache.insert(key, answer.clone());
                    answer.into_result()
                }
                Err(error) if error.is_retryable() => match known {
                    Some(Answer { caller: Some(caller), at }) if now.duration_since(at) < STALE => Ok(caller),
                    _ => Err(Error::Unavailable("credentials can't be checked now: the router is away".to_owned())),
                },
                Err(error) => Err(error),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::{clock::ManualClock, grpc::tests::Fixture};

    fn manual() -> (ManualClock, Clock) {
        let manual = ManualClock::at(Timestamp::from_second(1_777_636_800).expect("a time in range"));
        (manual.clone(), Clock::Manual(manual))
    }

    fn member(organization: &str) -> Caller {
        let organization = OrganizationId::parse(organization).ok();
        Caller { organization, role: Role::Member, scopes: Scopes::default(), name: "key".to_owned() }
    }

    #[test]
    fn a_member_names_its_own_organization_or_none_and_a_service_must_name_one() {
        let own = OrganizationId::parse("own").expect("well-formed");
        assert_eq!(member("own").organization("").expect("its own"), own);
        assert_eq!(member("own").organization("own").expect("its own"), own);
        assert!(matches!(member("own").organization("other"), Err(Error::NotFound(_))));
        let service = Caller { organization: None, role: Role::Service, ..member("own") };
        assert_eq!(service.organization("own").expect("named"), own);
        assert!(matches!(service.organization(""), Err(Error::Invalid { .. })));
    }

    #[test]
    fn admin_includes_the_other_scopes_and_no_other_does() {
        let scopes = [Scope::Publish, Scope::Consume, Scope::Manage, Scope::Admin];
        for held in scopes {
            let set: Scopes = [held].into_iter().collect();
            for asked in scopes {
                assert_eq!(set.contains(asked), held == asked || held == Scope::Admin, "{held:?} {asked:?}");
            }
        }
        assert!(!Scopes::default().contains(Scope::Publish));
    }

    #[test]
    fn a_token_is_good_for_a_minute_and_the_clocks_difference() {
        let (time, clock) = manual();
        let tokens = ServiceTokens::new(&"secret".to_owned().into(), clock);
        let token = tokens.issue("notifier");
        let caller = tokens.verify(&token).expect("just issued");
        assert_eq!((caller.role, caller.name.as_str()), (Role::Service, "notifier"));
        time.advance(Duration::from_secs(69));
        assert!(tokens.verify(&token).is_some());
        time.advance(Duration::from_secs(1));
        assert!(tokens.verify(&token).is_none(), "expired");
        time.set(time_before(&time, 81));
        assert!(tokens.verify(&token).is_none(), "from the future");
    }

    fn time_before(time: &ManualClock, seconds: i64) -> Timestamp {
        Clock::Manual(time.clone()).now() - SignedDuration::from_secs(seconds)
    }

    #[test]
    fn a_token_that_was_touched_is_nobodys() {
        let tokens = ServiceTokens::new(&"secret".to_owned().into(), manual().1);
        let token = tokens.issue("notifier");
        let parts: Vec<_> = token.split('.').collect();
        let [header, claims, mac] = parts.as_slice() else { panic!("three parts") };
        let none = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let spaced = BASE64.encode(r#"{"alg":"HS256", "typ":"JWT"}"#);
        let other = ServiceTokens::new(&"other".to_owned().into(), manual().1).issue("notifier");
        for bad in [
            String::new(),
            format!("{none}.{claims}."),
            format!("{spaced}.{claims}.{mac}"),
            format!("{header}.{claims}."),
            format!("{header}.{claims}"),
            format!("{header}.{claims}.{mac}.{mac}"),
            format!("{header}.{}.{mac}", BASE64.encode(r#"{"iss":"wedsync","sub":"router","iat":0,"exp":9}"#)),
            other,
        ] {
            assert!(tokens.verify(&bad).is_none(), "{bad}");
        }
        assert_eq!(BASE64.decode(HEADER).expect("base64"), br#"{"alg":"HS256","typ":"JWT"}"#);
    }

    #[tokio::test]
    async fn the_router_is_asked_every_five_seconds_and_not_needed_for_a_minute() {
        let fixture = Fixture::start().await;
        let (time, clock) = manual();
        let authenticator = RouterAuthenticator::new(&fixture.peer(), clock);
        let asked = || fixture.router.asked.load(Ordering::Relaxed);
        let caller = authenticator.authenticate("wsk_known").await.expect("the router knows it");
        assert!(caller.scopes.contains(Scope::Publish) && !caller.scopes.contains(Scope::Manage));
        authenticator.authenticate("wsk_known").await.expect("still known");
        assert_eq!(asked(), 1);
        time.advance(Duration::from_secs(5));
        authenticator.authenticate("wsk_known").await.expect("asked again");
        assert_eq!(asked(), 2);

        for (wait, times) in [(0, 3), (0, 3), (1, 4)] {
            time.advance(Duration::from_secs(wait));
            let refused = authenticator.authenticate("wsk_unknown").await;
            assert!(matches!(refused, Err(Error::Unauthenticated(_))));
            assert_eq!(asked(), times);
        }

        assert!(fixture.chassis.drain().await);
        time.advance(Duration::from_secs(58));
        assert_eq!(authenticator.authenticate("wsk_known").await.expect("used while the router is away"), caller);
        let refused = authenticator.authenticate("wsk_other").await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        time.advance(Duration::from_secs(1));
        let refused = authenticator.authenticate("wsk_known").await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
}
