//! The gate: what a plan demands of a received checkpoint before a site's trainer works on it.

use crate::settings::Table;
use serde::{Deserialize, Serialize};

/// Largest bound that a norm may be given.
const NORM_LIMIT: f64 = 1e12;

/// The demands; a demand that is absent is not made.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Largest L2 norm of the change that one visit makes, over all weights and batch statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_max: Option<f64>,
    /// Least mean Dice of the received model on the receiving site's validation cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// How far that Dice may lie below the best one that the receiving site has signed in the round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_drop: Option<f64>,
}

impl Gate {
    /// Whether nothing is demanded; such a gate leaves no trace in a plan's bytes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the table `[gate]` of a plan.
    pub(crate) fn from_table(t: &mut Table<'_>) -> Option<Self> {
        Some(Self {
            norm_max: t.number("norm_max", f64::MIN_POSITIVE, NORM_LIMIT),
            floor: t.number("floor", 0.0, 1.0),
            max_drop: t.number("max_drop", 0.0, 1.0),
        })
    }

    /// Everything impossible about the demands, as sentences.
    pub(crate) fn problems(&self) -> Vec<String> {
        let within = |value: Option<f64>, min: f64, max: f64| {
            value.is_none_or(|value| (min..=max).contains(&value))
        };
        let mut list = Vec::new();
        if !within(self.norm_max, f64::MIN_POSITIVE, NORM_LIMIT) {
            list.push(format!("`gate.norm_max` must lie above 0 and up to {NORM_LIMIT}"));
        }
        for (key, value) in [("floor", self.floor), ("max_drop", self.max_drop)] {
            if !within(value, 0.0, 1.0) {
                list.push(format!("`gate.{key}` must lie between 0 and 1"));
            }
        }
        list
    }

    /// The least Dice that a site accepts whose best signed figure so far is `best`.
    #[must_use]
    pub fn least_dice(&self, best: Option<f64>) -> Option<f64> {
        let kept = best.zip(self.max_drop).map(|(best, drop)| (best - drop).max(0.0));
        match (self.floor, kept) {
            (Some(floor), Some(kept)) => Some(floor.max(kept)),
            (floor, kept) => floor.or(kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_demand_counts() {
        let gate = |floor, max_drop| Gate { floor, max_drop, norm_max: None };
        assert_eq!(gate(None, None).least_dice(Some(0.5)), None);
        assert_eq!(gate(None, Some(0.25)).least_dice(None), None, "nothing to compare with yet");
        assert_eq!(gate(None, Some(0.25)).least_dice(Some(0.75)), Some(0.5));
        assert_eq!(gate(None, Some(0.25)).least_dice(Some(0.125)), Some(0.0));
        assert_eq!(gate(Some(0.25), Some(0.25)).least_dice(Some(0.75)), Some(0.5));
        assert_eq!(gate(Some(0.25), Some(0.25)).least_dice(None), Some(0.25));
    }
}
