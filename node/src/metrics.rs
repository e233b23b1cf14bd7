//! Figures for the site's own monitoring: Prometheus text, on loopback only.

use crate::daemon::{Daemon, unix_now};
use crate::expiry;
use crate::ledger::Egress;
use crate::outbound::Outbound;
use crate::reason::Refusals;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use rondo::ids::SiteId;
use rondo::round::StallReason;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;

/// A scrape may take this long; a caller that sends nothing is dropped then.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
/// Content type of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where the figures come from.
#[derive(Clone)]
pub struct Metrics {
    /// Journal, roster and cards.
    pub daemon: Daemon,
    /// What was refused.
    pub refusals: Refusals,
    /// What left.
    pub egress: Egress,
    /// Folder of the store.
    pub store: PathBuf,
    /// What is held back, and what noise has cost.
    pub outbound: Outbound,
}

impl Metrics {
    /// Answers scrapes, one connection after the other, until dropped.
    pub async fn serve(self, listener: TcpListener) {
        loop {
            let Ok((tcp, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let answer = service_fn(|request| self.answer(request));
            let mut http = http1::Builder::new();
            let scrape = http.keep_alive(false).serve_connection(TokioIo::new(tcp), answer);
            // Whoever breaks off a scrape comes again.
            let _ = tokio::time::timeout(SCRAPE_TIMEOUT, scrape).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<String>, Infallible> {
        let mut response = Response::new(String::new());
        if request.method() != Method::GET || request.uri().path() != "/metrics" {
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
        let this = self.clone();
        let text = tokio::task::spawn_blocking(move || this.text()).await;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(TEXT));
        *response.body_mut() = text.unwrap_or_default();
        Ok(response)
    }

    /// All figures. No value of a label needs escapes: ids, codes and names of calls.
    fn text(&self) -> String {
        let mut text = String::new();
        let peer = |site: Option<&SiteId>| site.map_or("", SiteId::as_str).to_owned();
        let refusals = self.refusals.all().into_iter().map(|((site, reason), count)| {
            (format!("{{peer=\"{}\",reason=\"{reason}\"}}", peer(site.as_ref())), count.count)
        });
        family(
            &mut text,
            "rondo_refusals_total",
            "counter",
            "What was refused since the start; no peer stands for a caller without a trusted key.",
            refusals,
        );
        let mut egress: BTreeMap<_, u64> = BTreeMap::new();
        for (key, bytes) in self.egress.all() {
            *egress.entry((key.peer, key.kind)).or_default() += bytes;
        }
        let egress = egress
            .into_iter()
            .map(|((site, kind), bytes)| (format!("{{peer=\"{site}\",kind=\"{kind}\"}}"), bytes));
        family(
            &mut text,
            "rondo_egress_bytes_total",
            "counter",
            "Bytes that left since the site was made, by peer and kind of message.",
            egress,
        );
        let one = |n: u64| [(String::new(), n)];
        let connections = one(self.egress.connections() as u64);
        let help = "Open connections with peers, whoever opened them.";
        family(&mut text, "rondo_connections", "gauge", help, connections);
        let help = "Records in the journal.";
        family(&mut text, "rondo_journal_records", "gauge", help, one(self.daemon.records()));
        let state = self.daemon.state();
        let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
        let cards = state.roster().peers().filter(|(_, peer)| !peer.revoked).map(|(site, peer)| {
            let until = i64::try_from(peer.card.valid_until).unwrap_or(i64::MAX);
            (format!("{{site=\"{site}\"}}"), until.saturating_sub(now))
        });
        let help = "Seconds until a card is over, this site's own and its peers'.";
        family(&mut text, "rondo_card_expiry_seconds", "gauge", help, cards);
        let warned =
            state.roster().peers().filter(|(_, peer)| !peer.revoked).filter_map(|(site, p)| {
                Some((format!("{{site=\"{site}\"}}"), expiry::below_days(&p.card, unix_now())?))
            });
        let help = "Cards that this site warns of: below so many days, 0 once over.";
        family(&mut text, "rondo_card_expiry_warning_days", "gauge", help, warned);
        let own = self.daemon.site();
        let held = state.rounds().values().flat_map(|round| {
            let visits = round.visits.iter();
            visits.filter(|v| round.plan.site_of(v.number) == Some(own))
        });
        let held = held.filter(|v| v.stalled == Some(StallReason::Held)).count() as u64;
        let help = "Results that wait for this site's operator to release them.";
        family(&mut text, "rondo_contributions_held", "gauge", help, one(held));
        if let (Some(noise), Ok(spent)) = (self.outbound.policy().noise(), self.outbound.spent()) {
            let one = |figure: f64| [(String::new(), figure)];
            let help = "What all noised releases of this site cost so far, at the policy's delta.";
            let spent = spent.epsilon(noise.delta);
            family(&mut text, "rondo_privacy_epsilon", "gauge", help, one(spent));
            let help = "What they may cost at most.";
            family(&mut text, "rondo_privacy_epsilon_max", "gauge", help, one(noise.epsilon_max));
        }
        let help = "Bytes in the store, checkpoints on their way in included.";
        family(&mut text, "rondo_store_bytes", "gauge", help, one(bytes_below(&self.store)));
        text
    }
}

fn family<V: Display>(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, V)>,
) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// Length of all files in a folder and its folders; what goes away meanwhile does not count.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}
