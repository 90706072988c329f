use crate::{
    connector::{CallError, Connector, Page, Position, Reply},
    integration::Integration,
};
use chassis::{error::Result, id::OrganizationId};
use std::sync::Arc;
#[derive(Clone)]
pub(crate) struct Caller;
impl Caller {
    pub(crate) async fn call(
        &self,
        _i: &Integration,
        _c: &Connector,
        _o: &str,
        _s: &serde_json::Value,
    ) -> std::result::Result<Reply, CallError> {
        todo!()
    }
    pub(crate) async fn page(
        &self,
        _i: &Integration,
        _c: &Connector,
        _o: &str,
        _s: &serde_json::Value,
        _p: &Position,
    ) -> std::result::Result<Page, CallError> {
        todo!()
    }
}
#[derive(Clone)]
pub(crate) struct Catalogue;
impl Catalogue {
    pub(crate) async fn find(&self, _o: &OrganizationId, _n: &str) -> Result<Option<Arc<Connector>>> {
        todo!()
    }
}
