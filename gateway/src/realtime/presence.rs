//! Who is present on one channel: by key, each with what it says of itself. Pure; clients are told of changes by whoever
//! calls. It holds for one gateway process, and what a connection tracked ends with it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Presences on one channel.
const PRESENT_MAX: usize = 1_000;
/// Of what one says of itself.
pub(crate) const PAYLOAD_BYTES: usize = 16 << 10;

/// One channel's.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    present: BTreeMap<u64, Present>,
    /// Makes references that never come again.
    made: u64,
}

#[derive(Debug)]
struct Present {
    key: String,
    meta: Value,
}

impl Presence {
    /// A member says of itself what `payload` holds, instead of what it said before; the diff to tell.
    ///
    /// # Errors
    /// The channel is full.
    pub(crate) fn track(&mut self, member: u64, key: &str, payload: Map<String, Value>) -> Result<Value, &'static str> {
        if self.present.len() >= PRESENT_MAX && !self.present.contains_key(&member) {
            return Err("PresenceLimitReached: too many are present on this channel");
        }
        self.made += 1;
        let mut meta = payload;
        meta.insert("phx_ref".to_owned(), format!("{member:x}-{:x}", self.made).into());
        let joined = Present { key: key.to_owned(), meta: meta.into() };
        let joins = joined.print();
        let before = self.present.insert(member, joined);
        Ok(json!({ "joins": joins, "leaves": before.map_or_else(|| json!({}), |before| before.print()) }))
    }

    /// A member leaves, if it was there; the diff to tell.
    pub(crate) fn untrack(&mut self, member: u64) -> Option<Value> {
        let left = self.present.remove(&member)?;
        Some(json!({ "joins": {}, "leaves": left.print() }))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Everybody, by key.
    pub(crate) fn state(&self) -> Value {
        let mut keys: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for present in self.present.values() {
            keys.entry(&present.key).or_default().push(&present.meta);
        }
        keys.into_iter().map(|(key, metas)| (key.to_owned(), json!({ "metas": metas }))).collect::<Map<_, _>>().into()
    }
}

impl Present {
    fn print(&self) -> Value {
        json!({ &self.key: { "metas": [self.meta] } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(user: &str) -> Map<String, Value> {
        Map::from_iter([("user".to_owned(), user.into())])
    }

    #[test]
    fn the_state_holds_everybody_by_key_and_diffs_say_what_changed() {
        let mut presence = Presence::default();
        let first = presence.track(1, "u1", payload("alice")).expect("room");
        assert_eq!((&first["joins"]["u1"]["metas"][0]["user"], &first["leaves"]), (&json!("alice"), &json!({})));
        presence.track(2, "u1", payload("alice's phone")).expect("room");
        presence.track(3, "u2", payload("bob")).expect("room");
        assert_eq!(presence.state()["u1"]["metas"].as_array().expect("both").len(), 2);
        let left = presence.untrack(1).expect("it was there");
        assert_eq!(left["leaves"]["u1"]["metas"][0]["phx_ref"], first["joins"]["u1"]["metas"][0]["phx_ref"]);
        assert_eq!((presence.untrack(1), presence.state()["u1"]["metas"].as_array().expect("one").len()), (None, 1));
    }

    #[test]
    fn tracking_again_replaces_and_a_reference_never_comes_again() {
        let mut presence = Presence::default();
        let mut forged = payload("alice");
        forged.insert("phx_ref".to_owned(), "mine".into());
        let first = presence.track(1, "u1", forged).expect("room");
        let again = presence.track(1, "u1", payload("alice, away")).expect("room");
        assert_eq!(again["leaves"], first["joins"]);
        assert_ne!(again["joins"]["u1"]["metas"][0]["phx_ref"], first["joins"]["u1"]["metas"][0]["phx_ref"]);
        assert_ne!(first["joins"]["u1"]["metas"][0]["phx_ref"], "mine");
    }

    #[test]
    fn a_full_channel_takes_nobody_else_but_changes_of_those_present() {
        let mut presence = Presence::default();
        (0..PRESENT_MAX as u64).for_each(|member| drop(presence.track(member, "k", Map::new()).expect("room")));
        assert!(presence.track(u64::MAX, "k", Map::new()).is_err() && presence.track(0, "k", Map::new()).is_ok());
    }
}
