//! Linearizable reads without a log write (Ongaro's thesis §6.4, without trust in a leader).
//!
//! A round asks all members for their position. A block that two rounds of votes have committed was prepared at a quorum
//! before anybody heard that it is committed, so among any quorum's answers the highest is at or above every such block that was
//! committed when the round began. A sole block that all votes have committed is named by all correct members that know
//! of nothing above it. The reader waits until it has executed that index, or a block of a later term: the position
//! may have been overtaken.
//!
//! - All reads that come while a round is out wait for the next one: one round serves them all.
//! - A round's name is never used again, not even by a later run of the member: an answer that was long on its way would
//!   say nothing of what has been committed since.
//! - An answer is counted only with a valid certificate of the reader's own epoch ([`crate::verify`] sees to it).
//! - A position that is not committed yet is passed to every member, so that all expect it to commit.
//! - A round ends with its epoch.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Replica,
    io::{Output, ReadTicket, Report, To},
    normal::Ignore,
};
use crate::{
    ballot::Rank,
    block::BlockRef,
    certificate::Certificate,
    ids::{Epoch, MemberId},
    limits::WAITING_READS,
    message::{Message, ReadAnswer, ReadQuery, ReadRound},
};

#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    /// How many rounds there were in this run.
    number: u64,
    round: Option<Round>,
    /// For the next round. The daemon refuses reads beyond [`WAITING_READS`].
    waiting: Vec<ReadTicket>,
    /// Rounds that are answered, and wait for execution.
    settled: Vec<Settled>,
}

#[derive(Clone, Debug)]
struct Settled {
    rank: Option<Rank>,
    tickets: Vec<ReadTicket>,
    since_us: u64,
}

#[derive(Clone, Debug)]
struct Round {
    epoch: Epoch,
    name: ReadRound,
    tickets: Vec<ReadTicket>,
    answers: BTreeMap<MemberId, (Option<Arc<Certificate>>, Option<BlockRef>)>,
    sent_us: u64,
}

impl Reads {
    pub fn len(&self) -> usize {
        self.waiting.len()
            + self.round.as_ref().map_or(0, |round| round.tickets.len())
            + self.settled.iter().map(|settled| settled.tickets.len()).sum::<usize>()
    }
}

impl Replica {
    /// Whether another read may wait here.
    pub fn may_read(&self) -> bool {
        self.reads.len() < WAITING_READS
    }

    pub(super) fn on_read(&mut self, ticket: ReadTicket) {
        self.reads.waiting.push(ticket);
        self.begin_round();
    }

    fn begin_round(&mut self) {
        if self.reads.round.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        self.reads.number += 1;
        let round = Round {
            epoch: self.members().epoch(),
            name: ReadRound { incarnation: self.origin.incarnation, number: self.reads.number },
            tickets: std::mem::take(&mut self.reads.waiting),
            answers: BTreeMap::new(),
            sent_us: self.now_us(),
        };
        let own = ReadAnswer {
            epoch: round.epoch,
            round: round.name,
            position: self.safety.position().cloned(),
            sole: self.open_sole().map(|block| block.reference()),
        };
        self.reads.round = Some(round);
        self.ask_positions();
        let me = self.me();
        self.on_read_answer(me, &own);
    }

    fn ask_positions(&mut self) {
        if let Some(round) = &self.reads.round {
            let query = ReadQuery { epoch: round.epoch, round: round.name };
            self.send_after(To::Others, Message::ReadQuery(query), self.origin.record);
        }
    }

    pub(super) fn on_read_query(&mut self, from: MemberId, query: &ReadQuery) {
        let position = self.safety.position().cloned();
        let sole = self.open_sole().map(|block| block.reference());
        let answer = ReadAnswer { epoch: query.epoch, round: query.round, position, sole };
        self.send_after(To::Member(from), Message::ReadAnswer(answer), self.position_record());
    }

    pub(super) fn on_read_answer(&mut self, from: MemberId, answer: &ReadAnswer) {
        if let Some(certificate) = &answer.position {
            self.on_certificate(from, certificate);
        }
        let Some(round) = &mut self.reads.round else { return };
        if (answer.epoch, answer.round) != (round.epoch, round.name) {
            self.report(Report::Ignored(from, "ReadAnswer", Ignore::NotAskedFor));
            return;
        }
        round.answers.entry(from).or_insert_with(|| (answer.position.clone(), answer.sole));
        if self.setup.members.is_quorum(round.answers.keys().copied()) {
            self.settle_round();
        }
    }

    fn settle_round(&mut self) {
        let Some(round) = self.reads.round.take() else { return };
        let me = self.me();
        let highest_of = |is_asked: &dyn Fn(MemberId) -> bool| {
            let answers = round.answers.iter().filter(|(id, _)| is_asked(**id));
            let positions = answers.filter_map(|(_, (position, _))| position.as_ref());
            positions.max_by_key(|certificate| certificate.rank()).cloned()
        };
        let highest = highest_of(&|_| true);
        let named: Vec<_> = round.answers.values().map(|(_, sole)| *sole).collect();
        let sole = self.members().named_by_correct(&named);
        let told = highest_of(&|id| id != me);
        let own_record = self.position_record();
        if highest == told || own_record == 0 {
            self.pass_position(highest.as_ref(), 0);
        } else {
            // Its own, which it has told nobody yet.
            self.pass_position(told.as_ref(), 0);
            self.pass_position(highest.as_ref(), own_record);
        }
        let mut rank = highest.map(|certificate| certificate.rank());
        if let Some(sole) = sole {
            let place = Some(Rank { epoch: round.epoch, term: sole.term, index: sole.index });
            if place > rank {
                rank = place;
                self.expect_position(sole);
            }
        }
        let since_us = self.now_us();
        self.reads.settled.push(Settled { rank, tickets: round.tickets, since_us });
        self.release_reads();
        self.begin_round();
    }

    /// A position that is not committed yet is to be expected by all.
    fn pass_position(&mut self, position: Option<&Arc<Certificate>>, after: u64) {
        if let Some(certificate) = position
            && certificate.block().index > self.tree.committed()
            && !certificate.is_commit()
        {
            self.expect_position(certificate.block());
            self.send_after(To::Others, Message::Certificate(Arc::clone(certificate)), after);
        }
    }

    /// Answers the reads whose position is executed, or overtaken by a block of a later term that is.
    pub(super) fn release_reads(&mut self) {
        let executed = self.states.executed;
        let executed = Rank { epoch: self.members().epoch(), term: executed.term, index: executed.index };
        let is_ready = |settled: &mut Settled| settled.rank.is_none_or(|rank| rank <= executed);
        let ready = self.reads.settled.extract_if(.., is_ready);
        let tickets: Vec<_> = ready.flat_map(|settled| settled.tickets).collect();
        if !tickets.is_empty() {
            self.outputs.push(Output::Readable(tickets));
        }
    }

    /// Asks again who has not answered, and gets a lost question or answer over with.
    pub(super) fn tick_reads(&mut self) {
        let (now_us, resend_us) = (self.now_us(), self.setup.timing.resend_us);
        if let Some(round) = &mut self.reads.round
            && round.sent_us + resend_us <= now_us
        {
            round.sent_us = now_us;
            self.ask_positions();
        }
        // A block that few have may be what is waited for, and a leader that shows it to no others keep it from committing.
        // Work of this member's own, if only an empty batch, makes everybody expect another one.
        let late_us = self.timeout_us() / 2;
        let is_late = |settled: &Settled| settled.since_us + late_us <= now_us;
        if self.origin.iter().next().is_none() && self.reads.settled.iter().any(is_late) {
            self.on_submit(Vec::new());
        }
    }
}
