//! `policy.toml`: what the site itself lets out, whatever a plan says. Without the file a site lets out
//! what the plans ask for that it approved.

use rondo::checkpoint::Extras;
use rondo::ids::{RoundId, SiteId};
use rondo::plan::{Plan, Start};
use rondo::privacy::Cost;
use rondo::settings::{self, Problems, Table};
use std::io;
use std::path::{Path, PathBuf};

/// Name of the policy in a site's home folder.
pub const FILE: &str = "policy.toml";
/// Largest checkpoint that a rule may name, in MiB.
const SIZE_MAX_MIB: u32 = 1024 * 1024;
/// Most bandwidth that can be said, in Mbit/s.
const RATE_MAX_MBIT_S: u32 = 100_000;
/// Largest clip norm.
const CLIP_MAX: f64 = 1e12;
/// Noise in clip norms: below the least one ε has no meaning, above the largest no model is left.
const NOISE: (f64, f64) = (0.01, 1e6);
/// Bounds of δ; it should be far below one over the number of a site's cases.
const DELTA: (f64, f64) = (1e-15, 0.01);
/// Largest ε; what protects nothing should not look as if it did.
const EPSILON_MAX: f64 = 1000.0;

/// Why the policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is there and cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something impossible.
    #[error("{}: {problems}", path.display())]
    Problems {
        /// The file.
        path: PathBuf,
        /// All of it.
        problems: Problems,
    },
}

/// What may leave this site. The default has no rule of its own.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// Sites that weights may go to; all of a round if absent.
    peers: Option<Vec<SiteId>>,
    /// Rounds that weights may leave for; every approved one if absent.
    rounds: Option<Vec<RoundId>>,
    /// Beginnings of the names of tensors that may leave; all of the plan's layout if absent.
    tensors: Option<Vec<String>>,
    /// Largest checkpoint, in MiB.
    size_max_mib: Option<u32>,
    /// Most that weights may take of the line to any peer, in 10⁶ bits a second.
    pub rate_mbit_s: Option<u32>,
    /// Whether a result waits for an operator's word.
    pub hold: bool,
    /// What is done to the update.
    pub filter: Option<Filter>,
}

/// What is done to the update of a visit before it is signed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// Largest L2 norm; a larger update is scaled down to it.
    pub clip: f64,
    /// Gaussian noise on top.
    pub noise: Option<Noise>,
}

/// Gaussian noise and what it may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// Standard deviation in clip norms.
    pub multiplier: f64,
    /// The δ at which ε is told.
    pub delta: f64,
    /// Most that all releases of this site may cost together.
    pub epsilon_max: f64,
}

impl Noise {
    /// What one release costs.
    #[must_use]
    pub fn cost(&self) -> Cost {
        Cost::gaussian(self.multiplier)
    }
}

impl Policy {
    /// Reads `policy.toml` in `home`; no file, no rules.
    ///
    /// # Errors
    /// If it cannot be read, or all its problems with lines.
    pub fn load(home: &Path) -> Result<Self, Error> {
        let path = home.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|problems| Error::Problems { path, problems }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Resolves the text of a policy.
    ///
    /// # Errors
    /// All its problems.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        settings::parse("policy", text, |t| {
            Some(Self {
                peers: t.parsed_list("peers"),
                rounds: t.parsed_list("rounds"),
                tensors: t.parsed_list("tensors"),
                size_max_mib: t.integer32("size_max_mib", 1, SIZE_MAX_MIB),
                rate_mbit_s: t.integer32("rate_mbit_s", 1, RATE_MAX_MBIT_S),
                hold: t.boolean("hold").unwrap_or_default(),
                filter: t.table("update", filter),
            })
        })
    }

    /// Why the weights of `plan` may not leave `own`, as sentences; none if they may. A plan that is
    /// only proposed has no round yet that a rule could name.
    #[must_use]
    pub fn objections(&self, plan: &Plan, own: &SiteId, round: Option<RoundId>) -> Vec<String> {
        let mut list = self.bars(plan, plan.sites.iter().filter(|site| *site != own), round);
        if self.filter.is_some() {
            if plan.recipe.extras() != Extras::NONE {
                list.push(
                    "an update can be filtered only where nothing travels beside the weights: choose method tl or lwf, and optimizer_on_arrival = \"reset\"".to_owned(),
                );
            }
            if plan.start == Start::Fresh && plan.sites.first() == Some(own) {
                list.push(
                    "there is no update to filter where this site begins with a fresh model: name a start_checkpoint, or let another site begin".to_owned(),
                );
            }
        }
        list
    }

    /// Why no weights of `plan` may go to `sites`, as sentences.
    pub fn bars<'s>(
        &self,
        plan: &Plan,
        sites: impl IntoIterator<Item = &'s SiteId>,
        round: Option<RoundId>,
    ) -> Vec<String> {
        let mut list = Vec::new();
        if let Some((round, rounds)) = round.zip(self.rounds.as_ref())
            && !rounds.contains(&round)
        {
            list.push(format!("`rounds` does not name {round}"));
        }
        let lets = |site: &SiteId| self.peers.as_ref().is_none_or(|peers| peers.contains(site));
        for site in sites.into_iter().filter(|site| !lets(site)) {
            list.push(format!("`peers` does not name {site}"));
        }
        let layout = plan.layout();
        if let Some(tensors) = &self.tensors {
            let lets = |name: &str| tensors.iter().any(|start| name.starts_with(start));
            if let Some(tensor) = layout.tensors().iter().find(|tensor| !lets(&tensor.name)) {
                list.push(format!("`tensors` does not let out `{}`", tensor.name));
            }
        }
        if let Some(mib) = self.size_max_mib
            && layout.len() > u64::from(mib) << 20
        {
            list.push(format!(
                "its checkpoints have {} bytes, and `size_max_mib` is {mib}",
                layout.len()
            ));
        }
        list
    }

    /// The noise on every update, if there is any.
    #[must_use]
    pub fn noise(&self) -> Option<Noise> {
        self.filter.and_then(|filter| filter.noise)
    }
}

fn filter(t: &mut Table<'_>) -> Option<Filter> {
    let clip = t.number("clip", f64::MIN_POSITIVE, CLIP_MAX);
    if !t.was_given("clip") {
        t.missing("clip");
    }
    let multiplier = t.number("noise_multiplier", NOISE.0, NOISE.1);
    let delta = t.number("delta", DELTA.0, DELTA.1);
    let epsilon_max = t.number("epsilon_max", f64::MIN_POSITIVE, EPSILON_MAX);
    let of_noise = ["noise_multiplier", "delta", "epsilon_max"];
    if of_noise.iter().any(|key| t.was_given(key)) {
        for key in of_noise {
            if !t.was_given(key) {
                t.missing(key);
            }
        }
    }
    let noise = multiplier.zip(delta).zip(epsilon_max);
    let noise =
        noise.map(|((multiplier, delta), epsilon_max)| Noise { multiplier, delta, epsilon_max });
    Some(Filter { clip: clip?, noise })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PLAN: &str = include_str!("../../deploy/examples/plan.toml");

    #[test]
    fn problems_come_together() {
        let text = "peers = [\"Bad Site\"]\nrounds = [\"abc\"]\nhold = 1\nwat = 2\n[update]\nnoise_multiplier = 0\ndelta = 0.5\n";
        let report = Policy::parse(text).unwrap_err().to_string();
        for part in [
            "line 1: `peers`",
            "line 2: `rounds`",
            "line 3: `hold` must be true or false",
            "line 4: unknown key `wat`",
            "line 6: `noise_multiplier` is 0",
            "line 7: `delta` is 0.5",
            "`clip` is missing",
            "`epsilon_max` is missing",
        ] {
            assert!(report.contains(part), "{part} is not in:\n{report}");
        }
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Policy::load(folder.path()).unwrap(), Policy::default());
        std::fs::create_dir(folder.path().join(FILE)).unwrap();
        assert!(matches!(Policy::load(folder.path()), Err(Error::Read { .. })));
    }

    #[test]
    fn what_a_plan_asks_for_is_held_against_every_rule() {
        let plan = Plan::from_toml(PLAN, 1).unwrap();
        let own: SiteId = "uker".parse().unwrap();
        let object = |text: &str| {
            Policy::parse(text).unwrap().objections(&plan, &own, Some(plan.round())).join("\n")
        };
        assert_eq!(object(""), "");
        let rounds = format!("rounds = [\"{}\"]\n", plan.round());
        assert_eq!(object(&format!("{rounds}peers = [\"usz\", \"stanford\"]\n")), "");
        assert_eq!(object("tensors = [\"branch\", \"fc.\"]\nsize_max_mib = 1024\n"), "");
        assert_eq!(object("peers = [\"usz\"]"), "`peers` does not name stanford");
        let other = format!("rounds = [\"{}\"]", "0".repeat(64));
        assert!(object(&other).contains("`rounds` does not name"));
        let proposed = Policy::parse(&other).unwrap().objections(&plan, &own, None);
        assert!(proposed.is_empty(), "{proposed:?}");
        assert!(object("tensors = [\"branch1\"]").contains("does not let out `branch2."));
        assert!(object("size_max_mib = 1").contains("`size_max_mib` is 1"));
        let clip = "[update]\nclip = 1\n";
        assert!(object(clip).contains("name a start_checkpoint"));
        let clip = Policy::parse(clip).unwrap();
        let usz: SiteId = "usz".parse().unwrap();
        assert!(clip.objections(&plan, &usz, None).is_empty());
        let mut plan = plan;
        plan.recipe.method = rondo::recipe::Method::Ewc;
        assert!(clip.objections(&plan, &usz, None)[0].contains("choose method tl or lwf"));
    }

    #[test]
    fn the_example_says_everything() {
        let text = include_str!("../../deploy/examples/policy.toml");
        let policy = Policy::parse(text).unwrap();
        assert!(policy.hold && policy.noise().is_some() && policy.rate_mbit_s.is_some());
        assert!(policy.peers.is_some() && policy.rounds.is_some() && policy.tensors.is_some());
        assert!(policy.size_max_mib.is_some());
    }
}
