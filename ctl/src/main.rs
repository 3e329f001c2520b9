//! The program `bftctl`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bftctl::main()
}
