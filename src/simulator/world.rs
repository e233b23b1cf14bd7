//! Virtual time: what happens when, drawn from a seed.

use super::disk::{Disk, Fate};
use super::federation::{self, Opened};
use super::invariants::{Observer, Violation};
use super::mutation::{self, Mutation};
use super::network::{Message, Network};
use super::random::Random;
use super::site::{Context, Site, Stop};
use crate::ids::{Digest, RoundId, SiteId, VisitNo};
use crate::plan::Plan;
use crate::round::RoundPhase;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
/// A round must be over so long after the network healed, beside the time that training takes.
const PATIENCE: u64 = 30 * MINUTE;
/// The operating system writes out what it has cached so often.
const FLUSH: u64 = 20 * SECOND;

/// One thing that happens at a time.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    Arrives {
        from: usize,
        to: usize,
        message: Message,
    },
    /// A worker's pause is over.
    Wake {
        site: usize,
        boot: u64,
        turn: u64,
    },
    /// A trainer tells its result a second time.
    Report {
        site: usize,
        boot: u64,
        round: RoundId,
        visit: VisitNo,
        received: Option<Digest>,
    },
    /// A site that collects asks a peer again.
    Ask {
        site: usize,
        boot: u64,
        peer: usize,
        turn: u64,
    },
    Operator {
        site: usize,
    },
    /// The operating system writes out what it has cached.
    Flush {
        site: usize,
    },
    Tidy {
        site: usize,
    },
    Crash {
        site: usize,
    },
    Start {
        site: usize,
    },
    /// One direction between two sites is cut for a while.
    Cut {
        from: usize,
        to: usize,
    },
    DiskFull {
        site: usize,
        full: bool,
    },
}

/// What a schedule is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) seed: u64,
    pub(super) sites: u64,
    pub(super) cycles: u64,
    pub(super) rounds: u64,
    /// Whether operators pause, resume and abort rounds.
    pub(super) steered: bool,
    /// Whether the last site only dials out, so that it collects what is for it.
    pub(super) collects: bool,
    pub(super) mutation: Option<Mutation>,
}

impl Setting {
    /// The schedule of a number: what it is about follows from the number too.
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random::new(!seed);
        let sites = random.between(2, 4);
        let rounds = if random.chance(200) { 2 } else { 1 };
        Self {
            seed,
            sites,
            cycles: random.between(1, 3),
            rounds,
            steered: random.chance(200),
            collects: random.chance(250),
            mutation: None,
        }
    }
}

/// How a schedule went.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Course {
    pub(super) steps: u64,
    pub(super) crashes: u64,
    /// Rounds that ended with every visit handed over.
    pub(super) finished: u64,
    pub(super) virtual_s: u64,
}

struct World {
    now: u64,
    count: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    random: Random,
    network: Network,
    sites: Vec<Site>,
    index: BTreeMap<SiteId, usize>,
    collects: Option<usize>,
    observer: Observer,
    /// When everything that fails is over.
    heals: u64,
    course: Course,
}

/// Runs one schedule to its end.
///
/// # Errors
/// The invariant that does not hold.
pub(super) fn run(setting: &Setting) -> Result<Course, Violation> {
    mutation::plant(setting.mutation);
    let mut world = World::new(setting);
    let end = world.run();
    mutation::plant(None);
    end.map(|()| world.course)
}

impl World {
    fn new(setting: &Setting) -> Self {
        let mut random = Random::new(setting.seed);
        let opened = federation::opened(usize::try_from(setting.sites).unwrap());
        let sites: Vec<Site> = (0..)
            .zip(opened.iter())
            .map(|(index, opened)| site(index, opened, &mut random, setting.mutation))
            .collect();
        let ids: Vec<SiteId> = sites.iter().map(|site| site.id.clone()).collect();
        let disks = sites.iter().map(|site| site.disk.clone()).collect();
        let network = Network::new(sites.len(), &mut random);
        let heals = random.between(0, 20) * MINUTE;
        let index = ids.iter().cloned().zip(0..).collect();
        let observer = Observer::new(ids, disks);
        let (queue, course) = (BTreeMap::new(), Course::default());
        let mut world = Self {
            now: 0,
            count: 0,
            queue,
            random,
            network,
            sites,
            index,
            collects: setting.collects.then(|| usize::try_from(setting.sites).unwrap() - 1),
            observer,
            heals,
            course,
        };
        let starter = usize::try_from(world.random.below(setting.sites)).unwrap();
        world.sites[starter].starts = true;
        world.sites.iter_mut().for_each(|site| site.steers = setting.steered);
        world.troubles();
        world.propose(setting);
        world
    }

    /// Draws what goes wrong, and when.
    fn troubles(&mut self) {
        let all = self.sites.len() as u64;
        let often = [0, 1, 3, 10];
        let (crashes, cuts, full) =
            (*self.random.pick(&often), *self.random.pick(&often), *self.random.pick(&often));
        let any = |random: &mut Random| usize::try_from(random.below(all)).unwrap();
        for _ in 0..crashes {
            let (at, site) = (self.random.below(self.heals), any(&mut self.random));
            self.later(at, Happening::Crash { site });
        }
        for _ in 0..cuts {
            let at = self.random.below(self.heals);
            let (from, to) = (any(&mut self.random), any(&mut self.random));
            self.later(at, Happening::Cut { from, to });
            if self.random.chance(500) {
                self.later(at, Happening::Cut { from: to, to: from });
            }
        }
        for _ in 0..full {
            let (at, site) = (self.random.below(self.heals), any(&mut self.random));
            self.later(at, Happening::DiskFull { site, full: true });
        }
        for site in 0..self.sites.len() {
            self.later(0, Happening::Start { site });
            self.later(0, Happening::Operator { site });
            self.later(FLUSH, Happening::Flush { site });
            let tidy = self.random.below(10 * MINUTE);
            self.later(tidy, Happening::Tidy { site });
        }
    }

    /// A plan for each round, which some site knows from the beginning.
    fn propose(&mut self, setting: &Setting) {
        for number in 0..setting.rounds {
            let mut sites: Vec<SiteId> = self.index.keys().cloned().collect();
            let first = usize::try_from(self.random.below(setting.sites)).unwrap();
            sites.rotate_left(first);
            let plan = federation::plan(number, sites, u32::try_from(setting.cycles).unwrap());
            let by = self.random.pick(&plan.sites).clone();
            self.sites[self.index[&by]].proposes.push(plan);
        }
    }

    fn later(&mut self, at: u64, happening: Happening) {
        self.count += 1;
        self.queue.insert((at, self.count), happening);
    }

    fn run(&mut self) -> Result<(), Violation> {
        let slowest = self.sites.iter().map(|site| site.training).max().unwrap_or(0);
        let visits: u64 = self.sites.iter().flat_map(|s| &s.proposes).map(visits).sum();
        let last = self.heals + PATIENCE + 2 * visits * (slowest + MINUTE);
        let mut healed = false;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if !healed && at >= self.heals {
                healed = true;
                self.now = self.heals;
                self.heal()?;
            }
            self.now = at;
            self.course.steps += 1;
            self.happens(happening)?;
            if healed && self.course.steps.is_multiple_of(16) && self.is_over() {
                self.course.virtual_s = self.now / SECOND;
                let states: Vec<_> =
                    self.sites.iter().filter_map(Site::state).map(|s| &**s).collect();
                let ends = states.iter().take(1).flat_map(|state| state.rounds().values());
                let finished = ends.filter(|round| round.phase() == RoundPhase::Finished);
                self.course.finished = finished.count() as u64;
                return self.observer.ending(&states);
            }
            if self.now > last {
                break;
            }
        }
        Err(Violation::NoProgress((self.now - self.heals) / SECOND))
    }

    /// Every site is up, knows that all rounds are over, and has told everybody.
    fn is_over(&self) -> bool {
        self.sites.iter().all(|site| {
            site.proposes.is_empty()
                && site.state().is_some_and(|state| {
                    let mut phases = state.rounds().values().map(|round| round.phase());
                    phases.all(RoundPhase::is_over) && state.effects().is_empty()
                })
        })
    }

    fn heal(&mut self) -> Result<(), Violation> {
        self.network.heal();
        for site in 0..self.sites.len() {
            self.sites[site].disk.borrow_mut().full = false;
            if self.sites[site].daemon.is_none() {
                self.at(site, Site::start)?;
            }
        }
        Ok(())
    }

    fn happens(&mut self, happening: Happening) -> Result<(), Violation> {
        let troubled = self.now < self.heals;
        match happening {
            Happening::Arrives { from, to, message } => {
                if self.network.is_cut(from, to, self.now) {
                    return Ok(());
                }
                match message.answers() {
                    Some(call) => self.at(to, |site, cx| site.hears(cx, from, call, &message)),
                    None => self.at(to, |site, cx| site.serve(cx, from, &message)),
                }
            }
            Happening::Wake { site, boot, turn } if self.sites[site].boot == boot => {
                self.at(site, |site, cx| site.wake(cx, turn))
            }
            Happening::Report { site, boot, round, visit, received }
                if self.sites[site].boot == boot =>
            {
                self.at(site, |site, cx| site.contribute(cx, round, visit, received).map(drop))
            }
            Happening::Ask { site, boot, peer, turn } if self.sites[site].boot == boot => {
                self.at(site, |site, cx| site.ask(cx, peer, turn))
            }
            Happening::Wake { .. } | Happening::Report { .. } | Happening::Ask { .. } => Ok(()),
            Happening::Operator { site } => {
                let busy = self.sites[site].has_to_operate();
                let pause = if busy { self.random.between(1, 20) * SECOND } else { 5 * MINUTE };
                self.later(self.now + pause, Happening::Operator { site });
                self.at(site, Site::operate)
            }
            Happening::Flush { site } => {
                self.later(self.now + FLUSH, Happening::Flush { site });
                self.sites[site].disk.borrow_mut().sync();
                Ok(())
            }
            Happening::Tidy { site } => {
                let pause = self.random.between(1, 10) * MINUTE;
                self.later(self.now + pause, Happening::Tidy { site });
                self.sites[site].tidy();
                self.observer.custody()
            }
            Happening::Crash { site } => self.crash(site),
            Happening::Start { site } if self.sites[site].daemon.is_none() => {
                self.at(site, Site::start)
            }
            Happening::Start { .. } => Ok(()),
            Happening::Cut { from, to } => {
                let short = self.random.chance(700);
                let until = self.random.below(if short { MINUTE } else { 10 * MINUTE });
                self.network.cut(from, to, (self.now + until).min(self.heals));
                Ok(())
            }
            Happening::DiskFull { site, full } => {
                self.sites[site].disk.borrow_mut().full = full && troubled;
                if full {
                    let until = self.now + self.random.below(5 * MINUTE);
                    self.later(until, Happening::DiskFull { site, full: false });
                }
                Ok(())
            }
        }
    }

    /// A site dies, of `kill -9` or of a power cut, and comes back later.
    fn crash(&mut self, site: usize) -> Result<(), Violation> {
        if self.sites[site].daemon.is_none() {
            return Ok(());
        }
        self.course.crashes += 1;
        let power = self.random.chance(500);
        self.sites[site].stop(power, self.now, &mut self.observer);
        let short = self.random.chance(700);
        let pause = self.random.below(if short { 10 * SECOND } else { 10 * MINUTE });
        self.later(self.now + pause, Happening::Start { site });
        self.observer.custody()
    }

    /// Lets `site` handle something, if it is up, and carries away what it says. It may die over it: at
    /// any of its commits, before or after the commit, or when it has said only a part.
    fn at(
        &mut self,
        site: usize,
        handle: impl FnOnce(&mut Site, &mut Context<'_>) -> Result<(), Stop>,
    ) -> Result<(), Violation> {
        let troubled = self.now < self.heals;
        let dies = troubled && self.random.chance(5);
        if dies {
            let after = self.random.below(3);
            let before = self.random.chance(500);
            let fate = if before { Fate::DiesBefore(after) } else { Fate::DiesAfter(after) };
            self.sites[site].disk.borrow_mut().fate = fate;
        }
        let mut cx = Context {
            now: self.now,
            random: &mut self.random,
            observer: &mut self.observer,
            sites: &self.index,
            collects: self.collects,
            troubled,
            sent: Vec::new(),
            later: Vec::new(),
        };
        let outcome = handle(&mut self.sites[site], &mut cx);
        let Context { mut sent, later, .. } = cx;
        self.sites[site].disk.borrow_mut().fate = Fate::Fine;
        for (at, happening) in later {
            self.later(at, happening);
        }
        if dies {
            let said = usize::try_from(self.random.below(sent.len() as u64 + 1)).unwrap();
            sent.truncate(said);
        }
        for (to, message) in sent {
            self.send(site, to, &message);
        }
        match outcome {
            Err(Stop::Violation(violation)) => Err(violation),
            Err(Stop::Died) => self.crash(site),
            _ if dies => self.crash(site),
            Ok(()) | Err(Stop::Full | Stop::Refused(_)) => Ok(()),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &Message) {
        if self.network.is_cut(from, to, self.now) {
            return;
        }
        for at in self.network.arrivals(&mut self.random, self.now) {
            self.later(at, Happening::Arrives { from, to, message: message.clone() });
        }
    }
}

fn visits(plan: &Plan) -> u64 {
    u64::from(plan.visit_count())
}

fn site(index: usize, opened: &Opened, random: &mut Random, mutation: Option<Mutation>) -> Site {
    let disk = Disk::new(&opened.records, &opened.replay, mutation);
    // Up to an hour off, and up to twenty times slower than the fastest.
    let clock = 1_000_000 + random.below(7_200);
    let training = MINUTE * random.between(1, 20);
    Site {
        id: opened.id.clone(),
        index,
        key: opened.key.clone(),
        disk: Rc::new(RefCell::new(disk)),
        daemon: None,
        boot: 0,
        clock,
        training,
        progress: BTreeMap::new(),
        starts: false,
        steers: false,
        proposes: Vec::new(),
        mutation,
    }
}
