//! Transactions as people write them, in JSON.

use bftd_client::{
    Bytes, Compare, Part, Property, Range, Relation, Span, Transaction, TransactionStep, Want,
};
use serde::Deserialize;

use crate::{failure::Failure, ls::Sort};

/// How deep transactions may stand in each other. The JSON reader, which bounds its own stack, goes no deeper.
const MAX_NESTED: usize = 41;

/// A transaction as people write it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    compare: Vec<WrittenCompare>,
    #[serde(default)]
    then: Vec<WrittenStep>,
    #[serde(default, rename = "else")]
    otherwise: Vec<WrittenStep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCompare {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
    #[serde(default)]
    is: Is,
    value: Option<String>,
    value_base64: Option<String>,
    version: Option<u64>,
    revision: Option<u64>,
    create_revision: Option<u64>,
    lease: Option<Lease>,
}

/// A lease's id.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a lease is a number below 2^64, or text in hexadecimal")]
enum Lease {
    Number(u64),
    Hex(String),
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Is {
    #[default]
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenStep {
    Put(WrittenPut),
    Get(WrittenGet),
    Del(WrittenDel),
    Txn(Written),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPut {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    lease: Option<Lease>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGet {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
    limit: Option<u64>,
    #[serde(default)]
    keys_only: bool,
    rev: Option<u64>,
    sort: Option<Sort>,
    #[serde(default)]
    reverse: bool,
    #[serde(default)]
    count: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDel {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
}

/// The transaction that a text is.
pub(super) fn parse(text: &str) -> Result<Transaction, Failure> {
    let written: Written = serde_json::from_str(text).map_err(|error| {
        // There is no other way to tell this error from others.
        if error.to_string().starts_with("recursion limit exceeded") {
            return Failure::usage(format!(
                "the transactions stand too deep in each other: {MAX_NESTED} deep is as deep as it goes"
            ))
            .cause(error)
            .next("put their comparisons into one, or decide in several transactions, each after the one before");
        }
        Failure::usage("the file is no transaction").cause(error).next("bftctl txn --help shows one")
    })?;
    let mut parts = Vec::new();
    place(written, &mut parts)?;
    Ok(Transaction { parts })
}

/// Puts a part, and then those in it, into the list. Answers where it is.
fn place(written: Written, parts: &mut Vec<Part>) -> Result<u8, Failure> {
    let at = parts.len();
    let number =
        u8::try_from(at).map_err(|_| Failure::usage("a transaction has at most 128 others in it"))?;
    let compare = written.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
    parts.push(Part { compare, then: Vec::new(), otherwise: Vec::new() });
    let then = steps(written.then, parts)?;
    let otherwise = steps(written.otherwise, parts)?;
    if let Some(part) = parts.get_mut(at) {
        (part.then, part.otherwise) = (then, otherwise);
    }
    Ok(number)
}

fn steps(written: Vec<WrittenStep>, parts: &mut Vec<Part>) -> Result<Vec<TransactionStep>, Failure> {
    let step = |written| {
        Ok(match written {
            WrittenStep::Put(put) => {
                let key = bytes("key", put.key, put.key_base64)?.ok_or_else(|| lacks("a put", "a key"))?;
                let value =
                    bytes("value", put.value, put.value_base64)?.ok_or_else(|| lacks("a put", "a value"))?;
                TransactionStep::Put { key, value, lease: lease(put.lease)?.unwrap_or(0) }
            }
            WrittenStep::Get(get) => TransactionStep::Get(range(get)?),
            WrittenStep::Del(del) => TransactionStep::Delete {
                keys: span("a del", del.key, del.key_base64, del.prefix, del.from, del.end)?,
            },
            WrittenStep::Txn(written) => TransactionStep::Nested(place(written, parts)?),
        })
    };
    written.into_iter().map(step).collect()
}

fn range(get: WrittenGet) -> Result<Range, Failure> {
    let is_listing = get.keys_only || get.limit.is_some() || get.sort.is_some() || get.reverse;
    if get.count && is_listing {
        return Err(Failure::usage(
            "a get with \"count\" gives a number alone: no keys_only, limit, sort or reverse",
        )
        .next("make two gets of it"));
    }
    // 0 stands for the newest one, and for no limit, where they are left out.
    if get.rev == Some(0) || get.limit == Some(0) {
        return Err(Failure::usage("\"rev\" and \"limit\" begin at 1")
            .next("leave it out to read the newest, or all"));
    }
    let keys = span("a get", get.key, get.key_base64, get.prefix, get.from, get.end)?;
    let want = match (get.count, get.keys_only) {
        (true, _) => Want::Count,
        (false, true) => Want::Keys,
        (false, false) => Want::Entries,
    };
    Ok(Range {
        revision: get.rev.unwrap_or(0),
        limit: get.limit.unwrap_or(0),
        order: get.sort.unwrap_or_default().order(get.reverse),
        want,
        count: get.count,
        ..Range::of(keys)
    })
}

fn lease(written: Option<Lease>) -> Result<Option<u64>, Failure> {
    match written {
        None => Ok(None),
        Some(Lease::Number(id)) => Ok(Some(id)),
        Some(Lease::Hex(text)) => {
            u64::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).map(Some).map_err(|error| {
                Failure::usage(format!("{text:?} is no lease"))
                    .cause(error)
                    .next("a lease is a number, or text in hexadecimal, as in \"7f\"")
            })
        }
    }
}

fn compare(written: WrittenCompare) -> Result<Compare, Failure> {
    let what = "a comparison";
    let keys = span(what, written.key, written.key_base64, written.prefix, written.from, written.end)?;
    let value = bytes("value", written.value, written.value_base64)?;
    let mut properties = [
        value.map(Property::Value),
        written.version.map(Property::Version),
        written.revision.map(Property::ModRevision),
        written.create_revision.map(Property::CreateRevision),
        lease(written.lease)?.map(Property::Lease),
    ]
    .into_iter()
    .flatten();
    let (Some(property), None) = (properties.next(), properties.next()) else {
        return Err(lacks(what, "one of value, version, revision, create_revision and lease"));
    };
    let relation = match written.is {
        Is::Equal => Relation::Equal,
        Is::NotEqual => Relation::NotEqual,
        Is::Less => Relation::Less,
        Is::Greater => Relation::Greater,
    };
    Ok(Compare { keys, property, relation })
}

/// The keys that one of the ways to name them names.
fn span(
    what: &str,
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    from: Option<String>,
    end: Option<String>,
) -> Result<Span, Failure> {
    match (bytes("key", key, key_base64)?, prefix, from, end) {
        (Some(key), None, None, None) => Ok(Span::Key(key)),
        (None, Some(prefix), None, None) => Ok(Span::Prefix(prefix.into())),
        (None, None, Some(from), Some(end)) => Ok(Span::Range { from: from.into(), end: end.into() }),
        (None, None, Some(from), None) => Ok(Span::From(from.into())),
        _ => Err(lacks(what, "one of key, prefix, and from with or without end")),
    }
}

fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Failure> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(Failure::usage(format!("{name} and {name}_base64 are both given"))),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => data_encoding::BASE64
            .decode(base64.as_bytes())
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| Failure::usage(format!("{name}_base64 is not base64")).cause(error)),
        (None, None) => Ok(None),
    }
}

fn lacks(what: &str, needed: &str) -> Failure {
    Failure::usage(format!("{what} needs {needed}")).next("bftctl txn --help shows one")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::EXAMPLE, *};

    #[test]
    fn the_example_of_the_help_is_a_transaction() {
        let example = EXAMPLE.split_once("\n\n").unwrap().1.split_once("\n\nKeys").unwrap().0;
        let transaction = parse(example).unwrap();
        assert!(transaction.check().is_ok());
        let [root, nested] = &transaction.parts[..] else { panic!("{transaction:?}") };
        assert_eq!((root.compare.len(), root.then.len(), root.otherwise.len()), (2, 2, 2));
        assert_eq!(root.otherwise[1], TransactionStep::Nested(1));
        assert_eq!(nested.then, [TransactionStep::Delete { keys: Span::Key("request".into()) }]);
        assert_eq!(root.compare[1].relation, Relation::Less);
    }

    #[test]
    fn what_is_none_is_refused_with_what_it_lacks() {
        for (text, words) in [
            ("{", "no transaction"),
            (r#"{"than": []}"#, "no transaction"),
            (r#"{"compare": [{"key": "a"}]}"#, "a comparison needs one of value"),
            (r#"{"compare": [{"key": "a", "value": "1", "version": 1}]}"#, "a comparison needs one of value"),
            (r#"{"compare": [{"version": 1}]}"#, "a comparison needs one of key"),
            (r#"{"compare": [{"key": "a", "prefix": "b", "version": 1}]}"#, "a comparison needs one of key"),
            (r#"{"then": [{"put": {"key": "a"}}]}"#, "a put needs a value"),
            (r#"{"then": [{"put": {"value": "a"}}]}"#, "a put needs a key"),
            (r#"{"then": [{"get": {"end": "a"}}]}"#, "a get needs one of key"),
            (r#"{"else": [{"del": {"key": "a", "key_base64": "YQ=="}}]}"#, "both given"),
            (r#"{"else": [{"del": {"key_base64": "?"}}]}"#, "is not base64"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(words), "{text}: {}", failure.message);
        }
    }
}
