//! `put --trace`: what one agreement took, for people and for scripts.

use bftd_client::{NodeTally, Phase, Step, Trace};
use serde::Serialize;

use crate::render::printable;

/// How wide the names of the steps are, and two blanks.
const STEP_WIDTH: usize = 12;

/// A line a phase, the consensus time, a line a node.
pub(crate) fn text(trace: &Trace) -> String {
    let mut text = String::new();
    for (at, phase) in trace.phases.iter().enumerate() {
        if phase.step == Step::Committed {
            for missing in missing(trace.phases.get(..at).unwrap_or_default()) {
                text += &format!("  {:STEP_WIDTH$}not seen here\n", word(missing));
            }
        }
        let line =
            format!("  {:STEP_WIDTH$}{}  {}", word(phase.step), seconds(phase.at_us), said(phase, trace));
        text += line.trim_end();
        text.push('\n');
    }
    text += &format!("\nConsensus time: {}\n", seconds(trace.total_us));
    for node in &trace.nodes {
        let NodeTally { id, correct, corrupt, .. } = node;
        let own = if *id == trace.me { " (the node asked)" } else { "" };
        text += &format!("Node {id} -> {correct} correct {corrupt} corrupt{own}\n");
    }
    text
}

/// What must have happened somewhere before a block is committed, and is not among the phases before.
fn missing(before: &[Phase]) -> Vec<Step> {
    let has = |step: Step| before.iter().any(|phase| phase.step == step);
    let mut missing = Vec::new();
    if !has(Step::Proposed) && !has(Step::Accepted) {
        missing.push(Step::Accepted);
    }
    if !has(Step::Prepared) {
        missing.push(Step::Prepared);
    }
    missing
}

/// What a phase says beside its time: of which block, by whom.
fn said(phase: &Phase, trace: &Trace) -> String {
    let Some(at) = phase.block else { return String::new() };
    let block = format!("block {} of term {}", at.index, at.term);
    match phase.step {
        Step::Accepted => format!("{block}, proposed by {}", member(at.leader, trace)),
        Step::Prepared | Step::Committed => {
            let voters: Vec<_> = phase.voters.iter().map(|id| member(*id, trace)).collect();
            format!("{block}, voted: {}", voters.join(", "))
        }
        _ => block,
    }
}

/// A member's number, with its name where it is known.
fn member(id: u8, trace: &Trace) -> String {
    let name = trace.nodes.iter().find(|node| node.id == id).map_or("", |node| &node.name);
    format!("{id} {}", printable(name.as_bytes())).trim_end().to_owned()
}

fn word(step: Step) -> &'static str {
    match step {
        Step::Submitted => "submitted",
        Step::Renumbered => "renumbered",
        Step::Proposed => "proposed",
        Step::Accepted => "accepted",
        Step::Durable => "durable",
        Step::Prepared => "prepared",
        Step::Committed => "committed",
        Step::Executed => "executed",
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}s", us / 1_000_000, us % 1_000_000)
}

/// A trace as a JSON object.
#[derive(Serialize)]
pub(crate) struct Body<'a> {
    #[serde(rename = "self")]
    me: u8,
    consensus_time_us: u64,
    phases: Vec<Row<'a>>,
    nodes: Vec<Node<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'static str,
    at_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<u8>,
    #[serde(skip_serializing_if = "<[u8]>::is_empty")]
    voters: &'a [u8],
}

#[derive(Serialize)]
struct Node<'a> {
    id: u8,
    name: &'a str,
    correct: u64,
    corrupt: u64,
}

impl<'a> Body<'a> {
    pub(crate) fn new(trace: &'a Trace) -> Self {
        let row = |phase: &'a Phase| Row {
            name: word(phase.step),
            at_us: phase.at_us,
            block: phase.block.map(|at| at.index),
            term: phase.block.map(|at| at.term),
            leader: phase.block.map(|at| at.leader),
            voters: &phase.voters,
        };
        let node = |node: &'a NodeTally| Node {
            id: node.id,
            name: &node.name,
            correct: node.correct,
            corrupt: node.corrupt,
        };
        Self {
            me: trace.me,
            consensus_time_us: trace.total_us,
            phases: trace.phases.iter().map(row).collect(),
            nodes: trace.nodes.iter().map(node).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_with_microseconds() {
        assert_eq!(seconds(0), "0.000000s");
        assert_eq!(seconds(3_121), "0.003121s");
        assert_eq!(seconds(12_000_034), "12.000034s");
    }

    #[test]
    fn a_member_that_is_unknown_is_its_number_and_no_name_harms_a_terminal() {
        let node = NodeTally { id: 2, name: "a\x1b[2J".to_owned(), correct: 0, corrupt: 0 };
        let trace = Trace { me: 1, phases: vec![], total_us: 0, nodes: vec![node] };
        assert_eq!(member(7, &trace), "7");
        assert_eq!(member(2, &trace), "2 a\\u{1b}[2J");
    }
}
