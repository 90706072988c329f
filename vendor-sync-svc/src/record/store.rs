//! Records in the store.

use chassis::{
    clock::Clock,
    error::Result,
    id::OrganizationId,
    secret::DataKeys,
    store::{Store, Tx},
};
use serde_json::Value;
use std::collections::BTreeMap;

use super::{Change, Record, RecordKey, RecordKind, Update, merge::Conflict};

/// All records. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    pub(super) store: Store,
    pub(super) keys: DataKeys,
    pub(super) clock: Clock,
}

/// What an update led to, once its transaction is committed.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) record: Record,
    pub(crate) changes: Vec<Change>,
    /// Those that weren't there before; one that `asks` is open until a person decides.
    pub(crate) conflicts: Vec<Conflict>,
    /// Whether the record wasn't known before.
    pub(crate) created: bool,
    /// Whether it is deleted now and wasn't before.
    pub(crate) deleted: bool,
}

impl Records {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock }
    }

    /// Merges `update` into its record, which stays locked until the transaction ends: who applies several in one takes
    /// them in the order of their keys. Nothing is written where nothing is new.
    pub(crate) async fn apply_in(&self, _tx: &mut Tx, _key: &RecordKey, _update: &Update) -> Result<Applied> {
        todo!()
    }

    /// The record, deleted ones too; none if it was never heard of.
    pub(crate) async fn get(&self, _key: &RecordKey) -> Result<Option<Record>> {
        todo!()
    }

    /// As [`Records::get`], as the transaction sees it, and locked until its end.
    pub(crate) async fn get_in(&self, _tx: &mut Tx, _key: &RecordKey) -> Result<Option<Record>> {
        todo!()
    }

    /// At most `limit`, by id, after `after`; deleted ones left out.
    pub(crate) async fn list(
        &self,
        _organization: &OrganizationId,
        _kind: RecordKind,
        _after: &str,
        _limit: i64,
    ) -> Result<Vec<Record>> {
        todo!()
    }

    /// Ids of records, at most `limit`, that have a natural key of `fields` (`natural::keys`), deleted ones left out: two
    /// mean that the key doesn't tell.
    pub(crate) async fn by_natural_key_in(
        &self,
        _tx: &mut Tx,
        _organization: &OrganizationId,
        _kind: RecordKind,
        _fields: &BTreeMap<String, Value>,
    ) -> Result<Vec<String>> {
        todo!()
    }
}
