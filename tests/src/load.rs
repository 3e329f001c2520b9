//! Load that knows what it was promised.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bftd_client::{Client, Consistency, Error, Expect};

use crate::Cluster;

/// Writers on every node, each on keys of its own, that remember what was acknowledged.
#[derive(Debug)]
pub struct Load {
    acknowledged: Arc<Mutex<BTreeMap<String, u64>>>,
    /// How many writes nobody can know the outcome of.
    pub unknown: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    /// Begins to write, with so many writers a node.
    pub fn start(cluster: &Cluster, writers: u64) -> Self {
        let mut load = Self {
            acknowledged: Arc::default(),
            unknown: Arc::default(),
            stop: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        for id in cluster.ids() {
            let socket = cluster.home(id).join("s");
            for writer in 0..writers {
                let key = format!("node{id}-writer{writer}");
                let (acknowledged, unknown) = (load.acknowledged.clone(), load.unknown.clone());
                let (stop, socket) = (load.stop.clone(), socket.clone());
                load.tasks.spawn(async move {
                    let mut client = None;
                    for value in 1_u64.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        if client.is_none() {
                            client = Client::connect(&socket).await.ok();
                        }
                        let Some(connected) = &client else {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            continue;
                        };
                        let connected = connected.with_deadline(Duration::from_secs(5));
                        let put =
                            connected.put(key.clone().into(), value.to_string().into(), Expect::Anything);
                        match put.await {
                            Ok(_) => {
                                acknowledged.lock().expect("no writer panics").insert(key.clone(), value);
                            }
                            Err(Error::OutcomeUnknown(_)) => {
                                unknown.fetch_add(1, Ordering::SeqCst);
                                client = None;
                            }
                            Err(_) => {
                                client = None;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        }
                    }
                });
            }
        }
        load
    }

    /// How many writes are acknowledged.
    pub fn count(&self) -> u64 {
        self.acknowledged.lock().expect("no writer panics").values().sum()
    }

    /// Ends the writers. Answers with the last acknowledged value of each key.
    pub async fn finish(mut self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no writer panics");
        }
        self.acknowledged.lock().expect("no writer panics").clone()
    }
}

/// Every acknowledged value, or a later one whose outcome was unknown, is there, by every node's word.
pub async fn assert_all_there(cluster: &Cluster, acknowledged: &BTreeMap<String, u64>) {
    for id in cluster.ids() {
        let client = cluster.client(id).await.expect("the node answers");
        for (key, value) in acknowledged {
            let (entry, _) =
                client.get(key.clone().into(), Consistency::Linearizable).await.expect("the node answers");
            let entry = entry.unwrap_or_else(|| panic!("{key} is lost at node {id}"));
            let found: u64 = String::from_utf8_lossy(&entry.value).parse().expect("values are numbers");
            assert!(found >= *value, "{key} is {found} at node {id}, {value} was acknowledged");
        }
    }
}
