#![allow(clippy::print_stdout)]

use super::mutation::{self, Mutation};
use super::world::{Course, Setting, run};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long new schedules are tried where nobody says how many.
const SHARE: Duration = Duration::from_secs(20);
/// Schedules of a thread between two words about how far it is.
const REPORT: u64 = 5_000;
/// Within so many schedules every mutation is seen.
const MUTATION_SCHEDULES: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Names the schedule that was running when something panicked.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("schedule {0} panicked: RONDO_SIM_SEED={0}", self.0);
        }
    }
}

fn checked(setting: &Setting) -> Course {
    let _named = Named(setting.seed);
    let seed = setting.seed;
    run(setting).unwrap_or_else(|violation| {
        panic!("schedule {seed}: {violation}. Run it again with RONDO_SIM_SEED={seed}")
    })
}

#[test]
fn no_schedule_violates_an_invariant() {
    if let Some(seed) = number("RONDO_SIM_SEED") {
        let setting = Setting::of(seed);
        println!("{setting:?}");
        println!("{:?}", checked(&setting));
        return;
    }
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() * 1_000_000;
    let schedules = number("RONDO_SIM_SCHEDULES");
    let begun = Instant::now();
    let (next, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    let enough = |taken: u64| match schedules {
        Some(schedules) => taken >= schedules,
        None => begun.elapsed() >= SHARE,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let courses: Vec<(u64, Course)> = std::thread::scope(|scope| {
        let work = || {
            let (mut ran, mut sum) = (0, Course::default());
            loop {
                let taken = next.fetch_add(1, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) || enough(taken) {
                    return (ran, sum);
                }
                let stop = StopOnPanic(&stopped);
                let course = checked(&Setting::of(first + taken));
                std::mem::forget(stop);
                ran += 1;
                if ran % REPORT == 0 {
                    println!("{taken} schedules in {:.0} s", begun.elapsed().as_secs_f64());
                }
                sum.steps += course.steps;
                sum.crashes += course.crashes;
                sum.finished += course.finished;
                sum.virtual_s += course.virtual_s;
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ran: u64 = courses.iter().map(|(ran, _)| ran).sum();
    let total = |of: fn(&Course) -> u64| courses.iter().map(|(_, course)| of(course)).sum::<u64>();
    println!(
        "{ran} schedules from seed {first} in {:.1} s on {threads} threads: {} steps, {} crashes, {} rounds finished, {} h of virtual time, no invariant violated",
        begun.elapsed().as_secs_f64(),
        total(|c| c.steps),
        total(|c| c.crashes),
        total(|c| c.finished),
        total(|c| c.virtual_s) / 3600,
    );
    assert!(ran > 0);
}

/// Tells the other threads that one of them failed.
struct StopOnPanic<'s>(&'s AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_planted_fault_is_seen() {
    for mutation in mutation::ALL {
        let fails = |seed: &u64| run(&planted(*seed, mutation)).is_err();
        let seed = (0..MUTATION_SCHEDULES).find(fails);
        let seed = seed.unwrap_or_else(|| panic!("{mutation:?} is not seen"));
        let violation = run(&planted(seed, mutation)).unwrap_err();
        println!("{mutation:?} is seen after {} schedules: {violation}", seed + 1);
    }
}

fn planted(seed: u64, mutation: Mutation) -> Setting {
    Setting { mutation: Some(mutation), ..Setting::of(seed) }
}

#[test]
fn a_seed_gives_the_same_schedule_again() {
    for seed in 0..20 {
        let (first, second) = (checked(&Setting::of(seed)), checked(&Setting::of(seed)));
        assert_eq!((first.steps, first.virtual_s), (second.steps, second.virtual_s));
    }
}

#[test]
fn fifty_sites_complete_a_round() {
    let begun = Instant::now();
    let course =
        checked(&Setting { sites: 50, cycles: 1, rounds: 1, steered: false, ..Setting::of(50) });
    assert_eq!(course.finished, 1);
    println!("50 sites: {course:?} in {:.1} s", begun.elapsed().as_secs_f64());
}
