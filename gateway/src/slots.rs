//! How many requests are worked on at a time: of everybody, and of one address, so that whoever sends slowly from one
//! place leaves room for the rest.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::limit;

/// One address may take this part of all slots.
const SHARE: u32 = 8;

/// All slots.
pub(crate) struct Slots {
    all: u32,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: u32,
    /// Only of those that hold one, so no more of them than slots.
    by_address: HashMap<IpAddr, u32>,
}

/// One request's, until it is dropped.
pub(crate) struct Slot<'a> {
    slots: &'a Slots,
    address: IpAddr,
}

/// Whose slots are taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Everybodys,
    Addresses,
}

impl Slots {
    pub(crate) fn new(all: u32) -> Self {
        Self { all, taken: Mutex::default() }
    }

    /// # Errors
    /// There are none.
    pub(crate) fn take(&self, address: IpAddr) -> Result<Slot<'_>, Full> {
        let (mut taken, address) = (self.taken(), limit::key(address));
        if taken.all >= self.all {
            return Err(Full::Everybodys);
        }
        let own = taken.by_address.get(&address).copied().unwrap_or_default();
        if own >= (self.all / SHARE).max(1) {
            return Err(Full::Addresses);
        }
        taken.all += 1;
        taken.by_address.insert(address, own + 1);
        Ok(Slot { slots: self, address })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        taken.all -= 1;
        if let Some(own) = taken.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_its_part_and_gives_it_back() {
        let slots = Slots::new(16);
        let from = |text: &str| slots.take(text.parse().expect("an address"));
        let held = [from("2001:db8::1"), from("2001:db8::2")];
        assert_eq!(from("2001:db8::3").err(), Some(Full::Addresses), "a /64 is one");
        let others: Vec<_> = (0..14).map(|host| from(&format!("192.0.2.{}", host / 2))).collect();
        assert!(held.iter().chain(&others).all(Result::is_ok));
        assert_eq!(from("198.51.100.1").err(), Some(Full::Everybodys));
        drop(held);
        assert!(from("2001:db8::3").is_ok());
        drop(others);
        assert!(slots.taken().by_address.is_empty() && slots.taken().all == 0);
    }
}
