#![allow(clippy::unwrap_used)]
use bftd_core::protocol::Protocol;

use super::*;

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
