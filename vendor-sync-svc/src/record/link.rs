//! Links: what a record is called in a linked system, and what was last agreed with it.

use std::collections::BTreeMap;

use chassis::{
    error::Result,
    id::OrganizationId,
    secret::DataKeys,
    store::{Store, Tx},
};
use jiff::Timestamp;
use serde_json::Value;

use super::RecordKind;

/// One record in one linked system.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) organization: OrganizationId,
    pub(crate) integration_id: String,
    pub(crate) kind: RecordKind,
    pub(crate) record_id: String,
    /// Empty: handed over, and not known yet what it is called there.
    pub(crate) external_id: String,
    /// Of the last state that we know there: an ETag, a number, a time. Empty: it has none.
    pub(crate) external_version: String,
    /// The version that our own last write led to: what comes back with it is our echo. Empty: none is known.
    pub(crate) own_version: String,
    /// Canonical fields as last agreed: the base of a three-way merge.
    pub(crate) synced: BTreeMap<String, Value>,
    /// When that was.
    pub(crate) synced_at: Timestamp,
    /// Given to an inbox that a person there has yet to accept.
    pub(crate) handed_over: bool,
}

/// All links. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    store: Store,
    keys: DataKeys,
}

impl Links {
    pub(crate) fn new(store: Store, keys: DataKeys) -> Self {
        Self { store, keys }
    }

    pub(crate) async fn by_external(
        &self,
        _organization: &OrganizationId,
        _integration_id: &str,
        _kind: RecordKind,
        _external_id: &str,
    ) -> Result<Option<Link>> {
        todo!()
    }

    pub(crate) async fn by_external_in(
        &self,
        _tx: &mut Tx,
        _organization: &OrganizationId,
        _integration_id: &str,
        _kind: RecordKind,
        _external_id: &str,
    ) -> Result<Option<Link>> {
        todo!()
    }

    pub(crate) async fn by_record(
        &self,
        _organization: &OrganizationId,
        _integration_id: &str,
        _kind: RecordKind,
        _record_id: &str,
    ) -> Result<Option<Link>> {
        todo!()
    }

    pub(crate) async fn by_record_in(
        &self,
        _tx: &mut Tx,
        _organization: &OrganizationId,
        _integration_id: &str,
        _kind: RecordKind,
        _record_id: &str,
    ) -> Result<Option<Link>> {
        todo!()
    }

    /// Every system that a record is linked with; at most 1,000.
    pub(crate) async fn of_record(
        &self,
        _organization: &OrganizationId,
        _kind: RecordKind,
        _record_id: &str,
    ) -> Result<Vec<Link>> {
        todo!()
    }

    /// Stores it in place of the one of the same integration, kind and record.
    ///
    /// # Errors
    /// `Error::AlreadyExists` if another record of that integration has this external id.
    pub(crate) async fn put_in(&self, _tx: &mut Tx, _link: &Link) -> Result<()> {
        todo!()
    }

    pub(crate) async fn delete_in(&self, _tx: &mut Tx, _link: &Link) -> Result<()> {
        todo!()
    }

    /// Of one integration, at most `limit`, after (kind, record id) `after`.
    pub(crate) async fn list(
        &self,
        _organization: &OrganizationId,
        _integration_id: &str,
        _after: Option<(RecordKind, &str)>,
        _limit: i64,
    ) -> Result<Vec<Link>> {
        todo!()
    }
}
