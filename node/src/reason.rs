//! Why a peer's call or connection was refused: one closed list of codes that logs, answers, the
//! command line and metrics share, and the count of what was refused to whom.

use crate::daemon::unix_now;
use rondo::ids::SiteId;
use rondo::round::Refusal;
use rondo::trust;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Metadata of a refusal that holds the code of its reason.
pub const METADATA: &str = "rondo-reason";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $grpc:ident;)*) => {
        /// A reason. Codes are never given another meaning: scripts and alerts rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its code.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// What gRPC calls it.
            #[must_use]
            pub const fn grpc(self) -> Code {
                match self { $(Self::$name => Code::$grpc),* }
            }
        }
    };
}

reasons! {
    /// The key of the connection belongs to no trusted site.
    UnknownKey = "unknown-key", Unauthenticated;
    /// A statement or plan names a site that is not in the roster.
    UnknownSite = "unknown-site", PermissionDenied;
    /// A card with other keys than the known ones, or with those of another site.
    OtherKeys = "other-keys", PermissionDenied;
    /// The card of the caller is over or not valid yet.
    ExpiredCard = "expired-card", PermissionDenied;
    /// The caller was revoked.
    Revoked = "revoked", PermissionDenied;
    /// No handshake came in time.
    HandshakeTimeout = "handshake-timeout", DeadlineExceeded;
    /// What came is not a handshake of mutual TLS 1.3.
    HandshakeFailed = "handshake-failed", Unauthenticated;
    /// This site has not approved the round.
    NotApproved = "not-approved", PermissionDenied;
    /// The round is not known here.
    RoundUnknown = "round-unknown", NotFound;
    /// The site takes no part in the round.
    NotInRound = "not-in-round", PermissionDenied;
    /// The round has not been started, as far as is known here.
    NotStarted = "not-started", FailedPrecondition;
    /// What was sent belongs to another visit.
    WrongVisit = "wrong-visit", InvalidArgument;
    /// The visit is not handed from the caller to this site.
    NotItsTurn = "not-its-turn", PermissionDenied;
    /// Not possible where the round stands.
    WrongPhase = "wrong-phase", FailedPrecondition;
    /// Weights do not pass at this time of the day.
    OutOfHours = "out-of-hours", FailedPrecondition;
    /// Chunks of a checkpoint that was not offered.
    NotOffered = "not-offered", FailedPrecondition;
    /// A second, different statement of one site.
    ReceiptContradiction = "receipt-contradiction", FailedPrecondition;
    /// A statement before the ones that precede it.
    ReceiptOrder = "receipt-order", OutOfRange;
    /// A statement that its site did not sign.
    ReceiptSignature = "receipt-signature", InvalidArgument;
    /// A statement that is another site's, or about another round.
    ReceiptForeign = "receipt-foreign", PermissionDenied;
    /// More than a limit allows.
    TooMany = "too-many", ResourceExhausted;
    /// A message beyond its limit.
    OversizeMessage = "oversize-message", OutOfRange;
    /// A message or a part of one that cannot be read.
    Malformed = "malformed", InvalidArgument;
    /// A call that this software does not know.
    UnknownCall = "unknown-call", Unimplemented;
    /// A plan that cannot be.
    Plan = "plan", InvalidArgument;
    /// A chunk that is not as signed.
    ChunkDigest = "chunk-digest", InvalidArgument;
    /// A chunk that was not asked for, or does not exist.
    ChunkUnasked = "chunk-unasked", InvalidArgument;
    /// A chunk of another length than signed.
    ChunkLength = "chunk-length", InvalidArgument;
    /// A chunk table that contradicts itself.
    ChunkTable = "chunk-table", InvalidArgument;
    /// Nothing came for too long.
    StalledStream = "stalled-stream", DeadlineExceeded;
    /// The caller broke its call off.
    BrokenOff = "broken-off", Cancelled;
    /// The same is under way already.
    Busy = "busy", Aborted;
    /// This site's disk or journal said no.
    Storage = "storage", ResourceExhausted;
    /// What is asked for is not here.
    Absent = "absent", NotFound;
    /// What lies in the store is not what was stored.
    Damaged = "store-damaged", DataLoss;
    /// The daemon is stopping.
    Stopping = "stopping", Unavailable;
    /// Something that should not happen.
    Internal = "internal", Internal;
    /// A passport that cannot be read.
    PassportMalformed = "passport-malformed", InvalidArgument;
    /// A passport whose plan cannot be.
    PassportPlan = "passport-plan", InvalidArgument;
    /// A passport with a signer that was revoked.
    PassportSignerRevoked = "passport-signer-revoked", InvalidArgument;
    /// A passport with a signer that nobody knows.
    PassportSignerUnknown = "passport-signer-unknown", InvalidArgument;
    /// A passport without the approval of a site.
    PassportApproval = "passport-approval", InvalidArgument;
    /// A passport with too few or too many hops.
    PassportHops = "passport-hops", InvalidArgument;
    /// A hop that its site did not sign.
    PassportSignature = "passport-signature", InvalidArgument;
    /// A hop that does not follow from plan and parent.
    PassportChain = "passport-chain", InvalidArgument;
    /// A statement in a passport that a visit was passed over does not hold.
    PassportPass = "passport-pass", InvalidArgument;
    /// Weights that are not a checkpoint of the architecture.
    WeightsLayout = "weights-layout", InvalidArgument;
    /// Weights with a number that is NaN or infinite.
    WeightsNotFinite = "weights-not-finite", InvalidArgument;
    /// Weights that are not the promised ones.
    WeightsDamaged = "weights-damaged", InvalidArgument;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Reason {
    /// The reason with a code.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.code() == code)
    }

    /// A refusal for this reason, in words.
    #[must_use]
    pub fn because(self, text: impl fmt::Display) -> Status {
        self.answer(self.grpc(), text)
    }

    /// As [`Reason::because`], where gRPC has another word for it.
    #[must_use]
    pub fn answer(self, grpc: Code, text: impl fmt::Display) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(METADATA, MetadataValue::from_static(self.code()));
        Status::with_metadata(grpc, format!("[{self}] {text}"), metadata)
    }

    /// What a peer is told in the place of words that are for this site's own operator: those may name
    /// files of this machine.
    #[must_use]
    pub const fn for_peers(self) -> Option<&'static str> {
        match self {
            Self::Storage => Some(
                "this site's disk or journal failed, and its log says how; try again, and tell its operator if it stays",
            ),
            Self::Internal => Some("this site failed, and its log says how; tell its operator"),
            _ => None,
        }
    }

    /// The reason that a refusal names.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        status.metadata().get(METADATA).and_then(|v| v.to_str().ok()).and_then(Self::from_code)
    }

    /// What a refusal means that no handler of ours made: tonic's own, and those of conversions.
    #[must_use]
    pub fn of_grpc(code: Code) -> Self {
        match code {
            Code::InvalidArgument => Self::Malformed,
            // What tonic says of a message beyond its limit.
            Code::OutOfRange | Code::ResourceExhausted => Self::OversizeMessage,
            Code::Unimplemented => Self::UnknownCall,
            Code::DeadlineExceeded => Self::StalledStream,
            Code::Cancelled | Code::Unknown | Code::Aborted => Self::BrokenOff,
            Code::Unauthenticated => Self::UnknownKey,
            Code::Unavailable => Self::Stopping,
            _ => Self::Internal,
        }
    }

    /// Why a card does not let its site in.
    #[must_use]
    pub fn of_trust(e: &trust::Error) -> Self {
        match e {
            trust::Error::Revoked(_) => Self::Revoked,
            trust::Error::Validity { .. } => Self::ExpiredCard,
            trust::Error::Unknown(_) => Self::UnknownSite,
            trust::Error::Full => Self::TooMany,
            trust::Error::OtherKeys(_) | trust::Error::SharedKey(..) => Self::OtherKeys,
            trust::Error::Envelope(_) | trust::Error::Card(_) => Self::Malformed,
        }
    }

    /// Whether a connection that was refused for this reason is counted for the site whose certificate
    /// was shown, for its operators to see. With any other reason the one who showed it is a stranger:
    /// certificates are no secret.
    #[must_use]
    pub const fn names_its_site(self) -> bool {
        matches!(self, Self::Revoked | Self::ExpiredCard | Self::TooMany)
    }

    /// Why a TLS handshake was refused here.
    #[must_use]
    pub fn of_handshake(e: &std::io::Error) -> Self {
        use rustls::{CertificateError, Error};
        match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Self::UnknownKey,
            Some(Error::InvalidCertificate(CertificateError::Revoked)) => Self::Revoked,
            Some(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => Self::ExpiredCard,
            _ => Self::HandshakeFailed,
        }
    }
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownRound(_) => Self::RoundUnknown,
            Refusal::Order { .. } | Refusal::Gap(_) => Self::ReceiptOrder,
            Refusal::Trust(e) => Self::of_trust(e),
            Refusal::NotInRound { .. } => Self::NotInRound,
            Refusal::Limit(_) => Self::TooMany,
            Refusal::Phase(_) => Self::WrongPhase,
            Refusal::Contradiction(_) => Self::ReceiptContradiction,
            Refusal::Envelope(_) => Self::ReceiptSignature,
            Refusal::Plan(_) => Self::Plan,
            Refusal::Hop(e) => Self::from_code(e.code()).unwrap_or(Self::PassportChain),
            Refusal::Manifest(_) => Self::PassportSignature,
            Refusal::Owner => Self::Internal,
        }
    }
}

/// How often something was refused, and when last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How often since the start.
    pub count: u64,
    /// Unix time of the last one.
    pub last: u64,
}

type Counts = BTreeMap<(Option<SiteId>, Reason), Count>;

/// What was refused since the start, by peer and reason; no peer stands for a caller without a
/// trusted key. It cannot grow beyond the roster times the reasons.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<Counts>>);

impl Refusals {
    /// Counts and logs a refusal; the only place that does either.
    pub fn note(&self, peer: Option<&SiteId>, what: &str, reason: Reason, text: &str) {
        {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = all.entry((peer.cloned(), reason)).or_default();
            *count = Count { count: count.count.saturating_add(1), last: unix_now() };
        }
        let peer = peer.map_or("unknown", SiteId::as_str);
        tracing::warn!(peer, reason = reason.code(), "{what} refused: {text}");
    }

    /// Everything that was refused.
    #[must_use]
    pub fn all(&self) -> BTreeMap<(Option<SiteId>, Reason), Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was refused to `peer`, or to callers without a trusted key.
    #[must_use]
    pub fn of(&self, peer: Option<&SiteId>) -> Vec<(Reason, Count)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let its = all.iter().filter(|((site, _), _)| site.as_ref() == peer);
        its.map(|((_, reason), count)| (*reason, *count)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_distinct_kebab_case_and_travel() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert!(Reason::from_code("no-such-reason").is_none());
        for reason in Reason::ALL {
            let code = reason.code();
            assert!(code.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{code}");
            let response = reason.because("why").into_http::<tonic::body::Body>();
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(Reason::of(&status), Some(*reason));
            assert_eq!(status.message(), format!("[{code}] why"));
            assert_eq!(status.code(), reason.grpc());
        }
    }

    #[test]
    fn every_code_of_a_passport_is_a_reason() {
        use rondo::checkpoint::Error as Checkpoint;
        use rondo::passport::Error;
        let site: SiteId = "usz".parse().unwrap();
        for e in [
            Error::Malformed(String::new()),
            Error::Site(trust::Error::Revoked(site.clone())),
            Error::Site(trust::Error::Unknown(site.clone())),
            Error::Approval(site),
            Error::Hops { found: 1, planned: 2 },
            Error::Checkpoint(Checkpoint::Header(String::new())),
            Error::Checkpoint(Checkpoint::NotFinite { tensor: "a".to_owned(), element: 1 }),
        ] {
            assert!(Reason::from_code(e.code()).is_some(), "{}", e.code());
        }
    }
}
