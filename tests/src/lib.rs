//! Harness of the scenarios: real daemons and trainers on loopback, each site with keys of its own,
//! started, killed and started again, and driven only through the sockets that operators and peers use.
//!
//! Start at [`federation`] (sites that trust each other) and [`site`] (one of them). [`caller`] and
//! [`hand`] are what knocks from outside: a stranger with any key, and a rostered site made by hand
//! that lies as a test wants it to. [`proxy`] is a bad line between two of them,
//! [`network`] the lines between all. [`trainer`], [`stand_in`] and [`work`] train nothing. [`history`] reads journals. What a
//! scenario starts dies with it, and an unexpected `ERROR` or panic in a log fails it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::disallowed_methods,
    reason = "a harness panics to fail its test, and writes input that no crash has to survive"
)]

pub mod caller;
pub mod federation;
pub mod hand;
pub mod history;
pub mod log;
pub mod material;
pub mod network;
pub mod programs;
pub mod proxy;
pub mod site;
pub mod stand_in;
pub mod trainer;
pub mod work;

use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Seed of everything random in this run: `RONDO_TESTS_SEED`, else drawn from the clock.
#[must_use]
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let drawn = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let given = std::env::var("RONDO_TESTS_SEED").ok();
        given.map_or_else(|| drawn() % 1_000_000, |text| text.parse().expect("a whole number"))
    })
}

/// Waits until `look` finds something.
///
/// # Panics
/// With `what` after `limit`.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "{what}: not within {} s", limit.as_secs());
        tokio::time::sleep(POLL).await;
    }
}
