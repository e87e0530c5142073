//! Readiness of many sockets: epoll, level-triggered, with a token for each.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// Most sockets told of at once.
const MOST: usize = 512;

/// What a socket is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Only its end.
    Nothing,
    /// Bytes to read.
    Read,
    /// Bytes to read, or room to write.
    Both,
}

impl Want {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Want::Nothing => epoll::EventFlags::empty(),
            Want::Read => epoll::EventFlags::IN,
            Want::Both => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        }
    }
}

/// One socket that can be used.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Whose.
    pub token: u64,
    /// There are bytes, an end or an error to read.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
}

/// A set of watched sockets.
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches `socket`. It is forgotten by itself when it is closed.
    pub fn add(&self, socket: impl AsFd, token: u64, want: Want) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), want.flags())?)
    }

    /// Watches a known `socket` for something else.
    pub fn change(&self, socket: impl AsFd, token: u64, want: Want) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token), want.flags())?)
    }

    /// What is ready, at latest after `timeout`.
    pub fn wait(&self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); MOST];
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let events = match epoll::wait(&self.epoll, &mut events[..], Some(&timeout)) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            let ended = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            Ready {
                token: data.u64(),
                readable: flags.intersects(epoll::EventFlags::IN | ended),
                writable: flags.intersects(epoll::EventFlags::OUT | ended),
            }
        }));
        Ok(())
    }
}
