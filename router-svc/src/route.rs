//! Routes and channel configurations, and the built-in ones as a table: `routes.toml`. Pure; `plan.rs` applies them.

use std::{fmt, sync::Arc};

use chassis::{
    error::{Error, Result},
    expression::Condition,
};
use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    channel::ChannelPattern,
    collapse::Collapse,
    destination::{Target, Wish},
    event::check_text,
    event_type::{EventType, TypePattern},
};

const BUILT_IN: &str = include_str!("routes.toml");
const TYPE_LIMIT: usize = 64;
const DESTINATION_LIMIT: usize = 32;

/// A rule: these events, if the condition holds, go to these destinations.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) id: String,
    pub(crate) description: String,
    pub(crate) types: Vec<TypePattern>,
    pub(crate) channel_pattern: Option<ChannelPattern>,
    /// None: always.
    pub(crate) condition: Option<RouteCondition>,
    pub(crate) wishes: Vec<Wish>,
    /// How its table change and its domain event recognise each other; built-in routes only.
    pub(crate) collapse: Option<Collapse>,
    pub(crate) disabled: bool,
    pub(crate) built_in: bool,
    pub(crate) version: u64,
    pub(crate) updated_at: Timestamp,
}

/// A condition as it was written, and compiled.
#[derive(Clone)]
pub(crate) struct RouteCondition {
    pub(crate) source: String,
    pub(crate) compiled: Arc<Condition>,
}

/// Destinations by channel.
#[derive(Clone, Debug)]
pub(crate) struct ChannelConfiguration {
    pub(crate) pattern: ChannelPattern,
    /// Empty in an organization's own: the built-in one is silenced.
    pub(crate) wishes: Vec<Wish>,
    pub(crate) built_in: bool,
}

impl RouteCondition {
    /// Compiles a condition; none if it is blank.
    ///
    /// # Errors
    /// `Error::Invalid` with line and reason.
    pub(crate) fn parse(source: &str) -> Result<Option<Self>> {
        if source.trim().is_empty() {
            return Ok(None);
        }
        let compiled = Condition::compile(source).map_err(|error| Error::invalid("condition", error.to_string()))?;
        Ok(Some(Self { source: source.to_owned(), compiled: Arc::new(compiled) }))
    }
}

impl fmt::Debug for RouteCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Route {
    /// Holds a route of an organization's own to the limits.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field.
    pub(crate) fn check(self) -> Result<Self> {
        check_text("description", &self.description)?;
        if !(1..=TYPE_LIMIT).contains(&self.types.len()) {
            return Err(Error::invalid("types", format!("must be 1 to {TYPE_LIMIT}")));
        }
        if !(1..=DESTINATION_LIMIT).contains(&self.wishes.len()) {
            return Err(Error::invalid("destinations", format!("must be 1 to {DESTINATION_LIMIT}")));
        }
        if self.wishes.iter().any(Wish::joins_any_workflow) {
            return Err(Error::invalid("destinations", "notification.workflow must not be empty in a route"));
        }
        Ok(self)
    }
}

impl ChannelConfiguration {
    /// An organization's own configuration.
    ///
    /// # Errors
    /// `Error::Invalid` for too many destinations.
    pub(crate) fn new(pattern: ChannelPattern, wishes: Vec<Wish>) -> Result<Self> {
        if wishes.len() > DESTINATION_LIMIT {
            return Err(Error::invalid("destinations", format!("must be at most {DESTINATION_LIMIT}")));
        }
        Ok(Self { pattern, wishes, built_in: false })
    }
}

/// What is shipped. Compiled once; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BuiltIn {
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) configurations: Vec<ChannelConfiguration>,
}

impl BuiltIn {
    /// Reads `routes.toml`.
    ///
    /// # Errors
    /// `Error::Invalid` where it can't be read; a test says that it can.
    pub(crate) fn load() -> Result<Self> {
        Self::parse(BUILT_IN)
    }

    /// Whether a shipped route takes how systems are reached from rows of this type.
    pub(crate) fn configures(&self, type_: &EventType) -> bool {
        let mut following =
            self.routes.iter().filter(|route| route.wishes.iter().any(|wish| wish.target.is_configuration()));
        following.any(|route| route.types.iter().any(|pattern| pattern.matches(type_)))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| Error::invalid("routes.toml", error.to_string()))?;
        let routes = file.route.into_iter().map(|row| row.route().map(Arc::new)).collect::<Result<_>>()?;
        let configurations = file.channel.into_iter().map(ChannelRow::configuration).collect::<Result<_>>()?;
        Ok(Self { routes, configurations })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    route: Vec<RouteRow>,
    channel: Vec<ChannelRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteRow {
    id: String,
    description: String,
    types: Vec<String>,
    #[serde(default)]
    condition: String,
    #[serde(default)]
    webhooks: bool,
    notification: Option<NotificationRow>,
    #[serde(default)]
    integrations: Vec<String>,
    collapse: Option<Collapse>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NotificationRow {
    #[serde(default)]
    workflow: String,
    channels: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChannelRow {
    pattern: String,
    notification: Option<NotificationRow>,
    #[serde(default)]
    integrations: Vec<String>,
}

impl RouteRow {
    fn route(self) -> Result<Route> {
        let route = Route {
            types: self.types.iter().map(|text| TypePattern::parse(text)).collect::<Result<_>>()?,
            condition: RouteCondition::parse(&self.condition)?,
            wishes: wishes(self.webhooks, self.notification, &self.integrations)?,
            id: self.id,
            description: self.description,
            channel_pattern: None,
            collapse: self.collapse,
            disabled: false,
            built_in: true,
            version: 1,
            updated_at: Timestamp::UNIX_EPOCH,
        };
        route.check()
    }
}

impl ChannelRow {
    fn configuration(self) -> Result<ChannelConfiguration> {
        let pattern = ChannelPattern::parse(&self.pattern)?;
        let wishes = wishes(false, self.notification, &self.integrations)?;
        Ok(ChannelConfiguration { pattern, wishes, built_in: true })
    }
}

fn wishes(webhooks: bool, notification: Option<NotificationRow>, integrations: &[String]) -> Result<Vec<Wish>> {
    let mut wishes: Vec<Wish> = webhooks.then(Wish::webhooks).into_iter().collect();
    if let Some(row) = notification {
        wishes.push(Wish::notification(&row.workflow, &row.channels)?);
    }
    for kind in integrations {
        wishes.push(Wish::integration(kind)?);
    }
    wishes.sort_by(|one, two| one.target.cmp(&two.target));
    Ok(wishes)
}

/// What a wish's target is, in words.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhooks => f.write_str("webhooks"),
            Self::Notification { workflow } => write!(f, "notification {workflow}"),
            Self::Integration { kind } => write!(f, "integration {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_is_well_formed_and_its_ids_are_its_own() {
        let built_in = BuiltIn::load().unwrap();
        let mut ids: Vec<&str> = built_in.routes.iter().map(|route| route.id.as_str()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
        assert!(!built_in.configurations.is_empty());
    }

    #[test]
    fn every_domain_event_of_the_specification_is_looked_at_by_a_built_in_route_or_is_silent() {
        let silent = ["communication.logged", "interaction.recorded"];
        let built_in = BuiltIn::load().unwrap();
        for type_ in [
            "client.created",
            "client.updated",
            "client.deleted",
            "wedding.date_changed",
            "timeline.updated",
            "guest_count.changed",
            "form.response_received",
            "journey.milestone_completed",
            "payment.received",
            "payment.failed",
            "capacity.alert",
            "availability.changed",
            "setup.requirements",
            "booking.updated",
            "communication.logged",
            "preference.updated",
            "interaction.recorded",
            "emergency.raised",
            "calendar.conflict",
            "contact.unsubscribed",
            "contact.bounced",
            "integration.failing",
            "integration.recovered",
            "integration.needs_reconnect",
            "endpoint.disabled",
        ] {
            let parsed = EventType::parse(type_).unwrap();
            let routes =
                built_in.routes.iter().filter(|route| route.types.iter().any(|pattern| pattern.matches(&parsed)));
            assert_eq!(routes.count(), usize::from(!silent.contains(&type_)), "{type_}");
        }
    }

    #[test]
    fn a_blank_condition_is_none_and_a_broken_one_names_its_field() {
        assert!(RouteCondition::parse(" \n").unwrap().is_none());
        assert!(
            matches!(RouteCondition::parse("new.").unwrap_err(), Error::Invalid { field, .. } if field == "condition")
        );
    }
}
