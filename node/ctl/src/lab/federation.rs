//! The round itself, driven through the same control sockets that operators use.

use super::board::Board;
use super::node::Node;
use crate::daemon::{Client, open_card};
use crate::exit::{Exit, Failure};
use crate::models::{self, Parcel, unverified};
use crate::render::follow::Follower;
use crate::render::round::progress_text;
use crate::render::short;
use rondo::passport::VerifiedPassport;
use rondo::trust::Roster;
use rondo_proto::control::{
    AddPeerRequest, ListModelsRequest, ProposeRoundRequest, RoundPhase, RoundRequest, RoundView,
    SiteView, VisitView,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};
use tokio_stream::StreamExt as _;

/// How long a plan, an approval or a final model may take to reach every site on loopback.
const SPREAD_MAX: Duration = Duration::from_secs(60);
/// How long a visit may stall before the lab gives up: daemons try again by themselves.
const STALL_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);
/// Views that wait to be looked at.
const VIEWS: usize = 64;

/// A checkpoint that a visit made, exported and verified.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) visit: u32,
    pub(crate) weights: String,
    pub(crate) bytes: u64,
    pub(crate) file: PathBuf,
    pub(crate) passport_file: PathBuf,
    pub(crate) passport: VerifiedPassport,
}

/// All sites with their operators' connections.
pub(crate) struct Federation<'a> {
    pub(crate) nodes: &'a mut [Node],
    pub(crate) board: &'a Board,
}

impl Federation<'_> {
    /// Every site adds every other by its card and fingerprint; the roster of all of them comes back.
    pub(crate) async fn exchange_cards(&self, sites: &[SiteView]) -> Result<Roster, Failure> {
        let mut cards = Vec::new();
        for site in sites {
            cards.push(open_card(&site.site, &site.card)?);
        }
        for (node, own) in self.nodes.iter().zip(sites) {
            let mut client = node.control().await?;
            for (other, (_, card)) in
                sites.iter().zip(&cards).filter(|(other, _)| other.site != own.site)
            {
                let request =
                    AddPeerRequest { card: other.card.clone(), fingerprint: card.fingerprint() };
                let attempted = format!("adding {} to the roster of {}", other.site, own.site);
                client.add_peer(request).await.map_err(|e| Failure::refused(&attempted, &e))?;
            }
        }
        self.board.say(&format!("{} sites exchanged cards and compared fingerprints", sites.len()));
        Roster::of(cards.into_iter().map(|(signed, _)| signed))
            .map_err(|e| Failure::new(Exit::BadInput, format!("putting the roster together: {e}")))
    }

    /// Proposes at the first site of the plan, approves everywhere, starts. The round's digest.
    pub(crate) async fn begin(&mut self, plan_toml: String) -> Result<String, Failure> {
        let Some(first) = self.nodes.first() else {
            return Err(Failure::new(Exit::BadInput, "the plan names no site"));
        };
        let name = first.site.clone();
        let mut proposer = first.control().await?;
        let proposed = proposer.propose_round(ProposeRoundRequest { plan_toml }).await;
        let round = proposed
            .map_err(|e| Failure::refused(&format!("proposing the plan at {name}"), &e))?
            .into_inner()
            .round;
        self.board.say(&format!("{name} proposed round {}", short(&round)));
        self.everywhere(&round, "the plan did not reach", |_| true).await?;
        for node in self.nodes.iter() {
            let attempted = format!("approving the round at {}", node.site);
            let request = RoundRequest { round: round.clone() };
            let approved = node.control().await?.approve_round(request).await;
            approved.map_err(|e| Failure::refused(&attempted, &e))?;
        }
        let all = |view: &RoundView| view.approved_by.len() == view.sites.len();
        self.everywhere(&round, "not every approval reached", all).await?;
        let started = proposer.start_round(RoundRequest { round: round.clone() }).await;
        started.map_err(|e| Failure::refused(&format!("starting the round at {name}"), &e))?;
        Ok(round)
    }

    /// Waits until what every site knows of the round satisfies `enough`.
    async fn everywhere(
        &mut self,
        round: &str,
        problem: &str,
        enough: impl Fn(&RoundView) -> bool,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        for node in self.nodes.iter_mut() {
            let mut client = node.control().await?;
            loop {
                node.alive()?;
                let request = RoundRequest { round: round.to_owned() };
                let why = match client.get_round(request).await {
                    Ok(view) if enough(view.get_ref()) => break,
                    Ok(_) => "it waits".to_owned(),
                    Err(status) => status.message().to_owned(),
                };
                if begin.elapsed() > SPREAD_MAX {
                    let after = SPREAD_MAX.as_secs();
                    return Err(
                        node.failed(&format!("lags behind: {problem} it within {after} s ({why})"))
                    );
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Follows the round at every site until every site knows that it is finished.
    pub(crate) async fn follow(&mut self, round: &str) -> Result<RoundView, Failure> {
        let (send, mut views) = mpsc::channel(VIEWS);
        let mut watchers = JoinSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let client = node.control().await?;
            watchers.spawn(watch(index, client, round.to_owned(), send.clone()));
        }
        drop(send);
        let mut follower = Follower::default();
        let mut finished: BTreeMap<usize, RoundView> = BTreeMap::new();
        let mut stalled: BTreeMap<u32, (String, Instant)> = BTreeMap::new();
        let mut beat = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                seen = views.recv() => {
                    let Some((index, seen)) = seen else { break };
                    let view = match seen {
                        Ok(view) => view,
                        Err(why) => return Err(self.lost(index, &why).await),
                    };
                    for text in follower.observe(&view) {
                        self.board.say(&text);
                    }
                    if let Some(progress) = follower.running() {
                        self.board.now(&format!("visit {}: {}", progress.visit, progress_text(progress)));
                    }
                    note_stalls(&mut stalled, &view.visits);
                    if view.phase() == RoundPhase::Aborted {
                        let text = format!("following the round: {} aborted it", view.aborted_by.join(", "));
                        return Err(Failure::new(Exit::RoundUnfinished, text));
                    }
                    if view.phase() == RoundPhase::Finished {
                        finished.insert(index, view);
                        if finished.len() == self.nodes.len() {
                            break;
                        }
                    }
                }
                _ = beat.tick() => {
                    for node in self.nodes.iter_mut() {
                        node.alive()?;
                    }
                    let long = stalled.iter().find(|(_, (_, since))| since.elapsed() > STALL_MAX);
                    if let Some((visit, (what, _))) = long {
                        return Err(self.stalled(*visit, what));
                    }
                }
            }
        }
        self.board.say("the round is finished at every site");
        finished.into_values().next().ok_or_else(|| {
            Failure::new(Exit::RoundUnfinished, "following the round: no site told its end")
        })
    }

    /// A site that does not tell any more: perhaps its daemon has ended.
    async fn lost(&mut self, index: usize, why: &str) -> Failure {
        // The stream may end a moment before the process is seen to have ended.
        sleep(POLL).await;
        match self.nodes.get_mut(index) {
            Some(node) => match node.alive() {
                Err(ended) => ended,
                Ok(()) => node.failed(&format!("does not tell of the round any more: {why}")),
            },
            None => Failure::new(Exit::Internal, why),
        }
    }

    fn stalled(&self, visit: u32, what: &str) -> Failure {
        let site = what.split(':').next().unwrap_or_default();
        let text =
            format!("has stalled in visit {visit} for more than {} s: {what}", STALL_MAX.as_secs());
        match self.nodes.iter().find(|node| node.site.as_str() == site) {
            Some(node) => node.failed(&text),
            None => Failure::new(Exit::RoundUnfinished, format!("the round {text}")),
        }
    }

    /// Exports the checkpoint of each visit from the site that made it, and verifies it.
    pub(crate) async fn export(
        &self,
        round: &RoundView,
        roster: &Roster,
        folder: &std::path::Path,
    ) -> Result<Vec<Made>, Failure> {
        let mut made = Vec::new();
        for visit in &round.visits {
            let node =
                self.nodes.iter().find(|n| n.site.as_str() == visit.site).ok_or_else(|| {
                    Failure::new(
                        Exit::Internal,
                        format!("visit {} is of no site of the lab", visit.visit),
                    )
                })?;
            let parcel = models::fetch(&mut node.control().await?, &visit.weights).await?;
            made.push(keep(visit, &parcel, roster, folder)?);
        }
        self.board.say(&format!("{} checkpoints exported, every passport verified", made.len()));
        Ok(made)
    }

    /// Waits until every site holds the checkpoint; the sites in order.
    pub(crate) async fn held_everywhere(&mut self, weights: &str) -> Result<(), Failure> {
        let begin = Instant::now();
        for node in self.nodes.iter_mut() {
            let mut client = node.control().await?;
            loop {
                node.alive()?;
                let attempted = format!("listing the models of {}", node.site);
                let models = client.list_models(ListModelsRequest {}).await;
                let models =
                    models.map_err(|e| Failure::refused(&attempted, &e))?.into_inner().models;
                if models.iter().any(|m| m.weights == weights) {
                    break;
                }
                if begin.elapsed() > SPREAD_MAX {
                    let what = format!("did not get the final checkpoint {}", short(weights));
                    return Err(node.failed(&what));
                }
                sleep(POLL).await;
            }
        }
        self.board.say(&format!("every site holds the final checkpoint {}", short(weights)));
        Ok(())
    }
}

fn keep(
    visit: &VisitView,
    parcel: &Parcel,
    roster: &Roster,
    folder: &std::path::Path,
) -> Result<Made, Failure> {
    let what = format!("the checkpoint of visit {} from {}", visit.visit, visit.site);
    let passport = models::verify(parcel, roster).map_err(|e| unverified(&what, &e))?;
    if passport.weights().to_string() != visit.weights {
        let text = format!("exporting {what}: another checkpoint came");
        return Err(Failure::new(Exit::Unverified, text));
    }
    let (file, passport_file) =
        models::write(&folder.join(format!("visit-{}", visit.visit)), parcel)?;
    Ok(Made {
        visit: visit.visit,
        weights: visit.weights.clone(),
        bytes: parcel.weights.len() as u64,
        file,
        passport_file,
        passport,
    })
}

/// Remembers since when each visit stalls.
fn note_stalls(stalled: &mut BTreeMap<u32, (String, Instant)>, visits: &[VisitView]) {
    for visit in visits {
        if visit.stalled.is_empty() {
            stalled.remove(&visit.visit);
        } else {
            let what = format!("{}: {}", visit.site, visit.stalled);
            stalled.entry(visit.visit).or_insert_with(|| (what, Instant::now()));
        }
    }
}

type Seen = (usize, Result<RoundView, String>);

/// Hands every view of one site on until the site or the lab ends.
async fn watch(index: usize, mut client: Client, round: String, send: mpsc::Sender<Seen>) {
    let ended = match client.watch_round(RoundRequest { round }).await {
        Ok(stream) => {
            let mut views = stream.into_inner();
            loop {
                match views.next().await {
                    Some(Ok(view)) => {
                        let over =
                            matches!(view.phase(), RoundPhase::Finished | RoundPhase::Aborted);
                        if send.send((index, Ok(view))).await.is_err() || over {
                            return;
                        }
                    }
                    Some(Err(status)) => break status.message().to_owned(),
                    None => break "its stream ended".to_owned(),
                }
            }
        }
        Err(status) => status.message().to_owned(),
    };
    let _ = send.send((index, Err(ended))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_forgotten_when_it_ends() {
        let mut stalled = BTreeMap::new();
        let mut visit = VisitView {
            visit: 2,
            site: "usz".into(),
            stalled: "cohort".into(),
            ..Default::default()
        };
        note_stalls(&mut stalled, std::slice::from_ref(&visit));
        assert_eq!(stalled.get(&2).map(|(what, _)| what.as_str()), Some("usz: cohort"));
        visit.stalled.clear();
        note_stalls(&mut stalled, &[visit]);
        assert!(stalled.is_empty());
    }
}
