//! What the service manager is told, in the words of sd_notify(3): that psyncd listens, how things stand, that it reads its
//! configuration again, that it goes, and that it is alive. Without a manager (no `NOTIFY_SOCKET`) nothing is said.
//!
//! A few datagrams of our own, because tests then choose the socket without changing the environment of the process.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram as Plain};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::net::UnixDatagram;
use tokio::time::timeout;
use tracing::{debug, warn};

/// How often the status is told at least, watched or not.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// How long a manager may take for a datagram. It is not worth more: psyncd serves without one.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest status: one line, also in `systemctl status`.
const STATUS_CHARS: usize = 400;

/// Where the manager listens, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

/// What a manager wants to know, as it said in our environment (sd_notify(3), sd_watchdog_enabled(3)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// `NOTIFY_SOCKET`: a path, or with `@` in front a name in the abstract namespace.
    pub socket: Option<&'a OsStr>,
    /// `WATCHDOG_USEC`: who says nothing for so long is killed.
    pub watchdog_usec: Option<&'a OsStr>,
    /// `WATCHDOG_PID`: whom that is meant for, if not for everybody.
    pub watchdog_pid: Option<&'a OsStr>,
}

impl Notifier {
    /// Of this process. Needs a runtime. A socket that cannot be used is said in the log and costs nothing else.
    pub fn of_process() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let (socket, usec, pid) = (var("NOTIFY_SOCKET"), var("WATCHDOG_USEC"), var("WATCHDOG_PID"));
        let wanted = Wanted { socket: socket.as_deref(), watchdog_usec: usec.as_deref(), watchdog_pid: pid.as_deref() };
        Self::new(wanted, std::process::id()).unwrap_or_else(|error| {
            warn!(event = "service_manager_lost", %error, "service manager not reached");
            Self::default()
        })
    }

    /// For the process of that number.
    ///
    /// # Errors
    /// When the socket is no address or nobody listens there.
    pub fn new(wanted: Wanted<'_>, pid: u32) -> io::Result<Self> {
        let Some(name) = wanted.socket else { return Ok(Self::default()) };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = Plain::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(UnixDatagram::from_std(socket)?), watchdog: watchdog(wanted, pid) })
    }

    /// Whether there is anybody to tell.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// How often [`alive`](Self::alive) has to be said: twice in the time of the watchdog, as sd_watchdog_enabled(3) advises.
    pub fn pulse(&self) -> Duration {
        self.watchdog.map_or(STATUS_EVERY, |limit| (limit / 2).min(STATUS_EVERY))
    }

    /// It listens; after [`reloading`](Self::reloading), it has reloaded. Cancel-safe, like all of these.
    pub async fn ready(&self) {
        self.tell("READY=1").await;
    }

    /// It reads its configuration again. The time lets `Type=notify-reload` know its own signal's answer.
    pub async fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={usec}")).await;
    }

    /// It ends in an orderly way.
    pub async fn stopping(&self) {
        self.tell("STOPPING=1").await;
    }

    /// How things stand, and, to a watchdog, that it is alive.
    pub async fn alive(&self, status: &str) {
        let status = one_line(status);
        match self.watchdog {
            Some(_) => self.tell(&format!("WATCHDOG=1\nSTATUS={status}")).await,
            None => self.tell(&format!("STATUS={status}")).await,
        }
    }

    async fn tell(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        match timeout(PATIENCE, socket.send(message.as_bytes())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => debug!(%error, "service manager not told"),
            Err(_) => debug!("service manager did not listen"),
        }
    }
}

/// The limit of a watchdog that means us.
fn watchdog(wanted: Wanted<'_>, pid: u32) -> Option<Duration> {
    let number = |value: &OsStr| value.to_str()?.parse::<u64>().ok();
    let meant = wanted.watchdog_pid.is_none_or(|value| number(value) == Some(u64::from(pid)));
    let usec = number(wanted.watchdog_usec?).filter(|usec| *usec > 0)?;
    meant.then(|| Duration::from_micros(usec))
}

/// A newline would begin another assignment.
fn one_line(status: &str) -> String {
    status.chars().map(|c| if c.is_control() { ' ' } else { c }).take(STATUS_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted<'a>(usec: &'a str, pid: Option<&'a str>) -> Wanted<'a> {
        Wanted { socket: None, watchdog_usec: Some(OsStr::new(usec)), watchdog_pid: pid.map(OsStr::new) }
    }

    #[test]
    fn a_watchdog_counts_only_if_it_is_meant_for_us_and_has_a_time() {
        let limit = Some(Duration::from_secs(3));
        assert_eq!(watchdog(wanted("3000000", None), 7), limit);
        assert_eq!(watchdog(wanted("3000000", Some("7")), 7), limit);
        assert_eq!(watchdog(wanted("3000000", Some("8")), 7), None);
        assert_eq!(watchdog(wanted("3000000", Some("x")), 7), None);
        assert_eq!(watchdog(wanted("0", None), 7), None);
        assert_eq!(watchdog(wanted("soon", None), 7), None);
        assert_eq!(watchdog(Wanted::default(), 7), None);
    }

    #[test]
    fn a_status_cannot_say_anything_but_a_status() {
        assert_eq!(one_line("streaming\nMAINPID=1"), "streaming MAINPID=1");
        assert_eq!(one_line(&"x".repeat(1000)).len(), STATUS_CHARS);
    }

    #[tokio::test]
    async fn nobody_is_told_where_nobody_listens() {
        let nobody = Notifier::new(Wanted::default(), 1).unwrap();
        assert!(!nobody.is_heard());
        nobody.ready().await;
        assert_eq!(nobody.pulse(), STATUS_EVERY);
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        assert!(Notifier::new(Wanted { socket: Some(gone.as_os_str()), ..Wanted::default() }, 1).is_err());
    }

    #[tokio::test]
    async fn a_socket_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("psyncd-test-{}", std::process::id());
        let hidden = format!("@{name}");
        let abstractly = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, socket) in [
            (Plain::bind(&path).unwrap(), path.as_os_str()),
            (Plain::bind_addr(&abstractly).unwrap(), OsStr::new(&hidden)),
        ] {
            manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let wanted = Wanted { socket: Some(socket), ..wanted("4000000", None) };
            let notifier = Notifier::new(wanted, 1).unwrap();
            assert_eq!(notifier.pulse(), Duration::from_secs(2));
            let mut buffer = [0; 512];
            let mut heard = || {
                let read = manager.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..read]).into_owned()
            };
            notifier.ready().await;
            assert_eq!(heard(), "READY=1");
            notifier.alive("well").await;
            assert_eq!(heard(), "WATCHDOG=1\nSTATUS=well");
            notifier.reloading().await;
            assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            notifier.stopping().await;
            assert_eq!(heard(), "STOPPING=1");
        }
    }
}
