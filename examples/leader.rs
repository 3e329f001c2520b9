//! Leads while it can: one of several of these programs at a time, elected by a lock.
//!
//! ```text
//! cargo run --release -p bftd-examples --bin leader -- SOCKET NAME
//! ```
//!
//! Start some, with sockets of different nodes; kill the one that leads, or stop it (Ctrl-Z): another one leads after its lease, 5 s. A leader
//! that was stopped writes nothing late: each of its writes holds only while it has the lock.

use std::{path::PathBuf, time::Duration};

use bftd_client::{Bytes, Client, Lock, Part, Session, SessionOptions, Transaction, TransactionStep as Step};
use tokio::time::interval;

const TTL: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [socket, name] = &words[..] else {
        eprintln!("usage: leader SOCKET NAME");
        std::process::exit(2);
    };
    let (socket, name) = (PathBuf::from(socket), name.to_string_lossy().into_owned());
    loop {
        let client = Client::connect(&socket).await?;
        let session = Session::open([&socket], SessionOptions::default()).await?;
        println!("{name} waits");
        let lock = Lock::acquire(&client, &session, b"leader", TTL, std::future::pending()).await?;
        println!("{name} leads, token {}", lock.token());
        lead(&session, &lock, &name).await?;
        println!("{name} leads no more");
    }
}

/// Does a leader's work, here a sign of life each second, until the lock is lost.
async fn lead(session: &Session, lock: &Lock, name: &str) -> Result<(), bftd_client::Error> {
    let mut seconds = interval(Duration::from_secs(1));
    let mut count = 0;
    loop {
        tokio::select! {
            () = lock.lost() => return Ok(()),
            _ = seconds.tick() => {}
        }
        count += 1;
        let value = Bytes::from(format!("{name} {count}"));
        let put = Step::Put { key: Bytes::from_static(b"led-by"), value, lease: 0 };
        let part = Part { compare: vec![lock.fence()], then: vec![put], otherwise: vec![] };
        if !session.transact(Transaction { parts: vec![part] }).await?.0.succeeded {
            return Ok(());
        }
    }
}
