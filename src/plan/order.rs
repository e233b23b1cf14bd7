//! Who comes after whom, and what happens when one does not come.

use super::Plan;
use crate::ids::Digest;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Who comes after whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// As `sites` says, in every cycle.
    #[default]
    Fixed,
    /// Drawn for every cycle from the plan's seed.
    Seeded,
}

impl FromStr for Order {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" => Ok(Self::Fixed),
            "seeded" => Ok(Self::Seeded),
            _ => Err("choose `fixed` (as listed) or `seeded` (drawn for every cycle)".to_owned()),
        }
    }
}

/// What happens to a visit whose site does not take the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AbsentPolicy {
    /// It is waited for, for ever.
    #[default]
    Wait,
    /// It is passed over after the plan's deadline.
    Skip,
    /// The round is aborted after the plan's deadline.
    Abort,
}

impl FromStr for AbsentPolicy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wait" => Ok(Self::Wait),
            "skip" => Ok(Self::Skip),
            "abort" => Ok(Self::Abort),
            _ => Err("choose `wait` (for ever), `skip` or `abort`".to_owned()),
        }
    }
}

impl Plan {
    /// The sites' places in `sites` in the order of a cycle: no site trains twice in a row. The first
    /// two of a cycle change places for that, so its last one is as it was drawn; two sites alone keep
    /// the order of the first cycle.
    pub(super) fn drawn(&self, cycle: u32) -> Vec<usize> {
        let mut order = self.shuffled(if self.sites.len() == 2 { 1 } else { cycle });
        let before = cycle.checked_sub(1).filter(|c| *c > 0 && self.sites.len() > 2);
        let last = before.and_then(|c| self.shuffled(c).last().copied());
        if last.is_some() && last == order.first().copied() {
            order.swap(0, 1);
        }
        order
    }

    /// Fisher and Yates' shuffle; its draws are the digests of seed, cycle and place.
    fn shuffled(&self, cycle: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.sites.len()).collect();
        for i in (1..order.len()).rev() {
            let digest = Digest::of(format!("{} order {cycle} {i}", self.seed).as_bytes());
            let draw = digest.as_bytes().first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            order.swap(i, usize::try_from(draw % (i as u64 + 1)).unwrap_or(0));
        }
        order
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::THREE_SITES;
    use super::*;
    use crate::ids::{SiteId, VisitNo};

    #[test]
    fn a_drawn_order_gives_every_site_a_visit_in_each_cycle_and_none_two_in_a_row() {
        let with = |lines: &str| {
            Plan::from_toml(
                &THREE_SITES.replace("seed = 7", lines).replace("cycles = 2", "cycles = 9"),
                1,
            )
        };
        for (lines, word) in [
            ("order = \"random\"", "`order`: choose `fixed`"),
            ("absent = \"later\"", "`absent`: choose `wait`"),
            ("absent = \"skip\"", "`absent_after_hours` must say"),
            ("absent_after_hours = 3", "means nothing with"),
            ("absent = \"abort\"\nabsent_after_hours = 0", "must lie between 0.001"),
        ] {
            let problems = with(lines).unwrap_err().to_string();
            assert!(problems.contains(word), "{word} is not in:\n{problems}");
        }
        let alone = THREE_SITES.replace("\"uker\", \"stanford\", \"usz\"", "\"uker\"");
        let alone = Plan::from_toml(&alone.replace("seed = 7", "order = \"seeded\""), 1);
        assert!(alone.unwrap_err().to_string().contains("no order would let the model travel"));

        let fixed = with("seed = 7").unwrap();
        let text = String::from_utf8(fixed.canonical()).unwrap();
        assert!(!text.contains("order") && !text.contains("absent"), "{text}");
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let plan = with(&format!("seed = {seed}\norder = \"seeded\"")).unwrap();
            assert_eq!(Plan::from_canonical(&plan.canonical()), Ok(plan.clone()));
            let order: Vec<_> =
                (1..=27).map(|v| plan.site_of(VisitNo(v)).unwrap().clone()).collect();
            assert!(order.windows(2).all(|w| w[0] != w[1]), "seed {seed}: {order:?}");
            for cycle in order.chunks(3) {
                let mut sites = cycle.to_vec();
                sites.sort();
                assert_eq!(
                    sites.iter().map(SiteId::as_str).collect::<Vec<_>>(),
                    ["stanford", "uker", "usz"]
                );
            }
            orders.insert(order);
        }
        assert!(orders.len() > 45, "{} orders", orders.len());
        let two = THREE_SITES
            .replace("\"stanford\", ", "")
            .replace("seed = 7", "seed = 3\norder = \"seeded\"");
        let two = Plan::from_toml(&two, 1).unwrap();
        assert_eq!(two.site_of(VisitNo(1)), two.site_of(VisitNo(3)));
        assert_ne!(two.site_of(VisitNo(1)), two.site_of(VisitNo(2)));
    }
}
