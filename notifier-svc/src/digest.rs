//! What a digest holds: of several messages about the same thing the latest, oldest first. Pure.

/// One message that is gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item<T> {
    pub(crate) channel: String,
    /// What it is about; empty: nothing that another could be about.
    pub(crate) about: String,
    /// Microseconds since the Unix epoch.
    pub(crate) created_at: i64,
    pub(crate) message: T,
}

/// A digest for one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gathered<T> {
    pub(crate) channel: String,
    /// Oldest first.
    pub(crate) holds: Vec<T>,
    /// Those that a later one says anew.
    pub(crate) stale: Vec<T>,
}

/// One digest a channel, in the channels' order.
pub(crate) fn gather<T>(mut items: Vec<Item<T>>) -> Vec<Gathered<T>> {
    items.sort_by(|a, b| (&a.channel, a.created_at).cmp(&(&b.channel, b.created_at)));
    let mut digests: Vec<Gathered<T>> = Vec::new();
    let mut said: Vec<String> = Vec::new();
    // The latest come first now.
    for item in items.into_iter().rev() {
        if digests.last().is_none_or(|digest| digest.channel != item.channel) {
            digests.push(Gathered { channel: item.channel, holds: Vec::new(), stale: Vec::new() });
            said.clear();
        }
        let digest = digests.last_mut().expect("one was just pushed");
        if !item.about.is_empty() && said.contains(&item.about) {
            digest.stale.push(item.message);
        } else {
            said.push(item.about);
            digest.holds.push(item.message);
        }
    }
    digests.iter_mut().for_each(|digest| digest.holds.reverse());
    digests.reverse();
    digests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(channel: &str, about: &str, created_at: i64) -> Item<i64> {
        Item { channel: channel.to_owned(), about: about.to_owned(), created_at, message: created_at }
    }

    #[test]
    fn of_the_same_thing_the_latest_is_told_on_each_channel() {
        let items = vec![item("sms", "g", 4), item("email", "g", 1), item("email", "", 2), item("email", "g", 3)];
        let digests = gather(items);
        let shown: Vec<_> = digests.iter().map(|d| (d.channel.as_str(), d.holds.clone(), d.stale.clone())).collect();
        assert_eq!(shown, [("email", vec![2, 3], vec![1]), ("sms", vec![4], vec![])]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            items in proptest::collection::vec((0..3u8, 0..4u8), 0..30),
        ) {
            let abouts = ["", "a", "b", "c"];
            let items: Vec<_> = items.into_iter().enumerate().map(|(at, (channel, about))| {
                item(["x", "y", "z"][usize::from(channel)], abouts[usize::from(about)], at as i64)
            }).collect();
            let digests = gather(items.clone());
            let mut all: Vec<i64> = digests.iter().flat_map(|d| d.holds.iter().chain(&d.stale).copied()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..items.len() as i64).collect::<Vec<_>>());
            for digest in &digests {
                prop_assert!(!digest.holds.is_empty() && digest.holds.is_sorted());
            }
        }
    }
}
