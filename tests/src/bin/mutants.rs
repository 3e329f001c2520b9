//! Replays the list of planted bugs: each must be found by the simulator, or by the test that is named with it.
//!
//! Copies the workspace to a directory of its own, and for each bug of `mutants.toml` edits the copy, builds the simulator, runs
//! seeds until one fails, and says how many that took.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    rule: String,
    /// The test that finds it, where the simulator would take too long, or sees nothing of it.
    test: Option<String>,
    /// Whose test that is.
    #[serde(default = "core")]
    package: String,
    /// What is simulated.
    #[serde(default = "four_of_bft_raft")]
    options: Vec<String>,
    edits: Vec<Edit>,
}

fn core() -> String {
    "bftd-core".to_owned()
}

fn four_of_bft_raft() -> Vec<String> {
    ["--nodes", "4"].map(str::to_owned).into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: String,
    before: String,
    after: String,
}

/// What is copied: all that the simulator is built from.
const COPIED: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    "daemon",
    "ctl",
    "examples",
    "packaging",
    "tests",
    "rustfmt.toml",
    "clippy.toml",
    "README.md",
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.next().unwrap_or_default();
    let seeds = arguments.next().unwrap_or_else(|| "20000".to_owned());
    match replay(&filter, &seeds) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(missed) => {
            println!("{missed} planted bugs were not found");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn replay(filter: &str, seeds: &str) -> Result<usize, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().map_err(|e| e.to_string())?;
    let list = fs::read_to_string(root.join("tests/mutants.toml")).map_err(|e| e.to_string())?;
    let list: List = toml::from_str(&list).map_err(|e| format!("tests/mutants.toml: {e}"))?;
    let copy = root.join("target/mutants");
    fs::create_dir_all(&copy).map_err(|e| e.to_string())?;
    for name in COPIED {
        copy_tree(&root.join(name), &copy.join(name))?;
    }
    let mut missed = 0;
    for mutant in list.mutant.iter().filter(|mutant| mutant.name.contains(filter)) {
        let begun = Instant::now();
        let originals = plant(&copy, mutant)?;
        let found = match &mutant.test {
            Some(test) => run_test(&copy, &mutant.package, test),
            None => build_and_run(&copy, &mutant.options, seeds),
        };
        for (path, text) in originals.into_iter().rev() {
            fs::write(&path, text).map_err(|e| e.to_string())?;
        }
        let verdict = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                missed += 1;
                mutant.test.as_ref().map_or_else(
                    || format!("NOT FOUND in {seeds} seeds"),
                    |test| format!("NOT FOUND by the test {test}"),
                )
            }
            Err(why) => {
                missed += 1;
                format!("NOT BUILT: {why}")
            }
        };
        println!("{verdict} · {} · {} · {:.0} s", mutant.name, mutant.rule, begun.elapsed().as_secs_f64());
    }
    Ok(missed)
}

/// Makes the edits, and answers with what stood there before.
fn plant(copy: &Path, mutant: &Mutant) -> Result<Vec<(PathBuf, String)>, String> {
    let mut originals = Vec::new();
    for edit in &mutant.edits {
        let path = copy.join("daemon").join(&edit.file);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if text.matches(&edit.before).count() != 1 {
            return Err(format!("`{}`: its text does not stand once in {}", mutant.name, edit.file));
        }
        fs::write(&path, text.replace(&edit.before, &edit.after)).map_err(|e| e.to_string())?;
        originals.push((path, text));
    }
    Ok(originals)
}

/// Whether a test of a package fails.
fn run_test(copy: &Path, package: &str, test: &str) -> Result<Option<String>, String> {
    let run = Command::new("cargo")
        .args(["test", "--release", "-p", package, "--lib", test])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .env("RUSTFLAGS", "-Awarnings")
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    if !said.contains("test result: ") || said.contains(" 0 passed; 0 failed") {
        return Err(format!("the test {test} does not run"));
    }
    Ok((!run.status.success()).then(|| format!("found by the test {test}")))
}

/// The first violation and the number of seeds that it took.
fn build_and_run(copy: &Path, options: &[String], seeds: &str) -> Result<Option<String>, String> {
    let build = Command::new("cargo")
        .args(["build", "--release", "-p", "bftd-sim"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .env("RUSTFLAGS", "-Awarnings")
        .output()
        .map_err(|e| e.to_string())?;
    if !build.status.success() {
        let text = String::from_utf8_lossy(&build.stderr).into_owned();
        return Err(text.lines().filter(|line| line.starts_with("error")).collect::<Vec<_>>().join("; "));
    }
    let run = Command::new(copy.join("target/release/bftd-sim"))
        .args(options)
        .args(["--seeds", seeds])
        .output()
        .map_err(|e| e.to_string())?;
    if run.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let ran = text.lines().next().and_then(|line| line.split(' ').next()).unwrap_or("?").to_owned();
    let check = text.lines().find(|line| line.starts_with("seed ")).and_then(|line| line.split(' ').nth(2));
    Ok(Some(format!("found after {ran} seeds by `{}`", check.unwrap_or("?"))))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", from.display());
    if from.is_dir() {
        fs::create_dir_all(to).map_err(fail)?;
        for entry in fs::read_dir(from).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    // Unchanged files keep their time, so that cargo builds only what is new.
    let text = fs::read(from).map_err(fail)?;
    if fs::read(to).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(to, text).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_fits_the_code_as_it_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let list = fs::read_to_string(root.join("tests/mutants.toml")).unwrap();
        let list: List = toml::from_str(&list).unwrap();
        assert!(list.mutant.len() >= 25);
        for mutant in &list.mutant {
            for edit in &mutant.edits {
                let text = fs::read_to_string(root.join("daemon").join(&edit.file)).unwrap();
                assert_eq!(text.matches(&edit.before).count(), 1, "{}: {}", mutant.name, edit.file);
            }
        }
    }
}
