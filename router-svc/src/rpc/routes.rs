//! `RouteService`: which events go where.

use chassis::{
    auth::caller,
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use proto::router::v1::{
    ConfigureChannelRequest, ConfigureChannelResponse, CreateRouteRequest, CreateRouteResponse, DeleteRouteRequest,
    DeleteRouteResponse, ListChannelConfigurationsRequest, ListChannelConfigurationsResponse, ListRoutesRequest,
    ListRoutesResponse, Route as WireRoute, TestRouteRequest, TestRouteResponse, UpdateRouteRequest,
    UpdateRouteResponse, route_service_server::RouteService,
};
use tonic::{Request, Response, Status};

use super::{
    given, see_through, text,
    wire::{channel_configuration, event, print_channel_configuration, print_plan, print_route, route},
};
use crate::{publish::Publisher, route::Route, routes::RouteTable};

pub(crate) struct RouteRpc {
    pub(crate) routes: RouteTable,
    pub(crate) publisher: Publisher,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
}

#[tonic::async_trait]
impl RouteService for RouteRpc {
    async fn list_routes(&self, request: Request<ListRoutesRequest>) -> Result<Response<ListRoutesResponse>, Status> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let routes = self.routes.of(&organization).await?;
        let routes = routes.routes().iter().map(|route| self.print(&organization, route)).collect();
        Ok(Response::new(ListRoutesResponse { routes }))
    }

    async fn create_route(
        &self,
        request: Request<CreateRouteRequest>,
    ) -> Result<Response<CreateRouteResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let (routes, owner) = (self.routes.clone(), organization.clone());
        let route = self.parse(request.into_inner().route)?;
        let created = see_through(&self.tasks, async move { routes.create(&owner, route).await }).await?;
        Ok(Response::new(CreateRouteResponse { route: Some(self.print(&organization, &created)) }))
    }

    async fn update_route(
        &self,
        request: Request<UpdateRouteRequest>,
    ) -> Result<Response<UpdateRouteResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let given = given("route", request.into_inner().route)?;
        let version = given.version;
        let parsed = match self.built_in(&organization, &given.id).await? {
            Some(built_in) => Route { disabled: given.disabled, ..built_in },
            None => Route { version, ..self.parse(Some(given))? },
        };
        let (routes, owner) = (self.routes.clone(), organization.clone());
        let updated = see_through(&self.tasks, async move { routes.update(&owner, parsed).await }).await?;
        Ok(Response::new(UpdateRouteResponse { route: Some(self.print(&organization, &updated)) }))
    }

    async fn delete_route(
        &self,
        request: Request<DeleteRouteRequest>,
    ) -> Result<Response<DeleteRouteResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let (routes, id) = (self.routes.clone(), text("id", &request.get_ref().id)?.to_owned());
        see_through(&self.tasks, async move { routes.delete(&organization, &id).await }).await?;
        Ok(Response::new(DeleteRouteResponse {}))
    }

    async fn test_route(&self, request: Request<TestRouteRequest>) -> Result<Response<TestRouteResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let asked = given("event", request.event)?;
        let organization = caller.organization(&asked.organization_id)?;
        let asked = event(asked, organization, self.clock.now()).map_err(|error| error.within("event"))?;
        let extra = request.route.map(|route| self.parse(Some(route))).transpose()?;
        let (plan, completed) = self.publisher.explain(asked, extra).await?;
        let channels = completed.channels.iter().map(ToString::to_string).collect();
        Ok(Response::new(TestRouteResponse { plan: Some(print_plan(&plan)), channels }))
    }

    async fn configure_channel(
        &self,
        request: Request<ConfigureChannelRequest>,
    ) -> Result<Response<ConfigureChannelResponse>, Status> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let configuration = channel_configuration(&request.pattern, &request.destinations)?;
        let (routes, new) = (self.routes.clone(), configuration.clone());
        see_through(&self.tasks, async move { routes.configure(&organization, &new).await }).await?;
        Ok(Response::new(ConfigureChannelResponse { configuration: Some(print_channel_configuration(&configuration)) }))
    }

    async fn list_channel_configurations(
        &self,
        request: Request<ListChannelConfigurationsRequest>,
    ) -> Result<Response<ListChannelConfigurationsResponse>, Status> {
        let organization = caller(&request)?.organization(&request.get_ref().organization_id)?;
        let routes = self.routes.of(&organization).await?;
        let configurations = routes.configurations().iter().map(print_channel_configuration).collect();
        Ok(Response::new(ListChannelConfigurationsResponse { configurations }))
    }
}

impl RouteRpc {
    fn parse(&self, given_route: Option<WireRoute>) -> Result<Route> {
        let given_route = given("route", given_route)?;
        route(&given_route, self.clock.now()).map_err(|error| error.within("route"))
    }

    fn print(&self, organization: &OrganizationId, route: &Route) -> WireRoute {
        let failures = self.routes.failures(organization, &route.id);
        print_route(route, failures.count, &failures.last)
    }

    async fn built_in(&self, organization: &OrganizationId, id: &str) -> Result<Option<Route>> {
        if id.is_empty() {
            return Err(Error::invalid("route.id", "must be given"));
        }
        text("route.id", id)?;
        let routes = self.routes.of(organization).await?;
        Ok(routes.routes().iter().find(|route| route.id == id && route.built_in).map(|route| Route::clone(route)))
    }
}
