//! Durable consumer groups: every event of a group is handed out until it is acknowledged.
//!
//! `state` decides what goes to whom and is pure; `group` is the task that runs one group between the log and its
//! members' streams; `cursor` is what the log's next commit stores. Built-in groups see every organization's events and
//! start at 0; others see their own organization's and start at the head unless told otherwise.

pub(crate) mod cursor;
mod group;
mod state;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    store::Store,
    tasks::Tasks,
    with,
};
use jiff::Timestamp;
use proto::router::v1::ConsumeResponse;
use tokio::sync::{Mutex, mpsc};

use self::group::Group;
pub(crate) use self::{group::Ask, state::CREDIT_BYTES_MAX};
use crate::{
    event_type::TypePattern,
    log::{Log, stored},
};

/// Groups that the product itself consumes with, over all organizations.
pub(crate) const BUILT_IN: [&str; 2] = ["vendor-sync", "notifier"];
/// Types that one group names.
const TYPES_MAX: usize = 256;
/// Groups of one organization.
const GROUPS_MAX: i64 = 100;
/// Replays of one organization that a group has before it.
const REPLAYS_MAX: i64 = 4;

/// A group as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) built_in: bool,
    pub(crate) types: Vec<String>,
    pub(crate) created_at: Timestamp,
    /// By priority: sequences up to which all is acknowledged.
    pub(crate) cursors: Vec<(i64, u64)>,
    pub(crate) members: usize,
}

/// What a new member asks for.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    /// None for a built-in group.
    pub(crate) organization: Option<OrganizationId>,
    pub(crate) group: String,
    pub(crate) types: Vec<String>,
    /// Where a new group starts, exclusive; none means its default.
    pub(crate) from: Option<u64>,
}

/// A member's end of its stream.
pub(crate) struct Membership {
    pub(crate) id: u64,
    pub(crate) asks: mpsc::Sender<Ask>,
    pub(crate) answers: mpsc::UnboundedReceiver<Result<ConsumeResponse>>,
}

/// All groups. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Consumers {
    store: Store,
    log: Log,
    clock: Clock,
    tasks: Tasks,
    /// By number. Held while a group is made, joined or deleted.
    running: Arc<Mutex<HashMap<i64, Running>>>,
}

#[derive(Clone)]
struct Running {
    asks: mpsc::Sender<Ask>,
    /// Those who joined, or are about to.
    members: Arc<AtomicUsize>,
}

#[derive(sqlx::FromRow)]
struct Row {
    number: i64,
    name: String,
    types: String,
    created_at: i64,
}

impl Consumers {
    /// Makes the built-in groups where they don't exist.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn open(store: Store, log: Log, clock: Clock, tasks: Tasks) -> Result<Self> {
        let consumers = Self { store, log, clock, tasks, running: Arc::default() };
        for name in BUILT_IN {
            consumers.create(None, name, &[], consumers.log.oldest() - 1).await?;
        }
        Ok(consumers)
    }

    /// Joins a group, making it where it doesn't exist.
    ///
    /// # Errors
    /// `Error::Invalid` for a malformed name or type; `Error::FailedPrecondition` when the group has other types.
    pub(crate) async fn join(&self, join: Join) -> Result<Membership> {
        check_name(&join.group)?;
        if join.types.len() > TYPES_MAX {
            return Err(Error::invalid("start.types", format!("must be at most {TYPES_MAX}")));
        }
        for pattern in &join.types {
            TypePattern::parse(pattern).map_err(|error| error.within("start"))?;
        }
        let mut running = self.running.lock().await;
        let organization = join.organization.as_ref();
        let row = match self.find(organization, &join.group).await? {
            Some(row) => row,
            None => {
                self.create(organization, &join.group, &join.types, join.from.unwrap_or_else(|| self.log.head()))
                    .await?
            }
        };
        if !join.types.is_empty() && row.types != join.types.join(" ") {
            let reason = format!(
                "group {} takes types `{}`: join with those, or with none, or use another group",
                join.group, row.types
            );
            return Err(Error::FailedPrecondition(reason));
        }
        let Running { asks, members } = self.run(&mut running, organization, &row).await?;
        let (answers, stream) = mpsc::unbounded_channel();
        let id = group::next_member();
        let joining = Joining::new(members);
        // A group that is busy keeps those waiting who want to join it, and nobody else.
        drop(running);
        asks.reserve().await.map_err(|_| stopping())?.send(Ask::Join { member: id, answers });
        joining.done();
        Ok(Membership { id, asks, answers: stream })
    }

    /// Offers the stored events of one organization after `since` and up to `until` to a group again, even if the caller
    /// leaves half way: what is stored is begun.
    ///
    /// # Errors
    /// `Error::NotFound` when there is no such group; `Error::FailedPrecondition` when it has enough before it.
    pub(crate) async fn replay(
        &self,
        organization: &OrganizationId,
        group: &str,
        since: u64,
        until: u64,
    ) -> Result<()> {
        let (consumers, organization, group) = (self.clone(), organization.clone(), group.to_owned());
        let begun = async move { consumers.begin_replay(&organization, &group, since, until).await };
        let begun = self.tasks.through("consumer.replay", begun).await;
        begun.unwrap_or_else(|| Err(Error::internal(anyhow::anyhow!("a replay broke off"))))
    }

    async fn begin_replay(&self, organization: &OrganizationId, group: &str, since: u64, until: u64) -> Result<()> {
        let owner = (!BUILT_IN.contains(&group)).then_some(organization);
        let mut running = self.running.lock().await;
        let row = self.find(owner, group).await?.ok_or_else(|| Error::NotFound("group".into()))?;
        let waiting: i64 = with!(self.store.writer(), c => sqlx::query_scalar(
            "SELECT COUNT(*) FROM replays WHERE group_number = $1 AND organization_id = $2",
        ).bind(row.number).bind(organization.as_str()).fetch_one(c).await)?;
        if waiting >= REPLAYS_MAX {
            let why = format!("{REPLAYS_MAX} replays to group {group} are under way: wait until one is through");
            return Err(Error::FailedPrecondition(why));
        }
        // Never the number of one that is over: a late word of its end would end this one.
        with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO replays (number, group_number, organization_id, since, until)
             SELECT CASE WHEN MAX(number) >= $5 THEN MAX(number) + 1 ELSE $5 END, $1, $2, $3, $4 FROM replays",
        ).bind(row.number).bind(organization.as_str()).bind(stored(since)).bind(stored(until)).bind(self.clock.now_micros()).execute(c).await.map(drop))?;
        let Running { asks, .. } = self.run(&mut running, owner, &row).await?;
        drop(running);
        asks.send(Ask::Replay).await.map_err(|_| stopping())
    }

    /// The groups of an organization; without one, the built-in groups.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn list(&self, organization: Option<&OrganizationId>) -> Result<Vec<Description>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT number, name, types, created_at FROM consumer_groups WHERE organization_id = $1 ORDER BY name",
        ).bind(owner(organization)).fetch_all(c).await)?;
        let running = self.running.lock().await.clone();
        let mut descriptions = Vec::with_capacity(rows.len());
        for row in rows {
            let cursors: Vec<(i64, i64)> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT priority, sequence FROM cursors WHERE group_number = $1 ORDER BY priority",
            ).bind(row.number).fetch_all(c).await)?;
            descriptions.push(Description {
                members: running.get(&row.number).map_or(0, |running| running.members.load(Ordering::Relaxed)),
                built_in: organization.is_none(),
                types: row.types.split_whitespace().map(str::to_owned).collect(),
                created_at: chassis::clock::from_micros(row.created_at),
                cursors: cursors
                    .into_iter()
                    .map(|(priority, sequence)| (priority, u64::try_from(sequence).unwrap_or(0)))
                    .collect(),
                name: row.name,
            });
        }
        Ok(descriptions)
    }

    /// Forgets a group.
    ///
    /// # Errors
    /// `Error::NotFound`; `Error::FailedPrecondition` while it has members.
    pub(crate) async fn delete(&self, organization: &OrganizationId, group: &str) -> Result<()> {
        let mut running = self.running.lock().await;
        let row = self.find(Some(organization), group).await?.ok_or_else(|| Error::NotFound("group".into()))?;
        if let Some(entry) = running.get(&row.number)
            && entry.members.load(Ordering::Relaxed) > 0
        {
            return Err(Error::FailedPrecondition(format!("group {group} has members: end their streams first")));
        }
        running.remove(&row.number);
        let mut tx = self.store.begin().await?;
        for statement in [
            "DELETE FROM cursors WHERE group_number = $1",
            "DELETE FROM replays WHERE group_number = $1",
            "DELETE FROM consumer_groups WHERE number = $1",
        ] {
            with!(tx.on(), c => sqlx::query(statement).bind(row.number).execute(c).await.map(drop))?;
        }
        tx.commit().await
    }

    async fn find(&self, organization: Option<&OrganizationId>, name: &str) -> Result<Option<Row>> {
        let row = with!(self.store.writer(), c => sqlx::query_as(
            "SELECT number, name, types, created_at FROM consumer_groups WHERE organization_id = $1 AND name = $2",
        ).bind(owner(organization)).bind(name).fetch_optional(c).await)?;
        Ok(row)
    }

    async fn create(
        &self,
        organization: Option<&OrganizationId>,
        name: &str,
        types: &[String],
        from: u64,
    ) -> Result<Row> {
        let mut tx = self.store.begin().await?;
        let groups: i64 = with!(tx.on(), c => sqlx::query_scalar("SELECT COUNT(*) FROM consumer_groups WHERE organization_id = $1")
            .bind(owner(organization)).fetch_one(c).await)?;
        if organization.is_some() && groups >= GROUPS_MAX {
            return Err(Error::FailedPrecondition(format!(
                "an organization has at most {GROUPS_MAX} groups: delete one first"
            )));
        }
        let last: i64 = with!(tx.on(), c => sqlx::query_scalar("SELECT COALESCE(MAX(number), 0) FROM consumer_groups").fetch_one(c).await)?;
        let now = self.clock.now_micros();
        // Never a deleted group's number: a cursor of that one may still be on its way to the store.
        let number = now.max(last + 1);
        with!(tx.on(), c => sqlx::query(
            "INSERT INTO consumer_groups (number, organization_id, name, types, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (organization_id, name) DO NOTHING",
        ).bind(number).bind(owner(organization)).bind(name).bind(types.join(" ")).bind(now).execute(c).await.map(drop))?;
        let row: Row = with!(tx.on(), c => sqlx::query_as(
            "SELECT number, name, types, created_at FROM consumer_groups WHERE organization_id = $1 AND name = $2",
        ).bind(owner(organization)).bind(name).fetch_one(c).await)?;
        for priority in 1..=4i64 {
            with!(tx.on(), c => sqlx::query(
                "INSERT INTO cursors (group_number, priority, sequence) VALUES ($1, $2, $3) ON CONFLICT (group_number, priority) DO NOTHING",
            ).bind(row.number).bind(priority).bind(stored(from)).execute(c).await.map(drop))?;
        }
        tx.commit().await?;
        Ok(row)
    }

    /// A group's task, started where it doesn't run.
    async fn run(
        &self,
        running: &mut HashMap<i64, Running>,
        organization: Option<&OrganizationId>,
        row: &Row,
    ) -> Result<Running> {
        if let Some(entry) = running.get(&row.number)
            && !entry.asks.is_closed()
        {
            return Ok(entry.clone());
        }
        let types = row.types.split_whitespace().map(TypePattern::parse).collect::<Result<Vec<_>>>()?;
        let group = Group::load(
            row.number,
            row.name.clone(),
            organization.cloned(),
            types,
            self.store.clone(),
            self.log.clone(),
        )
        .await?;
        let members = group.members();
        let (asks, asked) = mpsc::channel(1_024);
        self.tasks.spawn("consumer.group", group.run(asked, self.tasks.stopping()));
        let started = Running { asks, members };
        running.insert(row.number, started.clone());
        Ok(started)
    }
}

/// Counts one who is about to join; dropped before it is done, it is counted no more.
struct Joining(Option<Arc<AtomicUsize>>);

impl Joining {
    fn new(members: Arc<AtomicUsize>) -> Self {
        members.fetch_add(1, Ordering::Relaxed);
        Self(Some(members))
    }

    /// It has joined: whoever takes its leave counts it off.
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if let Some(members) = self.0.take() {
            members.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn owner(organization: Option<&OrganizationId>) -> &str {
    organization.map_or("", OrganizationId::as_str)
}

fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut bytes = name.bytes();
    let well_formed =
        name.len() <= 64 && bytes.next().is_some_and(plain) && bytes.all(|b| plain(b) || b"_.-".contains(&b));
    if well_formed { Ok(()) } else { Err(Error::invalid("start.group", "must match [a-z0-9][a-z0-9_.-]{0,63}")) }
}

fn stopping() -> Error {
    Error::Unavailable("the router is stopping".into())
}

#[cfg(test)]
mod tests;
