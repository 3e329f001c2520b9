#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bftd_core::{
    crypto::{Ed25519, Ed25519Signer, Signer},
    ids::{Epoch, Index},
    limits::Timing,
    membership::{Genesis, Member, Membership},
    message::{FetchCommitted, Heartbeat},
    protocol::Protocol,
    verify::Verifier,
};

use super::*;

/// Four members that nobody can reach.
pub(crate) fn members() -> Arc<Membership> {
    let members = (1..=4).map(|id| Member {
        id: MemberId(id),
        name: format!("node{id}"),
        key: Ed25519Signer::from_seed(&[id; 32]).public_key(),
        address: "127.0.0.1:1".parse().unwrap(),
    });
    let genesis = Genesis {
        name: "test".into(),
        protocol: Protocol::BftRaft,
        created_ms: 0,
        members: members.collect(),
    };
    Arc::new(genesis.membership().unwrap())
}

/// The faults of member 2.
pub(crate) fn faults(is_enabled: bool) -> Faults {
    let members = members();
    let liar = Liar {
        me: MemberId(2),
        verifier: Arc::new(Verifier::new(Arc::clone(&members), Arc::new(Ed25519))),
        members,
        signer: Arc::new(Ed25519Signer::from_seed(&[2; 32])),
        timing: Timing::default(),
    };
    Faults::new(liar, is_enabled)
}

fn start(fault: &str, for_ms: Option<u64>) -> FaultChange {
    FaultChange::Start { fault: fault.to_owned(), for_ms }
}

fn message() -> Message {
    Message::FetchCommitted(FetchCommitted { after: Index(1) })
}

const NOW: Now = Now { monotonic_us: 1, unix_ms: 5 };

#[test]
fn a_daemon_takes_no_faults_unless_its_own_configuration_says_so() {
    let faults = faults(false);
    for change in [start("silent", None), FaultChange::Clear] {
        assert_eq!(faults.change(&change), Err(Failure::FaultsDisabled { node: 2 }));
    }
    assert!(!faults.any());
}

#[test]
fn what_is_injected_is_named_and_what_is_unknown_refused() {
    let faults = faults(true);
    for name in ["malicious", "delay=200ms", "link=3", "offline"] {
        faults.change(&start(name, None)).unwrap();
    }
    faults.change(&start("malicious", None)).unwrap();
    assert_eq!(faults.names(), ["delay=200ms", "link=3", "offline", "malicious"]);
    let long = "x".repeat(MAX_NAME + 1);
    let unknown =
        ["lazy", "link=2", "link=9", "link=x", "delay=", "drop=200%", "amnesia", "link=\x1b[2J", "é", &long];
    for name in unknown {
        let Err(Failure::UnknownFault(text)) = faults.change(&start(name, None)) else { panic!("{name}") };
        assert!(is_printable(&text), "{text}");
    }
    let Err(Failure::UnknownFault(text)) = faults.change(&start("lazy", None)) else { panic!("refused") };
    assert!(text.contains("equivocate") && text.contains("offline"), "{text}");
    faults.change(&FaultChange::Clear).unwrap();
    assert!(faults.names().is_empty() && !faults.any());
    assert_eq!(faults.outgoing(MemberId(1), &message()), [Parcel::now(MemberId(1), message())]);
}

#[test]
fn a_link_is_cut_both_ways_and_alone() {
    let faults = faults(true);
    faults.change(&start("link=3", None)).unwrap();
    assert!(faults.is_cut(MemberId(3)) && !faults.is_cut(MemberId(1)));
    assert_eq!(faults.outgoing(MemberId(3), &message()), []);
    assert_eq!(faults.outgoing(MemberId(1), &message()).len(), 1);
    assert!(!faults.incoming(MemberId(3), &message()).0);
    assert!(faults.incoming(MemberId(1), &message()).0);
}

#[test]
fn who_is_offline_neither_hears_nor_speaks_and_who_is_silent_hears() {
    for (name, hears) in [("offline", false), ("silent", true)] {
        let faults = faults(true);
        faults.change(&start(name, None)).unwrap();
        assert_eq!(faults.outgoing(MemberId(1), &message()), []);
        assert_eq!(faults.incoming(MemberId(1), &message()).0, hears, "{name}");
    }
}

#[test]
fn lies_pass_one_after_the_other() {
    let faults = faults(true);
    for name in ["delay=200ms", "slow", "delay=100ms"] {
        faults.change(&start(name, None)).unwrap();
    }
    let certificates = bftd_core::message::Certificates::default();
    let heartbeat = Message::Heartbeat(Heartbeat {
        epoch: Epoch(0),
        term: bftd_core::ids::Term(1),
        number: 1,
        certificates,
    });
    let parcels = faults.outgoing(MemberId(1), &heartbeat);
    assert!(parcels.iter().all(|parcel| parcel.delay_us >= 300_000), "{parcels:?}");
}

#[test]
fn a_fault_ends_when_its_time_is_over() {
    let faults = faults(true);
    faults.change(&start("silent", Some(0))).unwrap();
    faults.change(&start("drop=30%", None)).unwrap();
    faults.tick(NOW);
    assert_eq!(faults.names(), ["drop=30%"]);
    assert_eq!(faults.clock(NOW), NOW);
}

#[test]
fn a_lie_that_is_too_large_for_the_transport_stays_here() {
    let faults = faults(true);
    let (at_limit, over) = (vec![0; MAX_MESSAGE], vec![0; MAX_MESSAGE + 1]);
    let to = MemberId(1);
    let parcels = vec![Parcel::bytes(to, over), Parcel::bytes(to, at_limit.clone())];
    assert_eq!(faults.sendable(parcels), [Parcel::bytes(to, at_limit)]);
}
