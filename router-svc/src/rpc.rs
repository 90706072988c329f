//! The gRPC surface, one file a service: requests are parsed, the domain is called, answers are printed.

mod captures;
mod consumers;
mod events;
mod organizations;
mod routes;
mod subscriptions;
mod weddings;
pub(crate) mod wire;

use chassis::{
    auth::{Access, AccessTable, Scope},
    error::{Error, Result},
    tasks::Tasks,
};

pub(crate) use self::{
    captures::CaptureRpc, consumers::ConsumerRpc, events::EventRpc, organizations::OrganizationRpc, routes::RouteRpc,
    subscriptions::SubscriptionRpc, weddings::WeddingRpc,
};

/// Who may call what. A test holds it against the protos.
pub(crate) const ACCESS: AccessTable = &[
    ("/wedsync.router.v1.CaptureService/DismissRefusals", Access::Operator),
    ("/wedsync.router.v1.CaptureService/ListCaptures", Access::Operator),
    ("/wedsync.router.v1.CaptureService/ListRefusals", Access::Operator),
    ("/wedsync.router.v1.ConsumerService/Consume", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.ConsumerService/DeleteGroup", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.ConsumerService/ListGroups", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.EventService/GetEvent", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.EventService/GetHead", Access::Any),
    ("/wedsync.router.v1.EventService/ListEvents", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.EventService/Publish", Access::Scope(Scope::Publish)),
    ("/wedsync.router.v1.EventService/PublishBatch", Access::Scope(Scope::Publish)),
    ("/wedsync.router.v1.EventService/PublishStream", Access::Scope(Scope::Publish)),
    ("/wedsync.router.v1.EventService/ReplayEvents", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.OrganizationService/Authenticate", Access::Service),
    ("/wedsync.router.v1.OrganizationService/CreateApiKey", Access::Scope(Scope::Admin)),
    ("/wedsync.router.v1.OrganizationService/CreateOrganization", Access::Operator),
    ("/wedsync.router.v1.OrganizationService/DeleteApiKey", Access::Scope(Scope::Admin)),
    ("/wedsync.router.v1.OrganizationService/GetOrganization", Access::Any),
    ("/wedsync.router.v1.OrganizationService/ListApiKeys", Access::Scope(Scope::Admin)),
    ("/wedsync.router.v1.OrganizationService/ListOrganizations", Access::Any),
    ("/wedsync.router.v1.RouteService/ConfigureChannel", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.RouteService/CreateRoute", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.RouteService/DeleteRoute", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.RouteService/ListChannelConfigurations", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.RouteService/ListRoutes", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.RouteService/TestRoute", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.RouteService/UpdateRoute", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.SubscriptionService/Broadcast", Access::Scope(Scope::Publish)),
    ("/wedsync.router.v1.SubscriptionService/Subscribe", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.WeddingService/GetWedding", Access::Scope(Scope::Consume)),
    ("/wedsync.router.v1.WeddingService/UpsertWedding", Access::Scope(Scope::Publish)),
];

/// Sees a change through, in the store and in memory, even if its caller leaves half way: a statement that was handed over
/// is carried out whether or not anybody waits for it, and what it changed must be known.
async fn see_through<T: Send + 'static>(
    tasks: &Tasks,
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let changed = tasks.through("rpc.change", change).await;
    changed.unwrap_or_else(|| Err(Error::internal(anyhow::anyhow!("a change broke off"))))
}

/// The size of a page: what was asked for, 100 if nothing was, 500 at most.
fn page_size(asked: i32) -> Result<u32> {
    match u32::try_from(asked) {
        Ok(0) => Ok(100),
        Ok(asked) => Ok(asked.min(500)),
        Err(_) => Err(Error::invalid("page_size", "must not be negative")),
    }
}

/// A text that names something: one that no store could hold is not looked for.
fn text<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    crate::event::check_text(field, text)?;
    Ok(text)
}

/// What a request must hold.
fn given<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::invalid(field, "must be given"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_rpc_says_who_may_call_it() {
        assert_eq!(chassis::auth::uncovered(super::ACCESS, "wedsync.router.v1"), Vec::<String>::new());
    }
}
