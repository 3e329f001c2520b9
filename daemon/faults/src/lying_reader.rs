//! Answers questions for its position with lies: an old one, or one that nobody has certified.

use std::sync::Arc;

use bftd_core::{
    ballot::{Ballot, BallotKind},
    block::BlockRef,
    certificate::Certificate,
    crypto::{Digest, Signature},
    ids::{Index, MemberId, Term},
    message::{Message, ReadAnswer},
};

use crate::{Adversary, Liar};

/// How it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLie {
    /// "I know of nothing."
    Nothing,
    /// "There is a block far ahead", with a certificate that nobody signed.
    FarAhead,
}

/// See the module's header.
pub struct LyingReader {
    liar: Liar,
    lie: ReadLie,
}

impl LyingReader {
    /// A liar of this kind.
    pub fn new(liar: Liar, lie: ReadLie) -> Self {
        Self { liar, lie }
    }

    fn forged(&self) -> Certificate {
        let block = BlockRef { term: Term(1 << 40), index: Index(1 << 40), digest: Digest([7; 32]) };
        let ballot = Ballot { kind: BallotKind::Prepare, epoch: self.liar.members.epoch(), block };
        Certificate {
            ballot,
            signatures: self.liar.members.ids().map(|id| (id, Signature([7; 64]))).collect(),
        }
    }
}

impl Adversary for LyingReader {
    fn outgoing(&mut self, _to: MemberId, message: &Message) -> Vec<Message> {
        match message {
            Message::ReadAnswer(answer) => {
                let position = match self.lie {
                    ReadLie::Nothing => None,
                    ReadLie::FarAhead => Some(Arc::new(self.forged())),
                };
                vec![Message::ReadAnswer(ReadAnswer { position, ..answer.clone() })]
            }
            other => vec![other.clone()],
        }
    }

    fn incoming(&mut self, _from: MemberId, _message: &Message) -> Vec<(MemberId, Message)> {
        Vec::new()
    }
}
