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
        match (&serve.config, serve.print_config) {
            (Some(_), _) => {}
            // Whoever only looks leaves no files; that there is a secret is all that is printed of it.
            (None, true) => settings.develop(|_, _| Ok(Secret::from("made at the first start".to_owned())))?,
            (None, false) => settings.develop(|name, make| kept(&serve.data.join(name), make))?,
        }
        Ok(settings)
    }

    /// Development mode on a folder of its own with these settings, whatever file and environment say.
    pub(crate) fn load_for_demo(data: &Path, settings: Vec<(String, String)>) -> Result<Self> {
        let mut settings: Self = config::load(None, settings)?;
        settings.keep_data_in(data);
        settings.develop(|name, make| kept(&data.join(name), make))?;
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
    fn develop(&mut self, secret: impl Fn(&str, fn() -> String) -> Result<Secret>) -> Result<()> {
        let random = || hex::encode(secret::random::<32>());
        if self.shared.secrets.master_keys.is_empty() {
            let key = secret("master-key", || secret::generate_master_key(&Clock::System).expose().to_owned())?;
            self.shared.secrets.master_keys = vec![key];
        }
        if self.shared.auth.service_secret.is_empty() {
            self.shared.auth.service_secret = secret("service-secret", random)?;
        }
        let realtime = &mut self.gateway.realtime;
        if realtime.jwt_secret.is_empty() && realtime.jwks_url.is_empty() && realtime.jwks_file.as_os_str().is_empty() {
            realtime.jwt_secret = secret("jwt-secret", random)?;
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
fn kept(file: &Path, make: fn() -> String) -> Result<Secret> {
    if !file.exists() {
        secret::write_file(file, &make()).with_context(|| format!("write {}", file.display()))?;
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Secret::from(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_would_be_in_force_and_printing_makes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let shown = |print_config, config: Option<&str>| {
            let serve = Serve { config: config.map(Into::into), data: folder.path().join("data"), print_config };
            config::print(&Settings::load(&serve).expect("they hold"))
        };
        let printed = shown(true, None);
        assert!(!folder.path().join("data").exists());
        assert_eq!(printed, shown(false, None));
        for expected in ["allow_http = true", "reflection = true", "inspector = true", "\"127.0.0.0/8\"", "<redacted>"]
        {
            assert!(printed.contains(expected), "{expected} is missing:\n{printed}");
        }
        assert!(shown(true, Some("/dev/null")).contains("allow_http = false"));
    }
}
