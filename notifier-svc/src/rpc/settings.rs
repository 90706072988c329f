//! `SettingsService`: what holds for a whole organization, over gRPC.

use std::sync::Arc;

use chassis::{
    auth::caller,
    error::{Error, Result},
};
use proto::notifier::v1::{
    self as wire, GetOrganizationSettingsRequest, GetOrganizationSettingsResponse, UpdateOrganizationSettingsRequest,
    UpdateOrganizationSettingsResponse, settings_service_server::SettingsService,
};
use tonic::{Request, Response, Status};

use super::timestamp;
use crate::{
    settings::{self, Settings},
    tell::Notifier,
};

/// The service.
pub(crate) struct OfOrganizations(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl SettingsService for OfOrganizations {
    async fn get_organization_settings(
        &self,
        request: Request<GetOrganizationSettingsRequest>,
    ) -> Result<Response<GetOrganizationSettingsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let settings = settings::read(&self.0.store, &organization).await?;
        Ok(Response::new(GetOrganizationSettingsResponse { settings: Some(print(settings)) }))
    }

    async fn update_organization_settings(
        &self,
        request: Request<UpdateOrganizationSettingsRequest>,
    ) -> Result<Response<UpdateOrganizationSettingsResponse>, Status> {
        let caller = caller(&request)?;
        let organization = caller.organization("")?;
        let given = request.into_inner().settings.ok_or_else(|| Error::invalid("settings", "must be given"))?;
        let days = match given.slack_archive_days {
            0 => Settings::default().slack_archive_days,
            days => days.into(),
        };
        let settings = Settings {
            time_zone: given.time_zone,
            locale: given.locale,
            slack_weddings: given.slack_weddings,
            slack_archive_days: days,
            slack_notices: given.slack_notices,
            updated_at: self.0.clock.now(),
        };
        settings.check().map_err(|error| error.within("settings"))?;
        let written = settings::write(&self.0.store, &organization, &settings, &caller.name).await;
        // What wasn't answered may be in force all the same.
        self.0.wordings.forget(&organization);
        written?;
        Ok(Response::new(UpdateOrganizationSettingsResponse { settings: Some(print(settings)) }))
    }
}

fn print(settings: Settings) -> wire::OrganizationSettings {
    wire::OrganizationSettings {
        time_zone: settings.time_zone,
        locale: settings.locale,
        slack_weddings: settings.slack_weddings,
        slack_archive_days: i32::try_from(settings.slack_archive_days).unwrap_or(i32::MAX),
        slack_notices: settings.slack_notices,
        updated_at: Some(timestamp(settings.updated_at)),
    }
}
