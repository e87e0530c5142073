//! What psyncd reads from others, one function for each door, given any bytes by a fuzzer: `fuzz_targets/` are these
//! functions under libFuzzer, `corpus/` is what real servers said (`capture.py`) and what was found. Begin with `.ci/fuzz`.
//!
//! Each function panics where a promise is broken: that nothing panics, that nothing is held beyond its bound, that the
//! same bytes mean the same however they were cut into pieces, that a rewriter changes nothing it does not know, and
//! that what was read and printed reads the same.

#![forbid(unsafe_code)]

mod cuts;
mod disk;
mod journal;
mod master;
mod rewrite;

use std::path::Path;

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use psyncd::access::Verdict;
use psyncd::config::Config;
use psyncd::config::settings::Setting;
use psyncd::config::sources::{Flags, SmallFile, Surroundings};
use psyncd::downstream::handshake::{Handshake, Step};
use psyncd::front::classify::{Heard, Route};
use psyncd::repl::Offset;
use psyncd::store::segment::{self, Head, Record};
use psyncd::wire::command::{PeerCommand, error_line};
use psyncd::wire::hello::Hello;
use psyncd::wire::info::{CHAIN_MAX, parse_info};
use psyncd::wire::payload::{PayloadEvent, PayloadReceiver};
use psyncd::wire::rdb::RdbCheck;
use psyncd::wire::rdb_head::{HEAD_MAX, read_head};
use psyncd::wire::reply::{Reply, Resp};
use psyncd::wire::resp::{Args, FrameLimits, encode_command, first_word, parse_command, reply_len};
use psyncd::wire::scan::Scanner;
use psyncd::wire::{assist, dialogue};

use cuts::Cuts;
pub use journal::journal;
pub use master::master;
pub use rewrite::{pipeline, rewrite};

/// Commands of the front of `data`, as far as they are some; bounded by what a handshake may say.
fn commands_of(mut data: &[u8]) -> Vec<Args> {
    let mut all = Vec::new();
    while let Ok(Some((args, used))) = parse_command(data, &FrameLimits::HANDSHAKE) {
        assert!(used > 0 && used <= data.len());
        data = &data[used..];
        all.push(args);
    }
    all
}

/// Commands as a connection's first words: framed or a line, known for a replica's or a client's.
pub fn commands(data: &[u8]) {
    let limits = FrameLimits::HANDSHAKE;
    let whole = parse_command(data, &limits);
    for cut in Cuts::of(data).places() {
        match parse_command(&data[..cut], &limits) {
            Ok(None) => {}
            decided => assert_eq!(decided, whole, "{cut} bytes are enough to decide, and more change nothing"),
        }
        let heard = Heard::default();
        match heard.route(&data[..cut]) {
            Route::NeedMore => assert!(cut < limits.max_frame, "more is needed for ever"),
            route => assert_eq!(route, heard.route(data)),
        }
    }
    let _ = first_word(data);
    for args in commands_of(data) {
        assert!(args.len() <= limits.max_args && args.iter().all(|word| word.len() <= limits.max_inline));
        let _ = PeerCommand::parse(&args);
        let _ = assist::parse_greeting(&args);
        let _ = assist::sealed(&args);
        let printed = encode_command(&args);
        if !args.is_empty() && printed.len() <= limits.max_frame && args.iter().all(|a| a.len() <= limits.max_bulk) {
            let (again, used) = parse_command(&printed, &limits).expect("ours").expect("whole");
            assert_eq!((again, used), (args, printed.len()));
        }
    }
}

/// What a server or a Sentinel answers: INFO, ROLE, replies as values, the lines of a handshake.
pub fn replies(data: &[u8]) {
    const MAX: usize = 64 << 10;
    let info = parse_info(data);
    assert!(info.chain.len() <= CHAIN_MAX);
    let _ = (info.warm_attach(), info.version_at_least((7, 0)));
    let _ = (dialogue::parse_psync_reply(data), dialogue::parse_ping_reply(data), dialogue::refusal(data));
    let _ = (dialogue::config_value(data), assist::parse_welcome(data), Hello::parse(data));
    if let Ok(text) = str::from_utf8(data) {
        if let Some(ask) = assist::Ask::parse(text) {
            assert_eq!(assist::Ask::parse(&ask.text()), Some(ask));
        }
        if let Some(answer) = assist::Answer::parse(text) {
            assert_eq!(assist::Answer::parse(&answer.text()), Some(answer));
        }
    }
    let whole = reply_len(data, MAX);
    for cut in Cuts::of(data).places() {
        match reply_len(&data[..cut], MAX) {
            Ok(None) => {}
            decided => assert_eq!(decided, whole),
        }
    }
    if let Ok(Some((reply, used))) = Reply::parse(data, MAX) {
        assert_eq!(whole, Ok(Some(used)));
        let printed = reply.encode(Resp::Two);
        // An error is kept as an excerpt, which is made for people.
        if !has_error(&reply)
            && let Ok(Some((again, used))) = Reply::parse(&printed, MAX)
        {
            assert_eq!((&again, used), (&reply, printed.len()));
            assert_eq!(again.encode(Resp::Two), printed);
        }
    }
}

fn has_error(reply: &Reply) -> bool {
    match reply {
        Reply::Error(_) => true,
        Reply::Array(items) | Reply::Push(items) => items.iter().any(has_error),
        _ => false,
    }
}

/// What a replica says before it asks: nobody who is refused gets further, whatever the order of his words.
pub fn replica(data: &[u8]) {
    for granted in [false, true] {
        let mut machine = Handshake::new("us".into(), "10.0.0.9".into());
        let verdict = || match granted {
            true => Verdict::Granted,
            false => Verdict::Refused(error_line("NOPERM no")),
        };
        for args in commands_of(data) {
            let mut step = machine.command(&args);
            if step == Step::Judge {
                machine.judged(verdict());
                step = machine.command(&args);
                assert_ne!(step, Step::Judge, "judged twice");
            }
            match step {
                Step::Auth(named) => {
                    let answer = machine.named(named, verdict());
                    assert!(answer.ends_with(b"\r\n"));
                }
                Step::Reply(line) => assert!(line.is_empty() || is_one_line(&line), "{}", line.escape_ascii()),
                Step::RefuseStranger(line) => assert!(!granted && is_one_line(&line)),
                Step::RefuseLoop(line) => assert!(is_one_line(&line)),
                Step::Info | Step::Promote | Step::Asked(_) => assert!(granted, "a stranger got in"),
                Step::Judge => unreachable!("see above"),
            }
            let said = machine.said();
            let host = &said.introduction.host;
            assert!(host.len() <= 255 && host.bytes().all(|b| b.is_ascii_graphic() && b != b',' && b != b'"'));
            assert!(said.psyncd.as_ref().is_none_or(|id| id.len() <= 64));
        }
    }
}

fn is_one_line(line: &[u8]) -> bool {
    line.ends_with(b"\r\n") && !line[..line.len() - 2].iter().any(|b| matches!(b, b'\r' | b'\n'))
}

/// A payload's frame and the RDB in it.
pub fn rdb(data: &[u8]) {
    let run = |pieces: &[&[u8]]| {
        let (mut receiver, mut check) = (PayloadReceiver::new(), RdbCheck::new());
        let (mut input, mut payload, mut events) = (BytesMut::new(), Vec::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match receiver.push(&mut input) {
                    Ok(None) => break,
                    Ok(Some(PayloadEvent::Data(bytes))) => {
                        assert!(!bytes.is_empty());
                        let pushed = check.push(&bytes);
                        payload.extend_from_slice(&bytes);
                        if pushed.is_err() {
                            return (payload, events, None, true);
                        }
                    }
                    Ok(Some(event)) => {
                        events.push(event.clone());
                        if event == PayloadEvent::End {
                            return (payload, events, Some(check.finish()), false);
                        }
                    }
                    Err(_) => return (payload, events, None, true),
                }
            }
            // A line that does not end, or the front of a mark.
            assert!(input.len() <= 2048, "{} bytes are held", input.len());
        }
        (payload, events, None, false)
    };
    let whole = run(&[data]);
    for pieces in Cuts::of(data).pieces() {
        let cut = run(&pieces);
        // How much passed before an error was found may differ, not whether there is one.
        assert_eq!((&cut.1, &cut.2, cut.3), (&whole.1, &whole.2, whole.3));
        if !whole.3 {
            assert_eq!(cut.0, whole.0);
        }
    }
    let head = read_head(data);
    assert!(head.is_some() || data.len() < HEAD_MAX);
    for cut in Cuts::of(data).places() {
        if let Some(early) = read_head(&data[..cut]) {
            assert_eq!(Some(early), head);
        }
    }
}

/// The stream of a master, of which only boundaries and requests for acknowledgements are looked for.
pub fn stream(data: &[u8]) {
    let start = Offset::new(1000);
    let run = |mut scanner: Scanner, pieces: &[&[u8]]| {
        let mut getacks = 0;
        let mut error = None;
        for piece in pieces {
            let scanned = scanner.scan(piece);
            assert!(scanned.accepted <= piece.len() && (scanned.error.is_some() || scanned.accepted == piece.len()));
            getacks += scanner.take_getacks().map_or(0, |acks| acks.count);
            error = scanned.error;
            if error.is_some() {
                break;
            }
        }
        (scanner.head(), scanner.boundary(), scanner.is_blind(), getacks, error)
    };
    let whole = run(Scanner::new(start), &[data]);
    let blind = start.forward(data.len() as u64 / 2);
    let blindly = run(Scanner::before_boundary(start, blind), &[data]);
    assert!(whole.1 <= whole.0 && whole.0.since(start) <= data.len() as u64);
    for pieces in Cuts::of(data).pieces() {
        assert_eq!(run(Scanner::new(start), &pieces), whole);
        assert_eq!(run(Scanner::before_boundary(start, blind), &pieces), blindly);
    }
}

/// A journal's file. The checksums are put right first: without that nothing behind them would ever be reached.
pub fn segment(data: &[u8]) {
    const DEPTH: usize = 16;
    let raw = Bytes::copy_from_slice(data);
    if Head::of(&raw) != Head::Ours {
        return;
    }
    let mut file = data.to_vec();
    let mut place = segment::HEAD_BYTES;
    let mut tag = crc32c(&[&data[..segment::HEAD_BYTES]]);
    let mut read_with = None;
    while let Some(length) = file.get(place..).and_then(segment::record_bytes) {
        if place + length > file.len() {
            break;
        }
        let at = (place as u64).to_le_bytes();
        let crc = crc32c(&[
            &tag.to_le_bytes(),
            &at,
            &file[place..place + 8],
            &file[place + segment::HEADER_BYTES..place + length],
        ]);
        file[place + 8..place + segment::HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        let record = Bytes::copy_from_slice(&file[place..place + length]);
        let Some(reads) = read_with else {
            let Some((origin, reads)) = segment::read_origin_record(&record, DEPTH) else { return };
            if origin.history.ancestors().len() < DEPTH && origin.upstream.len() <= segment::MAX_UPSTREAM {
                let (printed, again) = segment::write_origin(&origin);
                let printed = printed.slice(segment::HEAD_BYTES..);
                assert_eq!(segment::read_origin_record(&printed, DEPTH), Some((origin, again)));
            }
            (tag, read_with) = (crc, Some(reads));
            place += length;
            continue;
        };
        match reads.read(place as u64, &record, DEPTH) {
            Some(Record::Data { unix_ms, boundary, bytes }) => {
                assert_eq!(reads.data(place as u64, unix_ms, boundary, &[bytes]), record);
            }
            Some(Record::History(history)) => {
                let printed = reads.history(place as u64, &history);
                assert_eq!(reads.read(place as u64, &printed, DEPTH), Some(Record::History(history)));
            }
            Some(Record::Index(index)) => {
                let sealed = reads.seal(place as u64, &index);
                let length = segment::record_bytes(&sealed).expect("ours");
                let end = (place + length) as u64;
                let printed = sealed.slice(..length);
                assert!(reads.trailer(end, &sealed[length..]).is_some_and(|trailer| trailer.index == place as u64));
                assert_eq!(reads.read(place as u64, &printed, DEPTH), Some(Record::Index(index)));
            }
            Some(Record::Origin(_)) | None => {}
        }
        // In another place it is no record.
        assert_eq!(reads.read(place as u64 + 1, &record, DEPTH), None);
        place += length;
    }
    if let Some(reads) = read_with {
        let _ = reads.trailer(place as u64, &file[place..]);
    }
}

fn crc32c(pieces: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize() as u32
}

/// A configuration file. What holds is printed, and holds again.
pub fn config(data: &[u8]) {
    let load = |bytes: &[u8]| {
        let read_file = |path: &Path| match path.to_str() {
            Some("/f") => Ok(SmallFile { bytes: bytes.to_vec(), mode: 0o600 }),
            // Any secret that is kept in a file of its own.
            _ => Ok(SmallFile { bytes: b"secret\n".to_vec(), mode: 0o600 }),
        };
        let flags = Flags { file: Some("/f".into()), values: Vec::new() };
        Config::load(&flags, &Surroundings { env: Vec::new(), read_file: &read_file })
    };
    // Only where it is the value of a secret, and of nothing else.
    let is_secret =
        data.split(|byte| *byte == b'\n').filter(|line| line.windows(7).any(|word| word == b"hunter2")).all(|line| {
            let key = line.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            str::from_utf8(key).is_ok_and(|key| Setting::named(key).is_some_and(Setting::is_secret))
        });
    match load(data) {
        Err(error) => {
            let said = error.to_string();
            assert!(!is_secret || !said.contains("hunter2"), "{said}");
        }
        Ok(loaded) => {
            let printed = loaded.values.print();
            assert!(!is_secret || !printed.contains("hunter2"), "{printed}");
            // Secrets are masked; any that are long enough, and digests, do instead. Each value is printed with the line
            // it stands on, which is another one only the first time.
            let print =
                |printed: &str| match load(printed.replace("\"***\"", &format!("{:?}", "a".repeat(64))).as_bytes()) {
                    Ok(again) => again.values.print(),
                    Err(error) => panic!("{error}\n{printed}"),
                };
            let again = print(&printed);
            assert_eq!(print(&again), again);
        }
    }
}
