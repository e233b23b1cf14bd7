//! How a command ends: one exit code for each kind of failure, and the sentence that goes with it.

use rondo_proto::unix;
use std::fmt;
use std::process::ExitCode;
use tonic::{Code, Status};

/// Metadata of a refusal that holds the code of its reason.
const REASON: &str = "rondo-reason";

/// Every exit code of `rondo`. Scripts may rely on the numbers; none is ever given a new meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    Internal = 1,
    Usage = 2,
    Unreachable = 3,
    Refused = 4,
    NotFound = 5,
    BadInput = 6,
    Unverified = 7,
    SetAside = 8,
    Trainer = 9,
    RoundUnfinished = 10,
    Storage = 11,
    Program = 12,
    Interrupted = 130,
}

impl Exit {
    /// All codes in the order of their numbers.
    pub(crate) const ALL: [Self; 14] = [
        Self::Ok,
        Self::Internal,
        Self::Usage,
        Self::Unreachable,
        Self::Refused,
        Self::NotFound,
        Self::BadInput,
        Self::Unverified,
        Self::SetAside,
        Self::Trainer,
        Self::RoundUnfinished,
        Self::Storage,
        Self::Program,
        Self::Interrupted,
    ];

    /// The name that `--json` gives.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Unreachable => "daemon-unreachable",
            Self::Refused => "refused",
            Self::NotFound => "not-found",
            Self::BadInput => "bad-input",
            Self::Unverified => "verification-failed",
            Self::SetAside => "cases-set-aside",
            Self::Trainer => "trainer-failed",
            Self::RoundUnfinished => "round-not-finished",
            Self::Storage => "storage",
            Self::Program => "program-missing",
            Self::Interrupted => "interrupted",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "Done.",
            Self::Internal => "Something that should not happen; report it with the message.",
            Self::Usage => "The command line is wrong; nothing was done.",
            Self::Unreachable => {
                "The daemon of this site does not answer; start it, or name its socket."
            }
            Self::Refused => "The daemon or the operator said no; the message says why.",
            Self::NotFound => "No such round, model or site.",
            Self::BadInput => "A file that was given cannot be used; every problem is listed.",
            Self::Unverified => "A checkpoint, passport or card is not what was signed.",
            Self::SetAside => "Done, but some cases were set aside; the message names them.",
            Self::Trainer => "The trainer failed; its own message is shown.",
            Self::RoundUnfinished => {
                "The round did not come to its end, or a model is not where it belongs."
            }
            Self::Storage => "A file or folder could not be read or written.",
            Self::Program => "rondo-node or rondo-trainer could not be started.",
            Self::Interrupted => "Stopped by a signal; what was started was stopped too.",
        }
    }

    /// The table of all codes, as `rondo help exit-codes` shows it.
    pub(crate) fn table() -> String {
        let mut text = String::from("Exit codes of rondo:\n");
        for exit in Self::ALL {
            let (code, name, meaning) = (exit as u8, exit.name(), exit.meaning());
            text.push_str(&format!("\n  {code:>3}  {name:<20} {meaning}"));
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked: what was attempted, why it failed, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) text: String,
    /// Code of the reason, where the failure has one.
    pub(crate) reason: Option<String>,
    /// Whether the command gave its result all the same, so that `--json` has its one document.
    pub(crate) after_result: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self { exit, text: text.to_string(), reason: None, after_result: false }
    }

    /// A result was given, but not all is well.
    pub(crate) fn after_result(exit: Exit, text: impl fmt::Display) -> Self {
        Self { after_result: true, ..Self::new(exit, text) }
    }

    /// The daemon's refusal of what was `attempted`.
    pub(crate) fn refused(attempted: &str, status: &Status) -> Self {
        let exit = match status.code() {
            Code::NotFound => Exit::NotFound,
            Code::InvalidArgument => Exit::BadInput,
            Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Unauthenticated => Exit::Refused,
            Code::DataLoss => Exit::Unverified,
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Exit::Unreachable,
            Code::ResourceExhausted => Exit::Storage,
            _ => Exit::Internal,
        };
        let reason = status.metadata().get(REASON).and_then(|v| v.to_str().ok());
        Self {
            reason: reason.map(str::to_owned),
            ..Self::new(exit, format!("{attempted}: {}", status.message()))
        }
    }

    /// A file or folder that could not be used.
    pub(crate) fn storage(attempted: impl fmt::Display, source: &std::io::Error) -> Self {
        Self::new(Exit::Storage, format!("{attempted}: {source}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<unix::Error> for Failure {
    fn from(e: unix::Error) -> Self {
        let socket = e.path.display();
        let why = innermost(&e.source);
        let text = format!(
            "reaching the daemon of this site at {socket}: {why}. Start it with `rondo-node run`, or name its folder with --home or its socket with --socket"
        );
        Self::new(Exit::Unreachable, text)
    }
}

/// The cause that names what happened; transports wrap it in layers that say nothing.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_all_in_the_table() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|e| *e as u8).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 130]);
        let table = Exit::table();
        for exit in Exit::ALL {
            assert!(table.contains(exit.name()), "{exit:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_daemons_sentence() {
        for (status, exit) in [
            (Status::not_found("no round abcdef"), Exit::NotFound),
            (Status::failed_precondition("x"), Exit::Refused),
            (Status::invalid_argument("x"), Exit::BadInput),
            (Status::data_loss("chunk 3"), Exit::Unverified),
            (Status::internal("x"), Exit::Internal),
        ] {
            let failure = Failure::refused("showing a round", &status);
            assert_eq!(failure.exit, exit);
            assert_eq!(failure.text, format!("showing a round: {}", status.message()));
            assert_eq!(failure.reason, None);
        }
        let mut status = Status::permission_denied("[not-approved] x");
        status.metadata_mut().insert(REASON, "not-approved".parse().unwrap());
        let failure = Failure::refused("approving", &status);
        assert_eq!(failure.reason.as_deref(), Some("not-approved"));
    }
}
