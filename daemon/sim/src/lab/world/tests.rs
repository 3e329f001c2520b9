#![allow(clippy::unwrap_used)]
use bftd_core::protocol::Protocol;

use super::{
    super::report::{Lagging, Stopped},
    *,
};

#[test]
fn a_busy_member_looks_at_what_became_durable_first() {
    let experiment = Experiment::new(Protocol::BftRaft, 4);
    let mut world = World::new(&experiment, BTreeMap::new(), &|| {});
    world.begin();
    let id = MemberId(2);
    world.machine(id).busy_until_ns = u64::MAX;
    for item in [Item::Tick, Item::Due, Item::Synced] {
        world.take(id, item);
    }
    let inbox: Vec<_> = world.machine(id).inbox.iter().collect();
    assert!(matches!(inbox[..], [Item::Synced, Item::Tick, Item::Due]));
}

#[test]
fn a_member_that_can_not_keep_up_lags_and_does_not_differ() {
    for protocol in Protocol::ALL {
        // Members 2 and 3 are asked; member 4 is at work on something for ever.
        let experiment = Experiment { requests: 2, clients: 2, ..Experiment::new(protocol, 4) };
        let mut world = World::new(&experiment, BTreeMap::new(), &|| {});
        world.warm_up();
        world.machine(MemberId(4)).busy_until_ns = u64::MAX;
        let report = world.measure();
        assert_eq!(
            (report.committed, report.agreement, report.disagreement_at),
            (2, true, None),
            "{report:?}"
        );
        assert_eq!(report.lagging, [Lagging { id: 4, blocks: report.blocks }], "{report:?}");
        assert_eq!(report.stopped, [], "{report:?}");
    }
}

/// Four members, of which the leader tells two stories, and an ally votes for both: more than f.
fn divided(protocol: Protocol, one_round: bool) -> Report {
    let cast = BTreeMap::from([(MemberId(1), Misconduct::Equivocate), (MemberId(3), Misconduct::Equivocate)]);
    let experiment = Experiment { one_round, requests: 5, ..Experiment::new(protocol, 4) };
    let mut world = World::new(&experiment, cast, &|| {});
    world.warm_up();
    world.corrupt(MemberId(1), Fault::Divide, 1);
    world.corrupt(MemberId(3), Fault::DoubleVote, 1);
    world.measure()
}

#[test]
fn correct_members_that_see_two_stories_made_final_stop_and_say_why() {
    for protocol in [Protocol::BftRaft, Protocol::Pbft, Protocol::Ccro] {
        for one_round in [true, false] {
            let report = divided(protocol, one_round);
            let stopped: Vec<_> = report.stopped.iter().map(|it| it.id).collect();
            assert_eq!(stopped, [2, 4], "{report:?}");
            let says = |it: &Stopped| it.why.starts_with("more than f members are faulty: block");
            assert!(report.stopped.iter().all(says), "{report:?}");
            assert_eq!(report.lagging, [], "who has stopped does not lag: {report:?}");
            assert_eq!(report.agreement, report.disagreement_at.is_none(), "{report:?}");
            // Where members gather votes themselves they have executed when they hear of the other story.
            let has_parted = protocol == Protocol::Pbft;
            assert_eq!(report.disagreement_at, has_parted.then_some(2), "{report:?}");
        }
    }
}
