//! Writes genuine values into `corpus/TARGET`, from which a fuzzer starts.

use prost::Message;
use rondo::checkpoint::{Extras, Layout};
use rondo::ids::Digest;
use rondo::recipe::Recipe;
use rondo::transfer::ChunkTable;
use rondo_proto::{peer, trainer};
use rondo_proto_fuzz::{GENUINE, PASSPORT, narrow};
use std::path::{Path, PathBuf};

const PLANS: [&str; 2] = [
    include_str!("../../../../deploy/examples/plan.toml"),
    "name = \"x\"\ntopology = \"swt\"\nsites = [\"a\", \"b\"]\ncycles = 1\nseed = 1\n[recipe]\npreset = \"paper\"\nmethod = \"mas\"\nwidths = [1, 1, 1, 1]\n",
];

fn main() -> std::io::Result<()> {
    let corpus = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "corpus".into()));
    let all = &*GENUINE;
    let cards = || all.cards.iter().map(|c| c.to_json());
    let manifests = || all.passport.manifests.iter().map(|m| m.to_json());
    let receipts = || all.passport.approvals.iter().map(|r| r.to_json());
    write(&corpus, "card", cards())?;
    write(&corpus, "manifest", manifests())?;
    write(&corpus, "receipt", receipts())?;
    write(&corpus, "envelope", cards().chain(manifests()).chain(receipts()))?;
    write(&corpus, "passport", [PASSPORT.to_vec()])?;
    write(&corpus, "plan", [all.passport.plan.clone().into_bytes()])?;
    write(&corpus, "plan_toml", PLANS.map(|p| p.as_bytes().to_vec()))?;
    write(&corpus, "record", all.events.iter().map(json))?;
    let tables = [&b"chunk"[..], &[7; 5000]]
        .map(|bytes| [json(&ChunkTable::of(bytes)), vec![0], bytes.to_vec()].concat());
    write(&corpus, "chunk_table", tables)?;
    let checkpoints = [false, true].map(|optimizer| {
        let layout = Layout::new(&narrow(), Extras { optimizer, importance: None });
        let mut bytes = [&[u8::from(optimizer)], layout.header()].concat();
        bytes.resize(
            bytes.len() + usize::try_from(layout.len()).unwrap_or(0) - layout.header().len(),
            0,
        );
        bytes
    });
    write(&corpus, "checkpoint", checkpoints)?;
    write(&corpus, "messages", messages())
}

fn messages() -> Vec<Vec<u8>> {
    let all = &*GENUINE;
    let round = Digest::of(b"round").as_bytes().to_vec();
    let receipt = all.passport.approvals.first().map(|r| r.to_json()).unwrap_or_default();
    let batch = peer::ReceiptBatch { round: round.clone(), receipts: vec![receipt.clone()] };
    let offer = peer::Offer { round: round.clone(), visit: 1, passport: PASSPORT.to_vec() };
    let held = peer::offer_answer::Answer::Held(peer::Held { receipt });
    let chunk = peer::Chunk { round: round.clone(), visit: 1, index: 0, data: vec![1; 100].into(), offset: 0 };
    let recipe = Some(trainer::Recipe::from(&Recipe::preset(all.plan.recipe.preset)));
    let task = trainer::TrainTask { round, visit: 1, seed: 1, recipe, received: Vec::new() };
    let task = trainer::Task { task: Some(trainer::task::Task::Train(task)) };
    let with = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    vec![
        with(1, batch.encode_to_vec()),
        with(3, offer.encode_to_vec()),
        with(4, peer::OfferAnswer { answer: Some(held) }.encode_to_vec()),
        with(5, chunk.encode_to_vec()),
        with(7, task.encode_to_vec()),
    ]
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn write(
    corpus: &Path,
    target: &str,
    seeds: impl IntoIterator<Item = Vec<u8>>,
) -> std::io::Result<()> {
    let folder = corpus.join(target);
    std::fs::create_dir_all(&folder)?;
    for (n, seed) in seeds.into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{n}")), seed)?;
    }
    Ok(())
}
