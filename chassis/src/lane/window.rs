//! How many attempts of one lane may be under way at once. Pure.
//!
//! Grows by one with each success while all of it is in use, and halves with each failure: a destination that just came
//! back is met gently (slow start), one that is slow or dead holds few slots, and so does one that never needed many
//! (congestion window validation, RFC 7661).

/// The slots of one lane.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: u32,
    most: u32,
}

const AT_FIRST: u32 = 8;

impl Window {
    /// At most `most` at once.
    #[must_use]
    pub(super) fn new(most: u32) -> Self {
        let most = most.max(1);
        Self { size: AT_FIRST.min(most), most }
    }

    /// Slots now.
    #[must_use]
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// An attempt succeeded that was one of `running`.
    pub(super) fn grow(&mut self, running: u32) {
        if running >= self.size {
            self.size = (self.size + 1).min(self.most);
        }
    }

    /// An attempt failed.
    pub(super) fn shrink(&mut self) {
        self.size = (self.size / 2).max(1);
    }

    /// The destination came back: begin with one.
    pub(super) fn restart(&mut self) {
        self.size = 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_grows_only_while_all_of_it_is_in_use() {
        let mut window = Window::new(256);
        (0..1_000).for_each(|_| window.grow(AT_FIRST - 1));
        assert_eq!(window.size(), AT_FIRST);
        (0..1_000).for_each(|_| window.grow(window.size()));
        assert_eq!(window.size(), 256);
    }

    proptest! {
        #[test]
        fn there_is_always_a_slot_and_never_more_than_the_most(most in 0u32..200, results in prop::collection::vec(any::<bool>(), 0..300)) {
            let mut window = Window::new(most);
            for good in results {
                if good { window.grow(window.size()) } else { window.shrink() }
                prop_assert!((1..=most.max(1)).contains(&window.size()));
            }
        }
    }
}
