//! The round: a pure state machine that every site runs for itself.
//!
//! What happens is told in signed [`Receipt`]s, which every site of a round gets from every other.
//! A site's state is what its journal of [`Event`]s says, so replay is the only way state comes to be.
//! [`step`] adopts one event; [`SiteState::effects`] computes what is outstanding. Effects are derived
//! from state, never remembered: after a crash they are simply computed again.

mod course;
mod custody;
mod effect;
mod event;
pub mod figures;
pub mod receipt;
pub mod recover;
mod state;
mod step;

pub use effect::{Effect, Work};
pub use event::Event;
pub use receipt::{PassReason, Receipt, ReceiptBody, RefusalReason, StallReason};
pub use state::{Imported, Round, RoundPhase, SiteState, Visit, VisitPhase};
pub use step::{IMPORTED_MAX, OPEN_ROUNDS_MAX, PROPOSALS_MAX, Refusal, UNAPPROVED_MAX, step};

#[cfg(test)]
mod bad_tests;
#[cfg(test)]
mod pass_tests;
#[cfg(test)]
mod steer_tests;
#[cfg(test)]
mod tests;
