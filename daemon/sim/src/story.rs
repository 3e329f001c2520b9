//! Stories: a few lines about what happens, and what the members make of it.
//!
//! A story is a text. A line that begins with `> ` is a command; the lines after it are what happened, up to the next
//! command. [`play`] plays the commands of a story, and answers with the same text as it should read. Other
//! lines, before the first command, and those that begin with `#`, stay.
//!
//! | command | what it does |
//! |---|---|
//! | `protocol NAME` | the members run it (before all other commands; else bft-raft) |
//! | `liar NODE FAULT SEED` | the member lies (before the first other command) |
//! | `write NODE KEY`, `read NODE KEY` | a client of the member asks |
//! | `run MS` | time passes |
//! | `cut NODES \| NODES` | the links between them are cut, both ways |
//! | `lose KIND` | messages of the kind are lost |
//! | `mend` | nothing is cut or lost any more |
//! | `switch NODE NAME` | an operator at the member has the cluster go over to another protocol |
//! | `crash NODE`, `start NODE` | |
//! | `end` | faults stop, and all must get done; then how it ended |
//!
//! The oracle watches: what it has to say is part of what happened.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bftd_core::{
    ids::MemberId,
    message::{Message, Route},
    protocol::Protocol,
};
use bftd_faults::Fault;

use crate::{
    Options,
    event::{Event, Observer, Violation},
    oracle::Oracle,
    plan::Kind,
    trace::say_evidence,
    world::World,
};

/// How many members there are.
const NODES: u8 = 4;

/// Plays a story.
///
/// # Errors
/// A line that is no command.
pub fn play(story: &str) -> Result<String, String> {
    let commands: Vec<_> = story.lines().filter_map(|line| line.strip_prefix("> ")).collect();
    let mut liars = BTreeMap::new();
    let mut options = Options::of(Protocol::BftRaft, NODES);
    for command in &commands {
        if let ["protocol", name] = words(command)[..] {
            options.protocol = protocol(name)?;
        }
        if let ["liar", node, fault, seed] = words(command)[..] {
            let fault: Fault = fault.parse().map_err(|error| format!("{error}"))?;
            liars.insert(member(node)?, (fault, seed.parse().map_err(|_| format!("no seed: {seed}"))?));
        }
    }
    let told = Rc::new(RefCell::new(Told::default()));
    let (members, check) = World::about(&options);
    let correct = members.ids().filter(|id| !liars.contains_key(id)).collect();
    let mut teller = Teller { oracle: Oracle::new(&members, check, correct), told: Rc::clone(&told) };
    let mut world = World::staged(&options, liars, &mut teller);
    let mut has_begun = false;
    let mut output = Vec::new();
    let mut lines = story.lines().peekable();
    while let Some(line) = lines.next_if(|line| !line.starts_with("> ")) {
        output.push(line.to_owned());
    }
    for line in lines {
        if line.starts_with('#') {
            output.extend([String::new(), line.to_owned()]);
        }
        let Some(command) = line.strip_prefix("> ") else { continue };
        output.push(line.to_owned());
        let words = words(command);
        let is_cast = matches!(words.first(), Some(&"liar" | &"protocol"));
        let mut result = Ok(());
        if !has_begun && !is_cast {
            has_begun = true;
            result = world.stage_begin();
        }
        if result.is_ok() && !is_cast {
            result = perform(&mut world, &words)?;
        }
        output.extend(told.borrow_mut().tell());
        if let Err(violation) = result {
            output.push(format!("VIOLATION {}: {}", violation.check, violation.detail));
            break;
        }
    }
    Ok(output.join("\n") + "\n")
}

fn words(command: &str) -> Vec<&str> {
    command.split_whitespace().collect()
}

fn member(text: &str) -> Result<MemberId, String> {
    let id = text.parse().ok().filter(|id| (1..=NODES).contains(id));
    id.map(MemberId).ok_or_else(|| format!("no member: {text:?}"))
}

fn protocol(name: &str) -> Result<Protocol, String> {
    name.parse().map_err(|error| format!("{error}"))
}

fn perform(world: &mut World<'_>, words: &[&str]) -> Result<Result<(), Violation>, String> {
    Ok(match words {
        ["write", node, key] => world.stage_write(member(node)?, key),
        ["read", node, key] => world.stage_read(member(node)?, key),
        ["run", ms] => world.stage_run(ms.parse::<u64>().map_err(|_| format!("no time: {ms:?}"))? * 1000),
        ["cut", sides @ ..] => {
            let mut sides = sides
                .split(|word| *word == "|")
                .map(|side| side.iter().map(|node| member(node)).collect::<Result<Vec<_>, _>>());
            let (Some(some), Some(others)) = (sides.next(), sides.next()) else {
                return Err("cut what from what?".to_owned());
            };
            let (some, others) = (some?, others?);
            world.stage_cut(&some, &others);
            world.stage_cut(&others, &some);
            Ok(())
        }
        ["lose", kind] => {
            world.stage_lose(Kind::named(kind).ok_or_else(|| format!("no kind of message: {kind:?}"))?);
            Ok(())
        }
        ["mend"] => {
            world.stage_mend();
            Ok(())
        }
        ["switch", node, name] => world.stage_switch(member(node)?, protocol(name)?),
        ["crash", node] => world.stage_crash(member(node)?),
        ["start", node] => world.stage_start(member(node)?),
        ["end"] => world.stage_end(),
        other => return Err(format!("no command: {}", other.join(" "))),
    })
}

/// Puts events into words. What several members do is one line.
#[derive(Default)]
struct Told {
    /// In the order of their first time within a command: what, and who.
    lines: Vec<(String, BTreeSet<MemberId>)>,
    /// What was told before, by whom.
    known: BTreeSet<(MemberId, String)>,
}

impl Told {
    fn does(&mut self, node: MemberId, what: String) {
        if !self.known.insert((node, what.clone())) {
            return;
        }
        match self.lines.iter_mut().find(|(line, _)| *line == what) {
            Some((_, nodes)) => {
                nodes.insert(node);
            }
            None => self.lines.push((what, BTreeSet::from([node]))),
        }
    }

    fn tell(&mut self) -> Vec<String> {
        let tell = |(what, nodes): (String, BTreeSet<MemberId>)| {
            let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            format!("{}: {what}", nodes.join(" "))
        };
        std::mem::take(&mut self.lines).into_iter().map(tell).collect()
    }

    fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { node, restart: true, .. } => {
                self.known.retain(|(of, what)| of != node || !what.contains("start"));
                self.does(*node, "starts again".to_owned());
            }
            Event::Crashed { node, .. } => {
                self.known.retain(|(of, what)| of != node || what != "crashes");
                self.does(*node, "crashes".to_owned());
            }
            Event::Sent { from, message, .. } => self.note_sent(*from, message),
            Event::Executed { node, block, .. } => {
                let (header, batches) = (block.header(), block.batches().len());
                let with = match batches {
                    0 => "empty".to_owned(),
                    1 => "one batch".to_owned(),
                    more => format!("{more} batches"),
                };
                self.does(*node, format!("executes block {} of term {}, {with}", header.index, header.term));
            }
            Event::Acknowledged { node, write, revision } => {
                self.does(*node, format!("acknowledges write {write} at revision {revision}"));
            }
            Event::ReadAnswered { node, read, key, revision, value, .. } => {
                let key = String::from_utf8_lossy(key);
                let value = value.map_or("nothing".into(), |value| String::from_utf8_lossy(value));
                self.does(*node, format!("answers read {read}: {key} is {value}, of revision {revision}"));
            }
            Event::Halted { node, reason } => self.does(*node, format!("halts: {reason}")),
            Event::End { nodes, pending_writes, pending_reads } => {
                for (node, status, _) in *nodes {
                    let (term, at) = (status.term, status.committed.index);
                    self.does(*node, format!("is in term {term}, and has committed block {at}"));
                }
                if (*pending_writes, *pending_reads) != (0, 0) {
                    self.does(
                        MemberId(0),
                        format!("{pending_writes} writes, {pending_reads} reads are open"),
                    );
                }
            }
            _ => {}
        }
    }

    fn note_sent(&mut self, from: MemberId, message: &Message) {
        match message {
            Message::Suspect(suspect) if suspect.signer == from => {
                self.does(from, format!("suspects term {}", suspect.term));
            }
            Message::EnterTerm(enter) if enter.vote.signer == from => {
                let position = enter.vote.position;
                let at = position.map_or("nothing certified".to_owned(), |it| format!("block {}", it.index));
                let sole = enter
                    .vote
                    .sole
                    .map_or(String::new(), |it| format!(", having voted for block {}", it.index));
                self.does(from, format!("enters term {}, with {at}{sole}", enter.vote.term));
            }
            Message::Append(append) => match append.votes_to {
                Route::Leader => {}
                Route::Everyone => self.does(from, "has everybody gather the votes".to_owned()),
                Route::Member(node) => self.does(from, format!("has member {node} gather the votes")),
            },
            Message::LateVote(vote) if vote.signer == from => {
                self.does(from, format!("votes for block {} again, to everybody", vote.ballot.block.index));
            }
            Message::NewTerm(new_term) => {
                let position = new_term.position.as_ref().map_or(0, |position| position.block().index.0);
                let at = new_term.sole.as_ref().map_or(position, |sole| sole.header().index.0);
                self.does(from, format!("starts term {} at block {at}", new_term.term));
            }
            Message::Evidence(evidence) => self.does(from, format!("proves: {}", say_evidence(evidence))),
            _ => {}
        }
    }
}

struct Teller {
    oracle: Oracle,
    told: Rc<RefCell<Told>>,
}

impl Observer for Teller {
    fn observe(&mut self, at_us: u64, event: &Event<'_>) -> Result<(), Violation> {
        self.told.borrow_mut().note(event);
        self.oracle.observe(at_us, event)
    }
}

/// How two texts differ, line by line: `-` is only in the first, `+` only in the second.
pub fn diff(first: &str, second: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    // The length of the longest common part of what is left from (i, j) on.
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push(format!("  {}", a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && common[i + 1][j] >= common[i][j + 1] {
            lines.push(format!("- {}", a[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", b[j]));
            j += 1;
        }
    }
    lines.join("\n")
}
