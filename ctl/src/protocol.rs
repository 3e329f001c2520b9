//! `protocol`: which protocol the cluster runs, and going over to another one.

use bftd_client::{ClusterStatus, Operation, Outcome, genesis::Protocol};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};

/// Show which protocol the cluster runs, or go over to another one.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl protocol\n  bftctl protocol set ccro\n\nbft-raft, pbft and ccro differ in where votes \
                        travel: to the leader, to every member, to a member that the leader trusts."
)]
pub(crate) struct ShowProtocol {
    #[command(subcommand)]
    command: Option<ProtocolCommand>,
}

#[derive(Debug, Subcommand)]
enum ProtocolCommand {
    /// Go over to another protocol, with the next term; writes go on
    #[command(
        after_help = "Example:\n  bftctl protocol set ccro\n\nThe leader hands its term on when it has led it for ten time-outs (6 s). Only among bft-raft, pbft and ccro: raft counts otherwise, and \
                            withstands crashes alone. Takes root, the daemon's own user, or the group bftd-admin."
    )]
    Set {
        /// bft-raft, pbft or ccro
        protocol: Protocol,
    },
}

#[derive(Serialize)]
struct Shown {
    protocol: String,
    /// From the next term on.
    next: String,
    term: u64,
}

#[derive(Serialize)]
struct Set {
    protocol: String,
    /// The block that says so; none where it was in force already.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    term: u64,
}

impl ShowProtocol {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        match self.command {
            None => show(session).await,
            Some(ProtocolCommand::Set { protocol }) => set(session, protocol).await,
        }
    }
}

async fn show(session: &mut Session) -> Result<Code, Ended> {
    let cluster = session.client().await?.status().await?.cluster;
    match session.options.output() {
        Output::Json => render::json(&Shown {
            protocol: cluster.protocol.to_string(),
            next: cluster.next_protocol.to_string(),
            term: cluster.term,
        })?,
        Output::Value => render::line(cluster.protocol.row().name)?,
        Output::Table => render::line(&words(&cluster))?,
    }
    Ok(Code::Ok)
}

/// What runs, and what comes.
pub(crate) fn words(cluster: &ClusterStatus) -> String {
    let (now, next) = (cluster.protocol, cluster.next_protocol);
    if now == next { now.to_string() } else { format!("{now}, {next} from the next term on") }
}

async fn set(session: &mut Session, protocol: Protocol) -> Result<Code, Ended> {
    let operation = Operation::SetProtocol { protocol };
    operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
    let cluster = session.client().await?.status().await?.cluster;
    if (cluster.protocol, cluster.next_protocol) == (protocol, protocol) {
        match session.options.output() {
            Output::Json => {
                render::json(&Set { protocol: protocol.to_string(), index: None, term: cluster.term })?;
            }
            Output::Value => render::line(protocol.row().name)?,
            Output::Table => render::line(&format!("already runs {protocol}"))?,
        }
        return Ok(Code::Ok);
    }
    let changed = session.client().await?.execute(operation).await?;
    let Outcome::ProtocolSet { protocol, .. } = changed.outcome else {
        let outcome = format!("{:?}", changed.outcome);
        return Err(Failure::other("the daemon answered something else than was asked")
            .cause(outcome)
            .into());
    };
    match session.options.output() {
        Output::Json => {
            let (index, term) = (Some(changed.index), changed.term);
            render::json(&Set { protocol: protocol.to_string(), index, term })?;
        }
        Output::Value => render::line(protocol.row().name)?,
        Output::Table => {
            render::line(&format!("{protocol} from the next term on · block {}", changed.index))?
        }
    }
    Ok(Code::Ok)
}
