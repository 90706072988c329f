//! The bindings of one table, by column and value. Pure.

use std::collections::{BTreeMap, HashMap};

use super::Binding;
use crate::realtime::{
    filter::Handhold,
    row::{Literal, Row, Scalar},
};

/// Numbers of slots, in order.
type Slots = Vec<u32>;

/// Where the bindings of a table are found.
#[derive(Debug, Default)]
pub(super) struct Columns {
    equal: HashMap<Box<str>, HashMap<Scalar, Slots>>,
    /// By their lower bounds.
    from: HashMap<Box<str>, BTreeMap<Scalar, Slots>>,
    /// By their upper bounds.
    up_to: HashMap<Box<str>, BTreeMap<Scalar, Slots>>,
    /// By nothing: these are asked each time.
    rest: Slots,
}

/// Where one binding is found.
#[derive(Debug)]
pub(super) enum Place {
    /// Any of these columns has this value.
    Equal(Vec<(Box<str>, Scalar)>),
    /// The column has this value, read as any of these, or a greater one.
    From(Box<str>, Box<[Scalar]>),
    /// Or a smaller one.
    UpTo(Box<str>, Box<[Scalar]>),
    Rest,
}

impl Columns {
    /// The place for `binding`: of equalities the one that the fewest others share, else a bound, else none.
    pub(super) fn place_of(&self, binding: &Binding) -> Place {
        let mut equal: Vec<Vec<(&str, &[Literal])>> = Vec::new();
        let mut bound = Place::Rest;
        for handhold in binding.filter.handholds() {
            match handhold {
                Handhold::Equal(column, literals) => equal.push(vec![(column, literals)]),
                Handhold::From(column, literal) => bound = Place::From(column.into(), literal.readings().into()),
                Handhold::UpTo(column, literal) => bound = Place::UpTo(column.into(), literal.readings().into()),
            }
        }
        equal.extend(binding.predicate.handholds(binding.table.as_deref()));
        let cheapest = equal.iter().map(|parts| pairs(parts)).min_by_key(|pairs| self.sharing(pairs));
        cheapest.map_or(bound, Place::Equal)
    }

    /// How many others are found by one of these.
    fn sharing(&self, pairs: &[(Box<str>, Scalar)]) -> usize {
        let slots = |(column, scalar): &(Box<str>, Scalar)| Some(self.equal.get(column)?.get(scalar)?.len());
        pairs.iter().filter_map(slots).sum()
    }

    pub(super) fn add(&mut self, place: &Place, number: u32) {
        match place {
            Place::Equal(pairs) => {
                for (column, scalar) in pairs {
                    let values = self.equal.entry(column.clone()).or_default();
                    put(values.entry(scalar.clone()).or_default(), number);
                }
            }
            Place::From(column, bounds) => add_bounds(self.from.entry(column.clone()).or_default(), bounds, number),
            Place::UpTo(column, bounds) => add_bounds(self.up_to.entry(column.clone()).or_default(), bounds, number),
            Place::Rest => put(&mut self.rest, number),
        }
    }

    pub(super) fn remove(&mut self, place: &Place, number: u32) {
        match place {
            Place::Equal(pairs) => {
                for (column, scalar) in pairs {
                    let Some(values) = self.equal.get_mut(column) else { continue };
                    if values.get_mut(scalar).is_some_and(|slots| take(slots, number)) {
                        values.remove(scalar);
                    }
                    if values.is_empty() {
                        self.equal.remove(column);
                    }
                }
            }
            Place::From(column, bounds) => remove_bounds(&mut self.from, column, bounds, number),
            Place::UpTo(column, bounds) => remove_bounds(&mut self.up_to, column, bounds, number),
            Place::Rest => drop(take(&mut self.rest, number)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.equal.is_empty() && self.from.is_empty() && self.up_to.is_empty() && self.rest.is_empty()
    }

    /// Adds all slots that one of `rows` leads to; some of them more than once.
    pub(super) fn collect(&self, rows: &[Option<&Row>], candidates: &mut Slots) {
        for row in rows.iter().flatten() {
            let scalars = |column: &str| row.get(column).map_or(&[][..], |value| value.scalars());
            for (column, values) in &self.equal {
                candidates.extend(scalars(column).iter().filter_map(|scalar| values.get(scalar)).flatten());
            }
            for (column, bounds) in &self.from {
                for scalar in scalars(column) {
                    let below = bounds.range(..=scalar).rev().take_while(|(bound, _)| bound.is_like(scalar));
                    candidates.extend(below.flat_map(|(_, slots)| slots));
                }
            }
            for (column, bounds) in &self.up_to {
                for scalar in scalars(column) {
                    let above = bounds.range(scalar..).take_while(|(bound, _)| bound.is_like(scalar));
                    candidates.extend(above.flat_map(|(_, slots)| slots));
                }
            }
        }
        candidates.extend(&self.rest);
    }
}

/// Each column with each reading of its literals.
fn pairs(parts: &[(&str, &[Literal])]) -> Vec<(Box<str>, Scalar)> {
    let mut pairs = Vec::new();
    for (column, literals) in parts {
        let readings = literals.iter().flat_map(Literal::readings);
        pairs.extend(readings.map(|reading| (Box::from(*column), reading.clone())));
    }
    pairs
}

fn put(slots: &mut Slots, number: u32) {
    if let Err(at) = slots.binary_search(&number) {
        slots.insert(at, number);
    }
}

/// Whether nothing is left.
fn take(slots: &mut Slots, number: u32) -> bool {
    if let Ok(at) = slots.binary_search(&number) {
        slots.remove(at);
    }
    slots.is_empty()
}

fn add_bounds(bounds: &mut BTreeMap<Scalar, Slots>, readings: &[Scalar], number: u32) {
    for reading in readings {
        put(bounds.entry(reading.clone()).or_default(), number);
    }
}

fn remove_bounds(
    columns: &mut HashMap<Box<str>, BTreeMap<Scalar, Slots>>,
    column: &str,
    readings: &[Scalar],
    number: u32,
) {
    let Some(bounds) = columns.get_mut(column) else { return };
    for reading in readings {
        if bounds.get_mut(reading).is_some_and(|slots| take(slots, number)) {
            bounds.remove(reading);
        }
    }
    if bounds.is_empty() {
        columns.remove(column);
    }
}
