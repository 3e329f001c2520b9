//! `dev compose`: a cluster of containers, as a directory with a compose file.
//!
//! ```text
//! DIR/docker-compose.yml   DIR/genesis.toml   DIR/bftd.toml   DIR/nodeN/data   DIR/nodeN/run/admin.sock
//! ```
//!
//! The file is what compose v1 and v2 both understand. Keys are made here, and belong to the user who makes them: the containers
//! run as that user, and a node's data and socket are in the directory, so `bftctl` on this host talks to each node.
//! Members know each other by address, so each container has a fixed one in a network of the cluster's own.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bftd_client::genesis::{self, Genesis, Member, MemberId, Protocol};
use clap::Args;
use serde::Serialize;

use super::process;
use crate::{
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};

/// The file that compose looks for, v1 and v2.
const FILE: &str = "docker-compose.yml";
/// Where members listen.
const PORT: u16 = 7000;
/// The configuration of every node.
const CONFIG: &str = "\
# Every node of a cluster of containers, made by `bftctl dev compose`.
[node]
genesis = \"/etc/bftd/genesis.toml\"

# For drills: with this any member of the cluster may make this daemon misbehave. Not where data matters.
[faults]
enabled = true
";
/// Node N has the address N above this one; the bridge has the first.
const FIRST_HOST: u32 = 10;

/// Write a compose file, with keys and genesis, for a cluster of containers
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl dev compose --nodes 4 --dir four && docker compose -f four/docker-compose.yml up -d\n  \
                  bftctl --socket four/node1/run/admin.sock status\n\nWithout --dir it is written to bftd-compose, here."
)]
pub(super) struct Compose {
    /// How many nodes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: u8,
    /// The protocol: bft-raft, pbft, ccro or raft
    #[arg(long, default_value_t = Protocol::default())]
    protocol: Protocol,
    /// The image: packaging/docker/build makes it of a package
    #[arg(long, default_value = concat!("bftd:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// The network's first address; it has room for 254
    #[arg(long, default_value = "172.28.77.0", value_name = "ADDRESS")]
    subnet: Ipv4Addr,
}

#[derive(Serialize)]
struct Body {
    file: PathBuf,
    sockets: Vec<PathBuf>,
}

impl Compose {
    /// Writes it all to a directory; `bftd-compose` here, where none is named.
    pub(super) fn run(self, session: &Session, directory: Option<PathBuf>) -> Result<Code, Ended> {
        if self.subnet.octets()[3] != 0 {
            return Err(Failure::usage(format!(
                "{} is not the first address of a network of 256",
                self.subnet
            ))
            .next("bftctl dev compose --subnet 172.28.77.0")
            .into());
        }
        let directory = directory.unwrap_or_else(|| "bftd-compose".into());
        let file = directory.join(FILE);
        if file.exists() {
            return Err(Failure::other(format!("{} exists", file.display()))
                .cause("a cluster's keys and data are beside it")
                .next("go on with it, or name another --dir")
                .into());
        }
        let bftd = process::find_bftd()?;
        let mut members = Vec::new();
        for id in 1..=self.nodes {
            let home = home(&directory, id);
            // The directory of a key is made with the key, for its owner alone.
            let (data, run) = (home.join("data"), home.join("run"));
            fs::create_dir_all(&run).map_err(|error| cant(&run, error))?;
            let key = process::identity(&bftd, &data)?;
            members.push(Member {
                id: MemberId(id),
                name: format!("node{id}"),
                key,
                address: SocketAddr::new(self.address(id).into(), PORT),
            });
        }
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let created_ms = u64::try_from(created).unwrap_or(u64::MAX);
        let genesis = Genesis { name: "compose".to_owned(), protocol: self.protocol, created_ms, members };
        genesis::write(&directory.join("genesis.toml"), &genesis)
            .map_err(|error| Failure::other(error.to_string()))?;
        let config = directory.join("bftd.toml");
        fs::write(&config, CONFIG).map_err(|error| cant(&config, error))?;
        fs::write(&file, self.text()).map_err(|error| cant(&file, error))?;
        session.say(&format!("wrote {}; next: docker compose -f {0} up -d", file.display()));
        let sockets = (1..=self.nodes).map(|id| home(&directory, id).join("run/admin.sock")).collect();
        let body = Body { file, sockets };
        if session.options.is_json() {
            render::json(&body)?
        } else {
            render::line(&body.file.display().to_string())?
        }
        Ok(Code::Ok)
    }

    fn address(&self, id: u8) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet) + FIRST_HOST + u32::from(id))
    }

    /// The compose file. Its values are quoted as JSON is, which YAML reads alike.
    fn text(&self) -> String {
        let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let image = serde_json::Value::from(self.image.as_str());
        let mut text = format!(
            "# A cluster of {} nodes, made by `bftctl dev compose`. Keys and data are beside this file.\n\
             version: \"3.8\"\n\
             \n\
             x-node: &node\n  \
               image: {image}\n  \
               user: \"{user}:{group}\"\n  \
               restart: on-failure\n  \
               healthcheck:\n    \
                 test: [\"CMD\", \"bftctl\", \"ls\", \"--limit\", \"1\", \"--consistency\", \"local\"]\n    \
                 interval: 2s\n    \
                 timeout: 2s\n    \
                 retries: 5\n\
             \n\
             services:\n",
            self.nodes
        );
        for id in 1..=self.nodes {
            text += &format!(
                "  node{id}:\n    \
                   <<: *node\n    \
                   hostname: node{id}\n    \
                   volumes:\n      \
                     - ./bftd.toml:/etc/bftd/bftd.toml:ro\n      \
                     - ./genesis.toml:/etc/bftd/genesis.toml:ro\n      \
                     - ./node{id}/data:/var/lib/bftd\n      \
                     - ./node{id}/run:/run/bftd\n    \
                   networks:\n      \
                     cluster:\n        \
                       ipv4_address: {}\n",
                self.address(id)
            );
        }
        text + &format!(
            "\nnetworks:\n  cluster:\n    ipam:\n      config:\n        - subnet: {}/24\n",
            self.subnet
        )
    }
}

fn home(directory: &Path, id: u8) -> PathBuf {
    directory.join(format!("node{id}"))
}

fn cant(path: &Path, error: io::Error) -> Failure {
    Failure::other(format!("can't write {}", path.display())).cause(error).next("name another --dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_an_address_volumes_and_a_health_check() {
        let compose = Compose {
            nodes: 4,
            protocol: Protocol::BftRaft,
            image: "bftd:\"x\"".to_owned(),
            subnet: Ipv4Addr::new(172, 28, 77, 0),
        };
        let text = compose.text();
        for id in 1..=4 {
            assert!(text.contains(&format!("\n  node{id}:\n    <<: *node\n")), "{text}");
            assert!(text.contains(&format!("        ipv4_address: 172.28.77.{}\n", 10 + id)), "{text}");
            assert!(text.contains(&format!("      - ./node{id}/data:/var/lib/bftd\n")), "{text}");
        }
        assert!(text.contains("\n  healthcheck:\n    test: ["), "{text}");
        assert!(text.contains("image: \"bftd:\\\"x\\\"\"\n"), "{text}");
        assert!(!text.contains("node5"), "{text}");
    }
}
