//! Campaigns in the store. Every query but the poller's own look for what is due is scoped by the organization.

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    secret::DataKeys,
    store::Store,
    with,
};
use jiff::Timestamp;

use super::{Campaign, State};
use crate::{integration::Integration, notice, outbox::Outbox};

/// All campaigns. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Campaigns {
    store: Store,
    keys: DataKeys,
    outbox: Outbox,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    integration_id: String,
    name: String,
    external_id: String,
    state: String,
    reason: String,
    sent_at: Option<i64>,
    report: String,
    reported_at: Option<i64>,
    created_at: i64,
    next_at: Option<i64>,
}

impl Row {
    fn campaign(self) -> Result<Campaign> {
        let odd = || Error::internal(anyhow::anyhow!("campaign {} is stored with a word that nobody knows", self.id));
        let report = match self.report.as_str() {
            "" => None,
            report => Some(serde_json::from_str(report).map_err(Error::internal)?),
        };
        Ok(Campaign {
            state: State::parse(&self.state).ok_or_else(odd)?,
            organization: OrganizationId::parse(&self.organization_id)?,
            id: self.id,
            integration_id: self.integration_id,
            name: self.name,
            external_id: self.external_id,
            reason: self.reason,
            sent_at: self.sent_at.map(from_micros),
            report,
            reported_at: self.reported_at.map(from_micros),
            created_at: from_micros(self.created_at),
            next_at: self.next_at.map(from_micros),
        })
    }
}

const GET: &str = "SELECT id, organization_id, integration_id, name, external_id, state, reason, sent_at, report, reported_at, created_at, \
     next_at FROM campaigns WHERE organization_id = $1 AND id = $2";
const LIST: &str = "SELECT id, organization_id, integration_id, name, external_id, state, reason, sent_at, report, reported_at, created_at, \
     next_at FROM campaigns WHERE organization_id = $1 AND ($2 = '' OR integration_id = $2) AND ($3 = '' OR id < $3) \
     ORDER BY id DESC LIMIT $4";
const DUE: &str = "SELECT id, organization_id, integration_id, name, external_id, state, reason, sent_at, report, reported_at, created_at, \
     next_at FROM campaigns WHERE next_at <= $1 ORDER BY next_at LIMIT $2";

impl Campaigns {
    pub(crate) fn new(store: Store, keys: DataKeys, outbox: Outbox) -> Self {
        Self { store, keys, outbox }
    }

    /// # Errors
    /// `Error::FailedPrecondition` where `most` of its integration are followed already.
    pub(super) async fn insert(&self, campaign: &Campaign, most: i64) -> Result<()> {
        let body = print(campaign)?;
        let inserted = with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO campaigns (id, organization_id, integration_id, name, external_id, state, reason, sent_at, report, \
                 reported_at, created_at, next_at) SELECT $1, $2, $3, $4, $5, $6, '', $7, $8, $9, $10, $11 \
                 WHERE (SELECT COUNT(*) FROM campaigns WHERE integration_id = $3 AND next_at IS NOT NULL) < $12",
            )
            .bind(&campaign.id)
            .bind(campaign.organization.as_str())
            .bind(&campaign.integration_id)
            .bind(&campaign.name)
            .bind(&campaign.external_id)
            .bind(campaign.state.as_str())
            .bind(campaign.sent_at.map(Timestamp::as_microsecond))
            .bind(body)
            .bind(campaign.reported_at.map(Timestamp::as_microsecond))
            .bind(campaign.created_at.as_microsecond())
            .bind(campaign.next_at.map(Timestamp::as_microsecond))
            .bind(most)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if inserted == 0 {
            return Err(Error::FailedPrecondition(format!(
                "{most} campaigns of this integration are followed already"
            )));
        }
        Ok(())
    }

    /// What became of it since it was read.
    pub(super) async fn update(&self, campaign: &Campaign) -> Result<()> {
        let mut tx = self.store.begin().await?;
        self.update_in(&mut tx, campaign).await?;
        tx.commit().await
    }

    async fn update_in(&self, tx: &mut chassis::store::Tx, campaign: &Campaign) -> Result<()> {
        let body = print(campaign)?;
        with!(tx.on(), c => {
            sqlx::query(
                "UPDATE campaigns SET external_id = $3, state = $4, reason = $5, sent_at = $6, report = $7, reported_at = $8, \
                 next_at = $9 WHERE organization_id = $1 AND id = $2",
            )
            .bind(campaign.organization.as_str())
            .bind(&campaign.id)
            .bind(&campaign.external_id)
            .bind(campaign.state.as_str())
            .bind(&campaign.reason)
            .bind(campaign.sent_at.map(Timestamp::as_microsecond))
            .bind(body)
            .bind(campaign.reported_at.map(Timestamp::as_microsecond))
            .bind(campaign.next_at.map(Timestamp::as_microsecond))
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// The same with the event that tells of its report, which is final.
    pub(super) async fn conclude(&self, integration: &Integration, campaign: &Campaign) -> Result<()> {
        let report = campaign.report.unwrap_or_default();
        let content = notice::content(
            integration,
            serde_json::json!({
                "campaign_id": campaign.id,
                "name": campaign.name,
                "external_id": campaign.external_id,
                "sent_at": campaign.sent_at.map(|at| at.to_string()),
                "sent": report.sent,
                "opens": report.opens,
                "clicks": report.clicks,
                "unsubscribes": report.unsubscribes,
                "bounces": report.bounces,
            }),
        );
        let at = campaign.reported_at.unwrap_or(campaign.created_at);
        let event = notice::event(integration, "campaign.reported", &campaign.id, at, &content);
        let key = self.keys.of(&campaign.organization).await?;
        let mut tx = self.store.begin().await?;
        self.update_in(&mut tx, campaign).await?;
        self.outbox.put_in(&mut tx, &key, &event).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(())
    }

    pub(super) async fn delete(&self, campaign: &Campaign) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM campaigns WHERE organization_id = $1 AND id = $2")
                .bind(campaign.organization.as_str())
                .bind(&campaign.id)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn get(&self, organization: &OrganizationId, id: &str) -> Result<Campaign> {
        let row: Option<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(GET).bind(organization.as_str()).bind(id).fetch_optional(c).await
        })?;
        row.ok_or_else(|| Error::NotFound("campaign".into()))?.campaign()
    }

    /// Newest first, of one integration or (empty) of all, after the one with the id `after`.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        integration_id: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Campaign>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(LIST)
                .bind(organization.as_str())
                .bind(integration_id)
                .bind(after)
                .bind(limit)
                .fetch_all(c)
                .await
        })?;
        rows.into_iter().map(Row::campaign).collect()
    }

    /// Those that are to be asked about, of all organizations, the longest due first.
    pub(super) async fn due(&self, now: Timestamp, limit: i64) -> Result<Vec<Campaign>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(DUE).bind(now.as_microsecond()).bind(limit).fetch_all(c).await
        })?;
        rows.into_iter().map(Row::campaign).collect()
    }
}

fn print(campaign: &Campaign) -> Result<String> {
    let report = campaign.report.as_ref().map(serde_json::to_string).transpose().map_err(Error::internal)?;
    Ok(report.unwrap_or_default())
}
