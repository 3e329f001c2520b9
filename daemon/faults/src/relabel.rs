//! Brings true promises into a wrong place: of another epoch, of another cluster, or with one label changed after signing.
//!
//! Defence: what is signed begins with its kind and its cluster, and names its epoch (commonware #4038, monad #2341).

use std::sync::Arc;

use bftd_core::{
    ballot::{BallotKind, Suspect, TermVote, Vote},
    block::Block,
    crypto::{ClusterId, Digest},
    ids::{Epoch, MemberId},
    message::Message,
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// See the module's header.
pub(crate) struct Relabel {
    liar: Liar,
    chance: Chance,
}

impl Relabel {
    pub fn new(liar: Liar, chance: Chance) -> Self {
        Self { liar, chance }
    }

    /// The message as it would be right elsewhere; none where it bears no label.
    fn elsewhere(&mut self, message: &Message) -> Option<Message> {
        let Liar { me, members, signer, .. } = &self.liar;
        let signs_anew = self.chance.one_in(2);
        let (mut cluster, mut epoch) = (members.cluster(), members.epoch());
        if self.chance.one_in(2) {
            cluster = ClusterId(Digest([9; 32]))
        } else {
            epoch = Epoch(epoch.0 + 1)
        }
        let mut message = message.clone();
        match &mut message {
            Message::Vote(vote) | Message::LateVote(vote) => {
                vote.ballot.epoch = epoch;
                if signs_anew {
                    *vote = Vote::sign(cluster, vote.ballot, *me, &**signer);
                } else {
                    vote.ballot.kind = match vote.ballot.kind {
                        BallotKind::Prepare | BallotKind::Sole { .. } => BallotKind::Commit,
                        BallotKind::Commit => BallotKind::Prepare,
                    };
                }
            }
            Message::Suspect(suspect) => {
                *suspect = Suspect::sign(cluster, epoch, suspect.term, *me, &**signer);
            }
            Message::EnterTerm(enter) => {
                let enter = Arc::make_mut(enter);
                let TermVote { term, position, sole, .. } = enter.vote;
                enter.vote = TermVote::sign(cluster, epoch, term, position, sole, *me, &**signer);
            }
            Message::NewTerm(new_term) => Arc::make_mut(new_term).epoch = Epoch(epoch.0 + 1),
            Message::Append(append) => {
                let mut header = append.block.header().clone();
                (header.cluster, header.epoch) = (cluster, epoch);
                let block = Arc::new(Block::new(header, append.block.batches().to_vec()));
                *append = self.liar.append(block, append.certificates.clone());
            }
            Message::Batch(batch) if batch.origin == *me => {
                let batch = Arc::make_mut(batch);
                batch.signature = signer.sign(&batch.signed_bytes(ClusterId(Digest([9; 32]))));
            }
            Message::Heartbeat(heartbeat) => heartbeat.epoch = Epoch(epoch.0 + 1),
            Message::ReadQuery(query) => query.epoch = Epoch(epoch.0 + 1),
            Message::ReadAnswer(answer) => answer.epoch = Epoch(epoch.0 + 1),
            Message::Certificate(certificate) => Arc::make_mut(certificate).ballot.epoch = Epoch(epoch.0 + 1),
            _ => return None,
        }
        Some(message)
    }
}

impl Adversary for Relabel {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let lie = self.elsewhere(message).map(|it| Parcel::now(to, it));
        lie.into_iter().chain([Parcel::now(to, message.clone())]).collect()
    }
}
