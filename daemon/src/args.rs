//! The daemon's command line, from which its help, its manual page and completions come.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::DEFAULT_PATH;

/// A member of a key-value store whose hosts do not trust each other.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  bftd --config /etc/bftd/bftd.toml\n\nExit codes: 0 after SIGTERM · 1 runtime failure · \
                  78 bad configuration"
)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH, global = true)]
    pub config: PathBuf,
    /// Where the key, the log and the state live; overrides the configuration.
    #[arg(long, global = true)]
    pub data_dir: Option<PathBuf>,
    /// The Unix socket for bftctl; overrides the configuration.
    #[arg(long, global = true)]
    pub admin_socket: Option<PathBuf>,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the daemon does beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print this node's public key; its private key is made at first use.
    #[command(after_help = "Example:\n  bftd identity --data-dir /var/lib/bftd")]
    Identity,
    /// Say whether this host is as a daemon needs it, for `bftctl doctor`, as TOML.
    #[command(hide = true, after_help = "Example:\n  bftd doctor --config /etc/bftd/bftd.toml")]
    Doctor,
    /// Look at the configuration.
    Config {
        /// What exactly.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// What can be done with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration and its genesis can be used.
    #[command(after_help = "Example:\n  bftd config check --config /etc/bftd/bftd.toml")]
    Check,
    /// Print the configuration as it is after flags and environment.
    #[command(after_help = "Example:\n  bftd config show --config /etc/bftd/bftd.toml")]
    Show,
}

/// The definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Arguments::command()
}
