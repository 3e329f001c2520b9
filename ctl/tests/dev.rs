//! `bftctl dev`: real daemons on this machine.
//!
//! The daemon `bftd` must have been built beside bftctl, as `cargo build --release` does.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

/// A directory with a cluster that goes with the test, whatever happens in it.
struct Sandbox(tempfile::TempDir);

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.run(&["dev", "wipe", "--yes"]);
    }
}

impl Sandbox {
    fn new() -> Self {
        let bftd = Path::new(env!("CARGO_BIN_EXE_bftctl")).with_file_name("bftd");
        assert!(
            bftd.exists(),
            "{} is missing: build it first (cargo build --release -p bftd)",
            bftd.display()
        );
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs bftctl: exit code, stdout, stderr.
    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let path = self.0.path();
        let output = Command::new(env!("CARGO_BIN_EXE_bftctl"))
            .args(words)
            .env_remove("BFTD")
            .env_remove("BFTCTL_SOCKET")
            .env("BFTCTL_DEV_DIR", path.join("dev"))
            .env("BFTCTL_CONTEXTS", path.join("contexts.toml"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {stderr}");
        stdout
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[words, &["-o", "json"]].concat())).unwrap()
    }

    /// Waits until status ends with this code on node 1.
    #[track_caller]
    fn wait_status(&self, node: &str, code: i32) {
        for _ in 0..200 {
            if self.run(&["status", "--node", node]).0 == code {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("status never ended with {code}: {:?}", self.run(&["status", "--node", node]));
    }
}

#[test]
fn a_cluster_comes_up_is_hurt_heals_and_goes() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(&["dev", "ls"]).0, 1, "there is none yet");
    let up = sandbox.json(&["dev", "up"]);
    assert_eq!(up["nodes"].as_array().unwrap().len(), 4);
    assert!(up["nodes"].as_array().unwrap().iter().all(|node| node["state"] == "running"), "{up}");
    sandbox.ok(&["put", "a", "kept"]);
    assert_eq!(sandbox.ok(&["get", "a", "--node", "3"]), "kept");

    let pid = |n: usize| sandbox.json(&["dev", "ls"])["nodes"][n - 1]["pid"].clone();
    let before = pid(2);
    assert_eq!(sandbox.json(&["dev", "kill", "2"])["nodes"][0]["state"], "stopped");
    assert_eq!(sandbox.run(&["dev", "kill", "2"]).0, 1, "it is not running any more");
    assert_eq!(sandbox.run(&["status", "--node", "2"]).0, 10);
    sandbox.wait_status("1", 5);
    sandbox.ok(&["put", "b", "without node2"]);
    sandbox.ok(&["dev", "kill", "3"]);
    sandbox.wait_status("1", 6);
    let (code, _, stderr) = sandbox.run(&["put", "c", "1", "--timeout", "3s"]);
    assert_eq!(code, 6, "{stderr}");

    sandbox.ok(&["dev", "restart", "2", "3"]);
    sandbox.ok(&["put", "d", "at once", "--node", "2"]);
    sandbox.wait_status("2", 0);
    assert_ne!(pid(2), before);
    assert_eq!(sandbox.ok(&["get", "b", "--node", "2"]), "without node2");
    assert_eq!(sandbox.json(&["dev", "pause", "4"])["nodes"][0]["state"], "paused");
    assert_eq!(sandbox.json(&["dev", "resume", "4"])["nodes"][0]["state"], "running");

    sandbox.ok(&["dev", "pause", "4"]);
    let down = sandbox.json(&["dev", "down"]);
    assert!(down["nodes"].as_array().unwrap().iter().all(|node| node["pid"] == json!(null)), "{down}");
    assert_eq!(sandbox.run(&["dev", "up", "--nodes", "5"]).0, 2);
    assert_eq!(sandbox.run(&["dev", "up", "--protocol", "pbft"]).0, 2);
    sandbox.ok(&["dev", "up", "--nodes", "4"]);
    assert_eq!(sandbox.ok(&["get", "a"]), "kept");

    assert_eq!(sandbox.run(&["dev", "wipe"]).0, 2, "nobody to ask");
    let foreign = sandbox.0.path().join("dev").join("mine");
    std::fs::write(&foreign, "").unwrap();
    sandbox.ok(&["dev", "wipe", "--yes"]);
    let left: Vec<_> =
        std::fs::read_dir(sandbox.0.path().join("dev")).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(left, [foreign], "what is not ours stays");
    assert_eq!(sandbox.ok(&["context", "ls"]), "", "the context went with it");
}

#[test]
fn a_process_that_only_has_the_number_is_left_alone() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["dev", "up", "--nodes", "1"]);
    sandbox.ok(&["dev", "down"]);
    let mut innocent = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(sandbox.0.path().join("dev/node1/pid"), innocent.id().to_string()).unwrap();
    assert_eq!(sandbox.run(&["dev", "kill", "1"]).0, 1);
    assert_eq!(innocent.try_wait().unwrap(), None, "it lives");
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[test]
fn a_daemon_that_can_not_start_is_shown_with_its_log() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["dev", "up", "--nodes", "1"]);
    sandbox.ok(&["dev", "down"]);
    let config = sandbox.0.path().join("dev/node1/bftd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("nonsense = 1\n{text}")).unwrap();
    let (code, _, stderr) = sandbox.run(&["dev", "up"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("node1 ended at once") && stderr.contains("nonsense"), "{stderr}");
}
