//! The golden envelopes, verified by a program that knows DSSE and nothing of Rondo.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rondo::envelope::Envelope;
use rondo::passport::Passport;
use rondo::trust::SiteCard;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Made by version 0.1.
const CARDS: &str = include_str!("../../../src/fixtures/0.1/cards.json");
const PASSPORT: &str = include_str!("../../../src/fixtures/0.1/passport.json");

/// What the script says of each envelope; none where Python has no `cryptography`.
fn judged(keys: &[String], envelopes: &[Value]) -> Option<Vec<String>> {
    let python = std::env::var_os("RONDO_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let has = Command::new(&python)
        .args(["-c", "import cryptography"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !has {
        let python = python.display();
        let why = format!(
            "SKIPPED envelopes: {python} has no cryptography; RONDO_TEST_PYTHON names one that has\n"
        );
        let _ = std::io::stderr().write_all(why.as_bytes());
        return None;
    }
    let mut script = Command::new(&python)
        .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/envelopes/verify.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let given = json!({"keys": keys, "envelopes": envelopes}).to_string();
    script.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let done = script.wait_with_output().unwrap();
    assert!(done.status.success());
    Some(String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn golden_envelopes_are_dsse_for_anybody() {
    let cards: Vec<Value> = serde_json::from_str(CARDS).unwrap();
    let passport: Value = serde_json::from_str(PASSPORT).unwrap();
    let key = |card: &Value| {
        let card = Envelope::from_json(card.to_string().as_bytes()).unwrap();
        SiteCard::open(&card).unwrap().signing_key.to_string()
    };
    let keys: Vec<String> = cards.iter().map(key).collect();
    let list = |name: &str| passport[name].as_array().unwrap().clone();
    let envelopes = [cards, list("approvals"), list("manifests")].concat();
    assert!(envelopes.len() >= 5);
    // Kept in the form in which they are written, byte for byte.
    let read: Vec<Envelope> = serde_json::from_str(CARDS).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), CARDS);
    let read = Passport::from_json(PASSPORT.as_bytes()).unwrap();
    assert_eq!(read.to_json(), PASSPORT.as_bytes());
    let Some(verdicts) = judged(&keys, &envelopes) else { return };
    assert_eq!(verdicts, vec!["ok"; envelopes.len()]);

    // Another type, another payload, another signer: what Rondo refuses, the script refuses too.
    let mut bad = Vec::new();
    for envelope in &envelopes {
        let mut typed = envelope.clone();
        typed["payloadType"] = "application/vnd.rondo.other+json".into();
        let mut changed = envelope.clone();
        let payload = envelope["payload"].as_str().unwrap();
        changed["payload"] = format!("AAAA{}", &payload[4..]).into();
        let mut stranger = envelope.clone();
        stranger["signatures"][0]["keyid"] = "0".repeat(64).into();
        bad.extend([typed, changed, stranger]);
    }
    let verdicts = judged(&keys, &bad).unwrap();
    assert!(verdicts.len() == bad.len() && !verdicts.contains(&"ok".to_owned()), "{verdicts:?}");
}
