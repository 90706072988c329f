//! E-mail campaigns of a marketing account, as whoever works there sees them. How they are asked for is each vendor's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

/// One of them.
#[derive(Clone, Debug, Default)]
pub struct Campaign {
    /// What it was made with.
    pub said: Value,
    /// Its text.
    pub html: String,
    /// Whom it goes to, where that was said later.
    pub to: Option<Vec<Value>>,
    /// None: it is a draft.
    pub sent_at: Option<Timestamp>,
    /// Sent, opened, clicked, unsubscribed, bounced.
    pub figures: [u64; 5],
}

/// All of an account.
#[derive(Debug, Default)]
pub struct Campaigns(BTreeMap<String, Campaign>);

impl Campaigns {
    /// Keeps a new draft; gives its id.
    pub fn make(&mut self, said: &Value) -> String {
        let id = format!("0000{:04}", self.0.len() + 1);
        self.0.insert(id.clone(), Campaign { said: said.clone(), ..Campaign::default() });
        id
    }

    /// Somebody sends it.
    ///
    /// # Panics
    /// Without it.
    pub fn send(&mut self, id: &str, at: Timestamp, figures: [u64; 5]) {
        let campaign = self.0.get_mut(id).expect("a campaign");
        (campaign.sent_at, campaign.figures) = (Some(at), figures);
    }

    /// Somebody deletes it.
    pub fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// One by its id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Campaign> {
        self.0.get(id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Campaign> {
        self.0.get_mut(id)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Campaign> {
        self.0.values()
    }
}
