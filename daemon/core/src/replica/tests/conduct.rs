//! What becomes of leaders that lose or spoil what they send, and of those that don't.

use super::*;

/// Loses a share of messages, always the same ones.
struct Loss(u64);

impl Loss {
    fn strikes(&mut self, percent: u64) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % 100 < percent
    }
}

impl Cluster {
    /// Clients ask all members for something all the time. `loses` says what gets lost.
    fn load(&mut self, ms: u64, mut loses: impl FnMut(u8) -> bool) {
        for _ in 0..ms / TICK_MS {
            for n in self.members.ids().map(|id| id.0).collect::<Vec<_>>() {
                if self.nodes[&id(n)].replica.as_ref().unwrap().may_submit() {
                    self.submit(n, "x");
                }
            }
            self.tick();
            self.settle_through(|from, _, message| (!loses(from)).then_some(message));
        }
    }

    fn refuse(&mut self, from: u8, count: u32) {
        for n in self.members.ids().filter(|to| *to != id(from)).collect::<Vec<_>>() {
            self.step(n, Input::Refused(id(from), count));
        }
    }

    fn buckets(&self) -> Vec<u64> {
        self.nodes.values().map(|node| node.replica.as_ref().unwrap().conduct.bucket).collect()
    }
}

#[test]
fn a_correct_leader_under_load_does_not_lapse() {
    let default = Timing::default().worth_a_block;
    // With two rounds it shows what it gathered, where the row has it gather.
    let rows = [
        (Protocol::BftRaft, true, 1),
        (Protocol::BftRaft, true, default),
        (Protocol::BftRaft, false, default),
        (Protocol::Pbft, false, default),
        (Protocol::Ccro, false, default),
    ];
    for (protocol, one_round, worth_a_block) in rows {
        let mut cluster = Cluster::of(protocol, 4, one_round);
        cluster.timing.worth_a_block = worth_a_block;
        for n in 1..=4 {
            cluster.crash(n);
            cluster.start(n);
        }
        // Who led before it restarted is left.
        cluster.run(1_000);
        let term = cluster.status(2).term;
        for _ in 0..300 {
            cluster.load(100, |_| false);
            assert_eq!(cluster.buckets(), [0; 4], "{protocol}");
        }
        assert_eq!(cluster.status(2).term, term);
        assert!(cluster.requests(2).len() > 2_000);
    }
}

#[test]
fn a_leader_that_loses_much_is_left_while_blocks_commit() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(4);
        let mut loss = Loss(seed);
        let mut tenths = 0;
        while cluster.status(2).term == Term(0) {
            cluster.load(100, |from| from == 1 && loss.strikes(30));
            tenths += 1;
            assert!(tenths <= 50, "seed {seed}: {:?}", cluster.status(2));
        }
        // Of the members that take turns one is bad: the next one keeps its term.
        cluster.load(20_000, |from| from == 1 && loss.strikes(30));
        assert_eq!(cluster.status(2).term, Term(1), "seed {seed}");
        assert!(cluster.requests(2).len() > 500, "seed {seed}");
    }
}

#[test]
fn where_the_network_loses_much_terms_get_long() {
    let mut cluster = Cluster::new(4);
    let mut loss = Loss(0);
    let mut terms = Vec::new();
    for _ in 0..6 {
        let (term, count) = (cluster.status(2).term.0, cluster.requests(2).len());
        cluster.load(60_000, |_| loss.strikes(8));
        terms.push(cluster.status(2).term.0 - term);
        assert!(cluster.requests(2).len() > count + 100, "{terms:?}");
    }
    let late: u64 = terms.iter().skip(3).sum();
    assert!(late <= 3, "{terms:?}");
}

#[test]
fn a_leader_that_spoils_much_is_left() {
    let mut cluster = Cluster::new(4);
    cluster.refuse(1, 2);
    cluster.run(200);
    assert_eq!(cluster.status(2).suspecting, None, "it is not much");
    cluster.refuse(1, 2);
    cluster.run(200);
    for n in 1..=4 {
        assert_eq!(cluster.status(n).term, Term(1), "at node {n}");
    }
    cluster.submit(1, "x");
    cluster.run(1_000);
    assert_eq!(cluster.requests(1), ["x"]);
}

#[test]
fn what_followers_spoil_is_not_held_against_the_leader() {
    let mut cluster = Cluster::new(4);
    for _ in 0..50 {
        cluster.refuse(3, 100);
        cluster.run(100);
    }
    assert_eq!(cluster.buckets(), [0; 4]);
    assert_eq!(cluster.status(2).term, Term(0));
}

#[test]
fn one_bad_connection_moves_nobody() {
    let mut cluster = Cluster::new(4);
    for _ in 0..100 {
        cluster.step(id(4), Input::Refused(id(1), 100));
        cluster.load(100, |_| false);
    }
    assert!(cluster.status(4).suspecting.is_some());
    assert_eq!(cluster.status(2).term, Term(0));
    cluster.run(2_000);
    assert_eq!(cluster.status(4).suspecting, None, "it was made good");
}

#[test]
fn a_leader_that_gets_slow_is_left_although_it_is_in_time() {
    let mut cluster = Cluster::new(4);
    cluster.load(5_000, |_| false);
    assert_eq!(cluster.status(2).term, Term(0));
    // What the leader says comes late by 200 ms, and the time-out is 600.
    let mut late: VecDeque<(u64, u8, Message)> = VecDeque::new();
    for _ in 0..20_000 / TICK_MS {
        let now_us = cluster.now.monotonic_us;
        while let Some((_, to, message)) = late.pop_front_if(|(due_us, ..)| *due_us <= now_us) {
            cluster.hear(1, to, message);
        }
        for n in 1..=4 {
            if cluster.nodes[&id(n)].replica.as_ref().unwrap().may_submit() {
                cluster.submit(n, "x");
            }
        }
        cluster.tick();
        cluster.settle_through(|from, to, message| {
            if from != 1 {
                return Some(message);
            }
            late.push_back((now_us + 200_000, to, message));
            None
        });
        if cluster.status(2).term > Term(0) {
            return;
        }
    }
    panic!("{:?} {:?}", cluster.status(2), cluster.buckets());
}
