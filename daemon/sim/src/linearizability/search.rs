//! The search for an order: see the module's header.

use std::collections::HashMap;

use super::{Limits, problem::Problem};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Searched {
    pub found: Found,
    pub configurations: usize,
    pub steps: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Order,
    /// The one that explains the most answers, and with the fewest operations: their numbers.
    NoOrder(Vec<usize>),
    GivenUp,
}

/// Looks for an order.
pub(super) fn search(problem: &Problem, limits: Limits) -> Searched {
    let mut search = Search::new(problem);
    let found = search.run(limits);
    Searched { found, configurations: search.configurations, steps: search.steps }
}

/// What the allocator and the table add to what is remembered, about.
const ALLOCATION: usize = 16;

/// A call or a return that is not accounted for yet, in a list of them in their order. The list's ends are one place of its own.
#[derive(Clone, Copy, Debug)]
struct Link {
    previous: usize,
    next: usize,
}

/// What may come next.
#[derive(Clone, Copy, Debug)]
enum Candidate {
    /// From this place of the list on: an operation with an answer.
    Answered(usize),
    /// When all of these were tried: one of unknown outcome, of this kind or a later one.
    Unknown(usize),
}

/// A choice that was made.
struct Choice {
    taken: Taken,
    /// The state before it.
    state: usize,
    /// Whether nothing else need be tried in its place.
    is_forced: bool,
}

#[derive(Clone, Copy, Debug)]
enum Taken {
    /// An answered operation.
    Answered(usize),
    /// The next one of a kind of unknown outcome.
    Unknown(usize),
}

/// Each key's value.
type State = Box<[Option<u32>]>;

struct Search<'a> {
    problem: &'a Problem,
    /// The calls' places are twice the answered operations' indices, and the returns' one more; the last one is the list's ends.
    links: Vec<Link>,
    /// How many answered operations are not accounted for.
    left: usize,
    /// The answered operations that were executed, a bit each, and then the state's number: what is looked up in `seen`.
    executed: Box<[u64]>,
    /// How many of each kind of unknown outcome were.
    supposed: Box<[u32]>,
    /// What led nowhere. Where fewer of each kind of unknown outcome were supposed to have been executed, more are left to
    /// choose from, and earlier ones: so a configuration is no better than one that supposes less.
    seen: HashMap<Box<[u64]>, Vec<Box<[u32]>>>,
    configurations: usize,
    /// What `seen` and the states take.
    bytes: usize,
    steps: u64,
    states: Vec<State>,
    numbers: HashMap<State, usize>,
    state: usize,
    chosen: Vec<Choice>,
    longest: Vec<usize>,
    /// How many answered operations `longest` has.
    reached: usize,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem) -> Self {
        let count = problem.answered.len();
        let calls = problem.answered.iter().enumerate().map(|(at, it)| (it.called, 2 * at));
        let returns = problem.answered.iter().enumerate().map(|(at, it)| (it.returned, 2 * at + 1));
        let mut events: Vec<_> = calls.chain(returns).collect();
        events.sort_unstable();
        let ends = 2 * count;
        let mut links = vec![Link { previous: ends, next: ends }; ends + 1];
        let mut previous = ends;
        for (_, place) in events {
            links[previous].next = place;
            links[place].previous = previous;
            previous = place;
        }
        links[previous].next = ends;
        links[ends].previous = previous;
        let state: State = vec![None; problem.keys].into();
        Self {
            problem,
            links,
            left: count,
            executed: vec![0; count.div_ceil(64) + 1].into(),
            supposed: vec![0; problem.unknown.len()].into(),
            seen: HashMap::new(),
            configurations: 0,
            bytes: 0,
            steps: 0,
            numbers: HashMap::from([(state.clone(), 0)]),
            states: vec![state],
            state: 0,
            chosen: Vec::new(),
            longest: Vec::new(),
            reached: 0,
        }
    }

    fn run(&mut self, limits: Limits) -> Found {
        let mut candidate = self.advance();
        while self.left > 0 {
            self.steps += 1;
            if self.bytes > limits.bytes || self.steps > limits.steps {
                return Found::GivenUp;
            }
            candidate = match candidate {
                Candidate::Answered(place) if self.is_call(place) => match self.try_answered(place / 2) {
                    true => self.advance(),
                    false => Candidate::Answered(self.links[place].next),
                },
                // A return: its operation must come before it, and none that was answered fits.
                Candidate::Answered(_) => {
                    self.note_longest();
                    Candidate::Unknown(0)
                }
                Candidate::Unknown(kind) if kind < self.problem.unknown.len() => {
                    match self.try_unknown(kind) {
                        true => self.advance(),
                        false => Candidate::Unknown(kind + 1),
                    }
                }
                Candidate::Unknown(_) => match self.go_back() {
                    Some(next) => next,
                    None => return Found::NoOrder(std::mem::take(&mut self.longest)),
                },
            };
        }
        Found::Order
    }

    fn note_longest(&mut self) {
        let explained = self.problem.answered.len() - self.left;
        if explained < self.reached || explained == self.reached && self.chosen.len() >= self.longest.len() {
            return;
        }
        self.reached = explained;
        let mut taken = vec![0; self.problem.unknown.len()];
        let number = |choice: &Choice| match choice.taken {
            Taken::Answered(at) => self.problem.answered[at].number,
            Taken::Unknown(kind) => {
                taken[kind] += 1;
                self.problem.unknown[kind].members[taken[kind] - 1].1
            }
        };
        self.longest = self.chosen.iter().map(number).collect();
    }

    fn ends(&self) -> usize {
        self.links.len() - 1
    }

    fn is_call(&self, place: usize) -> bool {
        place.is_multiple_of(2) && place != self.ends()
    }

    /// Takes everything that fits and only looks. Answers with the first candidate of what is left.
    fn advance(&mut self) -> Candidate {
        let mut place = self.links[self.ends()].next;
        while self.is_call(place) {
            let change = &self.problem.answered[place / 2].change;
            if change.only_looks() && change.writes_in(&self.states[self.state]).is_some() {
                self.choose(Taken::Answered(place / 2), self.state, true);
                // Others may be called before what is now the first return.
                place = self.links[self.ends()].next;
            } else {
                place = self.links[place].next;
            }
        }
        Candidate::Answered(self.links[self.ends()].next)
    }

    /// Executes an answered operation, where it fits and leads to something new.
    fn try_answered(&mut self, at: usize) -> bool {
        let problem = self.problem;
        let Some(writes) = problem.answered[at].change.writes_in(&self.states[self.state]) else {
            return false;
        };
        let next = self.number_after(writes);
        self.choose(Taken::Answered(at), next, false);
        self.is_news() || self.undo_last()
    }

    /// The same for the next operation of a kind of unknown outcome, where it changes something.
    fn try_unknown(&mut self, kind: usize) -> bool {
        let problem = self.problem;
        let alike = &problem.unknown[kind];
        let may_be_next = |(called, _): &(u64, usize)| *called < self.deadline();
        if !alike.members.get(self.supposed[kind] as usize).is_some_and(may_be_next) {
            return false;
        }
        let Some(writes) = alike.change.writes_in(&self.states[self.state]) else { return false };
        let next = self.number_after(writes);
        if next == self.state {
            // It would be for nothing.
            return false;
        }
        self.choose(Taken::Unknown(kind), next, false);
        self.is_news() || self.undo_last()
    }

    /// The first return that is not accounted for.
    fn deadline(&self) -> u64 {
        let mut place = self.links[self.ends()].next;
        while self.is_call(place) {
            place = self.links[place].next;
        }
        self.problem.answered.get(place / 2).map_or(u64::MAX, |it| it.returned)
    }

    /// Remembers the configuration, unless one that is as good was seen.
    fn is_news(&mut self) -> bool {
        if let Some(last) = self.executed.last_mut() {
            *last = self.state as u64;
        }
        let supposed = &self.supposed;
        let bytes = size_of::<Box<[u32]>>() + size_of_val::<[u32]>(supposed) + ALLOCATION;
        let Some(seen) = self.seen.get_mut(&self.executed) else {
            self.configurations += 1;
            let entry = size_of::<(Box<[u64]>, Vec<Box<[u32]>>)>() + size_of_val::<[u64]>(&self.executed);
            self.bytes += entry + 2 * ALLOCATION + bytes;
            self.seen.insert(self.executed.clone(), vec![supposed.clone()]);
            return true;
        };
        self.steps += seen.len() as u64;
        if seen.iter().any(|less| is_at_most(less, supposed)) {
            return false;
        }
        let before = seen.len();
        seen.retain(|more| !is_at_most(supposed, more));
        seen.push(supposed.clone());
        let more = seen.len().saturating_sub(before);
        self.configurations += more;
        self.bytes += more * bytes;
        true
    }

    /// The number of the state after some writes.
    fn number_after(&mut self, writes: &[(u32, Option<u32>)]) -> usize {
        let mut state = self.states[self.state].clone();
        for (key, value) in writes {
            if let Some(place) = state.get_mut(*key as usize) {
                *place = *value;
            }
        }
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        self.bytes += 2 * (size_of::<(State, usize)>() + size_of_val::<[Option<u32>]>(&state) + ALLOCATION);
        self.states.push(state.clone());
        self.numbers.insert(state, self.states.len() - 1);
        self.states.len() - 1
    }

    fn choose(&mut self, taken: Taken, next: usize, is_forced: bool) {
        self.chosen.push(Choice { taken, state: self.state, is_forced });
        self.state = next;
        match taken {
            Taken::Answered(at) => {
                self.executed[at / 64] |= 1 << (at % 64);
                self.unlink(2 * at);
                self.unlink(2 * at + 1);
                self.left -= 1;
            }
            Taken::Unknown(kind) => self.supposed[kind] += 1,
        }
    }

    /// Undoes the last choice that has alternatives, and answers with the candidate after it.
    fn go_back(&mut self) -> Option<Candidate> {
        loop {
            let Choice { taken, state, is_forced } = self.chosen.pop()?;
            self.state = state;
            let next = match taken {
                Taken::Answered(at) => {
                    self.executed[at / 64] &= !(1 << (at % 64));
                    // In reverse, so that each finds its neighbours as it left them.
                    self.relink(2 * at + 1);
                    self.relink(2 * at);
                    self.left += 1;
                    Candidate::Answered(self.links[2 * at].next)
                }
                Taken::Unknown(kind) => {
                    self.supposed[kind] -= 1;
                    Candidate::Unknown(kind + 1)
                }
            };
            if !is_forced {
                return Some(next);
            }
        }
    }

    /// The last choice led to nothing new.
    fn undo_last(&mut self) -> bool {
        self.go_back();
        false
    }

    fn unlink(&mut self, place: usize) {
        let Link { previous, next } = self.links[place];
        self.links[previous].next = next;
        self.links[next].previous = previous;
    }

    fn relink(&mut self, place: usize) {
        let Link { previous, next } = self.links[place];
        self.links[previous].next = place;
        self.links[next].previous = place;
    }
}

fn is_at_most(one: &[u32], other: &[u32]) -> bool {
    one.iter().zip(other).all(|(one, other)| one <= other)
}
