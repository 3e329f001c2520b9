//! Clusters that form themselves: real daemons without a genesis, and `bftctl` as an operator uses it.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    net::UdpSocket,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bftd_tests::{PATIENCE, binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Hosts that go with the test, whatever happens in it.
struct Hosts {
    directory: tempfile::TempDir,
    hosts: Vec<Host>,
}

struct Host {
    home: PathBuf,
    address: String,
    process: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// It failed, and told why and what to do next.
    #[track_caller]
    fn failed(&self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(words), "not `{words}`: {self:?}");
        assert!(self.stderr.contains("  next: "), "no next step: {self:?}");
    }
}

impl Hosts {
    /// So many daemons that belong to no cluster.
    fn start(n: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("bftd-form").tempdir().unwrap();
        let sockets: Vec<_> = (0..n).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let host = |(at, socket): (usize, &UdpSocket)| {
            let home = directory.path().join(format!("h{at}"));
            fs::create_dir(&home).unwrap();
            fs::write(home.join("bftd.toml"), "[node]\ndata_dir = \"data\"\n[admin]\nsocket = \"s\"\n")
                .unwrap();
            Host { home, address: socket.local_addr().unwrap().to_string(), process: None }
        };
        let hosts = sockets.iter().enumerate().map(host).collect();
        drop(sockets);
        let mut hosts = Self { directory, hosts };
        (0..n).for_each(|at| hosts.spawn(at));
        hosts
    }

    fn home(&self, at: usize) -> &Path {
        &self.hosts[at].home
    }

    fn address(&self, at: usize) -> String {
        self.hosts[at].address.clone()
    }

    /// Starts a host's daemon, and waits until it answers.
    fn spawn(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let log = File::options().create(true).append(true).open(host.home.join("log")).unwrap();
        let process = Command::new(binary("bftd"))
            .arg("--config")
            .arg(host.home.join("bftd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        host.process = Some(process);
        self.wait(at, &["status"], |ran| ran.code != 10);
    }

    fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.hosts[at].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn signal(&self, at: usize, signal: Signal) {
        let id = self.hosts[at].process.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id as i32).unwrap(), signal).unwrap();
    }

    fn command(&self, at: usize, words: &[&str]) -> Command {
        let mut command = Command::new(binary("bftctl"));
        command
            .env_remove("BFTCTL_SOCKET")
            .env("BFTCTL_CONTEXTS", self.directory.path().join("contexts.toml"));
        command.arg("--socket").arg(self.home(at).join("s")).args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, at: usize, words: &[&str]) -> Ran {
        run(self.command(at, words))
    }

    fn json(&self, at: usize, words: &[&str]) -> Value {
        let ran = self.run(at, &[words, &["-o", "json"]].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    #[track_caller]
    fn wait(&self, at: usize, words: &[&str], is_so: impl Fn(&Ran) -> bool) -> Ran {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ran = self.run(at, words);
            if is_so(&ran) {
                return ran;
            }
            let log = fs::read_to_string(self.home(at).join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "host {at}: {ran:?}\n{log}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Host 0 gathers, as `init` does that does not wait.
    #[track_caller]
    fn init(&self, expect: usize) {
        let (expect, address) = (expect.to_string(), self.address(0));
        let words = ["init", "--name", "prod", "--expect", &expect, "--advertise", &address];
        self.run(0, &[&words[..], &["--member-name", "host0", "--no-wait"]].concat()).ok();
    }

    #[track_caller]
    fn token(&self, more: &[&str]) -> String {
        self.run(0, &[&["token", "create", "-o", "value"], more].concat()).ok().trim().to_owned()
    }

    fn join_command(&self, at: usize, token: &str, more: &[&str]) -> Command {
        let (address, name) = (self.address(at), format!("host{at}"));
        let words = ["join", token, "--advertise", &address, "--member-name", &name];
        self.command(at, &[&words[..], more].concat())
    }

    fn join(&self, at: usize, token: &str, more: &[&str]) -> Ran {
        run(self.join_command(at, token, more))
    }

    /// All hosts are healthy members of one cluster.
    #[track_caller]
    fn assert_formed(&self, hosts: std::ops::Range<usize>) {
        let mut fingerprints = Vec::new();
        for at in hosts.clone() {
            self.wait(at, &["status"], |ran| ran.code == 0);
            let status = self.json(at, &["status"]);
            assert_eq!(status["cluster"]["n"], hosts.len());
            fingerprints.push(status["cluster"]["fingerprint"].as_str().unwrap().to_owned());
            let mut left: Vec<_> = fs::read_dir(self.home(at).join("data"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".new") || name == "forming.toml")
                .collect();
            left.sort();
            assert!(left.is_empty(), "host {at} has {left:?} left");
        }
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 1, "{fingerprints:?}");
        assert_eq!(fingerprints[0].len(), 29, "{fingerprints:?}");
        self.run(hosts.start, &["put", "greeting", "hello"]).ok();
        assert_eq!(self.run(hosts.end - 1, &["get", "greeting"]).ok(), "hello");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if let Some(process) = &mut host.process {
                // It may have ended by itself.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// Runs a command to its end. One that waits for what never comes is ended, and that is told.
fn run(mut command: Command) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + 2 * PATIENCE;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    // It may have ended by itself.
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Starts several commands at once, and waits for all.
fn run_all(commands: Vec<Command>) -> Vec<Ran> {
    let running: Vec<_> = commands.into_iter().map(|command| thread::spawn(move || run(command))).collect();
    running.into_iter().map(|it| it.join().unwrap()).collect()
}

#[test]
fn four_daemons_become_a_cluster_with_init_token_and_join() {
    let mut hosts = Hosts::start(5);
    let key = hosts.home(1).join("data/identity.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let idle = hosts.run(1, &["status"]);
    assert_eq!(idle.code, 11);
    assert!(idle.stdout.contains("UNINITIALISED") && idle.stdout.contains("bftctl join TOKEN"), "{idle:?}");
    hosts.run(1, &["put", "a", "1"]).failed(11, "belongs to no cluster yet");
    hosts.run(1, &["token", "create"]).failed(1, "gathers no members");
    assert_eq!(hosts.json(1, &["doctor"])["running"], true, "it answers without a cluster");

    hosts.init(4);
    let token = hosts.token(&["--uses", "9"]);
    hosts.join(1, &token, &["--timeout", "1s"]).failed(11, "2 of 4 members are there");
    let gathering = hosts.json(0, &["status"]);
    assert_eq!(
        (&gathering["forming"]["missing"], &gathering["cluster"]["state"]),
        (&2.into(), &"UNINITIALISED".into())
    );
    assert_eq!(gathering["forming"]["members"][1]["name"], "host1");
    let seen = hosts.run(1, &["status"]);
    assert_eq!((seen.code, seen.stdout.matches("missing ").count()), (11, 2), "{seen:?}");

    // The operator of host 0 watches; two hosts come at once, and host 1's operator asks again.
    let address = hosts.address(0);
    let words =
        ["init", "--name", "prod", "--expect", "4", "--advertise", &address, "--member-name", "host0"];
    let mut commands = vec![hosts.command(0, &words)];
    commands.extend((1..=3).map(|at| hosts.join_command(at, &token, &["-o", "value"])));
    let ran = run_all(commands);
    assert!(ran[0].stderr.contains("4/4 host"), "a line a member: {:?}", ran[0]);
    assert!(
        ran[0].stdout.contains("the cluster `prod` is formed: 4 members, of which 1 may be faulty"),
        "{:?}",
        ran[0]
    );
    let fingerprint = ran[1].stdout.trim();
    assert!(ran.iter().all(|ran| ran.code == 0 && ran.stdout.contains(fingerprint)), "{ran:?}");
    hosts.assert_formed(0..4);

    // Who comes late, and who asks again.
    let late = hosts.join(4, &token, &[]);
    late.failed(9, "was formed without this host");
    assert!(!hosts.home(4).join("data/forming.toml").exists());
    assert_eq!(hosts.join(2, &token, &["-o", "value"]).ok().trim(), fingerprint, "it is so already");
    hosts
        .run(2, &["init", "--name", "b", "--expect", "4", "--advertise", &address])
        .failed(1, "cluster `prod` already");
    let doctor = hosts.json(1, &["doctor"]);
    let verdict = |subject: &str| {
        let all = doctor["findings"].as_array().unwrap().iter();
        all.filter(|it| it["subject"] == subject)
            .map(|it| it["verdict"].as_str().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (verdict("peers"), verdict("clock"), verdict("versions")),
        (vec!["ok"; 3], vec!["ok"], vec!["ok"])
    );

    // It is a member after a restart as before, and says so when it can't be.
    hosts.kill(3);
    let away = hosts.run(1, &["doctor"]);
    assert!(away.code == 0 || away.code == 5, "{away:?}");
    hosts.spawn(3);
    hosts.wait(3, &["status"], |ran| ran.code == 0);
    hosts.kill(3);
    hosts.wait(1, &["doctor"], |ran| {
        ran.code == 5 && ran.stdout.contains("host3 at") && ran.stdout.contains("is not connected")
    });
    let stopped = hosts.run(3, &["doctor"]);
    assert_eq!(stopped.code, 5);
    assert!(
        stopped.stdout.contains("is free") && stopped.stderr.contains("checks that need none"),
        "{stopped:?}"
    );
    let blocker = UdpSocket::bind(hosts.address(3)).unwrap();
    let stopped = hosts.run(3, &["doctor"]);
    assert!(stopped.stdout.contains("FAIL  port"), "{stopped:?}");
    drop(blocker);
    fs::set_permissions(hosts.home(3).join("data/identity.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let stopped = hosts.run(3, &["doctor"]);
    assert!(stopped.stdout.contains("FAIL  key") && stopped.stdout.contains("chmod 600"), "{stopped:?}");
    // What starting again does not mend ends with 78, after which systemd leaves it alone.
    let start = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(binary("bftd"));
        command.arg("--config").arg(hosts.home(3).join("bftd.toml")).args(arguments);
        command.envs(environment.iter().copied());
        run(command)
    };
    for arguments in [&[][..], &["identity"]] {
        let exposed = start(&[], arguments);
        assert!(exposed.code == 78 && exposed.stderr.contains("chmod 600"), "{exposed:?}");
    }
    fs::set_permissions(hosts.home(3).join("data/identity.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let long = "s".repeat(120);
    for arguments in [&[][..], &["config", "check"]] {
        let too_long = start(&[("BFTD_ADMIN__SOCKET", &long)], arguments);
        assert!(too_long.code == 78 && too_long.stderr.contains("choose a shorter one"), "{too_long:?}");
    }

    // A genesis in the configuration that is another one, and one that is lost.
    let other =
        fs::read_to_string(hosts.home(3).join("data/genesis.toml")).unwrap().replace("\"prod\"", "\"other\"");
    fs::write(hosts.home(3).join("other.toml"), other).unwrap();
    let two = start(&[("BFTD_NODE__GENESIS", "other.toml")], &[]);
    assert_eq!(two.code, 78);
    assert!(
        two.stderr.contains("`other`") && two.stderr.contains("`prod`") && two.stderr.contains("differ"),
        "{two:?}"
    );
    fs::remove_file(hosts.home(3).join("data/genesis.toml")).unwrap();
    let lost = start(&[], &[]);
    assert_eq!(lost.code, 78);
    assert!(lost.stderr.contains("its genesis is missing"), "{lost:?}");
}

#[test]
fn each_failure_has_its_own_message_and_next_step() {
    let mut hosts = Hosts::start(4);
    let address = hosts.address(0);
    let init = |more: &[&str]| hosts.run(0, &[&["init", "--no-wait"], more].concat());
    init(&["--name", "p", "--expect", "3", "--advertise", &address]).failed(2, "3 members tolerate no fault");
    init(&["--name", "p p", "--expect", "4", "--advertise", &address]).failed(2, "can't be a cluster's name");
    init(&["--name", "p", "--expect", "4"]).failed(2, "where do the other members reach this host?");
    init(&["--name", "p", "--expect", "4", "--advertise", "127.0.0.1"]).failed(2, "names no port");
    init(&["--name", "p", "--expect", "4", "--advertise", "192.0.2.1:7000"])
        .failed(1, "can't listen on 192.0.2.1:7000");
    assert_eq!(
        init(&["--name", "p", "--expect", "4", "--protocol", "paxos", "--advertise", &address]).code,
        2
    );
    assert_eq!(hosts.run(0, &["status"]).code, 11);
    assert!(!hosts.home(0).join("data/forming.toml").exists(), "nothing was begun");

    // A script that runs twice reads a token each time.
    let words = ["--name", "prod", "--expect", "4", "--advertise", &address, "--member-name", "host0"];
    let read = |_| init(&[&words[..], &["-q", "-o", "value"]].concat()).ok();
    let tokens = [0, 1].map(read);
    assert!(tokens.iter().all(|token| token.starts_with("bftd1")) && tokens[0] != tokens[1], "{tokens:?}");
    hosts.run(0, &["init", "--abandon"]).ok();

    hosts.init(4);
    init(&["--name", "other", "--expect", "4", "--advertise", &address])
        .failed(1, "gathers 4 members for `prod`");
    let token = hosts.token(&[]);
    hosts.join(1, "nonsense", &[]).failed(2, "this is no token");
    hosts.join(1, token.get(..token.len() - 3).unwrap(), &[]).failed(2, "a part of it is missing");
    hosts.join(0, &token, &[]).failed(2, "this daemon's own");
    hosts
        .run(1, &["join", &token, "--advertise", &hosts.address(1), "--member-name", "host0"])
        .failed(2, "called `host0` already");

    let brief = hosts.token(&["--expires", "1s"]);
    thread::sleep(Duration::from_millis(1_100));
    hosts.join(1, &brief, &[]).failed(9, "this token expired");
    let single = hosts.token(&["--uses", "1"]);
    hosts.join(1, &single, &["--no-wait"]).ok();
    hosts.join(1, &single, &["--no-wait"]).ok();
    hosts.join(2, &single, &[]).failed(9, "was for 1 host, and was used by as many");
    hosts
        .run(1, &["init", "--name", "p", "--expect", "4", "--advertise", &address])
        .failed(1, "joins another one's cluster");

    // Its address taken: a daemon behind another `listen` says that it is at host 1's.
    let taken = hosts.address(1);
    fs::write(
        hosts.home(2).join("bftd.toml"),
        format!("[node]\ndata_dir = \"data\"\nlisten = \"{}\"\n[admin]\nsocket = \"s\"\n", hosts.address(2)),
    )
    .unwrap();
    hosts.kill(2);
    hosts.spawn(2);
    let join =
        |address: &str| hosts.run(2, &["join", &token, "--advertise", address, "--member-name", "host2"]);
    join(&taken).failed(2, &format!("`host1` has the address {taken} already"));
    join("127.0.0.1:9").failed(10, "the inviter can't reach this host at 127.0.0.1:9");

    // The token survives the inviter's restart; a token of what was abandoned does not.
    hosts.kill(0);
    hosts.join(2, &token, &[]).failed(10, "no answer from the inviter");
    hosts.spawn(0);
    hosts.wait(0, &["status"], |ran| ran.stdout.contains("2/4"));
    hosts.join(2, &token, &["--no-wait"]).ok();
    hosts.run(2, &["join", "--abandon"]).ok();
    assert!(!hosts.home(2).join("data/forming.toml").exists());
    hosts.run(0, &["init", "--forget", "nobody"]).failed(2, "is called `nobody`");
    hosts.run(0, &["init", "--abandon"]).ok();
    hosts.init(4);
    hosts.join(2, &token, &[]).failed(9, "does not know this token");
    // At first it may say that its connection was closed; but nothing else.
    hosts.wait(1, &["status"], |ran| {
        let is_refused = ran.stdout.contains("does not know this token");
        let is_told = is_refused || ran.stdout.contains("has closed the connection");
        assert!(is_told || !ran.stdout.contains("trouble: "), "{ran:?}");
        is_refused
    });

    // Somebody else at the inviter's address.
    let token = hosts.token(&[]);
    hosts.kill(0);
    let words = [
        "init",
        "--name",
        "prod",
        "--expect",
        "4",
        "--advertise",
        &address,
        "--member-name",
        "host0",
        "--no-wait",
    ];
    hosts.run(3, &words).ok();
    hosts.join(2, &token, &[]).failed(8, &format!("at {address} answers somebody with the key "));
    assert!(!hosts.home(2).join("data/forming.toml").exists(), "nothing half-made stays");
    assert_eq!(hosts.json(3, &["status"])["forming"]["members"].as_array().unwrap().len(), 1);
}

#[test]
fn crashes_at_any_point_cost_nothing_but_a_repeated_command() {
    let mut hosts = Hosts::start(4);
    hosts.init(4);
    let token = hosts.token(&["--uses", "3"]);
    hosts.join(1, &token, &["--no-wait"]).ok();
    hosts.join(2, &token, &["--no-wait"]).ok();

    // The inviter: who has come, and the token, are still there. The joiners find it again.
    hosts.kill(0);
    hosts.spawn(0);
    hosts.wait(0, &["status"], |ran| ran.stdout.contains("3/4") && !ran.stdout.contains("  NO"));
    hosts.init(4);

    // A joiner, which goes on by itself or when asked again.
    hosts.kill(2);
    hosts.wait(0, &["status"], |ran| ran.stdout.contains("not connected now: host2"));
    hosts.spawn(2);
    hosts.wait(0, &["status"], |ran| !ran.stdout.contains("not connected now"));
    hosts.join(2, &token, &["--no-wait"]).ok();

    // One that hears nothing when the cluster is formed, and then crashes: the member that the inviter became tells it.
    hosts.signal(1, Signal::STOP);
    hosts.join(3, &token, &["-o", "value"]).ok();
    hosts.wait(0, &["status"], |ran| ran.code == 5);
    hosts.kill(1);
    assert!(!hosts.home(1).join("data/genesis.toml").exists(), "it has not heard");
    hosts.spawn(1);
    hosts.join(1, &token, &["-o", "value"]).ok();
    hosts.assert_formed(0..4);
}

#[test]
fn a_genesis_agreed_offline_is_taken_and_kept() {
    let mut hosts = Hosts::start(4);
    let key = |at: usize| {
        let mut command = Command::new(binary("bftd"));
        command.args(["identity", "--data-dir"]).arg(hosts.home(at).join("data"));
        run(command).ok().trim().to_owned()
    };
    let members: Vec<_> = (0..4).map(|at| format!("host{at}={}@{}", key(at), hosts.address(at))).collect();
    let mut words = vec!["genesis", "new", "--name", "offline"];
    words.extend(members.iter().take(3).flat_map(|member| ["--member", member]));
    let without = hosts.run(0, &words).ok();
    words.extend(["--member", &members[3]]);
    let file = hosts.directory.path().join("genesis.toml");
    let path = file.to_str().unwrap().to_owned();
    hosts.run(0, &[&words[..], &["--out", &path]].concat()).ok();
    assert_eq!(hosts.run(0, &[&words[..], &["--out", &path]].concat()).code, 1, "it is not overwritten");
    let shown = hosts.json(0, &["genesis", "show", &path]);
    assert_eq!((&shown["cluster"]["f"], &shown["members"][3]["name"]), (&1.into(), &"host3".into()));

    let other = hosts.directory.path().join("other.toml");
    fs::write(&other, without).unwrap();
    let refused = hosts.run(3, &["init", "--genesis", other.to_str().unwrap()]);
    refused.failed(2, "no member has this host's key");
    let ran = run_all((0..4).map(|at| hosts.command(at, &["init", "--genesis", &path])).collect());
    assert!(ran.iter().all(|ran| ran.code == 0), "{ran:?}");
    hosts.run(2, &["init", "--genesis", &path]).ok();
    hosts.run(2, &["init", "--genesis", other.to_str().unwrap()]).failed(1, "cluster `offline` already");
    hosts.assert_formed(0..4);
    assert_eq!(hosts.json(1, &["status"])["cluster"]["fingerprint"], shown["cluster"]["fingerprint"]);
    fs::remove_file(&file).unwrap();
    hosts.kill(0);
    hosts.spawn(0);
    hosts.wait(0, &["status"], |ran| ran.code == 0);
}

#[test]
fn only_administrators_form_clusters() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tried: another user can only be had as root");
        return;
    }
    let hosts = Hosts::start(1);
    // As if somebody had opened the socket to all: it is the kernel's word that counts.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(hosts.directory.path(), 0o755);
    open(&hosts.home(0).join("s"), 0o666);
    let program = hosts.directory.path().join("bftctl");
    fs::copy(binary("bftctl"), &program).unwrap();
    let socket = hosts.home(0).join("s");
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.env_clear().env("HOME", "/nonexistent").arg("--socket").arg(&socket).args(words);
        run({
            command.uid(65_534).gid(65_534).stdin(Stdio::null());
            command
        })
    };
    assert_eq!(as_nobody(&["status"]).code, 11, "looking is free");
    let address = hosts.address(0);
    for words in [
        &["init", "--name", "p", "--expect", "4", "--advertise", &address][..],
        &["join", "bftd1aaaa", "--advertise", &address],
        &["token", "create"],
        &["init", "--abandon"],
        &["init", "--forget", "x"],
    ] {
        as_nobody(words).failed(9, "the group bftd-admin");
    }
    assert_eq!(hosts.run(0, &["status"]).code, 11);
}
