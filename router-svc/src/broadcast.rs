//! Messages to whoever listens now: of each organization with subscribers the latest few are kept in memory, bounded in
//! number and bytes, for each subscriber to read at its own pace. One that falls behind is told how many it lost.
//!
//! Guarantee: a sender never waits, and a message that nobody listens to costs nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use tokio::sync::watch;

use crate::{channel::resolve_alias, event::check_content};

/// Messages that one organization's slowest subscriber may be behind.
const MESSAGES_MAX: usize = 1_024;
/// Bytes of them.
const BYTES_MAX: usize = 8 << 20;
/// Bytes of a channel's name, an event's and a sender's.
const NAME_BYTES: usize = 255;

/// One message on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broadcast {
    pub(crate) channel: String,
    pub(crate) event: String,
    pub(crate) content_type: String,
    pub(crate) data: Bytes,
    pub(crate) sender: String,
}

impl Broadcast {
    /// Holds it to every limit, and names the channel that an alias stands for.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field.
    pub(crate) fn check(mut self) -> Result<Self> {
        let names = [("channel", &self.channel, 1), ("event", &self.event, 1), ("sender_id", &self.sender, 0)];
        for (field, name, least) in names {
            if !(least..=NAME_BYTES).contains(&name.len()) || name.chars().any(char::is_control) {
                let reason = format!("must be {least} to {NAME_BYTES} bytes without control characters");
                return Err(Error::invalid(field, reason));
            }
        }
        check_content(&mut self.content_type, &self.data)?;
        self.channel = resolve_alias(&self.channel).into_owned();
        Ok(self)
    }

    fn bytes(&self) -> usize {
        self.channel.len() + self.event.len() + self.sender.len() + self.data.len() + 256
    }
}

/// All organizations' messages. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Broadcasts(Arc<Mutex<HashMap<OrganizationId, Arc<Air>>>>);

/// One organization's.
#[derive(Debug)]
struct Air {
    ring: Mutex<Ring>,
    /// The number of the next message.
    next: watch::Sender<u64>,
    /// Changed while all organizations' messages are locked, so that one of those who leave is the last.
    listeners: AtomicUsize,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Arc<Broadcast>>,
    /// The number of the first that is kept, or of the next to come.
    first: u64,
    bytes: usize,
}

impl Broadcasts {
    /// Hands a message to all who listen.
    pub(crate) fn send(&self, organization: &OrganizationId, broadcast: Broadcast) {
        let air = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(organization).cloned();
        if let Some(air) = air {
            let next = air.ring.lock().unwrap_or_else(PoisonError::into_inner).push(broadcast);
            air.next.send_replace(next);
        }
    }

    /// What is sent from now on.
    pub(crate) fn listen(&self, organization: &OrganizationId) -> Listener {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let air = all.entry(organization.clone()).or_insert_with(|| {
            Arc::new(Air { ring: Mutex::default(), next: watch::Sender::new(0), listeners: AtomicUsize::new(0) })
        });
        air.listeners.fetch_add(1, Ordering::Relaxed);
        let sent = air.next.subscribe();
        let next = *sent.borrow();
        Listener { broadcasts: self.clone(), organization: organization.clone(), air: air.clone(), sent, next }
    }
}

impl Ring {
    /// Takes one in, at the cost of the oldest; gives the number of the next.
    fn push(&mut self, broadcast: Broadcast) -> u64 {
        self.bytes += broadcast.bytes();
        self.kept.push_back(Arc::new(broadcast));
        while self.kept.len() > MESSAGES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.first += 1;
        }
        self.first + self.kept.len() as u64
    }

    /// Those from `next` on, and how many before them are gone.
    fn read(&self, next: u64) -> (u64, Vec<Arc<Broadcast>>) {
        let lost = self.first.saturating_sub(next);
        let skip = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        (lost, self.kept.iter().skip(skip).cloned().collect())
    }
}

/// One subscriber's place among an organization's messages.
#[derive(Debug)]
pub(crate) struct Listener {
    broadcasts: Broadcasts,
    organization: OrganizationId,
    air: Arc<Air>,
    sent: watch::Receiver<u64>,
    next: u64,
}

impl Listener {
    /// What was sent since the last call, and how many more are lost.
    pub(crate) fn read(&mut self) -> (u64, Vec<Arc<Broadcast>>) {
        let latest = *self.sent.borrow_and_update();
        if latest == self.next {
            return (0, Vec::new());
        }
        let (lost, found) = self.air.ring.lock().unwrap_or_else(PoisonError::into_inner).read(self.next);
        self.next += lost + found.len() as u64;
        (lost, found)
    }

    /// Returns once something was sent that `read` didn't give yet.
    pub(crate) async fn wait(&mut self) {
        // The sender lives as long as this.
        drop(self.sent.wait_for(|next| *next != self.next).await);
    }
}

/// The last one to leave takes what is kept along.
impl Drop for Listener {
    fn drop(&mut self) {
        let mut all = self.broadcasts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.air.listeners.fetch_sub(1, Ordering::Relaxed) == 1 {
            all.remove(&self.organization);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(event: &str, bytes: usize) -> Broadcast {
        Broadcast {
            channel: "room".to_owned(),
            event: event.to_owned(),
            content_type: "application/octet-stream".to_owned(),
            data: vec![0; bytes].into(),
            sender: String::new(),
        }
    }

    fn organization(name: &str) -> OrganizationId {
        OrganizationId::parse(name).unwrap()
    }

    proptest! {
        /// However fast and large: what comes and what is lost add up to what was sent, in order.
        #[test]
        fn nothing_goes_missing_unsaid(steps in prop::collection::vec((1usize..600, 1usize..100_000), 1..12)) {
            let (all, organization) = (Broadcasts::default(), organization("o"));
            let mut listener = all.listen(&organization);
            let (mut sent, mut seen) = (0u64, 0u64);
            for (count, bytes) in steps {
                for _ in 0..count {
                    all.send(&organization, message(&sent.to_string(), bytes));
                    sent += 1;
                }
                let (lost, found) = listener.read();
                seen += lost;
                for broadcast in &found {
                    prop_assert_eq!(&broadcast.event, &seen.to_string());
                    seen += 1;
                }
                prop_assert_eq!(seen, sent);
                prop_assert!(found.len() <= MESSAGES_MAX && found.iter().map(|one| one.bytes()).sum::<usize>() <= BYTES_MAX);
            }
        }
    }

    #[test]
    fn the_last_to_leave_takes_the_messages_along_while_another_is_on_its_way_out() {
        let (all, organization) = (Broadcasts::default(), organization("o"));
        let (first, last) = (all.listen(&organization), all.listen(&organization));
        // It has left, but for what it dropped last.
        let leaving = first.sent.clone();
        drop(first);
        drop(last);
        assert!(all.0.lock().unwrap().is_empty());
        drop(leaving);
    }

    #[test]
    fn what_nobody_listens_to_is_not_kept() {
        let (all, a, b) = (Broadcasts::default(), organization("a"), organization("b"));
        all.send(&a, message("early", 1));
        let (mut first, mut second) = (all.listen(&a), all.listen(&a));
        all.send(&a, message("heard", 1));
        all.send(&b, message("elsewhere", 1));
        assert_eq!((first.read().1.len(), second.read().1.len(), second.read().1.len()), (1, 1, 0));
        drop(first);
        assert_eq!(all.0.lock().unwrap().len(), 1);
        drop(second);
        assert!(all.0.lock().unwrap().is_empty());
    }

    #[test]
    fn aliases_are_named_as_their_channel_and_bad_names_are_refused() {
        let named = |channel: &str| Broadcast { channel: channel.to_owned(), ..message("e", 1) };
        assert_eq!(named("supplier_7").check().unwrap().channel, "supplier:dashboard:7");
        assert_eq!(named("client-updates").check().unwrap().channel, "client-updates");
        assert_eq!(named("a room, with blanks").check().unwrap().channel, "a room, with blanks");
        for bad in ["", "a\nb", &"a".repeat(256)] {
            assert!(named(bad).check().is_err(), "{bad:?}");
        }
        assert!(Broadcast { content_type: String::new(), data: "{".into(), ..message("e", 0) }.check().is_err());
    }
}
