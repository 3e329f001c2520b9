#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn smoke() {
    for protocol in [Protocol::BftRaft, Protocol::Pbft] {
        for nodes in [1, 4, 31, 100] {
            let report = Experiment::new(protocol, nodes).run(&|| {}).unwrap();
            println!("{protocol} {nodes} {:?} delays {:?} m {} b {} s {} v {} terms {} agr {} com {} cpu {:.2} {:?} idle {}", report.consensus_time_ms, report.delays, report.messages_per_commit, report.bytes_per_commit, report.signatures_per_commit, report.verifications_per_commit, report.term_changes, report.agreement, report.committed, report.cpu_seconds, report.messages_by_kind, report.idle_messages_per_second);
        }
    }
}
