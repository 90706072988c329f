//! Which subscriptions a change concerns, without asking each of them. Pure.
//!
//! Subscriptions that ask for the same are one binding here. Each binding is found by one handhold, a part of its filter
//! or of its holder's claims that every row of its must fulfil: the one that the fewest others are found by. What a row
//! leads to is then verified whole. Equality costs the same however many bindings there are; bindings without a handhold
//! (`neq`, `like`, no filter) are asked one by one.

mod columns;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use self::columns::{Columns, Place};
use super::{claims::Predicate, filter::Filter, row::Row};

/// Every schema.
const ANY: &str = "*";

/// What kind of change a subscription asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BindingEvent {
    All,
    Insert,
    Update,
    Delete,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Insert,
    Update,
    Delete,
}

/// How a change fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The row as it is now matches; of a DELETE, as it was. Whether the holder may see an UPDATE's old row as well is
    /// for [`Predicate::allows`] to say.
    Matches,
    /// Only the row as it was matches: the UPDATE took it away. What it is now isn't the holder's to see.
    Left,
}

/// What a subscription asks for, and what its holder may see.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Binding {
    pub event: BindingEvent,
    /// `*`: every schema.
    pub schema: String,
    /// None: every table.
    pub table: Option<String>,
    pub filter: Filter,
    pub predicate: Arc<Predicate>,
}

/// One changed row.
#[derive(Debug)]
pub(crate) struct RowChange<'a> {
    pub schema: &'a str,
    pub table: &'a str,
    pub operation: Operation,
    pub old: Option<&'a Row>,
    pub new: Option<&'a Row>,
}

impl Binding {
    /// How `change` fits, if it does.
    fn fit(&self, change: &RowChange<'_>) -> Option<Fit> {
        let allowed = |row: &&Row| self.filter.matches(row) && self.predicate.allows(change.table, row);
        let (new, old) = (|| change.new.filter(allowed).is_some(), || change.old.filter(allowed).is_some());
        match (self.event, change.operation) {
            (BindingEvent::All | BindingEvent::Insert, Operation::Insert) => new().then_some(Fit::Matches),
            (BindingEvent::All | BindingEvent::Delete, Operation::Delete) => old().then_some(Fit::Matches),
            (BindingEvent::All | BindingEvent::Update, Operation::Update) if new() => Some(Fit::Matches),
            (BindingEvent::All | BindingEvent::Update, Operation::Update) => old().then_some(Fit::Left),
            _ => None,
        }
    }
}

/// Subscriptions by what they ask for; `T` names one.
#[derive(Debug)]
pub(crate) struct Index<T> {
    schemas: HashMap<String, Tables>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
    by_binding: HashMap<Arc<Binding>, u32>,
}

#[derive(Debug, Default)]
struct Tables {
    any: Columns,
    named: HashMap<String, Columns>,
}

#[derive(Debug)]
struct Slot<T> {
    binding: Arc<Binding>,
    handles: HashSet<T>,
    place: Place,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { schemas: HashMap::new(), slots: Vec::new(), free: Vec::new(), by_binding: HashMap::new() }
    }
}

impl<T: Copy + Eq + Hash> Index<T> {
    /// Adds a subscription.
    pub(crate) fn insert(&mut self, binding: &Binding, handle: T) {
        let slot = match self.by_binding.get(binding) {
            Some(slot) => *slot,
            None => self.open(binding),
        };
        if let Some(slot) = &mut self.slots[slot as usize] {
            slot.handles.insert(handle);
        }
    }

    fn open(&mut self, binding: &Binding) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("subscriptions are limited far below 4 thousand million")
        });
        let tables = self.schemas.entry(binding.schema.clone()).or_default();
        let columns = match &binding.table {
            None => &mut tables.any,
            Some(table) => tables.named.entry(table.clone()).or_default(),
        };
        let place = columns.place_of(binding);
        columns.add(&place, number);
        let binding = Arc::new(binding.clone());
        self.by_binding.insert(Arc::clone(&binding), number);
        self.slots[number as usize] = Some(Slot { binding, handles: HashSet::new(), place });
        number
    }

    /// Takes a subscription out, if it is in.
    pub(crate) fn remove(&mut self, binding: &Binding, handle: T) {
        let Some(number) = self.by_binding.get(binding).copied() else { return };
        let slot = &mut self.slots[number as usize];
        let is_last = slot.as_mut().is_some_and(|slot| slot.handles.remove(&handle) && slot.handles.is_empty());
        if let Some(Slot { place, .. }) = slot.take_if(|_| is_last) {
            self.by_binding.remove(binding);
            self.free.push(number);
            self.close(binding, &place, number);
        }
    }

    fn close(&mut self, binding: &Binding, place: &Place, number: u32) {
        let Some(tables) = self.schemas.get_mut(&binding.schema) else { return };
        match &binding.table {
            None => tables.any.remove(place, number),
            Some(table) => {
                if let Some(columns) = tables.named.get_mut(table) {
                    columns.remove(place, number);
                    if columns.is_empty() {
                        tables.named.remove(table);
                    }
                }
            }
        }
        if tables.any.is_empty() && tables.named.is_empty() {
            self.schemas.remove(&binding.schema);
        }
    }

    /// Calls `found` once for each subscription that `change` concerns.
    pub(crate) fn find(&self, change: &RowChange<'_>, mut found: impl FnMut(T, Fit)) {
        for number in self.candidates(change) {
            let Some(slot) = &self.slots[number as usize] else { continue };
            if let Some(fit) = slot.binding.fit(change) {
                slot.handles.iter().for_each(|handle| found(*handle, fit));
            }
        }
    }

    /// Slots that may fit, each once.
    fn candidates(&self, change: &RowChange<'_>) -> Vec<u32> {
        let mut candidates = Vec::new();
        for tables in [change.schema, ANY].into_iter().filter_map(|schema| self.schemas.get(schema)) {
            for columns in tables.named.get(change.table).into_iter().chain([&tables.any]) {
                columns.collect(&[change.new, change.old], &mut candidates);
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }
}

#[cfg(test)]
mod tests;
