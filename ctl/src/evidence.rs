//! `evidence`: proofs that members have lied.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use bftd_client::{Accusation, evidence::Evidence, genesis};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Code, Ended, Failure},
    render::{self, printable},
    session::Session,
};

/// The largest file that is taken for a proof, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// How much of a proof's id a table shows.
const SHORT: usize = 12;

/// Proofs that members have lied.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl evidence ls\n  bftctl evidence show 3fa9 -o json > proof.json\n  bftctl evidence verify \
                  proof.json --trust genesis.toml\n\nA proof is two statements that one member signed and no correct member \
                  signs, whatever crashes it goes through. Anybody who has the genesis can check it, without a daemon."
)]
pub(crate) struct ShowEvidence {
    #[command(subcommand)]
    command: EvidenceCommand,
}

#[derive(Debug, Subcommand)]
enum EvidenceCommand {
    /// List the proofs that the daemon holds
    #[command(after_help = "Example:\n  bftctl evidence ls --node 2")]
    Ls,
    /// Print a proof: with -o json one that can be handed on
    #[command(after_help = "Example:\n  bftctl evidence show 3fa9 -o json > proof.json")]
    Show {
        /// The proof's id, or how it begins
        id: String,
    },
    /// Check a proof without any daemon
    #[command(
        after_help = "Example:\n  bftctl evidence verify proof.json --trust genesis.toml\n\nExit code 8: it proves nothing."
    )]
    Verify {
        /// A file that `evidence show -o json` wrote; `-` reads stdin
        file: PathBuf,
        /// The genesis of the cluster, from somebody you trust
        #[arg(long, value_name = "GENESIS")]
        trust: PathBuf,
    },
}

/// A proof as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    id: String,
    accused: u8,
    name: String,
    kind: String,
    epoch: u64,
    term: u64,
    index: u64,
    evidence: Evidence,
}

impl Document {
    fn of(accusation: Accusation) -> Self {
        let Accusation { accused, name, kind, epoch, term, index, evidence } = accusation;
        Self { id: evidence.digest().to_string(), accused, name, kind, epoch, term, index, evidence }
    }
}

impl ShowEvidence {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        match self.command {
            EvidenceCommand::Ls => list(session).await,
            EvidenceCommand::Show { id } => show(session, &id).await,
            EvidenceCommand::Verify { file, trust } => verify(session, &file, &trust),
        }
    }
}

async fn held(session: &mut Session) -> Result<Vec<Document>, Ended> {
    let client = session.client().await?;
    let held = client.evidence().await?;
    Ok(held.into_iter().map(Document::of).collect())
}

async fn list(session: &mut Session) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct List {
        evidence: Vec<Document>,
    }
    let held = held(session).await?;
    if session.options.is_json() {
        render::json(&List { evidence: held })?;
        return Ok(Code::Ok);
    }
    if held.is_empty() {
        session.say("no member is proved to have lied");
        return Ok(Code::Ok);
    }
    let row = |document: &Document| {
        vec![
            document.id.chars().take(SHORT).collect(),
            printable(document.name.as_bytes()).into_owned(),
            document.kind.clone(),
            document.epoch.to_string(),
            document.term.to_string(),
            document.index.to_string(),
        ]
    };
    let rows = held.iter().map(row).collect();
    render::line(&render::table(&["ID", "MEMBER", "WHAT", "EPOCH", "TERM", "INDEX"], &[3, 4, 5], rows))?;
    Ok(Code::Ok)
}

async fn show(session: &mut Session, id: &str) -> Result<Code, Ended> {
    let wanted = id.to_lowercase();
    let mut found = held(session).await?;
    found.retain(|document| document.id.starts_with(&wanted));
    let document = match <[Document; 1]>::try_from(found) {
        Ok([document]) => document,
        Err(found) if found.is_empty() => {
            return Err(Failure::other(format!("no proof's id begins with `{}`", printable(id.as_bytes())))
                .next("bftctl evidence ls")
                .into());
        }
        Err(found) => {
            return Err(Failure::usage(format!("the ids of {} proofs begin with `{id}`", found.len()))
                .next("give more of the id; `bftctl evidence ls` shows them")
                .into());
        }
    };
    if session.options.is_json() {
        render::json(&document)?;
    } else {
        render::line(&describe(&document))?;
    }
    Ok(Code::Ok)
}

/// What a proof says, for people.
fn describe(document: &Document) -> String {
    let who = format!("{} (member {})", printable(document.name.as_bytes()), document.accused);
    let (said, statements) = match &document.evidence {
        Evidence::DoubleVote { first, second } => {
            let kind = first.ballot.kind;
            (
                format!("signed two {kind:?} votes for one index"),
                [first, second].map(|vote| {
                    let block = vote.ballot.block;
                    format!(
                        "{kind:?} vote for block {} at index {} of term {}",
                        block.digest, block.index, block.term
                    )
                }),
            )
        }
        Evidence::DoubleProposal { first, second } => (
            "proposed two blocks for one index".to_owned(),
            [first, second].map(|proposal| {
                let header = &proposal.header;
                format!("block {} at index {} of term {}", header.digest(), header.index, header.term)
            }),
        ),
        Evidence::ForgottenLock { commit, term_vote } => {
            let block = commit.ballot.block;
            let reported = term_vote.position.map_or_else(
                || "nothing at all".to_owned(),
                |block| format!("index {} of term {}", block.index, block.term),
            );
            (
                "forgot what it had promised to remember".to_owned(),
                [
                    format!(
                        "Commit vote for block {} at index {} of term {}",
                        block.digest, block.index, block.term
                    ),
                    format!("TermVote for term {}, which reports {reported}", term_vote.term),
                ],
            )
        }
    };
    let [first, second] = statements;
    format!("{who} {said}\n  1  {first}\n  2  {second}\n  id {}", document.id)
}

fn verify(session: &Session, file: &Path, trust: &Path) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct Verdict<'a> {
        valid: bool,
        #[serde(flatten)]
        document: &'a Document,
    }
    let genesis = genesis::read(trust).map_err(|error| {
        Failure::other("can't read the genesis to trust")
            .cause(error)
            .next("name the cluster's genesis file with --trust")
    })?;
    let members = genesis.membership().map_err(|error| {
        Failure::other(format!("the genesis {} names no possible cluster", trust.display())).cause(error)
    })?;
    let document = read(file)?;
    let fails = |why: &dyn std::fmt::Display| {
        Failure::new(Code::VerificationFailed, format!("{} proves nothing", file.display()))
            .cause(why)
            .next(format!("it may have been altered, or be of another cluster than `{}`", genesis.name))
    };
    document.evidence.check(&members, &bftd_client::Ed25519).map_err(|why| fails(&why))?;
    // What stands beside the proof is nobody's word: only what the proof itself says is repeated.
    let accusation =
        Accusation::of(document.evidence, &members).ok_or_else(|| fails(&"it accuses nobody"))?;
    let document = Document::of(accusation);
    if session.options.is_json() {
        render::json(&Verdict { valid: true, document: &document })?;
    } else {
        render::line(&format!("valid: {}", describe(&document)))?;
    }
    Ok(Code::Ok)
}

fn read(file: &Path) -> Result<Document, Ended> {
    let unreadable =
        |error: std::io::Error| Failure::other(format!("can't read {}", file.display())).cause(error);
    let is_none = |cause: &dyn std::fmt::Display| {
        Failure::new(Code::VerificationFailed, format!("{} is no proof", file.display()))
            .cause(cause)
            .next("bftctl evidence show ID -o json writes one")
    };
    let mut bytes = Vec::new();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(file).map_err(unreadable)?)
    };
    source.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(is_none(&format!("it is larger than any: more than {MAX_FILE} bytes")).into());
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| is_none(&error))?;
    Ok(serde_json::from_str(text).map_err(|error| is_none(&error))?)
}
