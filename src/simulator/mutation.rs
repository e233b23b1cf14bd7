//! Faults that are planted by hand, to show that the simulator would see them. They exist in tests only.

use std::cell::Cell;

/// One planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    /// An event is adopted and acted on before it is safe in the journal.
    ActBeforeCommit,
    /// A checkpoint is acknowledged before it is safe on disk.
    AcknowledgeBeforeSync,
    /// A visit may be contributed again with another result.
    ContributeAgain,
    /// A visit whose training began once is trained on every start, whatever became of it.
    TrainAgain,
    /// A site removes its checkpoint as soon as the next site has it.
    ForgetCustody,
}

/// All of them.
pub(super) const ALL: [Mutation; 5] = [
    Mutation::ActBeforeCommit,
    Mutation::AcknowledgeBeforeSync,
    Mutation::ContributeAgain,
    Mutation::TrainAgain,
    Mutation::ForgetCustody,
];

thread_local! {
    static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Plants `mutation` in what this thread runs from now on.
pub(super) fn plant(mutation: Option<Mutation>) {
    PLANTED.set(mutation);
}

/// Whether [`Mutation::ContributeAgain`] is planted, which lies in the state machine itself.
pub(crate) fn contributes_again() -> bool {
    PLANTED.get() == Some(Mutation::ContributeAgain)
}
