//! The async client: one connection, many calls in flight.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bftd_core::kv::{Answer, Operation, Outcome, Query};
use bytes::BytesMut;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::{Notify, Semaphore, oneshot},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    forming::{FormRequest, Forming, Token},
    frame::{self, FrameError},
    link::Link,
    protocol::{
        Accusation, At, CONNECTION, Call, Consistency, Failure, FaultChange, Finding, Reply, Request,
        Response, Status, Trace,
    },
};

/// How long a call waits for its answer unless told otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// How many calls of one connection are in flight; more wait for a place.
const IN_FLIGHT: usize = 4096;
/// How many bytes of keys and values these calls carry; more wait, so that a slow daemon does not fill our memory.
const BYTES_IN_FLIGHT: u32 = 64 << 20;
/// A buffer that grew larger is given back once it is written.
const KEPT: usize = 1 << 20;
/// Within what time a daemon must have greeted.
pub(crate) const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon answers on the socket. Nothing was sent.
    #[error("no daemon answers on {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whatever answers on the socket is not a daemon of this version. Nothing was sent.
    #[error("on {}: {source}", path.display())]
    NotUnderstood {
        /// The socket.
        path: PathBuf,
        /// What is different.
        source: FrameError,
    },
    /// A change was sent, and no answer came: it may or may not have happened, and may still happen.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// No answer came, and nothing was changed: it was a question, or a change that was never sent.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The daemon could not do it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The request is too large to be sent.
    #[error("the request is too large to be sent: {0}")]
    TooLarge(String),
}

/// A change that was committed and executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What came of it.
    pub outcome: Outcome,
    /// The index of its block.
    pub index: u64,
    /// The term of its block.
    pub term: u64,
}

impl Changed {
    /// The store's revision after it.
    pub fn revision(&self) -> u64 {
        match self.outcome {
            Outcome::Put { revision }
            | Outcome::Deleted { revision, .. }
            | Outcome::Mismatch { revision, .. }
            | Outcome::ProtocolSet { revision, .. }
            | Outcome::Transaction { revision, .. }
            | Outcome::Compacted { revision, .. }
            | Outcome::LeaseGranted { revision, .. }
            | Outcome::LeaseKept { revision, .. }
            | Outcome::LeaseRevoked { revision, .. }
            | Outcome::QuotaSet { revision, .. }
            | Outcome::Ticked { revision } => revision,
            Outcome::Refused(_) => 0,
        }
    }

    pub(crate) fn or_refused(self) -> Result<Self, Error> {
        match self.outcome {
            Outcome::Refused(refusal) => Err(Failure::Refused(refusal).into()),
            _ => Ok(self),
        }
    }
}

/// A connection to a daemon. Clones share it; it closes with the last one.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Arc<Connection>,
    deadline: Duration,
    /// The way on for what outlives the connection.
    link: Arc<Link>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the connection broke.
    news: Notify,
    next: AtomicU64,
    places: Semaphore,
    /// [`BYTES_IN_FLIGHT`], less those in flight.
    room: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    /// Bounded by [`IN_FLIGHT`].
    waiting: HashMap<u64, oneshot::Sender<Response>>,
    /// Frames to be written. Bounded by [`IN_FLIGHT`] calls and [`BYTES_IN_FLIGHT`].
    out: Vec<u8>,
    /// Why the connection is of no more use.
    broken: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all who wait that they have failed for the same reason.
    fn answer_all(&self, why: &Failure) {
        for waiting in std::mem::take(&mut self.state().waiting).into_values() {
            // Whoever waited may have given up.
            let _ = waiting.send(Response::Failed(why.clone()));
        }
    }

    /// Fails everything that waits, now and later.
    fn break_off(&self, why: &str) {
        let mut state = self.state();
        state.broken.get_or_insert_with(|| why.to_owned());
        state.waiting.clear();
        drop(state);
        self.news.notify_one();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Every call borrows the client, so nobody waits any more.
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// A call's place among those that wait, given up when the call ends in whatever way.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
    receiver: oneshot::Receiver<Response>,
    is_answered: bool,
}

impl Waiting<'_> {
    /// Waits for the answer; none where the connection breaks first.
    async fn answer(mut self) -> Option<Response> {
        let answer = (&mut self.receiver).await;
        // Whoever answers or breaks off has taken the entry out.
        self.is_answered = true;
        answer.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.state().waiting.remove(&self.id);
        }
    }
}

impl Client {
    /// Connects to a daemon's admin socket.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::NotUnderstood`].
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        Self::connect_within(path, GREETING_DEADLINE).await
    }

    pub(crate) async fn connect_within(path: &Path, deadline: Duration) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable { path: path.to_owned(), source };
        let greet = async {
            let mut stream = UnixStream::connect(path).await.map_err(unreachable)?;
            stream.write_all(&frame::greeting(env!("CARGO_PKG_VERSION"))).await.map_err(unreachable)?;
            let mut buffer = BytesMut::new();
            match frame::read_greeting(&mut stream, &mut buffer).await {
                Ok(_) => Ok((stream, buffer)),
                Err(FrameError::Io(source)) => Err(unreachable(source)),
                Err(source) => Err(Error::NotUnderstood { path: path.to_owned(), source }),
            }
        };
        let why = || {
            format!(
                "no greeting within {deadline:?}; it may be overloaded, or serve as many clients as it can"
            )
        };
        let slow = || unreachable(io::Error::new(io::ErrorKind::TimedOut, why()));
        let (stream, buffer) = timeout(deadline, greet).await.map_err(|_| slow())??;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            news: Notify::new(),
            next: AtomicU64::new(CONNECTION + 1),
            places: Semaphore::new(IN_FLIGHT),
            room: Semaphore::new(BYTES_IN_FLIGHT as usize),
        });
        let (reader, writer) = stream.into_split();
        let reading = tokio::spawn(read_replies(reader, buffer, Arc::clone(&shared)));
        let writing = tokio::spawn(write_calls(writer, Arc::clone(&shared)));
        let tasks = [reading.abort_handle(), writing.abort_handle()];
        let link = Arc::new(Link::new(vec![path.to_owned()]));
        Ok(Self { connection: Arc::new(Connection { shared, tasks }), deadline: DEFAULT_DEADLINE, link })
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }

    /// The same client on another connection.
    pub(crate) fn on(&self, connection: Arc<Connection>) -> Self {
        Self { connection, ..self.clone() }
    }

    pub(crate) fn into_connection(self) -> Arc<Connection> {
        self.connection
    }

    pub(crate) fn downgrade(&self) -> Weak<Connection> {
        Arc::downgrade(&self.connection)
    }

    /// Whether the connection broke: every further call fails, and only a new client helps.
    pub fn is_broken(&self) -> bool {
        self.connection.shared.state().broken.is_some()
    }

    /// The same connection with another deadline for calls.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Sends a request and waits for its answer, whatever it is.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] for a change, [`Error::NoAnswer`] for a question, where no answer comes in time or
    /// the connection breaks.
    pub async fn call(&self, request: Request) -> Result<Response, Error> {
        let may_change = match &request {
            Request::Execute(_) | Request::Traced(_) | Request::Inject { .. } => true,
            Request::Form(form) => *form != FormRequest::Progress,
            _ => false,
        };
        let mut is_sent = false;
        let answer = timeout(self.deadline, self.ask(request, &mut is_sent)).await;
        let why = match answer {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(Lost::TooLarge(error))) => return Err(Error::TooLarge(error)),
            Ok(Err(Lost::Broken)) => {
                let broken = self.connection.shared.state().broken.clone();
                broken.unwrap_or_else(|| "the connection broke".to_owned())
            }
            Err(_) => format!("no answer within {:?}", self.deadline),
        };
        Err(if may_change && is_sent { Error::OutcomeUnknown(why) } else { Error::NoAnswer(why) })
    }

    /// Says in `is_sent` whether the daemon may have got the request.
    async fn ask(&self, request: Request, is_sent: &mut bool) -> Result<Response, Lost> {
        let shared = &*self.connection.shared;
        let _place = shared.places.acquire().await.map_err(|_| Lost::Broken)?;
        let _room = shared.room.acquire_many(weight(&request)).await.map_err(|_| Lost::Broken)?;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let waiting = {
            let mut state = shared.state();
            if state.broken.is_some() {
                return Err(Lost::Broken);
            }
            frame::write(&mut state.out, &Call { id, request })
                .map_err(|error| Lost::TooLarge(error.to_string()))?;
            state.waiting.insert(id, sender);
            Waiting { shared, id, receiver, is_answered: false }
        };
        *is_sent = true;
        shared.news.notify_one();
        waiting.answer().await.ok_or(Lost::Broken)
    }

    /// Decides and executes a change. One that is out of bounds is refused before anything is sent.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn execute(&self, operation: Operation) -> Result<Changed, Error> {
        operation.check().map_err(Failure::Refused)?;
        match self.call(Request::Execute(operation)).await? {
            Response::Executed { outcome, index, term } => Changed { outcome, index, term }.or_refused(),
            other => Err(not_executed(other)),
        }
    }

    /// [`Client::execute`], with what it took; none where the daemon follows as many changes as it may already.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn execute_traced(&self, operation: Operation) -> Result<(Changed, Option<Trace>), Error> {
        operation.check().map_err(Failure::Refused)?;
        match self.call(Request::Traced(operation)).await? {
            Response::Traced { outcome, index, term, trace } => {
                let changed = Changed { outcome, index, term }.or_refused()?;
                Ok((changed, trace.map(|trace| *trace)))
            }
            other => Err(not_executed(other)),
        }
    }

    /// Asks the state, whatever it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query(&self, query: Query, consistency: Consistency) -> Result<(Answer, At), Error> {
        match self.call(Request::Query { query, consistency }).await? {
            Response::Answered { answer: Answer::Refused(refusal), .. } => {
                Err(Failure::Refused(refusal).into())
            }
            Response::Answered { answer, at } => Ok((answer, at)),
            other => Err(unexpected(other)),
        }
    }

    /// The proofs of misbehaviour that the daemon holds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn evidence(&self) -> Result<Vec<Accusation>, Error> {
        match self.call(Request::Evidence).await? {
            Response::Evidence(held) => Ok(held),
            other => Err(unexpected(other)),
        }
    }

    /// Makes a member misbehave, or stop to.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inject(&self, node: u8, change: FaultChange, beyond_f: bool) -> Result<(), Error> {
        match self.call(Request::Inject { node, change, beyond_f }).await? {
            Response::Injected => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Changes how the daemon is on its way into a cluster, or asks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn form(&self, request: FormRequest) -> Result<Forming, Error> {
        match self.call(Request::Form(request)).await? {
            Response::Forming(forming) => Ok(*forming),
            other => Err(unexpected(other)),
        }
    }

    /// Has the daemon, which gathers members, invite hosts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_token(&self, for_s: u64, uses: u16) -> Result<Token, Error> {
        match self.call(Request::Form(FormRequest::CreateToken { for_s, uses })).await? {
            Response::Token(token) => Ok(token),
            other => Err(unexpected(other)),
        }
    }

    /// Whether the daemon's host and its peers are as they should be.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn examine(&self) -> Result<Vec<Finding>, Error> {
        match self.call(Request::Examine).await? {
            Response::Examined(findings) => Ok(findings),
            other => Err(unexpected(other)),
        }
    }

    /// How the cluster is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<Status, Error> {
        match self.call(Request::Status).await? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(other)),
        }
    }
}

/// Why a call ended without an answer.
enum Lost {
    Broken,
    TooLarge(String),
}

/// What a request takes of [`BYTES_IN_FLIGHT`].
fn weight(request: &Request) -> u32 {
    let bytes = match request {
        Request::Execute(Operation::Put { key, value, .. })
        | Request::Traced(Operation::Put { key, value, .. }) => key.len().saturating_add(value.len()),
        Request::Execute(Operation::Delete { key: bytes } | Operation::DeletePrefix { prefix: bytes })
        | Request::Traced(Operation::Delete { key: bytes } | Operation::DeletePrefix { prefix: bytes })
        | Request::Query { query: Query::Get { key: bytes } | Query::History { key: bytes, .. }, .. } => {
            bytes.len()
        }
        Request::Query { query: Query::Range(range), .. } => range.keys.size(),
        Request::Query { query: Query::Events(watched), .. } | Request::Watch { watched, .. } => {
            watched.keys.size()
        }
        Request::Form(FormRequest::TakeGenesis { text }) => text.len(),
        Request::Execute(Operation::Transaction(transaction))
        | Request::Traced(Operation::Transaction(transaction)) => transaction.size(),
        Request::Execute(Operation::InSession(request)) | Request::Traced(Operation::InSession(request)) => {
            request.operation.len()
        }
        Request::Execute(_)
        | Request::Traced(_)
        | Request::Query { query: Query::Leases { .. }, .. }
        | Request::Status
        | Request::Evidence
        | Request::Inject { .. }
        | Request::Form(_)
        | Request::Examine => 0,
    };
    u32::try_from(bytes).map_or(BYTES_IN_FLIGHT, |bytes| bytes.min(BYTES_IN_FLIGHT))
}

/// The answer to a change that is none.
fn not_executed(response: Response) -> Error {
    match response {
        Response::Failed(Failure::Stopping) => Error::OutcomeUnknown(Failure::Stopping.to_string()),
        other => unexpected(other),
    }
}

pub(crate) fn unexpected(response: Response) -> Error {
    match response {
        Response::Failed(failure) => failure.into(),
        _ => another_question(),
    }
}

pub(crate) fn another_question() -> Error {
    Failure::Internal("the daemon answered another question".to_owned()).into()
}

async fn read_replies(mut stream: OwnedReadHalf, mut buffer: BytesMut, shared: Arc<Shared>) {
    let why = loop {
        match frame::read::<Reply>(&mut stream, &mut buffer).await {
            Ok(Some(Reply { id: CONNECTION, response: Response::Failed(why) })) => {
                if why == Failure::Closing {
                    shared.answer_all(&why);
                }
                break why.to_string();
            }
            Ok(Some(reply)) => {
                let waiting = shared.state().waiting.remove(&reply.id);
                if let Some(waiting) = waiting {
                    // Whoever waited may have given up.
                    let _ = waiting.send(reply.response);
                }
            }
            Ok(None) => break "the daemon closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    shared.break_off(&why);
}

/// Writes whatever has gathered, at once.
async fn write_calls(mut stream: OwnedWriteHalf, shared: Arc<Shared>) {
    let mut out = Vec::new();
    loop {
        {
            let mut state = shared.state();
            if state.broken.is_some() {
                return;
            }
            std::mem::swap(&mut out, &mut state.out);
        }
        if out.is_empty() {
            shared.news.notified().await;
            continue;
        }
        if stream.write_all(&out).await.is_err() {
            // The daemon has closed the connection. Its last words may be unread: who reads them breaks off.
            return;
        }
        out.clear();
        if out.capacity() > KEPT {
            out = Vec::new();
        }
    }
}
