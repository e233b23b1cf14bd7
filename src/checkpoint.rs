//! Checkpoints: the one byte layout a model may have, and the only way to a [`VerifiedCheckpoint`].
//!
//! A checkpoint is a safetensors file whose header is *computed* from the architecture: tensors in
//! the order of their names, float32, no metadata, no padding beyond the format's own alignment. A
//! file is accepted only if its header equals that computation byte for byte and every number in it
//! is finite, so there is nowhere to hide data.

use crate::ids::Digest;
use crate::recipe::Architecture;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

/// Largest header that is looked at to explain a refusal.
const HEADER_MAX_BYTES: usize = 1024 * 1024;

/// Bytes of a number.
const WORD: u64 = 4;
/// Numbers that are looked at together.
const BLOCK_WORDS: usize = 4096;
/// Bits of a float32 that are all set in what is not finite.
const EXPONENT: u32 = 0x7f80_0000;

/// Why bytes are not a checkpoint of the expected layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length differs.
    #[error("the checkpoint has {found} bytes, but its architecture needs exactly {expected}")]
    Length {
        /// Bytes needed.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A tensor is missing, extra, misshapen or of another type, or the header holds more than tensors.
    #[error("the checkpoint's header is not the one of its architecture: {0}")]
    Header(String),
    /// A number is NaN or infinite.
    #[error("tensor `{tensor}` holds a value that is not finite at element {element}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Index of the first such element.
        element: u64,
    },
    /// The bytes are intact but not the ones that were promised.
    #[error("the checkpoint's digest is {found}, but {expected} was promised")]
    Digest {
        /// Promised digest.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name, as in the published `state_dict`.
    pub name: String,
    /// Shape; a scalar has none.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// How the importance of parameters was measured. Figures of one cannot stand for the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Fisher information, of elastic weight consolidation.
    Ewc,
    /// Size of the logits' gradient, of memory aware synapses.
    Mas,
}

impl Measure {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ewc, Self::Mas];

    /// What the names of its tensors begin with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Ewc => "importance.ewc.",
            Self::Mas => "importance.mas.",
        }
    }
}

/// What a checkpoint holds beside the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// Adam's state: `optimizer.first_moment.p`, `optimizer.second_moment.p` and `optimizer.maximum.p`
    /// of each parameter `p`, and the scalars `optimizer.step` and `optimizer.learning_rate`.
    pub optimizer: bool,
    /// `importance.ewc.p` or `importance.mas.p` of each parameter `p`, summed over the visits so far.
    pub importance: Option<Measure>,
}

impl Extras {
    /// Weights alone.
    pub const NONE: Self = Self { optimizer: false, importance: None };
    /// Every combination, the weights alone first.
    pub const EACH: [Self; 6] = [
        Self::NONE,
        Self { optimizer: true, importance: None },
        Self { optimizer: false, importance: Some(Measure::Ewc) },
        Self { optimizer: true, importance: Some(Measure::Ewc) },
        Self { optimizer: false, importance: Some(Measure::Mas) },
        Self { optimizer: true, importance: Some(Measure::Mas) },
    ];
}

/// The exact layout of a checkpoint: which tensors, in which order, at which offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    header: Vec<u8>,
}

impl Layout {
    /// Layout of the weights of `architecture` with `extras` beside them.
    #[must_use]
    pub fn new(architecture: &Architecture, extras: Extras) -> Self {
        let parameters = parameters(architecture);
        let mut tensors = parameters.clone();
        for p in &parameters {
            if let Some(bn) = p.name.strip_suffix(".bias").filter(|bn| *bn != "fc.2") {
                for part in ["running_mean", "running_var"] {
                    tensors
                        .push(TensorSpec { name: format!("{bn}.{part}"), shape: p.shape.clone() });
                }
            }
            if let Some(measure) = extras.importance {
                let name = format!("{}{}", measure.prefix(), p.name);
                tensors.push(TensorSpec { name, shape: p.shape.clone() });
            }
            if extras.optimizer {
                for part in ["first_moment", "maximum", "second_moment"] {
                    let name = format!("optimizer.{part}.{}", p.name);
                    tensors.push(TensorSpec { name, shape: p.shape.clone() });
                }
            }
        }
        if extras.optimizer {
            for name in ["optimizer.learning_rate", "optimizer.step"] {
                tensors.push(TensorSpec { name: name.to_owned(), shape: Vec::new() });
            }
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let header = header(&tensors);
        Self { tensors, header }
    }

    /// The layout of `architecture` that the header of `bytes` has, with whatever extras; the one of
    /// the weights alone if it has none of them, whose [`Layout::check`] then says what is wrong.
    ///
    /// For a model that a round starts from, which may come from a round with another recipe.
    #[must_use]
    pub fn of(architecture: &Architecture, bytes: &[u8]) -> Self {
        let mut all = Extras::EACH.into_iter().map(|extras| Self::new(architecture, extras));
        all.find(|layout| bytes.starts_with(&layout.header))
            .unwrap_or_else(|| Self::new(architecture, Extras::NONE))
    }

    /// Tensors in the order of their bytes.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The header's bytes, its eight length bytes included; the tensors' bytes follow directly.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Every tensor with the place of its numbers in the file.
    pub fn places(&self) -> impl Iterator<Item = (&TensorSpec, Range<u64>)> {
        let mut at = self.header.len() as u64;
        self.tensors.iter().map(move |tensor| {
            let start = at;
            at += WORD * tensor.elements();
            (tensor, start..at)
        })
    }

    /// Length of the whole file.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|t| 4 * t.elements()).sum::<u64>()
    }

    /// Never true; a layout has tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Checks header, length and every number of `bytes`.
    ///
    /// # Errors
    /// The first departure from this layout, by the name of its tensor.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Error> {
        if !bytes.starts_with(&self.header) {
            return Err(Error::Header(self.explain(bytes)));
        }
        if bytes.len() as u64 != self.len() {
            return Err(Error::Length { expected: self.len(), found: bytes.len() as u64 });
        }
        self.check_piece(0, bytes)
    }

    /// Checks the header and every number in the `piece` that begins at byte `offset`, so that a
    /// file may be checked as it comes. All pieces together have the layout if each one has it, their
    /// lengths add up to [`Layout::len`], and each begins at a multiple of four bytes.
    ///
    /// # Errors
    /// The first departure from this layout, by the name of its tensor.
    pub fn check_piece(&self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        if !offset.is_multiple_of(WORD) {
            return Err(Error::Header(format!("a piece begins inside a number, at byte {offset}")));
        }
        let end = offset.saturating_add(piece.len() as u64);
        if end > self.len() {
            return Err(Error::Length { expected: self.len(), found: end });
        }
        self.check_header(offset, piece)?;
        let header = self.header.len() as u64;
        let skip = usize::try_from(header.saturating_sub(offset)).unwrap_or(usize::MAX);
        let data = piece.get(skip..).unwrap_or_default();
        match first_not_finite(data) {
            Some(word) => Err(self.not_finite(offset.max(header) - header + WORD * word as u64)),
            None => Ok(()),
        }
    }

    /// Compares what of the header lies in the piece at `offset`.
    fn check_header(&self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.header.get(at..));
        let rest = rest.unwrap_or_default();
        if rest.iter().zip(piece).any(|(want, found)| want != found) {
            return Err(Error::Header(if offset == 0 {
                self.explain(piece)
            } else {
                format!("it differs after byte {offset}")
            }));
        }
        Ok(())
    }

    /// Names the number that begins `at` bytes after the header.
    fn not_finite(&self, at: u64) -> Error {
        let mut element = at / WORD;
        for tensor in &self.tensors {
            if element < tensor.elements() {
                return Error::NotFinite { tensor: tensor.name.clone(), element };
            }
            element -= tensor.elements();
        }
        Error::Length { expected: self.len(), found: self.header.len() as u64 + at + WORD }
    }

    /// Says what in a foreign header differs; only ever used to word a refusal.
    fn explain(&self, bytes: &[u8]) -> String {
        #[derive(Deserialize)]
        struct Entry {
            dtype: String,
            shape: Vec<u64>,
        }
        let (length, rest) = match bytes.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_le_bytes(*length), rest),
            None => return "it is shorter than eight bytes".to_owned(),
        };
        let json = usize::try_from(length).ok().filter(|n| *n <= HEADER_MAX_BYTES);
        let Some(json) = json.and_then(|n| rest.get(..n)) else {
            return format!("its header claims {length} bytes");
        };
        let found: BTreeMap<String, serde_json::Value> = match serde_json::from_slice(json) {
            Ok(found) => found,
            Err(e) => return format!("it is not a safetensors header ({e})"),
        };
        for tensor in &self.tensors {
            let Some(value) = found.get(&tensor.name) else {
                return format!("tensor `{}` is missing", tensor.name);
            };
            match Entry::deserialize(value) {
                Ok(e) if e.dtype != "F32" => {
                    return format!("tensor `{}` is {}, not F32", tensor.name, quoted(&e.dtype));
                }
                Ok(e) if e.shape != tensor.shape => {
                    let (name, want) = (&tensor.name, &tensor.shape);
                    return format!("tensor `{name}` has shape {:?}, not {want:?}", e.shape);
                }
                Ok(_) => {}
                Err(_) => return format!("the entry of tensor `{}` is malformed", tensor.name),
            }
        }
        let known = |name: &str| self.tensors.iter().any(|t| t.name == name);
        match found.keys().find(|name| !known(name)) {
            Some(extra) => format!("it holds an extra entry {}", quoted(extra)),
            None => {
                "tensors are in another order, or it holds padding or unexpected fields".to_owned()
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("`{}`", text.chars().take(80).collect::<String>().escape_default())
}

/// Trainable tensors in the order of the published optimizer state: convolution, BN weight, BN bias.
///
/// 56 of them for every width; the last two are `fc.2`.
#[must_use]
pub fn parameters(a: &Architecture) -> Vec<TensorSpec> {
    let [n1, n2, n3, m] = [a.n1, a.n2, a.n3, a.m].map(u64::from);
    let mut list = Vec::new();
    let mut conv_bn = |conv: String, bn: String, cin: u64, cout: u64, k: u64| {
        list.push(TensorSpec { name: format!("{conv}.weight"), shape: vec![cout, cin, k, k, k] });
        list.push(TensorSpec { name: format!("{bn}.weight"), shape: vec![cout] });
        list.push(TensorSpec { name: format!("{bn}.bias"), shape: vec![cout] });
    };
    for (i, (cin, cout)) in [(1, n1), (n1, n1)].into_iter().enumerate() {
        conv_bn(format!("branch1.{i}.0"), format!("branch1.{i}.1"), cin, cout, 3);
    }
    for (i, (cin, cout)) in (2..).zip([(n1, n2), (n2, n2), (n2, n3)]) {
        conv_bn(format!("branch1.{i}.conv1"), format!("branch1.{i}.bn1"), cin, cout, 3);
        conv_bn(format!("branch1.{i}.conv2"), format!("branch1.{i}.bn2"), cout, cout, 3);
    }
    let widths = [1, n1, n1, n2, n2, n2, n2, n3, n3];
    for (i, pair) in widths.windows(2).enumerate() {
        if let &[cin, cout] = pair {
            conv_bn(format!("branch2.{i}.0"), format!("branch2.{i}.1"), cin, cout, 3);
        }
    }
    conv_bn("fc.0.0".to_owned(), "fc.0.1".to_owned(), 2 * n3, m, 1);
    conv_bn("fc.1.0".to_owned(), "fc.1.1".to_owned(), m, m, 1);
    list.push(TensorSpec { name: "fc.2.weight".to_owned(), shape: vec![2, m, 1, 1, 1] });
    list.push(TensorSpec { name: "fc.2.bias".to_owned(), shape: vec![2] });
    list
}

/// Index of the first number that is NaN or infinite.
fn first_not_finite(data: &[u8]) -> Option<usize> {
    let (words, _) = data.as_chunks::<4>();
    let bad = |w: &[u8; 4]| u32::from_le_bytes(*w) & EXPONENT == EXPONENT;
    // A block at a time without a way out of it, so that the compiler looks at many numbers at once.
    let block = |block: &[[u8; 4]]| block.iter().fold(false, |found, w| found | bad(w));
    let blocks = words.chunks(BLOCK_WORDS).enumerate();
    let (i, found) = blocks.into_iter().find(|(_, words)| block(words))?;
    found.iter().position(bad).map(|at| i * BLOCK_WORDS + at)
}

/// Header bytes as the safetensors format writes them: JSON without spaces, padded to eight bytes.
fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut json = String::from("{");
    let mut offset = 0;
    for (i, t) in tensors.iter().enumerate() {
        let shape = t.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let end = offset + 4 * t.elements();
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            json,
            r#"{comma}"{}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{offset},{end}]}}"#,
            t.name
        );
        offset = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

/// Bytes that were proved to be the promised checkpoint. Only [`VerifiedCheckpoint::verify`] makes one,
/// and a trainer takes nothing else.
#[derive(Debug, Clone)]
pub struct VerifiedCheckpoint {
    digest: Digest,
    bytes: Arc<[u8]>,
}

impl VerifiedCheckpoint {
    /// Proves that `bytes` have digest `expected` and exactly `layout`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(bytes: Vec<u8>, expected: Digest, layout: &Layout) -> Result<Self, Error> {
        let found = Digest::of(&bytes);
        if found != expected {
            return Err(Error::Digest { expected, found });
        }
        layout.check(&bytes)?;
        Ok(Self { digest: found, bytes: bytes.into() })
    }

    /// SHA-256 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The safetensors file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NARROW: Architecture = Architecture { n1: 2, n2: 3, n3: 4, m: 5 };

    fn zeros(layout: &Layout) -> Vec<u8> {
        let mut bytes = layout.header().to_vec();
        bytes.resize(usize::try_from(layout.len()).unwrap(), 0);
        bytes
    }

    #[test]
    fn paper_network_has_the_published_count_of_parameters() {
        let list = parameters(&Architecture::PAPER);
        assert_eq!(list.len(), 56);
        assert_eq!(list.iter().map(TensorSpec::elements).sum::<u64>(), 656_902);
        assert_eq!(Layout::new(&Architecture::PAPER, Extras::NONE).tensors().len(), 92);
    }

    #[test]
    fn departures_are_refused_by_name() {
        let layout = Layout::new(&NARROW, Extras::NONE);
        let good = zeros(&layout);
        let refuse = |bytes: &[u8]| layout.check(bytes).unwrap_err().to_string();
        assert!(refuse(&[]).contains("shorter than eight bytes"));
        let other = zeros(&Layout::new(&Architecture { n1: 1, ..NARROW }, Extras::NONE));
        assert!(refuse(&other).contains("branch1.0.0.weight"), "{}", refuse(&other));
        let more = zeros(&Layout::new(&NARROW, Extras::EACH[1]));
        assert!(refuse(&more).contains("extra entry `optimizer.first_moment"), "{}", refuse(&more));
        assert!(refuse(&[&good[..], &[0]].concat()).contains("exactly"));
        assert!(refuse(&good[..good.len() - 1]).contains("exactly"));
        let mut nan = good.clone();
        let at = layout.header().len() + 4;
        nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(
            refuse(&nan)
                .contains("`branch1.0.0.weight` holds a value that is not finite at element 1")
        );
        assert_eq!(layout.check(&good), Ok(()));
        let digest = Digest::of(&good);
        assert!(VerifiedCheckpoint::verify(nan, digest, &layout).is_err());
        assert_eq!(VerifiedCheckpoint::verify(good, digest, &layout).unwrap().digest(), digest);
    }

    #[test]
    fn pieces_are_checked_as_the_whole_is() {
        let layout = Layout::new(&Architecture { n1: 20, ..NARROW }, Extras::NONE);
        let good = zeros(&layout);
        let pieces = |bytes: &[u8], size: usize| {
            let mut at = 0;
            bytes.chunks(size).try_for_each(|piece| {
                layout.check_piece(at, piece)?;
                at += piece.len() as u64;
                Ok(())
            })
        };
        let header = layout.header().len();
        assert!(layout.check_piece(2, &good[2..9]).is_err(), "inside a number");
        let past = layout.check_piece(layout.len() - 4, &[0; 8]).unwrap_err();
        assert_eq!(past, Error::Length { expected: layout.len(), found: layout.len() + 4 });
        for at in [0, header - 1, header / 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(pieces(&bad, header / 8 * 4), Err(Error::Header(_))), "byte {at}");
        }
        for at in (header..good.len() - 3).step_by(1020) {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
            let whole = layout.check(&bad);
            assert!(matches!(whole, Err(Error::NotFinite { .. })));
            for size in [header, 4096, 20_000] {
                assert_eq!(pieces(&bad, size), whole, "byte {at} in pieces of {size}");
            }
        }
        let mut large = good.clone();
        large[header..header + 4].copy_from_slice(&f32::MIN.to_le_bytes());
        assert_eq!(pieces(&large, header), Ok(()));
    }

    #[test]
    fn extras_are_found_by_the_header() {
        for extras in Extras::EACH {
            let layout = Layout::new(&NARROW, extras);
            assert_eq!(Layout::of(&NARROW, &zeros(&layout)), layout);
            let count = |prefix: &str| {
                layout.tensors().iter().filter(|t| t.name.starts_with(prefix)).count()
            };
            let measured = if extras.importance.is_some() { 56 } else { 0 };
            assert_eq!(count("importance."), measured);
            assert_eq!(count("optimizer."), if extras.optimizer { 3 * 56 + 2 } else { 0 });
        }
        assert_eq!(Layout::of(&NARROW, b"junk"), Layout::new(&NARROW, Extras::NONE));
    }

    #[test]
    fn no_byte_of_the_header_may_change() {
        let layout = Layout::new(&NARROW, Extras::NONE);
        let good = zeros(&layout);
        for i in 0..layout.header().len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            assert!(layout.check(&bad).is_err(), "byte {i}");
        }
    }
}
