//! Signatures of the simulator. ECDSA would take nine tenths of its time and draws randomness, so a key
//! whose point is none (its first byte is not 4) signs with a digest. Nothing outside the tests of this
//! crate can make such a key or verify what it signed: both sides exist under `cfg(test)` only.

use crate::envelope::{SigningKey, VerifyingKey};
use crate::ids::Hasher;
use std::sync::OnceLock;

/// Marks a point as a simulated key.
const MARK: u8 = 0xff;

/// The key of site `number`.
pub(super) fn key(number: u8) -> SigningKey {
    static CARRIER: OnceLock<Vec<u8>> = OnceLock::new();
    let carrier = CARRIER.get_or_init(|| SigningKey::generate().unwrap());
    let mut point = [number; 65];
    point[0] = MARK;
    SigningKey::simulated(point, carrier).unwrap()
}

/// The signature of `key` over `message`, if the key is a simulated one.
pub(crate) fn signature(key: &VerifyingKey, message: &[u8]) -> Option<Vec<u8>> {
    let point = key.point();
    (point.first() == Some(&MARK)).then(|| {
        let mut hasher = Hasher::default();
        hasher.update(point);
        hasher.update(message);
        hasher.finish().as_bytes().to_vec()
    })
}
