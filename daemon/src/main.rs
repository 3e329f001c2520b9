//! `bftd`: the daemon's command line.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bftd::{
    config::{Config, DEFAULT_PATH, Overrides},
    doctor,
    identity::Identity,
    node,
};
use clap::{Parser, Subcommand};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Blocks are decoded on one thread and dropped on others: this allocator minds that less than the C library's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code for a configuration that can't be used; systemd does not restart after it.
const BAD_CONFIGURATION: u8 = 78;

/// A member of a key-value store whose hosts do not trust each other.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  bftd --config /etc/bftd/bftd.toml\n\nExit codes: 0 after SIGTERM · 1 runtime failure · \
                  78 bad configuration"
)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH, global = true)]
    config: PathBuf,
    /// Where the key, the log and the state live; overrides the configuration.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    /// The Unix socket for bftctl; overrides the configuration.
    #[arg(long, global = true)]
    admin_socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print this node's public key; its private key is made at first use.
    #[command(after_help = "Example:\n  bftd identity --data-dir /var/lib/bftd")]
    Identity,
    /// Say whether this host is as a daemon needs it, for `bftctl doctor`, as TOML.
    #[command(hide = true, after_help = "Example:\n  bftd doctor --config /etc/bftd/bftd.toml")]
    Doctor,
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration and its genesis can be used.
    #[command(after_help = "Example:\n  bftd config check --config /etc/bftd/bftd.toml")]
    Check,
    /// Print the configuration as it is after flags and environment.
    #[command(after_help = "Example:\n  bftd config show --config /etc/bftd/bftd.toml")]
    Show,
}

/// Why the program ends, and with which code.
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn runtime(error: impl ToString) -> Self {
        Self { code: 1, text: error.to_string() }
    }

    fn configuration(error: impl ToString) -> Self {
        Self { code: BAD_CONFIGURATION, text: error.to_string() }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let overrides =
        Overrides { data_dir: arguments.data_dir.clone(), admin_socket: arguments.admin_socket.clone() };
    let result = match &arguments.command {
        None => serve(&arguments.config, &overrides),
        Some(Command::Identity) => identity(&arguments.config, &overrides),
        Some(Command::Doctor) => doctor(&arguments.config, &overrides),
        Some(Command::Config { command }) => config(&arguments.config, &overrides, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bftd: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

fn serve(path: &Path, overrides: &Overrides) -> Result<(), Failure> {
    start_logging();
    doctor::raise_file_limit();
    let config = Config::load(path, overrides).map_err(Failure::configuration)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(Failure::runtime)?;
    let result = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::runtime)?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stop.send_replace(true);
        });
        node::run(&config, stopped).await.map_err(|error| {
            if error.is_configuration() { Failure::configuration(error) } else { Failure::runtime(error) }
        })
    });
    if let Err(failure) = &result {
        tracing::error!(reason = failure.text, "stopped");
    }
    result
}

fn identity(path: &Path, overrides: &Overrides) -> Result<(), Failure> {
    let directory = match &overrides.data_dir {
        Some(directory) => directory.clone(),
        None => Config::load(path, overrides).map_err(Failure::configuration)?.node.data_dir,
    };
    let identity = Identity::load_or_create(&directory).map_err(Failure::runtime)?;
    println!("{}", identity.public_key());
    Ok(())
}

/// Looks at this host while no daemon runs here.
fn doctor(path: &Path, overrides: &Overrides) -> Result<(), Failure> {
    let config = Config::load(path, overrides).map_err(Failure::configuration)?;
    print!("{}", doctor::to_text(doctor::examine_stopped(&config.node)));
    Ok(())
}

fn config(path: &Path, overrides: &Overrides, command: &ConfigCommand) -> Result<(), Failure> {
    let config = Config::load(path, overrides).map_err(Failure::configuration)?;
    match command {
        ConfigCommand::Show => print!("{}", toml::to_string(&config).map_err(Failure::runtime)?),
        ConfigCommand::Check => {
            let Some((genesis, members)) = node::read_genesis(&config).map_err(Failure::configuration)?
            else {
                println!(
                    "{} is good: it names no genesis; bftctl init or bftctl join makes this daemon a member",
                    path.display()
                );
                return Ok(());
            };
            println!(
                "{} is good: cluster `{}` ({}), {} members, {} may be faulty",
                path.display(),
                genesis.name,
                genesis.protocol,
                members.n(),
                members.f()
            );
        }
    }
    Ok(())
}

/// To the journal when systemd has connected us to it, else to standard error.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(journal) => registry.with(journal).init(),
        None => {
            let stderr = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false);
            registry.with(stderr).init();
        }
    }
}
