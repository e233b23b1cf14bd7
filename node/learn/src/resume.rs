//! The state of a visit in the middle, as bytes: with them, a visit that was killed goes on as if
//! nothing had happened, and ends with the same model bit for bit.
//!
//! Layout, little endian: magic `RONDOVIS`, version u32, length of the body u64, SHA-256 of the body;
//! the body is the length of the head u32, the head as JSON, the student's checkpoint with Adam's
//! state, and the checkpoint of the best validation where there is one. Numbers that decide anything
//! are stored by their bits.

use crate::checkpoint::{self, Weights};
use crate::device::Device;
use crate::feed::Position;
use crate::loss::Parts;
use crate::report::Check;
use crate::train::Visit;
use rondo::ids::Digest;
use rondo::recipe::Recipe;
use serde::{Deserialize, Serialize};
use std::fmt;

const MAGIC: &[u8; 8] = b"RONDOVIS";
const VERSION: u32 = 2;
/// Magic, version, length, checksum.
const FRONT_BYTES: usize = 8 + 4 + 8 + 32;
/// Largest head: 100 000 epochs validated one by one stay below it.
const HEAD_MAX_BYTES: u32 = 16 << 20;

/// Why bytes are not the state of a visit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something else.
    #[error("this is not the saved state of a visit")]
    Foreign,
    /// Written by a later version.
    #[error("the saved state has format {0}, but this version reads {VERSION}")]
    Version(u32),
    /// Cut off, or something follows.
    #[error("the saved state has {found} bytes after its front, but {expected} were written")]
    Length {
        /// Bytes written.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Damaged.
    #[error("the saved state is damaged: its checksum does not match")]
    Checksum,
    /// The head does not fit the rest.
    #[error("the head of the saved state is not usable: {0}")]
    Head(String),
    /// A model in it is none.
    #[error("the saved state holds no usable model: {0}")]
    Model(#[from] checkpoint::Error),
}

/// A number that comes back with the same bits; JSON's decimals do not promise that.
#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub(crate) struct Exact(pub(crate) f64);

impl From<u64> for Exact {
    fn from(bits: u64) -> Self {
        Self(f64::from_bits(bits))
    }
}

impl From<Exact> for u64 {
    fn from(exact: Exact) -> Self {
        exact.0.to_bits()
    }
}

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Figures that a visit gathers on its way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) updates: u32,
    pub(crate) segments: u64,
    pub(crate) dice_before: Option<Exact>,
    /// Epoch, from 1, and Dice.
    pub(crate) checks: Vec<(u32, Exact)>,
    pub(crate) loss_first: Parts,
    pub(crate) loss_last: Parts,
    /// Sums over the segments of the running epoch, in the order of [`Parts`].
    pub(crate) sum: [Exact; 4],
    pub(crate) sum_segments: u64,
    /// Seconds spent, interruptions not counted.
    pub(crate) seconds: Exact,
}

impl Figures {
    /// Takes one update of `n` segments into the running epoch.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn add(&mut self, parts: Parts, n: usize) {
        let parts = [parts.ce, parts.vss, parts.kdl, parts.penalty];
        for (sum, part) in self.sum.iter_mut().zip(parts) {
            sum.0 += f64::from(part) * n as f64;
        }
        self.sum_segments += n as u64;
    }

    /// Ends the running epoch; gives its mean.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    pub(crate) fn end_epoch(&mut self) -> Parts {
        let n = self.sum_segments.max(1) as f64;
        let mean = Parts::from(self.sum.map(|s| (s.0 / n) as f32));
        (self.sum, self.sum_segments) = Default::default();
        mean
    }
}

/// The whole state of a visit between two updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Which visit this is, as [`identity`] tells.
    pub(crate) visit: Digest,
    /// The next mini-batch; after the last one of its epoch, the epoch's end.
    pub(crate) at: Position,
    pub(crate) figures: Figures,
    /// Steps already taken to need less memory.
    pub(crate) thrift: u32,
    /// Device, versions and threads, as [`Device::describe`] tells.
    pub(crate) made_on: String,
    /// With Adam's state.
    pub(crate) student: Weights,
    pub(crate) best: Option<(Check, Weights)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    visit: Digest,
    epoch: u32,
    batch: u32,
    figures: Figures,
    thrift: u32,
    made_on: String,
    student_bytes: u64,
    best: Option<(u32, Exact)>,
}

impl Saved {
    /// Whether this is the state of the visit of this [`identity`].
    #[must_use]
    pub fn is_of(&self, identity: Digest) -> bool {
        self.visit == identity
    }

    /// Updates made so far.
    #[must_use]
    pub fn updates(&self) -> u32 {
        self.figures.updates
    }

    /// Validations made so far, that of the received model included.
    #[must_use]
    pub fn validations(&self) -> usize {
        usize::from(self.figures.dice_before.is_some()) + self.figures.checks.len()
    }

    /// Whether this state can be one of `recipe` at all.
    pub(crate) fn fits(&self, recipe: &Recipe) -> bool {
        let of = |weights: &Weights| weights.architecture == recipe.architecture;
        of(&self.student)
            && self.best.as_ref().is_none_or(|(_, best)| of(best))
            && self.at.epoch <= recipe.epochs
    }

    /// The model as it stands: all its numbers are finite.
    #[must_use]
    pub fn weights(&self) -> Weights {
        Weights { optimizer: None, ..self.student.clone() }
    }

    /// The state as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let student = self.student.to_bytes();
        let head = Head {
            visit: self.visit,
            epoch: self.at.epoch,
            batch: self.at.batch,
            figures: self.figures.clone(),
            thrift: self.thrift,
            made_on: self.made_on.clone(),
            student_bytes: student.len() as u64,
            best: self.best.as_ref().map(|(check, _)| (check.epoch, Exact(check.dice))),
        };
        // Plain structs of numbers and a digest always serialise.
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let mut body = u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        body.extend_from_slice(&head);
        body.extend_from_slice(&student);
        if let Some((_, best)) = &self.best {
            body.extend_from_slice(&best.to_bytes());
        }
        let mut bytes = Vec::with_capacity(FRONT_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(Digest::of(&body).as_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads [`Saved::to_bytes`].
    ///
    /// # Errors
    /// Bytes of another kind or version, cut off, damaged, or without usable models.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(Error::Foreign)?;
        let version = u32::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let (expected, found) = (u64::from_le_bytes(take(&mut rest)?), rest.len() as u64);
        let checksum: [u8; 32] = take(&mut rest)?;
        let found = found.saturating_sub(checksum.len() as u64);
        if expected != found {
            return Err(Error::Length { expected, found });
        }
        if Digest::of(rest).as_bytes() != &checksum {
            return Err(Error::Checksum);
        }
        let length = u32::from_le_bytes(take(&mut rest)?);
        if length > HEAD_MAX_BYTES {
            return Err(Error::Head(format!("it claims {length} bytes")));
        }
        let (head, rest) = split(rest, length.into(), "it is cut off")?;
        let head: Head = serde_json::from_slice(head).map_err(|e| Error::Head(e.to_string()))?;
        let (student, best) = split(rest, head.student_bytes, "its model is cut off")?;
        let student = Weights::from_bytes(student)?;
        if student.optimizer.is_none() {
            return Err(Error::Head("its model has no optimizer state".to_owned()));
        }
        let best = match head.best {
            Some((epoch, dice)) => {
                Some((Check { epoch, dice: dice.0 }, Weights::from_bytes(best)?))
            }
            None if best.is_empty() => None,
            None => return Err(Error::Head("more follows than it says".to_owned())),
        };
        let Head { visit, epoch, batch, figures, thrift, made_on, .. } = head;
        let at = Position { epoch, batch };
        Ok(Self { visit, at, figures, thrift, made_on, student, best })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Error> {
    let (first, tail) = rest
        .split_first_chunk()
        .ok_or(Error::Length { expected: N as u64, found: rest.len() as u64 })?;
    *rest = tail;
    Ok(*first)
}

fn split<'b>(bytes: &'b [u8], at: u64, otherwise: &str) -> Result<(&'b [u8], &'b [u8]), Error> {
    let at = usize::try_from(at).ok();
    at.and_then(|at| bytes.split_at_checked(at)).ok_or_else(|| Error::Head(otherwise.to_owned()))
}

/// What makes a visit this visit: recipe, seed, received or fresh model, device, cases. `images` is a
/// digest over the contents of all cases, as the caller knows them.
#[must_use]
pub fn identity(visit: &Visit<'_>, device: &Device, images: Digest) -> Digest {
    let mut bytes = Vec::new();
    let mut field = |content: &[u8]| {
        bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(content);
    };
    // A recipe is a plain struct of numbers and names.
    field(&serde_json::to_vec(visit.recipe).unwrap_or_default());
    field(&visit.seed.to_le_bytes());
    let received = visit.received.map(|weights| Digest::of(&weights.to_bytes()));
    field(received.as_ref().map_or(&[][..], |digest| digest.as_bytes()));
    field(device.choice().to_string().as_bytes());
    for cases in [visit.cases, visit.validation] {
        field(&(cases.len() as u64).to_le_bytes());
        cases.iter().for_each(|case| field(case.id.as_bytes()));
    }
    field(images.as_bytes());
    Digest::of(&bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::Moments;
    use rondo::recipe::Architecture;

    fn saved(best: bool) -> Saved {
        let mut student = Weights::initial(Architecture { n1: 1, n2: 1, n3: 1, m: 1 }, 3);
        let mut moments = Moments::zero(student.parameters.len(), 0.0);
        moments.step = 7;
        moments.first.fill(0.25);
        student.optimizer = Some(moments);
        let figures = Figures {
            updates: 7,
            checks: vec![(2, Exact(0.1 + 0.2)), (4, Exact(1.0 / 3.0))],
            dice_before: Some(Exact(std::f64::consts::PI / 10.0)),
            ..Figures::default()
        };
        let check = Check { epoch: 4, dice: 1.0 / 3.0 };
        Saved {
            visit: Digest::of(b"this one"),
            at: Position { epoch: 4, batch: 2 },
            figures,
            thrift: 1,
            made_on: "here".to_owned(),
            best: best.then(|| (check, Weights { optimizer: None, ..student.clone() })),
            student,
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused() {
        let bytes = saved(true).to_bytes();
        for cut in 0..bytes.len() {
            assert!(Saved::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(Saved::from_bytes(&longer), Err(Error::Length { .. })));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(Saved::from_bytes(&bad).is_err(), "flipped at {at}");
        }
        assert_eq!(Saved::from_bytes(b"PK\x03\x04 a zip file"), Err(Error::Foreign));
    }

    #[test]
    fn well_sealed_nonsense_is_refused_too() {
        let seal = |body: &[u8]| {
            let mut bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes()].concat();
            bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
            bytes.extend_from_slice(Digest::of(body).as_bytes());
            bytes.extend_from_slice(body);
            Saved::from_bytes(&bytes).unwrap_err().to_string()
        };
        assert!(seal(&[]).contains("bytes after"));
        assert!(seal(&u32::MAX.to_le_bytes()).contains("claims"));
        assert!(seal(&[9, 0, 0, 0, 1]).contains("cut off"));
        assert!(seal(b"\x02\0\0\0{}").contains("missing field"));
        let good = saved(false).to_bytes();
        let body = &good[FRONT_BYTES..];
        assert!(seal(&[body, &[1]].concat()).contains("more follows"));
        let huge = String::from_utf8_lossy(&body[4..]).find("\"student_bytes\":").unwrap();
        let mut other = body.to_vec();
        other[4 + huge + 16] = b'9';
        assert!(seal(&other).contains("cut off") || seal(&other).contains("model"));
    }

    #[test]
    fn a_state_comes_back_with_every_bit() {
        for state in [saved(false), saved(true)] {
            assert_eq!(Saved::from_bytes(&state.to_bytes()).unwrap(), state);
        }
    }
}
