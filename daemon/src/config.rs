//! `bftd.toml`: what it may say, and where a mistake is.
//!
//! Precedence: a flag, then the environment (`BFTD_SECTION__KEY`), then the file, then the default. Relative paths in
//! the file start at the file's directory. An unknown key is an error that names its line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This member.
    #[serde(default)]
    pub node: NodeConfig,
    /// How it is managed.
    #[serde(default)]
    pub admin: AdminConfig,
    /// Whether it may be made to misbehave.
    #[serde(default)]
    pub faults: FaultsConfig,
    /// What it tells its operator.
    #[serde(default)]
    pub log: LogConfig,
}

/// The section `[node]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The genesis file that the founding operators agreed on; without it the one that `bftctl init` or `bftctl join` has put
    /// into the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis: Option<PathBuf>,
    /// Where the key, the log and the state live. Created with mode 0700.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// The UDP address to bind; by default this member's address in the genesis, before there is one the advertised address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Where the other members reach this host, `HOST:PORT`: what `bftctl init` and `bftctl join` use without `--advertise`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { genesis: None, data_dir: default_data_dir(), listen: None, advertise: None }
    }
}

/// The section `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// The Unix socket for `bftctl`.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
}

/// The section `[faults]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultsConfig {
    /// Whether faults may be injected here, for drills and tests. With it on, any member of the cluster may make this daemon
    /// misbehave, be it asked to by its operator (`bftctl inject`) or not. Not where data matters.
    #[serde(default)]
    pub enabled: bool,
}

/// The section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`; also by part of the program, as in `info,bftd::transport=debug`.
    /// The one key that SIGHUP reloads.
    #[serde(default = "default_level")]
    pub level: String,
}

impl LogConfig {
    /// What is logged.
    ///
    /// # Errors
    /// There is no such level.
    pub fn filter(&self) -> Result<EnvFilter, ConfigError> {
        EnvFilter::try_new(&self.level)
            .map_err(|error| ConfigError::LogLevel { level: self.level.clone(), reason: error.to_string() })
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: default_level() }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { socket: default_socket() }
    }
}

fn default_data_dir() -> PathBuf {
    "/var/lib/bftd".into()
}

fn default_level() -> String {
    "info".to_owned()
}

fn default_socket() -> PathBuf {
    "/run/bftd/admin.sock".into()
}

/// Where the configuration is when no flag says so.
pub const DEFAULT_PATH: &str = "/etc/bftd/bftd.toml";
/// What every variable of the environment that overrides a key begins with.
const PREFIX: &str = "BFTD_";

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--admin-socket`
    pub admin_socket: Option<PathBuf>,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the text names line and key.
    #[error("in the configuration {}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        reason: String,
    },
    /// A variable of the environment has no counterpart, or the wrong type.
    #[error("the environment's {variable}: {reason}")]
    Environment {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such log level.
    #[error("`level = \"{level}\"` in [log]: {reason}; use error, warn, info, debug or trace")]
    LogLevel {
        /// What was asked for.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Reads a configuration, and applies the environment and the command line.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let variables = std::env::vars().filter(|(name, _)| name.starts_with(PREFIX));
        Self::load_with(path, variables, overrides)
    }

    fn load_with(
        path: &Path,
        variables: impl Iterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let invalid = |error: toml::de::Error| ConfigError::Invalid {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut config: Self = toml::from_str(&text).map_err(invalid)?;
        for (variable, value) in variables {
            config = config.with_variable(&variable, &value)?;
        }
        if let Some(data_dir) = &overrides.data_dir {
            config.node.data_dir.clone_from(data_dir);
        }
        if let Some(socket) = &overrides.admin_socket {
            config.admin.socket.clone_from(socket);
        }
        config.resolve(path.parent().unwrap_or(Path::new(".")), overrides);
        config.log.filter()?;
        Ok(config)
    }

    /// The keys, as `section.key`, that differ from `new` and are only read when the daemon starts.
    pub fn needing_restart(&self, new: &Self) -> Vec<String> {
        let (before, after) = (keys(self), keys(new));
        let names: BTreeSet<_> = before.keys().chain(after.keys()).filter(|name| *name != RELOADED).collect();
        names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
    }

    /// Sets the key that a variable names: `BFTD_NODE__DATA_DIR` is `data_dir` of `[node]`.
    fn with_variable(&self, variable: &str, value: &str) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::Environment { variable: variable.to_owned(), reason };
        let name = variable.strip_prefix(PREFIX).unwrap_or(variable).to_lowercase();
        let Some((section, key)) = name.split_once("__") else {
            return Err(fail("is not of the form BFTD_SECTION__KEY".to_owned()));
        };
        let mut table = toml::Table::try_from(self).map_err(|error| fail(error.to_string()))?;
        let section = table.entry(section.to_owned()).or_insert_with(|| toml::Table::new().into());
        let Some(section) = section.as_table_mut() else {
            return Err(fail("names no section".to_owned()));
        };
        let value = value.parse::<bool>().map_or_else(|_| toml::Value::from(value), toml::Value::from);
        section.insert(key.to_owned(), value);
        table.try_into().map_err(|error: toml::de::Error| fail(error.message().to_owned()))
    }

    fn resolve(&mut self, directory: &Path, overrides: &Overrides) {
        if let Some(genesis) = &mut self.node.genesis {
            *genesis = directory.join(&*genesis);
        }
        if overrides.data_dir.is_none() {
            self.node.data_dir = directory.join(&self.node.data_dir);
        }
        if overrides.admin_socket.is_none() {
            self.admin.socket = directory.join(&self.admin.socket);
        }
    }
}

/// The key that a reload changes.
const RELOADED: &str = "log.level";

/// All keys of a configuration by `section.key`, with their values.
fn keys(config: &Config) -> BTreeMap<String, toml::Value> {
    let sections = toml::Table::try_from(config).expect("a configuration is a table of tables");
    let of = |(section, keys): (String, toml::Value)| {
        let keys = match keys {
            toml::Value::Table(keys) => keys,
            other => toml::Table::from_iter([(String::new(), other)]),
        };
        keys.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value)).collect::<Vec<_>>()
    };
    sections.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bftd.toml");
        fs::write(&path, text).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load_with(&path, variables, &Overrides::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mistake_is_named_with_line_and_key() {
        let error = load("[node]\ngenesis = \"g\"\nlissten = \"x\"\n", &[]).unwrap_err();
        assert!(
            error.contains("bftd.toml") && error.contains("line 3") && error.contains("lissten"),
            "{error}"
        );
        let error = load("[node]\ngenesis = \"g\"\nlisten = \"nowhere\"\n", &[]).unwrap_err();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn nothing_has_to_be_configured() {
        for text in ["", "[node]\n"] {
            let config = load(text, &[("BFTD_NODE__ADVERTISE", "a.example:7000")]).unwrap();
            assert_eq!((config.node.genesis, config.node.listen), (None, None));
            assert_eq!(config.node.advertise.as_deref(), Some("a.example:7000"));
        }
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let text = "[node]\ngenesis = \"g\"\ndata_dir = \"a\"\n";
        let config = load(text, &[("BFTD_NODE__DATA_DIR", "/b"), ("BFTD_ADMIN__SOCKET", "/s")]).unwrap();
        assert_eq!(config.node.data_dir, Path::new("/b"));
        assert_eq!(config.admin.socket, Path::new("/s"));
        let error = load(text, &[("BFTD_NODE__DIR", "/b")]).unwrap_err();
        assert!(error.contains("BFTD_NODE__DIR") && error.contains("dir"), "{error}");
        let error = load(text, &[("BFTD_X", "1")]).unwrap_err();
        assert!(error.contains("BFTD_SECTION__KEY"), "{error}");
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused_and_only_the_level_is_reloaded() {
        let error = load("[node]\ngenesis = \"g\"\n[log]\nlevel = \"bftd=loud\"\n", &[]).unwrap_err();
        assert!(error.contains("bftd=loud") && error.contains("[log]"), "{error}");
        let before =
            load("[node]\ngenesis = \"/g\"\ndata_dir = \"/d\"\n[admin]\nsocket = \"/s\"\n", &[]).unwrap();
        let mut after = before.clone();
        after.log.level = "debug".to_owned();
        assert!(before.needing_restart(&after).is_empty());
        after.node.listen = Some("127.0.0.1:7000".parse().unwrap());
        after.faults.enabled = true;
        assert_eq!(before.needing_restart(&after), ["faults.enabled", "node.listen"]);
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let config = load("[node]\ngenesis = \"../g\"\n[admin]\nsocket = \"s\"\n", &[]).unwrap();
        let genesis = config.node.genesis.unwrap();
        assert!(genesis.is_absolute() && genesis.ends_with("../g"));
        assert!(config.admin.socket.is_absolute());
        assert_eq!(config.node.data_dir, Path::new("/var/lib/bftd"));
    }
}
