//! `CampaignService`: parsed, handed to `campaign.rs`, printed.

use chassis::{
    auth,
    error::{Error, Result},
    id::parse_uuid,
};
use proto::vendorsync::v1::{self as wire, campaign_service_server::CampaignService};
use tonic::{Request, Response, Status};

use super::wire::{page_size, print_timestamp};
use crate::{
    campaign::{Campaign, Draft, Maker, Report, State},
    integration::Integrations,
};

/// Campaigns over gRPC.
pub(crate) struct Service {
    pub(crate) maker: Maker,
    pub(crate) integrations: Integrations,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl CampaignService for Service {
    async fn create_campaign(
        &self,
        request: Request<wire::CreateCampaignRequest>,
    ) -> Answer<wire::CreateCampaignResponse> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let integration = self.integrations.get(&organization, &request.integration_id).await?;
        let draft = Draft {
            name: request.name,
            subject: request.subject,
            preview: request.preview,
            from_name: request.from_name,
            from_email: request.from_email,
            html: request.html,
            template_id: request.template_id,
            segment: request.segment,
        };
        let campaign = Some(print(self.maker.create(&integration, &draft).await?));
        Ok(Response::new(wire::CreateCampaignResponse { campaign }))
    }

    async fn follow_campaign(
        &self,
        request: Request<wire::FollowCampaignRequest>,
    ) -> Answer<wire::FollowCampaignResponse> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let integration = self.integrations.get(&organization, &request.integration_id).await?;
        let campaign = self.maker.follow(&integration, &request.external_id, &request.name).await?;
        Ok(Response::new(wire::FollowCampaignResponse { campaign: Some(print(campaign)) }))
    }

    async fn get_campaign(&self, request: Request<wire::GetCampaignRequest>) -> Answer<wire::GetCampaignResponse> {
        let organization = auth::caller(&request)?.organization("")?;
        let id = &request.get_ref().id;
        if parse_uuid(id).is_none() {
            return Err(Error::NotFound("campaign".into()).into());
        }
        let campaign = Some(print(self.maker.campaigns.get(&organization, id).await?));
        Ok(Response::new(wire::GetCampaignResponse { campaign }))
    }

    async fn list_campaigns(
        &self,
        request: Request<wire::ListCampaignsRequest>,
    ) -> Answer<wire::ListCampaignsResponse> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        super::integrations::check_page_token(&request.page_token)?;
        if request.integration_id.contains('\0') {
            return Err(Error::NotFound("integration".into()).into());
        }
        let (integration, after) = (&request.integration_id, &request.page_token);
        let page = self.maker.campaigns.list(&organization, integration, after, i64::from(size)).await?;
        let last = page.last().filter(|_| page.len() == size as usize);
        let next_page_token = last.map(|last| last.id.clone()).unwrap_or_default();
        Ok(Response::new(wire::ListCampaignsResponse {
            campaigns: page.into_iter().map(print).collect(),
            next_page_token,
        }))
    }
}

fn print(campaign: Campaign) -> wire::Campaign {
    let state = match campaign.state {
        State::Making => wire::CampaignState::Making,
        State::Unknown => wire::CampaignState::Unknown,
        State::Draft => wire::CampaignState::Draft,
        State::Scheduled => wire::CampaignState::Scheduled,
        State::Sending => wire::CampaignState::Sending,
        State::Sent => wire::CampaignState::Sent,
        State::Cancelled => wire::CampaignState::Cancelled,
        State::Gone => wire::CampaignState::Gone,
    };
    let report = |report: Report| {
        let Report { sent, opens, clicks, unsubscribes, bounces } = report;
        wire::CampaignReport { sent, opens, clicks, unsubscribes, bounces }
    };
    wire::Campaign {
        id: campaign.id,
        integration_id: campaign.integration_id,
        name: campaign.name,
        external_id: campaign.external_id,
        state: state.into(),
        reason: campaign.reason,
        created_at: Some(print_timestamp(campaign.created_at)),
        sent_at: campaign.sent_at.map(print_timestamp),
        report: campaign.report.map(report),
        reported_at: campaign.reported_at.map(print_timestamp),
        r#final: campaign.next_at.is_none(),
    }
}
