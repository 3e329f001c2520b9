//! Catching up: missing blocks are fetched from anybody, and believed by digest chain and certificate.
//!
//! Two needs, two questions. A **certified** block above the committed index is fetched backwards: by its digest, then its
//! parent, until the chain meets what is here; every block is the one that was asked for, or is not taken. A
//! **committed** chain further ahead is fetched forwards, in runs that end with a Commit certificate; a run that
//! ends in another block than the certificate's is thrown away whole.
//!
//! A leader may leave a member out without giving it a reason to suspect. So every member shows its newest Commit certificate to
//! one other after another, a time-out apart.
//!
//! Whoever does not answer within a resend period, answers with something else, or drips, is passed over for the next member: a
//! liar costs time, never correctness. Each one passed over makes the patience with the next one longer, and a whole run is
//! taken even when it comes late: so a thin link makes catching up slow, not endless.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Replica, Setup,
    io::{Output, Report, To},
    normal::Ignore,
    tree::BlockTree,
};
use crate::{
    block::{Block, BlockRef},
    certificate::Certificate,
    crypto::Digest,
    durable::Record,
    ids::{Index, MemberId},
    limits::{FETCH_BLOCKS, FETCH_BYTES, MAX_BLOCK, MAX_FETCHED, Timing, WINDOW},
    message::{Blocks, FetchAncestors, FetchCommitted, Message},
};

/// How many certified blocks are fetched at once, for each member of the cluster. Of more, those of the highest
/// rank are.
const WANTS_PER_MEMBER: usize = 2;
/// How many Commit certificates are remembered below the one that is caught up with.
const MAX_PASSED: usize = 64;

/// How many bytes of blocks a run in parts may have: no chain between two certificates has more.
const MAX_FETCHED_BYTES: usize = 2 * WINDOW as usize * MAX_BLOCK;

/// How many bytes of uncommitted blocks a member gets in a tick, and what a question counts at least.
const SERVED_A_TICK: usize = 4 * FETCH_BYTES;
const LEAST_COST: usize = 64 << 10;

/// How often the patience doubles, at most: to 4 resend periods an answer. A leader that catches up must not take so long
/// over others' silence that it is suspected itself.
const MAX_DOUBLINGS: u32 = 2;

/// Within how many answers' time a member must have brought something whole. Else it drips.
const ANSWERS: u64 = 8;

#[derive(Clone, Debug, Default)]
pub(super) struct Fetcher {
    wants: BTreeMap<Digest, Want>,
    /// Commit certificates of blocks that are not here, below the one to be caught up with: should another block be committed in the
    /// place of one, more than f members are faulty. The highest [`MAX_PASSED`].
    passed: BTreeMap<Index, Arc<Certificate>>,
    behind: Option<Behind>,
    /// How many bytes each member's questions have cost since the last tick.
    served: BTreeMap<MemberId, usize>,
    /// Who was shown the newest Commit certificate last, unasked, and when.
    shown: Option<(MemberId, u64)>,
}

/// A certified block that is not here.
#[derive(Clone, Debug)]
struct Want {
    certificate: Arc<Certificate>,
    /// The block, its parent, and so on, as far as they have come. At most [`MAX_FETCHED`].
    chain: Vec<Arc<Block>>,
    asked: Asked,
}

/// A committed chain that is ahead.
#[derive(Clone, Debug)]
struct Behind {
    certificate: Arc<Certificate>,
    /// Rising from just above the committed index. At most [`MAX_FETCHED`].
    chain: Vec<Arc<Block>>,
    asked: Asked,
}

/// Who is asked for something.
#[derive(Clone, Copy, Debug)]
struct Asked {
    member: MemberId,
    /// When it was asked last; 0 when its answer is here, and it is to be asked on.
    at_us: u64,
    /// When it was asked first, since it brought something whole; 0 before.
    since_us: u64,
    /// How many members in a row were passed over.
    passed: u32,
}

impl Asked {
    /// Is to be asked at once.
    fn first(member: MemberId) -> Self {
        Self { member, at_us: 0, since_us: 0, passed: 0 }
    }

    /// Has brought a part, and is to be asked for the next one.
    fn on(self, member: MemberId) -> Self {
        let since_us = if member == self.member { self.since_us } else { 0 };
        Self { member, at_us: 0, since_us, ..self }
    }

    fn patience_us(&self, timing: &Timing) -> u64 {
        timing.resend_us << self.passed.min(MAX_DOUBLINGS)
    }

    /// Whether it has had its time.
    fn is_over(&self, timing: &Timing, now_us: u64) -> bool {
        let patience_us = self.patience_us(timing);
        self.at_us != 0 && self.at_us + patience_us <= now_us
            || self.since_us != 0 && self.since_us + ANSWERS * patience_us <= now_us
    }
}

impl Want {
    /// The digest to ask for.
    fn missing(&self) -> Digest {
        self.chain.last().map_or(self.certificate.block().digest, |block| block.header().parent)
    }
}

impl Fetcher {
    pub fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// Of the blocks that are looked for.
    pub fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let behind = self.behind.iter().map(|behind| &behind.certificate);
        behind.chain(self.wants.values().map(|want| &want.certificate)).chain(self.passed.values())
    }

    /// Forgets what is committed now.
    pub fn forget_through(&mut self, committed: Index) {
        self.wants.retain(|_, want| want.certificate.block().index > committed);
        self.passed = self.passed.split_off(&committed.next());
        for want in self.wants.values_mut() {
            want.chain.retain(|block| block.header().index > committed);
        }
        if self.behind.as_ref().is_some_and(|behind| behind.certificate.block().index <= committed) {
            self.behind = None;
        }
        if let Some(behind) = &mut self.behind {
            behind.chain.clear();
        }
    }

    pub fn len(&self) -> usize {
        self.wants.values().map(|want| want.chain.len()).sum::<usize>()
            + self.behind.as_ref().map_or(0, |behind| behind.chain.len())
    }
}

impl Replica {
    // The asker's side.

    /// A valid certificate covers a block that is not here: asks for it, first of all where the certificate came from.
    pub(super) fn fetch(&mut self, from: MemberId, certificate: &Arc<Certificate>) {
        let asked = Asked::first(from);
        if certificate.is_commit() {
            let newer = |behind: &Behind| behind.certificate.rank() < certificate.rank();
            match &mut self.fetcher.behind {
                Some(behind) if newer(behind) => {
                    let before = std::mem::replace(&mut behind.certificate, Arc::clone(certificate));
                    self.fetcher.passed.insert(before.block().index, before);
                    if self.fetcher.passed.len() > MAX_PASSED {
                        self.fetcher.passed.pop_first();
                    }
                }
                Some(_) => {}
                None => {
                    let certificate = Arc::clone(certificate);
                    self.fetcher.behind = Some(Behind { certificate, chain: Vec::new(), asked });
                }
            }
        } else {
            let digest = certificate.block().digest;
            if self.fetcher.wants.len() >= WANTS_PER_MEMBER * self.members().n() {
                let lowest = self.fetcher.wants.iter().min_by_key(|(_, want)| want.certificate.rank());
                match lowest.map(|(digest, want)| (*digest, want.certificate.rank())) {
                    Some((lowest, rank)) if rank < certificate.rank() => self.fetcher.wants.remove(&lowest),
                    _ => return,
                };
            }
            self.fetcher.wants.entry(digest).or_insert_with(|| Want {
                certificate: Arc::clone(certificate),
                chain: Vec::new(),
                asked,
            });
        }
        self.fetch_on();
    }

    /// Asks for everything that nobody has been asked for yet, and somebody else for what did not come.
    pub(super) fn fetch_on(&mut self) {
        self.take_whole_chains();
        let above = self.tree.committed();
        let mut questions = Vec::new();
        for want in self.fetcher.wants.values_mut() {
            if ask(&mut want.asked, &self.setup, self.now.monotonic_us) {
                let digest = want.missing();
                let question = Message::FetchAncestors(FetchAncestors { digest, above });
                questions.push((want.asked.member, question));
            }
        }
        if let Some(behind) = &mut self.fetcher.behind {
            let before = behind.asked.member;
            if ask(&mut behind.asked, &self.setup, self.now.monotonic_us) {
                if behind.asked.member != before {
                    // It has not brought the end of its run: what it brought may be its own invention.
                    behind.chain.clear();
                }
                let after = behind.chain.last().map_or(above, |block| block.header().index);
                questions.push((behind.asked.member, Message::FetchCommitted(FetchCommitted { after })));
            }
        }
        for (member, question) in questions {
            self.send(To::Member(member), question);
        }
    }

    pub(super) fn tick_fetches(&mut self) {
        self.fetcher.served.clear();
        self.fetch_on();
        self.show_committed();
    }

    /// Shows the next member in turn how far the chain is committed, when it is time.
    fn show_committed(&mut self) {
        let now_us = self.now_us();
        let me = self.me();
        let (last, at_us) = self.fetcher.shown.get_or_insert((me, now_us));
        if now_us < *at_us + self.setup.timing.timeout_us {
            return;
        }
        (*last, *at_us) = (next_member(&self.setup, *last), now_us);
        let to = *last;
        if let Some(certificate) = self.committed.clone()
            && to != self.me()
        {
            self.send(To::Member(to), Message::Certificate(certificate));
        }
    }

    pub(super) fn on_blocks(&mut self, from: MemberId, blocks: &Blocks) {
        let Some(first) = blocks.blocks.first() else { return };
        // An answer to one question may serve the other, too.
        let wanted = self.wanted_with(first.digest());
        if let Some(certified) = wanted {
            self.take_ancestors(from, certified, &blocks.blocks);
        }
        let is_run = self.take_committed(from, blocks);
        if wanted.is_none() && !is_run {
            self.report(Report::Ignored(from, "Blocks", Ignore::NotAskedFor));
        }
    }

    /// Takes the chains whose last missing block is here by now: it came with another chain, or was committed. Lets go of those
    /// that pass by what is committed.
    fn take_whole_chains(&mut self) {
        let root = self.tree.root();
        let is_stray = |want: &Want| {
            let last = want.chain.last().map(|block| block.header());
            last.is_some_and(|last| last.index <= root.index.next() && last.parent != root.digest)
        };
        let wants = self.fetcher.wants.iter();
        let stray: Vec<_> = wants.filter(|(_, want)| is_stray(want)).map(|(digest, _)| *digest).collect();
        for certified in stray {
            self.drop_conflicting(certified, root);
        }
        let is_whole = |want: &Want, tree: &BlockTree| tree.contains(&want.missing());
        while let Some((certified, _)) =
            self.fetcher.wants.iter().find(|(_, want)| is_whole(want, &self.tree))
        {
            let certified = *certified;
            self.take_whole_chain(certified);
        }
    }

    fn take_whole_chain(&mut self, certified: Digest) {
        if let Some(want) = self.fetcher.wants.remove(&certified)
            && self.is_near(want.certificate.block())
        {
            self.take_chain(want.chain.iter().rev());
            self.on_certificate(want.asked.member, &want.certificate);
            self.accept_waiting();
            self.start_term();
        }
    }

    /// Whether a prepared block is near enough to be taken before it is known to be committed. Counted as the window is: term after
    /// term may add a prepared block while none is committed. Further ahead something is committed, and others will say what.
    fn is_near(&self, block: BlockRef) -> bool {
        let committed = self.tree.committed();
        let base = self.safety.open().map_or(committed, |open| open.start.index.max(committed));
        block.index.0 <= base.0.saturating_add(u64::try_from(MAX_FETCHED).unwrap_or(u64::MAX))
    }

    fn wanted_with(&self, missing: Digest) -> Option<Digest> {
        self.fetcher.wants.iter().find(|(_, want)| want.missing() == missing).map(|(digest, _)| *digest)
    }

    /// Blocks in falling order, each the parent of the one before.
    fn take_ancestors(&mut self, from: MemberId, certified: Digest, blocks: &[Arc<Block>]) {
        let root = self.tree.root();
        let Some(want) = self.fetcher.wants.get_mut(&certified) else { return };
        for block in blocks {
            if block.digest() != want.missing() || block.header().index <= root.index {
                break;
            }
            want.chain.push(Arc::clone(block));
            if self.tree.contains(&block.header().parent) {
                break;
            }
        }
        let missing = want.missing();
        let lowest = want.chain.last().map_or(Index(u64::MAX), |block| block.header().index);
        if self.tree.contains(&missing) {
            self.take_whole_chain(certified);
            self.take_whole_chains();
        } else if lowest <= root.index.next() {
            self.drop_conflicting(certified, root);
        } else if want.chain.len() > MAX_FETCHED {
            self.fetcher.wants.remove(&certified);
        } else {
            want.asked = want.asked.on(from);
            self.fetch_on();
        }
    }

    /// The chain of a certified block passes by the committed one. A lower position may have been overtaken; a higher one
    /// contradicts what is committed.
    fn drop_conflicting(&mut self, certified: Digest, root: BlockRef) {
        let Some(want) = self.fetcher.wants.remove(&certified) else { return };
        let overtaken =
            self.committed.as_ref().is_some_and(|committed| want.certificate.rank() < committed.rank());
        if !overtaken {
            self.halt_for_conflict(root, &want.certificate);
        }
    }

    /// Puts certified blocks into the tree, rising from one whose parent is here, and persists them.
    fn take_chain<'a>(&mut self, chain: impl Iterator<Item = &'a Arc<Block>>) {
        for block in chain {
            if !self.tree.contains(&block.digest()) {
                self.tree.insert(Arc::clone(block), self.now.monotonic_us);
                self.persist(Record::Block(Arc::clone(block)));
            }
        }
    }

    /// Blocks in rising order, the last one of a run with its Commit certificate. Who is asked may bring a run in parts; a
    /// whole one is taken from anybody, as it proves itself. Answers whether they were of any use.
    fn take_committed(&mut self, from: MemberId, blocks: &Blocks) -> bool {
        let root = self.tree.root();
        let Some(behind) = &mut self.fetcher.behind else { return false };
        let is_asked = from == behind.asked.member;
        let mut chain = if is_asked { std::mem::take(&mut behind.chain) } else { Vec::new() };
        let before = chain.len();
        for block in blocks.blocks.iter().filter(|block| block.header().index > root.index) {
            let (index, parent) =
                chain.last().map_or((root.index, root.digest), |last| (last.header().index, last.digest()));
            if block.header().index != index.next() || block.header().parent != parent {
                break;
            }
            chain.push(Arc::clone(block));
        }
        if let Some(certificate) = &blocks.certificate {
            let certified = certificate.block().digest;
            if let Some(at) = chain.iter().position(|block| block.digest() == certified) {
                if is_asked {
                    // A block at a time would be true, and take for ever.
                    behind.asked = if is_full(blocks) { Asked::first(from) } else { behind.asked.on(from) };
                }
                self.take_chain(chain.iter().take(at + 1));
                self.on_certificate(from, certificate);
                return true;
            }
            if passes_by(root, blocks, certified) {
                self.halt_for_conflict(root, certificate);
                return false;
            }
        }
        let bytes: usize = chain.iter().map(|block| block.size()).sum();
        let fits = chain.len() <= MAX_FETCHED && bytes <= MAX_FETCHED_BYTES;
        let is_part = is_asked && blocks.certificate.is_none() && chain.len() > before && fits;
        if !is_part {
            // When its time is over the next member is asked.
            chain.truncate(before);
        }
        if is_asked {
            behind.chain = chain;
        }
        if is_part {
            behind.asked = behind.asked.on(from);
            self.fetch_on();
        }
        is_part
    }

    // The server's side.

    pub(super) fn on_fetch_ancestors(&mut self, from: MemberId, fetch: &FetchAncestors) {
        if fetch.above < self.tree.committed()
            && let Some(certificate) = self.committed.clone()
        {
            self.send(To::Member(from), Message::Certificate(certificate));
        }
        // Each answer costs time that others need.
        if self.fetcher.served.get(&from).is_some_and(|bytes| *bytes >= SERVED_A_TICK) {
            return;
        }
        let mut bytes = 0;
        let mut blocks = Vec::new();
        for block in self.tree.descend(&fetch.digest) {
            bytes += block.size();
            if block.header().index <= fetch.above
                || blocks.len() >= FETCH_BLOCKS
                || (bytes > FETCH_BYTES && !blocks.is_empty())
            {
                break;
            }
            blocks.push(Arc::clone(block));
        }
        *self.fetcher.served.entry(from).or_default() += bytes.max(LEAST_COST);
        if !blocks.is_empty() {
            self.send(To::Member(from), Message::Blocks(Blocks { blocks, certificate: None }));
        }
    }

    pub(super) fn on_fetch_committed(&mut self, from: MemberId, fetch: &FetchCommitted) {
        if fetch.after < self.tree.committed() {
            self.outputs.push(Output::ServeCommitted { to: from, after: fetch.after });
        }
    }
}

/// Whether an answer has about as much as one may have: then there is more to come.
fn is_full(blocks: &Blocks) -> bool {
    let bytes: usize = blocks.blocks.iter().map(|block| block.size()).sum();
    blocks.blocks.len() >= FETCH_BLOCKS / 2 || bytes >= FETCH_BYTES / 2
}

/// Whether blocks are a chain from an index right above the committed block to a certified one, and its first block stands on
/// another.
fn passes_by(committed: BlockRef, blocks: &Blocks, certified: Digest) -> bool {
    let mut above = blocks.blocks.iter().skip_while(|block| block.header().index <= committed.index);
    let Some(first) = above.next() else { return false };
    if first.header().index != committed.index.next() || first.header().parent == committed.digest {
        return false;
    }
    let mut last = first.digest();
    for block in above {
        if last == certified || block.header().parent != last {
            break;
        }
        last = block.digest();
    }
    last == certified
}

/// Whether somebody is to be asked now, and who: the one named, or when its time is over the next member.
fn ask(asked: &mut Asked, setup: &Setup, now_us: u64) -> bool {
    let is_over = asked.is_over(&setup.timing, now_us);
    if asked.at_us != 0 && !is_over {
        return false;
    }
    if is_over || asked.member == setup.me {
        let passed = asked.passed.saturating_add(u32::from(is_over));
        *asked = Asked { passed, ..Asked::first(next_member(setup, asked.member)) };
    }
    asked.at_us = now_us.max(1);
    if asked.since_us == 0 {
        asked.since_us = asked.at_us;
    }
    true
}

/// The next other member in turn.
fn next_member(setup: &Setup, after: MemberId) -> MemberId {
    let others = || setup.members.ids().filter(|id| *id != setup.me);
    others().find(|id| *id > after).or_else(|| others().next()).unwrap_or(after)
}
