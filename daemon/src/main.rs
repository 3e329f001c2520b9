//! `bftd`: the daemon's command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use bftd::{
    admin,
    args::{Arguments, Command, ConfigCommand},
    config::{Config, Overrides},
    doctor,
    identity::Identity,
    logging::{self, Level},
    node,
    supervision::{self, Pulse},
};
use clap::Parser;
use rustix::fs::Mode;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Blocks are decoded on one thread and dropped on others: this allocator minds that less than the C library's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code for a configuration that can't be used; systemd does not restart after it.
const BAD_CONFIGURATION: u8 = 78;

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
    // Nothing that the daemon makes is open to others for an instant; the admin socket is opened to its group then.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let level = logging::start();
    doctor::raise_file_limit();
    let served = Config::load(path, overrides).map_err(Failure::configuration).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Failure::runtime)?;
        runtime.block_on(serve_until_told(config, level, path, overrides))
    });
    if let Err(failure) = &served {
        tracing::error!(message_id = logging::FAILED, reason = failure.text, "stopped");
    }
    served
}

async fn serve_until_told(
    config: Config,
    level: Level,
    path: &Path,
    overrides: &Overrides,
) -> Result<(), Failure> {
    level.set(config.log.filter().map_err(Failure::configuration)?);
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::runtime)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(Failure::runtime)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(message_id = logging::STOPPING, "stopping");
        stop.send_replace(true);
    });
    let reloading = Reloading {
        path: path.to_owned(),
        overrides: overrides.clone(),
        started_with: config.clone(),
        level,
    };
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            reloading.reload();
        }
    });
    let pulse = Arc::new(Pulse::default());
    let supervised = supervision::is_supervised().then(|| {
        let socket = config.admin.socket.clone();
        tokio::spawn(supervision::supervise(socket, Arc::clone(&pulse), stopped.clone()))
    });
    let result = node::run(&config, pulse, stopped).await.map_err(|error| {
        if error.is_configuration() { Failure::configuration(error) } else { Failure::runtime(error) }
    });
    if let Some(supervised) = supervised {
        supervised.abort();
    }
    result
}

/// What a SIGHUP needs.
struct Reloading {
    path: PathBuf,
    overrides: Overrides,
    /// What the rest of the daemon goes by until it is restarted.
    started_with: Config,
    level: Level,
}

impl Reloading {
    /// Reads the configuration again, and goes by as much of it as it can. One with a mistake changes nothing.
    fn reload(&self) {
        let read = Config::load(&self.path, &self.overrides)
            .and_then(|config| config.log.filter().map(|filter| (config, filter)));
        match read {
            Ok((config, filter)) => {
                self.level.set(filter);
                tracing::info!(
                    message_id = logging::RELOADED,
                    level = config.log.level,
                    "read the configuration again"
                );
                let left = self.started_with.needing_restart(&config);
                if !left.is_empty() {
                    let keys = left.join(", ");
                    tracing::warn!(keys, "these keys have changed, and are read only at the next start");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the configuration can't be used; the daemon goes on with what it had");
            }
        }
    }
}

fn identity(path: &Path, overrides: &Overrides) -> Result<(), Failure> {
    let directory = match &overrides.data_dir {
        Some(directory) => directory.clone(),
        None => Config::load(path, overrides).map_err(Failure::configuration)?.node.data_dir,
    };
    let identity = Identity::load_or_create(&directory).map_err(|error| {
        if error.is_configuration() { Failure::configuration(error) } else { Failure::runtime(error) }
    })?;
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
            admin::check_path(&config.admin.socket).map_err(Failure::configuration)?;
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
