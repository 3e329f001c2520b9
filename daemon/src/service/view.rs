//! How the cluster is, judged by what is known of each member.

use std::collections::BTreeSet;

use bftd_client::protocol::{Health, MemberStatus};

/// What is known.
pub(super) struct View<'a> {
    pub members: &'a [MemberStatus],
    pub quorum: usize,
    /// Whether all agree on the term, it is open, and something was committed.
    pub is_settled: bool,
    /// Members that are not heard of.
    pub down: BTreeSet<u8>,
    /// Members that were proved to lie a short time ago.
    pub proved: BTreeSet<u8>,
}

impl View<'_> {
    /// How the cluster is.
    pub fn health(&self) -> Health {
        let is_well = |member: &MemberStatus| member.reachable && member.faults.is_empty();
        if self.reachable().count() < self.quorum {
            Health::NoQuorum
        } else if self.is_settled && self.members.iter().all(is_well) {
            Health::Healthy
        } else {
            Health::Degraded
        }
    }

    /// How many more members may fail before writes stop. Those that are known to be faulty are not counted on.
    pub fn tolerates(&self) -> u64 {
        let is_faulty =
            |member: &&MemberStatus| !member.faults.is_empty() || self.proved.contains(&member.id);
        let sound = self.reachable().filter(|member| !is_faulty(member)).count();
        sound.saturating_sub(self.quorum) as u64
    }

    /// What an operator could do.
    pub fn hints(&self) -> Vec<String> {
        let names = |is_one: &dyn Fn(&MemberStatus) -> bool| {
            let names =
                self.members.iter().filter(|member| is_one(member)).map(|member| member.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let down = names(&|member| self.down.contains(&member.id));
        let cut_off = names(&|member| !member.reachable && !self.down.contains(&member.id));
        let mut hints = Vec::new();
        if self.health() == Health::NoQuorum {
            let mut ways = Vec::new();
            if !cut_off.is_empty() {
                ways.push(format!("end the injected faults that keep {cut_off} away"));
            }
            if !down.is_empty() {
                ways.push(format!("start {down}, or mend the network to them"));
            }
            hints.push(format!(
                "nothing can be decided until {} members are reachable: {}",
                self.quorum,
                ways.join("; ")
            ));
        } else if !down.is_empty() {
            hints.push(format!("not heard of: {down}; see whether bftd runs there and UDP reaches it"));
        }
        let faulty = || self.members.iter().filter(|member| !member.faults.is_empty());
        if hints.is_empty() && !self.is_settled && faulty().next().is_none() {
            hints.push("the members are changing the term; ask again in a moment".to_owned());
        }
        hints.extend(faulty().map(|member| {
            let (name, faults, id) = (&member.name, member.faults.join(", "), member.id);
            format!("faults are injected at {name} ({faults}): bftctl inject clear --node {id} ends them")
        }));
        let accused = names(&|member| member.evidence > 0);
        if !accused.is_empty() {
            hints.push(format!("proved to have lied: {accused}; bftctl evidence ls shows how"));
        }
        hints
    }

    fn reachable(&self) -> impl Iterator<Item = &MemberStatus> {
        self.members.iter().filter(|member| member.reachable)
    }
}

/// What to do where the store is full, or nearly: from 80 % of its quota on.
pub fn hint_of_space(used: u64, quota: u64) -> Option<String> {
    let percent = used.saturating_mul(100) / quota.max(1);
    let ways = "delete keys and run bftctl compact --keep 1d, or raise the quota: bftctl quota --set SIZE";
    match percent {
        0..80 => None,
        80..100 => Some(format!("the store uses {percent} % of its quota; {ways}")),
        _ => Some(format!("the store is full, and refuses to put; {ways}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(n: u8) -> Vec<MemberStatus> {
        let member = |id| MemberStatus {
            id,
            name: format!("node{id}"),
            leads: id == 1,
            reachable: true,
            prepared: 1,
            committed: 1,
            executed: 1,
            correct: 1,
            corrupt: 0,
            evidence: 0,
            faults: Vec::new(),
            version: String::new(),
        };
        (1..=n).map(member).collect()
    }

    fn inject(member: &mut MemberStatus, fault: &str) {
        member.faults.push(fault.to_owned());
        member.reachable &= fault != "offline";
    }

    fn view(members: &[MemberStatus]) -> View<'_> {
        let quorum = members.len() - members.len().saturating_sub(1) / 3;
        View { members, quorum, is_settled: true, down: BTreeSet::new(), proved: BTreeSet::new() }
    }

    #[test]
    fn all_is_well() {
        let members = members(4);
        let view = view(&members);
        assert_eq!((view.health(), view.tolerates(), view.hints()), (Health::Healthy, 1, Vec::new()));
    }

    #[test]
    fn an_injected_fault_degrades_and_is_named_with_its_end() {
        for fault in ["malicious", "offline"] {
            let mut members = members(4);
            inject(&mut members[1], fault);
            let view = view(&members);
            assert_eq!((view.health(), view.tolerates()), (Health::Degraded, 0), "{fault}");
            let hint =
                format!("faults are injected at node2 ({fault}): bftctl inject clear --node 2 ends them");
            assert_eq!(view.hints(), [hint], "its daemon runs");
        }
    }

    #[test]
    fn a_liar_that_was_proved_lately_is_not_counted_on() {
        let mut members = members(7);
        members[2].evidence = 1;
        let view = View { proved: [3].into(), ..view(&members) };
        assert_eq!((view.health(), view.tolerates()), (Health::Healthy, 1));
        assert_eq!(view.hints(), ["proved to have lied: node3; bftctl evidence ls shows how"]);
    }

    #[test]
    fn who_is_down_shall_be_started_and_who_is_cut_off_let_go() {
        let mut members = members(4);
        members[3].reachable = false;
        let down = BTreeSet::from([4]);
        let view = View { down: down.clone(), ..view(&members) };
        assert_eq!((view.health(), view.tolerates()), (Health::Degraded, 0));
        assert_eq!(view.hints(), ["not heard of: node4; see whether bftd runs there and UDP reaches it"]);

        inject(&mut members[1], "offline");
        let view = View { down, ..self::view(&members) };
        assert_eq!((view.health(), view.tolerates()), (Health::NoQuorum, 0));
        let hints = view.hints();
        assert_eq!(
            hints[0],
            "nothing can be decided until 3 members are reachable: end the injected faults that keep node2 away; start node4, \
             or mend the network to them"
        );
        assert!(hints[1].ends_with("bftctl inject clear --node 2 ends them"), "{hints:?}");
    }

    #[test]
    fn a_change_of_the_term_passes() {
        let members = members(4);
        let view = View { is_settled: false, ..view(&members) };
        assert_eq!(view.health(), Health::Degraded);
        assert_eq!(view.hints(), ["the members are changing the term; ask again in a moment"]);
    }
}
