//! Stores a value through one daemon and reads it through another.
//!
//! With a cluster of `bftctl dev up`, whose sockets it prints:
//!
//! ```text
//! cargo run --release -p bftd-examples --bin hello -- SOCKET_OF_NODE_1 SOCKET_OF_NODE_3
//! ```

use std::path::PathBuf;

use bftd_client::{Client, Consistency, Error, Expect};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut sockets = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(first), Some(second)) = (sockets.next(), sockets.next()) else {
        eprintln!("usage: hello SOCKET SOCKET");
        std::process::exit(2);
    };
    let writer = Client::connect(&first).await?;
    let changed = writer.put("greeting".into(), "hello".into(), Expect::Anything).await?;
    println!("stored in block {} of term {}", changed.index, changed.term);

    // A linearizable read reflects every acknowledged write, whichever daemon is asked.
    let reader = Client::connect(&second).await?;
    let (entry, at) = reader.get("greeting".into(), Consistency::Linearizable).await?;
    if let Some(entry) = entry {
        let value = String::from_utf8_lossy(&entry.value);
        println!("read back: {value}, written at revision {} of {}", entry.mod_revision, at.revision);
    }
    Ok(())
}
