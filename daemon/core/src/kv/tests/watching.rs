//! Places in the order of changes, and how far is looked for the next one.

use super::*;

fn watched(keys: Span, from: Position) -> Watched {
    Watched { keys, from, with_previous: false, kinds: Kinds::All }
}

impl Store {
    fn changes_from(&self, keys: Span, from: Position) -> Events {
        match self.query(&Query::Events(watched(keys, from))) {
            Answer::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }
}

/// Whoever hands a place on (the hub of the watchers does) may have looked at other keys.
#[test]
fn a_place_within_a_revision_counts_all_its_changes_whatever_the_keys() {
    let mut store = Store::new();
    let keys = ["a", "b", "c", "d"];
    store.run(&keys.map(|key| put(key, "1")));
    assert_eq!(store.one(delete_prefix("")), Outcome::Deleted { revision: 6, keys: 4 });
    for (place, key) in (0_u64..).zip(keys) {
        for within in 0..=4 {
            let from = Position { revision: 6, within };
            let found = store.changes_from(Span::Key(bytes(key)), from);
            assert_eq!(found.events.len(), usize::from(place >= within), "{key} from {within} on");
            assert_eq!((found.next, found.more), (Position::start_of(7), false));
            let puts = Watched { kinds: Kinds::Puts, ..watched(Span::Key(bytes(key)), from) };
            let Answer::Events(puts) = store.query(&Query::Events(puts)) else { panic!() };
            assert_eq!(puts.events, []);
        }
    }
}

/// One whose keys change seldom must not make a daemon look through all that there is at once; nor may it miss them.
#[test]
fn who_watches_little_among_much_is_answered_in_parts_and_misses_nothing() {
    let mut store = Store::new();
    let value = "x".repeat(MAX_VALUE);
    let much = 8 * MAX_ANSWER / MAX_VALUE + 8;
    store.one(put("mine", "1"));
    for _ in 0..much {
        store.one(put("other", &value));
    }
    store.one(put("mine", "2"));
    let mine = || Span::Key(bytes("mine"));
    let first = store.changes_from(mine(), Position::start_of(1));
    assert_eq!((first.events.len(), first.more), (1, true));
    assert!(first.next < Position::start_of(much as u64 + 3), "{:?}", first.next);
    let nothing = store.changes_from(mine(), Position::start_of(3));
    assert_eq!((nothing.events.len(), nothing.more), (0, true));
    let last = store.changes_from(mine(), nothing.next);
    assert_eq!((last.events.len(), last.more, last.next), (1, false, Position::start_of(much as u64 + 4)));
}
