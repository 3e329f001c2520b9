//! What tests of `bftctl` as a process have in common.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread,
};

use bftd::admin::{AdminServer, Service};

/// Serves behind the real admin socket `s` in a directory, by a thread, until the test process ends.
pub fn serve<S: Service>(directory: &Path, service: Arc<S>) {
    let path = directory.join("s");
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = AdminServer::bind(&path).unwrap();
            ready.send(()).unwrap();
            let (_stop, stopped) = tokio::sync::watch::channel(false);
            server.serve(service, stopped).await;
        });
    });
    is_ready.recv().unwrap();
}

/// The program, cut off from the surroundings of whoever runs the tests.
pub fn bftctl(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bftctl"));
    command
        .env_clear()
        .env("HOME", directory)
        .env("BFTCTL_CONTEXTS", directory.join("contexts.toml"))
        .stdin(Stdio::null());
    command
}
