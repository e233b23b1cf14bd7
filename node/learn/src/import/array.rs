//! A tensor as a file holds it: a view of some of its bytes.

use half::{bf16, f16};

/// Most axes a tensor may have; a kernel has five.
pub(crate) const AXES_MAX: usize = 5;

/// What the numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
}

impl Kind {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
        }
    }

    pub(crate) fn is_float(self) -> bool {
        !matches!(self, Self::I64 | Self::I32)
    }
}

/// Numbers one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) big_endian: bool,
}

/// Why a view of a storage is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "its shape and strides have {0} and {1} axes, where one number of at most {AXES_MAX} is due"
    )]
    Axes(usize, usize),
    #[error(
        "shape {shape:?} with strides {strides:?} from {offset} reaches beyond its storage of {count} numbers"
    )]
    Outside { shape: Vec<u64>, strides: Vec<u64>, offset: u64, count: usize },
    #[error(
        "shape {shape:?} with strides {strides:?} shows numbers more than once: elements overlap"
    )]
    Overlap { shape: Vec<u64>, strides: Vec<u64> },
}

/// Whether a view may show a number twice: some axis steps less far than the finer axes reach.
/// Every permutation or piece of a whole tensor passes, so nothing that was trained is refused; and a
/// small file cannot be made into large tensors.
fn overlaps(shape: &[u64], strides: &[u64]) -> bool {
    let mut axes: Vec<(u64, u64)> =
        strides.iter().copied().zip(shape.iter().copied()).filter(|(_, n)| *n > 1).collect();
    axes.sort_unstable();
    let mut reach = 0_u64;
    axes.into_iter().any(|(stride, n)| {
        let overlap = stride <= reach;
        reach = reach.saturating_add((n - 1).saturating_mul(stride));
        overlap
    })
}

/// A tensor. Every element lies inside the storage, and none of its numbers is shown twice.
#[derive(Debug, Clone)]
pub(crate) struct Array<'a> {
    storage: Storage<'a>,
    offset: usize,
    shape: Vec<u64>,
    strides: Vec<usize>,
    elements: usize,
}

impl<'a> Array<'a> {
    /// A view with `strides` (in numbers, not bytes) from number `offset` on.
    ///
    /// # Errors
    /// A view that leaves its storage or shows a number of it more than once.
    pub(crate) fn view(
        storage: Storage<'a>,
        offset: u64,
        shape: Vec<u64>,
        strides: Vec<u64>,
    ) -> Result<Self, Error> {
        let count = storage.data.len() / storage.kind.bytes();
        if shape.len() != strides.len() || shape.len() > AXES_MAX {
            return Err(Error::Axes(shape.len(), strides.len()));
        }
        let elements = shape
            .iter()
            .try_fold(1_u64, |product, n| product.checked_mul(*n))
            .and_then(|n| usize::try_from(n).ok());
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (n, stride)| {
            last.checked_add(n.saturating_sub(1).checked_mul(*stride)?)
        });
        let inside = match (elements, last) {
            (Some(0), _) => offset <= count as u64,
            (Some(_), Some(last)) => last < count as u64,
            _ => false,
        };
        let places: Option<Vec<usize>> = strides.iter().map(|s| usize::try_from(*s).ok()).collect();
        let (Some(elements), Some(places), Ok(offset), true) =
            (elements, places, usize::try_from(offset), inside)
        else {
            return Err(Error::Outside { shape, strides, offset, count });
        };
        if elements > 0 && overlaps(&shape, &strides) {
            return Err(Error::Overlap { shape, strides });
        }
        Ok(Self { storage, offset, shape, strides: places, elements })
    }

    /// All of a storage, row after row.
    ///
    /// # Errors
    /// A storage of another size than `shape`.
    pub(crate) fn whole(storage: Storage<'a>, shape: Vec<u64>) -> Result<Self, Error> {
        let mut strides = vec![1_u64; shape.len()];
        let mut below = 1_u64;
        for (stride, n) in strides.iter_mut().zip(&shape).rev() {
            *stride = below;
            below = below.saturating_mul((*n).max(1));
        }
        Self::view(storage, 0, shape, strides)
    }

    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape
    }

    pub(crate) fn kind(&self) -> Kind {
        self.storage.kind
    }

    /// Places of the elements in the storage, row after row.
    fn places(&self) -> impl Iterator<Item = usize> {
        (0..self.elements).map(|i| {
            let mut rest = i;
            let mut place = self.offset;
            for (n, stride) in self.shape.iter().zip(&self.strides).rev() {
                let n = usize::try_from(*n).unwrap_or(1).max(1);
                place += (rest % n) * stride;
                rest /= n;
            }
            place
        })
    }

    fn number<const N: usize>(&self, place: usize) -> [u8; N] {
        let bytes = self.storage.data.get(place * N..).and_then(|b| b.first_chunk::<N>());
        let mut bytes = bytes.copied().unwrap_or([0; N]);
        if self.storage.big_endian {
            bytes.reverse();
        }
        bytes
    }

    /// The elements in 32 bits, row after row; none for whole numbers.
    #[allow(clippy::cast_possible_truncation, reason = "rounding is what a narrower type does")]
    pub(crate) fn floats(&self) -> Option<Vec<f32>> {
        let places = self.places();
        match self.storage.kind {
            Kind::F32 => Some(places.map(|p| f32::from_le_bytes(self.number(p))).collect()),
            Kind::F64 => Some(places.map(|p| f64::from_le_bytes(self.number(p)) as f32).collect()),
            Kind::F16 => {
                Some(places.map(|p| f16::from_le_bytes(self.number(p)).to_f32()).collect())
            }
            Kind::Bf16 => {
                Some(places.map(|p| bf16::from_le_bytes(self.number(p)).to_f32()).collect())
            }
            Kind::I64 | Kind::I32 => None,
        }
    }

    /// The only element, in 64 bits.
    #[allow(clippy::cast_precision_loss, reason = "counts and learning rates; far below 2^53")]
    pub(crate) fn only(&self) -> Option<f64> {
        if self.elements != 1 {
            return None;
        }
        let place = self.places().next()?;
        Some(match self.storage.kind {
            Kind::F64 => f64::from_le_bytes(self.number(place)),
            Kind::I64 => i64::from_le_bytes(self.number(place)) as f64,
            Kind::I32 => f64::from(i32::from_le_bytes(self.number(place))),
            _ => f64::from(*self.floats()?.first()?),
        })
    }
}
