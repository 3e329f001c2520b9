//! Counts to a number, whatever happens to the daemons meanwhile: a transaction for each step, in a session.
//!
//! With a cluster of `bftctl dev up`, whose sockets it prints:
//!
//! ```text
//! cargo run --release -p bftd-examples --bin counter -- 1000 SOCKET_OF_NODE_1 SOCKET_OF_NODE_2 …
//! ```
//!
//! Meanwhile `bftctl dev kill 1` and `bftctl dev restart 1`, as you like: the count is right, and so is the number of changes, `version` in
//! `bftctl get counter -o json`. Several of these programs may run at once.

use std::path::PathBuf;

use bftd_client::{
    Bytes, Compare, Consistency, Entry, Error, Part, Property, Relation, Session, SessionOptions, Span,
    Transaction, TransactionStep,
};

const COUNTER: Bytes = Bytes::from_static(b"counter");

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut words = std::env::args_os().skip(1);
    let steps = words.next().and_then(|word| word.to_str()?.parse::<u32>().ok());
    let sockets: Vec<_> = words.map(PathBuf::from).collect();
    let (Some(steps), false) = (steps, sockets.is_empty()) else {
        eprintln!("usage: counter STEPS SOCKET…");
        std::process::exit(2);
    };
    // Where one daemon fails the next one is asked. Each call may take as long as a cluster needs that is started again.
    let options =
        SessionOptions { deadline: std::time::Duration::from_secs(60), ..SessionOptions::default() };
    let session = Session::open(sockets, options).await?;
    let mut last = 0;
    for _ in 0..steps {
        last = add_one(&session).await?;
    }
    println!("counted to {last}");
    Ok(())
}

/// Adds one. Whoever else counts, too, makes the comparison fail, and it is tried again; a lost connection does not.
async fn add_one(session: &Session) -> Result<u64, Error> {
    loop {
        let (entry, _) = session.get(COUNTER, Consistency::Linearizable).await?;
        let next = entry.as_ref().map_or(0, count) + 1;
        let unchanged = Compare {
            keys: Span::Key(COUNTER),
            property: Property::ModRevision(entry.map_or(0, |entry| entry.mod_revision)),
            relation: Relation::Equal,
        };
        let put = TransactionStep::Put { key: COUNTER, value: next.to_string().into(), lease: 0 };
        let add = Transaction {
            parts: vec![Part { compare: vec![unchanged], then: vec![put], otherwise: vec![] }],
        };
        if session.transact(add).await?.0.succeeded {
            return Ok(next);
        }
    }
}

fn count(entry: &Entry) -> u64 {
    String::from_utf8_lossy(&entry.value).parse().unwrap_or(0)
}
