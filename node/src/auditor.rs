//! `rondo-node audit`: what an auditor asks of a site's files, whether its daemon runs or not. Answers
//! are JSON; `rondo audit` shows them to people.

use crate::audit;
use crate::cli::Audit;
use crate::identity;
use crate::ledger::{self, Book};
use anyhow::Context as _;
use rondo::audit::{Entry, Line};
use rondo::envelope::Envelope;
use rondo::trust::SiteCard;
use serde_json::{Value, json};
use std::io::{self, Write as _};
use std::path::Path;

/// Answers one question.
///
/// # Errors
/// What is wrong with the files.
pub fn run(command: &Audit) -> anyhow::Result<()> {
    match command {
        Audit::Verify { home, mark } => {
            let report = audit::verify(&home.home, &card(&home.home)?, mark.as_deref(), |_, _| ())?;
            let signed = report.signed.as_ref();
            say(&json!({
                "schema": "rondo.audit-verify/1",
                "lines": report.tip.number,
                "digest": report.tip.digest,
                "signed_lines": signed.map_or(0, |mark| mark.number),
                "signed_at": signed.map(|mark| mark.at),
            }))
        }
        Audit::Export { home } => {
            let mut said = Ok(());
            let each = |line: &Line, entry: &Entry| {
                if said.is_ok() {
                    said = say(&json!({
                        "number": line.number, "at": entry.at, "who": entry.who,
                        "what": entry.what, "digest": line.digest,
                    }));
                }
            };
            audit::verify(&home.home, &card(&home.home)?, None, each)?;
            said
        }
        Audit::Egress { home, round, peer } => {
            let all = Book::read(&home.home.join(ledger::FILE))?;
            let wanted = all.iter().filter(|(key, _)| {
                let digits = key.round.map(|r| r.to_string()).unwrap_or_default();
                let of_round = round.as_ref().is_none_or(|prefix| digits.starts_with(prefix));
                of_round && peer.as_ref().is_none_or(|site| *site == key.peer)
            });
            let row = |(key, bytes): (&ledger::Key, &u64)| json!({"peer": key.peer, "round": key.round, "kind": &*key.kind, "bytes": bytes});
            let rows: Vec<Value> = wanted.clone().map(row).collect();
            let total: u64 = wanted.map(|(_, bytes)| bytes).sum();
            say(&json!({"schema": "rondo.audit-egress/1", "rows": rows, "bytes": total}))
        }
    }
}

/// This site's own card, which names the keys that it signs and signed with.
fn card(home: &Path) -> anyhow::Result<SiteCard> {
    let path = home.join(identity::CARD);
    let shown = || format!("reading this site's card {}", path.display());
    let bytes = std::fs::read(&path).with_context(shown)?;
    let card = Envelope::from_json(&bytes).with_context(shown)?;
    SiteCard::open(&card).with_context(shown)
}

fn say(document: &Value) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{document}").context("writing the answer")
}
