//! Who may connect: TLS 1.3 both ways, with keys as names.
//!
//! - A certificate is a wrapper around an ed25519 key: its issuer, names, dates and own signature mean nothing. The
//!   handshake's signature proves that the other side holds the key.
//! - A dialler must hold the key of a member, other than this node's own.
//! - A dialled server must hold the key of the very member that was dialled.
//! - Another cluster, or another version of the protocol, fails before that, on ALPN: `bftd/2/` and the first 16
//!   hexadecimal digits of the cluster's id.
//! - While a cluster is being formed (`forming`, an ALPN of its own) there are no members yet: the daemon that gathers lets any
//!   key in, and asks for a token; a joiner talks to the holder of the key that its token pins. A member speaks that protocol
//!   as well, with members only, whom it tells the genesis.
//! - No session is ever resumed, so every connection proves its key anew.

use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, OnceLock},
};

use bftd_core::{
    crypto::{ClusterId, PublicKey},
    ids::MemberId,
    membership::Membership,
};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::identity::Identity;

/// A SubjectPublicKeyInfo with an ed25519 key is this, then the key (RFC 8410, §4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// TLS could not be set up with this identity: the program's fault, not a peer's.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key or the certificate is not usable.
    #[error(transparent)]
    Rustls(#[from] Error),
    /// The provider lacks the cipher suite that QUIC begins with.
    #[error(transparent)]
    CipherSuite(#[from] NoInitialCipherSuite),
}

/// The protocol name of daemons that form a cluster.
pub(crate) const FORMING_ALPN: &[u8] = b"bftd-form/1";

/// The protocol name that both sides of a connection must speak.
pub(super) fn alpn(cluster: ClusterId) -> String {
    let id = cluster.to_string();
    format!("bftd/2/{}", id.get(..16).unwrap_or(&id))
}

/// How this node answers those who dial it.
pub(super) fn server_config(
    identity: &Identity,
    me: MemberId,
    members: &Arc<Membership>,
) -> Result<QuicServerConfig, TlsError> {
    let protocols = vec![alpn(members.cluster()).into_bytes(), FORMING_ALPN.to_vec()];
    server(identity, Some((me, Arc::clone(members))), protocols)
}

/// How a daemon that gathers or joins answers: it lets any key in.
pub(crate) fn forming_server_config(identity: &Identity) -> Result<QuicServerConfig, TlsError> {
    server(identity, None, vec![FORMING_ALPN.to_vec()])
}

fn server(
    identity: &Identity,
    members: Option<(MemberId, Arc<Membership>)>,
    protocols: Vec<Vec<u8>>,
) -> Result<QuicServerConfig, TlsError> {
    let verifier = Arc::new(Diallers { members, keys: KeyCheck::new() });
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], identity.private_key())?;
    config.alpn_protocols = protocols;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config.try_into()?)
}

/// How this node dials the member with `key`.
pub(super) fn client_config(
    identity: &Identity,
    cluster: ClusterId,
    key: PublicKey,
) -> Result<QuicClientConfig, TlsError> {
    client(identity, exact_key(key), alpn(cluster).into_bytes())
}

/// How a daemon without a cluster dials the holder of `key`. What key the other side showed stands in `found`.
pub(crate) fn forming_client_config(
    identity: &Identity,
    key: PublicKey,
    found: Arc<OnceLock<PublicKey>>,
) -> Result<QuicClientConfig, TlsError> {
    let verifier = ExactKey { key, found: Some(found), keys: KeyCheck::new() };
    client(identity, Arc::new(verifier), FORMING_ALPN.to_vec())
}

fn client(
    identity: &Identity,
    verifier: Arc<dyn ServerCertVerifier>,
    protocol: Vec<u8>,
) -> Result<QuicClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate()], identity.private_key())?;
    config.alpn_protocols = vec![protocol];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config.try_into()?)
}

/// What lets a dialler talk to the holder of `key` alone.
pub(super) fn exact_key(key: PublicKey) -> Arc<dyn ServerCertVerifier> {
    Arc::new(ExactKey { key, found: None, keys: KeyCheck::new() })
}

/// The ed25519 key in a certificate.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Result<PublicKey, Error> {
    let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    spki.strip_prefix(&ED25519_SPKI)
        .and_then(|key| key.try_into().ok())
        .map(PublicKey)
        .ok_or_else(|| Refusal::NotEd25519.into())
}

/// Why a peer is not let in, or not talked to.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the certificate's key is not an ed25519 key")]
    NotEd25519,
    #[error("more than one certificate was sent")]
    Chain,
    #[error("no member has the key {0}")]
    Stranger(PublicKey),
    #[error("this is our own key: another process runs with this node's identity")]
    OwnKey,
    #[error("it has the key {found} instead of {expected}: another daemon answers at this member's address")]
    WrongMember { expected: PublicKey, found: PublicKey },
}

/// rustls shows the cause of a refusal by `Debug`.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let cause: Arc<dyn StdError + Send + Sync> = Arc::new(refusal);
        Self::InvalidCertificate(CertificateError::Other(OtherError(cause)))
    }
}

/// What both verifiers share.
#[derive(Debug)]
struct KeyCheck {
    algorithms: WebPkiSupportedAlgorithms,
}

impl KeyCheck {
    fn new() -> Self {
        Self { algorithms: aws_lc_rs::default_provider().signature_verification_algorithms }
    }

    fn only_key(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<PublicKey, Error> {
        if !others.is_empty() {
            return Err(Refusal::Chain.into());
        }
        key_of(certificate)
    }

    fn check_handshake(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signature.scheme != SignatureScheme::ED25519 {
            return Err(Refusal::NotEd25519.into());
        }
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// Lets in whoever has a key, or every member but this node.
#[derive(Debug)]
struct Diallers {
    /// This node, and the members, where there are any.
    members: Option<(MemberId, Arc<Membership>)>,
    keys: KeyCheck,
}

impl ClientCertVerifier for Diallers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = self.keys.only_key(certificate, others)?;
        let Some((me, members)) = &self.members else { return Ok(ClientCertVerified::assertion()) };
        match members.by_key(&key) {
            None => Err(Refusal::Stranger(key).into()),
            Some(member) if member.id == *me => Err(Refusal::OwnKey.into()),
            Some(_) => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.keys.check_handshake(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Talks to the holder of one key only.
#[derive(Debug)]
struct ExactKey {
    key: PublicKey,
    /// Where the key that was shown is told.
    found: Option<Arc<OnceLock<PublicKey>>>,
    keys: KeyCheck,
}

impl ServerCertVerifier for ExactKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.keys.only_key(certificate, others)?;
        if let Some(told) = &self.found {
            // Each dial has a place of its own, and checks one certificate.
            let _ = told.set(found);
        }
        if found == self.key {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Refusal::WrongMember { expected: self.key, found }.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.keys.check_handshake(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".into())
}
