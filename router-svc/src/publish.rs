//! The heart: an event comes in, its wedding is looked up, its plan is made, and it is appended. What is answered is durable.

use std::sync::Arc;

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id, sealed_row,
    secret::DataKeys,
};
use futures_util::future::BoxFuture;
use prost::Message as _;
use proto::router::v1::{LoggedEvent, Receipt};

use crate::{
    event::{Event, Payload},
    facts::Facts,
    log::{Draft, Log, Order, aad},
    organizations::Organizations,
    plan::{Plan, Question},
    priority::Priority,
    routes::RouteTable,
    rpc::wire::{print_event, print_plan},
    table::Tables,
    wedding::{Lesson, Wedding},
    weddings::Weddings,
};

/// Everything that publishing needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher {
    pub(crate) log: Log,
    pub(crate) keys: DataKeys,
    pub(crate) organizations: Organizations,
    pub(crate) weddings: Weddings,
    pub(crate) routes: RouteTable,
    pub(crate) tables: Arc<Tables>,
    pub(crate) clock: Clock,
}

/// Whose word an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A database that the operator has captured, one of our services, or whoever may manage the organization.
    Manager,
    /// Whoever may publish.
    Publisher,
}

/// An event with everything decided about it.
pub(crate) struct Decided {
    pub(crate) event: Event,
    pub(crate) plan: Plan,
    lesson: Option<Lesson>,
    /// Its rows say how systems are reached, with their keys: whether or not any route is on that follows them.
    configures: bool,
}

impl Publisher {
    /// Takes an event in, in the order of the calls. It is durable when the promise resolves.
    ///
    /// # Errors
    /// `Error::NotFound` for an unknown organization, `Error::PermissionDenied` for a row that says how systems are
    /// reached and isn't a manager's word; those of the store.
    pub(crate) async fn publish(&self, event: Event, by: By) -> Result<BoxFuture<'static, Result<Receipt>>> {
        self.publish_in(event, by, None).await
    }

    /// The same; of an `order`, no event is taken once an earlier one wasn't.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub(crate) async fn publish_in(
        &self,
        event: Event,
        by: By,
        order: Option<&Order>,
    ) -> Result<BoxFuture<'static, Result<Receipt>>> {
        chassis::fail::point("router.publish.received");
        let decided = self.decide(event).await?;
        if by == By::Publisher && decided.configures {
            let why = "rows of this table say how systems are reached: publishing them takes the scope `manage`";
            return Err(Error::PermissionDenied(why.to_owned()));
        }
        self.routes.note_failures(&decided.event.organization, &decided.plan);
        let (id, priority) = (decided.event.id.clone(), decided.plan.priority);
        let expectation = match &decided.lesson {
            Some(lesson) => self.weddings.expect(&decided.event.organization, lesson).await?,
            None => None,
        };
        let appended = self.log.append(self.draft(decided).await?, order.cloned()).await?;
        let log = self.log.clone();
        Ok(Box::pin(async move {
            let appended = appended.await;
            drop(expectation);
            let appended = appended?;
            let uid = id::uuid_text(appended.uid);
            Ok(Receipt {
                id: if id.is_empty() { uid.clone() } else { id },
                uid,
                position: Some(log.position(appended.sequence)),
                duplicate: appended.duplicate,
                priority: priority.number(),
            })
        }))
    }

    /// Completes an event with what is known, and plans it.
    pub(crate) async fn decide(&self, mut event: Event) -> Result<Decided> {
        let zone = self.organizations.zone(&event.organization).await?;
        let mut facts = Facts::read(&event, &self.tables);
        facts.identify(&mut event.metadata);
        let known = self.known_wedding(&event).await?;
        facts.complete(&mut event, known.as_deref());
        let question =
            Question { event: &event, facts: &facts, wedding: known.as_deref(), zone: &zone, now: self.clock.now() };
        let plan = self.routes.of(&event.organization).await?.plan(question);
        let configures = self.routes.configures(&event, &facts, &plan);
        Ok(Decided { event, plan, lesson: Lesson::of(facts, zone), configures })
    }

    /// Why each route does or doesn't match an event; nothing is stored.
    pub(crate) async fn explain(&self, mut event: Event, extra: Option<crate::route::Route>) -> Result<(Plan, Event)> {
        let zone = self.organizations.zone(&event.organization).await?;
        let mut facts = Facts::read(&event, &self.tables);
        facts.identify(&mut event.metadata);
        let known = self.known_wedding(&event).await?;
        facts.complete(&mut event, known.as_deref());
        let mut routes = (*self.routes.of(&event.organization).await?).clone();
        if let Some(route) = extra {
            routes.add(Arc::new(route));
        }
        let question =
            Question { event: &event, facts: &facts, wedding: known.as_deref(), zone: &zone, now: self.clock.now() };
        Ok((routes.explain(question), event))
    }

    async fn known_wedding(&self, event: &Event) -> Result<Option<Arc<Wedding>>> {
        let metadata = &event.metadata;
        if !metadata.wedding_id.is_empty() {
            self.weddings.foresee(&event.organization, &metadata.wedding_id).await
        } else if !metadata.couple_id.is_empty() {
            self.weddings.foresee_of_couple(&event.organization, &metadata.couple_id).await
        } else {
            Ok(None)
        }
    }

    /// Rows with keys in them are for vendor-sync alone: in the log, and for all who read it, they are sealed.
    fn seal_rows(&self, event: &mut Event) -> Result<()> {
        let Event { organization, payload: Payload::Change(change), .. } = event else { return Ok(()) };
        for row in [&mut change.old, &mut change.new].into_iter().flatten() {
            *row = sealed_row::seal(self.keys.keyring(), organization, row)?.into();
        }
        Ok(())
    }

    async fn draft(&self, decided: Decided) -> Result<Draft> {
        let Decided { mut event, plan, lesson, configures } = decided;
        event.uid = id::uuid(self.clock.now());
        if event.id.is_empty() {
            event.id.clone_from(&event.uid);
        }
        let uid =
            id::parse_uuid(&event.uid).ok_or_else(|| Error::internal(anyhow::anyhow!("a fresh uid is a UUID")))?;
        let content_hash = event.content_hash();
        if configures {
            self.seal_rows(&mut event)?;
        }
        let (wire_event, wire_plan) = (print_event(&event, plan.priority, None), print_plan(&plan));
        let logged = Box::new(LoggedEvent { event: Some(wire_event), plan: Some(wire_plan) });
        let body = self.keys.of(&event.organization).await?.seal(&aad(&uid), &logged.encode_to_vec());
        Ok(Draft {
            uid,
            type_: event.type_.as_str().to_owned(),
            priority: stored_priority(plan.priority),
            content_hash,
            organization: event.organization,
            id: event.id,
            ordering_key: event.ordering_key,
            logged,
            body: body.into(),
            lesson,
        })
    }
}

fn stored_priority(priority: Priority) -> i64 {
    i64::from(priority.number())
}
