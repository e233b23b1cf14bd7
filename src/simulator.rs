//! Many sites in one thread and in virtual time: the state machine, the journal's records and its replay
//! as they are in the product, on disks that lose what was not synced and over a network that loses,
//! delays, repeats, reorders and cuts off. What happens follows from one number, so that a schedule in
//! which something breaks can be run again.
//!
//! Start at [`world`] (what happens when); a [`site`] has a [`disk`], answers peers ([`service`]) and
//! works on its effects ([`worker`], or [`pull`] behind a firewall) in the order of the daemon: commit, adopt, act. What must always
//! hold is in [`invariants`]; that it would be seen if it did not, is shown by every [`mutation`].
//!
//! `make simulate` runs many new schedules, `RONDO_SIM_SEED=7 make simulate` the one of that number;
//! `make test` runs new ones for 20 s.

mod disk;
mod federation;
mod invariants;
pub(crate) mod keys;
pub(crate) mod mutation;
mod network;
mod pull;
mod random;
mod service;
mod site;
#[cfg(test)]
mod tests;
mod worker;
mod world;
