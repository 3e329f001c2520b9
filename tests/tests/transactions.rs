//! Transactions on real daemons, through the client and through `bftctl`.
#![allow(clippy::unwrap_used)]

use std::{fs, process::Command};

use bftd_client::{
    Bytes, Compare, Consistency, Part, Property, Relation, Span, Transaction, TransactionStep as Step,
};
use bftd_tests::{Cluster, binary};

const COUNTER: &str = "counter";

/// Adds one to a counter whoever else does, and says how often somebody was faster.
async fn add_one(cluster: &Cluster, id: u8) -> u32 {
    let client = cluster.client(id).await.unwrap();
    let mut lost = 0;
    loop {
        let (entry, _) = client.get(COUNTER.into(), Consistency::Local).await.unwrap();
        let (revision, count) = entry.map_or((0, 0), |entry| {
            (entry.mod_revision, String::from_utf8(entry.value.to_vec()).unwrap().parse::<u32>().unwrap())
        });
        let unchanged = Compare {
            keys: Span::Key(Bytes::from(COUNTER)),
            property: Property::ModRevision(revision),
            relation: Relation::Equal,
        };
        let value = (count + 1).to_string().into();
        let put = Step::Put { key: COUNTER.into(), value, lease: 0 };
        let add = Transaction {
            parts: vec![Part { compare: vec![unchanged], then: vec![put], otherwise: vec![] }],
        };
        if client.transact(add).await.unwrap().0.succeeded {
            return lost;
        }
        lost += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_overwrites_what_another_one_counted() {
    let cluster = Cluster::start(4).await;
    let add = |id| {
        let cluster = &cluster;
        async move {
            let mut lost = 0;
            for _ in 0..25 {
                lost += add_one(cluster, id).await;
            }
            lost
        }
    };
    let (a, b, c, d) = tokio::join!(add(1), add(2), add(3), add(4));
    assert!(a + b + c + d > 0, "nobody was ever slower: this shows nothing");
    let client = cluster.client(1).await.unwrap();
    let (entry, _) = client.get(COUNTER.into(), Consistency::Linearizable).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((&entry.value[..], entry.version), (&b"100"[..], 100));
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bftctl_takes_transactions_from_files() {
    let cluster = Cluster::start(4).await;
    let file = cluster.path().join("txn.json");
    let run = |id: u8, text: &str| {
        fs::write(&file, text).unwrap();
        let mut command = Command::new(binary("bftctl"));
        command.arg("--socket").arg(cluster.home(id).join("s")).args(["-o", "json", "txn", "-f"]).arg(&file);
        let output = command.output().unwrap();
        let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
        (output.status.code(), json, String::from_utf8(output.stderr).unwrap())
    };
    let take = r#"{"compare": [{"key": "lock", "version": 0}], "then": [{"put": {"key": "lock", "value": "me"}}],
                   "else": [{"get": {"key": "lock"}}]}"#;
    let (code, taken, _) = run(1, take);
    assert_eq!((code, &taken["succeeded"], &taken["revision"]), (Some(0), &true.into(), &2.into()));
    let (code, refused, _) = run(2, take);
    assert_eq!((code, &refused["succeeded"]), (Some(4), &false.into()));
    assert_eq!(refused["results"][0]["get"]["entries"][0]["value"], "me");
    let (code, _, words) =
        run(3, r#"{"then": [{"put": {"key": "a", "value": ""}}, {"del": {"prefix": ""}}]}"#);
    assert_eq!(code, Some(2));
    assert!(words.contains("writes each key once"), "{words}");
    let (code, _, words) = run(3, "[1]");
    assert!(code == Some(2) && words.contains("bftctl txn --help"), "{words}");
}
