//! Whom a leader names as the communication node: the trust that each member has earned.
//!
//! CCRO (Yu et al., BIOTC 2022, doi 10.1145/3559795.3559810) lets the primary pick the node by uptime, positivity, completion and
//! response rank, and then takes that node to be honest. Here it may lie: it can't forge a vote, and what it keeps back voters send to
//! everybody. So trust is about time only, and a bad pick costs one fall-back.
//!
//! A member's score is
//!
//! - its *service*, completion and uptime in one: of the blocks whose votes it was to gather, the share that it served. It rises by an
//!   eighth of what is missing with each one that it served in time, and halves with each one that it failed;
//! - and its *promptness*, positivity and response rank in one: how often it is among the first whose votes make a certificate.
//!
//! A block is **failed** if its certificates did not come from the node, or if more than f members had to fall back: some correct one
//! among them was left out. So a node that serves the leader alone loses its trust like a silent one. Up to f that fall back may be liars, or
//! may be left out by a liar: the block counts as **doubted**, and takes a sixteenth, down to [`DOUBTED`] and no further: a liar that
//! falls back at every block must not sink honest nodes to where one that fails is. A member that is proved to have lied has no
//! score. Whoever is not named gets better slowly, up to [`FORGIVEN`]: a bad day is forgotten after some hundred blocks, and a liar's
//! second chance is as rare.
//!
//! The one named stays until another one is better by [`MARGIN`], or until it fails: then the next choice passes it over, whatever
//! the others' scores are, as long as there is another. Deterministic; one score a member.
//!
//! A member counts what it named itself, as the leader, and nothing else: only then does it know that all were told the same. A lying
//! leader could tell the node another route than the voters, and every block would count against a node that did as it was told.

use std::collections::BTreeMap;

use crate::ids::MemberId;

/// A full service, and a full promptness.
const FULL: u32 = 1000;
/// How far service rises that is not tried.
const FORGIVEN: u32 = 900;
/// How far doubts alone take service down: not to where one failure does.
const DOUBTED: u32 = 600;
/// By how much another one must be better.
const MARGIN: u32 = 100;
/// What promptness counts, next to service: one part in so many.
const PROMPT_SHARE: u32 = 4;
/// Promptness moves by this part of the difference.
const PROMPT_STEP: u32 = 16;

/// How a member gathered the votes for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// Its certificates came in time.
    Served,
    /// They did, but not to some who may be liars.
    Doubted,
    /// They did not come, or not to a correct member.
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Score {
    service: u32,
    prompt: u32,
    has_lied: bool,
}

impl Default for Score {
    fn default() -> Self {
        Self { service: FULL, prompt: FULL, has_lied: false }
    }
}

impl Score {
    fn total(&self) -> u32 {
        if self.has_lied { 0 } else { self.service + self.prompt / PROMPT_SHARE }
    }
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    /// One a member at most.
    scores: BTreeMap<MemberId, Score>,
    named: Option<MemberId>,
    /// Who failed since the last choice.
    failed: Option<MemberId>,
}

impl Trust {
    /// A block is committed whose votes a member was to gather, because this member said so.
    pub fn note_service(&mut self, node: MemberId, service: Service) {
        let score = self.scores.entry(node).or_default();
        score.service = match service {
            Service::Served => score.service + (FULL - score.service).div_ceil(8),
            Service::Doubted => score.service.min(DOUBTED).max(score.service - score.service / 16),
            Service::Failed => score.service / 2,
        };
        if service == Service::Failed {
            self.failed = Some(node);
            self.named = self.named.filter(|named| *named != node);
        }
        if service == Service::Served {
            let others = self.scores.iter_mut().filter(|(id, _)| **id != node);
            for (_, score) in others.filter(|(_, score)| score.service < FORGIVEN) {
                score.service += 1;
            }
        }
    }

    /// A certificate was made of the votes of these members, of all.
    pub fn note_signers(&mut self, all: impl Iterator<Item = MemberId>, signers: &[MemberId]) {
        for id in all {
            let score = self.scores.entry(id).or_default();
            let target = if signers.contains(&id) { FULL } else { 0 };
            score.prompt = (score.prompt * (PROMPT_STEP - 1) + target).div_ceil(PROMPT_STEP);
        }
    }

    /// A member is proved to have lied.
    pub fn condemn(&mut self, id: MemberId) {
        self.scores.entry(id).or_default().has_lied = true;
    }

    /// The best of some members; the first of those that are as good. Not one that has failed since the last choice, if there is
    /// another.
    pub fn choose(&mut self, candidates: &[MemberId]) -> Option<MemberId> {
        let failed = self.failed.take();
        let total = |id: MemberId| self.scores.get(&id).copied().unwrap_or_default().total();
        let named = self.named.filter(|id| candidates.contains(id));
        let eligible = |id: &MemberId| candidates.len() == 1 || Some(*id) != failed;
        let best = candidates.iter().copied().filter(eligible).rev().max_by_key(|id| total(*id))?;
        let stays = named.filter(|named| total(*named) > 0 && total(best) < total(*named) + MARGIN);
        self.named = stays.or(Some(best));
        self.named
    }

    /// How many scores are kept.
    pub fn len(&self) -> usize {
        self.scores.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: [MemberId; 3] = [MemberId(2), MemberId(3), MemberId(4)];

    fn after(services: &[(u8, Service)]) -> Trust {
        let mut trust = Trust::default();
        trust.choose(&FOUR);
        for (node, service) in services {
            trust.note_service(MemberId(*node), *service);
        }
        trust
    }

    #[test]
    fn one_failure_is_enough_to_name_another() {
        let mut trust = after(&[]);
        assert_eq!(trust.choose(&FOUR), Some(MemberId(2)), "the first of equals");
        trust.note_service(MemberId(2), Service::Failed);
        assert_eq!(trust.choose(&FOUR), Some(MemberId(3)));
        assert_eq!(trust.choose(&[MemberId(2)]), Some(MemberId(2)), "where there is nobody else");
        assert_eq!(trust.choose(&[]), None);
    }

    #[test]
    fn who_serves_is_kept_for_hundreds_of_blocks_though_others_are_forgiven() {
        let mut trust = after(&[(2, Service::Failed)]);
        for block in 0..10_000 {
            assert_eq!(trust.choose(&FOUR), Some(MemberId(3)), "after {block}");
            trust.note_service(MemberId(3), Service::Served);
        }
        let failed = trust.scores[&MemberId(2)];
        assert_eq!(failed.service, FORGIVEN);
    }

    #[test]
    fn a_liar_that_says_that_it_is_left_out_topples_nobody_at_once() {
        let mut trust = after(&[(2, Service::Doubted)]);
        assert_eq!(trust.choose(&FOUR), Some(MemberId(2)), "one doubt is less than the margin");
        let mut named = std::collections::BTreeSet::new();
        for _ in 0..300 {
            let node = trust.choose(&FOUR).unwrap();
            named.insert(node);
            trust.note_service(node, Service::Doubted);
        }
        assert_eq!(named.len(), 3, "they take turns");
        assert!(FOUR.iter().all(|id| trust.scores[id].service >= DOUBTED));
    }

    /// How often a silent node is named in 5,000 blocks, while a voter falls back at all of them but each `mercy`-th.
    fn failures_with_a_crier(mercy: Option<u32>) -> u32 {
        const FIVE: [MemberId; 5] = [MemberId(2), MemberId(3), MemberId(4), MemberId(5), MemberId(6)];
        let silent = MemberId(3);
        let mut trust = Trust::default();
        let mut failures = 0;
        for block in 0..5_000 {
            let node = trust.choose(&FIVE).unwrap();
            let is_spared = mercy.is_some_and(|mercy| block % mercy == 0);
            failures += u32::from(node == silent);
            trust.note_service(
                node,
                match is_spared {
                    _ if node == silent => Service::Failed,
                    true => Service::Served,
                    false => Service::Doubted,
                },
            );
        }
        failures
    }

    #[test]
    fn a_liar_that_falls_back_at_every_block_does_not_make_a_silent_one_the_best() {
        assert!(failures_with_a_crier(None) <= 2, "{}", failures_with_a_crier(None));
        for mercy in 1..=20 {
            let failures = failures_with_a_crier(Some(mercy));
            assert!(failures <= 5_000 / 300, "{mercy}: {failures}");
        }
    }

    #[test]
    fn who_fails_is_passed_over_however_bad_the_others_are() {
        let mut trust = after(&[]);
        for node in [3, 4] {
            for _ in 0..20 {
                trust.note_service(MemberId(node), Service::Failed);
            }
        }
        let mut failures = 0;
        let mut last = None;
        for _ in 0..200 {
            let node = trust.choose(&FOUR).unwrap();
            let fails = node == MemberId(2);
            assert!(!fails || last != Some(node), "right after its failure");
            failures += u32::from(fails);
            trust.note_service(node, if fails { Service::Failed } else { Service::Served });
            last = Some(node);
        }
        assert!((1..=3).contains(&failures), "{failures}");
    }

    #[test]
    fn who_is_proved_to_lie_is_the_last_resort() {
        let mut trust = after(&[]);
        trust.condemn(MemberId(2));
        assert_eq!(trust.choose(&FOUR), Some(MemberId(3)));
        trust.condemn(MemberId(3));
        trust.condemn(MemberId(4));
        assert!(trust.choose(&FOUR).is_some());
    }

    #[test]
    fn of_those_that_serve_the_prompt_one_is_named() {
        let mut trust = after(&[]);
        for _ in 0..100 {
            trust.note_signers(FOUR.into_iter(), &[MemberId(1), MemberId(4)]);
        }
        assert_eq!(trust.choose(&FOUR), Some(MemberId(4)));
        assert!(trust.scores[&MemberId(2)].prompt < 20 && trust.scores[&MemberId(4)].prompt > 980);
    }

    #[test]
    fn scores_are_bounded() {
        let mut trust = after(&[]);
        for round in 0..1000_u32 {
            let service = [Service::Served, Service::Doubted, Service::Failed][(round % 3) as usize];
            trust.note_service(FOUR[(round % 2) as usize], service);
            trust.note_signers(FOUR.into_iter(), &FOUR[..(round % 3) as usize]);
            assert!(trust.scores.values().all(|score| score.service <= FULL && score.prompt <= FULL));
        }
        assert_eq!(trust.len(), 3);
    }
}
