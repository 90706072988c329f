//! `ConnectorService`: parsed, handed to the catalogue, printed.

use std::collections::BTreeMap;

use bytes::Bytes;
use chassis::{
    auth,
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
};
use proto::vendorsync::v1::{
    self as wire, connector_service_server::ConnectorService, preview_mapping_request::Sample,
    preview_mapping_response::Result as Preview,
};
use serde_json::Value as Json;
use std::sync::Arc;
use tonic::{Request, Response, Status};

use super::wire::print_timestamp;
use crate::{
    connector::{
        Connector, Fault, RecordSpec, Webhook,
        catalogue::{Catalogue, Entry, Refused},
    },
    record::RecordKind,
    sync::account::Accounts,
};

/// A sample may be as large as a webhook's body.
const SAMPLE_BYTES: usize = 1024 * 1024;

/// Connectors over gRPC.
#[derive(Clone)]
pub(crate) struct Service {
    catalogue: Catalogue,
    clock: Clock,
    /// Who goes by the connectors that are put.
    accounts: Option<Accounts>,
}

impl Service {
    pub(crate) fn new(catalogue: Catalogue, clock: Clock) -> Self {
        Self { catalogue, clock, accounts: None }
    }

    /// Tells these of a connector's new text.
    pub(crate) fn with_accounts(self, accounts: Accounts) -> Self {
        Self { accounts: Some(accounts), ..self }
    }

    /// The text that is given, or the connector that is named.
    async fn meant(&self, organization: &OrganizationId, source: &str, name: &str) -> Result<Arc<Connector>> {
        if source.is_empty() {
            return Ok(self.catalogue.get(organization, name).await?.connector);
        }
        Connector::parse(source).map(Arc::new).map_err(|faults| invalid(&faults))
    }
}

#[tonic::async_trait]
impl ConnectorService for Service {
    async fn list_connectors(
        &self,
        request: Request<wire::ListConnectorsRequest>,
    ) -> Result<Response<wire::ListConnectorsResponse>, Status> {
        let organization = auth::caller(&request)?.organization(&request.get_ref().organization_id)?;
        let built_in = Catalogue::all_built_in().map(|connector| Entry { connector, own: None });
        let own = self.catalogue.own(&organization).await?;
        let connectors = built_in.chain(own).map(|entry| print(&entry)).collect();
        Ok(Response::new(wire::ListConnectorsResponse { connectors }))
    }

    async fn get_connector(
        &self,
        request: Request<wire::GetConnectorRequest>,
    ) -> Result<Response<wire::GetConnectorResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let entry = self.catalogue.get(&organization, &request.get_ref().name).await?;
        let (connector, source) = (Some(print(&entry)), entry.connector.source().to_owned());
        Ok(Response::new(wire::GetConnectorResponse { connector, source }))
    }

    async fn put_connector(
        &self,
        request: Request<wire::PutConnectorRequest>,
    ) -> Result<Response<wire::PutConnectorResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let put = self.catalogue.put(&organization, &request.source, request.version).await;
        let entry = put.map_err(|refused| match refused {
            Refused::Faults(faults) => invalid(&faults),
            Refused::Error(error) => error,
        })?;
        if let Some(accounts) = &self.accounts {
            accounts.renew(&organization, entry.connector.name()).await?;
        }
        Ok(Response::new(wire::PutConnectorResponse { connector: Some(print(&entry)) }))
    }

    async fn delete_connector(
        &self,
        request: Request<wire::DeleteConnectorRequest>,
    ) -> Result<Response<wire::DeleteConnectorResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        self.catalogue.delete(&organization, &request.get_ref().name).await?;
        Ok(Response::new(wire::DeleteConnectorResponse {}))
    }

    async fn validate_connector(
        &self,
        request: Request<wire::ValidateConnectorRequest>,
    ) -> Result<Response<wire::ValidateConnectorResponse>, Status> {
        auth::caller(&request)?.organization("")?;
        let parsed = Connector::parse(&request.get_ref().source);
        let (connector, faults) = match parsed {
            Ok(connector) => match Catalogue::check_name(connector.name()) {
                None => (Some(print(&Entry { connector: Arc::new(connector), own: None })), Vec::new()),
                Some(fault) => (None, vec![fault]),
            },
            Err(faults) => (None, faults),
        };
        let connector = connector.map(|connector| wire::Connector { built_in: false, ..connector });
        let faults = faults.into_iter().map(|Fault { at, reason }| wire::ConnectorFault { at, reason }).collect();
        Ok(Response::new(wire::ValidateConnectorResponse { faults, connector }))
    }

    async fn preview_mapping(
        &self,
        request: Request<wire::PreviewMappingRequest>,
    ) -> Result<Response<wire::PreviewMappingResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let connector = self.meant(&organization, &request.source, &request.name).await?;
        let settings: BTreeMap<String, String> = request.settings.into_iter().collect();
        let given = connector.check_settings(&settings);
        given.map_err(|(name, reason)| Error::invalid(format!("settings.{name}"), reason))?;
        let sample = request.sample.ok_or_else(|| Error::invalid("sample", "must be one of the samples"))?;
        let preview = match sample {
            Sample::Request(sample) => {
                let given = json("request.given", &sample.given)?;
                let preview = connector.preview_request(&sample.operation, &settings, &given, self.clock.now());
                preview.map(|preview| {
                    let headers = preview.headers.into_iter().collect();
                    let (method, url, body) = (preview.method, preview.url, preview.body);
                    Preview::Request(wire::RequestPreview { method, url, headers, body })
                })
            }
            Sample::Resource(sample) => {
                let kind = RecordKind::parse(&sample.record_kind);
                let kind =
                    kind.ok_or_else(|| Error::invalid("resource.record_kind", "must be client, wedding or booking"))?;
                let resource = json("resource.resource", &sample.resource)?;
                connector.preview_resource(kind, &resource, &settings).map(|item| Preview::Resource(item.to_string()))
            }
            Sample::Webhook(sample) => webhook(&connector, &sample, &settings)?,
        };
        let result = preview.unwrap_or_else(Preview::Failure);
        Ok(Response::new(wire::PreviewMappingResponse { result: Some(result) }))
    }
}

fn webhook(
    connector: &Connector,
    sample: &wire::WebhookSample,
    settings: &BTreeMap<String, String>,
) -> Result<Result<Preview, String>> {
    if sample.body.len() > SAMPLE_BYTES {
        return Err(Error::invalid("webhook.body", "must be at most 1 MiB"));
    }
    let header = |(name, value): (&String, &String)| (name.to_ascii_lowercase(), Bytes::from(value.clone()));
    let headers: Vec<_> = sample.headers.iter().map(header).collect();
    let webhook = Webhook {
        method: if sample.method.is_empty() { "POST" } else { &sample.method },
        url: "",
        query: &sample.query,
        headers: &headers,
        body: &sample.body,
        integration_id: "preview",
    };
    let items = connector.preview_webhook(&webhook, settings);
    let print = |items: Vec<Json>| wire::WebhookPreview { items: items.iter().map(Json::to_string).collect() };
    Ok(items.map(|items| Preview::Webhook(print(items))))
}

fn json(field: &'static str, text: &str) -> Result<Json> {
    if text.len() > SAMPLE_BYTES {
        return Err(Error::invalid(field, "must be at most 1 MiB"));
    }
    serde_json::from_str(text).map_err(|error| Error::invalid(field, format!("is not JSON: {error}")))
}

/// All that is wrong, one after the other.
fn invalid(faults: &[Fault]) -> Error {
    Error::invalid("source", faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; "))
}

fn print(entry: &Entry) -> wire::Connector {
    let connector = &entry.connector;
    wire::Connector {
        name: connector.name().to_owned(),
        title: connector.title().to_owned(),
        kind: connector.kind().to_owned(),
        docs: connector.source_docs().to_owned(),
        can: connector.can().to_vec(),
        cannot: connector.cannot().to_vec(),
        built_in: entry.own.is_none(),
        version: entry.own.map_or(0, |own| own.version),
        created_at: entry.own.map(|own| print_timestamp(own.created_at)),
        updated_at: entry.own.map(|own| print_timestamp(own.updated_at)),
        settings: settings(connector),
        auth: connector.auth().iter().map(|auth| auth.as_str().to_owned()).collect(),
        records: connector
            .records()
            .filter_map(|kind| Some(record(connector, kind, connector.record(kind)?)))
            .collect(),
        inbound: connector.inbound().is_some(),
        repeatable: connector.is_repeatable(),
        operations: connector.operations().map(str::to_owned).collect(),
    }
}

fn settings(connector: &Connector) -> Vec<wire::ConnectorSetting> {
    let print = |(name, setting): (&String, &crate::connector::Setting)| wire::ConnectorSetting {
        name: name.clone(),
        description: setting.description.clone(),
        required: setting.required,
        default_value: setting.default.clone().unwrap_or_default(),
    };
    connector.settings().iter().map(print).collect()
}

fn record(connector: &Connector, kind: RecordKind, spec: &RecordSpec) -> wire::ConnectorRecord {
    let written = [&spec.create, &spec.update].into_iter().flatten();
    let mut operations = written.filter_map(|name| connector.operation(name));
    wire::ConnectorRecord {
        kind: kind.as_str().to_owned(),
        can_find: spec.find.is_some(),
        can_create: spec.create.is_some(),
        can_update: spec.update.is_some(),
        can_read: spec.read.is_some(),
        can_delete: spec.delete.is_some(),
        can_list: spec.list.is_some(),
        handed_over: operations.any(crate::connector::Operation::is_handed_over),
        fields: spec.fields.iter().cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use chassis::{
        auth::{Caller, Role, Scopes},
        service::Chassis,
        testing::on_each_engine,
    };
    use tonic::Code;

    use super::*;
    use crate::integration::{Integrations, Kind, tests::settings as settings_of};

    const OWN: &str = "name = 'own'\ntitle = 'Own'\nextends = 'venue'\n";

    fn as_member<T>(organization: &str, message: T) -> Request<T> {
        let organization = Some(OrganizationId::parse(organization).expect("an organization"));
        let caller = Caller { organization, role: Role::Member, scopes: Scopes::all(), name: "key".to_owned() };
        let mut request = Request::new(message);
        request.extensions_mut().insert(caller);
        request
    }

    async fn in_each_service<F: Future<Output = ()>>(test: impl Fn(Service, Integrations) -> F) {
        let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
        on_each_engine(migrations, |store| {
            let chassis = Chassis::for_test();
            let keys = chassis.keyring().expect("keys");
            let keys = chassis::secret::DataKeys::new(store.clone(), keys, chassis.clock.clone());
            let service = Service::new(Catalogue::new(store.clone(), chassis.clock.clone()), chassis.clock.clone());
            test(service, Integrations::new(store, keys, chassis.clock))
        })
        .await;
    }

    async fn put(service: &Service, organization: &str, source: &str, version: u64) -> Result<u64, Status> {
        let request = wire::PutConnectorRequest { source: source.to_owned(), version };
        let put = service.put_connector(as_member(organization, request)).await?.into_inner();
        Ok(put.connector.expect("a connector").version)
    }

    async fn delete(service: &Service, organization: &str) -> Result<(), Status> {
        let request = wire::DeleteConnectorRequest { name: "own".to_owned() };
        service.delete_connector(as_member(organization, request)).await.map(drop)
    }

    #[tokio::test]
    async fn a_connector_is_changed_only_by_who_has_read_its_last_version() {
        in_each_service(async |service, _| {
            assert_eq!(put(&service, "acme", OWN, 0).await.expect("new"), 1);
            assert_eq!(put(&service, "acme", OWN, 0).await.expect_err("it is there").code(), Code::Aborted);
            assert_eq!(put(&service, "acme", OWN, 7).await.expect_err("another version").code(), Code::Aborted);
            let changed = OWN.replace("'Own'", "'Changed'");
            assert_eq!(put(&service, "acme", &changed, 1).await.expect("its version"), 2);
            let request = wire::GetConnectorRequest { name: "own".to_owned() };
            let got = service.get_connector(as_member("acme", request)).await.expect("its own").into_inner();
            assert_eq!((got.connector.expect("it").title.as_str(), got.source), ("Changed", changed));
        })
        .await;
    }

    #[tokio::test]
    async fn a_built_in_one_is_everybodys_and_nobody_can_shadow_or_delete_it() {
        in_each_service(async |service, _| {
            let shadow = OWN.replace("'own'", "'light-blue'");
            assert_eq!(put(&service, "acme", &shadow, 0).await.expect_err("taken").code(), Code::InvalidArgument);
            let request = wire::ValidateConnectorRequest { source: shadow };
            let valid = service.validate_connector(as_member("acme", request)).await.expect("judged").into_inner();
            assert_eq!(valid.faults[0].at, "name");
            let request = wire::DeleteConnectorRequest { name: "light-blue".to_owned() };
            let refused = service.delete_connector(as_member("acme", request)).await.expect_err("built in");
            assert_eq!(refused.code(), Code::FailedPrecondition);
            let list = service.list_connectors(as_member("acme", wire::ListConnectorsRequest::default()));
            let listed = list.await.expect("listed").into_inner().connectors;
            let light_blue = listed.iter().find(|connector| connector.name == "light-blue").expect("it is listed");
            assert!(light_blue.built_in && light_blue.records.iter().all(|record| record.handed_over));
        })
        .await;
    }

    #[tokio::test]
    async fn another_organizations_connector_is_not_found_by_any_method() {
        in_each_service(async |service, _| {
            put(&service, "acme", OWN, 0).await.expect("new");
            let request = wire::GetConnectorRequest { name: "own".to_owned() };
            assert_eq!(
                service.get_connector(as_member("other", request)).await.expect_err("no").code(),
                Code::NotFound
            );
            assert_eq!(delete(&service, "other").await.expect_err("no").code(), Code::NotFound);
            let request = wire::PreviewMappingRequest { name: "own".to_owned(), ..Default::default() };
            assert_eq!(
                service.preview_mapping(as_member("other", request)).await.expect_err("no").code(),
                Code::NotFound
            );
            assert_eq!(put(&service, "other", OWN, 0).await.expect("its own of that name"), 1);
            let list = service.list_connectors(as_member("third", wire::ListConnectorsRequest::default()));
            let listed = list.await.expect("listed").into_inner().connectors;
            assert!(listed.iter().all(|connector| connector.built_in));
        })
        .await;
    }

    #[tokio::test]
    async fn what_an_integration_uses_stays_and_keeps_its_kind_and_settings() {
        in_each_service(async |service, integrations| {
            put(&service, "acme", OWN, 0).await.expect("new");
            let settings = crate::integration::Settings {
                connector: "own".to_owned(),
                vendor: "own".to_owned(),
                parameters: [("url".to_owned(), "https://venue.example".to_owned())].into(),
                ..settings_of(Kind::Connector)
            };
            let acme = OrganizationId::parse("acme").expect("an organization");
            let secret = chassis::config::Secret::from("whsec_".to_owned());
            integrations.create(acme, settings, &secret).await.expect("created");
            assert_eq!(delete(&service, "acme").await.expect_err("used").code(), Code::FailedPrecondition);
            for (spoil, says) in [
                ("kind = 'caterer'\n", "kind: integrations use own as venue"),
                ("settings.url.pattern = 'x'\n", "settings.url: of integration"),
            ] {
                let refused = put(&service, "acme", &format!("{OWN}{spoil}"), 1).await.expect_err(spoil);
                assert_eq!(refused.code(), Code::FailedPrecondition, "{spoil}");
                assert!(refused.message().contains(says), "{refused}");
            }
            assert_eq!(put(&service, "acme", &format!("{OWN}concurrency = 1\n"), 1).await.expect("it still fits"), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn a_preview_shows_the_request_and_no_secret() {
        in_each_service(async |service, _| {
            let given =
                r#"{"record":{"id":"w1","guest_count":90},"event":{"delivery_id":"msg_1","type":"a.b","time":"t"}}"#;
            let sample = wire::RequestSample { operation: "send_wedding".to_owned(), given: given.to_owned() };
            let settings = [("url".to_owned(), "https://venue.example/in".to_owned())].into();
            let sample = Some(Sample::Request(sample));
            let request =
                wire::PreviewMappingRequest { name: "venue".to_owned(), settings, sample, ..Default::default() };
            let preview = service.preview_mapping(as_member("acme", request)).await.expect("shown").into_inner();
            let Some(Preview::Request(request)) = preview.result else { panic!("{preview:?}") };
            assert_eq!((request.method.as_str(), request.url.as_str()), ("POST", "https://venue.example/in"));
            assert_eq!(request.headers["x-venue-api-key"], "........");
            assert_eq!(request.headers["webhook-signature"], "........");
            assert!(request.body.contains("\"party_size\":90"), "{}", request.body);
        })
        .await;
    }

    #[tokio::test]
    async fn everything_that_is_wrong_is_told_and_nothing_is_kept() {
        in_each_service(async |service, _| {
            let source = "name = 'own'\ncolour = 1\n".to_owned();
            let request = wire::ValidateConnectorRequest { source: source.clone() };
            let valid = service.validate_connector(as_member("acme", request)).await.expect("judged").into_inner();
            let places: Vec<_> = valid.faults.iter().map(|fault| fault.at.as_str()).collect();
            assert!(places.contains(&"title") && places.contains(&"colour"), "{places:?}");
            let refused = put(&service, "acme", &source, 0).await.expect_err("faults");
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains("colour: is nothing that a connector has here"), "{refused}");
            let request = wire::ValidateConnectorRequest { source: OWN.to_owned() };
            let valid = service.validate_connector(as_member("acme", request)).await.expect("judged").into_inner();
            assert!(valid.faults.is_empty() && valid.connector.is_some());
            assert_eq!(delete(&service, "acme").await.expect_err("nothing was kept").code(), Code::NotFound);
        })
        .await;
    }
}
