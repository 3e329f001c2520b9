//! The way back to a daemon whose connection broke: whoever goes on does so on one new connection.

use std::{path::PathBuf, sync::Weak};

use tokio::sync::Mutex;

use crate::client::{Client, Connection, Error};

/// Shared by a client, its clones, and what they started.
#[derive(Debug)]
pub(crate) struct Link {
    /// Of one daemon, or of several of one cluster: they are tried in this order.
    sockets: Vec<PathBuf>,
    newest: Mutex<Weak<Connection>>,
}

impl Link {
    pub(crate) fn new(sockets: Vec<PathBuf>) -> Self {
        Self { sockets, newest: Mutex::default() }
    }

    /// The newest connection, if it is none that broke; else another one. Who asks meanwhile waits for the same.
    pub(crate) async fn client(&self, before: &Client) -> Result<Client, Error> {
        if !before.is_broken() {
            return Ok(before.clone());
        }
        let mut newest = self.newest.lock().await;
        if let Some(connection) = newest.upgrade() {
            let client = before.on(connection);
            if !client.is_broken() {
                return Ok(client);
            }
        }
        let mut failed = None;
        for socket in &self.sockets {
            match Client::connect(socket).await {
                Ok(client) => {
                    let client = before.on(client.into_connection());
                    *newest = client.downgrade();
                    return Ok(client);
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| Error::NoAnswer("no socket is known".to_owned())))
    }
}
