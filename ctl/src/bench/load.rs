//! Clients, and the connections that they share.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use bftd_client::{Bytes, Consistency, Error, Expect, Outcome, SessionOptions};
use tokio::{task::JoinSet, time::sleep};

use super::{Kind, pace::Pace, tally::Tally};
use crate::{
    failure::{Ended, Failure},
    session::Session,
};

/// How long a client waits after an error before it tries again.
const PAUSE: Duration = Duration::from_millis(20);
/// How many keys are stored at a time before gets begin.
const FILLING: u64 = 256;

/// What the clients do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) keys: u64,
    pub(super) value_size: usize,
    pub(super) timeout: Duration,
}

/// Connections to the nodes. One that breaks is made again, to the next node that answers.
#[derive(Debug)]
pub(super) struct Connections {
    sockets: Vec<PathBuf>,
    places: Vec<RefCell<Option<bftd_client::Client>>>,
    /// One beside each connection, if changes are to be made once.
    sessions: Vec<bftd_client::Session>,
}

impl Connections {
    /// Opens `count` connections, to one node after the other. Nodes that don't answer are passed over.
    pub(super) async fn open(session: &Session, sockets: &[PathBuf], count: usize) -> Result<Self, Failure> {
        let mut sockets_up = Vec::new();
        let mut failure = None;
        for socket in sockets {
            match session.connect(socket).await {
                Ok(_) => sockets_up.push(socket.clone()),
                Err(error) => {
                    session.say(&format!("left out: {}", error.message));
                    failure = Some(error);
                }
            }
        }
        if let (true, Some(failure)) = (sockets_up.is_empty(), failure) {
            return Err(failure);
        }
        let mut places = Vec::new();
        for socket in sockets_up.iter().cycle().take(count) {
            places.push(RefCell::new(Some(session.connect(socket).await?)));
        }
        Ok(Self { sockets: sockets_up, places, sessions: Vec::new() })
    }

    /// Opens a session beside each connection, with the same node first.
    pub(super) async fn open_sessions(&mut self, deadline: Duration) -> Result<(), Failure> {
        for at in 0..self.places.len() {
            let options = SessionOptions { deadline, ..SessionOptions::default() };
            let first = at % self.sockets.len();
            let sockets = self.sockets.iter().cycle().skip(first).take(self.sockets.len()).cloned();
            self.sessions.push(bftd_client::Session::open(sockets, options).await?);
        }
        Ok(())
    }

    /// The session of a client, if there are any.
    fn session(&self, client: u32) -> Option<&bftd_client::Session> {
        self.sessions.get(client as usize % self.sessions.len().max(1))
    }

    /// The connection of a client; none while no node answers.
    async fn get(&self, client: u32, timeout: Duration) -> Option<bftd_client::Client> {
        let at = client as usize % self.places.len();
        let place = self.places.get(at)?;
        if let Some(client) = place.borrow().as_ref().filter(|client| !client.is_broken()) {
            return Some(client.clone());
        }
        // Where another client has been quicker its connection is as good.
        for socket in self.sockets.iter().cycle().skip(at).take(self.sockets.len()) {
            let connecting = bftd_client::Client::connect(socket);
            if let Ok(Ok(client)) = tokio::time::timeout(Duration::from_secs(1), connecting).await {
                let client = client.with_deadline(timeout);
                place.replace(Some(client.clone()));
                return Some(client);
            }
        }
        None
    }
}

/// One client: one operation at a time.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) number: u32,
    pub(super) plan: Rc<Plan>,
    pub(super) connections: Rc<Connections>,
    pub(super) tally: Rc<Tally>,
    pub(super) pace: Option<Rc<Pace>>,
    pub(super) until: Instant,
}

impl Client {
    /// Goes on until the time is over.
    pub(super) async fn run(self) {
        let random = Random::new(u64::from(self.number));
        let mut value = vec![0; self.plan.value_size];
        value.iter_mut().for_each(|byte| *byte = random.next() as u8);
        loop {
            let began = match &self.pace {
                None => Instant::now(),
                Some(pace) => match pace.next().await {
                    Some(began) => began,
                    None => return,
                },
            };
            if Instant::now() >= self.until {
                return;
            }
            let Some(client) = self.connections.get(self.number, self.plan.timeout).await else {
                self.tally.unreachable();
                sleep(PAUSE).await;
                continue;
            };
            match self.operate(&client, &random, &mut value).await {
                Ok(()) => self.tally.done(began),
                Err(error) => {
                    self.tally.failed(&error);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn operate(
        &self,
        client: &bftd_client::Client,
        random: &Random,
        value: &mut [u8],
    ) -> Result<(), Error> {
        let number = random.next();
        let key = key(number % self.plan.keys);
        let is_put = match self.plan.kind {
            Kind::Put => true,
            Kind::Get => false,
            Kind::Mixed => number >> 63 == 0,
        };
        if is_put {
            // Every value is another one.
            value.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
            let value = Bytes::copy_from_slice(value);
            match self.connections.session(self.number) {
                Some(session) => session.put(key, value, Expect::Anything).await.map(|_| ()),
                None => client.put(key, value, Expect::Anything).await.map(|_| ()),
            }
        } else {
            client.get(key, Consistency::Linearizable).await.map(|_| ())
        }
    }
}

/// Stores every key once, so that gets find something.
pub(super) async fn fill(plan: &Rc<Plan>, connections: &Rc<Connections>) -> Result<(), Ended> {
    let next = Rc::new(Cell::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..FILLING.min(plan.keys) as u32 {
        let (plan, connections, next) = (Rc::clone(plan), Rc::clone(connections), Rc::clone(&next));
        tasks.spawn_local(async move {
            let value = Bytes::from(vec![b'.'; plan.value_size]);
            while next.get() < plan.keys {
                let key = key(next.replace(next.get() + 1));
                let Some(client) = connections.get(number, plan.timeout).await else {
                    return Err(Error::NoAnswer("no node answers".to_owned()));
                };
                match client.put(key, value.clone(), Expect::Anything).await?.outcome {
                    Outcome::Put { .. } => {}
                    other => return Err(Error::NoAnswer(format!("{other:?}"))),
                }
            }
            Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.map_err(|error| Failure::other("a client broke").cause(error))??;
    }
    Ok(())
}

fn key(number: u64) -> Bytes {
    format!("bench/{number:08}").into()
}

/// SplitMix64: enough to spread keys, and cheap.
#[derive(Debug)]
struct Random(Cell<u64>);

impl Random {
    fn new(seed: u64) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ now.as_nanos() as u64))
    }

    fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
