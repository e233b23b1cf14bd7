//! A site's own keys and card: made once on the host, read at every start.

use crate::durable::{self, Mode};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rondo::envelope::{self, Envelope, SigningKey};
use rondo::ids::{Digest, SiteId};
use rondo::trust::{self, SiteCard};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const SIGNING_KEY: &str = "keys/signing.pk8";
const TLS_KEY: &str = "keys/tls.pk8";
const TLS_CERTIFICATE: &str = "keys/tls.pem";
/// The site's signed card, to be given to others.
pub const CARD: &str = "card.json";
/// Largest key, certificate or card file that is read.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Why a site's identity is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or unreadable.
    #[error("reading {}: {source}. Restore it from your backup; a node never runs without its keys", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A private key that others can read.
    #[error("{} can be read by others (mode {mode:o}); run `chmod 600 {}`", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file that could not be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is an identity already.
    #[error("{} exists already; a site keeps its keys. Choose another --home, or move it away", .0.display())]
    Exists(PathBuf),
    /// A key or card with damage.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Signing key.
    #[error(transparent)]
    Envelope(#[from] envelope::Error),
    /// Card.
    #[error(transparent)]
    Card(#[from] trust::Error),
    /// The TLS certificate could not be made.
    #[error("making the TLS certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// What a new site says about itself.
#[derive(Debug, Clone)]
pub struct NewSite {
    /// Its id.
    pub site: SiteId,
    /// Its name for people.
    pub name: String,
    /// Where peers reach it.
    pub endpoints: Vec<String>,
    /// Unix time now.
    pub now: u64,
    /// How long its card is valid, in days.
    pub valid_days: u32,
}

/// Keys and card of this site.
pub struct Identity {
    /// Signs receipts and manifests.
    pub signing: SigningKey,
    /// Serves TLS.
    pub tls_key: PrivateKeyDer<'static>,
    /// Its certificate; peers look at its public key only.
    pub tls_certificate: CertificateDer<'static>,
    /// The signed card.
    pub card: Envelope,
    /// The opened card.
    pub own: SiteCard,
}

impl Identity {
    /// Makes keys, certificate and card in `home`, all of it before the card that completes it.
    ///
    /// # Errors
    /// If there is an identity already, or a file cannot be written; no private key leaves the folder.
    pub fn create(home: &Path, new: &NewSite) -> Result<Self, Error> {
        Self::refuse_existing(home)?;
        let keys = home.join("keys");
        let made = |source, path: &Path| Error::Write { path: path.to_owned(), source };
        for folder in [home, &keys] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|e| made(e, folder))?;
        }
        let signing = SigningKey::generate()?;
        let tls = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateParams::new(vec![new.site.to_string()])?.self_signed(&tls)?;
        let write = |name: &str, bytes: &[u8], mode| {
            let path = home.join(name);
            durable::write(&path, bytes, mode).map_err(|e| made(e, &path))
        };
        write(SIGNING_KEY, &signing, Mode::Private)?;
        write(TLS_KEY, &tls.serialize_der(), Mode::Private)?;
        write(TLS_CERTIFICATE, certificate.pem().as_bytes(), Mode::Public)?;
        let key = SigningKey::from_pkcs8(&signing)?;
        let card = SiteCard {
            site: new.site.clone(),
            name: new.name.clone(),
            endpoints: new.endpoints.clone(),
            tls_key: public_key_digest(certificate.der())
                .ok_or(rcgen::Error::CouldNotParseCertificate)?,
            signing_key: key.public(),
            // An hour of clock skew between two hospitals must not make a new card invalid.
            valid_from: new.now.saturating_sub(3600),
            valid_until: new.now + u64::from(new.valid_days) * 86_400,
        };
        write(CARD, &card.sign(&key)?.to_json(), Mode::Public)?;
        Self::load(home)
    }

    /// Whether `home` is free for a new identity.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn refuse_existing(home: &Path) -> Result<(), Error> {
        let keys = home.join("keys");
        if home.join(CARD).exists() || keys.exists() { Err(Error::Exists(keys)) } else { Ok(()) }
    }

    /// Reads keys and card, and checks that they belong together.
    ///
    /// # Errors
    /// The file that is missing, too open or damaged.
    pub fn load(home: &Path) -> Result<Self, Error> {
        let damaged = |name: &str, what: String| Error::Damaged { path: home.join(name), what };
        let signing = SigningKey::from_pkcs8(&read_private(&home.join(SIGNING_KEY))?)
            .map_err(|e| damaged(SIGNING_KEY, e.to_string()))?;
        let tls_key = PrivatePkcs8KeyDer::from(read_private(&home.join(TLS_KEY))?).into();
        let tls_certificate = CertificateDer::from_pem_slice(&read(&home.join(TLS_CERTIFICATE))?)
            .map_err(|e| {
            damaged(TLS_CERTIFICATE, format!("it is not a PEM certificate ({e:?})"))
        })?;
        let card = Envelope::from_json(&read(&home.join(CARD))?)
            .map_err(|e| damaged(CARD, e.to_string()))?;
        let own = SiteCard::open(&card).map_err(|e| damaged(CARD, e.to_string()))?;
        if own.signing_key != signing.public()
            || public_key_digest(&tls_certificate) != Some(own.tls_key)
        {
            return Err(damaged(CARD, "it does not belong to the keys beside it".to_owned()));
        }
        aws_lc_rs::sign::any_supported_type(&tls_key)
            .and_then(|key| CertifiedKey::new(vec![tls_certificate.clone()], key).keys_match())
            .map_err(|e| {
                damaged(TLS_KEY, format!("it is not the key of {TLS_CERTIFICATE} ({e})"))
            })?;
        Ok(Self { signing, tls_key, tls_certificate, card, own })
    }
}

/// SHA-256 of the SubjectPublicKeyInfo of a certificate; what a roster pins.
#[must_use]
pub fn public_key_digest(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then(|| Digest::of(parsed.public_key().raw))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(fail)?.len() > FILE_MAX_BYTES {
        let what = format!("it is larger than {FILE_MAX_BYTES} bytes");
        return Err(Error::Damaged { path: path.to_owned(), what });
    }
    fs::read(path).map_err(fail)
}

fn read_private(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Mode { path: path.to_owned(), mode });
    }
    read(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn broken_missing_and_open_keys_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let new = NewSite {
            site: "uker".parse().unwrap(),
            name: "UKER".to_owned(),
            endpoints: vec!["localhost:7443".to_owned()],
            now: 1_000_000,
            valid_days: 1,
        };
        let made = Identity::create(home.path(), &new).unwrap();
        assert!(matches!(Identity::create(home.path(), &new), Err(Error::Exists(_))));
        let key = home.path().join(SIGNING_KEY);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(home.path()), Err(Error::Mode { mode: 0o640, .. })));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Identity::load(home.path()).unwrap().own, made.own);
        for name in [SIGNING_KEY, TLS_KEY, TLS_CERTIFICATE, CARD] {
            let path = home.path().join(name);
            let good = fs::read(&path).unwrap();
            durable::write(&path, &good[..good.len() / 2], Mode::Private).unwrap();
            assert!(matches!(Identity::load(home.path()), Err(Error::Damaged { .. })), "{name}");
            fs::remove_file(&path).unwrap();
            assert!(matches!(Identity::load(home.path()), Err(Error::Read { .. })), "{name}");
            durable::write(&path, &good, Mode::Private).unwrap();
        }
        assert!(Identity::load(home.path()).is_ok());
    }
}
