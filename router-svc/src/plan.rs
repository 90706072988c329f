//! Where an event goes and why: the pure function `plan`. Decided once, at publish, and stored with the event.
//!
//! Routes are found by an index over types and channels, so that an event pays only for the routes that may match it;
//! the conditions' view of the event is built once, and only if a route asks. Guarantees: the same question has the same
//! plan; each destination stands in it once; a condition that can't be evaluated doesn't match, and says why.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chassis::expression::Value;
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    channel::{ChannelIndex, ChannelName},
    collapse::{Collapse, rest},
    destination::{Target, Wish},
    event::Event,
    event_type::{EventType, TypePattern},
    facts::Facts,
    priority::{Priority, priority},
    route::{BuiltIn, ChannelConfiguration, Route, RouteCondition},
    wedding::Wedding,
};

/// Longest reason that is stored with a plan, in characters.
const REASON_LIMIT: usize = 300;

/// Where an event goes and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In the order of their targets.
    pub(crate) destinations: Vec<Destination>,
    pub(crate) priority: Priority,
    /// Which rule gave the priority.
    pub(crate) priority_reason: String,
    /// The routes that matched or failed; of an explained plan also those that didn't match.
    pub(crate) decisions: Vec<Decision>,
}

/// One way in which an event leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) target: Target,
    /// Of a notification: what is offered at the plan's priority, in the order in which routes named it.
    pub(crate) channels: Vec<String>,
    /// See `collapse.rs`. Empty: never collapsed.
    pub(crate) collapse_key: String,
    /// At most the plan's.
    pub(crate) priority: Priority,
}

/// What one route said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) route_id: String,
    pub(crate) outcome: Outcome,
    /// In plain words.
    pub(crate) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Matched,
    Unmatched,
    /// The condition could not be evaluated: not matched, and the route shows as failing.
    Failed,
}

/// What a plan is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// Completed by `Facts::complete`.
    pub(crate) event: &'a Event,
    pub(crate) facts: &'a Facts,
    /// What was known before the event; another wedding's than the event's is not looked at.
    pub(crate) wedding: Option<&'a Wedding>,
    /// The organization's.
    pub(crate) zone: &'a TimeZone,
    pub(crate) now: Timestamp,
}

/// The routes and channel configurations in force for one organization, indexed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    routes: Vec<Arc<Route>>,
    exact: HashMap<EventType, Bucket>,
    below: HashMap<EventType, Bucket>,
    any: Bucket,
    configurations: Vec<ChannelConfiguration>,
    by_channel: ChannelIndex<usize>,
}

/// Routes of one type pattern.
#[derive(Clone, Debug, Default)]
struct Bucket {
    everywhere: Vec<usize>,
    by_channel: ChannelIndex<usize>,
}

impl Routes {
    /// Indexes what is shipped, less the routes of the ids in `disabled`, with the organization's own. An own channel
    /// configuration stands in the place of the built-in one with its pattern.
    pub(crate) fn new(
        built_in: &BuiltIn,
        disabled: &HashSet<String>,
        own: impl IntoIterator<Item = Arc<Route>>,
        configurations: impl IntoIterator<Item = ChannelConfiguration>,
    ) -> Self {
        let mut routes = Self::default();
        for route in &built_in.routes {
            let off = disabled.contains(&route.id);
            routes.add(if off { Arc::new(Route { disabled: true, ..Route::clone(route) }) } else { route.clone() });
        }
        own.into_iter().for_each(|route| routes.add(route));
        let mut by_pattern: BTreeMap<_, _> =
            built_in.configurations.iter().map(|it| (it.pattern.clone(), it.clone())).collect();
        by_pattern.extend(configurations.into_iter().map(|it| (it.pattern.clone(), it)));
        for (index, (pattern, configuration)) in by_pattern.into_iter().enumerate() {
            routes.by_channel.insert(&pattern, index);
            routes.configurations.push(configuration);
        }
        routes
    }

    /// All routes, the disabled ones too: built-in first, then in the order they were given.
    pub(crate) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// All channel configurations, by pattern.
    pub(crate) fn configurations(&self) -> &[ChannelConfiguration] {
        &self.configurations
    }

    /// Adds a route, for a dry run or at the start.
    pub(crate) fn add(&mut self, route: Arc<Route>) {
        let index = self.routes.len();
        if !route.disabled {
            for pattern in &route.types {
                let bucket = match pattern {
                    TypePattern::Exact(type_) => self.exact.entry(type_.clone()).or_default(),
                    TypePattern::Below(prefix) => self.below.entry(prefix.clone()).or_default(),
                    TypePattern::Any => &mut self.any,
                };
                match &route.channel_pattern {
                    Some(pattern) => bucket.by_channel.insert(pattern, index),
                    None => bucket.everywhere.push(index),
                }
            }
        }
        self.routes.push(route);
    }

    /// Decides where an event goes.
    pub(crate) fn plan(&self, question: Question) -> Plan {
        self.decide(question, false)
    }

    /// Like `plan`, and says of each route of its type or channel why it did not match.
    pub(crate) fn explain(&self, question: Question) -> Plan {
        self.decide(question, true)
    }

    fn decide(&self, question: Question, explain: bool) -> Plan {
        let Question { event, facts, wedding, zone, now } = question;
        let (priority, reason) = priority(event, facts, wedding, zone, now);
        let view = View { event, facts, priority, built: OnceCell::new() };
        let mut decisions = Vec::new();
        let mut matched = Vec::new();
        for route in self.candidates(event, facts) {
            let decision = consult(route, &view);
            if decision.outcome == Outcome::Matched {
                matched.push(route);
            }
            if explain || decision.outcome != Outcome::Unmatched {
                decisions.push(decision);
            }
        }
        let destinations = Gathering::new(event, facts, priority).gather(&matched, &self.configured(event, facts));
        Plan { destinations, priority, priority_reason: reason.to_owned(), decisions }
    }

    /// The routes whose type and channel fit, each once, in their order.
    fn candidates(&self, event: &Event, facts: &Facts) -> impl Iterator<Item = &Route> {
        let mut found = BTreeSet::new();
        self.any.find(&event.channels, &mut found);
        let canonical = facts.canonical_type().filter(|canonical| **canonical != event.type_);
        for type_ in [Some(&event.type_), canonical].into_iter().flatten() {
            if let Some(bucket) = self.exact.get(type_) {
                bucket.find(&event.channels, &mut found);
            }
            for bucket in type_.prefixes().filter_map(|prefix| self.below.get(prefix)) {
                bucket.find(&event.channels, &mut found);
            }
        }
        found.into_iter().map(|index| &*self.routes[index])
    }

    /// What the channel configuration adds: nothing to live-only events, nor to those about our own integrations and
    /// endpoints, which must not go to the systems they speak of.
    fn configured(&self, event: &Event, facts: &Facts) -> Vec<&Wish> {
        if facts.is_live_only() || ["integration", "endpoint"].contains(&event.type_.family()) {
            return Vec::new();
        }
        let mut found = BTreeSet::new();
        for channel in &event.channels {
            self.by_channel.find(channel, |index| found.extend([*index]));
        }
        found.into_iter().flat_map(|index| &self.configurations[index].wishes).collect()
    }
}

impl Bucket {
    fn find(&self, channels: &[ChannelName], found: &mut BTreeSet<usize>) {
        found.extend(&self.everywhere);
        for channel in channels {
            self.by_channel.find(channel, |index| found.extend([*index]));
        }
    }
}

fn consult(route: &Route, view: &View) -> Decision {
    let (outcome, reason) = match &route.condition {
        None => (Outcome::Matched, "always".to_owned()),
        Some(condition) => evaluate(condition, view),
    };
    Decision { route_id: route.id.clone(), outcome, reason: reason.chars().take(REASON_LIMIT).collect() }
}

fn evaluate(condition: &RouteCondition, view: &View) -> (Outcome, String) {
    match condition.compiled.eval(view.value()) {
        Ok(true) => (Outcome::Matched, condition.source.clone()),
        Ok(false) => (Outcome::Unmatched, format!("not {}", condition.source)),
        Err(error) => (Outcome::Failed, error.to_string()),
    }
}

/// What conditions see, built when the first one asks.
struct View<'a> {
    event: &'a Event,
    facts: &'a Facts,
    priority: Priority,
    built: OnceCell<Value>,
}

impl View<'_> {
    fn value(&self) -> &Value {
        self.built.get_or_init(|| {
            // On INSERT `old` is an empty record, as the specification of conditions asks.
            Value::scope([("new", self.facts.new.value()), ("old", self.facts.old.value()), ("event", self.about())])
        })
    }

    fn about(&self) -> Value {
        let Self { event, facts, priority, .. } = self;
        let change = event.change();
        let texts = [
            ("id", &*event.id),
            ("type", event.type_.as_str()),
            ("source", &event.source),
            ("subject", &event.subject),
            ("time", &event.time.to_string()),
            ("ordering_key", &event.ordering_key),
            ("priority", priority.as_str()),
            ("origin", event.metadata.origin.as_str()),
            ("schema", change.map_or("", |change| &change.schema)),
            ("table", facts.table_name().or_else(|| change.map(|change| &*change.table)).unwrap_or_default()),
            ("operation", change.map_or("", |change| change.operation.as_str())),
            ("wedding_id", &event.metadata.wedding_id),
            ("supplier_id", &event.metadata.supplier_id),
            ("couple_id", &event.metadata.couple_id),
        ];
        let given = texts.into_iter().filter(|(_, text)| !text.is_empty());
        Value::map(given.map(|(name, text)| (name, Value::text(text))))
    }
}

/// Unites what routes and channel configurations wish for, per target.
struct Gathering<'a> {
    event: &'a Event,
    facts: &'a Facts,
    priority: Priority,
    found: BTreeMap<Target, Gathered>,
}

#[derive(Default)]
struct Gathered {
    channels: Vec<String>,
    priority: Option<Priority>,
    tokens: BTreeSet<String>,
    /// A route that can't be recognised asked for it: never collapsed.
    single: bool,
}

impl<'a> Gathering<'a> {
    fn new(event: &'a Event, facts: &'a Facts, priority: Priority) -> Self {
        Self { event, facts, priority, found: BTreeMap::new() }
    }

    fn gather(mut self, matched: &[&Route], configured: &[&Wish]) -> Vec<Destination> {
        let tokens: Vec<Option<String>> = matched.iter().map(|route| self.token(route)).collect();
        for (route, token) in matched.iter().zip(&tokens) {
            for wish in &route.wishes {
                self.add(wish, std::slice::from_ref(token));
            }
        }
        let (joining, plain): (Vec<&Wish>, Vec<&Wish>) = configured.iter().partition(|wish| wish.joins_any_workflow());
        plain.into_iter().for_each(|wish| self.configure(wish, &tokens));
        joining.into_iter().for_each(|wish| self.join(wish));
        let collapses: Vec<&Collapse> = matched.iter().filter_map(|route| route.collapse.as_ref()).collect();
        let rest = rest(self.facts, &collapses);
        let print = |(target, gathered): (Target, Gathered)| gathered.print(target, self.priority, rest.as_ref());
        self.found.into_iter().map(print).collect()
    }

    fn token(&self, route: &Route) -> Option<String> {
        route.collapse.as_ref().and_then(|collapse| collapse.token(&route.id, self.event, self.facts))
    }

    fn add(&mut self, wish: &Wish, tokens: &[Option<String>]) {
        if self.facts.is_live_only() && wish.target != Target::Webhooks {
            return;
        }
        let gathered = self.found.entry(wish.target.clone()).or_default();
        gathered.priority = gathered.priority.max(Some(wish.at_most.unwrap_or(self.priority).min(self.priority)));
        gathered.offer(wish, self.priority);
        gathered.single |= tokens.is_empty() || tokens.iter().any(Option::is_none);
        gathered.tokens.extend(tokens.iter().flatten().cloned());
    }

    /// A configuration has no fact of its own: a destination that a route asks for as well keeps the route's key, any
    /// other has the keys of all that matched.
    fn configure(&mut self, wish: &Wish, tokens: &[Option<String>]) {
        match self.found.get_mut(&wish.target) {
            Some(gathered) => {
                gathered.priority =
                    gathered.priority.max(Some(wish.at_most.unwrap_or(self.priority).min(self.priority)));
                gathered.offer(wish, self.priority);
            }
            None => self.add(wish, tokens),
        }
    }

    fn join(&mut self, wish: &Wish) {
        for (target, gathered) in &mut self.found {
            if matches!(target, Target::Notification { .. }) {
                gathered.offer(wish, self.priority);
            }
        }
    }
}

impl Gathered {
    fn offer(&mut self, wish: &Wish, priority: Priority) {
        for offer in wish.offers.iter().filter(|offer| offer.holds_at(priority)) {
            if !self.channels.contains(&offer.channel) {
                self.channels.push(offer.channel.clone());
            }
        }
    }

    /// Systems take the whole row, so what changed beside the facts belongs to their key; people are told the fact.
    fn print(mut self, target: Target, priority: Priority, rest: Option<&String>) -> Destination {
        if !matches!(target, Target::Notification { .. }) {
            self.tokens.extend(rest.cloned());
        }
        let tokens: Vec<String> = if self.single { Vec::new() } else { self.tokens.into_iter().collect() };
        let priority = self.priority.unwrap_or(priority);
        Destination { target, channels: self.channels, collapse_key: tokens.join(" "), priority }
    }
}

#[cfg(test)]
mod tests;
