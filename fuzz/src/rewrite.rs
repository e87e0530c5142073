//! What passes between a client and the master, and the two replies in it that are changed.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use psyncd::front::inspect::{Asked, GivenUp, Rewriter, halves};
use psyncd::repl::Offset;
use psyncd::wire::listing::{Attached, Face, Listed, ListedState, Listing};
use psyncd::wire::resp::reply_len;
use psyncd::wire::skip::Skipper;
use psyncd::wire::watch::Watcher;

use crate::cuts::Cuts;

/// Changes nothing, or everything it is shown to a mark.
struct Marker {
    marks: bool,
    gave_up: Cell<bool>,
}

impl Rewriter for Marker {
    fn rewrite(&self, _asked: Asked, reply: &[u8]) -> Option<Bytes> {
        assert!(matches!(reply_len(reply, 2 << 20), Ok(Some(len)) if len == reply.len()), "it is not whole");
        self.marks.then(|| Bytes::from_static(b"+changed\r\n"))
    }

    fn gave_up(&self, _why: GivenUp) {
        self.gave_up.set(true);
    }
}

/// A client's commands and the master's replies: everything up to a zero byte is said by the client, what follows is
/// answered. However both are cut the same comes out, and where nothing is rewritten it is what came in.
pub fn pipeline(data: &[u8]) {
    let (commands, replies) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &b"+OK\r\n"[..]),
    };
    watched(commands);
    skipped(replies);
    let run = |marks, commands: &[&[u8]], replies: &[&[u8]]| {
        let marker = Marker { marks, gave_up: Cell::new(false) };
        let (mut asking, mut answering) = halves();
        commands.iter().for_each(|piece| asking.see(piece));
        let promoted = asking.take_promotion();
        let mut out = Vec::new();
        for piece in replies {
            let mut buffer = BytesMut::from(*piece);
            answering.pass(&mut buffer, &marker);
            out.extend_from_slice(&buffer);
        }
        out.extend_from_slice(&answering.finish());
        (out, promoted)
    };
    assert_eq!(run(false, &[commands], &[replies]).0, replies, "what nobody rewrites passes untouched");
    let whole = run(true, &[commands], &[replies]);
    for (commands, replies) in Cuts::of(commands).pieces().iter().zip(Cuts::of(replies).pieces().iter()) {
        assert_eq!(run(true, commands, replies), whole);
    }
}

fn watched(data: &[u8]) {
    let run = |pieces: &[&[u8]]| {
        let mut watcher = Watcher::default();
        let (mut commands, mut notables) = (0, Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                match watcher.watch(rest) {
                    Ok(watched) => {
                        assert!(watched.bytes > 0 && watched.bytes <= rest.len());
                        rest = &rest[watched.bytes..];
                        commands += watched.commands;
                        notables.extend(watched.notable);
                    }
                    Err(_) => return (commands, notables, true),
                }
            }
        }
        (commands, notables, false)
    };
    let whole = run(&[data]);
    for pieces in Cuts::of(data).pieces() {
        let cut = run(&pieces);
        // Commands that ended in the piece with the error are not told of.
        assert_eq!(cut.2, whole.2);
        if !whole.2 {
            assert_eq!(cut, whole);
        }
    }
}

fn skipped(data: &[u8]) {
    let run = |pieces: &[&[u8]]| {
        let mut skipper = Skipper::default();
        let mut replies = 0;
        for piece in pieces {
            match skipper.skip(piece, u64::MAX) {
                Ok(skipped) => {
                    assert_eq!(skipped.bytes, piece.len());
                    replies += skipped.replies;
                }
                Err(_) => return None,
            }
        }
        Some(replies)
    };
    let whole = run(&[data]);
    for pieces in Cuts::of(data).pieces() {
        assert_eq!(run(&pieces), whole);
    }
}

fn listing() -> Listing {
    let face = |host: &str, port| Face { host: host.to_owned(), port };
    let listed = |host, port, state| Listed {
        face: face(host, port),
        state,
        offset: Offset::new(77),
        lag_seconds: 1,
    };
    Listing {
        faces: vec![face("127.0.0.1", 0), face("127.0.0.1", 6380)],
        link: Attached::Yes,
        replicas: vec![
            listed("10.0.0.1", 7001, ListedState::Online),
            listed("10.0.0.2", 7002, ListedState::SendBulk),
        ],
        section: "psyncd_replicas:2\r\n".to_owned(),
    }
}

/// The reply to INFO or ROLE. What comes out is one whole reply, and every line that is not about replicas is in it as
/// it was.
pub fn rewrite(data: &[u8]) {
    const MAX: usize = 4 << 20;
    let listing = listing();
    for asked in [false, true] {
        if let Some(reply) = listing.rewrite_info(data, asked) {
            assert_eq!(reply_len(&reply, MAX), Ok(Some(reply.len())));
            let mut left = lines(&reply).into_iter();
            for line in lines(data) {
                assert!(left.any(|other| other == line), "{:?} is gone", line.escape_ascii().to_string());
            }
        }
    }
    if let Some(reply) = listing.rewrite_role(data) {
        assert_eq!(reply_len(&reply, MAX), Ok(Some(reply.len())));
        assert_eq!(listing.rewrite_role(&reply), Some(reply), "ours take the place of ours");
    }
}

/// Those without a word of replicas, and without the reply's own header.
fn lines(reply: &[u8]) -> Vec<&[u8]> {
    let body = reply.iter().position(|byte| *byte == b'\n').map_or(&[][..], |at| &reply[at + 1..]);
    let is_free = |line: &&[u8]| !line.windows(5).any(|window| window == b"slave") && !line.trim_ascii().is_empty();
    body.split(|byte| *byte == b'\n').filter(is_free).map(<[u8]>::trim_ascii_end).collect()
}
