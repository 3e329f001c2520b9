//! Every story in `stories/` goes as it is written there. `UPDATE_STORIES=1` writes them anew.

use std::{error::Error, fs, path::Path};

use bftd_sim::story::{diff, play};

#[test]
fn stories_go_as_they_are_written() -> Result<(), Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let mut differences = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let written = fs::read_to_string(&path)?;
        let played = play(&written).map_err(|error| format!("{}: {error}", path.display()))?;
        count += 1;
        if played == written {
            continue;
        }
        if std::env::var_os("UPDATE_STORIES").is_some() {
            fs::write(&path, played)?;
        } else {
            differences.push(format!("{}:\n{}", path.display(), diff(&written, &played)));
        }
    }
    assert!(count > 5, "only {count} stories");
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    Ok(())
}
