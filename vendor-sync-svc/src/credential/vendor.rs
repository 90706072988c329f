//! How an account is granted tokens and tried, as its connector declares it.

use std::collections::BTreeMap;

use chassis::error::{Error, Result};
use futures_util::future::{BoxFuture, FutureExt as _};

use super::{
    Credential, Providers,
    connect::{Probe, Refusal},
};
use crate::{
    connector::{CallError, Class, call::Caller, catalogue::Catalogue},
    database::Database,
    integration::{Integration, Kind},
    oauth::Provider,
    sync::account::is_sql,
};

/// Token grants of connectors.
pub(crate) struct Declared(pub(crate) Catalogue);

/// Probes of connectors; of WedSync's own database, a look at it.
pub(crate) struct Probing {
    pub(crate) caller: Caller,
    pub(crate) database: Database,
}

impl Providers for Declared {
    fn provider<'a>(&'a self, integration: &'a Integration) -> BoxFuture<'a, Result<Option<Provider>>> {
        async move {
            if integration.settings.kind != Kind::Connector {
                return Ok(None);
            }
            match self.0.get(&integration.organization, &integration.settings.connector).await {
                Ok(entry) => Ok(Provider::of(entry.connector)),
                Err(Error::NotFound(_)) => Err(Error::FailedPrecondition("its connector was deleted".to_owned())),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}

impl Probe for Probing {
    fn probe<'a>(
        &'a self,
        integration: &'a Integration,
        credential: &'a Credential,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Refusal>> {
        self.ask(integration, credential).boxed()
    }
}

impl Probing {
    async fn ask(
        &self,
        integration: &Integration,
        credential: &Credential,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        if integration.settings.kind != Kind::Connector {
            return Err(Refusal::Account(
                "an integration of this kind only sends to us: there is nothing to ask".to_owned(),
            ));
        }
        let called = self.caller.called_with(integration, credential.clone(), BTreeMap::new()).await;
        let called = called.map_err(refusal)?;
        let connector = called.connector.clone();
        if is_sql(&connector) {
            let checked = self.database.check(integration, credential).await;
            return checked.map(|()| BTreeMap::new()).map_err(refusal);
        }
        // Some vendors have nothing that could be asked without doing something there.
        let Some(probe) = connector.probe() else { return Ok(BTreeMap::new()) };
        let reply = self.caller.call_as(&called, &probe.operation, &serde_json::json!({})).await.map_err(refusal)?;
        connector.probed(&reply).map_err(Refusal::Account)
    }
}

fn refusal(error: CallError) -> Refusal {
    match error.class {
        Class::Unauthorized => Refusal::Credential(error.reason),
        Class::Throttled => Refusal::Busy(error.reason),
        Class::Retry | Class::Unknown => Refusal::Unavailable(error.reason),
        Class::Permanent | Class::Duplicate | Class::Gone | Class::Conflict => Refusal::Account(error.reason),
    }
}
