//! Runs as comma-separated values: a header, then a line a run. No field needs quotes: members, and the round trips of a site, have
//! blanks between them, and sites semicolons. New columns come last.

use std::fmt::Write;

use bftd_sim::lab::Report;

const COLUMNS: [&str; 43] = [
    "protocol",
    "nodes",
    "f",
    "quorum",
    "one_round",
    "offline",
    "malicious",
    "equivocate",
    "seed",
    "clients",
    "requests",
    "committed",
    "blocks",
    "agreement",
    "p50_ms",
    "p99_ms",
    "max_ms",
    "delays",
    "messages_per_commit",
    "bytes_per_commit",
    "signatures_per_commit",
    "verifications_per_commit",
    "term_changes",
    "virtual_seconds",
    "cpu_seconds",
    "value_size",
    "faulty_leader",
    "beyond_f",
    "offline_members",
    "malicious_members",
    "equivocate_members",
    "network",
    "rtt_ms",
    "jitter",
    "loss",
    "bandwidth_mbit",
    "sign_ns",
    "verify_ns",
    "message_ns",
    "fsync_ns",
    "disagreement_at",
    "lag",
    "stopped",
];

pub(super) fn text(reports: &[Report]) -> String {
    let mut text = COLUMNS.join(",");
    text.push('\n');
    for report in reports {
        let time = report.consensus_time_ms;
        let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{ms:.6}"));
        let each = |count: Option<f64>| count.map_or_else(String::new, |count| count.to_string());
        let faulty = |how| report.faulty.get(how).copied().unwrap_or_default().to_string();
        let members = |how| joined(report.faulty_members.get(how).into_iter().flatten(), " ");
        let (network, costs) = (&report.network, report.costs);
        let rtt_ms = network.rtt_ms().into_iter().map(|row| joined(row, " "));
        let lag = report.lagging.iter().map(|lagging| lagging.blocks).max().unwrap_or_default();
        let fields: [String; COLUMNS.len()] = [
            report.protocol.to_string(),
            report.nodes.to_string(),
            report.f.to_string(),
            report.quorum.to_string(),
            report.one_round.to_string(),
            faulty("offline"),
            faulty("malicious"),
            faulty("equivocate"),
            report.seed.to_string(),
            report.clients.to_string(),
            report.requests.to_string(),
            report.committed.to_string(),
            report.blocks.to_string(),
            report.agreement.to_string(),
            ms(time.map(|time| time.p50)),
            ms(time.map(|time| time.p99)),
            ms(time.map(|time| time.max)),
            each(report.delays),
            each(report.messages_per_commit),
            each(report.bytes_per_commit),
            each(report.signatures_per_commit),
            each(report.verifications_per_commit),
            report.term_changes.to_string(),
            format!("{:.6}", report.virtual_seconds),
            format!("{:.3}", report.cpu_seconds),
            report.value_size.to_string(),
            report.faulty_leader.to_string(),
            report.beyond_f.to_string(),
            members("offline"),
            members("malicious"),
            members("equivocate"),
            network.name().to_owned(),
            joined(rtt_ms, ";"),
            network.jitter().to_string(),
            network.loss().to_string(),
            each(network.bandwidth_mbit()),
            costs.sign_ns.to_string(),
            costs.verify_ns.to_string(),
            costs.message_ns.to_string(),
            costs.fsync_ns.to_string(),
            report.disagreement_at.map_or_else(String::new, |index| index.to_string()),
            lag.to_string(),
            report.stopped.len().to_string(),
        ];
        writeln!(text, "{}", fields.join(",")).expect("a text can be written to");
    }
    text
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>, between: &str) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(between)
}
