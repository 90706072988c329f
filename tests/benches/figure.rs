//! One measured number beside the limit of the machine it was measured on, and whether it is what was promised.

use serde::Serialize;

/// A figure, as it is printed: one line of JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) store: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What the machine itself does, measured in the same run; none where the goal is absolute.
    pub(crate) limit: Option<f64>,
    /// `value` as a part of `limit`.
    pub(crate) ratio: Option<f64>,
    /// In words.
    pub(crate) goal: String,
    pub(crate) ok: bool,
}

impl Figure {
    /// At least this part of what the machine does.
    pub(crate) fn share(
        name: &str,
        store: &'static str,
        value: f64,
        unit: &'static str,
        limit: f64,
        part: f64,
    ) -> Self {
        let ratio = value / limit;
        let goal = format!("at least {part:.2} of the limit");
        Self::new(name, store, value, unit, goal, ratio >= part).beside(limit)
    }

    /// At most what the machine itself needs, and this much more.
    pub(crate) fn above(
        name: &str,
        store: &'static str,
        value: f64,
        unit: &'static str,
        limit: f64,
        more: f64,
    ) -> Self {
        let goal = format!("at most {:.3} {unit}: the limit and {more} {unit}", limit + more);
        Self::new(name, store, value, unit, goal, value <= limit + more).beside(limit)
    }

    /// At most this.
    pub(crate) fn at_most(name: &str, store: &'static str, value: f64, unit: &'static str, most: f64) -> Self {
        Self::new(name, store, value, unit, format!("at most {most} {unit}"), value <= most)
    }

    /// At most `most`, which follows from what was measured without the load, `limit`, as `how` says.
    pub(crate) fn compared(
        name: &str,
        store: &'static str,
        value: f64,
        unit: &'static str,
        limit: f64,
        most: f64,
        how: &str,
    ) -> Self {
        let goal = format!("at most {most:.3} {unit}: {how}");
        Self::new(name, store, value, unit, goal, value <= most).beside(limit)
    }

    /// At least this.
    pub(crate) fn at_least(name: &str, store: &'static str, value: f64, unit: &'static str, least: f64) -> Self {
        Self::new(name, store, value, unit, format!("at least {least} {unit}"), value >= least)
    }

    fn new(name: &str, store: &'static str, value: f64, unit: &'static str, goal: String, ok: bool) -> Self {
        Self { name: name.to_owned(), store, value: rounded(value), unit, limit: None, ratio: None, goal, ok }
    }

    fn beside(self, limit: f64) -> Self {
        Self { limit: Some(rounded(limit)), ratio: Some(rounded(self.value / limit)), ..self }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The value that `percent` of them don't exceed; they must be sorted.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
