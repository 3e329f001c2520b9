//! Follows a configuration: all keys that begin with `config/`, as they are and whenever they change.
//!
//! ```text
//! cargo run --release -p bftd-examples --bin config -- SOCKET
//! bftctl put config/colour blue
//! ```
//!
//! A restart of the daemon is waited for, and nothing is missed. Where the history was compacted beyond what was seen, all is read anew.

use std::{collections::BTreeMap, path::PathBuf};

use bftd_client::{Bytes, Client, Consistency, Error, News, Range, Span, Watch, WatchError, watch::Changes};

const PREFIX: Bytes = Bytes::from_static(b"config/");

type Configuration = BTreeMap<Bytes, Bytes>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(socket) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: config SOCKET");
        std::process::exit(2);
    };
    let client = Client::connect(&socket).await?;
    loop {
        let (mut configuration, revision) = read(&client).await?;
        show(&configuration, revision);
        // From the first change after what was read.
        let watch = Watch::new(Span::Prefix(PREFIX)).from_revision(revision + 1);
        let mut watcher = client.watch(watch)?;
        loop {
            match watcher.next().await {
                Ok(News::Changes(changes)) => {
                    let revision = changes.revision;
                    apply(&mut configuration, changes);
                    show(&configuration, revision);
                }
                Ok(_) => {}
                Err(WatchError::Compacted { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The configuration as of a revision.
async fn read(client: &Client) -> Result<(Configuration, u64), Error> {
    let (listing, at) = client.range(Range::of(Span::Prefix(PREFIX)), Consistency::Linearizable).await?;
    let entries = listing.entries.into_iter().map(|(key, entry)| (key, entry.value));
    Ok((entries.collect(), at.revision))
}

fn apply(configuration: &mut Configuration, changes: Changes) {
    for event in changes.events {
        match event.entry {
            Some(entry) => drop(configuration.insert(event.key, entry.value)),
            None => drop(configuration.remove(&event.key)),
        }
    }
}

fn show(configuration: &Configuration, revision: u64) {
    println!("revision {revision}");
    for (key, value) in configuration {
        println!("  {} = {}", String::from_utf8_lossy(key), String::from_utf8_lossy(value));
    }
}
