//! `OrganizationService`: tenants and credentials.

use chassis::{
    auth::{Caller, Role, Scope, caller},
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use proto::router::v1::{
    ApiKey as WireKey, AuthenticateRequest, AuthenticateResponse, CreateApiKeyRequest, CreateApiKeyResponse,
    CreateOrganizationRequest, CreateOrganizationResponse, DeleteApiKeyRequest, DeleteApiKeyResponse,
    GetOrganizationRequest, GetOrganizationResponse, ListApiKeysRequest, ListApiKeysResponse, ListOrganizationsRequest,
    ListOrganizationsResponse, Organization as WireOrganization, Scope as WireScope,
    organization_service_server::OrganizationService,
};
use tonic::{Request, Response, Status};

use super::{
    given, page_size, see_through, text,
    wire::{print_timestamp, timestamp},
};
use crate::organizations::{ApiKey, Organization, Organizations};

pub(crate) struct OrganizationRpc {
    pub(crate) organizations: Organizations,
    pub(crate) tasks: Tasks,
}

#[tonic::async_trait]
impl OrganizationService for OrganizationRpc {
    async fn create_organization(
        &self,
        request: Request<CreateOrganizationRequest>,
    ) -> Result<Response<CreateOrganizationResponse>, Status> {
        let asked = given("organization", request.into_inner().organization)?;
        let created = self.organizations.create(&asked.id, &asked.name, &asked.time_zone).await;
        let created = created.map_err(|error| error.within("organization"))?;
        Ok(Response::new(CreateOrganizationResponse { organization: Some(print(created)) }))
    }

    async fn get_organization(
        &self,
        request: Request<GetOrganizationRequest>,
    ) -> Result<Response<GetOrganizationResponse>, Status> {
        let id = caller(&request)?.organization(&request.get_ref().id)?;
        let organization = self.organizations.get(&id).await?;
        Ok(Response::new(GetOrganizationResponse { organization: Some(print(organization)) }))
    }

    async fn list_organizations(
        &self,
        request: Request<ListOrganizationsRequest>,
    ) -> Result<Response<ListOrganizationsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if caller.role == Role::Member {
            let own = self.organizations.get(&caller.organization("")?).await?;
            return Ok(Response::new(ListOrganizationsResponse {
                organizations: vec![print(own)],
                next_page_token: String::new(),
            }));
        }
        let size = page_size(request.page_size)?;
        let page = self.organizations.list(text("page_token", &request.page_token)?, size).await?;
        let is_full = page.len() == size as usize;
        let next_page_token = page.last().filter(|_| is_full).map(|last| last.id.to_string()).unwrap_or_default();
        Ok(Response::new(ListOrganizationsResponse {
            organizations: page.into_iter().map(print).collect(),
            next_page_token,
        }))
    }

    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = owner(&caller, &request.organization_id)?;
        let scopes = request.scopes.iter().map(|number| scope(*number)).collect::<Result<Vec<_>>>()?;
        let expires_at = request.expires_at.map(|at| timestamp("expires_at", at)).transpose()?;
        let (key, secret) =
            self.organizations.create_key(&organization, &request.description, &scopes, expires_at).await?;
        Ok(Response::new(CreateApiKeyResponse { api_key: Some(print_key(key)), secret }))
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        let organization = owner(&caller(&request)?, &request.get_ref().organization_id)?;
        let keys = self.organizations.list_keys(&organization).await?;
        Ok(Response::new(ListApiKeysResponse { api_keys: keys.into_iter().map(print_key).collect() }))
    }

    async fn delete_api_key(
        &self,
        request: Request<DeleteApiKeyRequest>,
    ) -> Result<Response<DeleteApiKeyResponse>, Status> {
        let organization = owner(&caller(&request)?, &request.get_ref().organization_id)?;
        let (organizations, id) = (self.organizations.clone(), text("id", &request.get_ref().id)?.to_owned());
        see_through(&self.tasks, async move { organizations.delete_key(&organization, &id).await }).await?;
        Ok(Response::new(DeleteApiKeyResponse {}))
    }

    /// NOT_FOUND, not UNAUTHENTICATED, for an unknown secret: the calling service is known, the secret isn't.
    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let key = match self.organizations.find_key(&request.into_inner().secret).await {
            Err(Error::Unauthenticated(_)) => return Err(Error::NotFound("API key".into()).into()),
            other => other?,
        };
        Ok(Response::new(AuthenticateResponse {
            operator: key.organization.is_none(),
            organization_id: key.organization.map(|organization| organization.to_string()).unwrap_or_default(),
            key_id: key.id,
            scopes: key.scopes.into_iter().map(|scope| print_scope(scope) as i32).collect(),
        }))
    }
}

/// Whose keys: a member's own organization's; the operator names one. Services have no business with keys.
fn owner(caller: &Caller, requested: &str) -> Result<OrganizationId> {
    if caller.role == Role::Service {
        return Err(Error::PermissionDenied("services don't manage keys".into()));
    }
    caller.organization(requested)
}

fn scope(number: i32) -> Result<Scope> {
    match WireScope::try_from(number) {
        Ok(WireScope::Publish) => Ok(Scope::Publish),
        Ok(WireScope::Consume) => Ok(Scope::Consume),
        Ok(WireScope::Manage) => Ok(Scope::Manage),
        Ok(WireScope::Admin) => Ok(Scope::Admin),
        Ok(WireScope::Unspecified) | Err(_) => {
            Err(Error::invalid("scopes", "must be PUBLISH, CONSUME, MANAGE or ADMIN"))
        }
    }
}

fn print_scope(scope: Scope) -> WireScope {
    match scope {
        Scope::Publish => WireScope::Publish,
        Scope::Consume => WireScope::Consume,
        Scope::Manage => WireScope::Manage,
        Scope::Admin => WireScope::Admin,
    }
}

fn print(organization: Organization) -> WireOrganization {
    WireOrganization {
        id: organization.id.to_string(),
        name: organization.name,
        time_zone: organization.time_zone,
        created_at: Some(print_timestamp(organization.created_at)),
    }
}

fn print_key(key: ApiKey) -> WireKey {
    WireKey {
        id: key.id,
        organization_id: key.organization.map(|organization| organization.to_string()).unwrap_or_default(),
        description: key.description,
        scopes: key.scopes.into_iter().map(|scope| print_scope(scope) as i32).collect(),
        created_at: Some(print_timestamp(key.created_at)),
        expires_at: key.expires_at.map(print_timestamp),
    }
}
