//! Every field of every message, one by one.
//!
//! Structs are taken apart without `..`, so that the compiler asks for a field that was added.

use std::sync::Arc;

use bftd_core::{
    ballot::{Ballot, BallotKind, Suspect, TermVote, Vote},
    block::{Batch, Block, BlockRef, Executed, Header, Proposal, Request},
    certificate::{Certificate, SuspectCertificate},
    crypto::{ClusterId, Digest, Signature},
    evidence::Evidence,
    ids::{BatchNumber, Epoch, Incarnation, Index, MemberId, Term},
    message::{
        Append, Blocks, Certificates, EnterTerm, FetchAncestors, FetchCommitted, Heartbeat, Message, NewTerm,
        ReadAnswer, ReadQuery, ReadRound, Route,
    },
};

/// A field that can be changed in place.
pub(crate) enum Field<'a> {
    Number(&'a mut u64),
    Member(&'a mut MemberId),
    Digest(&'a mut Digest),
    Signature(&'a mut Signature),
    Kind(&'a mut BallotKind),
    Flag(&'a mut bool),
    Position(&'a mut Option<BlockRef>),
    Block(&'a mut Option<Arc<Block>>),
    Certificate(&'a mut Option<Arc<Certificate>>),
    Suspects(&'a mut Option<Arc<SuspectCertificate>>),
    Signers(&'a mut Vec<(MemberId, Signature)>),
    TermVotes(&'a mut Vec<TermVote>),
    Batches(&'a mut Vec<Arc<Batch>>),
    Blocks(&'a mut Vec<Arc<Block>>),
    Requests(&'a mut Vec<Request>),
    Route(&'a mut Route),
}

type Visit<'v> = dyn FnMut(Field<'_>) + 'v;

/// Visits all fields of a message, always in the same order.
pub(crate) fn visit(message: &mut Message, visit: &mut Visit<'_>) {
    match message {
        Message::Batch(it) => batch(Arc::make_mut(it), visit),
        Message::Append(Append { block: it, signature, certificates: both, votes_to }) => {
            block(it, visit);
            visit(Field::Signature(signature));
            certificates(both, visit);
            visit(Field::Route(votes_to));
        }
        Message::Vote(it) | Message::LateVote(it) => vote(it, visit),
        Message::Certificate(it) => certificate(Arc::make_mut(it), visit),
        Message::Heartbeat(Heartbeat {
            epoch: Epoch(epoch),
            term: Term(term),
            number,
            certificates: both,
        }) => {
            visit(Field::Number(epoch));
            visit(Field::Number(term));
            visit(Field::Number(number));
            certificates(both, visit);
        }
        Message::Suspect(Suspect { epoch: Epoch(epoch), term: Term(term), signer, signature }) => {
            visit(Field::Number(epoch));
            visit(Field::Number(term));
            visit(Field::Member(signer));
            visit(Field::Signature(signature));
        }
        Message::Evidence(it) => match &mut **it {
            Evidence::DoubleVote { first, second } => {
                vote(first, visit);
                vote(second, visit);
            }
            Evidence::DoubleProposal { first, second } => {
                for Proposal { header: it, signature } in [first, second] {
                    header(it, visit);
                    visit(Field::Signature(signature));
                }
            }
            Evidence::ForgottenLock { commit, term_vote: it } => {
                vote(commit, visit);
                term_vote(it, visit);
            }
        },
        Message::Proposal(it) => {
            let Proposal { header: it, signature } = &mut **it;
            header(it, visit);
            visit(Field::Signature(signature));
        }
        Message::EnterTerm(it) => {
            let EnterTerm { vote, position, suspects, sole } = Arc::make_mut(it);
            term_vote(vote, visit);
            optional(position, visit);
            if let Some(it) = suspects {
                let SuspectCertificate { epoch: Epoch(epoch), term: Term(term), signatures: it } =
                    Arc::make_mut(it);
                visit(Field::Number(epoch));
                visit(Field::Number(term));
                signatures(it, visit);
            }
            visit(Field::Suspects(suspects));
            optional_block(sole, visit);
        }
        Message::NewTerm(it) => {
            let NewTerm { epoch: Epoch(epoch), term: Term(term), votes, position, sole } = Arc::make_mut(it);
            visit(Field::Number(epoch));
            visit(Field::Number(term));
            votes.iter_mut().for_each(|vote| term_vote(vote, visit));
            visit(Field::TermVotes(votes));
            optional(position, visit);
            optional_block(sole, visit);
        }
        Message::FetchAncestors(FetchAncestors { digest, above: Index(above) }) => {
            visit(Field::Digest(digest));
            visit(Field::Number(above));
        }
        Message::FetchCommitted(FetchCommitted { after: Index(after) }) => visit(Field::Number(after)),
        Message::Blocks(Blocks { blocks, certificate: it }) => {
            blocks.iter_mut().for_each(|it| block(it, visit));
            visit(Field::Blocks(blocks));
            optional(it, visit);
        }
        Message::ReadQuery(ReadQuery { epoch: Epoch(epoch), round: it }) => {
            visit(Field::Number(epoch));
            round(it, visit);
        }
        Message::ReadAnswer(ReadAnswer { epoch: Epoch(epoch), round: it, position, sole }) => {
            visit(Field::Number(epoch));
            round(it, visit);
            optional(position, visit);
            visit(Field::Position(sole));
        }
    }
}

fn vote(vote: &mut Vote, visit: &mut Visit<'_>) {
    let Vote { ballot: it, signer, signature } = vote;
    ballot(it, visit);
    visit(Field::Member(signer));
    visit(Field::Signature(signature));
}

fn batch(batch: &mut Batch, visit: &mut Visit<'_>) {
    let Batch {
        origin,
        incarnation: Incarnation(incarnation),
        number: BatchNumber(number),
        requests,
        signature,
    } = batch;
    visit(Field::Member(origin));
    visit(Field::Number(incarnation));
    visit(Field::Number(number));
    visit(Field::Requests(requests));
    visit(Field::Signature(signature));
}

fn header(header: &mut Header, visit: &mut Visit<'_>) {
    let Header {
        cluster: ClusterId(cluster),
        epoch: Epoch(epoch),
        term: Term(term),
        index: Index(index),
        parent,
        time_ms,
        batches,
        executed: Executed { index: Index(executed), state },
        sole,
    } = header;
    visit(Field::Flag(sole));
    for number in [epoch, term, index, time_ms, executed] {
        visit(Field::Number(number));
    }
    for digest in [cluster, parent, batches, state] {
        visit(Field::Digest(digest));
    }
}

/// A block is immutable: it is made again from its altered parts.
fn block(block: &mut Arc<Block>, visit: &mut Visit<'_>) {
    let (mut head, mut batches) = (block.header().clone(), block.batches().to_vec());
    header(&mut head, visit);
    batches.iter_mut().for_each(|it| batch(Arc::make_mut(it), visit));
    visit(Field::Batches(&mut batches));
    *block = Arc::new(Block::new(head, batches));
}

fn optional_block(sole: &mut Option<Arc<Block>>, visit: &mut Visit<'_>) {
    if let Some(it) = sole {
        block(it, visit);
    }
    visit(Field::Block(sole));
}

fn block_ref(block: &mut BlockRef, visit: &mut Visit<'_>) {
    let BlockRef { term: Term(term), index: Index(index), digest } = block;
    visit(Field::Number(term));
    visit(Field::Number(index));
    visit(Field::Digest(digest));
}

fn ballot(ballot: &mut Ballot, visit: &mut Visit<'_>) {
    let Ballot { kind, epoch: Epoch(epoch), block } = ballot;
    visit(Field::Kind(kind));
    visit(Field::Number(epoch));
    block_ref(block, visit);
}

fn term_vote(vote: &mut TermVote, visit: &mut Visit<'_>) {
    let TermVote { epoch: Epoch(epoch), term: Term(term), position, sole, signer, signature } = vote;
    visit(Field::Number(epoch));
    visit(Field::Number(term));
    for block in [position, sole] {
        if let Some(block) = block {
            block_ref(block, visit);
        }
        visit(Field::Position(block));
    }
    visit(Field::Member(signer));
    visit(Field::Signature(signature));
}

fn round(round: &mut ReadRound, visit: &mut Visit<'_>) {
    let ReadRound { incarnation: Incarnation(incarnation), number } = round;
    visit(Field::Number(incarnation));
    visit(Field::Number(number));
}

fn signatures(signatures: &mut Vec<(MemberId, Signature)>, visit: &mut Visit<'_>) {
    for (signer, signature) in signatures.iter_mut() {
        visit(Field::Member(signer));
        visit(Field::Signature(signature));
    }
    visit(Field::Signers(signatures));
}

fn certificate(certificate: &mut Certificate, visit: &mut Visit<'_>) {
    let Certificate { ballot: it, signatures: all } = certificate;
    ballot(it, visit);
    signatures(all, visit);
}

fn optional(position: &mut Option<Arc<Certificate>>, visit: &mut Visit<'_>) {
    if let Some(it) = position {
        certificate(Arc::make_mut(it), visit);
    }
    visit(Field::Certificate(position));
}

fn certificates(certificates: &mut Certificates, visit: &mut Visit<'_>) {
    let Certificates { prepared, committed } = certificates;
    optional(prepared, visit);
    optional(committed, visit);
}
