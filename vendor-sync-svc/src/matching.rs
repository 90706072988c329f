//! Which endpoints want an event: an index by organization, supplier and event type, then each endpoint's own say. Pure.
//!
//! Cost: a look-up touches only the endpoints that are subscribed to the type and may see it, however many there are
//! beside them.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chassis::{
    error::{Error, Result},
    expression::Value,
    id::OrganizationId,
};

use crate::{endpoint::Endpoint, event::Event};

const TYPE_BYTES: usize = 128;

/// Which events an endpoint is subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TypePattern {
    /// This type.
    Exact(String),
    /// `wedding_details.*`: everything below, at any depth.
    Below(String),
    /// `*`
    Any,
}

impl TypePattern {
    /// Takes a type, `<prefix>.*` or `*`.
    ///
    /// # Errors
    /// `Error::Invalid` for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::invalid("event_types", format!("{text:.160?} must be a type, `<table>.*` or `*`"));
        if text == "*" {
            return Ok(Self::Any);
        }
        let (type_, pattern): (&str, fn(String) -> Self) = match text.strip_suffix(".*") {
            Some(prefix) => (prefix, Self::Below),
            None => (text, Self::Exact),
        };
        if is_type(type_) { Ok(pattern(type_.to_owned())) } else { Err(invalid()) }
    }
}

/// Dotted segments of `[a-z0-9_]`.
fn is_type(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    text.len() <= TYPE_BYTES && text.split('.').all(|segment| !segment.is_empty() && segment.bytes().all(is_plain))
}

/// Endpoints by what they are subscribed to.
#[derive(Debug, Default)]
pub(crate) struct Index(HashMap<OrganizationId, HashMap<String, Subscribers>>);

/// Of one supplier, or, under the empty name, of the whole organization.
#[derive(Debug, Default)]
struct Subscribers {
    exact: HashMap<String, Group>,
    below: HashMap<String, Group>,
    any: Group,
}

/// By id, so that what is found comes in one order.
type Group = BTreeMap<Arc<str>, Arc<Endpoint>>;

impl Subscribers {
    fn group(&mut self, pattern: &TypePattern) -> &mut Group {
        match pattern {
            TypePattern::Exact(type_) => self.exact.entry(type_.clone()).or_default(),
            TypePattern::Below(prefix) => self.below.entry(prefix.clone()).or_default(),
            TypePattern::Any => &mut self.any,
        }
    }

    fn find<'a>(&'a self, type_: &str, found: &mut BTreeMap<&'a str, &'a Arc<Endpoint>>) {
        let prefixes = type_.rmatch_indices('.').filter_map(|(dot, _)| self.below.get(&type_[..dot]));
        for group in self.exact.get(type_).into_iter().chain(prefixes).chain([&self.any]) {
            found.extend(group.iter().map(|(id, endpoint)| (&**id, endpoint)));
        }
    }

    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.exact.is_empty() && self.below.is_empty()
    }
}

impl Index {
    /// Adds an endpoint that isn't in it.
    pub(crate) fn insert(&mut self, endpoint: &Arc<Endpoint>) {
        let suppliers = self.0.entry(endpoint.organization.clone()).or_default();
        let subscribers = suppliers.entry(endpoint.settings.supplier_id.clone()).or_default();
        for pattern in &endpoint.compiled.patterns {
            subscribers.group(pattern).insert(endpoint.id.clone(), endpoint.clone());
        }
    }

    /// Takes an endpoint out, as it was inserted.
    pub(crate) fn remove(&mut self, endpoint: &Endpoint) {
        let Some(suppliers) = self.0.get_mut(&endpoint.organization) else { return };
        let Some(subscribers) = suppliers.get_mut(&endpoint.settings.supplier_id) else { return };
        for pattern in &endpoint.compiled.patterns {
            subscribers.group(pattern).remove(&endpoint.id);
        }
        subscribers.exact.retain(|_, group| !group.is_empty());
        subscribers.below.retain(|_, group| !group.is_empty());
        if subscribers.is_empty() {
            suppliers.remove(&endpoint.settings.supplier_id);
        }
        if suppliers.is_empty() {
            self.0.remove(&endpoint.organization);
        }
    }

    /// The endpoints that want `event`, each once, in the order of their ids.
    pub(crate) fn find(&self, event: &Event) -> Vec<Arc<Endpoint>> {
        let scope = OnceCell::new();
        let wanting = self.candidates(event).into_values().filter(|endpoint| wants(endpoint, event, &scope));
        wanting.cloned().collect()
    }

    /// Those that it looks at.
    fn candidates(&self, event: &Event) -> BTreeMap<&str, &Arc<Endpoint>> {
        let mut found = BTreeMap::new();
        let Some(suppliers) = self.0.get(&event.organization) else { return found };
        for supplier in std::iter::once("").chain(event.suppliers()) {
            if let Some(subscribers) = suppliers.get(supplier) {
                subscribers.find(&event.type_, &mut found);
            }
        }
        found
    }
}

/// The endpoint's own say: nothing from before its time, nothing about itself, and its condition.
fn wants(endpoint: &Endpoint, event: &Event, scope: &OnceCell<Value>) -> bool {
    if !endpoint.since.is_before(event) || event.names(&endpoint.id) {
        return false;
    }
    let Some(condition) = &endpoint.compiled.condition else { return true };
    match condition.eval(scope.get_or_init(|| event.scope())) {
        Ok(holds) => holds,
        Err(error) => {
            metrics::counter!("endpoint_condition_failures_total").increment(1);
            tracing::warn!(endpoint.id = %endpoint.id, %error, "an endpoint's condition could not be evaluated: it doesn't match");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        endpoint::{
            Settings,
            tests::{endpoint, settings},
        },
        event::tests::{change, content},
    };

    fn subscribed(id: &str, types: &[&str], also: impl FnOnce(&mut Settings)) -> Arc<Endpoint> {
        let mut settings = settings();
        settings.event_types = types.iter().map(|type_| (*type_).to_owned()).collect();
        also(&mut settings);
        Arc::new(endpoint(id, settings))
    }

    fn found(endpoints: &[Arc<Endpoint>], event: &Event) -> Vec<String> {
        let mut index = Index::default();
        endpoints.iter().for_each(|endpoint| index.insert(endpoint));
        index.find(event).iter().map(|endpoint| endpoint.id.to_string()).collect()
    }

    #[test]
    fn exact_types_tables_and_everything_match_and_an_endpoint_is_found_once() {
        let all = [
            subscribed("a", &["wedding_details.update"], |_| {}),
            subscribed("b", &["wedding_details.*"], |_| {}),
            subscribed("c", &["*", "wedding_details.update", "wedding_details.*"], |_| {}),
            subscribed("d", &["wedding_details.insert"], |_| {}),
            subscribed("e", &["wedding.*"], |_| {}),
        ];
        assert_eq!(found(&all, &change("{}", "{}")), ["a", "b", "c"]);
        assert_eq!(found(&all, &content("wedding.date_changed", "{}")), ["c", "e"]);
    }

    #[test]
    fn a_suppliers_endpoint_sees_only_events_of_that_supplier() {
        let of =
            |id: &str, supplier: &str| subscribed(id, &["*"], |settings| settings.supplier_id = supplier.to_owned());
        let all = [of("a", "s1"), of("b", "s2"), of("c", "")];
        let mut event = change("{}", "{}");
        assert_eq!(found(&all, &event), ["c"]);
        event.metadata.supplier_id = "s1".to_owned();
        assert_eq!(found(&all, &event), ["a", "c"]);
        event.metadata.supplier_id.clear();
        event.channels.push("supplier:dashboard:s2".to_owned());
        assert_eq!(found(&all, &event), ["b", "c"]);
    }

    #[test]
    fn another_organizations_event_is_never_found() {
        let mut event = change("{}", "{}");
        event.organization = OrganizationId::parse("other").expect("well-formed");
        assert!(found(&[subscribed("a", &["*"], |_| {})], &event).is_empty());
    }

    #[test]
    fn a_condition_decides_and_one_that_fails_does_not_match() {
        let with =
            |id: &str, condition: &str| subscribed(id, &["*"], |settings| settings.condition = condition.to_owned());
        let all = [
            with("a", "new.guest_count != old.guest_count"),
            with("b", "new.guest_count == old.guest_count"),
            with("c", "new.guest_count > 'x'"),
            with("d", "event.operation == 'update' and event.table == 'wedding_details'"),
        ];
        assert_eq!(found(&all, &change(r#"{"guest_count":1}"#, r#"{"guest_count":2}"#)), ["a", "d"]);
    }

    #[test]
    fn only_later_events_of_the_same_log_or_any_of_another_are_seen() {
        let mut event = change("{}", "{}");
        let endpoint = subscribed("a", &["*"], |_| {});
        for (log, sequence, seen) in [("log", 5, false), ("log", 6, true), ("restored", 1, true)] {
            (event.log_id, event.sequence) = (log.to_owned(), sequence);
            assert_eq!(!found(std::slice::from_ref(&endpoint), &event).is_empty(), seen, "{log} {sequence}");
        }
    }

    #[test]
    fn an_endpoint_never_hears_about_itself() {
        let all = [subscribed("a", &["*"], |_| {}), subscribed("b", &["*"], |_| {})];
        let mut event = content("endpoint.disabled", "{}");
        event.subject = "a".to_owned();
        assert_eq!(found(&all, &event), ["b"]);
    }

    #[test]
    fn odd_patterns_are_refused() {
        for bad in ["", "**", "a.", "a..b", "A.b", "*.a", "a.*.b", "a*", ".*", &"a".repeat(129)] {
            assert!(TypePattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(TypePattern::parse("a.b.*").expect("a prefix"), TypePattern::Below("a.b".to_owned()));
    }

    #[test]
    fn of_a_hundred_thousand_endpoints_one_event_looks_at_those_that_it_may_concern_alone() {
        let mut index = Index::default();
        for number in 0..100_000 {
            let (supplier, type_) =
                (format!("s{}", number % 50_000), if number % 2 == 0 { "*" } else { "wedding_details.*" });
            index.insert(&subscribed(&format!("e{number}"), &[type_], |settings| settings.supplier_id = supplier));
        }
        let mut event = change(r#"{"guest_count":1}"#, r#"{"guest_count":2}"#);
        event.metadata.supplier_id = "s77".to_owned();
        assert_eq!((index.candidates(&event).len(), index.find(&event).len()), (2, 2));
    }

    proptest! {
        #[test]
        fn what_is_removed_leaves_nothing_behind(count in 1usize..12) {
            let all: Vec<_> = (0..count).map(|number| subscribed(&format!("e{number}"), &["a.*", "a.b", "*"], |_| {})).collect();
            let mut index = Index::default();
            all.iter().for_each(|endpoint| index.insert(endpoint));
            prop_assert_eq!(index.find(&content("a.b", "{}")).len(), count);
            all.iter().for_each(|endpoint| index.remove(endpoint));
            prop_assert!(index.0.is_empty());
        }
    }
}
