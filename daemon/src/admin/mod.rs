//! The admin socket: where this host's clients are served.
//!
//! - Who may connect is a matter of the file's mode (0660); who asks is told to the [`Service`] (SO_PEERCRED).
//! - Each connection is one task, which does three things side by side: it reads calls, polls the answers under way,
//!   and writes whatever answers have gathered. Answers come in any order.
//! - Bounds: [`CONNECTIONS`] connections (more wait to be accepted), [`IN_FLIGHT`] calls of each, of together
//!   [`BYTES_IN_FLIGHT`] (then reading pauses), among them [`WATCHES`] watches (more are refused), 16 MiB a frame; a greeting must come within [`GREETING_DEADLINE`], a
//!   frame once begun be complete within [`FRAME_DEADLINE`]. Answers that a client does not take are held up to 256 KiB
//!   and a frame (then no call goes on); one that takes nothing for [`WRITE_DEADLINE`] is disconnected.
//! - A client that closes its side, in whole or in part, is gone: its calls are dropped. One that breaks a rule is told
//!   which, and disconnected.

mod session;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream as BlockingStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bftd_client::protocol::{Request, Response};
use nix::unistd::{Group, Uid, User};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, watch},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

/// How many connections are served at once.
pub const CONNECTIONS: usize = 1024;
/// How many calls of one connection are under way at once.
pub const IN_FLIGHT: usize = 4096;
/// How many of them may be watches, which may wait for long; more are refused.
pub const WATCHES: usize = 1024;
/// From how many bytes of calls under way on no more of a connection's calls are taken.
pub const BYTES_IN_FLIGHT: usize = 64 << 20;
/// Within what time a client must send its greeting.
pub const GREETING_DEADLINE: Duration = Duration::from_secs(5);
/// Within what time a frame must be complete once its first byte is here.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// For how long a client may take nothing of the answers that wait for it.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// How long clients are still sent their answers once the daemon is to stop.
const FAREWELL: Duration = Duration::from_millis(500);
/// The longest path that a Unix socket can have, in bytes.
const LONGEST_PATH: usize = 107;
/// Owner and group may connect.
const MODE: u32 = 0o660;

/// Answers the calls of clients.
pub trait Service: Send + Sync + 'static {
    /// Answers one call. Dropped unfinished when the client goes away.
    fn handle(&self, peer: PeerCredentials, request: Request) -> impl Future<Output = Response> + Send;
}

/// Who is at the other end of a connection, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The user.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
    /// The process, where the kernel says.
    pub pid: Option<i32>,
    /// The number of the connection, which no other one of this daemon's run has.
    pub connection: u64,
}

/// Whose members may do more with a daemon than read and write.
pub const ADMIN_GROUP: &str = "bftd-admin";

impl PeerCredentials {
    /// Whether the user may do more than read and write: root, the daemon's own user, and members of [`ADMIN_GROUP`].
    pub async fn is_admin(self) -> bool {
        // The group database may be far away.
        let is_listed = || spawn_blocking(move || self.is_in(ADMIN_GROUP));
        self.uid == 0
            || self.uid == rustix::process::geteuid().as_raw()
            || is_listed().await.is_ok_and(|is_listed| is_listed)
    }

    /// Whether it is the user's own group, or the host's group database has the user in it. An unknown group has no members.
    fn is_in(&self, group: &str) -> bool {
        let Ok(Some(group)) = Group::from_name(group) else { return false };
        let is_listed = |user: User| group.mem.contains(&user.name);
        group.gid.as_raw() == self.gid
            || User::from_uid(Uid::from_raw(self.uid)).is_ok_and(|user| user.is_some_and(is_listed))
    }
}

/// Why the socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Such a path can't be a socket's.
    #[error(
        "the admin socket's path has {bytes} bytes, a Unix socket's has at most {LONGEST_PATH}: {}; choose a shorter one \
         with `socket` in [admin]", path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Somebody answers there.
    #[error("another daemon answers on {}; stop it, or choose another `socket` in [admin]", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refuses.
    #[error("can't open the admin socket {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whether a path can be a socket's.
///
/// # Errors
/// [`AdminError::PathTooLong`].
pub fn check_path(path: &Path) -> Result<(), AdminError> {
    let bytes = path.as_os_str().len();
    if bytes > LONGEST_PATH {
        return Err(AdminError::PathTooLong { path: path.to_owned(), bytes });
    }
    Ok(())
}

/// The open socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    file: SocketFile,
    limits: Limits,
}

/// The limits at the top of this file; tests are in a hurry.
#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    greeting: Duration,
    frame: Duration,
    write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            greeting: GREETING_DEADLINE,
            frame: FRAME_DEADLINE,
            write: WRITE_DEADLINE,
        }
    }
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nobody can be told, and the next daemon replaces a stale file.
        let _ = fs::remove_file(&self.0);
    }
}

impl AdminServer {
    /// Opens the socket. A socket that a dead daemon left is replaced; a file of another kind is left alone.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        check_path(path)?;
        let failed = |source| AdminError::Io { path: path.to_owned(), source };
        if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            match BlockingStream::connect(path) {
                Ok(_) => return Err(AdminError::InUse { path: path.to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let file = SocketFile(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(Self { listener, file, limits: Limits::default() })
    }

    /// Serves clients until `stop` is set, and then writes the answers that are there, for half a second at most.
    pub async fn serve<S: Service>(self, service: Arc<S>, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let mut sessions = JoinSet::new();
        let mut connection = 0;
        loop {
            let accept = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = accept => accepted,
            };
            while sessions.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let service = Arc::clone(&service);
                    let (limits, closing) = (self.limits, stop.clone());
                    connection += 1;
                    sessions.spawn(async move {
                        let _place = place;
                        session::serve(stream, connection, service, limits, closing).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others will be closed.
                    tracing::warn!(%error, "can't accept a client on the admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Who is not done by then is cut off below.
        let _ = timeout(FAREWELL, async { while sessions.join_next().await.is_some() {} }).await;
        sessions.shutdown().await;
        drop(self.file);
    }
}
