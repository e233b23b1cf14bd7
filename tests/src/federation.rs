//! Sites that trust each other, in one temporary folder.

use crate::hand::digest;
use crate::material::{PlanText, cohort};
use crate::site::Site;
use crate::{eventually, history};
use rondo::passport::{Passport, VerifiedPassport};
use rondo::trust::Roster;
use rondo_imaging::phantom::Centre;
use rondo_proto::control::{
    AddPeerRequest, ModelRequest, ProposeRoundRequest, RoundPhase, RoundView, SiteView,
    model_part::Part,
};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// How long word may take from one site to all others.
pub const SPREAD: Duration = Duration::from_secs(30);

/// Sites and the folder they live in. The sites stop before the folder goes.
#[derive(Debug)]
pub struct Federation {
    /// The sites in the order they were named.
    pub sites: Vec<Site>,
    folder: TempDir,
}

/// A folder with a short path, because sockets need one.
#[must_use]
pub fn short_folder() -> TempDir {
    tempfile::Builder::new().prefix("rondo-").tempdir().expect("a temporary folder")
}

impl Federation {
    /// Sites whose daemons run and trust each other, but have no trainer.
    pub async fn without_trainers(names: &[&str]) -> Self {
        Self::start(names, |_, _| None).await
    }

    /// Sites whose daemons run and trust each other, each with a trainer on its own tiny cohort.
    pub async fn with_trainers(names: &[&str]) -> Self {
        let centres = [Centre::Uker, Centre::Stanford, Centre::Usz];
        let mut next = centres.into_iter().cycle();
        let make = |folder: &Path, name: &str| {
            let centre = next.next().expect("a cycle has no end");
            Some(cohort(&folder.join(format!("{name}-cohort")), centre, crate::seed()))
        };
        let mut all = Self::start(names, make).await;
        for site in &mut all.sites {
            site.ready_to_train().await;
        }
        all
    }

    async fn start(
        names: &[&str],
        mut cohort: impl FnMut(&Path, &str) -> Option<std::path::PathBuf>,
    ) -> Self {
        let folder = short_folder();
        let mut sites = Vec::new();
        for name in names {
            let cohort = cohort(folder.path(), name);
            sites.push(Site::init(folder.path(), name, cohort.as_deref()));
        }
        Self::of(folder, sites).await
    }

    /// Starts sites that were made in `folder` and lets them trust each other.
    pub async fn of(folder: TempDir, sites: Vec<Site>) -> Self {
        let mut all = Self { sites, folder };
        all.sites.iter_mut().for_each(Site::start);
        all.exchange_cards().await;
        all
    }

    async fn exchange_cards(&mut self) {
        let mut views: Vec<SiteView> = Vec::new();
        for site in &mut self.sites {
            views.push(site.ready().await);
        }
        for site in &self.sites {
            for view in views.iter().filter(|v| v.site != site.name) {
                trust(site, &view.card, &view.fingerprint).await;
            }
        }
    }

    /// Where everything lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Proposes at the first site and approves everywhere. The round, ready to be started.
    pub async fn agree(&self, plan: &PlanText) -> String {
        let round = propose(&self.sites[0], &plan.toml()).await.expect("a sound plan").round;
        for site in &self.sites {
            site.round_when(&round, "the plan", SPREAD, |_| true).await;
            site.approve(&round).await.expect("approved");
        }
        for site in &self.sites {
            let approved = |view: &RoundView| view.phase() == RoundPhase::Approved;
            site.round_when(&round, "every approval", SPREAD, approved).await;
        }
        round
    }

    /// Waits until every site knows that the round is finished.
    pub async fn finished(&self, round: &str, limit: Duration) -> RoundView {
        let mut view = None;
        for site in &self.sites {
            let done = |v: &RoundView| v.phase() == RoundPhase::Finished;
            view = Some(site.round_when(round, "the end of the round", limit, done).await);
        }
        view.expect("a federation has sites")
    }

    /// Checks that every site has the same history of a round with each visit contributed once.
    pub async fn each_visit_once(&self, view: &RoundView) {
        let round = digest(&view.round);
        let first = &self.sites[0].home;
        eventually("the same statements at all sites", SPREAD, async || {
            let told = history::statements(first, round);
            let same = self.sites.iter().all(|s| history::statements(&s.home, round) == told);
            same.then_some(())
        })
        .await;
        let once: Vec<(u32, usize)> = view.visits.iter().map(|v| (v.visit, 1)).collect();
        for site in &self.sites {
            let counted: Vec<_> = history::contributions(&site.home, round).into_iter().collect();
            assert_eq!(counted, once, "contributions in the journal of {}", site.name);
            let known = site.round(&view.round).await.expect("a known round");
            assert_eq!(known.visits, view.visits, "what {} knows", site.name);
        }
    }

    /// Exports the final model from every site and checks its passport offline.
    pub async fn passport_verifies(&self, view: &RoundView) {
        let last = view.visits.last().expect("a round has visits");
        let roster = self.roster().await;
        for site in &self.sites {
            let passport = exported(site, &last.weights, &roster).await;
            assert_eq!(passport.hops().len(), view.visits.len());
            for (hop, visit) in passport.hops().iter().zip(&view.visits) {
                assert_eq!(hop.weights.object.to_string(), visit.weights);
                assert_eq!((hop.site.as_str(), hop.visit.0), (visit.site.as_str(), visit.visit));
                let counts = &hop.counts;
                assert!(counts.training_cases > 0 && counts.updates > 0, "{counts:?}");
            }
            let verified = site.verify(&last.weights).await.expect("a genuine model");
            assert_eq!(verified.hops.len(), view.visits.len());
        }
    }

    /// A roster of all sites' cards, as somebody offline would have it.
    pub async fn roster(&self) -> Roster {
        let mut cards = Vec::new();
        for site in &self.sites {
            let bytes = std::fs::read(site.home.join("card.json")).expect("a card");
            cards.push(rondo::envelope::Envelope::from_json(&bytes).expect("a card"));
        }
        Roster::of(cards).expect("genuine cards")
    }
}

/// Puts a card into a site's roster.
pub async fn trust(site: &Site, card: &[u8], fingerprint: &str) {
    let request = AddPeerRequest { card: card.to_vec(), fingerprint: fingerprint.to_owned() };
    site.control().await.add_peer(request).await.expect("a genuine card");
}

/// Proposes a plan at a site.
///
/// # Errors
/// Its refusal.
pub async fn propose(site: &Site, plan_toml: &str) -> Result<RoundView, tonic::Status> {
    let request = ProposeRoundRequest { plan_toml: plan_toml.to_owned() };
    site.control().await.propose_round(request).await.map(tonic::Response::into_inner)
}

/// Exports a model from a site and checks it as somebody offline would, with nothing but cards.
pub async fn exported(site: &Site, weights: &str, roster: &Roster) -> VerifiedPassport {
    let request = ModelRequest { weights: weights.to_owned() };
    let answer = site.control().await.export_model(request).await.expect("an export");
    let (mut passport, mut bytes) = (Vec::new(), Vec::new());
    let mut parts = answer.into_inner();
    while let Some(part) = parts.next().await {
        match part.expect("the whole export").part.expect("a part") {
            Part::Passport(part) => passport.extend(part),
            Part::Weights(part) => bytes.extend(part),
            Part::Receipts(_) | Part::Cards(_) | Part::Signature(_) => {}
        }
    }
    let verified = Passport::from_json(&passport).and_then(|p| p.verify(roster));
    let verified = verified.expect("a genuine passport");
    verified.verify_weights(&bytes).expect("the weights of the passport");
    verified
}
