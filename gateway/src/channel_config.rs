//! `POST /integrations/channel-config`: which destinations events on a channel get, besides what routes say.

use axum::{Json, extract::State};
use proto::{
    common::v1::Priority,
    router::v1::{
        self as router, ChannelConfiguration, ConfigureChannelRequest, destination::Kind,
        route_service_client::RouteServiceClient,
    },
};
use serde::{Deserialize, Serialize};

use crate::{Gateway, body::Raw, key::ApiKey, problem::Problem, wire};

const PRIORITY: &str = "PRIORITY_";

/// The request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    pattern: String,
    /// Empty: the pattern's configuration is removed, a built-in one silenced.
    destinations: Vec<Destination>,
}

/// What is in force now.
#[derive(Debug, Serialize)]
pub(crate) struct Configured {
    pattern: String,
    destinations: Vec<Destination>,
    built_in: bool,
}

/// One way out: exactly one of the first three.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Destination {
    #[serde(skip_serializing_if = "Option::is_none")]
    webhooks: Option<Webhooks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification: Option<Notification>,
    #[serde(skip_serializing_if = "Option::is_none")]
    integration: Option<Integration>,
    #[serde(skip_serializing_if = "String::is_empty")]
    collapse_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    priority: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Webhooks {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Notification {
    #[serde(default)]
    workflow: String,
    channels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Integration {
    kind: String,
}

/// Asks the router in the caller's name.
pub(crate) async fn configure(
    State(gateway): State<Gateway>,
    key: ApiKey,
    Raw(body): Raw,
) -> Result<Json<Configured>, Problem> {
    let request = parse(&body)?;
    let mut client = RouteServiceClient::new(key.calls(&gateway.peers.router)?);
    let configured = client.configure_channel(request).await?.into_inner();
    Ok(Json(print(configured.configuration.unwrap_or_default())))
}

fn parse(body: &[u8]) -> Result<ConfigureChannelRequest, Problem> {
    let wanted: Wanted = serde_json::from_slice(body).map_err(|error| Problem::invalid("body", error.to_string()))?;
    let destinations = wanted.destinations.into_iter().enumerate();
    let destinations = destinations.map(|(index, destination)| destination.parse(index)).collect::<Result<_, _>>()?;
    Ok(ConfigureChannelRequest { pattern: wanted.pattern, destinations, organization_id: String::new() })
}

impl Destination {
    fn parse(self, index: usize) -> Result<router::Destination, Problem> {
        let kind = match (self.webhooks, self.notification, self.integration) {
            (Some(Webhooks {}), None, None) => Kind::Webhooks(router::Webhooks {}),
            (None, Some(Notification { workflow, channels }), None) => {
                Kind::Notification(router::Notification { workflow, channels })
            }
            (None, None, Some(Integration { kind })) => Kind::Integration(router::Integration { kind }),
            _ => {
                let field = format!("destinations[{index}]");
                return Err(Problem::invalid(field, "must have exactly one of webhooks, notification and integration"));
            }
        };
        let priority = priority(&self.priority, index)?.into();
        Ok(router::Destination { kind: Some(kind), collapse_key: self.collapse_key, priority })
    }

    fn print(wire: router::Destination) -> Self {
        let mut printed = Self { collapse_key: wire.collapse_key.clone(), ..Self::default() };
        if wire.priority() != Priority::Unspecified {
            printed.priority = wire::name(wire.priority().as_str_name(), PRIORITY);
        }
        match wire.kind {
            Some(Kind::Webhooks(router::Webhooks {})) => printed.webhooks = Some(Webhooks {}),
            Some(Kind::Notification(router::Notification { workflow, channels })) => {
                printed.notification = Some(Notification { workflow, channels });
            }
            Some(Kind::Integration(router::Integration { kind })) => printed.integration = Some(Integration { kind }),
            None => {}
        }
        printed
    }
}

fn priority(text: &str, index: usize) -> Result<Priority, Problem> {
    if text.is_empty() {
        return Ok(Priority::Unspecified);
    }
    let known = wire::wire_name(text, PRIORITY).and_then(|name| Priority::from_str_name(&name));
    known.ok_or_else(|| {
        Problem::invalid(format!("destinations[{index}].priority"), "must be critical, high, normal or low")
    })
}

fn print(wire: ChannelConfiguration) -> Configured {
    let destinations = wire.destinations.into_iter().map(Destination::print).collect();
    Configured { pattern: wire.pattern, destinations, built_in: wire.built_in }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_configuration_survives_the_way_there_and_back() {
        let destinations = json!([
            { "webhooks": {} },
            { "notification": { "workflow": "form_response", "channels": ["slack", "email"] }, "priority": "low" },
            { "integration": { "kind": "photography_crm" }, "collapse_key": "crm" },
        ]);
        let body = json!({ "pattern": "form:response:*", "destinations": destinations });
        let request = parse(body.to_string().as_bytes()).expect("well-formed");
        assert_eq!((request.pattern.as_str(), request.organization_id.as_str()), ("form:response:*", ""));
        let configuration = ChannelConfiguration { destinations: request.destinations, ..Default::default() };
        assert_eq!(serde_json::to_value(print(configuration)).unwrap()["destinations"], destinations);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for bad in [
            json!({}),
            json!({ "pattern": "a:*" }),
            json!({ "pattern": "a:*", "destinations": [], "organization_id": "other" }),
            json!({ "pattern": 1, "destinations": [] }),
            json!({ "pattern": "a:*", "destinations": [{}] }),
            json!({ "pattern": "a:*", "destinations": [{ "webhooks": {}, "integration": { "kind": "venue" } }] }),
            json!({ "pattern": "a:*", "destinations": [{ "webhooks": {}, "priority": "urgent" }] }),
            json!({ "pattern": "a:*", "destinations": [{ "fax": {} }] }),
        ] {
            assert!(parse(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(b"not json").is_err() && parse(b"").is_err());
    }
}
