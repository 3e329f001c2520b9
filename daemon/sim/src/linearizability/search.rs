//! The search for an order: see the module's header.

use std::collections::{HashMap, HashSet};

use super::store::{Action, Answer, Store};

/// The operations of one part, with numbers for keys and values.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// How many keys there are.
    pub keys: usize,
    /// In the order of their calls.
    pub sought: Vec<Sought>,
}

/// An operation that an order is sought for.
#[derive(Clone, Debug)]
pub(super) struct Sought {
    pub action: Action<u32>,
    pub called: u64,
    /// When it returned, and its answer; none where its outcome is unknown.
    pub answered: Option<(u64, Answer<u32>)>,
}

impl Problem {
    /// What somebody was told that a key held, or that it did not exist.
    fn told(&self) -> HashSet<(u32, Option<u32>)> {
        let answers =
            self.sought.iter().filter_map(|sought| Some((&sought.action, &sought.answered.as_ref()?.1)));
        answers.flat_map(|(action, answer)| action.told(answer)).collect()
    }
}

impl Sought {
    /// Whether it changes nothing wherever its answer fits. (A put of the value that is there does, in another place.)
    fn only_looked(&self) -> bool {
        self.answered.as_ref().is_some_and(|(_, answer)| self.action.only_looked(answer))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Searched {
    pub found: Found,
    pub configurations: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Order,
    /// The one that explains the most answers, and with the fewest operations: indices of them.
    NoOrder(Vec<usize>),
    GivenUp,
}

/// Each key's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State(Box<[Option<u32>]>);

impl Store<u32> for State {
    fn get(&self, key: &u32) -> Option<u32> {
        self.0.get(*key as usize).copied().flatten()
    }

    fn set(&mut self, key: &u32, value: Option<u32>) {
        if let Some(place) = self.0.get_mut(*key as usize) {
            *place = value;
        }
    }
}

/// Looks for an order. First for one in which nothing happened that nobody knows of, which takes much less.
pub(super) fn search(problem: &Problem, max_configurations: usize) -> Searched {
    let told = problem.told();
    let is_likely = |sought: &&Sought| {
        sought.answered.is_some() || sought.action.effects().iter().any(|effect| told.contains(effect))
    };
    let likely: Vec<_> = problem.sought.iter().filter(is_likely).cloned().collect();
    let mut spent = 0;
    if likely.len() < problem.sought.len() {
        let problem = Problem { keys: problem.keys, sought: likely };
        let mut search = Search::new(&problem);
        let found = search.run(max_configurations);
        spent = search.configurations;
        if found == Found::Order {
            return Searched { found, configurations: spent };
        }
    }
    let mut search = Search::new(problem);
    let found = search.run(max_configurations);
    Searched { found, configurations: spent + search.configurations }
}

/// A call or a return that is not accounted for yet, in a list of them in their order. The list's ends are one place of its own.
#[derive(Clone, Copy, Debug)]
struct Link {
    previous: usize,
    next: usize,
}

/// A choice that was made.
struct Choice {
    operation: usize,
    /// The state before it.
    state: usize,
    /// Whether nothing else need be tried in its place.
    is_forced: bool,
}

/// A set of operations.
type Bits = Box<[u64]>;

struct Search<'a> {
    problem: &'a Problem,
    /// The calls' places are twice their operations' numbers, and the returns' one more; the last one is the list's ends.
    links: Vec<Link>,
    /// How many answered operations are not accounted for.
    left: usize,
    /// The answered operations that were executed, a bit each, and then the state's number: what is looked up in `seen`.
    executed: Bits,
    /// Those of unknown outcome that were.
    supposed: Bits,
    /// What led nowhere. Where fewer operations of unknown outcome were supposed to have been executed, more are left to
    /// choose from: so a configuration is no better than one that supposes less.
    seen: HashMap<Bits, Vec<Bits>>,
    configurations: usize,
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
        let count = problem.sought.len();
        let mut events = Vec::new();
        for (number, sought) in problem.sought.iter().enumerate() {
            events.push((sought.called, 2 * number));
            if let Some((returned, _)) = &sought.answered {
                events.push((*returned, 2 * number + 1));
            }
        }
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
        let state = State(vec![None; problem.keys].into());
        Self {
            problem,
            links,
            left: problem.sought.iter().filter(|sought| sought.answered.is_some()).count(),
            executed: vec![0; count.div_ceil(64) + 1].into(),
            supposed: vec![0; count.div_ceil(64)].into(),
            seen: HashMap::new(),
            configurations: 0,
            numbers: HashMap::from([(state.clone(), 0)]),
            states: vec![state],
            state: 0,
            chosen: Vec::new(),
            longest: Vec::new(),
            reached: 0,
        }
    }

    fn run(&mut self, max_configurations: usize) -> Found {
        let answered = self.left;
        let mut place = self.advance();
        while self.left > 0 {
            if self.is_call(place) {
                let is_taken = self.try_call(place / 2);
                place = if is_taken { self.advance() } else { self.links[place].next };
                if self.configurations > max_configurations {
                    return Found::GivenUp;
                }
                continue;
            }
            // A return: its operation must come before it, and none that may come next fits.
            let explained = answered - self.left;
            let is_further = explained > self.reached;
            if is_further || explained == self.reached && self.chosen.len() < self.longest.len() {
                self.reached = explained;
                self.longest = self.chosen.iter().map(|choice| choice.operation).collect();
            }
            match self.go_back() {
                Some(next) => place = next,
                None => return Found::NoOrder(std::mem::take(&mut self.longest)),
            }
        }
        Found::Order
    }

    fn ends(&self) -> usize {
        self.links.len() - 1
    }

    fn is_call(&self, place: usize) -> bool {
        place.is_multiple_of(2) && place != self.ends()
    }

    /// Takes everything that fits and only looked. Answers with the first place of the list.
    fn advance(&mut self) -> usize {
        let mut place = self.links[self.ends()].next;
        while self.is_call(place) {
            let operation = place / 2;
            if self.problem.sought[operation].only_looked() && self.outcome(operation).is_some() {
                self.choose(operation, self.state, true);
                // Others may be called before what is now the first return.
                place = self.links[self.ends()].next;
            } else {
                place = self.links[place].next;
            }
        }
        self.links[self.ends()].next
    }

    /// Executes an operation, where it fits and leads to something new.
    fn try_call(&mut self, operation: usize) -> bool {
        let Some(next) = self.outcome(operation) else { return false };
        let is_unknown = self.problem.sought[operation].answered.is_none();
        if next == self.state && is_unknown {
            // It would be for nothing.
            return false;
        }
        self.choose(operation, next, false);
        if self.is_news() {
            return true;
        }
        self.go_back();
        false
    }

    /// Remembers the configuration, unless one that is as good was seen.
    fn is_news(&mut self) -> bool {
        if let Some(last) = self.executed.last_mut() {
            *last = self.state as u64;
        }
        let Some(seen) = self.seen.get_mut(&self.executed) else {
            self.configurations += 1;
            self.seen.insert(self.executed.clone(), vec![self.supposed.clone()]);
            return true;
        };
        let supposed = &self.supposed;
        if seen.iter().any(|less| is_subset(less, supposed)) {
            return false;
        }
        let before = seen.len();
        seen.retain(|more| !is_subset(supposed, more));
        seen.push(supposed.clone());
        self.configurations += seen.len() - before.min(seen.len());
        true
    }

    /// The state after an operation, where its answer fits.
    fn outcome(&mut self, operation: usize) -> Option<usize> {
        let sought = &self.problem.sought[operation];
        let mut state = self.states[self.state].clone();
        let answer = sought.action.apply(&mut state);
        if sought.answered.as_ref().is_some_and(|(_, seen)| *seen != answer) {
            return None;
        }
        if let Some(number) = self.numbers.get(&state) {
            return Some(*number);
        }
        self.states.push(state.clone());
        self.numbers.insert(state, self.states.len() - 1);
        Some(self.states.len() - 1)
    }

    fn choose(&mut self, operation: usize, next: usize, is_forced: bool) {
        self.chosen.push(Choice { operation, state: self.state, is_forced });
        self.state = next;
        self.unlink(2 * operation);
        if self.problem.sought[operation].answered.is_some() {
            self.executed[operation / 64] |= 1 << (operation % 64);
            self.unlink(2 * operation + 1);
            self.left -= 1;
        } else {
            self.supposed[operation / 64] |= 1 << (operation % 64);
        }
    }

    /// Undoes the last choice that has alternatives, and answers with the place after it.
    fn go_back(&mut self) -> Option<usize> {
        loop {
            let Choice { operation, state, is_forced } = self.chosen.pop()?;
            self.state = state;
            if self.problem.sought[operation].answered.is_some() {
                self.executed[operation / 64] &= !(1 << (operation % 64));
                // In reverse, so that each finds its neighbours as it left them.
                self.relink(2 * operation + 1);
                self.left += 1;
            } else {
                self.supposed[operation / 64] &= !(1 << (operation % 64));
            }
            self.relink(2 * operation);
            if !is_forced {
                return Some(self.links[2 * operation].next);
            }
        }
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

fn is_subset(one: &[u64], other: &[u64]) -> bool {
    one.iter().zip(other).all(|(one, other)| one & !other == 0)
}
