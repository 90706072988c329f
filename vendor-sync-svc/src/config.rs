//! The `[vendor_sync]` section.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Context as _;
use chassis::{
    config::{Secret, StoreSettings},
    lane::{Slots, retention::Periods},
    purge,
};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::connector::catalogue::Catalogue;

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
    /// Where browsers reach the gateway, `https://sync.example.com`: OAuth sends them there. Default empty: no OAuth.
    pub public_url: String,
    /// Our OAuth clients at vendors, by built-in connector: `[vendor_sync.oauth.mailchimp-oauth]`. Default: none.
    pub oauth: BTreeMap<String, OAuthClient>,
    /// How long a vendor may leave a change of a wedding, in seconds, before its supplier is told of it another way; default
    /// 1,800.
    pub behind_after_s: u32,
    /// How many days a delivery is kept after it ended, with its attempts; 0: for ever. Default: 90.
    pub keep_days: u32,
    /// How many days what a delivery said is kept after it ended without arriving, for as long it can be recovered, and what was
    /// answered to attempts that failed; 0: as long as the delivery. Default: 30.
    pub keep_content_days: u32,
    /// Where the data is kept.
    pub store: StoreSettings,
}

/// `[vendor_sync.oauth.<connector>]`: what the vendor gave us when we registered there. Where we are sent back to is
/// `<public_url>/oauth/callback`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OAuthClient {
    /// Its name at the vendor.
    pub client_id: String,
    /// Its secret; empty for a public client.
    pub client_secret: Secret,
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
            public_url: String::new(),
            oauth: BTreeMap::new(),
            behind_after_s: 1_800,
            keep_days: 90,
            keep_content_days: 30,
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

    /// How long what ended is kept.
    pub(crate) fn periods(&self) -> Periods {
        Periods { deliveries: purge::period(self.keep_days), contents: purge::period(self.keep_content_days) }
    }

    /// Checks what types can't say.
    ///
    /// # Errors
    /// Slots of zero, with which nothing would ever be sent; days so few that nobody could look into what went wrong; an OAuth client of no built-in connector that uses OAuth; a
    /// public URL that is none.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.slots_per_endpoint > 0 && self.slots_per_organization > 0 && self.slots > 0,
            "[vendor_sync] slots_per_endpoint, slots_per_organization and slots must be above 0"
        );
        let days_min = purge::DAYS_MIN;
        anyhow::ensure!(
            purge::may_keep(self.keep_days) && purge::may_keep(self.keep_content_days),
            "[vendor_sync] keep_days and keep_content_days must be at least {days_min}, or 0 to keep for ever"
        );
        for name in self.oauth.keys() {
            let uses_oauth = Catalogue::built_in(name).is_some_and(|connector| connector.oauth().is_some());
            anyhow::ensure!(
                uses_oauth,
                "[vendor_sync.oauth.{name}] must be named like a built-in connector with OAuth"
            );
        }
        self.public_url().map(drop)
    }

    /// `public_url`, if there is one.
    ///
    /// # Errors
    /// It isn't the URL of a host.
    pub(crate) fn public_url(&self) -> anyhow::Result<Option<Url>> {
        if self.public_url.is_empty() {
            return Ok(None);
        }
        let url = Url::parse(&self.public_url).context("[vendor_sync] public_url")?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let fits = matches!(url.scheme(), "https" | "http") && url.has_host() && plain;
        anyhow::ensure!(fits, "[vendor_sync] public_url must be like https://sync.example.com");
        Ok(Some(url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_built_in_connector_that_uses_oauth_has_a_client_of_ours() {
        let checked = |name: &str| {
            let oauth = BTreeMap::from([(name.to_owned(), OAuthClient::default())]);
            Config { oauth, ..Config::default() }.check().map_err(|error| error.to_string())
        };
        assert_eq!(checked("mailchimp-oauth"), Ok(()));
        for name in ["their-own", "mailchimp"] {
            assert!(checked(name).expect_err("it is refused").contains(name));
        }
    }
}
