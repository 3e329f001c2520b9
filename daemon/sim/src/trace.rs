//! What a run looked like: a hash of everything that happened, and lines for people.

use std::io::Write;

use bftd_core::{
    ballot::{Ballot, Vote},
    block::Proposal,
    crypto::{Digest, Domain, Hasher},
    durable::Record,
    evidence::Evidence,
    message::Message,
};

use crate::event::{Event, Observer, Violation};

/// Hashes every event, prints it where asked, and passes it on.
pub(crate) struct Trace<'o, 'w> {
    hasher: Hasher,
    out: Option<&'w mut dyn Write>,
    next: &'o mut dyn Observer,
}

impl<'o, 'w> Trace<'o, 'w> {
    pub fn new(next: &'o mut dyn Observer, out: Option<&'w mut dyn Write>) -> Self {
        Self { hasher: Domain::Remembered.hasher(), out, next }
    }

    pub fn hash(&self) -> Digest {
        self.hasher.clone().finish()
    }
}

impl Observer for Trace<'_, '_> {
    fn observe(&mut self, at_us: u64, event: &Event<'_>) -> Result<(), Violation> {
        self.hasher.update(&at_us.to_le_bytes());
        match event {
            Event::Sent { from, to, message, .. } => {
                self.hasher.update(&[1, from.0, to.0]).update_sized(&message.encode());
            }
            Event::Executed { node, block, state } => {
                self.hasher.update(&[2, node.0]).update(&block.digest().0).update(&state.0);
            }
            Event::Synced { node, records, .. } => {
                self.hasher.update(&[3, node.0]).update(&(records.len() as u64).to_le_bytes());
            }
            Event::Delivered { .. } => {}
            other => {
                self.hasher.update_sized(line(other).unwrap_or_default().as_bytes());
            }
        }
        if let (Some(out), Some(line)) = (&mut self.out, line(event)) {
            // A reader that has gone away needs no trace.
            let _ = writeln!(out, "{:>10.3} ms  {line}", at_us as f64 / 1000.0);
        }
        self.next.observe(at_us, event)
    }
}

/// An event in words; deliveries are left out, as sends say it.
fn line(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Started { node, correct, restart, .. } => {
            let liar = if *correct { "" } else { " (a liar)" };
            format!("node {node} {}{liar}", if *restart { "starts again" } else { "starts" })
        }
        Event::Crashed { node, durable } => {
            let accepted =
                durable.accepted.map(|accepted| (accepted.term, accepted.tip.index, accepted.floor));
            format!("node {node} crashes; durable: accepted (term, tip, floor) {accepted:?}")
        }
        Event::Sent { from, to, message, .. } => format!("{from} → {to}  {}", say(message)),
        Event::Delivered { .. } => return None,
        Event::Synced { node, records, .. } => {
            let records: Vec<_> = records.iter().map(say_record).collect();
            format!("node {node} has synced {}", records.join(", "))
        }
        Event::Executed { node, block, .. } => {
            let header = block.header();
            let batches = block.batches().len();
            format!(
                "node {node} executes {}/{} {:?} with {batches} batches",
                header.term,
                header.index,
                block.digest()
            )
        }
        Event::Submitted { node, write, .. } => format!("node {node} is asked for write {write}"),
        Event::Acknowledged { node, write, revision } => {
            format!("node {node} acknowledges write {write} at revision {revision}")
        }
        Event::ReadBegun { node, read, key } => format!("node {node} is asked for read {read} of {key:?}"),
        Event::ReadAnswered { node, read, revision, value, .. } => {
            format!("node {node} answers read {read}: {value:?} of revision {revision}")
        }
        Event::Halted { node, reason } => format!("node {node} halts: {reason}"),
        Event::InvariantBroken { node, what } => format!("node {node} is broken: {what}"),
        Event::Calm { term } => format!("calm; the highest term is {term}"),
        Event::End { nodes, pending_writes, pending_reads } => {
            let mut text = format!("the end; {pending_writes} writes and {pending_reads} reads are pending");
            for (id, status, _) in *nodes {
                text.push_str(&format!(
                    "\n{:>14} node {id}: term {} {} committed {}/{} suspecting {:?}",
                    "",
                    status.term,
                    if status.open { "open" } else { "closed" },
                    status.committed.term,
                    status.committed.index,
                    status.suspecting
                ));
            }
            text
        }
    })
}

fn say(message: &Message) -> String {
    let name = message.name();
    match message {
        Message::Append(append) => {
            let block = append.block.reference();
            format!(
                "{name} {}/{} {:?} on {:?}, {} batches, votes to {:?}",
                block.term,
                block.index,
                block.digest,
                append.block.header().parent,
                append.block.batches().len(),
                append.votes_to
            )
        }
        Message::Vote(vote) | Message::LateVote(vote) => {
            let block = vote.ballot.block;
            let late = if matches!(message, Message::LateVote(_)) { "late " } else { "" };
            format!(
                "{late}{:?} vote of {} for {}/{} {:?}",
                vote.ballot.kind, vote.signer, block.term, block.index, block.digest
            )
        }
        Message::Certificate(certificate) => {
            let block = certificate.block();
            format!(
                "{:?} certificate for {}/{} {:?}",
                certificate.ballot.kind, block.term, block.index, block.digest
            )
        }
        Message::Heartbeat(heartbeat) => format!("{name} of term {}", heartbeat.term),
        Message::Suspect(suspect) => format!("{name} term {}", suspect.term),
        Message::EnterTerm(enter) => {
            let position = enter.vote.position.map(|block| (block.term.0, block.index.0, block.digest));
            format!("{name} {} of {}, position {position:?}", enter.vote.term, enter.vote.signer)
        }
        Message::NewTerm(new_term) => {
            let position = new_term.position.as_ref().map(|certificate| certificate.block());
            let position = position.map(|block| (block.term.0, block.index.0, block.digest));
            format!("{name} {} at {position:?}", new_term.term)
        }
        Message::FetchAncestors(fetch) => format!("{name} of {:?} above {}", fetch.digest, fetch.above),
        Message::FetchCommitted(fetch) => format!("{name} after {}", fetch.after),
        Message::Blocks(blocks) => format!("{name}, {} of them", blocks.blocks.len()),
        Message::Batch(batch) => {
            format!("{name} {}/{} of {}", batch.incarnation, batch.number, batch.origin)
        }
        Message::ReadQuery(query) => {
            format!("{name}, round {}/{}", query.round.incarnation, query.round.number)
        }
        Message::ReadAnswer(answer) => {
            let position = answer.position.as_ref().map(|certificate| certificate.block().index);
            format!("{name}, round {}/{}: {position:?}", answer.round.incarnation, answer.round.number)
        }
        Message::Proposal(proposal) => {
            let header = &proposal.header;
            format!("{name} {}/{} {:?}", header.term, header.index, header.digest())
        }
        Message::Evidence(evidence) => format!("{name}: {}", say_evidence(evidence)),
    }
}

/// A proof in a few words.
pub(crate) fn say_evidence(evidence: &Evidence) -> String {
    match evidence {
        Evidence::DoubleVote { first: Vote { ballot: Ballot { kind, block, .. }, signer, .. }, .. } => {
            format!("{signer} cast two {kind:?} votes for {}/{}", block.term, block.index)
        }
        Evidence::DoubleProposal { first: Proposal { header, .. }, .. } => {
            format!("two proposals for {}/{}", header.term, header.index)
        }
        Evidence::ForgottenLock { commit, term_vote } => {
            let block = commit.ballot.block;
            format!("{} forgot {}/{} in term {}", commit.signer, block.term, block.index, term_vote.term)
        }
    }
}

fn say_record(record: &Record) -> String {
    match record {
        Record::Incarnation(incarnation) => format!("incarnation {incarnation}"),
        Record::Block(block) => format!("block {}/{}", block.header().term, block.header().index),
        Record::Accepted(accepted) => format!("accepted {}/{}", accepted.term, accepted.tip.index),
        Record::Position(certificate) => {
            format!("position {}/{}", certificate.block().term, certificate.block().index)
        }
        Record::Term(entered) => format!("term {}", entered.vote.term),
        Record::Evidence(evidence) => say_evidence(evidence),
        Record::Committed(committed) => format!("committed {}", committed.certificate.block().index),
    }
}
