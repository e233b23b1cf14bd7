//! A round under a script that kills, stops, cuts off and delays everybody at random, for as long as
//! the round lasts. `RONDO_TESTS_SEED` plays a script again (the system's own timing stays its own);
//! `RONDO_CHAOS_MINUTES` goes on with further rounds for so long.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it did"
)]

use rondo_imaging::phantom::Centre;
use rondo_proto::control::{RoundPhase, VisitPhase};
use rondo_tests::federation::{Federation, SPREAD, short_folder};
use rondo_tests::material::{PlanText, cohort};
use rondo_tests::network::{Link, Network};
use rondo_tests::programs::signal;
use rondo_tests::site::{Site, free_address};
use rondo_tests::trainer::{Log, NoOp};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SITES: [&str; 4] = ["uker", "stanford", "usz", "nyu"];
/// Sites that train for real; at the others a visit takes [`VISIT`].
const REAL: [&str; 2] = ["uker", "usz"];
const VISIT: Duration = Duration::from_millis(800);
const CYCLES: u32 = 3;
/// A round that is not over by then has got stuck.
const STUCK: Duration = Duration::from_secs(420);

/// Small numbers that a seed determines.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What is wrong with a site for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// Its daemon is dead.
    Dead,
    /// Its daemon or trainer stands still.
    Stopped(u32),
    /// Its line.
    Line,
}

/// The sites and what is being done to them.
struct Chaos {
    all: Federation,
    network: Network,
    trainers: BTreeMap<String, NoOp>,
    log: Log,
    draw: Draw,
    /// By site; and when it ends.
    troubles: BTreeMap<(usize, Trouble), Instant>,
    done: BTreeMap<&'static str, u32>,
    long: bool,
}

impl Chaos {
    async fn set(long: bool) -> Self {
        let folder = short_folder();
        let network = Network::default();
        let centres = [Centre::Uker, Centre::Usz].into_iter();
        let mut cohorts = REAL
            .into_iter()
            .zip(centres)
            .map(|(name, centre)| {
                (
                    name,
                    cohort(
                        &folder.path().join(format!("{name}-cohort")),
                        centre,
                        rondo_tests::seed(),
                    ),
                )
            })
            .collect::<BTreeMap<_, _>>();
        let mut sites = Vec::new();
        for name in SITES {
            let inner = free_address();
            let outer = network.before(name, inner).await;
            let cohort = cohorts.remove(name);
            sites.push(Site::init_at(folder.path(), name, cohort.as_deref(), inner, &[outer]));
        }
        let mut all = Federation::of(folder, sites).await;
        let log = Log::default();
        let mut trainers = BTreeMap::new();
        for site in &mut all.sites {
            network.runs(&site.name, site.pid());
            if REAL.contains(&&*site.name) {
                site.ready_to_train().await;
            } else {
                trainers.insert(site.name.clone(), NoOp::of(site, VISIT, &log));
            }
        }
        // Spread over all bits, so that the first draws of small seeds differ.
        let draw = Draw(rondo_tests::seed().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (troubles, done) = (BTreeMap::new(), BTreeMap::new());
        Self { all, network, trainers, log, draw, troubles, done, long }
    }

    /// One stroke of the script.
    fn strike(&mut self) {
        let at = self.draw.below(SITES.len() as u64) as usize;
        if self.troubles.contains_key(&(at, Trouble::Dead)) {
            return;
        }
        let site = &mut self.all.sites[at];
        let name = SITES[at];
        let (what, trouble, lasts) = match self.draw.below(if self.long { 9 } else { 8 }) {
            0 | 1 => {
                site.kill();
                self.network.runs(name, None);
                ("daemon killed", Some(Trouble::Dead), self.draw.millis(0, 2000))
            }
            2 => {
                match self.trainers.get_mut(name) {
                    Some(trainer) => *trainer = NoOp::of(site, VISIT, &self.log),
                    None => site.trainers().iter().for_each(|p| signal(p.pid, Signal::KILL)),
                }
                ("trainer killed", None, Duration::ZERO)
            }
            3 => {
                site.trainers().iter().for_each(|p| signal(p.pid, Signal::KILL));
                site.kill();
                self.network.runs(name, None);
                ("both killed", Some(Trouble::Dead), self.draw.millis(0, 2000))
            }
            4 => {
                let daemon = site.pid().unwrap();
                let pids: Vec<u32> =
                    site.trainers().iter().map(|p| p.pid).chain([daemon]).collect();
                let pid = pids[self.draw.below(pids.len() as u64) as usize];
                signal(pid, Signal::STOP);
                ("stopped for a while", Some(Trouble::Stopped(pid)), self.draw.millis(200, 3000))
            }
            5 => {
                self.network.set(name, Link::Held);
                ("cut off, both directions", Some(Trouble::Line), self.draw.millis(500, 5000))
            }
            6 => {
                self.network.set(name, Link::Broken);
                ("connections broken", Some(Trouble::Line), self.draw.millis(100, 3000))
            }
            7 => {
                let delay = self.draw.millis(20, 300);
                self.network.set(name, Link::Far(delay));
                ("far away", Some(Trouble::Line), self.draw.millis(500, 5000))
            }
            _ => {
                self.network.set(name, Link::Lost);
                ("half-open connections", Some(Trouble::Line), self.draw.millis(500, 20_000))
            }
        };
        *self.done.entry(what).or_default() += 1;
        if let Some(trouble) = trouble {
            self.troubles.insert((at, trouble), Instant::now() + lasts);
        }
    }

    /// Ends the troubles whose time has come.
    fn mend(&mut self, now: impl Fn(Instant) -> bool) {
        let over: Vec<_> =
            self.troubles.iter().filter(|(_, end)| now(**end)).map(|(key, _)| *key).collect();
        for key in over {
            self.troubles.remove(&key);
            let site = &mut self.all.sites[key.0];
            match key.1 {
                Trouble::Dead => {
                    site.start();
                    self.network.runs(SITES[key.0], site.pid());
                }
                Trouble::Stopped(pid) => signal(pid, Signal::CONT),
                Trouble::Line => self.network.set(SITES[key.0], Link::Up),
            }
        }
    }

    /// Whether every site that can be asked says that the round is over.
    async fn over(&self, round: &str) -> bool {
        for (at, site) in self.all.sites.iter().enumerate() {
            if self.troubles.keys().any(|(sick, what)| *sick == at && *what != Trouble::Line) {
                return false;
            }
            let Ok(mut control) = rondo_proto::unix::control(&site.socket).await else {
                return false;
            };
            let request = rondo_tests::site::request(round);
            let view = tokio::time::timeout(Duration::from_secs(5), control.get_round(request));
            let Ok(Ok(view)) = view.await else { return false };
            if view.get_ref().phase() != RoundPhase::Finished {
                return false;
            }
        }
        true
    }

    async fn round(&mut self, number: u32) {
        // A few bytes that stay for as long as the test runs.
        let name = &*format!("chaos {number}").leak();
        let plan = PlanText {
            name,
            topology: "cwt",
            cycles: CYCLES,
            epochs: 2,
            method: "tl",
            ..PlanText::swt(&SITES)
        };
        let round = self.all.agree(&plan).await;
        let begun = Instant::now();
        self.all.sites[0].begin(&round).await.unwrap();
        self.done.clear();
        while !self.over(&round).await {
            assert!(begun.elapsed() < STUCK, "it does not end by itself, after {:?}", self.done);
            self.strike();
            let pause = self.draw.millis(300, 1700);
            tokio::time::sleep(pause).await;
            self.mend(|end| end <= Instant::now());
        }
        let took = begun.elapsed().as_secs_f64();
        println!("{name} {} ended by itself after {took:.0} s of {:?}", &round[..12], self.done);
        self.mend(|_| true);
        for site in &mut self.all.sites {
            site.ready().await;
        }
        let view = self.all.finished(&round, SPREAD).await;
        assert_eq!(view.visits.len(), SITES.len() * CYCLES as usize);
        assert!(view.visits.iter().all(|v| v.phase() == VisitPhase::HandedOver));
        self.all.each_visit_once(&view).await;
        self.all.passport_verifies(&view).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_ends_by_itself_whatever_is_done_to_its_sites() {
    println!("seed {}", rondo_tests::seed());
    let minutes = std::env::var("RONDO_CHAOS_MINUTES").ok().map(|m| m.parse::<u64>().unwrap());
    let until = Instant::now() + Duration::from_secs(60 * minutes.unwrap_or(0));
    let mut chaos = Chaos::set(minutes.is_some()).await;
    for number in 1.. {
        chaos.round(number).await;
        if Instant::now() >= until {
            break;
        }
    }
}
