//! Writes what a package carries beside the programs: manual pages and shell completions, from the same definitions as
//! the programs' help, and the pages that are written by hand.
//!
//! `bftd-packaging DIRECTORY` makes `DIRECTORY/man` and `DIRECTORY/completions`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Shells that get completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];
/// What is written by hand at the end of bftd(8).
const BFTD_8: &str = include_str!("../man/bftd.8.part");
/// Written by hand altogether.
const BFTD_TOML_5: &str = include_str!("../man/bftd.toml.5");

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: bftd-packaging DIRECTORY");
        return ExitCode::from(2);
    };
    match generate(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bftd-packaging: can't write below {}: {error}", PathBuf::from(directory).display());
            ExitCode::FAILURE
        }
    }
}

fn generate(directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for directory in [&man, &completions] {
        // A page of a command that is no more must not be packaged.
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
    }
    fs::write(man.join("bftd.8"), bftd_page()?)?;
    fs::write(man.join("bftd.toml.5"), BFTD_TOML_5)?;
    clap_mangen::generate_to(bftctl::command(), &man)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut bftctl::command(), "bftctl", &completions)?;
        clap_complete::generate_to(shell, &mut bftd::args::command(), "bftd", &completions)?;
    }
    Ok(())
}

/// One page for the daemon: its few subcommands are in it.
fn bftd_page() -> io::Result<Vec<u8>> {
    let man = Man::new(bftd::args::command()).section("8").manual("System administration");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    page.extend_from_slice(b".SH SUBCOMMANDS\n");
    for command in visible(&bftd::args::command()) {
        describe(&mut page, command, "bftd");
    }
    page.extend_from_slice(BFTD_8.as_bytes());
    Ok(page)
}

fn describe(page: &mut Vec<u8>, command: &Command, before: &str) {
    let name = format!("{before} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    page.extend_from_slice(format!(".TP\n.B {name}\n{about}.\n").as_bytes());
    for command in visible(command) {
        describe(page, command, &name);
    }
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}
