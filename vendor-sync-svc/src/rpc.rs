//! The wire: one file per gRPC service, which parses requests, calls the domain and prints answers. Nothing is decided here.

pub(crate) mod campaigns;
pub(crate) mod connections;
pub(crate) mod connectors;
pub(crate) mod deliveries;
pub(crate) mod endpoints;
pub(crate) mod health;
pub(crate) mod imports;
pub(crate) mod integrations;
pub(crate) mod records;
pub(crate) mod streams;
pub(crate) mod sync;
pub(crate) mod webhooks;
pub(crate) mod wire;

use chassis::auth::{Access, AccessTable, Scope};

const MANAGE: Access = Access::Scope(Scope::Manage);

/// What each method asks for.
pub(crate) const ACCESS: AccessTable = &[
    ("/wedsync.vendorsync.v1.EndpointService/CreateEndpoint", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/GetEndpoint", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/ListEndpoints", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/UpdateEndpoint", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/DeleteEndpoint", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/PauseEndpoint", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/ResumeEndpoint", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/RotateEndpointSecret", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/SendTestEvent", MANAGE),
    ("/wedsync.vendorsync.v1.EndpointService/GetEndpointStatistics", MANAGE),
    ("/wedsync.vendorsync.v1.DeliveryService/ListDeliveries", MANAGE),
    ("/wedsync.vendorsync.v1.DeliveryService/GetDelivery", MANAGE),
    ("/wedsync.vendorsync.v1.DeliveryService/ListAttempts", MANAGE),
    ("/wedsync.vendorsync.v1.DeliveryService/ResendDelivery", MANAGE),
    ("/wedsync.vendorsync.v1.DeliveryService/ReplayDeliveries", MANAGE),
    ("/wedsync.vendorsync.v1.DeliveryService/RecoverDeliveries", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/CreateIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/GetIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/ListIntegrations", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/UpdateIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/RotateIntegrationSecret", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/SetSigningSecret", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/DeleteIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/GetRecord", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/ListConflicts", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/ResolveConflict", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/PinField", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/UnpinField", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/ListPins", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/EraseRecord", MANAGE),
    ("/wedsync.vendorsync.v1.RecordService/ListErasures", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/ConnectIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectionService/OpenConnection", Access::Service),
    ("/wedsync.vendorsync.v1.ConnectionService/CompleteConnection", Access::Service),
    ("/wedsync.vendorsync.v1.IntegrationService/DisconnectIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/TestIntegration", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationService/RotateIntegrationCredential", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationHealthService/GetIntegrationHealth", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationHealthService/ListIntegrationHealth", MANAGE),
    ("/wedsync.vendorsync.v1.IntegrationHealthService/WatchIntegrationHealth", MANAGE),
    ("/wedsync.vendorsync.v1.SyncService/SyncNow", MANAGE),
    ("/wedsync.vendorsync.v1.SyncService/SyncClientProfiles", MANAGE),
    ("/wedsync.vendorsync.v1.SyncService/SyncEventDetails", MANAGE),
    ("/wedsync.vendorsync.v1.CampaignService/CreateCampaign", MANAGE),
    ("/wedsync.vendorsync.v1.CampaignService/FollowCampaign", MANAGE),
    ("/wedsync.vendorsync.v1.CampaignService/GetCampaign", MANAGE),
    ("/wedsync.vendorsync.v1.CampaignService/ListCampaigns", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectorService/ListConnectors", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectorService/GetConnector", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectorService/PutConnector", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectorService/DeleteConnector", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectorService/ValidateConnector", MANAGE),
    ("/wedsync.vendorsync.v1.ConnectorService/PreviewMapping", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/Import", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/WatchImport", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/GetImport", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/ListImports", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/CancelImport", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/ResumeImport", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/Reconcile", MANAGE),
    ("/wedsync.vendorsync.v1.ImportService/ListConfiguredRows", MANAGE),
    ("/wedsync.vendorsync.v1.WebhookService/ReceiveWebhook", Access::Service),
    ("/wedsync.vendorsync.v1.WebhookService/ListSpooledWebhooks", MANAGE),
    ("/wedsync.vendorsync.v1.WebhookService/GetSpooledWebhook", MANAGE),
    ("/wedsync.vendorsync.v1.WebhookService/RetrySpooledWebhook", MANAGE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_says_what_it_asks_for() {
        assert_eq!(chassis::auth::uncovered(ACCESS, "wedsync.vendorsync.v1"), Vec::<String>::new());
    }
}
