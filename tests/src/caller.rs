//! Somebody who knocks at a daemon's port: with any key or none, over TLS or not.

use hyper_util::rt::TokioIo;
use rondo_proto::peer::peer_client::PeerClient;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
};
use tonic::transport::{Channel, Endpoint, Uri};

/// What somebody shows in a TLS handshake.
#[derive(Debug, Clone)]
pub enum Shows {
    /// No certificate.
    Nothing,
    /// A certificate and the key that signs the handshake, which need not belong together.
    Certificate(Arc<CertifiedKey>),
}

impl Shows {
    /// A certificate that somebody made for himself.
    #[must_use]
    pub fn own_make(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self::pair(certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// The keys of a site.
    #[must_use]
    pub fn keys_of(home: &Path) -> Self {
        let own = rondo_node::identity::Identity::load(home).expect("keys");
        Self::pair(own.tls_certificate, own.tls_key)
    }

    /// The certificate of a site, which everybody may see, with another key.
    #[must_use]
    pub fn stolen_certificate_of(home: &Path) -> Self {
        let own = rondo_node::identity::Identity::load(home).expect("keys");
        let key = rcgen::KeyPair::generate().expect("a key").serialize_der();
        Self::pair(own.tls_certificate, PrivatePkcs8KeyDer::from(key).into())
    }

    fn pair(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Self {
        let key = aws_lc_rs::sign::any_supported_type(&key).expect("a usable key");
        Self::Certificate(Arc::new(CertifiedKey::new(vec![certificate], key)))
    }

    fn config(&self) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match self {
            Self::Nothing => builder.with_no_client_auth(),
            // Not checked for belonging together, as a builder that takes both would do.
            Self::Certificate(pair) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.clone())))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// TLS of a server that shows this and lets anybody in.
    #[must_use]
    pub fn server(&self) -> ServerConfig {
        let Self::Certificate(pair) = self else { panic!("a server shows a certificate") };
        let resolver = SingleCertAndKey::from(pair.clone());
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&TLS13])
                .expect("TLS 1.3")
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// A TLS connection. In TLS 1.3 the server's refusal is seen only when it is read from.
    ///
    /// # Errors
    /// What broke the handshake.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("rondo.invalid").expect("a name");
        TlsConnector::from(Arc::new(self.config())).connect(name, tcp).await
    }

    /// A client of the peer service.
    ///
    /// # Errors
    /// What broke the connection.
    pub async fn peer(
        &self,
        to: SocketAddr,
    ) -> Result<PeerClient<Channel>, tonic::transport::Error> {
        let this = self.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let this = this.clone();
            async move { this.connect(to).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://rondo.invalid");
        endpoint.connect_with_connector(dial).await.map(PeerClient::new)
    }
}

/// Trusts every server: a stranger does not care whom he talks to.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is offered".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
