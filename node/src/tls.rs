//! Mutual TLS 1.3 among rostered sites: a key is accepted because it is pinned, for no other reason.

use crate::identity::{Identity, Own, public_key_digest};
use rondo::ids::SiteId;
use rondo::round::SiteState;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// What the verifiers look up: the roster as it is at the time of the handshake.
pub type States = watch::Receiver<Arc<SiteState>>;

const HTTP2: &[u8] = b"h2";

/// The caller of a connection, as its TLS key proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub SiteId);

/// The site of the roster whose certificate was shown in a handshake, also where it is let in no more.
/// It is proven only by a handshake that is done.
pub type Shown = Arc<OnceLock<SiteId>>;

/// TLS for one handshake of a peer that connects here, with the keys that are in force then.
///
/// # Errors
/// If the keys cannot be used.
pub fn server(own: &Own, states: States, shown: Shown) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pins = Arc::new(Pins { provider: provider.clone(), states, expected: None, shown });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(pins)
        .with_cert_resolver(Arc::new(own.clone()));
    // A resumed session would be let in on what its certificate was worth then.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

/// TLS for calling the site `expected`, and nobody else.
///
/// # Errors
/// If the keys cannot be used.
pub fn client(
    identity: &Identity,
    states: States,
    expected: SiteId,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let shown = Shown::default();
    let expected = Some(expected);
    let pins = Arc::new(Pins { provider: provider.clone(), states, expected, shown });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(pins)
        .with_client_auth_cert(
            vec![identity.tls_certificate.clone()],
            identity.tls_key.clone_key(),
        )?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

/// The trusted site that a certificate's key belongs to.
#[must_use]
pub fn caller(certificate: &CertificateDer<'_>, state: &SiteState) -> Option<Caller> {
    let key = public_key_digest(certificate)?;
    state.roster().by_tls_key(&key).map(|card| Caller(card.site.clone()))
}

/// Accepts exactly the keys that the roster pins. What else stands in a certificate does not matter,
/// so a hospital may use one of its own PKI.
#[derive(Debug)]
struct Pins {
    provider: Arc<CryptoProvider>,
    states: States,
    /// The one site that is called; any trusted site may call.
    expected: Option<SiteId>,
    shown: Shown,
}

impl Pins {
    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let refused = |e| Err(Error::InvalidCertificate(e));
        let Some(key) = public_key_digest(certificate) else {
            return refused(CertificateError::BadEncoding);
        };
        let state = self.states.borrow();
        // Its own card is in a site's roster, but a site has no business calling itself.
        let own = state.own().map(|card| &card.site);
        let known = state.roster().known_by_tls_key(&key);
        let Some(peer) = known.filter(|peer| Some(&peer.card.site) != own) else {
            return refused(CertificateError::UnknownIssuer);
        };
        let site = &peer.card.site;
        let _ = self.shown.set(site.clone());
        if self.expected.as_ref().is_some_and(|expected| expected != site) {
            refused(CertificateError::NotValidForName)
        } else if peer.revoked {
            refused(CertificateError::Revoked)
        } else if peer.card.valid_at(now.as_secs()).is_err() {
            refused(CertificateError::Expired)
        } else {
            Ok(())
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Never asked for, since only TLS 1.3 is offered; refused all the same.
fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl ClientCertVerifier for Pins {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
