//! The package's documents say all that there is, so that they can't go stale.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use bftd::config::{Config, Overrides};

const PACKAGED: &str = include_str!("../bftd.toml");
const PAGE: &str = include_str!("../man/bftd.toml.5");

/// The names that serde knows at this place of a configuration: those that it offers instead of an unknown one.
fn offered(text: &str) -> BTreeSet<String> {
    let error = toml::from_str::<Config>(text).unwrap_err().to_string();
    let offer = error.split_once("expected").expect("an unknown name is refused with those that exist").1;
    offer.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// All keys of a configuration, as (section, key).
fn known() -> BTreeSet<(String, String)> {
    let sections = offered("no_such_section = 1\n");
    assert!(sections.contains("node") && sections.len() >= 4, "{sections:?}");
    let of = |section: String| {
        let keys = offered(&format!("[{section}]\nno_such_key = 1\n"));
        keys.into_iter().map(move |key| (section.clone(), key))
    };
    sections.into_iter().flat_map(of).collect()
}

/// The packaged configuration with every key in force.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    PACKAGED.lines().map(line).collect()
}

#[test]
fn every_option_is_in_the_packaged_configuration() {
    let table: toml::Table = toml::from_str(&uncommented()).unwrap();
    let of = |(section, keys): (&String, &toml::Value)| {
        let keys: Vec<_> = keys.as_table().unwrap().keys().cloned().collect();
        let section = section.clone();
        keys.into_iter().map(move |key| (section.clone(), key))
    };
    let packaged: BTreeSet<_> = table.iter().flat_map(of).collect();
    assert_eq!(packaged, known());
    let in_force: toml::Table = toml::from_str(PACKAGED).unwrap();
    let is_commented = |section: &toml::Value| section.as_table().unwrap().is_empty();
    assert!(in_force.values().all(is_commented), "every option is commented out: {in_force}");
}

#[test]
fn the_packaged_configuration_shows_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let load = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        Config::load(&path, &Overrides::default()).unwrap()
    };
    let shown = load("shown", &uncommented());
    let mut default = load("default", PACKAGED);
    // These have no default: an example is shown.
    default.node.genesis = shown.node.genesis.clone();
    default.node.listen = shown.node.listen;
    default.node.advertise = shown.node.advertise.clone();
    assert_eq!(shown, default);
}

#[test]
fn every_option_is_in_the_manual() {
    for (section, key) in known() {
        let start =
            PAGE.find(&format!(".SH \"SECTION [{section}]\"")).unwrap_or_else(|| panic!("no [{section}]"));
        let end = PAGE[start + 1..].find(".SH ").map_or(PAGE.len(), |end| start + 1 + end);
        assert!(
            PAGE[start..end].contains(&format!(".BR {key} ")),
            "no `{key}` in [{section}] of bftd.toml(5)"
        );
    }
}

#[test]
fn every_command_has_a_page_and_completions() {
    let directory = tempfile::tempdir().unwrap();
    let generated =
        Command::new(env!("CARGO_BIN_EXE_bftd-packaging")).arg(directory.path()).status().unwrap();
    assert!(generated.success());
    check(&directory.path().join("man"), &bftctl::command(), "bftctl");
    let daemon = fs::read_to_string(directory.path().join("man/bftd.8")).unwrap().replace('\\', "");
    for words in ["bftd identity", "bftd config check", "bftd config show", "--data-dir", ".SH SIGNALS"] {
        assert!(daemon.contains(words), "no `{words}` in bftd(8)");
    }
    let completions = directory.path().join("completions");
    for file in ["bftctl.bash", "_bftctl", "bftctl.fish", "bftd.bash", "_bftd", "bftd.fish"] {
        let script = fs::read_to_string(completions.join(file)).unwrap();
        let word = if file.contains("bftctl") { "evidence" } else { "identity" };
        assert!(script.contains(word), "{file}");
    }
}

/// A page for this command, with its flags, and for each below it.
fn check(man: &Path, command: &clap::Command, name: &str) {
    let page =
        fs::read_to_string(man.join(format!("{name}.1"))).unwrap_or_else(|error| panic!("{name}: {error}"));
    let plain = page.replace('\\', "");
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        assert!(plain.contains(&format!("--{flag}")), "no --{flag} in {name}(1)");
    }
    assert!(plain.contains("Example"), "no example in {name}(1)");
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        check(man, below, &format!("{name}-{}", below.get_name()));
    }
}
