//! A node's identity: one ed25519 key that it signs with and is let in with.
//!
//! The key lies in `identity.key` as PKCS #8 in PEM (what `openssl pkey -in identity.key -text` reads), mode 0600, and
//! never leaves the host. Rules:
//!
//! - A file that group or others can read is refused, not repaired: nobody knows who has read it already.
//! - A directory that group or others can write is refused: they could put another key in its place.
//! - A new key is durable under its final name before anybody learns its public half.
//! - Whoever calls holds the lock on the directory: two processes that create an identity together are not told apart.
//!
//! TLS sees the same key in a self-signed certificate, made anew at each start. Its names and dates mean nothing; only
//! the key in it is looked at.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{hmac, rand::SystemRandom, signature::Ed25519KeyPair};
use bftd_core::crypto::{Ed25519Signer, PublicKey, Signer};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

/// The key file's name within the data directory.
pub const KEY_FILE: &str = "identity.key";
/// A key file is a few lines; more than this many bytes is not one.
const MAX_KEY_FILE: u64 = 4096;
/// Permission bits of group and others: none may be set on the key file.
const OTHERS: u32 = 0o077;
/// Write permission of group and others: not to be set on the directory.
const OTHERS_WRITE: u32 = 0o022;

/// A node's private key, and the certificate that shows its public half to peers.
pub struct Identity {
    signer: Arc<Ed25519Signer>,
    private_key: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
}

/// Why there is no identity to start with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner can use the key file.
    #[error(
        "{} has mode {mode:04o}: others than its owner may have read this private key. If you are sure that nobody \
         has, run `chmod 600 {}`; else this member's key must be replaced",
        path.display(), path.display()
    )]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than the owner can replace the key file.
    #[error(
        "{} has mode {mode:04o}: others than its owner can replace the files in it; run `chmod 700 {}`",
        path.display(), path.display()
    )]
    DirectoryExposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error(
        "{} does not hold an ed25519 private key (PKCS #8 in PEM): restore it from a backup; without it this host is \
         not that member",
        path.display()
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
}

impl IdentityError {
    /// Whether the operator has to change something before the key can be used.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }
}

impl Identity {
    /// The identity that is kept in `dir`; a new one, with the directory (0700), if there is none.
    ///
    /// # Errors
    /// See [`IdentityError`]. Nothing that exists is ever overwritten or made safe by itself.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create directory", dir))?;
        let mode = fs::metadata(dir).map_err(failed("inspect", dir))?.mode() & 0o7777;
        if mode & OTHERS_WRITE != 0 {
            return Err(IdentityError::DirectoryExposed { path: dir.into(), mode });
        }
        let path = dir.join(KEY_FILE);
        match File::open(&path) {
            Ok(file) => Self::load(file, &path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(dir, &path),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// A fresh identity that is kept nowhere.
    #[cfg(test)]
    pub(crate) fn ephemeral() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).expect("randomness works");
        Self::from_private_key(PrivatePkcs8KeyDer::from(document.as_ref().to_vec()))
            .expect("a generated key is valid")
    }

    /// The key that peers know this node by.
    pub fn public_key(&self) -> PublicKey {
        self.signer.public_key()
    }

    /// What signs for this node.
    pub fn signer(&self) -> Arc<dyn Signer> {
        self.signer.clone()
    }

    /// The certificate that carries the identity key.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The private key, for TLS.
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        self.private_key.clone_key().into()
    }

    /// A secret that stays the same over restarts, different for each `label`, and says nothing about the key.
    pub(crate) fn derive(&self, label: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.private_key.secret_pkcs8_der());
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, label).as_ref());
        secret
    }

    fn load(mut file: File, path: &Path) -> Result<Self, IdentityError> {
        let mode = file.metadata().map_err(failed("inspect", path))?.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(IdentityError::KeyExposed { path: path.into(), mode });
        }
        let mut pem = Vec::new();
        (&mut file).take(MAX_KEY_FILE).read_to_end(&mut pem).map_err(failed("read", path))?;
        PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .ok()
            .and_then(Self::from_private_key)
            .ok_or_else(|| IdentityError::Malformed { path: path.into() })
    }

    fn create(dir: &Path, path: &Path) -> Result<Self, IdentityError> {
        let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new())
            .expect("the system's source of randomness works");
        let private_key = PrivatePkcs8KeyDer::from(document.as_ref().to_vec());
        write_durably(dir, path, pem(&private_key).as_bytes())?;
        let identity = Self::from_private_key(private_key).expect("a generated key is valid");
        tracing::info!(key = %identity.public_key(), file = %path.display(), "created this node's identity");
        Ok(identity)
    }

    fn from_private_key(private_key: PrivatePkcs8KeyDer<'static>) -> Option<Self> {
        let signer = Ed25519Signer::from_pkcs8(private_key.secret_pkcs8_der()).ok()?;
        let key_pair =
            rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&private_key, &rcgen::PKCS_ED25519).ok()?;
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key_pair)
            .expect("a certificate without names can be made of every key");
        Some(Self { signer: Arc::new(signer), private_key, certificate: certificate.der().clone() })
    }
}

/// The key as text. A PKCS #8 ed25519 key has 48 bytes, which is one line of base64.
fn pem(private_key: &PrivatePkcs8KeyDer<'_>) -> String {
    let base64 = data_encoding::BASE64.encode(private_key.secret_pkcs8_der());
    format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n")
}

/// Writes a file that only its owner can read, so that after a crash it is there whole or not at all.
fn write_durably(dir: &Path, path: &Path, contents: &[u8]) -> Result<(), IdentityError> {
    let temporary = dir.join("identity.key.new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("create", &temporary))?;
    // Whoever the directory belongs to is to use the key, though root asks for it before the daemon's first start.
    let owner = fs::metadata(dir).map_err(failed("inspect", dir))?;
    if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        fchown(&file, Some(owner.uid()), Some(owner.gid())).map_err(failed("hand over", &temporary))?;
    }
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(failed("write", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("create", path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, chown};

    use bftd_core::crypto::{CheckSignature, Ed25519};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_belongs_to_whom_the_directory_belongs_to() {
        const SOMEBODY: u32 = 54_321;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let key = fs::metadata(dir.path().join(KEY_FILE)).unwrap();
        assert_eq!((key.uid(), key.gid(), key.mode() & 0o7777), (SOMEBODY, SOMEBODY, 0o600));
    }

    #[test]
    fn an_identity_is_created_once_and_stays_the_same() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let first = Identity::load_or_create(&dir).unwrap();
        let second = Identity::load_or_create(&dir).unwrap();
        assert_eq!(first.public_key(), second.public_key());
        assert_eq!(first.derive(b"x"), second.derive(b"x"));
        assert_ne!(first.derive(b"x"), first.derive(b"y"));
        let signature = first.signer().sign(b"hello");
        assert!(Ed25519.check(&second.public_key(), b"hello", &signature));

        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(dir.join(KEY_FILE)).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");

        let other = Identity::load_or_create(&parent.path().join("c")).unwrap();
        assert_ne!(first.public_key(), other.public_key());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = Identity::load_or_create(dir.path()).unwrap().public_key();
        let path = dir.path().join(KEY_FILE);
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o777] {
            set_mode(&path, mode);
            let error = Identity::load_or_create(dir.path()).err().unwrap();
            assert!(
                matches!(error, IdentityError::KeyExposed { mode: found, .. } if found == mode),
                "{error}"
            );
            let text = error.to_string();
            assert!(text.contains(&format!("{mode:04o}")), "{text}");
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
        }
        set_mode(&path, 0o400);
        assert_eq!(
            Identity::load_or_create(dir.path()).unwrap().public_key(),
            key,
            "read-only is private too"
        );
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o770);
        let error = Identity::load_or_create(dir.path()).err().unwrap();
        assert!(matches!(error, IdentityError::DirectoryExposed { mode: 0o770, .. }), "{error}");
        assert!(!dir.path().join(KEY_FILE).exists());
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        let whole = fs::read(&path).unwrap();
        let truncated = whole.get(..whole.len() / 2).unwrap().to_vec();
        for damaged in [Vec::new(), truncated, b"not a key".to_vec(), vec![b'x'; 10_000]] {
            fs::write(&path, &damaged).unwrap();
            let error = Identity::load_or_create(dir.path()).err().unwrap();
            assert!(matches!(error, IdentityError::Malformed { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_leftover_of_a_crash_is_no_identity() {
        let dir = tempfile::tempdir().unwrap();
        let leftover = dir.path().join("identity.key.new");
        fs::write(&leftover, b"half").unwrap();
        set_mode(&leftover, 0o644);
        Identity::load_or_create(dir.path()).unwrap();
        assert!(!leftover.exists());
        assert_eq!(fs::metadata(dir.path().join(KEY_FILE)).unwrap().mode() & 0o7777, 0o600);
    }
}
