//! Signed envelopes: DSSE over ECDSA P-256 with SHA-256.
//!
//! Goals: what is signed is exactly the bytes that are kept, under a type that says what they mean.
//! Not goals: algorithm agility; a second signature on one envelope.

use crate::ids::Digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Largest envelope that is read.
pub const ENVELOPE_MAX_BYTES: usize = 1024 * 1024;

/// Length of an uncompressed P-256 point.
const POINT_BYTES: usize = 65;
/// What comes before the point in a SubjectPublicKeyInfo: two sequences, `id-ecPublicKey`,
/// `prime256v1`, and the head of the bit string (RFC 5480).
const PUBLIC_KEY_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Characters in a line of PEM.
const PEM_LINE: usize = 64;

/// Why an envelope or key was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a DSSE envelope with one signature.
    #[error("reading a signed envelope: {0}")]
    Malformed(String),
    /// A valid envelope about something else.
    #[error("the envelope holds `{found}`, but `{expected}` was expected")]
    Type {
        /// Wanted payload type.
        expected: &'static str,
        /// Found payload type.
        found: String,
    },
    /// The signature is not by the expected key over these bytes.
    #[error("the signature does not match: the content or its signer was changed")]
    Signature,
    /// The signing key cannot be used.
    #[error(
        "the signing key is not an ECDSA P-256 key in PKCS#8 form; restore it from your backup"
    )]
    Key,
    /// The library could not sign.
    #[error("signing failed")]
    Sign,
}

/// Public half of a site's signing key: an uncompressed P-256 point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyingKey([u8; POINT_BYTES]);

impl VerifyingKey {
    /// Names the key in an envelope: digest of its bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// The point.
    #[cfg(test)]
    pub(crate) fn point(&self) -> &[u8] {
        &self.0
    }

    /// The key as other programs read it: SubjectPublicKeyInfo in PEM, with the line length of RFC 7468.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let encoded = BASE64_STANDARD.encode([&PUBLIC_KEY_INFO[..], &self.0].concat());
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for (i, c) in encoded.chars().enumerate() {
            if i > 0 && i % PEM_LINE == 0 {
                pem.push('\n');
            }
            pem.push(c);
        }
        pem.push_str("\n-----END PUBLIC KEY-----\n");
        pem
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.id().short())
    }
}

impl FromStr for VerifyingKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut point = [0; POINT_BYTES];
        hex::decode_to_slice(text, &mut point)
            .map_err(|_| Error::Malformed("a signing key is 130 hexadecimal digits".to_owned()))?;
        Ok(Self(point))
    }
}

impl Serialize for VerifyingKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerifyingKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Private signing key of a site. It is never serialised by anything but [`SigningKey::generate`].
pub struct SigningKey {
    pair: EcdsaKeyPair,
    public: VerifyingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id().short())
    }
}

impl SigningKey {
    /// Makes a new key and returns its PKCS#8 bytes, to be kept with mode 0600.
    ///
    /// # Errors
    /// [`Error::Sign`] if the system has no randomness.
    pub fn generate() -> Result<Vec<u8>, Error> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .map_err(|_| Error::Sign)?;
        Ok(pkcs8.as_ref().to_vec())
    }

    /// Opens a key from its PKCS#8 bytes.
    ///
    /// # Errors
    /// [`Error::Key`] if the bytes are anything else.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, Error> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, bytes)
            .map_err(|_| Error::Key)?;
        let point = pair.public_key().as_ref().try_into().map_err(|_| Error::Key)?;
        Ok(Self { pair, public: VerifyingKey(point) })
    }

    /// A key of the simulator's own scheme, which only tests of this crate can make or check.
    #[cfg(test)]
    pub(crate) fn simulated(point: [u8; POINT_BYTES], pkcs8: &[u8]) -> Result<Self, Error> {
        Ok(Self { public: VerifyingKey(point), ..Self::from_pkcs8(pkcs8)? })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        self.public
    }

    /// Signs `payload` as something of type `payload_type`.
    ///
    /// # Errors
    /// [`Error::Sign`] if the system has no randomness.
    pub fn sign(&self, payload_type: &'static str, payload: Vec<u8>) -> Result<Envelope, Error> {
        let message = pre_authentication_encoding(payload_type, &payload);
        let envelope = |signature| {
            let payload_type = payload_type.to_owned();
            Envelope(Arc::new(Sealed { payload_type, payload, key: self.public.id(), signature }))
        };
        #[cfg(test)]
        if let Some(signature) = crate::simulator::keys::signature(&self.public, &message) {
            return Ok(envelope(signature));
        }
        let signature = self.pair.sign(&SystemRandom::new(), &message).map_err(|_| Error::Sign)?;
        Ok(envelope(signature.as_ref().to_vec()))
    }
}

/// A DSSE envelope with one signature, not yet verified: its payload is reached only by
/// [`Envelope::verify`], or by [`Envelope::unverified`] where the signer must be looked up first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Dsse", into = "Dsse")]
pub struct Envelope(Arc<Sealed>);

// A state holds its whole history in envelopes and is cloned for every event.
#[derive(Debug, PartialEq, Eq)]
struct Sealed {
    payload_type: String,
    payload: Vec<u8>,
    key: Digest,
    signature: Vec<u8>,
}

impl Envelope {
    /// Parses the JSON form.
    ///
    /// # Errors
    /// [`Error::Malformed`] for anything but one complete envelope.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > ENVELOPE_MAX_BYTES {
            return Err(Error::Malformed(format!("it is larger than {ENVELOPE_MAX_BYTES} bytes")));
        }
        serde_json::from_slice(bytes).map_err(|e| Error::Malformed(e.to_string()))
    }

    /// The JSON form, on one line.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The payload, if `key` signed it as `payload_type`.
    ///
    /// # Errors
    /// [`Error::Type`] or [`Error::Signature`].
    pub fn verify(&self, payload_type: &'static str, key: &VerifyingKey) -> Result<&[u8], Error> {
        let payload = self.unverified(payload_type)?;
        let message = pre_authentication_encoding(payload_type, payload);
        if self.0.key != key.id() {
            return Err(Error::Signature);
        }
        #[cfg(test)]
        if let Some(signature) = crate::simulator::keys::signature(key, &message) {
            return if signature == self.0.signature { Ok(payload) } else { Err(Error::Signature) };
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.0)
            .verify(&message, &self.0.signature)
            .map_err(|_| Error::Signature)?;
        Ok(payload)
    }

    /// The payload before verification, only to find out whose key to verify it with.
    ///
    /// # Errors
    /// [`Error::Type`] if it is something else.
    pub fn unverified(&self, payload_type: &'static str) -> Result<&[u8], Error> {
        if self.0.payload_type != payload_type {
            let found = self.0.payload_type.chars().take(80).collect();
            return Err(Error::Type { expected: payload_type, found });
        }
        Ok(&self.0.payload)
    }

    /// Id of the key that it says it was signed with; [`Envelope::verify`] checks that.
    #[must_use]
    pub fn key(&self) -> Digest {
        self.0.key
    }

    /// Digest of the payload.
    #[must_use]
    pub fn payload_digest(&self) -> Digest {
        Digest::of(&self.0.payload)
    }
}

/// DSSE protocol v1: what the signature covers.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message =
        format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Dsse {
    payload_type: String,
    payload: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DsseSignature {
    keyid: Digest,
    sig: String,
}

impl From<Envelope> for Dsse {
    fn from(Envelope(e): Envelope) -> Self {
        let sig = BASE64_STANDARD.encode(&e.signature);
        Self {
            payload_type: e.payload_type.clone(),
            payload: BASE64_STANDARD.encode(&e.payload),
            signatures: vec![DsseSignature { keyid: e.key, sig }],
        }
    }
}

impl TryFrom<Dsse> for Envelope {
    type Error = Error;
    fn try_from(dsse: Dsse) -> Result<Self, Error> {
        let decode = |text: &str| {
            BASE64_STANDARD.decode(text).map_err(|e| Error::Malformed(format!("base64: {e}")))
        };
        let [signature] = dsse.signatures.as_slice() else {
            let n = dsse.signatures.len();
            return Err(Error::Malformed(format!("one signature is expected, {n} were found")));
        };
        Ok(Self(Arc::new(Sealed {
            payload: decode(&dsse.payload)?,
            key: signature.keyid,
            signature: decode(&signature.sig)?,
            payload_type: dsse.payload_type,
        })))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KIND: &str = "application/vnd.rondo.test";

    #[test]
    fn any_changed_byte_is_refused() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let other = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let envelope = key.sign(KIND, b"twelve notes".to_vec()).unwrap();
        assert_eq!(envelope.verify(KIND, &other.public()), Err(Error::Signature));
        assert!(matches!(envelope.verify("x", &key.public()), Err(Error::Type { .. })));
        let json = envelope.to_json();
        for i in 0..json.len() {
            let mut bad = json.clone();
            bad[i] ^= 1;
            let outcome = Envelope::from_json(&bad)
                .and_then(|e| e.verify(KIND, &key.public()).map(<[u8]>::to_vec));
            assert!(outcome.is_err(), "byte {i} may change unnoticed");
            assert!(Envelope::from_json(&json[..i]).is_err(), "cut at {i}");
        }
        let read = Envelope::from_json(&json).unwrap();
        assert_eq!(read.verify(KIND, &key.public()), Ok(&b"twelve notes"[..]));
    }

    #[test]
    fn pre_authentication_encoding_is_that_of_dsse() {
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }
}
