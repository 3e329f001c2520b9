//! Sessions: each request in one is executed once, whatever comes again, late, in another order, or after the session has ended.

use super::*;
use crate::kv::session::Told;

/// A time that blocks may have.
const NOW: u64 = 1_000_000_000;

impl Store {
    /// Executes a block at a time, with one batch a member.
    fn block(&mut self, time_ms: u64, batches: &[(u8, Vec<Operation>)]) -> Vec<Vec<Told>> {
        let batches: Vec<_> = batches
            .iter()
            .map(|(origin, operations)| (*origin, operations.iter().map(Operation::encode).collect()))
            .collect();
        let block = block_of(self.machine.head().executed, &batches);
        let header = Header { time_ms, ..block.header().clone() };
        let block = Arc::new(Block::new(header, block.batches().to_vec()));
        let mut results = self.machine.execute(&mut self.tables, &[block]).unwrap();
        let BlockOutcome { outcomes, repeated, .. } = results.remove(0);
        assert_eq!(self.state(), self.recomputed());
        let told = outcomes.into_iter().enumerate().map(|(batch, outcomes)| {
            let outcomes = outcomes.into_iter().enumerate();
            outcomes.map(|(at, outcome)| (outcome, repeated.get(&(batch, at)).copied())).collect()
        });
        told.collect()
    }

    fn at(&mut self, time_ms: u64, operation: Operation) -> Told {
        self.block(time_ms, &[(1, vec![operation])]).remove(0).remove(0)
    }

    /// How many sessions there are.
    fn sessions(&self) -> usize {
        let mut sessions = 0;
        self.tables
            .scan(Table::Sessions, Bound::Unbounded, |key, _| {
                sessions += usize::from(key.len() == 24);
                ControlFlow::Continue(())
            })
            .unwrap();
        sessions
    }
}

fn sent((session, opened_ms): (u128, u64), sequence: u64, answered: u64, operation: &Operation) -> Operation {
    let session = SessionId(session);
    Operation::InSession(SessionRequest {
        session,
        opened_ms,
        sequence,
        answered,
        operation: operation.encode(),
    })
}

fn refused(refusal: Refusal) -> Told {
    (Outcome::Refused(refusal), None)
}

fn done(revision: u64) -> Told {
    (Outcome::Put { revision }, None)
}

fn again(revision: u64, index: u64) -> Told {
    (Outcome::Put { revision }, Some((Index(index), Term(1))))
}

#[test]
fn a_copy_gets_the_first_answer_and_nothing_is_done() {
    let mut store = Store::new();
    let session = (7, NOW);
    let first = sent(session, 0, 0, &put("a", "1"));
    let second = sent(session, 1, 0, &put_if("a", "2", Expect::Absent));
    assert_eq!(store.at(NOW, first.clone()), done(2));
    let mismatch = Outcome::Mismatch { revision: 2, found: 2 };
    assert_eq!(store.at(NOW + 1, second.clone()), (mismatch.clone(), None));
    store.at(NOW + 2, delete("a"));
    let told = store
        .block(NOW + 3, &[(1, vec![first.clone(), second.clone()]), (2, vec![first.clone(), put("b", "")])]);
    let failed_before = (mismatch, Some((Index(2), Term(1))));
    assert_eq!(told, [vec![again(2, 1), failed_before], vec![again(2, 1), done(4)]]);
    assert_eq!(store.get("a"), None, "the put was not done again, and its comparison not made again");
    // Twice in one block.
    let third = sent(session, 2, 0, &put("c", ""));
    let told = store.block(NOW + 4, &[(1, vec![third.clone()]), (2, vec![third])]);
    assert_eq!(told, [vec![done(5)], vec![again(5, 5)]]);
    // Somebody else's operation under the same number is not taken for it, whoever comes first.
    assert_eq!(store.at(NOW + 5, sent(session, 0, 0, &put("a", "other"))), refused(Refusal::NumberTaken));
    assert_eq!(store.get("a"), None);
    store.reopen();
    assert_eq!(store.at(NOW + 6, first), again(2, 1));
}

#[test]
fn what_needs_no_answer_is_forgotten_and_refused() {
    let mut store = Store::new();
    let session = (7, NOW);
    for sequence in 0..3 {
        store.at(NOW, sent(session, sequence, 0, &put("a", "")));
    }
    assert_eq!(store.at(NOW, sent(session, 3, 2, &put("a", ""))), done(5));
    let before = refused(Refusal::AnsweredBefore { answered: 2 });
    assert_eq!(store.at(NOW, sent(session, 1, 0, &put("a", ""))), before);
    assert_eq!(store.at(NOW, sent(session, 2, 2, &put("a", ""))), again(4, 3));
    // A number that was left out and given up is not done any more, either.
    assert_eq!(store.at(NOW, sent(session, 9, 9, &put("a", ""))), done(6));
    assert_eq!(
        store.at(NOW, sent(session, 8, 0, &put("a", ""))),
        refused(Refusal::AnsweredBefore { answered: 9 })
    );
    assert_eq!(store.get("a").unwrap().version, 5);
}

#[test]
fn the_window_bounds_what_is_kept() {
    let mut store = Store::new();
    let session = (7, NOW);
    let last = SESSION_WINDOW - 1;
    assert_eq!(
        store.at(NOW, sent(session, last + 1, 0, &put("a", ""))),
        refused(Refusal::SessionWindow { answered: 0 })
    );
    assert_eq!(store.sessions(), 0, "a refused request begins no session");
    assert_eq!(store.at(NOW, sent(session, last, 0, &put("a", ""))), done(2));
    assert_eq!(
        store.at(NOW, sent(session, last + 1, 0, &put("a", ""))),
        refused(Refusal::SessionWindow { answered: 0 })
    );
    assert_eq!(store.at(NOW, sent(session, last + 1, 1, &put("a", ""))), done(3));
    assert_eq!(store.at(NOW, sent(session, last, 0, &put("a", ""))), again(2, 2));
}

#[test]
fn what_can_be_in_no_session_is_refused() {
    let mut store = Store::new();
    let session = (7, NOW);
    let before = store.state();
    let twice = sent(session, 0, 0, &sent(session, 0, 0, &put("a", "")));
    assert_eq!(twice.check(), Err(Refusal::Malformed));
    assert_eq!(store.at(NOW, twice), refused(Refusal::Malformed));
    // However deep: only the outermost one is decoded.
    let deep = (0..10_000).fold(put("a", ""), |inner, _| sent((1, 1), 0, 0, &inner));
    assert_eq!(store.at(NOW, deep), refused(Refusal::Malformed));
    let protocol = Operation::SetProtocol { protocol: Protocol::Ccro };
    assert_eq!(store.at(NOW, sent(session, 0, 0, &protocol)), refused(Refusal::NotInSession));
    assert_eq!(store.machine.protocol(), None);
    assert_eq!(store.at(NOW, sent(session, 1, 2, &put("a", ""))), refused(Refusal::Malformed));
    assert_eq!(store.at(NOW, sent(session, 0, 0, &put("", ""))), refused(Refusal::KeyLength { bytes: 0 }));
    let mut request = SessionRequest {
        session: SessionId(7),
        opened_ms: NOW,
        sequence: 0,
        answered: 0,
        operation: bytes(""),
    };
    assert_eq!(store.at(NOW, Operation::InSession(request.clone())), refused(Refusal::Malformed));
    request.operation = [put("a", "").encode().as_ref(), b"x"].concat().into();
    assert_eq!(store.at(NOW, Operation::InSession(request)), refused(Refusal::Malformed));
    assert_eq!((store.state(), store.sessions()), (before, 0));
}

#[test]
fn a_session_ends_when_it_is_not_used() {
    let mut store = Store::new();
    let (old, other) = ((7, NOW), (8, NOW + 5));
    store.at(NOW + 10, sent(old, 0, 0, &put("a", "")));
    store.at(NOW + 20, sent(other, 0, 0, &put("b", "")));
    let later = NOW + 10 + SESSION_MS;
    assert_eq!(store.at(later, sent(old, 0, 0, &put("a", ""))), again(2, 1), "not longer than that");
    let later = later + SESSION_MS;
    assert_eq!(store.at(later, sent(old, 1, 0, &put("a", ""))), done(4));
    assert_eq!(store.sessions(), 1, "the other one has ended");
    assert_eq!(store.at(later, sent(other, 0, 0, &put("b", ""))), refused(Refusal::SessionEnded));
    let later = later + SESSION_MS + 1;
    assert_eq!(store.at(later, sent(old, 0, 0, &put("a", ""))), refused(Refusal::SessionEnded));
    assert_eq!(store.sessions(), 0);
    // Nor does one begin that was opened before the last use of one that ended; the floor is kept over a restart.
    for _ in 0..2 {
        let opened = later - SESSION_MS - 1;
        assert_eq!(store.at(later, sent((9, opened), 0, 0, &put("c", ""))), refused(Refusal::SessionEnded));
        store.reopen();
    }
    assert_eq!(store.at(later, sent((9, later), 0, 0, &put("c", ""))), done(5));
    assert_eq!((store.get("a").unwrap().version, store.get("b").unwrap().version), (2, 1));
}

#[test]
fn the_least_recently_used_sessions_end_when_there_are_too_many() {
    let mut store = Store::new();
    let sessions = MAX_SESSIONS as u64;
    let session = |number: u64| (u128::from(number), NOW + number);
    for number in 0..sessions {
        store.at(NOW + number, sent(session(number), 0, 0, &put("a", "")));
    }
    // The first one is used again.
    store.at(NOW + 50, sent(session(0), 1, 1, &put("a", "")));
    store.reopen();
    store.at(NOW + 51, sent(session(sessions), 0, 0, &put("a", "")));
    assert_eq!(store.sessions(), MAX_SESSIONS);
    assert_eq!(store.at(NOW + 52, sent(session(1), 0, 0, &put("a", ""))), refused(Refusal::SessionEnded));
    let known = store.at(NOW + 52, sent(session(2), 0, 0, &put("a", "")));
    assert_eq!(known, again(4, 3));
    assert!(store.at(NOW + 52, sent(session(0), 1, 1, &put("a", ""))).1.is_some());
    // More in one block than there may be: of equally old ones the lowest ids end.
    let opened = NOW + 100;
    let many = (0..sessions + 2).map(|number| sent((u128::from(1000 + number), opened), 0, 0, &put("b", "")));
    store.block(opened, &[(1, many.collect())]);
    assert_eq!(store.sessions(), MAX_SESSIONS);
    let told =
        [0, 1, 2].map(|number| store.at(opened + 1, sent((1000 + number, opened), 0, 0, &put("b", ""))).0);
    let ended = Outcome::Refused(Refusal::SessionEnded);
    assert_eq!(told[..2], [ended.clone(), ended]);
    assert!(matches!(told[2], Outcome::Put { .. }));
    assert_eq!(store.get("b").unwrap().version, sessions + 2);
}

#[test]
fn a_time_to_come_begins_no_session() {
    let mut store = Store::new();
    let ahead = (7, NOW + 1);
    let put_ahead = sent(ahead, 0, 0, &put("a", ""));
    assert_eq!(store.at(NOW, put_ahead.clone()), refused(Refusal::SessionAhead { time_ms: NOW }));
    assert_eq!(store.sessions(), 0);
    assert_eq!(store.at(NOW + 1, put_ahead), done(2));
    // With the time another session is meant.
    let ahead = sent((7, NOW + 9), 0, 0, &put("a", ""));
    assert_eq!(store.at(NOW + 2, ahead), refused(Refusal::SessionAhead { time_ms: NOW + 2 }));
    assert_eq!(store.at(NOW + 2, sent((7, NOW + 2), 0, 0, &put("a", ""))), done(3));
}

#[test]
fn much_that_was_read_is_not_kept_but_that_it_was_done_is() {
    let mut store = Store::new();
    let read = |key: &str| Step::Get(Range::of(Span::Key(bytes(key))));
    store.one(put("small", &"s".repeat(100)));
    store.one(put("large", &"l".repeat(KEPT_ANSWER)));
    let then = |steps| Transaction { parts: vec![Part { compare: vec![], then: steps, otherwise: vec![] }] };
    let wrote = Step::Put { key: bytes("c"), value: bytes(""), lease: 0 };
    let request = |sequence, key| {
        let transaction =
            then(vec![wrote.clone(), read(key), Step::Delete { keys: Span::Key(bytes("none")) }]);
        sent((7, NOW), sequence, 0, &Operation::Transaction(transaction))
    };
    let resent = |sequence| request(sequence, if sequence == 0 { "large" } else { "small" });
    let steps = |told: &Told| match &told.0 {
        Outcome::Transaction { revision, taken } => {
            assert!(taken.succeeded);
            (*revision, taken.steps.clone())
        }
        other => panic!("{other:?}"),
    };
    let first = store.at(NOW, request(0, "large"));
    let (revision, whole) = steps(&first);
    assert!(matches!(whole[1], StepOutcome::Found(_)));
    let again = store.at(NOW, request(0, "large"));
    let left = vec![StepOutcome::Put, StepOutcome::NotRead, StepOutcome::Deleted(0)];
    assert_eq!(steps(&again), (revision, left.clone()));
    // Small ones are kept whole, until there are too many of them. Then the oldest is the first of which less is kept.
    let first = store.at(NOW, request(1, "small"));
    assert_eq!(steps(&store.at(NOW, request(1, "small"))), steps(&first));
    for sequence in 2..10 {
        store.at(NOW, request(sequence, "small"));
    }
    let kept: Vec<_> = (0..10).map(|sequence| steps(&store.at(NOW, resent(sequence))).1).collect();
    assert_eq!(kept[1], left);
    assert!(matches!(kept[9][1], StepOutcome::Found(_)));
    assert_eq!(store.get("c").unwrap().version, 10);
    // In the end only that they were done.
    for sequence in 10..150 {
        store.at(NOW, request(sequence, "small"));
    }
    let kept: Vec<_> = (0..150).map(|sequence| steps(&store.at(NOW, resent(sequence))).1).collect();
    assert_eq!(kept[0], []);
    assert_eq!(kept[149], left);
    assert_eq!(store.sessions(), 1);
}

#[test]
fn repeated_answers_cost_their_member_what_reading_does() {
    let mut store = Store::new();
    store.one(put("k", &"v".repeat(200)));
    let read = Step::Get(Range::of(Span::Key(bytes("k"))));
    let transaction =
        Transaction { parts: vec![Part { compare: vec![], then: vec![read], otherwise: vec![] }] };
    let request = sent((7, NOW), 0, 0, &Operation::Transaction(transaction));
    store.at(NOW, request.clone());
    let copies = MAX_READ / 200;
    let told = store.block(NOW, &[(1, vec![request.clone(); copies]), (2, vec![request])]);
    let is_whole = |told: &Told| match &told.0 {
        Outcome::Transaction { taken, .. } => !taken.steps.is_empty(),
        other => panic!("{other:?}"),
    };
    let whole = told[0].iter().filter(|told| is_whole(told)).count();
    assert!(whole > copies / 2 && whole < copies, "{whole} of {copies}");
    assert!(is_whole(&told[1][0]), "another member has a budget of its own");
}

#[test]
fn sessions_that_take_too_much_end() {
    let mut store = Store::new();
    // Each takes some 6 KiB: three fit.
    let fill = |session: u128| {
        let requests = (0..SESSION_WINDOW).map(|sequence| sent((session, NOW), sequence, 0, &put("a", "")));
        requests.collect::<Vec<_>>()
    };
    for session in 0..4 {
        store.block(NOW + 1 + session, &[(1, fill(u128::from(session)))]);
    }
    assert!((1..=3).contains(&store.sessions()), "{}", store.sessions());
    assert_eq!(store.at(NOW + 9, fill(0).remove(5)), refused(Refusal::SessionEnded));
    assert!(store.at(NOW + 9, fill(3).remove(5)).1.is_some());
}

/// What clients, the network and time may do.
#[derive(Clone, Debug)]
enum Act {
    /// A client opens a session: by the time of the last block, before it, or ahead of it.
    Open(u64, u64),
    /// A client sends something new in a session, some numbers further on; it says that so many before need no answer.
    Send(prop::sample::Index, u64, u64),
    /// A liar sends something else under a number of somebody's session that is or will be used; or of one of that name opened so
    /// long before now or ahead.
    Forge(prop::sample::Index, u64, Option<(u64, u64)>),
    /// Something that was sent comes again, as it was or with the newest `answered`.
    Again(prop::sample::Index, bool),
}

fn an_act() -> impl Strategy<Value = Act> {
    let opened = || prop_oneof![6 => Just((0, 0)), 1 => (0..SESSION_MS).prop_map(|before| (before, 0)), 1 => (1..5000_u64).prop_map(|ahead| (0, ahead))];
    prop_oneof![
        1 => (any::<prop::sample::Index>(), 0..4_u64, prop::option::of(opened())).prop_map(|(which, back, opened)| Act::Forge(which, back, opened)),
        1 => opened().prop_map(|(before, ahead)| Act::Open(before, ahead)),
        4 => (any::<prop::sample::Index>(), 0..3_u64, 0..4_u64).prop_map(|(which, skip, open)| Act::Send(which, skip, open)),
        5 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, newest)| Act::Again(which, newest)),
    ]
}

/// A session as its client sees it.
struct Opened {
    id: u128,
    opened_ms: u64,
    next: u64,
    answered: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Every request of a session is executed at most once, and is told the same by every copy, or is refused; whatever comes again,
    /// in whatever order and through whichever member, whichever sessions end, and wherever the state is opened anew.
    #[test]
    fn every_request_is_executed_once_or_not_at_all(
        blocks in prop::collection::vec(
            (
                prop::collection::vec((0..3_u8, an_act()), 1..8),
                prop_oneof![4 => 0..2000_u64, 1 => Just(SESSION_MS / 2), 1 => SESSION_MS - 1..SESSION_MS + 2],
                any::<bool>(),
                0..4_u8,
            ),
            1..24,
        ),
    ) {
        let mut store = Store::new();
        let mut now = NOW;
        let mut opened: Vec<Opened> = Vec::new();
        let mut sent_before: Vec<(u128, u64, u64)> = Vec::new();
        let mut answers: BTreeMap<(u128, u64), (Outcome, u64)> = BTreeMap::new();
        let own_key = |session: u128, sequence: u64| format!("{session}/{sequence}");
        for (acts, passes, save, restart) in blocks {
            let mut batches: Vec<(u8, Vec<_>)> = (0..3).map(|origin| (origin, vec![])).collect();
            let mut names: Vec<Vec<Option<(u128, u64)>>> = vec![vec![]; 3];
            for (origin, act) in acts {
                let (session, opened_ms, sequence, answered) = match act {
                    Act::Open(before, ahead) => {
                        let id = opened.len() as u128;
                        opened.push(Opened { id, opened_ms: now - before + ahead, next: 0, answered: 0 });
                        continue;
                    }
                    _ if opened.is_empty() => continue,
                    Act::Forge(which, back, other) => {
                        let one = &opened[which.index(opened.len())];
                        let sequence = (one.next + 1).saturating_sub(back);
                        let opened_ms = other.map_or(one.opened_ms, |(before, ahead)| now - before + ahead);
                        let forged = sent((one.id, opened_ms), sequence, 0, &put("forged", ""));
                        batches[usize::from(origin)].1.push(forged);
                        names[usize::from(origin)].push(None);
                        continue;
                    }
                    Act::Send(which, skip, open) => {
                        let at = which.index(opened.len());
                        let one = &mut opened[at];
                        let sequence = one.next + skip;
                        one.next = sequence + 1;
                        one.answered = one.answered.max(sequence.saturating_sub(open));
                        sent_before.push((one.id, sequence, one.answered));
                        (one.id, one.opened_ms, sequence, one.answered)
                    }
                    _ if sent_before.is_empty() => continue,
                    Act::Again(which, newest) => {
                        let (id, sequence, answered) = sent_before[which.index(sent_before.len())];
                        let one = &opened[id as usize];
                        let answered = if newest { one.answered.min(sequence) } else { answered };
                        (id, one.opened_ms, sequence, answered)
                    }
                };
                let operation = put(&own_key(session, sequence), "");
                batches[usize::from(origin)].1.push(sent((session, opened_ms), sequence, answered, &operation));
                names[usize::from(origin)].push(Some((session, sequence)));
            }
            now += passes;
            let told = store.block(now, &batches);
            let index = store.machine.head().executed.index.0;
            for (name, (outcome, first)) in names.into_iter().flatten().zip(told.into_iter().flatten()) {
                let Some(name) = name else { continue };
                match outcome {
                    Outcome::Put { .. } => {
                        let (answer, at) = answers.entry(name).or_insert_with(|| (outcome.clone(), index));
                        prop_assert_eq!(&outcome, &*answer);
                        prop_assert_eq!(first.map_or(index, |(index, _)| index.0), *at);
                    }
                    Outcome::Refused(
                        Refusal::SessionEnded
                        | Refusal::SessionAhead { .. }
                        | Refusal::AnsweredBefore { .. }
                        | Refusal::NumberTaken
                        | Refusal::SessionWindow { .. },
                    ) => prop_assert_eq!(first, None),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert!(store.sessions() <= MAX_SESSIONS);
            if save {
                store.machine.save(&mut store.tables).unwrap();
            }
            if restart == 0 {
                store.reopen();
            }
        }
        // The version of its own key says how often each was executed.
        for (session, sequence, _) in sent_before {
            let version = store.get(&own_key(session, sequence)).map_or(0, |entry| entry.version);
            let answered = answers.contains_key(&(session, sequence));
            prop_assert_eq!(version, u64::from(answered), "{} of {}", sequence, session);
        }
    }
}
