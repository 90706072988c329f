//! Who is present on one channel: by key, each with what it says of itself. Pure; clients are told of changes by whoever
//! calls. It holds for one gateway process, and what a connection tracked ends with it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Presences on one channel.
const PRESENT_MAX: usize = 1_000;
/// Of what all of them say: whoever joins is told it at once.
const ALL_BYTES: usize = 256 << 10;
/// Of what one says of itself.
pub(crate) const PAYLOAD_BYTES: usize = 16 << 10;

/// One channel's.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    present: BTreeMap<u64, Present>,
    /// Of what they say.
    bytes: usize,
    /// Makes references that never come again.
    made: u64,
}

#[derive(Debug)]
struct Present {
    key: String,
    meta: Value,
    /// As it is told.
    bytes: usize,
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
        let mut meta = payload;
        meta.insert("phx_ref".to_owned(), format!("{member:x}-{:x}", self.made).into());
        let mut joined = Present { key: key.to_owned(), meta: meta.into(), bytes: 0 };
        let joins = joined.print();
        joined.bytes = joins.to_string().len();
        let before = self.present.get(&member).map_or(0, |before| before.bytes);
        if self.bytes - before + joined.bytes > ALL_BYTES {
            return Err("PresenceLimitReached: those present on this channel say too much");
        }
        self.bytes = self.bytes - before + joined.bytes;
        self.made += 1;
        let before = self.present.insert(member, joined);
        Ok(json!({ "joins": joins, "leaves": before.map_or_else(|| json!({}), |before| before.print()) }))
    }

    /// A member leaves, if it was there; the diff to tell.
    pub(crate) fn untrack(&mut self, member: u64) -> Option<Value> {
        let left = self.present.remove(&member)?;
        self.bytes -= left.bytes;
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

    #[test]
    fn what_all_say_has_a_bound_and_who_leaves_makes_room() {
        let (mut presence, long) = (Presence::default(), || payload(&"\u{1}".repeat(2_500)));
        let fit =
            (0..PRESENT_MAX as u64).take_while(|member| presence.track(*member, "k", long()).is_ok()).count() as u64;
        assert!((10..20).contains(&fit) && presence.state().to_string().len() <= ALL_BYTES, "{fit}, as they are told");
        assert!(presence.track(0, "k", long()).is_ok(), "instead of what it said before");
        assert!(presence.untrack(1).is_some() && presence.track(fit, "k", long()).is_ok());
        (0..=fit).for_each(|member| drop(presence.untrack(member)));
        assert_eq!(presence.bytes, 0);
    }
}
