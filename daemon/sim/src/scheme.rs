//! A signature scheme that costs little and holds within the simulation: a keyed hash, whose keys only the checker and their
//! owners have.

use std::{collections::BTreeMap, sync::Arc};

use bftd_core::{
    crypto::{CheckSignature, Domain, Ed25519, Ed25519Signer, PublicKey, Signature, Signer},
    ids::MemberId,
    membership::{Genesis, Member, Membership},
    protocol::Protocol,
};

/// Signs for one member.
struct CheapSigner {
    public: PublicKey,
    secret: [u8; 32],
}

fn keyed(secret: &[u8; 32], bytes: &[u8]) -> Signature {
    let mut hasher = Domain::Remembered.hasher();
    hasher.update(secret).update(bytes);
    let digest = hasher.finish();
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&digest.0);
    Signature(signature)
}

impl Signer for CheapSigner {
    fn public_key(&self) -> PublicKey {
        self.public
    }

    fn sign(&self, bytes: &[u8]) -> Signature {
        keyed(&self.secret, bytes)
    }
}

/// Knows every secret, so it can check.
struct CheapCheck(BTreeMap<PublicKey, [u8; 32]>);

impl CheckSignature for CheapCheck {
    fn check(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        self.0.get(key).is_some_and(|secret| keyed(secret, bytes) == *signature)
    }
}

/// The members' signers and who can check their signatures.
pub(crate) struct Scheme {
    pub signers: BTreeMap<MemberId, Arc<dyn Signer>>,
    pub check: Arc<dyn CheckSignature>,
}

impl Scheme {
    /// Keys for `n` members: real ones, or cheap ones.
    pub fn new(n: u8, ed25519: bool) -> Self {
        let mut signers: BTreeMap<MemberId, Arc<dyn Signer>> = BTreeMap::new();
        let mut secrets = BTreeMap::new();
        for id in 1..=n {
            let seed = [id; 32];
            let signer: Arc<dyn Signer> = if ed25519 {
                Arc::new(Ed25519Signer::from_seed(&seed))
            } else {
                let mut public = [id; 32];
                public[0] = 0xfe;
                secrets.insert(PublicKey(public), seed);
                Arc::new(CheapSigner { public: PublicKey(public), secret: seed })
            };
            signers.insert(MemberId(id), signer);
        }
        let check: Arc<dyn CheckSignature> =
            if ed25519 { Arc::new(Ed25519) } else { Arc::new(CheapCheck(secrets)) };
        Self { signers, check }
    }

    /// The members with these keys. Nobody dials them.
    pub fn membership(&self, name: &str, protocol: Protocol) -> Membership {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let member = |(id, signer): (&MemberId, &Arc<dyn Signer>)| Member {
            id: *id,
            name: format!("node{id}"),
            key: signer.public_key(),
            address,
        };
        let members = self.signers.iter().map(member).collect();
        let genesis = Genesis { name: name.to_owned(), protocol, created_ms: 0, members };
        genesis.membership().expect("the simulated members form a cluster")
    }
}
