//! The `[router]` section.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use chassis::config::{Secret, StoreSettings};
use serde::{Deserialize, Serialize};

use crate::table::TableNames;

/// Settings of the router.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it listens. Default: 127.0.0.1:7410.
    pub listen: SocketAddr,
    /// Where the operator's key is written at the first start, readable by its owner alone. Default: data/bootstrap-key.
    pub bootstrap_key_file: PathBuf,
    /// The event log, routes, organizations and weddings. Default: sqlite:data/router.db.
    pub store: StoreSettings,
    /// Other names for tables and columns that the built-in routes read, by the name they know. Default: none.
    pub tables: BTreeMap<String, TableNames>,
}

impl Default for Config {
    fn default() -> Self {
        let url = Secret::from("sqlite:data/router.db".to_owned());
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7410)),
            bootstrap_key_file: "data/bootstrap-key".into(),
            store: StoreSettings { url, schema: "router".into(), ..StoreSettings::default() },
            tables: BTreeMap::new(),
        }
    }
}
