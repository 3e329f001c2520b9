//! Clients that send much, take little, or are quick.

use bftd_core::kv::Answer;

use super::*;

/// Gets are answered at once with as many bytes as their key says; puts never.
struct Prompt {
    asked: AtomicUsize,
    value: bftd_client::Bytes,
}

impl Service for Prompt {
    async fn handle(&self, _: PeerCredentials, request: Request) -> Response {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Query { query: Query::Get { key }, .. } => {
                let bytes: usize = std::str::from_utf8(&key).unwrap().parse().unwrap();
                let entry = Entry {
                    value: self.value.slice(..bytes),
                    create_revision: 1,
                    mod_revision: 1,
                    version: 1,
                    lease: 0,
                };
                Response::Answered {
                    answer: Answer::Entry(Some(entry)),
                    at: At { revision: 1, index: 1, age_ms: 0, time_ms: 0 },
                }
            }
            _ => std::future::pending().await,
        }
    }
}

struct Socket {
    directory: tempfile::TempDir,
    service: Arc<Prompt>,
    _stop: watch::Sender<bool>,
}

impl Socket {
    fn open(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = AdminServer::bind(&directory.path().join("s")).unwrap();
        server.limits = limits;
        let (stop, stopped) = watch::channel(false);
        let service = Arc::new(Prompt { asked: AtomicUsize::new(0), value: vec![7; 1 << 24].into() });
        tokio::spawn(server.serve(Arc::clone(&service), stopped));
        Self { directory, service, _stop: stop }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    async fn stream(&self) -> (UnixStream, BytesMut) {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(&frame::greeting("test")).await.unwrap();
        let mut buffer = BytesMut::new();
        frame::read_greeting(&mut stream, &mut buffer).await.unwrap();
        (stream, buffer)
    }
}

fn gets(ids: std::ops::Range<u64>, bytes: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    for id in ids {
        let query = Query::Get { key: bytes.to_string().into() };
        let request = Request::Query { query, consistency: Consistency::Local };
        frame::write(&mut frames, &Call { id, request }).unwrap();
    }
    frames
}

/// A client may write all that it has to ask before it reads an answer: the answers that it does not take bound only
/// what is answered, and none is lost or torn.
#[tokio::test]
async fn calls_are_read_while_answers_wait_to_be_taken() {
    let socket = Socket::open(Limits::default());
    let (mut stream, mut buffer) = socket.stream().await;
    let count = 3000_u64;
    let sizes = [0, 100, 100_000];
    for third in 0..3_u64 {
        let size = sizes[usize::try_from(third).unwrap()];
        let calls = gets(1 + third * count / 3..1 + (third + 1) * count / 3, size);
        let sent = timeout(Duration::from_secs(5), stream.write_all(&calls)).await;
        sent.expect("the daemon goes on reading").unwrap();
    }
    let asked = settled(&socket.service.asked, 2000).await;
    assert!((2000..2100).contains(&asked), "untaken answers bound what is answered: {asked}");
    let mut seen = vec![false; usize::try_from(count).unwrap()];
    for _ in 0..count {
        let reply: Reply = frame::read(&mut stream, &mut buffer).await.unwrap().unwrap();
        let Response::Answered { answer: Answer::Entry(Some(entry)), .. } = reply.response else {
            panic!("{:?}", reply.id)
        };
        let at = usize::try_from(reply.id - 1).unwrap();
        assert_eq!(entry.value.len(), sizes[at / 1000]);
        assert!(!std::mem::replace(&mut seen[at], true), "answered twice");
    }
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_disconnected() {
    let limits = Limits { write: Duration::from_millis(300), ..Limits::default() };
    let socket = Socket::open(limits);
    let (mut stream, _) = socket.stream().await;
    stream.write_all(&gets(1..100, 1 << 20)).await.unwrap();
    let asked = settled(&socket.service.asked, 1).await;
    tokio::time::sleep(limits.write * 3).await;
    assert!(asked < 100, "what is not taken is not gathered either: {asked}");
    let mut rest = Vec::new();
    // Closed with unread input, a Unix socket is reset: that is an end too.
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.expect("closed");
    assert!(rest.len() < 50 << 20, "it was not sent everything");
}

/// One that takes a little at a time is slow, not gone.
#[tokio::test]
async fn a_slow_client_is_served_to_the_end() {
    let limits = Limits { write: Duration::from_millis(500), ..Limits::default() };
    let socket = Socket::open(limits);
    let (mut stream, mut buffer) = socket.stream().await;
    stream.write_all(&gets(1..2, 4 << 20)).await.unwrap();
    let before = tokio::time::Instant::now();
    let reply = loop {
        if let Some(reply) = frame::take::<Reply>(&mut buffer).unwrap() {
            break reply;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        buffer.reserve(64 << 10);
        assert_ne!((&mut stream).take(64 << 10).read_buf(&mut buffer).await.unwrap(), 0, "disconnected");
    };
    assert!(before.elapsed() > limits.write * 2, "slower than the deadline for no progress");
    assert!(
        matches!(reply.response, Response::Answered { answer: Answer::Entry(Some(entry)), .. } if entry.value.len() == 4 << 20)
    );
}

#[tokio::test]
async fn large_calls_under_way_pause_the_reading() {
    const VALUE: usize = 1 << 20;
    let socket = Socket::open(Limits::default());
    let (mut stream, _) = socket.stream().await;
    let sending = tokio::spawn(async move {
        for id in 1..=100 {
            let operation = Operation::put("k".into(), vec![0; VALUE].into());
            let mut frame = Vec::new();
            frame::write(&mut frame, &Call { id, request: Request::Execute(operation) }).unwrap();
            stream.write_all(&frame).await.unwrap();
        }
        stream
    });
    assert_eq!(settled(&socket.service.asked, BYTES_IN_FLIGHT / VALUE).await, BYTES_IN_FLIGHT / VALUE);
    assert!(!sending.is_finished());
}

#[tokio::test]
async fn an_answer_that_fits_no_frame_fails_its_call_alone() {
    let socket = Socket::open(Limits::default());
    let client = Client::connect(&socket.path()).await.unwrap();
    let huge = client.get((1 << 24).to_string().into(), Consistency::Local).await;
    assert!(matches!(huge, Err(Error::Failed(Failure::Internal(_)))), "{:?}", huge.map(|(_, at)| at));
    let (entry, _) = client.get("10".into(), Consistency::Local).await.unwrap();
    assert_eq!(entry.unwrap().value.len(), 10);
}

/// What one connection carries. Run it with
/// `cargo test --release -p bftd admin::tests::flow::throughput -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    let socket = Socket::open(Limits::default());
    let client = Client::connect(&socket.path()).await.unwrap();
    for callers in [1_usize, 16, 256, 4096] {
        let calls = 200_000 / callers.max(4);
        let before = std::time::Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let client = client.clone();
            tasks.spawn(async move {
                for _ in 0..calls {
                    client.get("100".into(), Consistency::Local).await.unwrap();
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        let rate = (callers * calls) as f64 / before.elapsed().as_secs_f64();
        println!("{callers} callers on one connection: {rate:.0} calls/s");
    }
}
