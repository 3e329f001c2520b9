//! Runs as comma-separated values: a header, then a line a run. No field needs quotes.

use std::fmt::Write;

use bftd_sim::lab::Report;

const COLUMNS: [&str; 25] = [
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
];

pub(super) fn text(reports: &[Report]) -> String {
    let mut text = COLUMNS.join(",");
    text.push('\n');
    for report in reports {
        let time = report.consensus_time_ms;
        let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{ms:.6}"));
        let each = |count: Option<f64>| count.map_or_else(String::new, |count| count.to_string());
        let faulty = |how| report.faulty.get(how).copied().unwrap_or_default().to_string();
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
        ];
        writeln!(text, "{}", fields.join(",")).expect("a text can be written to");
    }
    text
}
