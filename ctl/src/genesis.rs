//! `genesis`: the file that founding operators agree on, made and read without any daemon.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use bftd_client::genesis::{self, Genesis, Member, MemberId, Protocol, PublicKey, fingerprint, is_name};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    failure::{Code, Ended, Failure},
    render::{self, printable},
    session::Session,
};

/// Make or read the file that founding operators agree on
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftd identity                          # on each host: prints its key\n  bftctl genesis new --name prod \
                  --member alpha=KEY@10.0.0.1:7000 --member beta=KEY@10.0.0.2:7000 … > genesis.toml\n  bftctl init --genesis genesis.toml     # on each host\n\n\
                  Most clusters need no such file: see bftctl init."
)]
pub(crate) struct GenesisCommand {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a new genesis
    #[command(
        after_help = "Example:\n  bftctl genesis new --name prod --member alpha=5f3a…@10.0.0.1:7000 --member beta=91c0…@10.0.0.2:7000 …\n\nMake it once, and give the \
                      same file to all operators: it has the time in it, so two that are made alike differ."
    )]
    New {
        /// The cluster's name
        #[arg(long)]
        name: String,
        /// What it runs
        #[arg(long, default_value_t)]
        protocol: Protocol,
        /// A member, once for each, in their order: name, key (`bftd identity` prints it) and UDP address
        #[arg(long = "member", value_name = "NAME=KEY@HOST:PORT", required = true)]
        members: Vec<Named>,
        /// Write it there, where nothing may be yet [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a genesis, and show its members and its fingerprint
    #[command(after_help = "Example:\n  bftctl genesis show genesis.toml")]
    Show {
        /// The file
        file: PathBuf,
    },
}

/// What `--member` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    name: String,
    key: PublicKey,
    address: SocketAddr,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("it is NAME=KEY@HOST:PORT")?;
        let (key, address) = rest.split_once('@').ok_or("it is NAME=KEY@HOST:PORT")?;
        if !is_name(name) {
            return Err(format!(
                "`{name}` can't be a name: 1 to 64 letters, digits, dots, hyphens and underscores"
            ));
        }
        let key = key.parse().map_err(|error| format!("`{key}` is no key: {error}"))?;
        let address: SocketAddr = address.parse().map_err(|_| {
            format!("`{address}` is no address: an IP and a port are needed, as in 10.0.0.1:7000")
        })?;
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(format!("nobody reaches a host at {address}"));
        }
        Ok(Self { name: name.to_owned(), key, address })
    }
}

impl GenesisCommand {
    pub(crate) fn run(self, session: &Session) -> Result<Code, Ended> {
        match self.command {
            What::New { name, protocol, members, out } => {
                let genesis = make(name, protocol, members)?;
                let text = genesis::to_text(&genesis);
                match out {
                    None => render::bytes(text.as_bytes())?,
                    Some(path) => {
                        let written = fs::File::create_new(&path).and_then(|mut file| {
                            file.write_all(text.as_bytes())?;
                            file.sync_all()
                        });
                        written.map_err(|error| {
                            Failure::other(format!("can't write {}", path.display())).cause(error)
                        })?;
                    }
                }
                session.say(&format!(
                    "fingerprint: {}\nnext: give this very file to all operators; on each host: bftctl init --genesis FILE",
                    fingerprint(&genesis.cluster_id())
                ));
            }
            What::Show { file } => {
                let genesis = genesis::read(&file).map_err(|error| {
                    Failure::usage(error.to_string().trim_end()).next("bftctl genesis new --help")
                })?;
                check(&genesis)?;
                show(session, &genesis)?;
            }
        }
        Ok(Code::Ok)
    }
}

fn make(name: String, protocol: Protocol, members: Vec<Named>) -> Result<Genesis, Failure> {
    if !is_name(&name) {
        return Err(Failure::usage(format!("`{name}` can't be a cluster's name"))
            .next("1 to 64 letters, digits, dots, hyphens and underscores"));
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let member = |(id, Named { name, key, address })| Member { id: MemberId(id), name, key, address };
    let count = members.len();
    let members: Vec<_> = (1..=u8::MAX).zip(members).map(member).collect();
    if members.len() < count {
        return Err(Failure::usage(format!("a cluster has at most 255 members, not {count}")));
    }
    let created_ms = u64::try_from(created).unwrap_or(u64::MAX);
    let genesis = Genesis { name, protocol, created_ms, members };
    check(&genesis)?;
    Ok(genesis)
}

/// Whether a cluster can be like that.
fn check(genesis: &Genesis) -> Result<(), Failure> {
    genesis.membership().map_err(|error| Failure::usage("no cluster can be like that").cause(error))?;
    for (at, member) in genesis.members.iter().enumerate() {
        for other in genesis.members.iter().skip(at + 1) {
            if other.name == member.name || other.address == member.address {
                let message =
                    format!("the members {} and {} have the same name or address", member.id, other.id);
                return Err(Failure::usage(message));
            }
        }
    }
    Ok(())
}

fn show(session: &Session, genesis: &Genesis) -> Result<(), Ended> {
    let (id, n) = (genesis.cluster_id(), genesis.members.len());
    let f = genesis.protocol.row().faults.tolerated(n);
    if session.options.is_json() {
        let members = genesis
            .members
            .iter()
            .map(|it| json!({ "id": it.id.0, "name": it.name, "key": it.key, "address": it.address }));
        return render::json(
            &json!({ "cluster": { "name": genesis.name, "id": id.to_string(), "fingerprint": fingerprint(&id),
            "protocol": genesis.protocol.to_string(), "n": n, "f": f }, "members": members.collect::<Vec<_>>() }),
        );
    }
    let rows = genesis.members.iter().map(|it| {
        vec![
            it.id.to_string(),
            printable(it.name.as_bytes()).into_owned(),
            it.address.to_string(),
            it.key.to_string(),
        ]
    });
    let table = render::table(&["ID", "NAME", "ADDRESS", "KEY"], &[0], rows.collect());
    render::line(&format!(
        "{}: {n} members, of which {f} may be faulty ({})\nfingerprint: {}\n\n{table}",
        printable(genesis.name.as_bytes()),
        genesis.protocol,
        fingerprint(&id)
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn named(name: &str, key: u8, port: u16) -> String {
        format!("{name}={}@10.0.0.1:{port}", PublicKey([key; 32]))
    }

    #[test]
    fn a_member_is_read_and_mistakes_are_named() {
        let good: Named = named("alpha", 7, 7000).parse().unwrap();
        assert_eq!((good.name.as_str(), good.key, good.address.port()), ("alpha", PublicKey([7; 32]), 7000));
        for (text, why) in [
            ("alpha", "NAME=KEY@HOST:PORT"),
            ("a b=00@1.1.1.1:1", "can't be a name"),
            ("a=00@1.1.1.1:1", "no key"),
            (&named("a", 7, 0), "nobody reaches"),
            (&named("a", 7, 1).replace("10.0.0.1", "host"), "no address"),
        ] {
            let error = text.parse::<Named>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_genesis_has_each_key_name_and_address_once() {
        let of = |texts: &[String]| {
            make("prod".into(), Protocol::BftRaft, texts.iter().map(|text| text.parse().unwrap()).collect())
        };
        let genesis = of(&[named("a", 1, 1), named("b", 2, 2)]).unwrap();
        assert_eq!(genesis.members.iter().map(|it| it.id.0).collect::<Vec<_>>(), [1, 2]);
        for twice in [named("b", 1, 2), named("a", 2, 2), named("b", 2, 1)] {
            assert_eq!(of(&[named("a", 1, 1), twice]).unwrap_err().code, Code::Usage);
        }
    }
}
