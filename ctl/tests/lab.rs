//! `bftctl lab` as a process: tables, JSON, CSV, plots, exit codes.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// Runs `bftctl lab`: exit code, stdout, stderr.
fn lab(directory: &Path, words: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bftctl"));
    command.env_clear().env("HOME", directory).current_dir(directory).stdin(Stdio::null());
    let output = command.arg("lab").args(words.split(' ')).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn ok(directory: &Path, words: &str) -> String {
    let (code, stdout, stderr) = lab(directory, words);
    assert_eq!(code, 0, "{stderr}");
    stdout
}

#[track_caller]
fn runs(directory: &Path, words: &str) -> Vec<Value> {
    let json: Value = serde_json::from_str(&ok(directory, &format!("{words} -o json"))).unwrap();
    assert_eq!(json["schema"], "bftctl/v1");
    json["runs"].as_array().unwrap().clone()
}

#[test]
fn json_has_what_was_measured() {
    let directory = tempfile::tempdir().unwrap();
    let runs =
        runs(directory.path(), "--protocols pbft,raft --nodes 4,7 --malicious 0 --requests 8 --seed 3");
    let of: Vec<_> =
        runs.iter().map(|run| (run["protocol"].as_str().unwrap(), run["nodes"].as_u64().unwrap())).collect();
    assert_eq!(of, [("pbft", 4), ("pbft", 7), ("raft", 4), ("raft", 7)]);
    let run = &runs[0];
    for (field, value) in [
        ("f", 1),
        ("quorum", 3),
        ("seed", 3),
        ("clients", 1),
        ("requests", 8),
        ("committed", 8),
        ("blocks", 8),
    ] {
        assert_eq!(run[field], value, "{field}");
    }
    assert_eq!((&run["agreement"], &run["one_round"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!((run["messages_per_commit"].as_f64(), run["messages"].as_u64()), (Some(16.0), Some(128)));
    assert_eq!(run["messages_by_kind"]["PrepareVote"], 96);
    assert_eq!(
        (run["signatures_per_commit"].as_f64(), run["verifications_per_commit"].as_f64()),
        (Some(6.0), Some(31.0))
    );
    assert_eq!((run["delays"].as_f64(), run["term_changes"].as_u64()), (Some(3.0), Some(0)));
    let time = &run["consensus_time_ms"];
    let [p50, p99, max] = ["p50", "p99", "max"].map(|name| time[name].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{time}");
    assert!(run["bytes_per_commit"].as_f64() > Some(1_000.0) && run["cpu_seconds"].as_f64() > Some(0.0));
    let tally = run["nodes_tally"].as_array().unwrap();
    assert_eq!((tally.len(), &tally[3]["id"], &tally[3]["corrupt"]), (4, &Value::from(4), &Value::from(0)));
    assert_eq!(tally.iter().map(|node| node["correct"].as_u64().unwrap()).sum::<u64>(), 128);
}

#[test]
fn the_same_seed_says_the_same_but_for_the_cpu_time() {
    let directory = tempfile::tempdir().unwrap();
    let runs = |seed: u8| {
        let words = format!(
            "--nodes 4,7 --protocols bft-raft,ccro --malicious f --requests 10 --network wan --seed {seed}"
        );
        let mut runs = runs(directory.path(), &words);
        for run in &mut runs {
            assert_eq!(run["faulty"]["malicious"], run["f"]);
            run.as_object_mut().unwrap().remove("cpu_seconds").unwrap();
        }
        runs
    };
    assert_eq!(runs(5), runs(5));
    assert_ne!(runs(5), runs(6));
}

#[test]
fn people_get_a_table_and_a_line_a_member() {
    let directory = tempfile::tempdir().unwrap();
    let text = ok(directory.path(), "--protocols bft-raft --malicious-members 3 --requests 5");
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("PROTOCOL  N  F  FAULTY"), "{text}");
    assert!(lines.next().unwrap().starts_with("bft-raft  4  1  1 malicious        5/5  yes"), "{text}");
    assert!(text.contains("\nNode 1 -> 45 correct 0 corrupt\n"), "{text}");
    assert!(text.contains("\nNode 3 -> 0 correct 10 corrupt (malicious, 5 seen through)"), "{text}");
    let large = ok(directory.path(), "--protocols bft-raft --nodes 31 --malicious-members 3 --requests 2");
    assert!(large.contains("Node 3 -> 0 correct") && !large.contains("Node 1 ->"), "{large}");
    assert!(large.contains("(30 others: --per-node)"), "{large}");
    let all = ok(directory.path(), "--protocols bft-raft --nodes 31 --requests 2 --per-node");
    assert_eq!(all.lines().filter(|line| line.starts_with("Node ")).count(), 31);
    let (_, p50, progress) = lab(directory.path(), "--protocols bft-raft,raft --requests 2 -o value");
    assert!(p50.lines().count() == 2 && p50.lines().all(|line| line.parse::<f64>().is_ok()), "{p50}");
    assert_eq!(progress, "", "no bar in a pipe");
}

#[test]
fn csv_has_a_line_a_run() {
    let directory = tempfile::tempdir().unwrap();
    let words = "--protocols bft-raft,pbft --nodes 4,7 --offline 1 --requests 4 --one-round off";
    let text = ok(directory.path(), &format!("{words} --csv -"));
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    let header = "protocol,nodes,f,quorum,one_round,offline,malicious,equivocate,seed,clients,requests,committed,blocks,agreement,\
                  p50_ms,p99_ms,max_ms,delays,messages_per_commit,bytes_per_commit,signatures_per_commit,\
                  verifications_per_commit,term_changes,virtual_seconds,cpu_seconds,\
                  value_size,faulty_leader,beyond_f,offline_members,malicious_members,equivocate_members,network,rtt_ms,\
                  jitter,loss,bandwidth_mbit,sign_ns,verify_ns,message_ns,fsync_ns,disagreement_at,lag,stopped";
    assert_eq!(text.lines().next().unwrap(), header);
    assert!(rows.len() == 5 && rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
    assert_eq!(
        rows[4][..14],
        ["pbft", "7", "2", "5", "false", "1", "0", "0", "1", "1", "4", "4", "4", "true"]
    );
    assert!(
        rows[1..].iter().flat_map(|row| &row[14..26]).all(|field| field.parse::<f64>().is_ok()),
        "{text}"
    );
    let gone = rows[4][28];
    assert!((2..=7).contains(&gone.parse::<u8>().unwrap()), "one of those that don't lead: {gone}");
    let how = ["256", "false", "false", gone, "", "", "lan", "0.06", "0.1", "0", "10000"];
    assert_eq!(rows[4][25..36], how);
    assert_eq!(rows[4][36..], ["5500", "24000", "1000", "100000", "", "0", "0"]);
    let sites =
        ok(directory.path(), "--protocols raft --offline-members 2,4 --nodes 5 --network wan --csv -");
    assert!(sites.contains(",2 4,,,wan,1 70 90 115 215;70 1 25 180 175;"), "{sites}");
    ok(directory.path(), &format!("{words} --csv runs.csv"));
    let without_cpu = |text: &str| {
        let fields = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        let rows = text.lines().map(fields);
        let without = |mut row: Vec<String>| {
            row.remove(24);
            row
        };
        rows.map(without).collect::<Vec<_>>()
    };
    assert_eq!(
        without_cpu(&fs::read_to_string(directory.path().join("runs.csv")).unwrap()),
        without_cpu(&text)
    );
}

#[test]
fn a_plot_has_a_line_a_protocol_in_each_chart() {
    let directory = tempfile::tempdir().unwrap();
    ok(directory.path(), "--nodes 1,4,7,13 --requests 3 --plot lab.svg");
    let svg = fs::read_to_string(directory.path().join("lab.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    for text in
        ["members", "median, virtual ms", "messages a commit", "bft-raft", "pbft", "ccro", "raft", "13"]
    {
        assert!(svg.contains(&format!("\n{text}\n")), "{text}");
    }
    for colour in ["#0072B2", "#D55E00", "#009E73", "#CC79A7"] {
        let curves = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(colour));
        // And one in each legend.
        assert_eq!(curves.count(), 4, "{colour}");
    }
}

#[test]
fn what_can_not_be_measured_exits_2_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("odd"), "1 2\n3").unwrap();
    for (words, why) in [
        ("--nodes 0", "0 is not in 1..=128"),
        ("--nodes 4,129", "129 is not in 1..=128"),
        ("--protocols tangaroa", "unknown protocol `tangaroa`"),
        ("--protocols pbft --malicious 2", "pbft with 4 members tolerates 1 faulty ones, not 2"),
        ("--protocols pbft --malicious 1 --offline 1", "tolerates 1 faulty ones, not 2"),
        ("--protocols pbft --nodes 31,4 --offline 3", "pbft with 4 members tolerates 1 faulty ones, not 3"),
        ("--protocols pbft --offline 5 --beyond-f", "5 members can't be faulty: there are 4"),
        ("--protocols pbft --offline 4 --beyond-f", "nobody is left to be measured"),
        ("--protocols raft --equivocate 1", "raft tolerates members that crash, and none that lie"),
        ("--offline 1 --offline-members 2", "cannot be used with"),
        ("--offline-members 5", "there is no member 5 among 4"),
        (
            "--nodes 31 --protocols pbft --offline-members 2 --malicious-members 2",
            "member 2 can't misbehave in two ways",
        ),
        ("--malicious many", "a number of members, or `f`"),
        ("--matrix nowhere", "No such file"),
        ("--matrix odd", "row 2 has 1 numbers; a matrix of 2 sites has 2 in each row"),
        ("--matrix odd --rtt 1ms", "cannot be used with"),
        ("--loss 60%", "a loss of 0.6 is not from 0 to 0.5"),
        ("--rtt 2h", "a round trip takes at most 60s"),
        ("--fsync 1h", "a time up to 10s"),
        ("--requests 0", "0 is not in 1..=1000000"),
        ("--value-size 99999999", "a number of bytes from 0 to"),
        ("--plot nowhere/lab.svg", "nowhere is no directory"),
        ("--csv .", "can't write ."),
        ("--malicious 1", "--protocols bft-raft,pbft,ccro alone; or --beyond-f"),
        ("--protocols raft,ccro --equivocate 1", "--protocols ccro alone; or --beyond-f"),
        ("--protocols raft --malicious 1", "--protocols bft-raft alone; or --beyond-f"),
        ("--faulty-leader", "--faulty-leader needs faulty members to be drawn"),
        ("--faulty-leader --offline 0", "--faulty-leader needs faulty members to be drawn"),
        ("--faulty-leader --offline-members 2", "or name the first leader: --offline-members 1"),
        ("--plot -", "can't draw the plot to stdout"),
    ] {
        let (code, stdout, stderr) = lab(directory.path(), words);
        assert_eq!((code, stdout.as_str()), (2, ""), "{words}: {stderr}");
        assert!(stderr.contains(why), "{words}: {stderr}");
    }
}

#[test]
fn what_is_not_committed_exits_6() {
    let directory = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) =
        lab(directory.path(), "--protocols pbft --offline 2 --beyond-f --requests 3");
    assert_eq!(code, 6, "{stderr}");
    assert!(stderr.contains("pbft with 4 members: 0 of 3 requests were committed"), "{stderr}");
    assert!(stdout.contains("0/3"), "{stdout}");
}

#[test]
fn members_that_part_exit_8_and_members_that_stop_before_it_do_not() {
    let directory = tempfile::tempdir().unwrap();
    // Three members tolerate none that lies: the two others are a quorum each with the one that does.
    let words = |seed: u8| {
        format!("--protocols pbft --nodes 3 --equivocate-members 1 --beyond-f --requests 5 --seed {seed}")
    };
    let json = |seed: u8| {
        let (code, stdout, _) = lab(directory.path(), &format!("{} -o json", words(seed)));
        let json: Value = serde_json::from_str(&stdout).unwrap();
        (code, json["runs"][0].clone())
    };
    let (code, parted) = json(5);
    assert_eq!((code, &parted["agreement"], &parted["disagreement_at"]), (8, &false.into(), &2.into()));
    let (code, stopped) = json(1);
    assert_eq!((code, &stopped["agreement"], &stopped["disagreement_at"]), (6, &true.into(), &Value::Null));
    for run in [&parted, &stopped] {
        let of: Vec<_> =
            run["stopped"].as_array().unwrap().iter().map(|it| it["id"].as_u64().unwrap()).collect();
        assert_eq!(of, [2, 3], "{run}");
        assert!(
            run["stopped"][0]["why"].as_str().unwrap().starts_with("more than f members are faulty"),
            "{run}"
        );
        assert_eq!(run["lagging"], Value::Array(Vec::new()));
    }
    let (code, stdout, stderr) = lab(directory.path(), &words(5));
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("pbft with 3 members: correct members differ from block 2 on"), "{stderr}");
    assert!(stderr.contains("pbft with 3 members: correct members stopped: 2, 3"), "{stderr}");
    assert!(stdout.contains("0/5  NO"), "{stdout}");
    assert!(
        stdout.contains("pbft, 3 members: node 2 stopped: more than f members are faulty: block 2"),
        "{stdout}"
    );
    let all_was_committed = words(6).replace("--requests 5", "--requests 1");
    let (code, stdout, stderr) = lab(directory.path(), &all_was_committed);
    assert!(code == 1 && stdout.contains("1/1  yes"), "{code} {stdout}");
    assert!(stderr.contains("correct members stopped: 2, 3"), "{stderr}");
    let (_, stdout, stderr) = lab(directory.path(), &words(1));
    assert!(stdout.contains("0/5  yes") && !stderr.contains("differ"), "{stdout}{stderr}");
}

#[test]
fn a_row_says_how_to_repeat_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("sites"), "1 7.5\n7.5 0.25\n").unwrap();
    let words = "--protocols ccro --nodes 7 --malicious 1 --offline 1 --faulty-leader --requests 12 --clients 3 --value-size 5000 \
                 --seed 9 --one-round off --matrix sites --jitter 20% --loss 3% --bandwidth 250 --sign 6us --verify 30us \
                 --per-message 2us --fsync 150us";
    let mut first = runs(directory.path(), words).remove(0);
    let [network, costs] = ["network", "costs"].map(|field| first[field].clone());
    assert_eq!((&network["name"], &network["loss"]), (&"matrix".into(), &0.03.into()));
    let rows = network["rtt_ms"].as_array().unwrap().iter().map(|row| {
        let times: Vec<_> = row.as_array().unwrap().iter().map(Value::to_string).collect();
        times.join(" ") + "\n"
    });
    fs::write(directory.path().join("again"), rows.collect::<String>()).unwrap();
    let percent = |share: &Value| share.as_f64().unwrap() * 100.0;
    let number = |value: &Value| value.as_f64().unwrap().to_string();
    let flags = [
        format!("--protocols {}", first["protocol"].as_str().unwrap()),
        format!("--nodes {} --seed {}", first["nodes"], first["seed"]),
        format!("--requests {} --clients {}", first["requests"], first["clients"]),
        format!("--value-size {}", first["value_size"]),
        format!("--one-round {}", if first["one_round"] == true { "on" } else { "off" }),
        format!("--malicious {}", first["faulty"]["malicious"]),
        format!("--offline {}", first["faulty"]["offline"]),
        ["", "--faulty-leader"][usize::from(first["faulty_leader"] == true)].to_owned(),
        ["", "--beyond-f"][usize::from(first["beyond_f"] == true)].to_owned(),
        format!("--matrix again --jitter {}", percent(&network["jitter"])),
        format!("--loss {}", percent(&network["loss"])),
        format!("--bandwidth {}", number(&network["bandwidth_mbit"])),
        format!("--sign {}ns --verify {}ns", costs["sign_ns"], costs["verify_ns"]),
        format!("--per-message {}ns --fsync {}ns", costs["message_ns"], costs["fsync_ns"]),
    ];
    let flags = flags.join(" ").split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let mut second = runs(directory.path(), &flags).remove(0);
    for run in [&mut first, &mut second] {
        run.as_object_mut().unwrap().remove("cpu_seconds").unwrap();
    }
    assert_eq!(first, second);
}

#[test]
fn help_says_whose_processor_time_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let help = ok(directory.path(), "--help").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("CPU S real time on this machine."), "{help}");
    assert!(help.contains("the signatures here are keyed hashes, which cost less than ed25519"), "{help}");
}
