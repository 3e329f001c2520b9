//! etcd from Debian, unpacked into a directory of ours: nothing is installed in the system, and no service is started.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{cluster::fresh_directory, failure::Failure};

/// Where `etcd` is; it is fetched first where it is missing.
pub(super) fn etcd(root: &Path) -> Result<PathBuf, Failure> {
    let home = root.join("etcd-server");
    let program = home.join("usr/bin/etcd");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("fetching etcd-server from Debian into {}", home.display());
    fresh_directory(&home)?;
    if download(&home).is_err() {
        // New machines have no package lists, and old ones those of packages that are gone.
        run(Command::new("apt-get").args(["-q", "update"]))?;
        download(&home)?;
    }
    run(Command::new("sh").args(["-c", "dpkg-deb -x etcd-server_*.deb ."]).current_dir(&home))?;
    if !program.is_file() {
        return Err(Failure::new(format!("the package etcd-server has no {}", program.display())));
    }
    Ok(program)
}

fn download(home: &Path) -> Result<(), Failure> {
    run(Command::new("apt-get").args(["-q", "download", "etcd-server"]).current_dir(home))
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let failed = |command: &Command, cause: String| {
        Failure::new(format!("`{}` failed", words(command))).cause(cause).next(
            "run on Debian, with `apt-get update` done as root; the comparison needs the package etcd-server",
        )
    };
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(command, error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(command, String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
}

fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
