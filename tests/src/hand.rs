//! A rostered site without a daemon: a test speaks for it, with its genuine keys, and lies as it likes.

use crate::caller::Shows;
use crate::site::Site;
use crate::{federation, history};
use rondo::envelope::Envelope;
use rondo::ids::{Digest, RoundId, VisitNo};
use rondo::manifest::{Counts, Manifest, Validation};
use rondo::passport::Passport;
use rondo::plan::Plan;
use rondo::round::{Receipt, ReceiptBody};
use rondo::transfer::ChunkTable;
use rondo_node::identity::Identity;
use rondo_proto::peer::offer_answer::Answer;
use rondo_proto::peer::peer_client::PeerClient;
use rondo_proto::peer::{Chunk, Offer, OfferAnswer, ReceiptBatch};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tonic::Status;
use tonic::transport::Channel;

/// A rostered site that a test speaks for.
pub struct Hand {
    /// Its keys and card.
    pub identity: Identity,
    home: PathBuf,
}

impl Hand {
    /// Makes a site's keys with the real `rondo-node init`; its daemon never runs.
    #[must_use]
    pub fn init(folder: &Path, name: &str) -> Self {
        let home = Site::init(folder, name, None).home.clone();
        Self { identity: Identity::load(&home).expect("keys"), home }
    }

    /// Lets `site` trust it.
    pub async fn trusted_by(&self, site: &Site) {
        let fingerprint = self.identity.own.fingerprint();
        federation::trust(site, &self.identity.card.to_json(), &fingerprint).await;
    }

    /// Calls the daemon of `site`.
    pub async fn call(&self, site: &Site) -> PeerClient<Channel> {
        self.call_at(site.listen).await
    }

    /// Calls whatever is reached at `address`.
    pub async fn call_at(&self, address: SocketAddr) -> PeerClient<Channel> {
        Shows::keys_of(&self.home).peer(address).await.expect("a connection")
    }

    /// Its signed statement about a round.
    #[must_use]
    pub fn receipt(&self, round: RoundId, number: u32, body: ReceiptBody) -> Envelope {
        let site = self.identity.own.site.clone();
        let receipt = Receipt { round, site, number, at: rondo_node::daemon::unix_now(), body };
        receipt.sign(&self.identity.signing).expect("signed")
    }

    /// Delivers statements to `site`; the number it then has.
    ///
    /// # Errors
    /// Its refusal.
    pub async fn deliver(
        &self,
        site: &Site,
        round: RoundId,
        receipts: &[Envelope],
    ) -> Result<u32, Status> {
        let receipts = receipts.iter().map(Envelope::to_json).collect();
        let batch = ReceiptBatch { round: round.as_bytes().to_vec(), receipts };
        self.call(site).await.deliver_receipts(batch).await.map(|a| a.into_inner().number)
    }

    /// What it would sign about `bytes` as the result of the plan's first visit.
    #[must_use]
    pub fn manifest(&self, plan: &Plan, bytes: &[u8]) -> Manifest {
        Manifest {
            round: plan.round(),
            cycle: 1,
            visit: VisitNo::FIRST,
            site: self.identity.own.site.clone(),
            parent: None,
            weights: ChunkTable::of(bytes),
            architecture: plan.recipe.architecture,
            recipe: plan.recipe_digest(),
            software: "rondo 0.1.0".to_owned(),
            counts: Counts::default(),
            validation: Validation::default(),
            filters: Vec::new(),
            signed_at: rondo_node::daemon::unix_now(),
        }
    }

    /// The passport that goes with a manifest; the approvals are those that `witness` knows.
    #[must_use]
    pub fn passport(&self, witness: &Site, manifest: &Manifest) -> Passport {
        let state = history::replay(&witness.home).0;
        let round = state.rounds().get(&manifest.round).expect("the witness knows the round");
        let signed = manifest.sign(&self.identity.signing).expect("signed");
        Passport::new(&round.plan, round.approvals.values().cloned().collect(), vec![signed])
    }

    /// Offers a checkpoint with a passport of any bytes.
    ///
    /// # Errors
    /// The refusal.
    pub async fn offer(
        &self,
        site: &Site,
        round: RoundId,
        visit: u32,
        passport: Vec<u8>,
    ) -> Result<Answer, Status> {
        let offer = Offer { round: round.as_bytes().to_vec(), visit, passport };
        self.call(site).await.offer_checkpoint(offer).await.map(answer)
    }

    /// Sends chunks of the first visit's checkpoint, by index.
    ///
    /// # Errors
    /// The refusal.
    pub async fn send(
        &self,
        site: &Site,
        round: RoundId,
        chunks: Vec<(u32, Vec<u8>)>,
    ) -> Result<Answer, Status> {
        let round = round.as_bytes().to_vec();
        let chunk = |(index, data): (u32, Vec<u8>)| Chunk {
            round: round.clone(),
            visit: 1,
            index,
            data: data.into(),
            offset: 0,
        };
        let chunks: Vec<Chunk> = chunks.into_iter().map(chunk).collect();
        self.call(site).await.send_chunks(tokio_stream::iter(chunks)).await.map(answer)
    }
}

fn answer(response: tonic::Response<OfferAnswer>) -> Answer {
    response.into_inner().answer.expect("an answer")
}

/// The chunk of `bytes` that `table` has at `index`.
#[must_use]
pub fn chunk(table: &ChunkTable, bytes: &[u8], index: u32) -> (u32, Vec<u8>) {
    let range = table.range(index.into()).expect("a chunk");
    let [start, end] = [range.start, range.end].map(|n| usize::try_from(n).expect("small"));
    (index, bytes[start..end].to_vec())
}

/// Reads a digest that a view shows.
#[must_use]
pub fn digest(text: &str) -> Digest {
    text.parse().expect("a digest")
}
