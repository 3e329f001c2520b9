//! What clients of real daemons see is linearizable, whatever happens to the daemons: kill -9 and restart, SIGSTOP and SIGCONT, links
//! cut and members cut off, sometimes two at once.
//!
//! An ordinary run makes three histories (the variable has no prefix, as daemons refuse what they don't know of `BFTD_`). `HISTORIES=50 cargo test --release -p bftd-tests --test linearizability` makes more.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_client::{Client, Consistency, Error, Failure, FaultChange};
use bftd_sim::linearizability::{
    Action, Answer, History, Step, Verdict, Workload, check,
    kv::{to_answer, to_operation},
};
use bftd_tests::Cluster;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;

/// Members, clients, and how long faults last in a history.
const MEMBERS: u8 = 4;
const CLIENTS: u32 = 6;
const FAULTS_LAST: Duration = Duration::from_secs(3);
/// How long a client waits for an answer. Less than a term change may take: some outcomes must be unknown.
const PATIENCE: Duration = Duration::from_millis(800);
/// So many histories are made with one cluster.
const A_CLUSTER: usize = 10;

async fn sleep_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// What all clients of a history share.
struct Shared {
    seen: Mutex<(History, Workload)>,
    stop: AtomicBool,
}

/// What came of asking.
enum Told {
    Answer(Answer),
    /// It never happens.
    Refused,
    Nothing,
}

async fn ask(client: &Client, action: &Action) -> Told {
    let Some(operation) = to_operation(action) else {
        let key = (*action.keys().first().expect("a question is about a key")).clone();
        return match client.get(key, Consistency::Linearizable).await {
            Ok((entry, _)) => Told::Answer(Answer::Found(entry.map(|entry| entry.value))),
            Err(_) => Told::Nothing,
        };
    };
    match client.execute(operation).await {
        Ok(changed) => Told::Answer(to_answer(&changed.outcome).expect("an outcome of its kind")),
        // Nothing was sent, or nobody took it.
        Err(
            Error::NoAnswer(_)
            | Error::Unreachable { .. }
            | Error::Failed(Failure::Busy | Failure::NoQuorum { .. } | Failure::Closing),
        ) => Told::Refused,
        Err(_) => Told::Nothing,
    }
}

/// A client in a closed loop. With no answer it goes to another daemon.
async fn live(number: u32, sockets: Vec<std::path::PathBuf>, seed: u64, shared: Arc<Shared>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut connected: Option<Client> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let Some(client) = &connected else {
            let socket = &sockets[random.random_range(0..sockets.len())];
            let client = tokio::time::timeout(PATIENCE, Client::connect(socket)).await;
            connected = client.ok().and_then(Result::ok).map(|client| client.with_deadline(PATIENCE));
            if connected.is_none() {
                sleep_ms(20).await;
            }
            continue;
        };
        let (action, ticket) = {
            let mut seen = shared.seen.lock().unwrap();
            let action = seen.1.draw();
            let ticket = seen.0.call(number, action.clone());
            (action, ticket)
        };
        let told = ask(client, &action).await;
        let is_answered = matches!(told, Told::Answer(_));
        {
            let mut seen = shared.seen.lock().unwrap();
            match told {
                Told::Answer(answer) => {
                    seen.1.learn(&action, &answer);
                    seen.0.answer(ticket, answer);
                }
                Told::Refused => seen.0.refuse(ticket),
                Told::Nothing => {}
            }
        }
        if !is_answered || random.random_bool(0.05) {
            connected = None;
        }
        sleep_ms(random.random_range(0..40)).await;
    }
}

/// How often each kind of fault was there.
type Faults = BTreeMap<&'static str, u32>;

/// Faults for a while, one or two at a time, each with its end; then all daemons run.
async fn disturb(cluster: &mut Cluster, random: &mut ChaCha8Rng, faults: &mut Faults) {
    let end = Instant::now() + FAULTS_LAST;
    while Instant::now() < end {
        let first = random.random_range(1..=MEMBERS);
        let mut victims = vec![first];
        if random.random_bool(0.25) {
            victims.push(first % MEMBERS + 1);
        }
        let lasts_ms = random.random_range(100..900);
        let (mut killed, mut paused) = (Vec::new(), Vec::new());
        for victim in victims {
            match random.random_range(0..4) {
                0 => {
                    cluster.kill(victim);
                    killed.push(victim);
                    *faults.entry("kill -9").or_default() += 1;
                }
                1 => {
                    cluster.signal(victim, Signal::STOP);
                    paused.push(victim);
                    *faults.entry("SIGSTOP").or_default() += 1;
                }
                kind => {
                    let other = victim % MEMBERS + 1;
                    let (name, fault) = if kind == 2 {
                        ("link cut", format!("link={other}"))
                    } else {
                        ("cut off", "offline".to_owned())
                    };
                    let change = FaultChange::Start { fault, for_ms: Some(lasts_ms) };
                    // It asks the member itself, which may have troubles of its own.
                    if let Ok(client) = cluster.client(victim).await
                        && client.with_deadline(PATIENCE).inject(victim, change, true).await.is_ok()
                    {
                        *faults.entry(name).or_default() += 1;
                    }
                }
            }
        }
        sleep_ms(lasts_ms).await;
        paused.into_iter().for_each(|id| cluster.signal(id, Signal::CONT));
        killed.into_iter().for_each(|id| cluster.spawn(id));
        sleep_ms(random.random_range(50..400)).await;
    }
}

/// One history under faults, and what every daemon says of each key at the end.
async fn make(cluster: &mut Cluster, number: u64, faults: &mut Faults) -> History {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let workload = Workload::new(number, &format!("{number}-"));
    let keys = workload.keys();
    let shared =
        Arc::new(Shared { seen: Mutex::new((History::default(), workload)), stop: AtomicBool::new(false) });
    let sockets: Vec<_> = cluster.ids().map(|id| cluster.home(id).join("s")).collect();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(live(client, sockets.clone(), random.random(), Arc::clone(&shared)));
    }
    disturb(cluster, &mut random, faults).await;
    cluster.wait_healthy().await;
    shared.stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    for id in cluster.ids() {
        let client = cluster.client(id).await.unwrap();
        for key in &keys {
            let action = Action::Step(Step::Get { key: key.clone() });
            let ticket = shared.seen.lock().unwrap().0.call(CLIENTS, action);
            let (entry, _) = client.get(key.clone(), Consistency::Linearizable).await.unwrap();
            let answer = Answer::Found(entry.map(|entry| entry.value));
            shared.seen.lock().unwrap().0.answer(ticket, answer);
        }
    }
    cluster.wait_equal().await;
    let seen = shared.seen.lock().unwrap();
    seen.0.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_see_is_linearizable() {
    let asked = std::env::var("HISTORIES").ok();
    let histories = asked.map_or(3, |asked| asked.parse::<usize>().expect("HISTORIES is a number"));
    let (mut operations, mut unknown, mut configurations) = (0, 0, 0);
    let mut faults = Faults::new();
    let mut made = 0;
    while made < histories {
        let mut cluster = Cluster::start(MEMBERS).await;
        for _ in 0..A_CLUSTER.min(histories - made) {
            let history = make(&mut cluster, made as u64, &mut faults).await;
            let judged = check(&history);
            match judged.verdict {
                Verdict::Linearizable => {}
                Verdict::NotLinearizable(why) => panic!("history {made}: {why}"),
                Verdict::Unknown => panic!("history {made} is undecided: {history:?}"),
            }
            made += 1;
            operations += history.operations().len();
            unknown += history.unknown();
            configurations = configurations.max(judged.configurations);
        }
    }
    println!(
        "{made} histories, {operations} operations, {unknown} changes of unknown outcome, {faults:?}; at most {configurations} configurations"
    );
    assert!(operations >= 200 * made, "clients got on: {operations}");
    assert!(
        unknown > 0 && faults.values().sum::<u32>() as usize > made,
        "there were faults: {unknown}, {faults:?}"
    );
}
