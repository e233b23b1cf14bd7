//! A whole round of sites that no network joins: only files travel, through the real programs. The test
//! plays each site's trainer, so that what it got to start from is seen.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and writes damaged files on purpose"
)]

mod model_signing;
mod site;

use serde_json::Value;
use site::Site;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const BAD_INPUT: i32 = 6;
const UNVERIFIED: i32 = 7;

fn plan(sites: &str, extra: &str) -> String {
    format!(
        "name = \"air gap\"\ntopology = \"swt\"\nsites = [{sites}]\nseed = 7\n{extra}\
         [recipe]\npreset = \"paper\"\nwidths = [2, 3, 4, 6]\nepochs = 1\n"
    )
}

/// `bytes` of `file` with one bit flipped, beside it.
fn flipped(file: &Path, at: usize) -> std::path::PathBuf {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    let path = file.with_file_name("flipped.rondo");
    fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_goes_its_way_by_files_alone() {
    let folder = tempfile::Builder::new().prefix("rondo-").tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let mut sites = ["uker", "usz", "nyu"].map(|name| Site::start(folder.path(), name));
    let cards = file("cards");
    fs::create_dir(&cards).unwrap();
    for site in &sites {
        fs::copy(site.home.join("card.json"), cards.join(format!("{}.json", site.name))).unwrap();
        for other in sites.iter().filter(|o| o.name != site.name) {
            site.trust(other);
        }
    }
    let [uker, usz, nyu] = &mut sites;
    uker.play_trainer(0.25).await;
    usz.play_trainer(0.5).await;
    nyu.play_trainer(0.75).await;

    // The plan and the approvals.
    let text = plan("\"uker\", \"usz\"", "");
    fs::write(file("plan.toml"), &text).unwrap();
    let round = uker.ok(&["round", "propose", file("plan.toml").to_str().unwrap()]);
    let round = round["round"].as_str().unwrap().to_owned();
    uker.export_round(&round, &file("proposal.json"));
    let mut bad = fs::read(file("proposal.json")).unwrap();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(file("bad.json"), bad).unwrap();
    usz.refuses(&["round", "import", file("bad.json").to_str().unwrap()], BAD_INPUT);
    usz.import_round(&file("proposal.json"));
    usz.ok(&["round", "approve", &round]);
    usz.export_round(&round, &file("approval.json"));
    uker.import_round(&file("approval.json"));
    assert_eq!(uker.ok(&["round", "start", &round])["phase"], "running");

    // The first visit leaves as a file.
    let first = uker.contributed(&round, 1).await;
    let one = file("one.rondo");
    uker.export_model(&first, &one);
    let again = file("again.rondo");
    uker.export_model(&first, &again);
    let length = fs::metadata(&one).unwrap().len() as usize;
    let offline = |path: &Path| {
        let cards = cards.to_str().unwrap().to_owned();
        vec![
            "model".into(),
            "verify".into(),
            path.to_str().unwrap().into(),
            "--cards".into(),
            cards,
        ]
    };
    for at in [0, 130, 600, length / 3, length - 1500, length - 1] {
        let bad = flipped(&one, at);
        let args: Vec<String> = offline(&bad);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let refusal = usz.refuses(&args, UNVERIFIED);
        assert!(refusal["reason"].is_string(), "{refusal}");
        let refused = usz.run(&["model", "import", bad.to_str().unwrap()]);
        assert_ne!(refused.0, 0, "byte {at}: {}", refused.1);
    }
    assert_eq!(usz.ok(&["model", "list"])["models"], Value::Array(Vec::new()));
    let args: Vec<String> = offline(&one);
    let verified = usz.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        (&verified["weights"], &verified["hops"][0]["site"]),
        (&first.as_str().into(), &"uker".into())
    );
    model_signing::accepts_and_refuses(uker, &one, folder.path());

    let usz_store = usz.home.join("store/checkpoints");

    // The second site takes it, trains on it, and gives its own back.
    usz.import_model(&one);
    usz.import_model(&again);
    let second = usz.contributed(&round, 2).await;
    assert_eq!(usz.started_from(), std::slice::from_ref(&first));
    let two = file("two.rondo");
    usz.export_model(&second, &two);
    uker.import_model(&two);
    assert_eq!(uker.ok(&["round", "show", &round])["phase"], "finished");
    // What is past its time goes, but nothing of a round that is open, and never the last checkpoint.
    let path = usz.home.join("node.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[store]\nkeep_days = 0\n")).unwrap();
    let kept = |weights: &String| usz_store.join(weights).is_file();
    tokio::time::sleep(Duration::from_secs(2)).await;
    usz.restart();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kept(&first) && kept(&second), "the round is open at this site");
    uker.export_round(&round, &file("end.json"));
    usz.import_round(&file("end.json"));
    assert_eq!(usz.ok(&["round", "show", &round])["phase"], "finished");

    usz.restart();
    let begun = Instant::now();
    while kept(&first) {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is past its time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(kept(&second), "the last of a round stays");
    fs::write(&path, text).unwrap();
    usz.restart();
    usz.import_model(&one);

    // Damage on the disk is named, moved aside, and healed by the file.
    let stored = usz.home.join("store/checkpoints").join(&first);
    let mut bytes = fs::read(&stored).unwrap();
    bytes[1000] ^= 1;
    fs::write(&stored, bytes).unwrap();
    fs::write(usz.home.join("store/checkpoints/notes.txt"), "x").unwrap();
    let report = usz.refuses(&["model", "check"], UNVERIFIED);
    assert_eq!(report["damaged"], serde_json::json!([first, "notes.txt"]));
    assert!(stored.is_file(), "a check alone changes nothing");
    usz.refuses(&["model", "check", "--repair"], UNVERIFIED);
    assert!(!stored.exists() && usz.home.join("store/quarantine/notes.txt.0").is_file());
    assert_eq!(usz.ok(&["model", "check"])["checkpoints"], 1);
    usz.import_model(&one);
    let report = usz.ok(&["model", "check"]);
    assert_eq!(
        (&report["checkpoints"], &report["unreferenced"]),
        (&2.into(), &serde_json::json!([]))
    );

    // A third site, which knows nothing of the round, goes on from its result, also after a restart.
    nyu.import_model(&two);
    nyu.restart();
    nyu.play_trainer(0.75).await;
    assert_eq!(nyu.ok(&["model", "list"])["models"][0]["weights"], second);
    nyu.ok(&["model", "verify", &second]);
    let text = plan("\"nyu\"", &format!("start_checkpoint = \"{second}\"\n"));
    fs::write(file("next.toml"), text).unwrap();
    let next = nyu.ok(&["round", "propose", file("next.toml").to_str().unwrap()]);
    let next = next["round"].as_str().unwrap().to_owned();
    nyu.ok(&["round", "start", &next]);
    nyu.contributed(&next, 1).await;
    assert_eq!(nyu.started_from(), [second]);
}
