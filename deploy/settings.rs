//! The settings of the whole process, and what development mode adds: secrets of its own, and loopback let through.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use chassis::{
    clock::Clock,
    config::{self, Secret, Shared, StoreSettings},
    secret,
};
use serde::{Deserialize, Serialize};

use crate::Serve;

/// Every section of the configuration file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    #[serde(flatten)]
    pub(crate) shared: Shared,
    pub(crate) router: router_svc::Config,
    pub(crate) vendor_sync: vendor_sync_svc::Config,
    pub(crate) notifier: notifier_svc::Config,
    pub(crate) gateway: gateway::Config,
}

impl Settings {
    /// Defaults, then the file, then the environment; in development mode with what that adds.
    ///
    /// # Errors
    /// Settings that can't be read; a data folder that can't be written.
    pub(crate) fn load(serve: &Serve) -> Result<Self> {
        let mut settings: Self = config::load(serve.config.as_deref(), config::environment())?;
        settings.keep_data_in(&serve.data);
        if serve.config.is_none() && !serve.print_config {
            settings.develop(&serve.data)?;
        }
        Ok(settings)
    }

    /// Development mode on a folder of its own with these settings, whatever file and environment say.
    pub(crate) fn load_for_demo(data: &Path, settings: Vec<(String, String)>) -> Result<Self> {
        let mut settings: Self = config::load(None, settings)?;
        settings.keep_data_in(data);
        settings.develop(data)?;
        Ok(settings)
    }

    /// Puts what stands at its default place below `data`.
    fn keep_data_in(&mut self, data: &Path) {
        let defaults = Self::default();
        let stores: [(&mut StoreSettings, StoreSettings, &str); 3] = [
            (&mut self.router.store, defaults.router.store, "router.db"),
            (&mut self.vendor_sync.store, defaults.vendor_sync.store, "vendor-sync.db"),
            (&mut self.notifier.store, defaults.notifier.store, "notifier.db"),
        ];
        for (store, default, file) in stores {
            if store.url.expose() == default.url.expose() {
                store.url = Secret::from(format!("sqlite:{}", data.join(file).display()));
            }
        }
        if self.router.bootstrap_key_file == defaults.router.bootstrap_key_file {
            self.router.bootstrap_key_file = data.join("bootstrap-key");
        }
    }

    /// Development mode: secrets made once and kept beside the data, endpoints on loopback let through, reflection on.
    fn develop(&mut self, data: &Path) -> Result<()> {
        if self.shared.secrets.master_keys.is_empty() {
            let key =
                kept(&data.join("master-key"), || secret::generate_master_key(&Clock::System).expose().to_owned())?;
            self.shared.secrets.master_keys = vec![key];
        }
        if self.shared.auth.service_secret.is_empty() {
            self.shared.auth.service_secret =
                kept(&data.join("service-secret"), || hex::encode(secret::random::<32>()))?;
        }
        let realtime = &mut self.gateway.realtime;
        if realtime.jwt_secret.is_empty() && realtime.jwks_url.is_empty() && realtime.jwks_file.as_os_str().is_empty() {
            realtime.jwt_secret = kept(&data.join("jwt-secret"), || hex::encode(secret::random::<32>()))?;
        }
        realtime.inspector = self.gateway.listen.ip().is_loopback();
        if self.shared.outbound.allow_networks.is_empty() {
            self.shared.outbound.allow_networks = vec!["127.0.0.0/8".into(), "::1/128".into()];
            self.shared.outbound.allow_http = true;
        }
        self.shared.server.reflection = true;
        Ok(())
    }
}

/// A secret that is made at the first start and read at every later one.
fn kept(file: &Path, make: impl FnOnce() -> String) -> Result<Secret> {
    if !file.exists() {
        secret::write_file(file, &make()).with_context(|| format!("write {}", file.display()))?;
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Secret::from(text.trim().to_owned()))
}
