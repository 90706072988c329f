//! The `[router]` section.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};
use chassis::{
    config::{Secret, StoreSettings},
    purge,
};
use serde::{Deserialize, Serialize};

use crate::{capture::SourceSettings, table::TableNames};

/// Settings of the router.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it listens. Default: 127.0.0.1:7410.
    pub listen: SocketAddr,
    /// Where the operator's key is written at the first start, readable by its owner alone. Default: data/bootstrap-key.
    pub bootstrap_key_file: PathBuf,
    /// Events a second that one organization may publish, by all its publishers together; 0 for no limit, as when the
    /// router itself is measured. Default: 2000: on two cores, the others notice nothing of one that offers more.
    pub publish_per_second: u32,
    /// Events that one organization may publish at once, before the rate holds it. Default: 10000.
    pub publish_burst: u32,
    /// How many days events are kept: for as long a repeat of one is known as such, and can subscribers, consumers and replays
    /// go back; 0: for ever. Nothing goes that vendor-sync or the notifier hasn't taken. Default: 90.
    pub keep_days: u32,
    /// The event log, routes, organizations and weddings. Default: sqlite:data/router.db.
    pub store: StoreSettings,
    /// Other names for tables and columns that the built-in routes read, by the name they know. Default: none.
    pub tables: BTreeMap<String, TableNames>,
    /// PostgreSQL databases whose changes become events, by a name that stands in their events' source. Default: none.
    pub capture: BTreeMap<String, SourceSettings>,
}

impl Default for Config {
    fn default() -> Self {
        let url = Secret::from("sqlite:data/router.db".to_owned());
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7410)),
            bootstrap_key_file: "data/bootstrap-key".into(),
            publish_per_second: 2_000,
            publish_burst: 10_000,
            keep_days: 90,
            store: StoreSettings { url, schema: "router".into(), ..StoreSettings::default() },
            tables: BTreeMap::new(),
            capture: BTreeMap::new(),
        }
    }
}

impl Config {
    /// # Errors
    /// A limit that would let nothing through; days so few that what is still being retried would be forgotten.
    pub(crate) fn check(&self) -> Result<()> {
        let nothing = self.publish_per_second > 0 && self.publish_burst == 0;
        ensure!(!nothing, "[router] publish_burst must be at least 1, or publish_per_second 0 for no limit");
        let days_min = purge::DAYS_MIN;
        ensure!(
            purge::may_keep(self.keep_days),
            "[router] keep_days must be at least {days_min}, or 0 to keep events for ever"
        );
        Ok(())
    }
}
