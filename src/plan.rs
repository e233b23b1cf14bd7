//! The plan of a round: what every named site approves before anything runs.

use crate::checkpoint::Layout;
use crate::gate::Gate;
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::passport::PASSPORT_MAX_BYTES;
use crate::recipe::{Method, Recipe};
use crate::round::PassReason;
use crate::settings::{self, Problems, Table};
use crate::transfer::{CHUNK_MIN_BYTES, CHUNKS_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

mod order;

pub use order::{AbsentPolicy, Order};

/// Most sites of a round.
pub const SITES_MAX: usize = 64;
/// Most cycles of a round.
pub const CYCLES_MAX: u32 = 100;
/// Largest plan in canonical form.
pub const PLAN_MAX_BYTES: usize = 64 * 1024;
/// Size of one hop of a passport, without its chunk table.
const HOP_BYTES: u64 = 3072;
/// Size of one chunk's digest in a passport: hexadecimal, quoted, in base64.
const HOP_CHUNK_BYTES: u64 = 90;
/// Shortest time after which a plan may count a site as absent, in hours.
pub const ABSENT_HOURS_MIN: f64 = 0.001;
/// Longest such time, in hours: ten years.
pub const ABSENT_HOURS_MAX: f64 = 87_600.0;
/// Format of the canonical form.
const PLAN_VERSION: u32 = 1;

/// Why canonical bytes are not a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not readable at all.
    #[error("reading a plan: {0}")]
    Malformed(String),
    /// Readable, but not the canonical bytes of what it says.
    #[error("the plan is not in its canonical form")]
    NotCanonical,
    /// Values that no round can have.
    #[error("the plan cannot run: {}", .0.join("; "))]
    Impossible(Vec<String>),
}

/// How the model travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// Single weight transfer: each site once, in order.
    Swt,
    /// Cyclic weight transfer: the order is gone through several times.
    Cwt,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Swt => "swt",
            Self::Cwt => "cwt",
        })
    }
}

impl FromStr for Topology {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "swt" => Ok(Self::Swt),
            "cwt" => Ok(Self::Cwt),
            _ => Err("choose `swt` (each site once) or `cwt` (cycles)".to_owned()),
        }
    }
}

/// What the first visit starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// A fresh model, initialised from the plan's seed.
    Fresh,
    /// A checkpoint that the first site has in its store.
    Checkpoint(Digest),
}

/// What follows from a plan and is asked for at every hop. Working it out takes longer than checking a
/// signature, so whoever checks many hops does it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanFacts {
    /// The round that the plan is.
    pub round: RoundId,
    /// Digest of its recipe.
    pub recipe: Digest,
    /// Length of each of its checkpoints.
    pub bytes: u64,
}

/// A complete, resolved plan. Its canonical bytes are what everyone signs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    version: u32,
    /// Name for people.
    pub name: String,
    /// How the model travels.
    pub topology: Topology,
    /// Sites, in the order of their visits unless that is drawn.
    pub sites: Vec<SiteId>,
    /// Times the order is gone through; 1 for SWT.
    pub cycles: u32,
    /// What the first visit starts from.
    pub start: Start,
    /// Seed of every random draw of the round.
    pub seed: u64,
    /// How each visit trains.
    pub recipe: Recipe,
    /// Unix time at which the plan was proposed; makes a repeated plan a round of its own.
    pub proposed_at: u64,
    /// What a receiving site demands of a checkpoint.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
    /// Who comes after whom.
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
    /// What happens to a visit whose site does not take the checkpoint.
    #[serde(default, skip_serializing_if = "is_default")]
    pub absent: AbsentPolicy,
    /// After how many hours without any progress towards that site; 0 with [`AbsentPolicy::Wait`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub absent_after_hours: f64,
    /// Whether every site gets the model with the best mean validation figure too, beside the last one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub share_best: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Plan {
    /// Resolves a plan from TOML; `proposed_at` is Unix time.
    ///
    /// # Errors
    /// Every problem of the file, with lines.
    pub fn from_toml(text: &str, proposed_at: u64) -> Result<Self, Problems> {
        settings::parse("plan", text, |t| Self::from_table(t, proposed_at))
    }

    fn from_table(t: &mut Table<'_>, proposed_at: u64) -> Option<Self> {
        let name = t.text("name");
        let topology = t.parsed("topology");
        let sites = t.parsed_list("sites");
        let cycles = t.integer32("cycles", 1, CYCLES_MAX);
        let start: Option<Digest> = t.parsed("start_checkpoint");
        let seed = t.integer("seed", 0, i64::MAX as u64).unwrap_or(0);
        let order = t.parsed("order").unwrap_or_default();
        let absent = t.parsed("absent").unwrap_or_default();
        let absent_after_hours =
            t.number("absent_after_hours", ABSENT_HOURS_MIN, ABSENT_HOURS_MAX).unwrap_or(0.0);
        let share_best = t.boolean("share_best");
        let recipe = t.table("recipe", Recipe::from_table);
        let gate = t.table("gate", Gate::from_table).unwrap_or_default();
        for (key, absent) in [
            ("name", name.is_none()),
            ("topology", topology.is_none()),
            ("sites", sites.is_none()),
            ("recipe", recipe.is_none()),
            ("cycles", cycles.is_none() && topology == Some(Topology::Cwt)),
        ] {
            if absent && !t.was_given(key) {
                t.missing(key);
            }
        }
        let plan = Self {
            version: PLAN_VERSION,
            name: name?,
            topology: topology?,
            sites: sites?,
            cycles: cycles.unwrap_or(1),
            start: start.map_or(Start::Fresh, Start::Checkpoint),
            seed,
            recipe: recipe?,
            proposed_at,
            gate,
            order,
            absent,
            absent_after_hours,
            // Plans from before say nothing of it, and mean no.
            share_best: share_best.unwrap_or(true),
        };
        for problem in plan.problems() {
            t.problem(problem);
        }
        Some(plan)
    }

    /// Everything impossible about the plan, as sentences.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut list = self.recipe.problems();
        list.extend(self.gate.problems());
        if self.version != PLAN_VERSION {
            list.push(format!(
                "its format is version {}, this software reads {PLAN_VERSION}",
                self.version
            ));
        }
        if self.name.is_empty() || self.name.len() > 100 || self.name.chars().any(char::is_control)
        {
            list.push("`name` must have 1 to 100 printable characters".to_owned());
        }
        if self.sites.is_empty() || self.sites.len() > SITES_MAX {
            list.push(format!("`sites` must name 1 to {SITES_MAX} sites"));
        }
        for (i, site) in self.sites.iter().enumerate() {
            if self.sites.iter().take(i).any(|s| s == site) {
                list.push(format!("`sites` names {site} twice"));
            }
        }
        if !(1..=CYCLES_MAX).contains(&self.cycles) {
            list.push(format!("`cycles` must lie between 1 and {CYCLES_MAX}"));
        }
        if self.topology == Topology::Swt && self.cycles != 1 {
            list.push("`cycles` must be 1 with topology swt; choose cwt for more".to_owned());
        }
        let (waits, hours) = (self.absent == AbsentPolicy::Wait, self.absent_after_hours);
        if waits && hours != 0.0 {
            list.push("`absent_after_hours` means nothing with `absent = \"wait\"`; choose skip or abort, or leave it out".to_owned());
        }
        if !waits && !(ABSENT_HOURS_MIN..=ABSENT_HOURS_MAX).contains(&hours) {
            list.push(format!("`absent_after_hours` must say after how many hours, {ABSENT_HOURS_MIN} to {ABSENT_HOURS_MAX}, a site counts as absent"));
        }
        if self.order == Order::Seeded && self.sites.len() < 2 {
            list.push("`order` cannot be seeded with one site: no order would let the model travel; name two or more".to_owned());
        }
        let too_long = |chunks: u64| {
            let hop = HOP_BYTES + HOP_CHUNK_BYTES * chunks.min(CHUNKS_MAX as u64);
            u64::from(self.visit_count()).saturating_mul(hop) > PASSPORT_MAX_BYTES as u64 / 2
        };
        // Hardly any plan is long enough for its layout to matter, which takes long to work out.
        if self.recipe.architecture.is_possible()
            && too_long(u64::MAX)
            && too_long(self.layout().len() / CHUNK_MIN_BYTES)
        {
            list.push("there are so many visits that the passport would grow too large; plan several rounds".to_owned());
        }
        if matches!(self.recipe.method, Method::Single | Method::Mixed) {
            list.push(format!(
                "method {} cannot run among sites; choose tl, lwf, ewc or mas",
                self.recipe.method
            ));
        }
        list
    }

    /// The bytes that everyone signs: JSON in the order of the fields, without spaces.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// If they are not the canonical bytes of a plan that can run.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > PLAN_MAX_BYTES {
            return Err(Error::Malformed(format!("it is larger than {PLAN_MAX_BYTES} bytes")));
        }
        let plan: Self =
            serde_json::from_slice(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
        if plan.canonical() != bytes {
            return Err(Error::NotCanonical);
        }
        let problems = plan.problems();
        if problems.is_empty() { Ok(plan) } else { Err(Error::Impossible(problems)) }
    }

    /// The round that this plan is.
    #[must_use]
    pub fn round(&self) -> RoundId {
        Digest::of(&self.canonical())
    }

    /// The checkpoint that the first visit starts from; none for a fresh model.
    #[must_use]
    pub const fn start_digest(&self) -> Option<Digest> {
        match self.start {
            Start::Fresh => None,
            Start::Checkpoint(digest) => Some(digest),
        }
    }

    /// Digest of the recipe alone.
    #[must_use]
    pub fn recipe_digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(&self.recipe).unwrap_or_default())
    }

    /// The layout that every checkpoint of the round must have.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::new(&self.recipe.architecture, self.recipe.extras())
    }

    /// What every manifest of the round must repeat.
    #[must_use]
    pub fn facts(&self) -> PlanFacts {
        let (round, recipe, bytes) = (self.round(), self.recipe_digest(), self.layout().len());
        PlanFacts { round, recipe, bytes }
    }

    /// Number of visits.
    #[must_use]
    pub fn visit_count(&self) -> u32 {
        u32::try_from(self.sites.len()).unwrap_or(u32::MAX).saturating_mul(self.cycles)
    }

    /// The last visit.
    #[must_use]
    pub fn last_visit(&self) -> VisitNo {
        VisitNo(self.visit_count())
    }

    /// Whose turn a visit is; none outside the round.
    #[must_use]
    pub fn site_of(&self, visit: VisitNo) -> Option<&SiteId> {
        if visit.0 == 0 || visit > self.last_visit() || self.sites.is_empty() {
            return None;
        }
        let position = usize::try_from(visit.0 - 1).ok()? % self.sites.len();
        match self.order {
            Order::Fixed => self.sites.get(position),
            Order::Seeded => self.sites.get(*self.drawn(self.cycle_of(visit)).get(position)?),
        }
    }

    /// Whether `site` may say that `visit` is passed over, as far as the plan alone tells.
    #[must_use]
    pub fn may_pass(&self, site: &SiteId, visit: VisitNo, reason: PassReason) -> bool {
        let has = |n: u32| self.site_of(VisitNo(n)) == Some(site);
        let planned = self.site_of(visit).is_some_and(|s| s != site);
        let entitled = match reason {
            PassReason::Refused => (visit.0..=self.visit_count()).any(has),
            // After a fresh start everybody has what the first visit starts from.
            PassReason::Absent | PassReason::Lost => {
                let anywhere = self.start == Start::Fresh || reason == PassReason::Lost;
                (1..=if anywhere { self.visit_count() } else { visit.0 }).any(has)
            }
        };
        planned && entitled
    }

    /// The cycle a visit belongs to, from 1.
    #[must_use]
    pub fn cycle_of(&self, visit: VisitNo) -> u32 {
        let n = u32::try_from(self.sites.len()).unwrap_or(u32::MAX).max(1);
        visit.0.saturating_sub(1) / n + 1
    }

    /// Seconds without progress after which a site counts as absent.
    #[must_use]
    pub fn absent_after_s(&self) -> u64 {
        (self.absent_after_hours * 3600.0).ceil() as u64
    }

    /// Seed of one visit: two visits never share their draws.
    #[must_use]
    pub fn visit_seed(&self, visit: VisitNo) -> u64 {
        let digest = Digest::of(format!("{} {visit}", self.seed).as_bytes());
        digest.as_bytes().first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::checkpoint::Extras;
    use crate::envelope::Envelope;
    use crate::passport::Passport;
    use crate::trust::Roster;

    pub(crate) const THREE_SITES: &str = r#"
name = "demo"
topology = "cwt"
sites = ["uker", "stanford", "usz"]
cycles = 2
seed = 7

[recipe]
preset = "paper"
widths = [4, 6, 8, 12]
epochs = 3
"#;

    #[test]
    fn all_problems_come_together_with_lines() {
        let text = "topology = \"ring\"\nsites = [\"uker\", \"Bad Site\"]\ncycles = 0\nwat = 1\n[recipe]\nepochs = 0\nlearning_rate = \"x\"\n";
        let problems = Plan::from_toml(text, 1).unwrap_err();
        let report = problems.to_string();
        for part in [
            "`name` is missing",
            "line 1: `topology`: choose `swt`",
            "line 2: `sites`: `Bad Site` is not a site id",
            "line 3: `cycles` is 0, but must lie between 1 and 100",
            "line 4: unknown key `wat`",
            "line 6: `epochs` is 0, but must lie between 1 and 100000",
            "line 7: `learning_rate` must be a number",
        ] {
            assert!(report.contains(part), "{part} is not in:\n{report}");
        }
        let swt = THREE_SITES.replace("cwt", "swt");
        assert!(
            Plan::from_toml(&swt, 1)
                .unwrap_err()
                .to_string()
                .contains("must be 1 with topology swt")
        );
        let twice = THREE_SITES.replace("stanford", "uker");
        assert!(Plan::from_toml(&twice, 1).unwrap_err().to_string().contains("names uker twice"));
        let wide = THREE_SITES
            .replace("cycles = 2", "cycles = 100")
            .replace("[4, 6, 8, 12]", "[512, 512, 512, 512]");
        assert!(Plan::from_toml(&wide, 1).unwrap_err().to_string().contains("plan several rounds"));
        let mixed = format!("{THREE_SITES}method = \"mixed\"\n");
        assert!(Plan::from_toml(&mixed, 1).unwrap_err().to_string().contains("choose tl, lwf"));
    }

    #[test]
    fn the_example_is_a_plan() {
        let plan = Plan::from_toml(include_str!("../deploy/examples/plan.toml"), 1).unwrap();
        assert_eq!((plan.visit_count(), plan.recipe.epochs), (12, 300));
    }

    /// Made by version 0.1, before a recipe had `precision` and what follows it.
    const OLD_PASSPORT: &[u8] = include_bytes!("fixtures/0.1/passport.json");
    const OLD_CARDS: &[u8] = include_bytes!("fixtures/0.1/cards.json");

    #[test]
    fn plans_from_before_the_options_keep_their_bytes_and_signatures() {
        let passport = Passport::from_json(OLD_PASSPORT).unwrap();
        let plan = Plan::from_canonical(passport.plan.as_bytes()).unwrap();
        assert_eq!(plan.canonical(), passport.plan.as_bytes());
        let preset = Recipe::preset(plan.recipe.preset);
        let options = |r: &Recipe| {
            (
                (r.precision, r.augment_flips, r.augment_scale, r.augment_shift),
                (r.gradient_clip, r.anchor_lambda, r.importance_segments),
            )
        };
        assert_eq!(options(&plan.recipe), options(&preset));
        let cards: Vec<Envelope> = serde_json::from_slice(OLD_CARDS).unwrap();
        let verified = passport.verify(&Roster::of(cards).unwrap()).unwrap();
        assert_eq!(verified.hops().len(), 2);

        let mut newer = plan.clone();
        newer.recipe.gradient_clip = 1.0;
        let bytes = newer.canonical();
        assert!(String::from_utf8(bytes.clone()).unwrap().contains("\"gradient_clip\":1.0"));
        assert_eq!(Plan::from_canonical(&bytes), Ok(newer));
        let text = passport
            .plan
            .replace("\"validate_every\":2", "\"validate_every\":2,\"augment_flips\":false");
        assert_eq!(Plan::from_canonical(text.as_bytes()), Err(Error::NotCanonical));
    }

    #[test]
    fn new_options_are_read_and_held_to_their_bounds() {
        let with = |lines: &str| Plan::from_toml(&format!("{THREE_SITES}{lines}"), 1);
        let plan = with("method = \"mas\"\nprecision = \"bf16\"\naugment_flips = true\n").unwrap();
        assert_eq!(
            plan.recipe.extras(),
            Extras { optimizer: false, importance: Some(crate::checkpoint::Measure::Mas) }
        );
        assert_eq!(plan.recipe.anchor_lambda, 0.1);
        assert_eq!(with("method = \"ewc\"\n").unwrap().recipe.anchor_lambda, 100.0);
        let said = with("method = \"ewc\"\nanchor_lambda = 1\n").unwrap().recipe;
        assert_eq!(said.anchor_lambda, 1.0);
        assert_eq!(Plan::from_canonical(&plan.canonical()), Ok(plan.clone()));
        assert!(plan.layout().tensors().iter().any(|t| t.name == "importance.mas.fc.2.bias"));
        for (lines, word) in [
            ("augment_scale = 1.0\n", "`augment_scale` is 1, but must lie between 0 and 0.9"),
            ("precision = \"fp8\"\n", "choose one of fp32, bf16"),
            ("gradient_clip = -1\n", "`gradient_clip`"),
            ("importance_segments = 0\n", "`importance_segments`"),
            ("method = \"ewc\"\nanchor_lambda = 0\n", "choose tl"),
        ] {
            let problems = with(lines).unwrap_err().to_string();
            assert!(problems.contains(word), "{word} is not in:\n{problems}");
        }
    }

    #[test]
    fn a_gate_is_read_and_held_to_its_bounds() {
        let with = |lines: &str| Plan::from_toml(&format!("{THREE_SITES}[gate]\n{lines}"), 1);
        let bad = with("norm_max = 0\nfloor = 1.5\nmax_drop = -1\nwat = 1\n").unwrap_err();
        for part in [
            "line 13: `norm_max` is 0",
            "line 14: `floor` is 1.5",
            "line 15: `max_drop` is -1",
            "line 16: unknown key `wat`",
        ] {
            assert!(bad.to_string().contains(part), "{part} is not in:\n{bad}");
        }
        let plan = with("norm_max = 12.5\nfloor = 0.3\n").unwrap();
        let text = String::from_utf8(plan.canonical()).unwrap();
        assert!(text.contains(r#""gate":{"norm_max":12.5,"floor":0.3}"#), "{text}");
        assert_eq!(Plan::from_canonical(text.as_bytes()), Ok(plan));
        let text = text.replace("12.5", "-1.0");
        assert!(matches!(Plan::from_canonical(text.as_bytes()), Err(Error::Impossible(_))));
        let open = text.replace(r#""norm_max":-1.0,"floor":0.3"#, "");
        assert_eq!(Plan::from_canonical(open.as_bytes()), Err(Error::NotCanonical));
        assert!(!String::from_utf8(with("").unwrap().canonical()).unwrap().contains("gate"));
    }

    #[test]
    fn canonical_bytes_are_the_only_form() {
        let plan = Plan::from_toml(THREE_SITES, 1).unwrap();
        let bytes = plan.canonical();
        let spaced = String::from_utf8(bytes.clone()).unwrap().replace(',', ", ");
        assert_eq!(Plan::from_canonical(spaced.as_bytes()), Err(Error::NotCanonical));
        for cut in 0..bytes.len() {
            assert!(Plan::from_canonical(&bytes[..cut]).is_err());
        }
        assert_eq!(Plan::from_canonical(&bytes), Ok(plan.clone()));
        assert_ne!(Plan { cycles: 3, ..plan.clone() }.round(), plan.round());
    }

    #[test]
    fn visits_go_round() {
        let plan = Plan::from_toml(THREE_SITES, 1).unwrap();
        let order: Vec<_> = (1..=6).map(|v| plan.site_of(VisitNo(v)).unwrap().as_str()).collect();
        assert_eq!(order, ["uker", "stanford", "usz", "uker", "stanford", "usz"]);
        assert_eq!((plan.cycle_of(VisitNo(3)), plan.cycle_of(VisitNo(4))), (1, 2));
        assert!(plan.site_of(VisitNo(0)).is_none() && plan.site_of(VisitNo(7)).is_none());
        assert_ne!(plan.visit_seed(VisitNo(1)), plan.visit_seed(VisitNo(2)));
    }
}
