//! The network: what is said, and what becomes of it on the way.

use super::random::Random;
use crate::envelope::Envelope;
use crate::ids::{RoundId, VisitNo};
use crate::passport::Passport;
use std::rc::Rc;

/// Pieces of a checkpoint.
pub(super) const PIECES: u64 = 4;

/// A call or its answer; `call` tells the caller which of its calls an answer belongs to.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Receipts {
        call: Call,
        round: RoundId,
        receipts: Vec<Envelope>,
    },
    Acknowledged {
        call: Call,
        number: u32,
    },
    Offer {
        call: Call,
        round: RoundId,
        visit: VisitNo,
        passport: Rc<Passport>,
    },
    /// Pieces in order; the call may break before the last one.
    Pieces {
        call: Call,
        round: RoundId,
        visit: VisitNo,
        pieces: Vec<u64>,
    },
    Held {
        call: Call,
        receipt: Envelope,
    },
    Wanted {
        call: Call,
        pieces: Vec<u64>,
    },
    Refused {
        call: Call,
    },
    /// How many receipts of the site that is asked are there already.
    Collect {
        call: Call,
        having: Vec<(RoundId, u32)>,
    },
    Collected {
        call: Call,
        batches: Vec<(RoundId, Vec<Envelope>)>,
        offers: Vec<Offered>,
    },
    Fetch {
        call: Call,
        round: RoundId,
        visit: VisitNo,
        pieces: Vec<u64>,
    },
    Fetched {
        call: Call,
        round: RoundId,
        visit: VisitNo,
        pieces: Vec<u64>,
    },
}

/// A checkpoint that waits to be fetched.
pub(super) type Offered = (RoundId, VisitNo, Rc<Passport>);

/// Names a call: the life of the daemon that made it, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) boot: u64,
    pub(super) turn: u64,
}

impl Message {
    /// The call that this answers, if it is an answer.
    pub(super) fn answers(&self) -> Option<Call> {
        match self {
            Self::Acknowledged { call, .. }
            | Self::Held { call, .. }
            | Self::Wanted { call, .. }
            | Self::Refused { call }
            | Self::Collected { call, .. }
            | Self::Fetched { call, .. } => Some(*call),
            Self::Receipts { .. }
            | Self::Offer { .. }
            | Self::Pieces { .. }
            | Self::Collect { .. }
            | Self::Fetch { .. } => None,
        }
    }
}

/// Until when each direction between two sites is cut, and how bad the line is.
#[derive(Debug)]
pub(super) struct Network {
    cut: Vec<Vec<u64>>,
    /// Lost and repeated messages, in a thousand.
    pub(super) loss: u64,
    pub(super) repeats: u64,
    /// Longest delay, in milliseconds.
    pub(super) delay: u64,
}

impl Network {
    pub(super) fn new(sites: usize, random: &mut Random) -> Self {
        let bad = [(0, 0, 5), (20, 20, 200), (100, 50, 2_000), (300, 200, 90_000)];
        let (loss, repeats, delay) = *random.pick(&bad);
        Self { cut: vec![vec![0; sites]; sites], loss, repeats, delay }
    }

    /// From now on the line is good.
    pub(super) fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|until| *until = 0);
        (self.loss, self.repeats, self.delay) = (0, 0, 20);
    }

    pub(super) fn cut(&mut self, from: usize, to: usize, until: u64) {
        let until = until.max(self.cut[from][to]);
        self.cut[from][to] = until;
    }

    pub(super) fn is_cut(&self, from: usize, to: usize, now: u64) -> bool {
        now < self.cut[from][to]
    }

    /// When copies of a message that is sent now arrive; none if it is lost. Later ones may overtake.
    pub(super) fn arrivals(&self, random: &mut Random, now: u64) -> Vec<u64> {
        if random.chance(self.loss) {
            return Vec::new();
        }
        let copies = if random.chance(self.repeats) { 2 } else { 1 };
        // Most messages are fast even on a bad line.
        let mut slowest = || if random.chance(900) { self.delay.min(100) } else { self.delay };
        let slowest: Vec<u64> = (0..copies).map(|_| slowest()).collect();
        slowest.into_iter().map(|slowest| now + random.between(1, slowest)).collect()
    }
}
