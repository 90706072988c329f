//! The description of the HTTP surface (OpenAPI 3.1), written by hand and embedded. Invariant: it has an entry for every
//! route and for nothing else, its references resolve, and it names every error that a route can answer with.

use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(crate) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::{body::BODY_LIMIT, routes};

    const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];
    /// Served by every service's port, this one's too (`chassis::grpc`).
    const OPERATIONS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

    fn parsed() -> Value {
        serde_json::from_str(DOCUMENT).expect("the document is JSON")
    }

    /// Every operation with its method and path.
    fn described(document: &Value) -> Vec<(String, String, &Value)> {
        let mut all = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("a path item") {
                if METHODS.contains(&method.as_str()) {
                    all.push((method.to_ascii_uppercase(), path.clone(), operation));
                }
            }
        }
        all
    }

    #[test]
    fn the_document_describes_every_route_and_no_other() {
        let document = parsed();
        let described = described(&document).into_iter().map(|(method, path, _)| (method, path));
        let routed = routes::surface().into_iter().map(|(method, path, _)| (method.to_string(), path.to_owned()));
        let operations = OPERATIONS.into_iter().map(|path| ("GET".to_owned(), path.to_owned()));
        assert_eq!(described.collect::<BTreeSet<_>>(), routed.chain(operations).collect());
    }

    #[test]
    fn paths_without_an_alias_say_so() {
        let document = parsed();
        assert_eq!(document["servers"][1]["url"], routes::ALIAS);
        let aliased: BTreeSet<_> = routes::surface()
            .into_iter()
            .filter(|(.., aliased)| *aliased)
            .map(|(_, path, _)| path.to_owned())
            .collect();
        for (path, item) in document["paths"].as_object().expect("paths") {
            let everywhere = item.get("servers").is_none();
            assert_eq!(everywhere, aliased.contains(path), "{path}");
        }
    }

    #[test]
    fn every_reference_resolves() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let (document, mut found) = (parsed(), Vec::new());
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_every_parameter_of_its_path() {
        let document = parsed();
        let mut names = BTreeSet::new();
        for (method, path, operation) in described(&document) {
            let name = operation["operationId"].as_str().expect("an operationId");
            assert!(names.insert(name.to_owned()), "{name} twice");
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let parameters = parameters.iter().filter(|parameter| parameter["in"] == "path");
            let declared: BTreeSet<_> = parameters.map(|p| p["name"].as_str().expect("a name").to_owned()).collect();
            let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            assert_eq!(declared, named.map(str::to_owned).collect(), "{method} {path}");
        }
    }

    #[test]
    fn the_answers_of_webhooks_are_those_of_the_table() {
        let document = parsed();
        for path in ["/webhooks/{vendor}/{integration_id}", "/webhooks/client-sync", "/webhooks/supabase"] {
            let responses = document["paths"][path]["post"]["responses"].as_object().expect("responses");
            let described: Vec<_> = responses.keys().map(String::as_str).collect();
            assert_eq!(described, ["200", "400", "401", "404", "408", "409", "413", "429", "500", "503"], "{path}");
        }
        let too_large = &document["components"]["responses"]["TooLarge"]["description"];
        assert!(too_large.as_str().expect("a text").contains("1 MiB") && BODY_LIMIT == 1 << 20);
    }
}
