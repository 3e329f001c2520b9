//! `status`: the cluster at a glance, or how far it is from being one.

mod forming;

use bftd_client::{
    ClusterStatus, Health, MemberStatus, Status,
    forming::{FormRequest, Forming},
    genesis::{Faults, Protocol, fingerprint_of},
};
use clap::Args;
use serde::Serialize;

use crate::{
    args::Output,
    failure::{Code, Ended},
    protocol, quota,
    render::{self, Paint, printable},
    session::Session,
};

/// Show how the cluster is, as one daemon sees it.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl status\n  bftctl status --node 3 -o json\n\nExit codes: 0 healthy · 5 degraded · 6 no \
                        quorum · 10 daemon unreachable · 11 uninitialised"
)]
pub(crate) struct ShowStatus {}

impl ShowStatus {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let client = session.client().await?;
        let status = client.status().await?;
        let forming = match status.cluster.state {
            // The daemon may have become a member since: then the status says all there was.
            Health::Uninitialised => client.form(FormRequest::Progress).await.ok(),
            _ => None,
        };
        match session.options.output() {
            Output::Json => render::json(&Body::new(&status, forming.as_ref()))?,
            Output::Value => render::line(status.cluster.state.word())?,
            Output::Table => render::line(&text(&status, forming.as_ref(), Paint::stdout()))?,
        }
        Ok(match status.cluster.state {
            Health::Healthy => Code::Ok,
            Health::Degraded => Code::Degraded,
            Health::NoQuorum => Code::NoQuorum,
            Health::Uninitialised => Code::Uninitialised,
        })
    }
}

fn text(status: &Status, forming: Option<&Forming>, paint: Paint) -> String {
    let mut text = match forming {
        Some(forming) => forming::headline(forming, paint),
        None => headline(status, paint),
    };
    let ClusterStatus { protocol, next_protocol, .. } = &status.cluster;
    if (*protocol, *next_protocol) != (Protocol::default(), Protocol::default()) {
        text += &format!("\nprotocol {}", protocol::words(&status.cluster));
    }
    if !status.members.is_empty() {
        text += "\n\n";
        text += &members(status);
    }
    if let Some(forming) = forming {
        text += &forming::details(forming);
    } else {
        let fingerprint =
            fingerprint_of(&status.cluster.id).map(|fingerprint| format!("\nfingerprint: {fingerprint}"));
        let has_store = status.cluster.quota > 0;
        let store = has_store.then(|| format!("\nstore: {}", quota::words(&status.cluster, status.disk)));
        let lines: String = fingerprint.into_iter().chain(store).collect();
        if !lines.is_empty() {
            text += "\n";
            text += &lines;
        }
    }
    let hints: Vec<_> =
        status.hints.iter().map(|hint| format!("\nhint: {}", printable(hint.as_bytes()))).collect();
    if !hints.is_empty() {
        text += "\n";
        text += &hints.concat();
    }
    text
}

fn headline(status: &Status, paint: Paint) -> String {
    let ClusterStatus { name, state, .. } = &status.cluster;
    let colour = match state {
        Health::Healthy => Paint::green,
        Health::Degraded => Paint::yellow,
        Health::NoQuorum | Health::Uninitialised => Paint::red,
    };
    let (dot, state, name) = (colour(paint, "●"), colour(paint, state.word()), printable(name.as_bytes()));
    let summary = status.summary();
    let revision = match (status.cluster.revision, status.cluster.compacted) {
        // Without a state there is none.
        (0, _) => String::new(),
        (revision, 0) => format!(" · revision {revision}"),
        (revision, compacted) => format!(" · revision {revision} (readable from {compacted})"),
    };
    format!("{dot} {name} {state} {}{revision}", printable(summary.as_bytes()))
}

fn members(status: &Status) -> String {
    let header = [
        "ID",
        "NAME",
        "ROLE",
        "REACHABLE",
        "PREPARED",
        "COMMITTED",
        "EXECUTED",
        "LAG",
        "CORRECT",
        "CORRUPT",
        "EVIDENCE",
        "FAULTS",
        "VERSION",
    ];
    let newest = newest(status);
    let rows = status.members.iter().map(|member| {
        let own = if member.id == status.me { " (this)" } else { "" };
        vec![
            member.id.to_string(),
            format!("{}{own}", printable(member.name.as_bytes())),
            role(member).to_owned(),
            if member.reachable { "yes" } else { "NO" }.to_owned(),
            member.prepared.to_string(),
            member.committed.to_string(),
            member.executed.to_string(),
            newest.saturating_sub(member.executed).to_string(),
            member.correct.to_string(),
            member.corrupt.to_string(),
            member.evidence.to_string(),
            or_dash(&member.faults.join(",")),
            or_dash(&member.version),
        ]
    });
    render::table(&header, &[0, 4, 5, 6, 7, 8, 9, 10], rows.collect())
}

/// The highest committed index that anybody has told of.
fn newest(status: &Status) -> u64 {
    status.members.iter().map(|member| member.committed).max().unwrap_or(0)
}

fn role(member: &MemberStatus) -> &'static str {
    if member.leads { "leader" } else { "follower" }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { printable(text.as_bytes()).into_owned() }
}

#[derive(Serialize)]
struct Body<'a> {
    cluster: Cluster<'a>,
    #[serde(rename = "self")]
    me: u8,
    members: Vec<Member<'a>>,
    hints: &'a [String],
    disk: quota::Disk,
    #[serde(skip_serializing_if = "Option::is_none")]
    forming: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Cluster<'a> {
    name: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    protocol: String,
    next_protocol: String,
    /// `byzantine`, or `crash`: what the protocol withstands.
    faults: &'static str,
    state: &'static str,
    n: u64,
    f: u64,
    tolerates: u64,
    epoch: u64,
    term: u64,
    leader: u8,
    committed: u64,
    executed: u64,
    state_digest: &'a str,
    /// The store's revision.
    revision: u64,
    /// The oldest revision that can be read; 0 before the first compaction.
    compacted: u64,
    /// How many bytes of keys and values it holds, and may.
    used: u64,
    quota: u64,
}

#[derive(Serialize)]
struct Member<'a> {
    id: u8,
    name: &'a str,
    role: &'static str,
    reachable: bool,
    prepared: u64,
    committed: u64,
    executed: u64,
    lag: u64,
    correct: u64,
    corrupt: u64,
    evidence: u64,
    faults: &'a [String],
    version: &'a str,
}

impl<'a> Body<'a> {
    fn new(status: &'a Status, forming: Option<&Forming>) -> Self {
        let newest = newest(status);
        let of = &status.cluster;
        let cluster = Cluster {
            name: &of.name,
            id: &of.id,
            fingerprint: fingerprint_of(&of.id),
            protocol: of.protocol.to_string(),
            next_protocol: of.next_protocol.to_string(),
            faults: match of.protocol.row().faults {
                Faults::Byzantine => "byzantine",
                Faults::Crash => "crash",
            },
            state: of.state.word(),
            n: of.n,
            f: of.f,
            tolerates: of.tolerates,
            epoch: of.epoch,
            term: of.term,
            leader: of.leader,
            committed: of.committed,
            executed: of.executed,
            state_digest: &of.state_digest,
            revision: of.revision,
            compacted: of.compacted,
            used: of.used,
            quota: of.quota,
        };
        let member = |member: &'a MemberStatus| Member {
            id: member.id,
            name: &member.name,
            role: role(member),
            reachable: member.reachable,
            prepared: member.prepared,
            committed: member.committed,
            executed: member.executed,
            lag: newest.saturating_sub(member.executed),
            correct: member.correct,
            corrupt: member.corrupt,
            evidence: member.evidence,
            faults: &member.faults,
            version: &member.version,
        };
        Self {
            cluster,
            me: status.me,
            members: status.members.iter().map(member).collect(),
            hints: &status.hints,
            disk: quota::Disk::from(status.disk),
            forming: forming.map(forming::json),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bftd_client::DiskUse;

    use super::*;

    fn status() -> Status {
        let member = |id: u8, reachable, executed| MemberStatus {
            id,
            name: format!("node{id}"),
            leads: id == 2,
            reachable,
            prepared: 1042,
            committed: 1042,
            executed,
            correct: 40,
            corrupt: 1,
            evidence: 0,
            faults: if id == 1 { vec!["slow".to_owned()] } else { vec![] },
            version: "0.1.0".to_owned(),
        };
        Status {
            cluster: ClusterStatus {
                name: "demo".to_owned(),
                id: "c0".to_owned(),
                protocol: Protocol::BftRaft,
                state: Health::Degraded,
                n: 4,
                f: 1,
                tolerates: 1,
                epoch: 0,
                term: 7,
                leader: 2,
                committed: 1042,
                executed: 1042,
                state_digest: "d0".to_owned(),
                next_protocol: Protocol::BftRaft,
                revision: 57,
                compacted: 0,
                used: 12 << 20,
                quota: 8 << 30,
            },
            me: 1,
            members: vec![member(1, true, 1042), member(2, true, 1042), member(3, false, 1000)],
            hints: vec!["start node3".to_owned()],
            disk: DiskUse { state: 96 << 20, log: 3 << 29 },
        }
    }

    #[test]
    fn the_first_line_says_it_all_and_hints_end_it() {
        let text = text(&status(), None, Paint::OFF);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "● demo DEGRADED 2/4 members, tolerates 1 fault · term 7 · leader node2 · block 1042 · revision 57"
        );
        assert_eq!(lines[1], "");
        assert!(lines[2].trim_start().starts_with("ID"), "{text}");
        let third: Vec<_> = lines[5].split_whitespace().collect();
        assert_eq!(
            third,
            ["3", "node3", "follower", "NO", "1042", "1042", "1000", "42", "40", "1", "0", "-", "0.1.0"]
        );
        let store =
            "store: 12.0 MiB of 8.0 GiB used · 0 % · on this host's disk 96.0 MiB, and 1.5 GiB of log";
        assert_eq!(lines[lines.len() - 3..], [store, "", "hint: start node3"]);
        let mut status = status();
        status.cluster.compacted = 40;
        let text = super::text(&status, None, Paint::OFF);
        assert!(
            text.lines().next().unwrap().ends_with(" · block 1042 · revision 57 (readable from 40)"),
            "{text}"
        );
        status.cluster.revision = 0;
        assert!(!super::text(&status, None, Paint::OFF).contains("revision"));
    }

    #[test]
    fn raft_is_not_taken_for_more_and_what_comes_is_shown() {
        let mut status = status();
        (status.cluster.protocol, status.cluster.next_protocol) = (Protocol::Raft, Protocol::Raft);
        let said = text(&status, None, Paint::OFF);
        assert!(said.contains("tolerates 1 crash ·") && said.contains("\nprotocol raft\n"), "{said}");
        status.cluster.tolerates = 2;
        assert!(text(&status, None, Paint::OFF).contains("tolerates 2 crashes ·"));
        let json = serde_json::to_value(Body::new(&status, None)).unwrap();
        assert_eq!(json["cluster"]["faults"], "crash");
        (status.cluster.protocol, status.cluster.next_protocol) = (Protocol::BftRaft, Protocol::Ccro);
        let said = text(&status, None, Paint::OFF);
        assert!(said.contains("tolerates 2 faults ·"), "{said}");
        assert!(said.contains("\nprotocol bft-raft, ccro from the next term on\n"), "{said}");
    }

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let json = serde_json::to_value(Body::new(&status(), None)).unwrap();
        assert_eq!(json["cluster"]["state"], "DEGRADED");
        assert_eq!(json["cluster"]["protocol"], "bft-raft");
        assert_eq!(json["self"], 1);
        assert_eq!(json["members"][1]["role"], "leader");
        assert_eq!(json["members"][2]["lag"], 42);
        assert_eq!(json["members"][0]["faults"][0], "slow");
        assert_eq!((&json["disk"]["state"], &json["disk"]["log"]), (&(96 << 20).into(), &(3 << 29).into()));
        for field in [
            "name",
            "id",
            "n",
            "f",
            "tolerates",
            "epoch",
            "term",
            "leader",
            "committed",
            "executed",
            "state_digest",
            "revision",
            "compacted",
            "used",
            "quota",
        ] {
            assert!(!json["cluster"][field].is_null(), "{field}");
        }
    }
}
