//! Who is let in, and what genesis comes of it.
#![allow(clippy::unwrap_used)]

use super::*;

const NOW: u64 = 1_700_000_000_000;

fn candidate(n: u8) -> Candidate {
    Candidate {
        name: format!("host{n}"),
        key: PublicKey([n; 32]),
        address: format!("10.0.0.{n}:7000").parse().unwrap(),
    }
}

fn gathering(expect: u8) -> Gathering {
    Gathering {
        name: "prod".to_owned(),
        protocol: Protocol::BftRaft,
        expect,
        created_ms: NOW,
        members: vec![candidate(1)],
        tokens: Vec::new(),
    }
}

fn claim<'a>(candidate: &'a Candidate, by: &'a Invitation) -> Claim<'a> {
    Claim { candidate, token: by.id, secret: &by.secret, clock_ms: NOW }
}

#[test]
fn a_plan_is_kept_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(Plan::load(directory.path()).unwrap(), None);
    let mut gathering = gathering(4);
    let (invitation, _) = gathering.invite(3600, 3, NOW).unwrap();
    assert!(gathering.record(&claim(&candidate(2), &invitation)));
    let plan = Plan::Gathering(gathering);
    plan.store(directory.path()).unwrap();
    assert_eq!(Plan::load(directory.path()).unwrap(), Some(plan));
    let text = std::fs::read_to_string(directory.path().join(PLAN_FILE)).unwrap();
    assert!(!text.contains(&invitation.to_token()), "the secret is not kept");

    let joining =
        Plan::Joining(Joining { token: "t".into(), name: "b".into(), address: "[::1]:1".parse().unwrap() });
    joining.store(directory.path()).unwrap();
    assert_eq!(Plan::load(directory.path()).unwrap(), Some(joining));
    std::fs::write(directory.path().join(PLAN_FILE), "[gathering]\nname = 7\n").unwrap();
    assert!(Plan::load(directory.path()).unwrap_err().to_string().contains("line 2"));
    Plan::forget(directory.path()).unwrap();
    assert_eq!(Plan::load(directory.path()).unwrap(), None);
}

#[test]
fn each_reason_to_refuse_has_its_own_name() {
    let mut gathering = gathering(4);
    let (invitation, _) = gathering.invite(60, 1, NOW).unwrap();
    let two = candidate(2);
    let good = claim(&two, &invitation);
    assert_eq!(gathering.check(&good, NOW), Ok(()));

    let strange = Invitation::new(PublicKey([1; 32]), two.address, "prod");
    assert_eq!(gathering.check(&claim(&two, &strange), NOW), Err(FormFailure::UnknownToken));
    let guessed = Claim { secret: &strange.secret, clock_ms: 0, ..good };
    assert_eq!(gathering.check(&guessed, NOW), Err(FormFailure::UnknownToken), "nothing else is told");

    for ahead_ms in [2_001, -2_001, 86_400_000] {
        let off = Claim { clock_ms: NOW.checked_add_signed(ahead_ms).unwrap(), ..good };
        assert_eq!(gathering.check(&off, NOW), Err(FormFailure::ClockOff { ahead_ms }));
    }
    let near = Claim { clock_ms: NOW + 2_000, ..good };
    assert_eq!(gathering.check(&near, NOW), Ok(()));

    let later = |ms| gathering.check(&Claim { clock_ms: NOW + ms, ..good }, NOW + ms);
    assert_eq!(later(59_999), Ok(()));
    assert_eq!(later(60_000), Err(FormFailure::TokenExpired { ago_s: 0 }));
    assert_eq!(later(3_660_000), Err(FormFailure::TokenExpired { ago_s: 3_600 }));

    let twin = Candidate { name: "host1".into(), ..two.clone() };
    let taken = FormFailure::NameTaken { name: "host1".into(), key: PublicKey([1; 32]) };
    assert_eq!(gathering.check(&claim(&twin, &invitation), NOW), Err(taken));
    let twin = Candidate { address: candidate(1).address, ..two.clone() };
    let taken = FormFailure::AddressTaken { address: twin.address, name: "host1".into() };
    assert_eq!(gathering.check(&claim(&twin, &invitation), NOW), Err(taken));
    for name in ["", "a b", "ü", "\u{1b}[2J", &"x".repeat(65)] {
        let bad = Candidate { name: name.into(), ..two.clone() };
        let refused = gathering.check(&claim(&bad, &invitation), NOW).unwrap_err();
        assert!(matches!(&refused, FormFailure::BadName { name, .. } if name.len() <= 64), "{refused}");
    }
}

#[test]
fn a_token_counts_hosts_and_a_member_needs_it_no_more() {
    let mut gathering = gathering(4);
    let (invitation, _) = gathering.invite(60, 1, NOW).unwrap();
    let (two, three) = (candidate(2), candidate(3));
    assert!(gathering.record(&claim(&two, &invitation)));
    assert!(!gathering.record(&claim(&two, &invitation)), "asked again, nothing is new");
    assert_eq!(gathering.check(&claim(&two, &invitation), NOW), Ok(()));
    assert_eq!(gathering.check(&claim(&three, &invitation), NOW), Err(FormFailure::TokenUsedUp { uses: 1 }));
    let late = Claim { clock_ms: NOW + 90_000, ..claim(&two, &invitation) };
    assert_eq!(gathering.check(&late, NOW + 90_000), Ok(()), "who is in stays in");

    let moved = Candidate { address: "10.0.0.9:7000".parse().unwrap(), ..two.clone() };
    assert!(gathering.record(&claim(&moved, &invitation)));
    assert_eq!(gathering.members.len(), 2);
    assert_eq!(gathering.members[1], moved);

    assert_eq!(gathering.remove("host1"), None, "who gathers stays");
    assert!(gathering.remove("host2").is_some());
    assert_eq!(
        gathering.check(&claim(&two, &invitation), NOW),
        Err(FormFailure::UnknownToken),
        "nor can it come back"
    );
    assert_eq!(gathering.remove("host2"), None);
}

#[test]
fn tokens_are_bounded_and_expired_ones_make_room() {
    let mut gathering = gathering(4);
    for _ in 0..MAX_TOKENS {
        gathering.invite(60, 1, NOW).unwrap();
    }
    assert_eq!(gathering.invite(60, 1, NOW).unwrap_err(), FormFailure::TooManyTokens(64));
    gathering.invite(60, 1, NOW + 60_000).unwrap();
    assert_eq!(gathering.tokens.len(), 1);
    let (_, expires_ms) = gathering.invite(u64::MAX, 1, NOW).unwrap();
    assert_eq!(expires_ms, i64::MAX as u64, "a file can keep it");
}

#[test]
fn the_genesis_is_the_same_whoever_came_first() {
    let form = |order: [u8; 3]| {
        let mut gathering = gathering(4);
        let (invitation, _) = gathering.invite(60, 3, NOW).unwrap();
        for n in order {
            assert_eq!(gathering.genesis(), None);
            let candidate = candidate(n);
            assert_eq!(gathering.check(&claim(&candidate, &invitation), NOW), Ok(()));
            gathering.record(&claim(&candidate, &invitation));
        }
        let five = candidate(5);
        let (another, _) = gathering.invite(60, 3, NOW).unwrap();
        assert_eq!(gathering.check(&claim(&five, &another), NOW), Err(FormFailure::Full { expect: 4 }));
        gathering.genesis().unwrap()
    };
    let genesis = form([2, 3, 4]);
    assert_eq!(genesis, form([4, 2, 3]));
    let names: Vec<_> = genesis.members.iter().map(|member| (member.id.0, member.name.as_str())).collect();
    assert_eq!(names, [(1, "host1"), (2, "host2"), (3, "host3"), (4, "host4")]);
    assert!(genesis.membership().is_ok());
}
