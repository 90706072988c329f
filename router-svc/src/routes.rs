//! The routes and channel configurations in force: built in, and each organization's own, stored and remembered compiled.
//! Whoever changes them sees it through, so that what is stored is in force.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::{self, OrganizationId},
    store::Store,
    with,
};
use prost::Message as _;
use proto::router::v1 as wire;

use crate::{
    event::Event,
    facts::Facts,
    plan::{Outcome, Plan, Routes},
    remembered::Remembered,
    route::{BuiltIn, ChannelConfiguration, Route},
    rpc::wire::{channel_configuration, print_channel_configuration, print_route, route},
};

/// Routes of one organization.
const ROUTES_MAX: usize = 1_000;
/// Bytes of all conditions of one organization's routes: each event may have to ask them all.
const CONDITIONS_BYTES_MAX: usize = 256 * 1024;
/// Channel configurations of one organization.
const CONFIGURATIONS_MAX: usize = 200;
/// Organizations whose routes stay compiled.
const CACHED: u64 = 1_000;

/// The oldest that compiled routes may be, should the store have changed them without our learning of it.
const AGE_MAX: Duration = Duration::from_secs(60);

/// How often a route's condition could not be evaluated since the start, and why the last time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    pub(crate) count: u64,
    pub(crate) last: String,
}

/// All routes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RouteTable {
    store: Store,
    clock: Clock,
    built_in: Arc<BuiltIn>,
    compiled: Remembered<OrganizationId, Arc<Routes>>,
    /// Held while what is stored is looked at and changed.
    changing: Arc<tokio::sync::Mutex<()>>,
    failures: Arc<Mutex<HashMap<(OrganizationId, String), Failures>>>,
}

impl RouteTable {
    /// # Errors
    /// A built-in table that can't be read.
    pub(crate) fn new(store: Store, clock: Clock) -> Result<Self> {
        Ok(Self {
            store,
            clock,
            built_in: Arc::new(BuiltIn::load()?),
            compiled: Remembered::no_older_than(AGE_MAX, CACHED),
            changing: Arc::default(),
            failures: Arc::default(),
        })
    }

    /// The routes in force for an organization.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn of(&self, organization: &OrganizationId) -> Result<Arc<Routes>> {
        if let Some(routes) = self.compiled.get(organization) {
            return Ok(routes);
        }
        let reading = self.compiled.reading(organization);
        let (disabled, own) = self.own_routes(organization).await?;
        let configurations = self.own_configurations(organization).await?;
        let routes = Arc::new(Routes::new(&self.built_in, &disabled, own, configurations));
        self.compiled.keep(organization.clone(), routes.clone(), reading);
        Ok(routes)
    }

    /// Whether endpoints and integrations follow the rows of an event: it is of a type that a shipped route takes them from,
    /// even where an organization has switched that off, or a route of its own says so.
    pub(crate) fn configures(&self, event: &Event, facts: &Facts, plan: &Plan) -> bool {
        let types = [Some(&event.type_), facts.canonical_type()];
        types.into_iter().flatten().any(|type_| self.built_in.configures(type_))
            || plan.destinations.iter().any(|to| to.target.is_configuration())
    }

    /// Counts the conditions that a plan could not evaluate.
    pub(crate) fn note_failures(&self, organization: &OrganizationId, plan: &Plan) {
        for decision in plan.decisions.iter().filter(|decision| decision.outcome == Outcome::Failed) {
            metrics::counter!("route_condition_failures_total").increment(1);
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            let of_route = failures.entry((organization.clone(), decision.route_id.clone())).or_default();
            of_route.count += 1;
            of_route.last.clone_from(&decision.reason);
        }
    }

    pub(crate) fn failures(&self, organization: &OrganizationId, route: &str) -> Failures {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(&(organization.clone(), route.to_owned())).cloned().unwrap_or_default()
    }

    /// Adds a route of the organization's own.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` when it has as many as it may.
    pub(crate) async fn create(&self, organization: &OrganizationId, mut route: Route) -> Result<Route> {
        let _changing = self.changing.lock().await;
        let (_, own) = self.own_routes(organization).await?;
        check_room(&own, &route)?;
        (route.id, route.version, route.updated_at) = (id::uuid(self.clock.now()), 1, self.clock.now());
        self.write(organization, &route).await?;
        Ok(route)
    }

    /// Replaces a route, or disables a built-in one.
    ///
    /// # Errors
    /// `Error::NotFound`; `Error::Aborted` when it was changed meanwhile.
    pub(crate) async fn update(&self, organization: &OrganizationId, mut route: Route) -> Result<Route> {
        let current = self.of(organization).await?.routes().iter().find(|known| known.id == route.id).cloned();
        let current = current.ok_or_else(|| Error::NotFound("route".into()))?;
        let _changing = self.changing.lock().await;
        if current.built_in {
            return self.disable(organization, &current, route.disabled).await;
        }
        if self.version(organization, &route.id).await? != route.version {
            return Err(Error::Aborted(format!(
                "route {} was changed meanwhile: read it again, then update",
                route.id
            )));
        }
        let (_, mut own) = self.own_routes(organization).await?;
        own.retain(|other| other.id != route.id);
        check_room(&own, &route)?;
        (route.version, route.updated_at) = (route.version + 1, self.clock.now());
        self.write(organization, &route).await?;
        Ok(route)
    }

    /// A built-in route is as it is shipped; only whether it is on is the organization's.
    async fn disable(&self, organization: &OrganizationId, built_in: &Route, disabled: bool) -> Result<Route> {
        let route = Route { disabled, ..built_in.clone() };
        if disabled {
            self.write(organization, &route).await?;
        } else {
            self.remove(organization, &route.id).await?;
        }
        Ok(route)
    }

    /// # Errors
    /// `Error::NotFound`; `Error::FailedPrecondition` for a built-in route.
    pub(crate) async fn delete(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        if self.built_in.routes.iter().any(|route| route.id == id) {
            return Err(Error::FailedPrecondition(format!("route {id} is built in: disable it by UpdateRoute")));
        }
        let _changing = self.changing.lock().await;
        let removed = self.remove(organization, id).await?;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&(organization.clone(), id.to_owned()));
        if removed == 0 { Err(Error::NotFound("route".into())) } else { Ok(()) }
    }

    /// Stores a channel's configuration; one without destinations silences the built-in one, or removes the own.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` when the organization has as many as it may.
    pub(crate) async fn configure(
        &self,
        organization: &OrganizationId,
        configuration: &ChannelConfiguration,
    ) -> Result<()> {
        let pattern = configuration.pattern.to_string();
        let _changing = self.changing.lock().await;
        let known = self.own_configurations(organization).await?;
        let is_built_in = self.built_in.configurations.iter().any(|built_in| built_in.pattern == configuration.pattern);
        if configuration.wishes.is_empty() && !is_built_in {
            let removed = with!(self.store.writer(), c => sqlx::query("DELETE FROM channel_configurations WHERE organization_id = $1 AND pattern = $2")
                .bind(organization.as_str()).bind(&pattern).execute(c).await.map(drop));
            self.changed(organization, removed)
        } else if known.len() >= CONFIGURATIONS_MAX && !known.iter().any(|known| known.pattern == configuration.pattern)
        {
            Err(Error::FailedPrecondition(format!(
                "an organization has at most {CONFIGURATIONS_MAX} channel configurations"
            )))
        } else {
            let definition = print_channel_configuration(configuration).encode_to_vec();
            let written = with!(self.store.writer(), c => sqlx::query(
                "INSERT INTO channel_configurations (organization_id, pattern, definition, updated_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (organization_id, pattern) DO UPDATE SET definition = excluded.definition, updated_at = excluded.updated_at",
            ).bind(organization.as_str()).bind(&pattern).bind(definition).bind(self.clock.now_micros()).execute(c).await.map(drop));
            self.changed(organization, written)
        }
    }

    /// Whatever became of a change: what is in force is read again, even where the store's answer was lost.
    fn changed<T>(&self, organization: &OrganizationId, stored: Result<T, sqlx::Error>) -> Result<T> {
        self.compiled.forget(organization);
        Ok(stored?)
    }

    /// The stored version of a route; 0 where there is none.
    async fn version(&self, organization: &OrganizationId, id: &str) -> Result<u64> {
        let version: Option<i64> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT version FROM routes WHERE organization_id = $1 AND id = $2",
        ).bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        Ok(version.map_or(0, i64::unsigned_abs))
    }

    async fn write(&self, organization: &OrganizationId, route: &Route) -> Result<()> {
        let definition = print_route(route, 0, "").encode_to_vec();
        let version = i64::try_from(route.version).unwrap_or(i64::MAX);
        let written = with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO routes (organization_id, id, definition, version, updated_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (organization_id, id) DO UPDATE SET definition = excluded.definition, version = excluded.version,
                 updated_at = excluded.updated_at",
        ).bind(organization.as_str()).bind(&route.id).bind(definition).bind(version).bind(route.updated_at.as_microsecond())
        .execute(c).await.map(drop));
        self.changed(organization, written)
    }

    async fn remove(&self, organization: &OrganizationId, id: &str) -> Result<u64> {
        let removed = with!(self.store.writer(), c => sqlx::query("DELETE FROM routes WHERE organization_id = $1 AND id = $2")
            .bind(organization.as_str()).bind(id).execute(c).await.map(|done| done.rows_affected()));
        self.changed(organization, removed)
    }

    /// The ids of the built-in routes that are off, and the organization's own routes.
    async fn own_routes(&self, organization: &OrganizationId) -> Result<(HashSet<String>, Vec<Arc<Route>>)> {
        let rows: Vec<(String, Vec<u8>, i64, i64)> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, definition, version, updated_at FROM routes WHERE organization_id = $1 ORDER BY updated_at, id LIMIT $2",
        ).bind(organization.as_str()).bind((ROUTES_MAX * 2) as i64).fetch_all(c).await)?;
        let (mut disabled, mut own) = (HashSet::new(), Vec::new());
        for (id, definition, version, updated_at) in rows {
            if self.built_in.routes.iter().any(|route| route.id == id) {
                disabled.insert(id);
                continue;
            }
            let stored = wire::Route::decode(definition.as_slice()).map_err(Error::internal)?;
            let mut parsed = route(&stored, from_micros(updated_at))?;
            parsed.version = version.unsigned_abs();
            own.push(Arc::new(parsed));
        }
        Ok((disabled, own))
    }

    async fn own_configurations(&self, organization: &OrganizationId) -> Result<Vec<ChannelConfiguration>> {
        let rows: Vec<(String, Vec<u8>)> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT pattern, definition FROM channel_configurations WHERE organization_id = $1 ORDER BY pattern",
        ).bind(organization.as_str()).fetch_all(c).await)?;
        let parse = |(pattern, definition): (String, Vec<u8>)| {
            let stored = wire::ChannelConfiguration::decode(definition.as_slice()).map_err(Error::internal)?;
            channel_configuration(&pattern, &stored.destinations)
        };
        rows.into_iter().map(parse).collect()
    }
}

/// Whether an organization with these other routes may have this one.
fn check_room(others: &[Arc<Route>], route: &Route) -> Result<()> {
    if others.len() >= ROUTES_MAX {
        return Err(Error::FailedPrecondition(format!(
            "an organization has at most {ROUTES_MAX} routes: delete one first"
        )));
    }
    let size = |route: &Route| route.condition.as_ref().map_or(0, |condition| condition.source.len());
    if others.iter().map(|route| size(route)).sum::<usize>() + size(route) > CONDITIONS_BYTES_MAX {
        return Err(Error::FailedPrecondition(format!(
            "an organization's conditions have at most {CONDITIONS_BYTES_MAX} bytes in all: shorten or delete one first"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::Decision, priority::Priority, route::RouteCondition};

    #[test]
    fn conditions_have_a_bound_together() {
        let source = format!("new.a == '{}'", "x".repeat(15_000));
        let condition = RouteCondition::parse(&source).expect("it is well-formed");
        let built_in = BuiltIn::load().expect("it is tested");
        let route = Arc::new(Route { condition, ..Route::clone(&built_in.routes[0]) });
        let fitting = CONDITIONS_BYTES_MAX / source.len();
        assert!(check_room(&vec![route.clone(); fitting - 1], &route).is_ok());
        assert!(check_room(&vec![route.clone(); fitting], &route).is_err());
    }

    #[tokio::test]
    async fn a_route_that_is_gone_leaves_no_failures_behind() {
        chassis::testing::on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let table = RouteTable::new(store, Clock::System).expect("the built-in routes are tested");
            let organization = OrganizationId::parse("o").expect("an id");
            let failed = Decision { route_id: "r".to_owned(), outcome: Outcome::Failed, reason: String::new() };
            let (priority, priority_reason) = (Priority::Normal, String::new());
            let plan = Plan { destinations: Vec::new(), priority, priority_reason, decisions: vec![failed] };
            table.note_failures(&organization, &plan);
            assert_eq!(table.failures(&organization, "r").count, 1);
            table.delete(&organization, "r").await.expect_err("it was never stored");
            assert!(table.failures.lock().expect("nobody panicked").is_empty());
        })
        .await;
    }
}
