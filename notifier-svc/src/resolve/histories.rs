//! Properties over random people, wishes, clocks and histories: a model of what the scheduler does with what is decided.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp, civil::time};
use proptest::prelude::*;

use super::{
    tests::{named, of_wedding, person, question},
    *,
};
use crate::{
    policy::{LIMIT, Stage, WINDOW},
    preference::{Digest, Preference, Rule},
    when::Quiet,
    workflow::find,
};

/// Something that happens.
#[derive(Debug, Clone)]
struct Happening {
    /// Minutes after the one before.
    after: i64,
    critical: bool,
}

/// A message that waits.
struct Held {
    until: Timestamp,
    how: How,
    number: usize,
    person: usize,
    channel: String,
}

/// What became of everything.
#[derive(Default)]
struct World {
    held: Vec<Held>,
    /// By person: when they were told, and whether it was urgent.
    told: BTreeMap<usize, Vec<(Timestamp, bool)>>,
    /// By happening, person and channel: how often it reached them, and how often they got a reason instead.
    reached: HashMap<(usize, usize, String), usize>,
    skipped: HashMap<(usize, usize, String), usize>,
    first_at: HashMap<usize, Timestamp>,
}

fn preferences() -> impl Strategy<Value = Preference> {
    let digest = prop_oneof![Just(Digest::Immediate), Just(Digest::Hourly), Just(Digest::Daily)];
    let quiet = proptest::option::of((0..24i8, 0..24i8));
    (digest, quiet, 0..8u8, proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York"])).prop_map(
        |(digest, quiet, off, zone)| Preference {
            digest,
            quiet: quiet.map(|(from, until)| Quiet { from: time(from, 0, 0, 0), until: time(until, 0, 0, 0) }),
            rules: if off == 0 { vec![Rule { off: true, ..Rule::default() }] } else { Vec::new() },
            time_zone: zone.to_owned(),
            ..Preference::default()
        },
    )
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = (0..12i64, 0..10u8).prop_map(|(after, critical)| Happening { after, critical: critical == 0 });
    proptest::collection::vec(one, 1..60)
}

struct Model<'a> {
    people: Vec<Person>,
    preferences: &'a [Preference],
    offered: Vec<String>,
    channels: Channels,
    world: World,
}

impl Model<'_> {
    fn circumstances(&self, now: Timestamp) -> HashMap<String, Circumstances> {
        let of = |(number, person): (usize, &Person)| {
            let told = self.world.told.get(&number).map_or(&[][..], |told| told);
            let overflow = |held: &&Held| held.person == number && held.how == How::Overflow;
            let known = Circumstances {
                preference: self.preferences[number].clone(),
                told: told.iter().map(|(at, _)| *at).filter(|at| *at > now - WINDOW).collect(),
                waits: self.world.held.iter().filter(overflow).map(|held| held.until).max(),
                ..Circumstances::default()
            };
            (person.id.clone(), known)
        };
        self.people.iter().enumerate().map(of).collect()
    }

    /// What is decided, by person and channel.
    fn decide(&self, now: Timestamp, urgency: Urgency, stage: Stage) -> Vec<(usize, String, Fate)> {
        let known = self.circumstances(now);
        let mut question = question(find("timeline_changed"), &self.offered, &self.people, &known);
        (question.now, question.urgency, question.stage) = (now, urgency, stage);
        let planned = plan(&question, &self.channels).into_iter().map(|planned| {
            let number = self.people.iter().position(|person| person.id == planned.person.id).unwrap();
            (number, planned.channel, planned.fate)
        });
        planned.collect()
    }

    fn happen(&mut self, number: usize, now: Timestamp, critical: bool) {
        let urgency = if critical { Urgency::Urgent } else { Urgency::Ordinary };
        let mut told = HashSet::new();
        for (person, channel, fate) in self.decide(now, urgency, Stage::First { settles: None }) {
            match fate {
                Fate::Send(_) => {
                    told.insert(person);
                    *self.world.reached.entry((number, person, channel)).or_default() += 1;
                    self.world.first_at.insert(number, now);
                }
                Fate::Hold { until, how, .. } => {
                    assert!(until > now && !critical);
                    self.world.held.push(Held { until, how, number, person, channel });
                }
                Fate::Skip(reason) | Fate::InRoom(reason) => {
                    assert!(!reason.is_empty());
                    *self.world.skipped.entry((number, person, channel)).or_default() += 1;
                }
            }
        }
        told.into_iter().for_each(|person| self.told(person, now, critical));
    }

    fn told(&mut self, person: usize, now: Timestamp, critical: bool) {
        self.world.told.entry(person).or_default().push((now, critical));
    }

    /// Releases what is due: each that was deferred by itself, all that is gathered as one.
    fn release(&mut self, now: Timestamp) {
        for person in 0..self.people.len() {
            let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.world.held)
                .into_iter()
                .partition(|held| held.person == person && held.until <= now);
            self.world.held = rest;
            let (alone, gathered): (Vec<_>, Vec<_>) = due.into_iter().partition(|held| held.how == How::Deferred);
            let mut batches: BTreeMap<usize, Vec<Held>> = BTreeMap::new();
            for held in alone {
                batches.entry(held.number).or_default().push(held);
            }
            let batches = batches.into_values().chain([gathered]);
            batches.for_each(|batch| self.release_together(batch, now));
        }
    }

    fn release_together(&mut self, batch: Vec<Held>, now: Timestamp) {
        let decided = self.decide(now, Urgency::Ordinary, Stage::Released);
        let mut told = None;
        for held in batch {
            let fate = decided.iter().find(|(person, channel, _)| *person == held.person && *channel == held.channel);
            match &fate.expect("they are still concerned").2 {
                Fate::Send(_) => {
                    *self.world.reached.entry((held.number, held.person, held.channel)).or_default() += 1;
                    told = Some(held.person);
                }
                Fate::Hold { until, how, .. } => {
                    assert!(*until > now);
                    let how = if *how == How::Deferred { held.how } else { *how };
                    self.world.held.push(Held { until: *until, how, ..held });
                }
                Fate::Skip(_) | Fate::InRoom(_) => {
                    *self.world.skipped.entry((held.number, held.person, held.channel)).or_default() += 1
                }
            }
        }
        if let Some(person) = told {
            self.told(person, now, false);
        }
    }

    /// Lets time pass until `until`, releasing what becomes due at its time.
    fn pass(&mut self, until: Timestamp) {
        for _ in 0..100_000 {
            let next = self.world.held.iter().map(|held| held.until).min();
            match next.filter(|next| *next <= until) {
                Some(next) => self.release(next),
                None => return,
            }
        }
        panic!("what waits never ends");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn in_any_hour_at_most_ten_and_everybody_entitled_is_told_once(
        preferences in proptest::collection::vec(preferences(), 3),
        happenings in happenings(),
        begin in 1_770_000_000..1_830_000_000i64,
    ) {
        let people = (0..3).map(|number| person(&format!("p{number}"), of_wedding())).collect();
        let mut model = Model {
            people,
            preferences: &preferences,
            offered: named(&["email", "in_app"]),
            channels: Channels::for_test(),
            world: World::default(),
        };
        let mut now = Timestamp::from_second(begin).unwrap();
        for (number, happening) in happenings.iter().enumerate() {
            now += SignedDuration::from_mins(happening.after);
            model.pass(now);
            model.happen(number, now, happening.critical);
        }
        model.pass(now + SignedDuration::from_hours(24 * 30));
        prop_assert!(model.world.held.is_empty(), "nothing waits for ever");
        for told in model.world.told.values() {
            for (at, critical) in told {
                let window = told.iter().filter(|(other, _)| *other > *at - WINDOW && other <= at).count();
                prop_assert!(*critical || window <= LIMIT || told.iter().any(|(other, urgent)| *urgent && other == at), "{window} at {at}");
            }
        }
        for (number, happening) in happenings.iter().enumerate() {
            for (person, preference) in preferences.iter().enumerate() {
                let off = preference.rules.iter().any(|rule| rule.off);
                for channel in ["email", "in_app"] {
                    let key = (number, person, channel.to_owned());
                    let reached = model.world.reached.get(&key).copied().unwrap_or(0);
                    let skipped = model.world.skipped.get(&key).copied().unwrap_or(0);
                    prop_assert_eq!(reached + skipped, 1, "told once, or not with a reason");
                    prop_assert_eq!(reached == 1, happening.critical || !off);
                }
            }
        }
    }

    #[test]
    fn what_is_critical_leaves_at_once_whatever_they_wish_and_however_often_they_were_told(
        preference in preferences(),
        earlier in proptest::collection::vec(0..3_600i64, 0..40),
        second in 1_770_000_000..1_830_000_000i64,
        emergency in any::<bool>(),
    ) {
        let now = Timestamp::from_second(second).unwrap();
        let people = [person("p", of_wedding())];
        let mut told: Vec<Timestamp> = earlier.iter().map(|seconds| now - SignedDuration::from_secs(*seconds)).collect();
        told.sort_unstable();
        let waits = Some(now + SignedDuration::from_mins(30));
        let known = HashMap::from([("p".to_owned(), Circumstances { preference, told, waits, ..Circumstances::default() })]);
        let offered = named(&["email", "in_app"]);
        let mut question = question(find("timeline_changed"), &offered, &people, &known);
        (question.now, question.urgency) = (now, if emergency { Urgency::Emergency } else { Urgency::Urgent });
        let planned = plan(&question, &Channels::for_test());
        prop_assert!(planned.iter().all(|planned| matches!(planned.fate, Fate::Send(_))), "{planned:?}");
        prop_assert_eq!(planned.len(), 2);
    }
}
