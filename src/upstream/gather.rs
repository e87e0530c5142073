//! Gathering: fewer and larger rounds while many replicas follow.
//!
//! At ordinary rates a round brings a command or two, and what it costs is waking every replica's session for them.
//! A gather time is the least time between two rounds. What comes after a silence longer than that goes on at once;
//! what comes sooner waits for the rest of it, unless the master asks for an ACK in it, or there is as much as a round
//! can hold. Nothing is lost if the wait is given up: a link goes on from what the relay has.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::BytesMut;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::time::Instant;

use crate::net::Source;
use crate::wire::dialogue;

/// Replicas from which on gathering can pay: for fewer, waking them costs less than the wait does.
pub const MANY: usize = 8;

/// Keeps rounds apart.
pub struct Gather {
    time: Duration,
    /// The runtime's own timers know only whole milliseconds.
    timer: AsyncFd<OwnedFd>,
    /// When the last round was over.
    last: Instant,
}

impl Gather {
    /// Keeps rounds at least `time` apart.
    pub fn apart(time: Duration) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(deprecated, reason = "an OwnedFd names the same descriptor for as long as it lives")]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self { time, timer, last: Instant::now() })
    }

    /// Completes a round that began with what is in `buffer`: takes what comes until it is time, at most until there
    /// are `most` bytes or no room is left. An end or an error is left for the next read to find.
    pub async fn complete(&mut self, source: &mut Source, buffer: &mut BytesMut, most: usize) {
        let early = self.time.saturating_sub(self.last.elapsed());
        if !early.is_zero() {
            let over = self.pass(early);
            tokio::pin!(over);
            let mut seen = 0;
            while buffer.len() < most && buffer.capacity() > buffer.len() && !dialogue::may_ask(&buffer[seen..]) {
                seen = buffer.len();
                tokio::select! {
                    biased;
                    _ = &mut over => break,
                    more = source.read_buf(buffer) => match more {
                        Ok(0) | Err(_) => break,
                        Ok(_) => {}
                    }
                }
            }
        }
        self.last = Instant::now();
    }

    async fn pass(&self, time: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let nanos = i64::from(time.subsec_nanos().max(1));
        let value = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: nanos };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        let mut expirations = [0; 8];
        self.timer.async_io(Interest::READABLE, |timer| Ok(rustix::io::read(timer, &mut expirations)?)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::{sleep, timeout};

    const LONG: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_secs(5);

    /// What a round is in the end that begins with `first`, while `then` is all that comes.
    async fn round(mut gather: Gather, first: &[u8], then: &[u8]) -> Vec<u8> {
        let (mut master, source) = duplex(1024);
        master.write_all(then).await.unwrap();
        let mut source: Source = Box::new(source);
        let mut buffer = BytesMut::with_capacity(1024);
        buffer.extend_from_slice(first);
        timeout(SOON, gather.complete(&mut source, &mut buffer, 1024)).await.unwrap();
        buffer.to_vec()
    }

    #[tokio::test]
    async fn what_comes_until_it_is_time_is_of_the_same_round() {
        let gather = Gather::apart(Duration::from_millis(10)).unwrap();
        assert_eq!(round(gather, b"a", b"b").await, b"ab");
    }

    #[tokio::test]
    async fn a_timer_that_was_not_waited_for_does_not_ring_in_the_next_round() {
        let mut gather = Gather::apart(LONG).unwrap();
        let _ = timeout(Duration::from_millis(1), gather.pass(Duration::from_nanos(1))).await;
        gather.last = Instant::now();
        assert!(timeout(Duration::from_millis(50), round(gather, b"a", b"b")).await.is_err());
    }

    #[tokio::test]
    async fn what_comes_after_a_silence_goes_on_at_once() {
        let gather = Gather::apart(Duration::from_millis(1)).unwrap();
        sleep(Duration::from_millis(2)).await;
        assert_eq!(round(gather, b"a", b"b").await, b"a");
    }

    #[tokio::test]
    async fn who_asks_for_an_ack_is_not_kept_waiting() {
        const GETACK: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";
        assert_eq!(round(Gather::apart(LONG).unwrap(), GETACK, b"b").await, GETACK);
        assert_eq!(round(Gather::apart(LONG).unwrap(), b"a", GETACK).await, [b"a", GETACK].concat());
    }

    #[tokio::test]
    async fn a_full_round_goes_on_at_once() {
        assert_eq!(round(Gather::apart(LONG).unwrap(), &[b'a'; 1024], b"b").await.len(), 1024);
    }
}
