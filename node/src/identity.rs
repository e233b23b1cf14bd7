//! A site's own keys and card: made on the host, read at every start, renewed while it runs.
//!
//! The card says which keys are in force, and it is replaced in one step. Next keys lie in
//! `keys/next` from before a card announces them until after a card is signed by them; whenever the
//! power goes in between, the keys that the card names are in one of the two folders.

use crate::durable::{self, Mode};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rondo::envelope::{self, Envelope, SigningKey};
use rondo::ids::{Digest, SiteId};
use rondo::trust::{self, Keys, SiteCard};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const KEYS: &str = "keys";
const NEXT: &str = "keys/next";
const SIGNING_KEY: &str = "signing.pk8";
const TLS_KEY: &str = "tls.pk8";
const TLS_CERTIFICATE: &str = "tls.pem";
/// Days for which a card is valid unless the operator says otherwise.
pub const VALID_DAYS: u32 = 730;
/// Most days for which a card may be valid.
pub const VALID_DAYS_MAX: u32 = 3650;
/// An hour of clock skew between two hospitals must not make a new card invalid.
const SKEW_S: u64 = 3600;
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
    /// Next keys that are there already.
    #[error(
        "next keys are announced already, with fingerprint {0}; change over to them with `rondo site renew --activate`"
    )]
    Announced(String),
    /// No next keys.
    #[error("no next keys are announced; prepare them with `rondo site renew` first")]
    NotAnnounced,
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
    certified: Arc<CertifiedKey>,
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
        let keys = make_keys(home, KEYS, &new.site)?;
        let card = SiteCard {
            site: new.site.clone(),
            name: new.name.clone(),
            endpoints: new.endpoints.clone(),
            tls_key: keys.tls_key,
            signing_key: keys.signing_key,
            valid_from: new.now.saturating_sub(SKEW_S),
            valid_until: valid_until(new.now, new.valid_days),
            next: None,
            former: Vec::new(),
        };
        let key = load_signing(home, KEYS)?;
        write(&home.join(CARD), &card.sign(&key)?.to_json(), Mode::Public)?;
        Self::load(home)
    }

    /// Whether `home` is free for a new identity.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn refuse_existing(home: &Path) -> Result<(), Error> {
        let keys = home.join(KEYS);
        if home.join(CARD).exists() || keys.exists() { Err(Error::Exists(keys)) } else { Ok(()) }
    }

    /// Reads keys and card, and checks that they belong together.
    ///
    /// # Errors
    /// The file that is missing, too open or damaged.
    pub fn load(home: &Path) -> Result<Self, Error> {
        let path = home.join(CARD);
        let damaged = |what: String| Error::Damaged { path: path.clone(), what };
        let card = Envelope::from_json(&read(&path)?).map_err(|e| damaged(e.to_string()))?;
        let own = SiteCard::open(&card).map_err(|e| damaged(e.to_string()))?;
        let signing =
            in_force(home, load_signing, |key: &SigningKey| key.public() == own.signing_key)?;
        let tls = in_force(home, load_tls, |tls: &Tls| tls.digest == own.tls_key)?;
        let Tls { key: tls_key, certificate: tls_certificate, certified, .. } = tls;
        Ok(Self { signing, tls_key, tls_certificate, certified, card, own })
    }

    /// A card for the same keys, valid from now; what is announced stays announced.
    ///
    /// # Errors
    /// If it cannot be signed or written; the card from before is in force then.
    pub fn renew_card(&self, home: &Path, now: u64, valid_days: u32) -> Result<Self, Error> {
        let card = self.later_card(now, valid_days);
        write(&home.join(CARD), &card.sign(&self.signing)?.to_json(), Mode::Public)?;
        Self::load(home)
    }

    /// Makes next keys and a card that announces them.
    ///
    /// # Errors
    /// [`Error::Announced`], or as [`Identity::renew_card`].
    pub fn prepare(&self, home: &Path, now: u64, valid_days: u32) -> Result<Self, Error> {
        if let Some(fingerprint) = self.own.next_fingerprint() {
            return Err(Error::Announced(fingerprint));
        }
        remove_next(home)?;
        let next = Some(make_keys(home, NEXT, &self.own.site)?);
        let card = SiteCard { next, ..self.later_card(now, valid_days) };
        write(&home.join(CARD), &card.sign(&self.signing)?.to_json(), Mode::Public)?;
        Self::load(home)
    }

    /// Changes over to the next keys: from the moment their card is written, they are in force.
    ///
    /// # Errors
    /// [`Error::NotAnnounced`], or as [`Identity::renew_card`].
    pub fn activate(&self, home: &Path, now: u64, valid_days: u32) -> Result<Self, Error> {
        let next = self.own.next.ok_or(Error::NotAnnounced)?;
        let (signing, tls) = (load_signing(home, NEXT)?, load_tls(home, NEXT)?);
        if signing.public() != next.signing_key || tls.digest != next.tls_key {
            let what = "these are not the keys that the card announces".to_owned();
            return Err(Error::Damaged { path: home.join(NEXT), what });
        }
        let mut card = self.later_card(now, valid_days);
        card.former.push(card.signing_key);
        (card.tls_key, card.signing_key, card.next) = (next.tls_key, next.signing_key, None);
        write(&home.join(CARD), &card.sign(&signing)?.to_json(), Mode::Public)?;
        let new = Self::load(home)?;
        new.settle(home)?;
        Ok(new)
    }

    /// Ends a change-over that the card has already made, and clears away keys that were never
    /// announced. Done again after a crash, it ends the same.
    ///
    /// # Errors
    /// If a file cannot be read or written; the keys in force stay readable.
    pub fn settle(&self, home: &Path) -> Result<(), Error> {
        if self.own.next.is_some() || !home.join(NEXT).exists() {
            return Ok(());
        }
        let copy = |name: &str, mode| {
            write(&home.join(KEYS).join(name), &read(&home.join(NEXT).join(name))?, mode)
        };
        if load_signing(home, NEXT).is_ok_and(|key| key.public() == self.own.signing_key) {
            copy(SIGNING_KEY, Mode::Private)?;
        }
        if load_tls(home, NEXT).is_ok_and(|tls| tls.digest == self.own.tls_key) {
            copy(TLS_KEY, Mode::Private)?;
            copy(TLS_CERTIFICATE, Mode::Public)?;
        }
        // Nothing is removed before what is in force was read from where it now belongs.
        if load_signing(home, KEYS)?.public() != self.own.signing_key
            || load_tls(home, KEYS)?.digest != self.own.tls_key
        {
            return Err(not_of_the_card(home));
        }
        remove_next(home)
    }

    /// This card, newer than itself.
    fn later_card(&self, now: u64, valid_days: u32) -> SiteCard {
        let valid_from = now.saturating_sub(SKEW_S).max(self.own.valid_from.saturating_add(1));
        SiteCard { valid_from, valid_until: valid_until(now, valid_days), ..self.own.clone() }
    }
}

fn valid_until(now: u64, valid_days: u32) -> u64 {
    now.saturating_add(u64::from(valid_days) * 86_400)
}

/// Key and certificate for TLS, which belong together.
struct Tls {
    key: PrivateKeyDer<'static>,
    certificate: CertificateDer<'static>,
    certified: Arc<CertifiedKey>,
    digest: Digest,
}

/// Makes both keys and a certificate in `folder`, none of which anybody knows of yet.
fn make_keys(home: &Path, folder: &str, site: &SiteId) -> Result<Keys, Error> {
    let folder = home.join(folder);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|source| Error::Write { path: folder.clone(), source })?;
    let signing = SigningKey::generate()?;
    let tls = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::new(vec![site.to_string()])?.self_signed(&tls)?;
    write(&folder.join(SIGNING_KEY), &signing, Mode::Private)?;
    write(&folder.join(TLS_KEY), &tls.serialize_der(), Mode::Private)?;
    write(&folder.join(TLS_CERTIFICATE), certificate.pem().as_bytes(), Mode::Public)?;
    let tls_key =
        public_key_digest(certificate.der()).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    Ok(Keys { tls_key, signing_key: SigningKey::from_pkcs8(&signing)?.public() })
}

fn load_signing(home: &Path, folder: &str) -> Result<SigningKey, Error> {
    let path = home.join(folder).join(SIGNING_KEY);
    let bytes = read_private(&path)?;
    SigningKey::from_pkcs8(&bytes).map_err(|e| Error::Damaged { path, what: e.to_string() })
}

/// The first certificate of the file is the site's own; a chain may follow it.
fn load_tls(home: &Path, folder: &str) -> Result<Tls, Error> {
    let path = home.join(folder).join(TLS_KEY);
    let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(read_private(&path)?).into();
    let beside = home.join(folder).join(TLS_CERTIFICATE);
    let damaged = |what| Error::Damaged { path: beside.clone(), what };
    let certificate = CertificateDer::from_pem_slice(&read(&beside)?)
        .map_err(|e| damaged(format!("it is not a PEM certificate ({e:?})")))?;
    let digest = public_key_digest(&certificate)
        .ok_or_else(|| damaged("its public key cannot be read".to_owned()))?;
    let certified = aws_lc_rs::sign::any_supported_type(&key)
        .map(|key| CertifiedKey::new(vec![certificate.clone()], key))
        .and_then(|pair| pair.keys_match().map(|()| Arc::new(pair)))
        .map_err(|e| {
            let what = format!("it is not the key of {TLS_CERTIFICATE} ({e})");
            Error::Damaged { path, what }
        })?;
    Ok(Tls { key, certificate, certified, digest })
}

/// What the card names, from the folder of the keys or, while a change-over is being ended, from that
/// of the next keys.
fn in_force<T>(
    home: &Path,
    load: impl Fn(&Path, &str) -> Result<T, Error>,
    named: impl Fn(&T) -> bool,
) -> Result<T, Error> {
    let here = load(home, KEYS);
    match here {
        Ok(found) if named(&found) => Ok(found),
        other => match load(home, NEXT) {
            Ok(found) if named(&found) => Ok(found),
            _ => other.and_then(|_| Err(not_of_the_card(home))),
        },
    }
}

fn not_of_the_card(home: &Path) -> Error {
    let what = "it does not belong to the keys beside it".to_owned();
    Error::Damaged { path: home.join(CARD), what }
}

fn remove_next(home: &Path) -> Result<(), Error> {
    let path = home.join(NEXT);
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Write { path, source })
        }
        _ => Ok(()),
    }
}

/// Keys and card in force, shared by all that use them; they may change while the daemon runs.
#[derive(Clone)]
pub struct Own(Arc<RwLock<Arc<Identity>>>);

impl Own {
    /// Begins with `identity`.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(identity))))
    }

    /// What is in force now.
    #[must_use]
    pub fn now(&self) -> Arc<Identity> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts `identity`, which is on the disk already, in force.
    pub fn change(&self, identity: Identity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Own({})", self.now().own.site)
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now().certified.clone())
    }
}

/// SHA-256 of the SubjectPublicKeyInfo of a certificate; what a roster pins.
#[must_use]
pub fn public_key_digest(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then(|| Digest::of(parsed.public_key().raw))
}

fn write(path: &Path, bytes: &[u8], mode: Mode) -> Result<(), Error> {
    durable::write(path, bytes, mode)
        .map_err(|source| Error::Write { path: path.to_owned(), source })
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
        let (home, new) = (tempfile::tempdir().unwrap(), uker());
        let made = Identity::create(home.path(), &new).unwrap();
        assert!(matches!(Identity::create(home.path(), &new), Err(Error::Exists(_))));
        let key = home.path().join("keys/signing.pk8");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(home.path()), Err(Error::Mode { mode: 0o640, .. })));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Identity::load(home.path()).unwrap().own, made.own);
        for name in ["keys/signing.pk8", "keys/tls.pk8", "keys/tls.pem", CARD] {
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

    /// What a change-over writes, in its order; the power goes after any number of them.
    #[test]
    fn a_site_has_usable_keys_wherever_a_change_over_is_cut() {
        let (home, new) = (tempfile::tempdir().unwrap(), uker());
        let home = home.path();
        let first = Identity::create(home, &new).unwrap();
        assert!(matches!(first.activate(home, new.now, 1), Err(Error::NotAnnounced)));
        let renewed = first.renew_card(home, new.now + 86_400, 9).unwrap();
        assert!(renewed.own.renews(&first.own));
        assert_eq!(renewed.own.valid_until, new.now + 10 * 86_400);

        // Keys that no card announces yet are none.
        make_keys(home, NEXT, &new.site).unwrap();
        let read = Identity::load(home).unwrap();
        assert_eq!(read.own, renewed.own);
        let announced = read.prepare(home, new.now + 86_401, 9).unwrap();
        assert_eq!(announced.own.keys(), first.own.keys());
        assert!(matches!(announced.prepare(home, new.now, 9), Err(Error::Announced(_))));
        announced.settle(home).unwrap();
        for name in [SIGNING_KEY, TLS_KEY] {
            let mode = fs::metadata(home.join(NEXT).join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }

        let names = [SIGNING_KEY, TLS_KEY, TLS_CERTIFICATE];
        let save = |folder| names.map(|name| fs::read(home.join(folder).join(name)).unwrap());
        let (old, next) = (save(KEYS), save(NEXT));
        let second = announced.activate(home, new.now + 86_402, 9).unwrap();
        assert!(second.own.renews(&announced.own) && !home.join(NEXT).exists());
        for copied in 0..=names.len() {
            for removed in 0..=names.len() {
                if removed > 0 && copied < names.len() {
                    continue;
                }
                fs::create_dir_all(home.join(NEXT)).unwrap();
                for (i, name) in names.iter().enumerate() {
                    let key = if i < copied { &next[i] } else { &old[i] };
                    write(&home.join(KEYS).join(name), key, Mode::Private).unwrap();
                    if i >= removed {
                        write(&home.join(NEXT).join(name), &next[i], Mode::Private).unwrap();
                    }
                }
                let read = Identity::load(home).unwrap();
                assert_eq!(read.own, second.own, "{copied} copied, {removed} removed");
                read.settle(home).unwrap();
                assert!(save(KEYS) == next && !home.join(NEXT).exists());
            }
        }
    }

    fn uker() -> NewSite {
        NewSite {
            site: "uker".parse().unwrap(),
            name: "UKER".to_owned(),
            endpoints: vec!["localhost:7443".to_owned()],
            now: 1_000_000,
            valid_days: 1,
        }
    }
}
