//! Runs for people.

use bftd_sim::lab::{NodeTally, Report};

use crate::render;

/// Runs of at most so many members show all of them.
const FEW: usize = 16;

pub(super) fn text(reports: &[Report], per_node: bool) -> String {
    let header = [
        "PROTOCOL", "N", "F", "FAULTY", "COMMITTED", "EQUAL", "P50 MS", "P99 MS", "HOPS", "MESSAGES", "KB", "SIGNED",
        "CHECKED", "TERMS", "CPU S",
    ];
    let numbers: Vec<usize> = (0..header.len()).filter(|at| ![0, 3, 5].contains(at)).collect();
    let table = render::table(&header, &numbers, reports.iter().map(row).collect());
    let members = reports.iter().map(|report| members(report, per_node)).filter(|text| !text.is_empty());
    [table].into_iter().chain(members).collect::<Vec<_>>().join("\n\n")
}

/// The median of the consensus time in milliseconds; `-` without a commit.
pub(super) fn p50(report: &Report) -> String {
    ms(report.consensus_time_ms.map(|time| time.p50))
}

fn row(report: &Report) -> Vec<String> {
    let faulty: Vec<_> = report.faulty.iter().map(|(how, count)| format!("{count} {how}")).collect();
    vec![
        report.protocol.to_string(),
        report.nodes.to_string(),
        report.f.to_string(),
        if faulty.is_empty() { "-".to_owned() } else { faulty.join(", ") },
        format!("{}/{}", report.committed, report.requests),
        if report.agreement { "yes" } else { "NO" }.to_owned(),
        p50(report),
        ms(report.consensus_time_ms.map(|time| time.p99)),
        report.hops.map_or_else(|| "-".to_owned(), |hops| hops.to_string()),
        short(report.messages_per_commit),
        short(report.bytes_per_commit / 1_000.0),
        short(report.signatures_per_commit),
        short(report.verifications_per_commit),
        report.term_changes.to_string(),
        format!("{:.2}", report.cpu_seconds),
    ]
}

fn ms(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"))
}

/// A count a commit: whole where it is.
fn short(number: f64) -> String {
    if number.fract().abs() < 5e-3 || number >= 10_000.0 { format!("{number:.0}") } else { format!("{number:.2}") }
}

fn members(report: &Report, per_node: bool) -> String {
    let are_all = per_node || report.nodes_tally.len() <= FEW;
    let is_faulty = |tally: &&NodeTally| report.faulty_members.values().any(|ids| ids.contains(&tally.id));
    let shown: Vec<_> = report.nodes_tally.iter().filter(|tally| are_all || is_faulty(tally)).collect();
    if shown.is_empty() {
        return String::new();
    }
    let line = |tally: &&NodeTally| {
        let how = report.faulty_members.iter().find(|(_, ids)| ids.contains(&tally.id));
        let found = |corrupt: u64| if corrupt > 0 { format!(", {} seen through", tally.found) } else { String::new() };
        let how = how.map_or_else(String::new, |(how, _)| format!(" ({how}{})", found(tally.corrupt)));
        format!("Node {} -> {} correct {} corrupt{how}", tally.id, tally.correct, tally.corrupt)
    };
    let mut lines = vec![format!("{}, {} members:", report.protocol, report.nodes)];
    lines.extend(shown.iter().map(line));
    if !are_all {
        lines.push(format!("({} correct members more: --per-node)", report.nodes_tally.len() - shown.len()));
    }
    lines.join("\n")
}
