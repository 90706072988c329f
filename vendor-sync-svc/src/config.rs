//! The `[vendor_sync]` section.

use std::net::SocketAddr;

use chassis::{
    config::{Secret, StoreSettings},
    lane::Slots,
};
use serde::{Deserialize, Serialize};

/// `[vendor_sync]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served; default `127.0.0.1:7420`.
    pub listen: SocketAddr,
    /// Where the router is; default `http://127.0.0.1:7410`.
    pub router: String,
    /// TOML table of personal columns, which leave only by an endpoint owner's grant; default empty: the one we ship.
    pub personal_columns_file: String,
    /// TOML table of configuration tables that endpoints and integrations follow; default empty: the one we ship.
    pub configuration_tables_file: String,
    /// How many deliveries may be under way to one endpoint; default 64.
    pub slots_per_endpoint: u32,
    /// How many deliveries may be under way for one organization; default 512.
    pub slots_per_organization: usize,
    /// How many deliveries may be under way altogether; default 1,024.
    pub slots: usize,
    /// Where the data is kept.
    pub store: StoreSettings,
}

impl Default for Config {
    fn default() -> Self {
        let slots = Slots::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7420)),
            router: "http://127.0.0.1:7410".to_owned(),
            personal_columns_file: String::new(),
            configuration_tables_file: String::new(),
            slots_per_endpoint: slots.lane,
            slots_per_organization: slots.organization,
            slots: slots.all,
            store: StoreSettings {
                url: Secret::from("sqlite:./data/vendor-sync.db".to_owned()),
                schema: "vendor_sync".to_owned(),
                ..StoreSettings::default()
            },
        }
    }
}

impl Config {
    pub(crate) fn slots(&self) -> Slots {
        Slots { lane: self.slots_per_endpoint, organization: self.slots_per_organization, all: self.slots }
    }

    /// Checks what types can't say.
    ///
    /// # Errors
    /// Slots of zero, with which nothing would ever be sent.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.slots_per_endpoint > 0 && self.slots_per_organization > 0 && self.slots > 0,
            "[vendor_sync] slots_per_endpoint, slots_per_organization and slots must be above 0"
        );
        Ok(())
    }
}
