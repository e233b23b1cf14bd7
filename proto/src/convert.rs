//! Conversions between messages and domain types; what comes in is checked here.

mod recipe;
mod view;

pub use view::{hop_view, round_view};

use rondo::ids::{Digest, VisitNo};
use rondo::recipe::UnknownChoice;

/// A message that is not what its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Digests have 32 bytes.
    #[error("`{field}` has {found} bytes; a SHA-256 digest has 32")]
    Digest {
        /// Which field.
        field: &'static str,
        /// Its length.
        found: usize,
    },
    /// A field is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// An enum value that this software does not know.
    #[error("`{0}` has an unknown value")]
    Unknown(&'static str),
    /// A recipe that cannot run.
    #[error("the recipe cannot run: {}", .0.join("; "))]
    Recipe(Vec<String>),
    /// A choice by name.
    #[error(transparent)]
    Choice(#[from] UnknownChoice),
}

impl From<Error> for tonic::Status {
    fn from(e: Error) -> Self {
        Self::invalid_argument(e.to_string())
    }
}

/// Reads a digest.
///
/// # Errors
/// [`Error::Digest`] naming `field`.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, Error> {
    let found = bytes.len();
    bytes.try_into().map(Digest::from_bytes).map_err(|_| Error::Digest { field, found })
}

/// Reads a digest that may be absent (no bytes).
///
/// # Errors
/// [`Error::Digest`] naming `field`.
pub fn optional_digest(field: &'static str, bytes: &[u8]) -> Result<Option<Digest>, Error> {
    if bytes.is_empty() { Ok(None) } else { digest(field, bytes).map(Some) }
}

/// Writes a digest.
#[must_use]
pub fn digest_bytes(digest: Digest) -> Vec<u8> {
    digest.as_bytes().to_vec()
}

/// Reads a visit number; there is no visit 0.
///
/// # Errors
/// [`Error::Missing`].
pub fn visit(number: u32) -> Result<VisitNo, Error> {
    if number == 0 { Err(Error::Missing("visit")) } else { Ok(VisitNo(number)) }
}
