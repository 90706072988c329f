//! What connectors declare of how an account is granted tokens and tried.

use std::{collections::BTreeMap, sync::Arc};

use chassis::error::Result;
use futures_util::future::{self, BoxFuture, FutureExt as _};

use super::{
    Credential, Providers,
    connect::{Probe, Refusal},
};
use crate::{integration::Integration, oauth::Provider};

/// The vendors of kinds that have a connector; others have no API that could be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Declared;

impl Providers for Declared {
    fn provider<'a>(&'a self, _: &'a Integration) -> BoxFuture<'a, Result<Option<Arc<Provider>>>> {
        future::ready(Ok(None)).boxed()
    }
}

impl Probe for Declared {
    fn probe<'a>(
        &'a self,
        integration: &'a Integration,
        _: &'a Credential,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Refusal>> {
        let reason = format!("an integration of the kind {} has no API to ask", integration.settings.kind.as_str());
        future::ready(Err(Refusal::Account(reason))).boxed()
    }
}
