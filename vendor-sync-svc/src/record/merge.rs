//! What stands when sources disagree. Pure, and the same whatever the order in which updates arrive.
//!
//! Per field the latest word stands, by the source's time; at one time, the source that comes later in [`Rules::order`],
//! then the greater value as canonical JSON. Of every other source its last word is kept. A pinned field takes the words
//! of its source, and of a person, alone.
//!
//! A deletion holds if its source knew all that the others had said. If not (an edit that is newer, or that it hadn't
//! seen), the record stays and somebody is asked.
//!
//! Invariant: any order of the same updates gives the same record and the same [`losing`] values.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet},
};

use chassis::error::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Change, Deletion, Field, MOST_BYTES, MOST_FIELDS, Record, Source, Update, value};

/// Sources that a field remembers beside the one that stands; the newest.
pub(crate) const MOST_OTHERS: usize = 8;
/// How far ahead of ours a source's clock may be; a time beyond it counts as now.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// By what is decided.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) now: Timestamp,
    /// Who has the last word at one and the same time: the later in this list. Who isn't in it comes before all of it.
    pub(crate) order: Vec<Source>,
    /// Fields that one source alone decides, for this record.
    pub(crate) pins: BTreeMap<String, Source>,
}

impl Rules {
    /// No pins; WedSync after vendors, a person after all.
    pub(crate) fn at(now: Timestamp) -> Self {
        Self { now, order: vec![Source::wedsync(), Source::person()], pins: BTreeMap::new() }
    }
}

/// Why a value lost, or what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// What stands is of a later time.
    Older,
    /// Of the same time; the order of sources, or the values, decided.
    Tie,
    /// The field is pinned to another source.
    Pinned,
    /// One deleted the record, another edited it. This one asks.
    DeletedAndEdited,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Older, Self::Tie, Self::Pinned, Self::DeletedAndEdited];

    /// As the store has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Tie => "tie",
            Self::Pinned => "pinned",
            Self::DeletedAndEdited => "deleted_and_edited",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// Whether nothing but a person ends it.
    pub(crate) fn asks(self) -> bool {
        self == Self::DeletedAndEdited
    }
}

/// A value that doesn't stand though its source holds it, or a deletion that is asked about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflict {
    /// Empty: the record as a whole.
    pub(crate) field: String,
    /// What stands; none where the pinned source hasn't spoken.
    pub(crate) kept: Option<Field>,
    /// What doesn't. Of a deletion: null, when it was, and whose.
    pub(crate) losing: Field,
    pub(crate) reason: Reason,
}

/// What an update led to.
#[derive(Clone, Debug)]
pub(crate) struct Merged {
    pub(crate) record: Record,
    /// In the order of their names.
    pub(crate) changes: Vec<Change>,
    /// Those that weren't there before.
    pub(crate) conflicts: Vec<Conflict>,
}

/// The record after `update`.
///
/// # Errors
/// `Error::Invalid` for an update that breaks a limit, or a record that would.
pub(crate) fn merge(record: &Record, update: &Update, rules: &Rules) -> Result<Merged> {
    check_update(update)?;
    let mut next = record.clone();
    for (name, said) in words(update, rules.now) {
        next.others.entry(name).or_default().push(said);
    }
    let names: BTreeSet<_> = next.fields.keys().chain(next.others.keys()).cloned().collect();
    for name in &names {
        settle(&mut next, name, rules);
    }
    settle_deletion(&mut next, update, rules);
    check_record(&next)?;
    let before = losing(record, rules);
    let conflicts = losing(&next, rules).into_iter().filter(|conflict| !before.iter().any(|b| b.is_of(conflict)));
    Ok(Merged { changes: changes(record, &next), conflicts: conflicts.collect(), record: next })
}

/// What the source itself changed, by field.
fn words(update: &Update, now: Timestamp) -> impl Iterator<Item = (String, Field)> {
    update.fields.iter().filter_map(move |(name, said)| {
        let value = value::normalize(name, said);
        let over = update.base.get(name).map(|had| value::normalize(name, had));
        // A linked system that shows nothing where it was never known to have anything clears nothing.
        let had_none = over.is_none() && (update.source.is_integration() || !update.base.is_empty());
        if over.as_ref() == Some(&value) || (value.is_null() && had_none) {
            return None;
        }
        let at = time(update.times.get(name).copied().unwrap_or(update.at), &update.source, now);
        Some((name.clone(), Field { value, at, source: update.source.clone(), over }))
    })
}

/// A person's time is ours already.
fn time(at: Timestamp, source: &Source, now: Timestamp) -> Timestamp {
    if at > now + AHEAD && !source.is_person() { now } else { at }
}

/// Chooses what stands from all that was said of one field, and keeps the last word of each other source.
fn settle(record: &mut Record, name: &str, rules: &Rules) {
    let mut said = record.others.remove(name).unwrap_or_default();
    let standing = record.fields.remove(name);
    said.extend(standing.clone());
    let counted = said.iter().filter(|field| rules.counts(name, field));
    // Until its source has spoken, a pinned field stays as it was.
    let chosen = counted.max_by(|a, b| rules.compare(a, b)).cloned().or(standing);
    said.retain(|field| Some(field) != chosen.as_ref());
    let others = last_words(said, chosen.as_ref(), rules);
    if !others.is_empty() {
        record.others.insert(name.to_owned(), others);
    }
    if let Some(chosen) = chosen {
        record.fields.insert(name.to_owned(), chosen);
    }
}

/// One word per source, the newest first, without what the chosen one's own source said before.
fn last_words(mut said: Vec<Field>, chosen: Option<&Field>, rules: &Rules) -> Vec<Field> {
    said.sort_by(|a, b| rules.compare(b, a));
    let mut others: Vec<Field> = Vec::with_capacity(said.len());
    for field in said {
        let replaced = chosen.is_some_and(|c| c.source == field.source && rules.compare(&field, c).is_le());
        if !replaced && !others.iter().any(|other| other.source == field.source) {
            others.push(field);
        }
    }
    others.truncate(MOST_OTHERS);
    others
}

fn settle_deletion(record: &mut Record, update: &Update, rules: &Rules) {
    let at = time(update.at, &update.source, rules.now);
    if update.kept {
        record.kept = record.kept.max(Some(at));
    }
    if update.deleted {
        let seen = update.seen.map_or(at, |seen| seen.min(at));
        let deletion = Deletion { at, source: update.source.clone(), seen };
        let newest = [record.deletion.take(), Some(deletion)].into_iter().flatten();
        record.deletion = newest.max_by_key(|d| (d.at, rules.rank(&d.source), d.source.clone(), Reverse(d.seen)));
    }
    record.deleted = deleted(record);
}

/// Since when and by whom, if a deletion holds.
pub(super) fn deleted(record: &Record) -> Option<(Timestamp, Source)> {
    let holds = record.deletion.as_ref().filter(|d| counts(record, d) && spoken_against(record, d).next().is_none());
    holds.map(|d| (d.at, d.source.clone()))
}

/// Whether nobody has said since that the record stays.
fn counts(record: &Record, deletion: &Deletion) -> bool {
    record.kept.is_none_or(|kept| kept < deletion.at)
}

/// Edits that its source didn't know of.
fn spoken_against<'a>(record: &'a Record, deletion: &'a Deletion) -> impl Iterator<Item = &'a Field> {
    let all = record.fields.values().chain(record.others.values().flatten());
    all.filter(|field| field.at > deletion.seen && (field.source != deletion.source || field.at > deletion.at))
}

/// What doesn't stand though its source holds it, by field and source, and the deletion that is asked about.
pub(crate) fn losing(record: &Record, rules: &Rules) -> Vec<Conflict> {
    let asked = record.deletion.iter().filter(|d| counts(record, d)).filter_map(|d| asked(record, d, rules));
    let fields = record.others.iter().flat_map(|(name, others)| {
        let kept = record.fields.get(name);
        let lost = others.iter().filter(move |lost| !is_settled(lost, kept, others, rules));
        lost.map(move |lost| Conflict {
            field: name.clone(),
            kept: kept.cloned(),
            losing: lost.clone(),
            reason: rules.reason(name, lost, kept),
        })
    });
    asked.chain(fields).collect()
}

fn asked(record: &Record, deletion: &Deletion, rules: &Rules) -> Option<Conflict> {
    let newest = spoken_against(record, deletion).max_by(|a, b| rules.compare(a, b))?;
    let losing = Field { value: Value::Null, at: deletion.at, source: deletion.source.clone(), over: None };
    let (field, kept) = (String::new(), Some(newest.clone()));
    Some(Conflict { field, kept, losing, reason: Reason::DeletedAndEdited })
}

/// Whether nothing is lost: the same value stands, or whoever spoke later replaced this one knowingly.
fn is_settled(lost: &Field, kept: Option<&Field>, others: &[Field], rules: &Rules) -> bool {
    let knew = |later: &Field| later.source.is_person() || later.over.as_ref() == Some(&lost.value);
    kept.is_some_and(|kept| kept.value == lost.value)
        || kept.into_iter().chain(others).any(|later| rules.compare(later, lost).is_gt() && knew(later))
}

impl Conflict {
    /// Whether it is of the same word.
    fn is_of(&self, other: &Self) -> bool {
        self.field == other.field && self.losing == other.losing
    }
}

impl Rules {
    /// Whether a word has a say: on a pinned field its source's, or a person's.
    fn counts(&self, name: &str, field: &Field) -> bool {
        self.pins.get(name).is_none_or(|pin| field.source == *pin || field.source.is_person())
    }

    fn rank(&self, source: &Source) -> usize {
        self.order.iter().position(|named| named == source).map_or(0, |place| place + 1)
    }

    /// A total order: only words that are alike in everything are equal.
    fn compare(&self, a: &Field, b: &Field) -> Ordering {
        let key = |f: &Field| (value::canonical(&f.value), f.source.clone(), f.over.as_ref().map(value::canonical));
        let by_time = a.at.cmp(&b.at).then_with(|| self.rank(&a.source).cmp(&self.rank(&b.source)));
        by_time.then_with(|| key(a).cmp(&key(b)))
    }

    fn reason(&self, name: &str, lost: &Field, kept: Option<&Field>) -> Reason {
        match kept {
            Some(kept) if self.counts(name, lost) && kept.at == lost.at => Reason::Tie,
            Some(_) if self.counts(name, lost) => Reason::Older,
            _ => Reason::Pinned,
        }
    }
}

fn changes(old: &Record, new: &Record) -> Vec<Change> {
    let names: BTreeSet<_> = old.fields.keys().chain(new.fields.keys()).collect();
    let value = |record: &Record, name: &str| record.fields.get(name).map_or(Value::Null, |field| field.value.clone());
    let both = names.into_iter().map(|name| (name, value(old, name), value(new, name)));
    let changed = both.filter(|(_, old, new)| old != new);
    changed.map(|(name, old, new)| Change { field: name.clone(), old, new }).collect()
}

fn check_update(update: &Update) -> Result<()> {
    if update.fields.len() > MOST_FIELDS {
        return Err(Error::invalid("fields", format!("must be at most {MOST_FIELDS}")));
    }
    if let Some(name) = update.fields.keys().find(|name| !is_name(name)) {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(Error::invalid("fields", format!("{shown}: a field's name must match [a-z0-9_]{{1,64}}")));
    }
    check_bytes(update.fields.iter())
}

fn check_record(record: &Record) -> Result<()> {
    let names: BTreeSet<_> = record.fields.keys().chain(record.others.keys()).collect();
    if names.len() > MOST_FIELDS {
        return Err(Error::invalid("fields", format!("the record would have over {MOST_FIELDS}")));
    }
    check_bytes(record.fields.iter().map(|(name, field)| (name, &field.value)))
}

fn check_bytes<'a>(fields: impl Iterator<Item = (&'a String, &'a Value)>) -> Result<()> {
    let bytes: usize = fields.map(|(name, value)| name.len() + value.to_string().len()).sum();
    if bytes > MOST_BYTES { Err(Error::invalid("fields", "must be at most 64 KiB together")) } else { Ok(()) }
}

/// Whether a field may be called so.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
