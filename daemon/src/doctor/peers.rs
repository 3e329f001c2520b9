//! What a member sees of the others: whether packets come through both ways, whether clocks and versions agree.

use bftd_client::{
    forming::span,
    protocol::{Finding, Verdict},
};
use bftd_core::{
    limits::Timing,
    membership::{Member, Membership},
};

use super::{fail, finding, ok, unknown, warn};
use crate::{
    peers::Peers,
    transport::{PeerStatus, Transport},
};

/// Clocks that differ by more are worth a look, in milliseconds.
const CLOCK_DRIFT: i64 = 500;

pub(super) fn examine(members: &Membership, peers: &Peers, transport: &Transport) -> Vec<Finding> {
    let statuses = transport.peers();
    let name =
        |status: &PeerStatus| members.get(status.id).map(|member| (member.name.clone(), member.address));
    let mut findings: Vec<_> = statuses
        .iter()
        .filter_map(|status| name(status).map(|(name, address)| reach(status, &name, &address.to_string())))
        .collect();
    if findings.is_empty() {
        findings.push(ok("peers", "this is the only member"));
    }
    let known = |member: &&Member| peers.clock_ahead_ms(member.id).map(|ahead| (member.name.clone(), ahead));
    let clocks: Vec<_> = members.members().iter().filter_map(|member| known(&member)).collect();
    findings.push(clock(&clocks));
    let version = |member: &Member| {
        peers.clock_ahead_ms(member.id)?;
        Some((member.name.clone(), peers.progress(member.id).1.version))
    };
    let others: Vec<_> = members.members().iter().filter_map(version).collect();
    findings.push(versions(&others));
    findings
}

fn reach(status: &PeerStatus, name: &str, address: &str) -> Finding {
    match (status.connected, status.inbound) {
        (true, true) => {
            let time = status
                .round_trip
                .map_or_else(String::new, |it| format!(", {:.2} ms there and back", it.as_secs_f64() * 1e3));
            ok("peers", format!("{name} at {address} is connected both ways{time}"))
        }
        (true, false) => fail(
            "peers",
            format!("{name} at {address} is reached from here, but does not reach this host"),
            format!("at {name}: let UDP out to this host's address in the genesis; here: let it in"),
        ),
        (false, true) => fail(
            "peers",
            format!("{name} reaches this host, but is not reached at {address}"),
            format!(
                "here: let UDP out to {address}; at {name}: let it in, and see whether that address is its own"
            ),
        ),
        (false, false) => fail(
            "peers",
            format!("{name} at {address} is not connected"),
            format!(
                "see whether bftd runs at {name}, and whether UDP to {address} comes through; journalctl -u bftd says why it fails"
            ),
        ),
    }
}

/// By how much the clocks of others are ahead of ours, by their own word. What most of them say is believed.
fn clock(others: &[(String, i64)]) -> Finding {
    let mut sorted: Vec<_> = others.iter().map(|(_, ahead)| *ahead).collect();
    sorted.sort_unstable();
    let Some(median) = sorted.get(sorted.len() / 2).copied() else {
        return unknown("clock", "nothing to compare it with: no peer is heard of", "");
    };
    let limit = i64::try_from(Timing::default().max_ahead_ms).unwrap_or(i64::MAX);
    let remedy =
        "see whether time is synchronised: timedatectl; systemctl status chrony or systemd-timesyncd";
    let by = median.unsigned_abs();
    if median.abs() > CLOCK_DRIFT {
        let verdict = if median.abs() > limit { Verdict::Fail } else { Verdict::Warn };
        let word = if median > 0 { "behind" } else { "ahead of" };
        return finding(
            "clock",
            verdict,
            format!("this host's is {} {word} most peers'", seconds(by)),
            remedy,
        );
    }
    let off: Vec<_> = others.iter().filter(|(_, ahead)| (ahead - median).abs() > CLOCK_DRIFT).collect();
    if off.is_empty() {
        return ok("clock", format!("within {by} ms of most peers'"));
    }
    let told = off.iter().map(|(name, ahead)| {
        format!(
            "{name}'s is {} {} this host's",
            seconds(ahead.unsigned_abs()),
            if *ahead > 0 { "ahead of" } else { "behind" }
        )
    });
    warn("clock", told.collect::<Vec<_>>().join("; "), format!("there, {remedy}"))
}

fn seconds(ms: u64) -> String {
    if ms < 60_000 { format!("{}.{} s", ms / 1000, ms % 1000 / 100) } else { span(ms / 1000) }
}

fn versions(others: &[(String, String)]) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let different: Vec<_> = others.iter().filter(|(_, version)| version != own).collect();
    if different.is_empty() {
        return ok("versions", format!("{own} here and at the {} peers heard of", others.len()));
    }
    let told: Vec<_> = different.iter().map(|(name, version)| format!("{version} at {name}")).collect();
    warn(
        "versions",
        format!("{own} here, {}", told.join(", ")),
        "bring all members to one version, one host at a time",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(ahead: &[i64]) -> Vec<(String, i64)> {
        ahead.iter().enumerate().map(|(at, ahead)| (format!("node{}", at + 2), *ahead)).collect()
    }

    #[test]
    fn the_clock_is_judged_by_most_peers() {
        assert_eq!(clock(&[]).verdict, Verdict::Unknown);
        assert_eq!(clock(&others(&[3, -2, 9])).verdict, Verdict::Ok);
        let slow = clock(&others(&[3_100, 3_000, 0]));
        assert_eq!(
            (slow.verdict, slow.text.as_str()),
            (Verdict::Fail, "this host's is 3.0 s behind most peers'")
        );
        assert_eq!(clock(&others(&[-700, -900, -800])).verdict, Verdict::Warn);
        let liar = clock(&others(&[1, 7_200_000, -1]));
        assert_eq!(
            (liar.verdict, liar.text.as_str()),
            (Verdict::Warn, "node3's is 2 h ahead of this host's")
        );
    }

    #[test]
    fn other_versions_are_named() {
        let same = ("node2".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        assert_eq!(versions(std::slice::from_ref(&same)).verdict, Verdict::Ok);
        let found = versions(&[same, ("node3".to_owned(), "9.9.9".to_owned())]);
        assert_eq!(found.verdict, Verdict::Warn);
        assert!(found.text.ends_with("9.9.9 at node3"), "{found:?}");
    }
}
