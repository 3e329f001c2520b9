//! Who waits for which keys: what a changed key costs does not grow with the number of watchers that wait for others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use bftd_core::kv::Span;
use bytes::Bytes;

/// A waiting watcher.
pub(super) type Id = u64;

/// Watchers by what they watch.
#[derive(Debug, Default)]
pub(super) struct Interests {
    keys: HashMap<Bytes, BTreeSet<Id>>,
    /// By length: a key is looked up once for each length that there is.
    prefixes: BTreeMap<usize, HashMap<Bytes, BTreeSet<Id>>>,
    /// All others, which are gone through one by one.
    ranges: BTreeMap<Id, Span>,
}

impl Interests {
    pub(super) fn add(&mut self, id: Id, span: &Span) {
        match span {
            Span::Key(key) => drop(self.keys.entry(key.clone()).or_default().insert(id)),
            Span::Prefix(prefix) => {
                let of_length = self.prefixes.entry(prefix.len()).or_default();
                of_length.entry(prefix.clone()).or_default().insert(id);
            }
            Span::Range { .. } | Span::From(_) => drop(self.ranges.insert(id, span.clone())),
        }
    }

    pub(super) fn remove(&mut self, id: Id, span: &Span) {
        match span {
            Span::Key(key) => remove_from(&mut self.keys, key, id),
            Span::Prefix(prefix) => {
                if let Some(of_length) = self.prefixes.get_mut(&prefix.len()) {
                    remove_from(of_length, prefix, id);
                    if of_length.is_empty() {
                        self.prefixes.remove(&prefix.len());
                    }
                }
            }
            Span::Range { .. } | Span::From(_) => drop(self.ranges.remove(&id)),
        }
    }

    /// Those who watch a key.
    pub(super) fn of(&self, key: &[u8]) -> impl Iterator<Item = Id> {
        let exact = self.keys.get(key).into_iter().flatten().copied();
        let prefixes =
            self.prefixes.iter().filter_map(move |(length, prefixes)| prefixes.get(key.get(..*length)?));
        let ranges = self.ranges.iter().filter(move |(_, span)| span.contains(key)).map(|(id, _)| *id);
        exact.chain(prefixes.flatten().copied()).chain(ranges)
    }
}

fn remove_from<K: Eq + Hash>(map: &mut HashMap<K, BTreeSet<Id>>, key: &K, id: Id) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_span_finds_its_keys_and_no_others_and_nothing_is_left_behind() {
        let range =
            |from: &'static str, end: &'static str| Span::Range { from: from.into(), end: end.into() };
        let spans = [
            Span::Key("a".into()),
            Span::Key("ab".into()),
            Span::Prefix("".into()),
            Span::Prefix("a".into()),
            Span::Prefix("ab".into()),
            Span::Prefix("b".into()),
            range("a", "b"),
            range("b", "a"),
            Span::From("ab".into()),
            Span::Key("a".into()),
        ];
        let mut interests = Interests::default();
        for (id, span) in (0..).zip(&spans) {
            interests.add(id, span);
        }
        for key in ["a", "aa", "ab", "abc", "b", "", "c"] {
            let mut found: Vec<_> = interests.of(key.as_bytes()).collect();
            found.sort_unstable();
            let of_all = (0..).zip(&spans).filter(|(_, span)| span.contains(key.as_bytes()));
            assert_eq!(found, of_all.map(|(id, _)| id).collect::<Vec<Id>>(), "{key}");
        }
        for (id, span) in (0..).zip(&spans) {
            interests.remove(id, span);
        }
        assert!(interests.keys.is_empty() && interests.prefixes.is_empty() && interests.ranges.is_empty());
    }
}
