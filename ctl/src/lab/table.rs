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
    let notes = reports.iter().map(notes).filter(|text| !text.is_empty());
    [table].into_iter().chain(members).chain(notes).collect::<Vec<_>>().join("\n\n")
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

/// Correct members that differ, have stopped, or lag at the end: three things that are not the same.
fn notes(report: &Report) -> String {
    let name = format!("{}, {} members", report.protocol, report.nodes);
    let parted = report.disagreement_at.map(|index| {
        format!("{name}: correct members have executed different blocks, or got different states, at block {index}")
    });
    let stopped = report.stopped.iter().map(|it| format!("{name}: node {} stopped: {}", it.id, it.why));
    let lagging = report.lagging.iter().map(|it| {
        let blocks = if it.blocks == 1 { "block" } else { "blocks" };
        format!("{name}: node {} lags by {} {blocks}", it.id, it.blocks)
    });
    parted.into_iter().chain(stopped).chain(lagging).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use bftd_client::genesis::Protocol;
    use bftd_sim::lab::{Experiment, Lagging, Stopped};

    use super::*;

    #[test]
    fn who_lags_or_has_stopped_is_named() {
        let run = Experiment { requests: 1, ..Experiment::new(Protocol::Pbft, 4) };
        let report = run.run(&|| {}).expect("it can be made");
        let all_well = text(std::slice::from_ref(&report), false);
        assert!(!all_well.contains("lags") && !all_well.contains("stopped"), "{all_well}");
        let lagging = vec![Lagging { id: 3, blocks: 1 }, Lagging { id: 4, blocks: 2 }];
        let stopped = vec![Stopped { id: 2, why: "more than f".to_owned() }];
        let text = text(&[Report { lagging, stopped, disagreement_at: Some(7), ..report }], false);
        let notes: Vec<_> = text.lines().rev().take(4).collect();
        assert_eq!(
            notes,
            [
                "pbft, 4 members: node 4 lags by 2 blocks",
                "pbft, 4 members: node 3 lags by 1 block",
                "pbft, 4 members: node 2 stopped: more than f",
                "pbft, 4 members: correct members have executed different blocks, or got different states, at block 7",
            ]
        );
    }

    #[test]
    fn counts_are_whole_where_they_are() {
        let shown = [Some(19.0), Some(26.8), Some(16_511.5), Some(0.999), None].map(short);
        assert_eq!(shown, ["19", "26.80", "16512", "1.00", "-"]);
    }
}
