//! Runs for people.

use bftd_sim::lab::{NodeTally, Report};

use crate::render;

/// Where there are no more members over all runs, each has a line.
const FEW: usize = 16;

pub(super) fn text(reports: &[Report], per_node: bool) -> String {
    let header = [
        "PROTOCOL",
        "N",
        "F",
        "FAULTY",
        "COMMITTED",
        "EQUAL",
        "P50 MS",
        "P99 MS",
        "DELAYS",
        "MESSAGES",
        "KB",
        "SIGNED",
        "CHECKED",
        "TERMS",
        "CPU S",
    ];
    let numbers: Vec<usize> = (0..header.len()).filter(|at| ![0, 3, 5].contains(at)).collect();
    let table = render::table(&header, &numbers, reports.iter().map(row).collect());
    let are_all = per_node || reports.iter().map(|report| report.nodes_tally.len()).sum::<usize>() <= FEW;
    let members = reports.iter().map(|report| members(report, are_all)).filter(|text| !text.is_empty());
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
        short(report.delays),
        short(report.messages_per_commit),
        short(report.bytes_per_commit.map(|bytes| bytes / 1_000.0)),
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
fn short(number: Option<f64>) -> String {
    match number {
        None => "-".to_owned(),
        Some(number) if number.fract().abs() < 5e-3 || number >= 10_000.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.2}"),
    }
}

/// A line a member: for all of them, or for those that lied.
fn members(report: &Report, are_all: bool) -> String {
    let how = |tally: &NodeTally| {
        let mut kinds = report.faulty_members.iter();
        kinds.find(|(_, ids)| ids.contains(&tally.id)).map(|(how, _)| *how)
    };
    let lied =
        |tally: &&NodeTally| are_all || tally.corrupt > 0 || how(tally).is_some_and(|how| how != "offline");
    let shown: Vec<_> = report.nodes_tally.iter().filter(lied).collect();
    if shown.is_empty() {
        return String::new();
    }
    let line = |tally: &&NodeTally| {
        let note = match how(tally) {
            None => String::new(),
            Some(how) if tally.corrupt == 0 => format!(" ({how})"),
            Some(how) => format!(" ({how}, {} seen through)", tally.found),
        };
        format!("Node {} -> {} correct {} corrupt{note}", tally.id, tally.correct, tally.corrupt)
    };
    let mut lines = vec![format!("{}, {} members:", report.protocol, report.nodes)];
    lines.extend(shown.iter().map(line));
    if shown.len() < report.nodes_tally.len() {
        lines.push(format!("({} others: --per-node)", report.nodes_tally.len() - shown.len()));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_where_they_are() {
        let shown = [Some(19.0), Some(26.8), Some(16_511.5), Some(0.999), None].map(short);
        assert_eq!(shown, ["19", "26.80", "16512", "1.00", "-"]);
    }
}
