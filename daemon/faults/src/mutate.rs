//! Alters one field of an honest message by a little, and signs again what is its own to sign: small-scope mutation, as in
//! ByzzFuzz (Winter et al., OOPSLA'23). What no other adversary of this list thought of, this one tries.
//!
//! Defence: whatever a field says is covered by a signature, a digest or a check.

use std::sync::Arc;

use bftd_core::{
    ballot::{BallotKind, Suspect, TermVote},
    block::{Block, Header},
    ids::{MemberId, Now},
    message::{Message, Route},
};

use crate::{
    Adversary, Liar, Parcel,
    chance::Chance,
    fields::{Field, visit},
};

/// See the module's header.
pub(crate) struct Mutate {
    liar: Liar,
    chance: Chance,
    /// How many percent of its messages are altered.
    percent: u8,
    /// Whether the true message leaves, too.
    also_honest: bool,
    recent: Vec<Message>,
}

/// How many messages of others are kept to be altered.
const RECENT: usize = 32;

impl Mutate {
    pub fn new(liar: Liar, mut chance: Chance) -> Self {
        let percent = [2, 10, 40, 100][chance.below(4) as usize];
        let also_honest = chance.one_in(2);
        Self { liar, chance, percent, also_honest, recent: Vec::new() }
    }

    fn mutated(&mut self, message: &Message) -> Message {
        let mut message = message.clone();
        let mut count = 0;
        visit(&mut message, &mut |_| count += 1);
        let chosen = self.chance.below(count);
        let mut at = 0;
        let chance = &mut self.chance;
        visit(&mut message, &mut |field| {
            if at == chosen {
                alter(field, chance);
            }
            at += 1;
        });
        if self.chance.percent(80) {
            self.sign_again(&mut message);
        }
        message
    }

    /// Makes the liar's own signatures, and its own blocks' digests, right again.
    fn sign_again(&self, message: &mut Message) {
        let Liar { me, members, signer, .. } = &self.liar;
        let cluster = members.cluster();
        match message {
            Message::Vote(vote) | Message::LateVote(vote) if vote.signer == *me => {
                *vote = self.liar.vote(vote.ballot)
            }
            Message::Suspect(it) if it.signer == *me => {
                *it = Suspect::sign(cluster, it.epoch, it.term, *me, &**signer);
            }
            Message::EnterTerm(enter) if enter.vote.signer == *me => {
                let TermVote { epoch, term, position, sole, .. } = enter.vote;
                Arc::make_mut(enter).vote =
                    TermVote::sign(cluster, epoch, term, position, sole, *me, &**signer);
            }
            Message::Batch(batch) if batch.origin == *me => {
                let batch = Arc::make_mut(batch);
                batch.signature = signer.sign(&batch.signed_bytes(cluster));
            }
            Message::Append(append) if self.liar.leads(append.block.header().term) => {
                let batches = append.block.batches().to_vec();
                let digest = Block::batches_digest(&batches);
                let header = Header { batches: digest, ..append.block.header().clone() };
                *append =
                    self.liar.append(Arc::new(Block::new(header, batches)), append.certificates.clone());
            }
            _ => {}
        }
    }
}

/// Changes a field in one of the ways that its kind knows.
pub(crate) fn alter(field: Field<'_>, chance: &mut Chance) {
    match field {
        Field::Number(number) => {
            *number = match chance.below(8) {
                0 => 0,
                1 => u64::MAX,
                2 => number.wrapping_add(1 << chance.below(64)),
                3 | 4 => number.wrapping_sub(1),
                _ => number.wrapping_add(1),
            };
        }
        Field::Member(member) => *member = MemberId(chance.below(6) as u8),
        Field::Digest(digest) => digest.0[chance.below(32) as usize] ^= 1 << chance.below(8),
        Field::Signature(signature) => signature.0[chance.below(64) as usize] ^= 1 << chance.below(8),
        Field::Kind(kind) => {
            *kind = match *kind {
                BallotKind::Prepare | BallotKind::Sole { .. } => BallotKind::Commit,
                BallotKind::Commit => BallotKind::Prepare,
            };
        }
        Field::Flag(flag) => *flag = !*flag,
        Field::Position(position) => *position = None,
        Field::Block(block) => *block = None,
        Field::Certificate(certificate) => *certificate = None,
        Field::Suspects(suspects) => *suspects = None,
        Field::Signers(list) => alter_list(list, chance),
        Field::TermVotes(list) => alter_list(list, chance),
        Field::Batches(list) => alter_list(list, chance),
        Field::Blocks(list) => alter_list(list, chance),
        Field::Requests(list) => alter_list(list, chance),
        Field::Route(route) => {
            *route = match chance.below(3) {
                0 => Route::Leader,
                1 => Route::Everyone,
                _ => Route::Member(MemberId(chance.below(6) as u8)),
            };
        }
    }
}

/// Takes one out, doubles one, or turns the order round.
fn alter_list<T: Clone>(list: &mut Vec<T>, chance: &mut Chance) {
    let at = chance.below(list.len() as u64) as usize;
    match (chance.below(3), list.get(at).cloned()) {
        (0, Some(_)) => {
            list.remove(at);
        }
        (1, Some(item)) => list.insert(at, item),
        _ => list.reverse(),
    }
}

impl Adversary for Mutate {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let honest = Parcel::now(to, message.clone());
        if !self.chance.percent(self.percent) {
            return vec![honest];
        }
        let lie = Parcel::now(to, self.mutated(message));
        if self.also_honest { vec![lie, honest] } else { vec![lie] }
    }

    fn incoming(&mut self, _from: MemberId, message: &Message) -> Vec<Parcel> {
        let at = self.chance.below(RECENT as u64) as usize;
        match self.recent.get_mut(at) {
            Some(recent) => *recent = message.clone(),
            None => self.recent.push(message.clone()),
        }
        Vec::new()
    }

    fn tick(&mut self, _now: Now) -> Vec<Parcel> {
        let at = self.chance.below(2 * RECENT as u64) as usize;
        let Some(message) = self.recent.get(at).cloned() else { return Vec::new() };
        let to = self.chance.other(&self.liar);
        vec![Parcel::now(to, self.mutated(&message))]
    }
}
