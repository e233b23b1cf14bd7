//! What the site's own operator may ask, over a unix socket that only that user can open.

use super::models::{receipt_parts, weights_part};
use super::refused;
use crate::audit::Audit;
use crate::boundary::FileAccess;
use crate::contacts::{Contacts, Reached, reach};
use crate::daemon::{self, Daemon, to_the_end, unix_now};
use crate::expiry;
use crate::greeting::Greeter;
use crate::identity::{VALID_DAYS, VALID_DAYS_MAX};
use crate::outbound::{Outbound, book};
use crate::pace::Paces;
use crate::reason::{Count, Reason, Refusals};
use crate::renewal::{self, Renewal, Step};
use crate::retention;
use crate::store::{self, Store, Stored};
use crate::trainer::TrainerHub;
use rondo::audit::What;
use rondo::envelope::Envelope;
use rondo::ids::{Digest, RoundId, SiteId, VisitNo};
use rondo::passport::{Passport, VerifiedPassport};
use rondo::plan::Plan;
use rondo::round::{Effect, Event, Imported, ReceiptBody, Refusal, SiteState};
use rondo::trust::{self, Peer, SiteCard};
use rondo_proto::control::control_server::Control;
use rondo_proto::control::{
    AddPeerRequest, CheckStoreRequest, GetSiteRequest, ListModelsRequest, ListPeersRequest,
    ListRoundsRequest, ModelList, ModelPart, ModelRequest, ModelView, PeerList, PeerRequest,
    PeerView, PingView, ProposeRoundRequest, RecoverRequest, RefusalView,
    ReleaseContributionRequest, RenewSiteRequest, RenewalStep, RenewalView, RoundList,
    RoundRequest, RoundView, SiteView, StoreReport,
};
use rondo_proto::convert::{hop_view, round_view};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status, Streaming};

/// Bytes of weights in one message of an export.
pub(super) const PART_BYTES: usize = 256 * 1024;
/// Messages between the disk and the operator, in either direction.
pub(super) const PARTS_AHEAD: usize = 8;
/// Fewest digits of a digest that name it.
const PREFIX_MIN: usize = 6;
/// Progress is shown at most this often.
const WATCH_PACE: Duration = Duration::from_millis(250);

/// The control service of a site.
#[derive(Clone)]
pub struct ControlService {
    /// Its state.
    pub daemon: Daemon,
    /// Its checkpoints.
    pub store: Store,
    /// Its trainer.
    pub hub: TrainerHub,
    /// When peers were last reached.
    pub contacts: Contacts,
    /// Greets peers; has the site's own card.
    pub greeter: Greeter,
    /// Renews the site's own keys and card.
    pub renewal: Renewal,
    /// What the kernel holds this daemon to.
    pub file_access: FileAccess,
    /// How fast and when weights may flow.
    pub paces: Paces,
    /// What was refused to peers.
    pub refusals: Refusals,
    /// Where it is written down who did what.
    pub audit: Audit,
    /// What is held back, and the site's policy.
    pub outbound: Outbound,
}

impl ControlService {
    fn view(&self, state: &SiteState, id: RoundId) -> Result<RoundView, Status> {
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let mut view = round_view(id, round);
        view.progress = self.hub.progress(id);
        Ok(view)
    }

    /// Does `work`, and writes down that an operator did `what`, even if that one goes away meanwhile.
    async fn commit(
        &self,
        whom: Option<UdsConnectInfo>,
        what: What,
        work: impl Future<Output = Result<(), daemon::Error>> + Send + 'static,
    ) -> Result<(), Status> {
        let audit = self.audit.clone();
        let done = to_the_end(async move {
            work.await?;
            audit.operator(whom, what).await;
            Ok::<_, daemon::Error>(())
        });
        Ok(done.await??)
    }

    async fn tell(
        &self,
        request: Request<RoundRequest>,
        body: ReceiptBody,
        what: impl FnOnce(RoundId) -> What,
    ) -> Result<Response<RoundView>, Status> {
        let whom = whom(&request);
        let id = find_round(&self.daemon.state(), &request.into_inner().round)?;
        let own = self.daemon.site().clone();
        let state = self.daemon.state();
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let done = match &body {
            ReceiptBody::Approved => round.approvals.contains_key(&own),
            ReceiptBody::Started => round.started,
            ReceiptBody::Paused => round.paused.contains(&own),
            ReceiptBody::Aborted => round.aborted.contains(&own),
            _ => false,
        };
        if body == ReceiptBody::Approved && !done {
            self.let_out(&round.plan, Some(id))?;
        }
        if !done {
            let daemon = self.daemon.clone();
            let told = async move { daemon.tell(id, body).await.map(drop) };
            self.commit(whom, what(id), told).await?;
        }
        Ok(Response::new(self.view(&self.daemon.state(), id)?))
    }

    /// Refuses a plan whose weights the site's own policy does not let out.
    fn let_out(&self, plan: &Plan, round: Option<RoundId>) -> Result<(), Status> {
        let objections = self.outbound.policy().objections(plan, self.daemon.site(), round);
        if objections.is_empty() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "the policy of this site (policy.toml) does not let out what the plan asks for: {}",
            objections.join("; ")
        )))
    }

    fn peer_view(&self, peer: &Peer) -> PeerView {
        let card = &peer.card;
        let contact = self.contacts.of(&card.site);
        PeerView {
            site: card.site.to_string(),
            name: card.name.clone(),
            fingerprint: card.fingerprint(),
            endpoints: card.endpoints.clone(),
            valid_until: card.valid_until,
            revoked: peer.revoked,
            last_contact: contact.last,
            problem: contact.problem,
            card: peer.signed.to_json(),
            warnings: if peer.revoked { Vec::new() } else { expiry::warnings(card, unix_now()) },
            waiting: self.waiting(card).unwrap_or_default(),
            refusals: self.refusals.of(Some(&card.site)).into_iter().map(refusal_view).collect(),
        }
    }

    /// What waits for a peer though nothing failed.
    fn waiting(&self, peer: &SiteCard) -> Option<String> {
        let effects = self.daemon.state().effects();
        let receipts = effects
            .iter()
            .any(|e| matches!(e, Effect::DeliverReceipts { to, .. } if *to == peer.site));
        let weights =
            effects.iter().any(|e| matches!(e, Effect::HandOver { to, .. } if *to == peer.site));
        let held = self.paces.of(&peer.site).open().err();
        match held.filter(|_| weights) {
            Some(held) => Some(held.to_string()),
            None if peer.endpoints.is_empty() && (receipts || weights) => Some(
                "its card names no endpoint: what is for it waits until it calls here".to_owned(),
            ),
            None => None,
        }
    }

    fn known_peer(&self, site: &SiteId) -> Result<PeerView, Status> {
        if site == self.daemon.site() {
            return Err(Status::failed_precondition("this is the site itself, not a peer"));
        }
        let state = self.daemon.state();
        let peer = state.roster().peers().find(|(known, _)| *known == site);
        let unknown = || Status::not_found(trust::Error::Unknown(site.clone()).to_string());
        peer.map(|(_, peer)| self.peer_view(peer)).ok_or_else(unknown)
    }

    /// The stored model that `prefix` names, with its passport as this site knows it.
    fn find_model(&self, prefix: &str) -> Result<(Digest, Passport), Status> {
        let state = self.daemon.state();
        let (round, visit, weights) = one(prefix, "model", models(&state, &self.store), |m| m.2)?;
        let known = state.rounds().get(&round).and_then(|r| r.passport(visit));
        let imported = || state.imported().get(&weights).map(|i| i.passport.clone());
        let known = known.or_else(imported);
        let passport = known.ok_or_else(|| {
            Status::failed_precondition("a hop of its passport has not arrived here yet")
        })?;
        Ok((weights, passport))
    }

    async fn verify(
        &self,
        weights: Digest,
        passport: &Passport,
    ) -> Result<(VerifiedPassport, Stored), Status> {
        let loss = |e: rondo::passport::Error| {
            let reason = Reason::from_code(e.code()).unwrap_or(Reason::PassportMalformed);
            reason.answer(Code::DataLoss, e)
        };
        let verified = passport.verify(self.daemon.state().roster()).map_err(loss)?;
        let stored = self.store.find(weights)?;
        let (table, layout) = (verified.last().weights.clone(), verified.layout());
        let work = spawn_blocking(move || stored.check(&table, &layout).map(|()| stored));
        let checked = work.await.map_err(|e| Status::internal(e.to_string()))?;
        let stored = checked.map_err(|e| match e {
            store::Error::Transfer(e) => loss(rondo::passport::Error::Weights(e)),
            store::Error::Checkpoint(e) => loss(e.into()),
            e => e.into(),
        })?;
        Ok((verified, stored))
    }
}

/// Who calls, as the kernel says.
fn whom<T>(request: &Request<T>) -> Option<UdsConnectInfo> {
    request.extensions().get().cloned()
}

fn refusal_view((reason, count): (Reason, Count)) -> RefusalView {
    RefusalView { reason: reason.code().to_owned(), count: count.count, last: count.last }
}

/// Round, visit and weights of every model that is in the store.
fn models(state: &SiteState, store: &Store) -> Vec<(RoundId, VisitNo, Digest)> {
    let rounds = state.rounds().iter();
    let all = rounds
        .flat_map(|(id, r)| r.visits.iter().filter_map(|v| Some((*id, v.number, v.weights()?))));
    let imported = state.imported().iter().filter_map(|(weights, model)| {
        let last = model.hops.last()?;
        Some((last.round, last.visit, *weights))
    });
    all.chain(imported).filter(|(_, _, weights)| store.has(*weights)).collect()
}

pub(super) fn model_view(weights: Digest, verified: &VerifiedPassport) -> ModelView {
    let last = verified.last();
    ModelView {
        weights: weights.to_string(),
        bytes: last.weights.bytes,
        round: last.round.to_string(),
        visit: last.visit.0,
        site: last.site.to_string(),
        hops: verified.hops().iter().map(hop_view).collect(),
    }
}

fn site_id(text: &str) -> Result<SiteId, Status> {
    text.parse().map_err(|e: rondo::ids::Error| Status::invalid_argument(e.to_string()))
}

fn imported_view(weights: Digest, model: &Imported) -> Option<ModelView> {
    let last = model.hops.last()?;
    Some(ModelView {
        weights: weights.to_string(),
        bytes: last.weights.bytes,
        round: last.round.to_string(),
        visit: last.visit.0,
        site: last.site.to_string(),
        hops: model.hops.iter().map(hop_view).collect(),
    })
}

fn find_round(state: &SiteState, prefix: &str) -> Result<RoundId, Status> {
    one(prefix, "round", state.rounds().keys().copied(), |id| *id)
}

/// The one thing that `prefix` names.
fn one<T>(
    prefix: &str,
    what: &str,
    all: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> Digest,
) -> Result<T, Status> {
    if prefix.len() < PREFIX_MIN {
        let text = format!("give at least {PREFIX_MIN} digits of the {what}'s digest");
        return Err(Status::invalid_argument(text));
    }
    let mut found: Vec<T> =
        all.into_iter().filter(|t| name(t).to_string().starts_with(prefix)).collect();
    // The same checkpoint may stand in several rounds; any of them will do.
    found.sort_by_key(|t| name(t));
    found.dedup_by_key(|t| name(t));
    let last = found.pop();
    match (last, found.pop()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(Status::invalid_argument(format!(
            "several {what}s begin with {prefix}; give more digits"
        ))),
        (None, _) => Err(Status::not_found(format!("no {what} here begins with {prefix}"))),
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type WatchRoundStream = ReceiverStream<Result<RoundView, Status>>;
    type ExportModelStream = ReceiverStream<Result<ModelPart, Status>>;
    type ExportRoundStream = tokio_stream::Iter<std::vec::IntoIter<Result<ModelPart, Status>>>;

    async fn get_site(&self, _: Request<GetSiteRequest>) -> Result<Response<SiteView>, Status> {
        let state = self.daemon.state();
        let own = state.own().ok_or_else(|| refused(&Refusal::Owner))?;
        let open = state.rounds().values().filter(|r| !r.phase().is_over()).count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(SiteView {
            site: own.site.to_string(),
            name: own.name.clone(),
            fingerprint: own.fingerprint(),
            endpoints: own.endpoints.clone(),
            valid_until: own.valid_until,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peers: count(state.roster().peers().count().saturating_sub(1)),
            open_rounds: count(open),
            trainer: Some(self.hub.view()),
            journal_records: self.daemon.records(),
            card: self.greeter.own.now().card.to_json(),
            warnings: expiry::warnings(own, unix_now()),
            file_access: self.file_access.to_string(),
            refusals: self.refusals.of(None).into_iter().map(refusal_view).collect(),
        }))
    }

    async fn add_peer(
        &self,
        request: Request<AddPeerRequest>,
    ) -> Result<Response<PeerView>, Status> {
        let whom = whom(&request);
        let request = request.into_inner();
        let invalid = |e: String| Status::invalid_argument(e);
        let card = Envelope::from_json(&request.card).map_err(|e| invalid(e.to_string()))?;
        let opened = SiteCard::open(&card).map_err(|e| invalid(e.to_string()))?;
        opened.valid_at(unix_now()).map_err(|e| invalid(e.to_string()))?;
        let (given, found) = (request.fingerprint.trim(), opened.fingerprint());
        if given != found {
            let text = format!(
                "the card has fingerprint {found}, not {given}: do not trust it before its site confirms it"
            );
            return Err(Status::failed_precondition(text));
        }
        let known = self.daemon.state().roster().trusted(&opened.site).cloned();
        if known.is_ok_and(|known| known.valid_from > opened.valid_from) {
            let text = format!("a newer card of {} is in the roster already", opened.site);
            return Err(Status::failed_precondition(text));
        }
        let what = What::PeerAdded { site: opened.site.clone(), fingerprint: found.clone() };
        let daemon = self.daemon.clone();
        let adopted = async move { daemon.adopt(Event::PeerAdded { card }).await };
        self.commit(whom, what, adopted).await?;
        tracing::info!(peer = %opened.site, fingerprint = found, "peer added");
        self.known_peer(&opened.site).map(Response::new)
    }

    async fn revoke_peer(
        &self,
        request: Request<PeerRequest>,
    ) -> Result<Response<PeerView>, Status> {
        let whom = whom(&request);
        let site = site_id(&request.into_inner().site)?;
        let known = self.known_peer(&site)?;
        if !known.revoked {
            let what = What::PeerRevoked { site: site.clone() };
            let (daemon, revoked) =
                (self.daemon.clone(), Event::PeerRevoked { site: site.clone() });
            self.commit(whom, what, async move { daemon.adopt(revoked).await }).await?;
            tracing::info!(peer = %site, "peer revoked");
        }
        self.known_peer(&site).map(Response::new)
    }

    async fn ping_peer(&self, request: Request<PeerRequest>) -> Result<Response<PingView>, Status> {
        let site = site_id(&request.into_inner().site)?;
        self.known_peer(&site)?;
        let outcome = async {
            let Reached { mut client, endpoint, handshake } =
                reach(&self.greeter.own.now(), &self.daemon, &self.greeter.egress, &site).await?;
            let begun = Instant::now();
            let greeting = self.greeter.exchange(&site, &mut client).await?;
            let [major, minor, patch] =
                [greeting.version_major, greeting.version_minor, greeting.version_patch];
            let seconds = |t: u64| i64::try_from(t).unwrap_or(i64::MAX);
            Ok(PingView {
                site: site.to_string(),
                endpoint,
                tls_version: handshake.version,
                key_exchange: handshake.key_exchange,
                cipher_suite: handshake.cipher_suite,
                round_trip_ms: begun.elapsed().as_secs_f64() * 1e3,
                version: format!("{major}.{minor}.{patch}"),
                clock_skew_s: seconds(greeting.now).saturating_sub(seconds(unix_now())),
                reaches_you: greeting.reaches_you,
            })
        }
        .await;
        self.contacts.note(&site, &outcome);
        outcome.map(Response::new).map_err(|e| match e {
            crate::contacts::Error::Trust(e) => Status::permission_denied(e.to_string()),
            e => Status::unavailable(e.to_string()),
        })
    }

    async fn renew_site(
        &self,
        request: Request<RenewSiteRequest>,
    ) -> Result<Response<RenewalView>, Status> {
        let whom = whom(&request);
        let request = request.into_inner();
        let days = if request.valid_days == 0 { VALID_DAYS } else { request.valid_days };
        if days > VALID_DAYS_MAX {
            let text = format!("a card may be valid for {VALID_DAYS_MAX} days at most");
            return Err(Status::invalid_argument(text));
        }
        let step = match request.step() {
            RenewalStep::Prepare => Step::Prepare,
            RenewalStep::Activate => Step::Activate { force: request.force },
            RenewalStep::CardOnly => Step::CardOnly,
            RenewalStep::Unspecified => {
                return Err(Status::invalid_argument("it is not said what to renew"));
            }
        };
        // Keys and card on the disk, in the journal and in force change together.
        let (renewal, audit) = (self.renewal.clone(), self.audit.clone());
        let renewed = to_the_end(async move {
            let renewed = renewal.renew(step, days).await?;
            let fingerprint = renewed.own.fingerprint();
            let next_fingerprint = renewed.own.next_fingerprint();
            audit.operator(whom, What::SiteRenewed { fingerprint, next_fingerprint }).await;
            Ok(renewed)
        });
        let renewed = renewed.await?.map_err(|e| match e {
            renewal::Error::Journal(e) => e.into(),
            e => Status::failed_precondition(e.to_string()),
        })?;
        Ok(Response::new(RenewalView {
            site: renewed.own.site.to_string(),
            fingerprint: renewed.own.fingerprint(),
            next_fingerprint: renewed.own.next_fingerprint().unwrap_or_default(),
            valid_until: renewed.own.valid_until,
            waiting_for: self.renewal.waiting_for().iter().map(ToString::to_string).collect(),
            card: renewed.card.to_json(),
        }))
    }

    async fn list_peers(&self, _: Request<ListPeersRequest>) -> Result<Response<PeerList>, Status> {
        let state = self.daemon.state();
        let others = state.roster().peers().filter(|(site, _)| *site != self.daemon.site());
        let peers = others.map(|(_, peer)| self.peer_view(peer)).collect();
        Ok(Response::new(PeerList { peers }))
    }

    async fn propose_round(
        &self,
        request: Request<ProposeRoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        let whom = whom(&request);
        let plan = Plan::from_toml(&request.into_inner().plan_toml, unix_now())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.let_out(&plan, None)?;
        let id = plan.round();
        let plan = String::from_utf8(plan.canonical()).unwrap_or_default();
        let daemon = self.daemon.clone();
        let proposed = async move {
            daemon.tell(id, ReceiptBody::Proposed { plan }).await?;
            // Who proposes a plan agrees to it.
            daemon.tell(id, ReceiptBody::Approved).await.map(drop)
        };
        self.commit(whom, What::RoundProposed { round: id }, proposed).await?;
        tracing::info!(round = id.short(), "round proposed");
        Ok(Response::new(self.view(&self.daemon.state(), id)?))
    }

    async fn approve_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        self.tell(request, ReceiptBody::Approved, |round| What::RoundApproved { round }).await
    }

    async fn start_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        self.tell(request, ReceiptBody::Started, |round| What::RoundStarted { round }).await
    }

    async fn pause_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        self.tell(request, ReceiptBody::Paused, |round| What::RoundPaused { round }).await
    }

    async fn resume_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        self.tell(request, ReceiptBody::Resumed, |round| What::RoundResumed { round }).await
    }

    async fn abort_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        self.tell(request, ReceiptBody::Aborted, |round| What::RoundAborted { round }).await
    }

    async fn recover_round(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<RoundView>, Status> {
        let whom = whom(&request);
        let request = request.into_inner();
        let state = self.daemon.state();
        let id = find_round(&state, &request.round)?;
        let without = match request.without.as_str() {
            "" => None,
            name => Some(site_id(name)?),
        };
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let said = round
            .recovery(self.daemon.site(), without.as_ref())
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        let daemon = self.daemon.clone();
        let work = async move {
            for (visit, reason) in said {
                daemon.tell(id, ReceiptBody::Passed { visit, reason }).await?;
            }
            Ok(())
        };
        self.commit(whom, What::RoundRecovered { round: id, without }, work).await?;
        Ok(Response::new(self.view(&self.daemon.state(), id)?))
    }

    async fn get_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<RoundView>, Status> {
        let state = self.daemon.state();
        let id = find_round(&state, &request.into_inner().round)?;
        Ok(Response::new(self.view(&state, id)?))
    }

    async fn release_contribution(
        &self,
        request: Request<ReleaseContributionRequest>,
    ) -> Result<Response<RoundView>, Status> {
        let whom = whom(&request);
        let request = request.into_inner();
        let id = find_round(&self.daemon.state(), &request.round)?;
        let visit = rondo_proto::convert::visit(request.visit)?;
        let failed = |e: book::Error| Reason::Storage.because(e);
        let outbound = self.outbound.clone();
        let work = move || match outbound.kept(id, visit)? {
            Some(kept) if !kept.released => outbound.release(id, visit).map(|_| Some(true)),
            kept => Ok(kept.map(|_| false)),
        };
        let audit = self.audit.clone();
        let done = to_the_end(async move {
            let done = spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))?;
            let done = done.map_err(failed)?;
            if done == Some(true) {
                tracing::info!(round = id.short(), visit = visit.0, "released by the operator");
                audit.operator(whom, What::ContributionReleased { round: id, visit }).await;
            }
            Ok::<_, Status>(done)
        });
        match done.await?? {
            Some(_) => {}
            None => {
                return Err(Status::failed_precondition(format!(
                    "no result of visit {visit} of this round waits here; `rondo round show` says which one does"
                )));
            }
        }
        Ok(Response::new(self.view(&self.daemon.state(), id)?))
    }

    async fn list_rounds(
        &self,
        _: Request<ListRoundsRequest>,
    ) -> Result<Response<RoundList>, Status> {
        let state = self.daemon.state();
        let rounds = state.rounds().keys().map(|id| self.view(&state, *id));
        Ok(Response::new(RoundList { rounds: rounds.collect::<Result<_, _>>()? }))
    }

    async fn watch_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<Self::WatchRoundStream>, Status> {
        let id = find_round(&self.daemon.state(), &request.into_inner().round)?;
        let (out, views) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let mut states = service.daemon.states();
            loop {
                let state = states.borrow_and_update().clone();
                let progress = service.hub.changes();
                if out.send(service.view(&state, id)).await.is_err() {
                    break;
                }
                tokio::time::sleep(WATCH_PACE).await;
                tokio::select! {
                    changed = states.changed() => if changed.is_err() { break },
                    () = progress => {}
                    () = out.closed() => break,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(views)))
    }

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ModelList>, Status> {
        let state = self.daemon.state();
        let list = models(&state, &self.store).into_iter().filter_map(|(id, visit, weights)| {
            let Some(round) = state.rounds().get(&id) else {
                return imported_view(weights, state.imported().get(&weights)?);
            };
            let manifest = round.manifest(visit)?;
            Some(ModelView {
                weights: weights.to_string(),
                bytes: manifest.weights.bytes,
                round: id.to_string(),
                visit: visit.0,
                site: manifest.site.to_string(),
                hops: round.chain(visit).into_iter().map(hop_view).collect(),
            })
        });
        Ok(Response::new(ModelList { models: list.collect() }))
    }

    async fn verify_model(
        &self,
        request: Request<ModelRequest>,
    ) -> Result<Response<ModelView>, Status> {
        let (weights, passport) = self.find_model(&request.into_inner().weights)?;
        let (verified, _) = self.verify(weights, &passport).await?;
        Ok(Response::new(model_view(weights, &verified)))
    }

    async fn export_model(
        &self,
        request: Request<ModelRequest>,
    ) -> Result<Response<Self::ExportModelStream>, Status> {
        let whom = whom(&request);
        let (weights, passport) = self.find_model(&request.into_inner().weights)?;
        let (verified, stored) = self.verify(weights, &passport).await?;
        let round = verified.plan().round();
        let head = self.export_head(&passport, round, weights)?;
        self.audit.operator(whom, What::ModelExported { weights }).await;
        let (out, parts) = mpsc::channel(PARTS_AHEAD);
        spawn_blocking(move || {
            let weights = (0..stored.bytes())
                .step_by(PART_BYTES)
                .map(|start| stored.read(start..start + PART_BYTES as u64).map(weights_part));
            for part in head.into_iter().map(Ok).chain(weights) {
                let failed = part.is_err();
                if out.blocking_send(part.map_err(Status::from)).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn import_model(
        &self,
        request: Request<Streaming<ModelPart>>,
    ) -> Result<Response<ModelView>, Status> {
        let whom = whom(&request);
        let (this, parts) = (self.clone(), request.into_inner());
        let imported = to_the_end(async move {
            let model = this.import(parts).await?;
            // Receipts alone name no model.
            if let Ok(weights) = model.weights.parse() {
                this.audit.operator(whom, What::ModelImported { weights }).await;
            }
            Ok::<_, Status>(model)
        });
        imported.await?.map(Response::new)
    }

    async fn export_round(
        &self,
        request: Request<RoundRequest>,
    ) -> Result<Response<Self::ExportRoundStream>, Status> {
        let state = self.daemon.state();
        let id = find_round(&state, &request.into_inner().round)?;
        let round = state.rounds().get(&id).ok_or_else(|| refused(&Refusal::UnknownRound(id)))?;
        let parts: Vec<_> = receipt_parts(round).into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }

    async fn check_store(
        &self,
        request: Request<CheckStoreRequest>,
    ) -> Result<Response<StoreReport>, Status> {
        let (store, state) = (self.store.clone(), self.daemon.state());
        let repair = request.into_inner().repair;
        let report = tokio::task::spawn_blocking(move || retention::check(&store, &state, repair))
            .await
            .map_err(|e| Status::internal(e.to_string()))??;
        if repair && !report.damaged.is_empty() {
            tracing::warn!(damaged = report.damaged.join(" "), "damaged checkpoints moved aside");
        }
        let names = |all: &[Digest]| all.iter().map(Digest::to_string).collect();
        Ok(Response::new(StoreReport {
            checkpoints: report.checkpoints,
            bytes: report.bytes,
            incoming: report.incoming,
            unreferenced: names(&report.unreferenced),
            missing: names(&report.missing),
            damaged: report.damaged,
            quarantined: report.quarantined,
        }))
    }
}
