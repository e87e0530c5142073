//! Any pipeline of commands, cut and interleaved with its replies in any way, passes the same: replies to INFO and ROLE
//! rewritten, everything else as it came.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::wire::chop;
use crate::wire::resp::encode_command;
use crate::wire::skip::tests::reply;

/// Writes who was asked in front of the reply.
#[derive(Default)]
struct Marker {
    ends: RefCell<Vec<GivenUp>>,
}

fn marked(asked: Asked, reply: &[u8]) -> Vec<u8> {
    [format!("<{asked:?}>").as_bytes(), reply].concat()
}

impl Rewriter for Marker {
    fn rewrite(&self, asked: Asked, reply: &[u8]) -> Option<Bytes> {
        Some(Bytes::from(marked(asked, reply)))
    }

    fn gave_up(&self, why: GivenUp) {
        self.ends.borrow_mut().push(why);
    }
}

/// A connection through which both directions are pushed by hand.
struct Connection {
    asking: Asking,
    answering: Answering,
    marker: Marker,
    out: Vec<u8>,
}

impl Connection {
    fn new() -> Self {
        let (asking, answering) = halves();
        Self { asking, answering, marker: Marker::default(), out: Vec::new() }
    }

    fn ask(&mut self, bytes: impl AsRef<[u8]>) {
        self.asking.see(bytes.as_ref());
    }

    fn answer(&mut self, bytes: impl AsRef<[u8]>) {
        let mut buffer = BytesMut::from(bytes.as_ref());
        self.answering.pass(&mut buffer, &self.marker);
        self.out.extend_from_slice(&buffer);
    }

    fn ends(&self) -> Vec<GivenUp> {
        self.marker.ends.borrow().clone()
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.out).unwrap()
    }
}

const INFO: Asked = Asked::Info { psyncd: false };

#[test]
fn an_info_in_the_middle_of_a_pipeline_is_found() {
    let mut connection = Connection::new();
    connection.ask("GET a\r\ninfo\r\n*1\r\n$4\r\nROLE\r\nINFO psyncd\r\nPING\r\n");
    connection.answer("$4\r\ninfo\r\n$3\r\nabc\r\n*1\r\n*0\r\n");
    connection.answer("=4\r\ntxt:");
    assert!(!connection.text().contains("txt"), "half a reply is held");
    connection.answer("\r\n+PONG\r\n");
    assert_eq!(
        connection.text(),
        "$4\r\ninfo\r\n<Info { psyncd: false }>$3\r\nabc\r\n<Role>*1\r\n*0\r\n<Info { psyncd: true }>=4\r\ntxt:\r\n+PONG\r\n"
    );
}

#[test]
fn an_error_in_answer_to_info_passes_and_the_count_stays_right() {
    let mut connection = Connection::new();
    connection.ask("INFO\r\nINFO\r\n");
    connection.answer("-NOAUTH Authentication required.\r\n$1\r\na\r\n");
    assert_eq!(connection.text(), "-NOAUTH Authentication required.\r\n<Info { psyncd: false }>$1\r\na\r\n");
}

#[test]
fn in_a_transaction_the_replies_come_with_exec_s() {
    let mut connection = Connection::new();
    connection.ask("MULTI\r\nSET a 1\r\nMULTI\r\nWATCH x\r\nINFO\r\nROLE\r\nGET a\r\nEXEC\r\nINFO\r\n");
    connection.answer("+OK\r\n+QUEUED\r\n-ERR nested\r\n-ERR inside MULTI\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n");
    connection.answer("*4\r\n+OK\r\n$4\r\ninfo\r\n*1\r\n:1\r\n$1\r\n1\r\n$1\r\ni\r\n");
    assert!(connection.text().ends_with(
        "*4\r\n+OK\r\n<Info { psyncd: false }>$4\r\ninfo\r\n<Role>*1\r\n:1\r\n$1\r\n1\r\n<Info { psyncd: false }>$1\r\ni\r\n"
    ));
    assert_eq!(connection.ends(), []);
}

#[test]
fn a_transaction_that_fails_or_never_was_is_no_trouble() {
    for (commands, replies) in [
        ("MULTI\r\nINFO\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n*-1\r\n"),
        ("MULTI\r\nINFO\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n_\r\n"),
        ("MULTI\r\nINFO\r\nNOSUCH\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n-ERR unknown command\r\n-EXECABORT\r\n"),
        ("MULTI\r\nINFO\r\nDISCARD\r\n", "+OK\r\n+QUEUED\r\n+OK\r\n"),
        ("EXEC\r\nDISCARD\r\nRESET\r\n", "-ERR\r\n-ERR\r\n+RESET\r\n"),
    ] {
        let mut connection = Connection::new();
        connection.ask(commands);
        connection.answer(replies);
        assert_eq!(connection.text(), replies);
        connection.ask("INFO\r\n");
        connection.answer("$0\r\n\r\n");
        assert_eq!(connection.text(), format!("{replies}<{INFO:?}>$0\r\n\r\n"), "after {commands}");
    }
    // MULTI was refused, so the INFO behind it is answered at once.
    let mut connection = Connection::new();
    connection.ask("MULTI x\r\nINFO\r\nEXEC\r\n");
    connection.answer("-ERR\r\n$0\r\n\r\n-ERR EXEC without MULTI\r\n");
    assert_eq!(connection.text(), format!("-ERR\r\n<{INFO:?}>$0\r\n\r\n-ERR EXEC without MULTI\r\n"));
}

#[test]
fn an_exec_of_another_length_than_counted_is_left_alone() {
    let mut connection = Connection::new();
    connection.ask("MULTI\r\nINFO\r\nEXEC\r\nINFO\r\n");
    let executed = "+OK\r\n+QUEUED\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
    connection.answer(executed);
    connection.answer("$1\r\nc\r\n");
    assert_eq!(connection.text(), format!("{executed}<{INFO:?}>$1\r\nc\r\n"));
}

#[test]
fn push_frames_answer_nobody() {
    let mut connection = Connection::new();
    connection.ask("HELLO 3\r\nINFO\r\n");
    connection.answer("%0\r\n>2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n=5\r\ntxt:a\r\n>1\r\n+x\r\n");
    assert_eq!(
        connection.text(),
        format!("%0\r\n>2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n<{INFO:?}>=5\r\ntxt:a\r\n>1\r\n+x\r\n")
    );
}

#[test]
fn where_replies_stop_answering_commands_the_counting_ends() {
    for mode in ["SUBSCRIBE a b", "MONITOR", "CLIENT REPLY OFF", "PSYNC ? -1", "SCRIPT DEBUG YES"] {
        let mut connection = Connection::new();
        connection.ask(format!("PING\r\nINFO\r\n{mode}\r\nINFO\r\n"));
        connection.ask("ROLE\r\n");
        let before = "+PONG\r\n$1\r\na\r\n";
        let behind = "+anything\r\nat all, \x01 unframed $0\r\n\r\n";
        connection.answer(before);
        assert_eq!(connection.ends(), []);
        connection.answer(behind);
        assert_eq!(connection.text(), format!("+PONG\r\n<{INFO:?}>$1\r\na\r\n{behind}"), "{mode}");
        assert_eq!(connection.ends(), [GivenUp::Mode]);
    }
}

#[test]
fn what_nobody_asked_for_ends_the_counting() {
    let mut connection = Connection::new();
    connection.answer("-ERR max number of clients reached\r\n");
    connection.ask("INFO\r\n");
    connection.answer("$0\r\n\r\n");
    assert_eq!(connection.text(), "-ERR max number of clients reached\r\n$0\r\n\r\n");
    assert_eq!(connection.ends(), [GivenUp::Protocol]);
}

#[test]
fn what_is_no_command_or_no_reply_ends_the_counting_behind_what_was_counted() {
    let mut connection = Connection::new();
    connection.ask("INFO\r\n");
    connection.ask("*x\r\n");
    connection.answer("$0\r\n\r\n-ERR Protocol error: invalid multibulk length\r\n");
    assert!(connection.text().starts_with("<Info"));
    assert_eq!(connection.ends(), [GivenUp::Protocol]);

    let mut connection = Connection::new();
    connection.ask("GET a\r\nINFO\r\n");
    connection.answer("HTTP/1.1 200\r\n$0\r\n\r\n");
    assert_eq!(connection.text(), "HTTP/1.1 200\r\n$0\r\n\r\n");
    assert_eq!(connection.ends(), [GivenUp::Protocol]);
}

#[test]
fn a_reply_too_long_to_wait_for_passes_as_it_comes() {
    let mut connection = Connection::new();
    connection.ask("INFO\r\nROLE\r\nINFO\r\n");
    connection.answer(format!("${}\r\n", REPLY_MAX));
    assert_eq!(connection.out.len(), 10, "it is known by its header");
    connection.answer(vec![b'x'; REPLY_MAX]);
    let roles = format!("*{}\r\n", REPLY_MAX);
    connection.answer(format!("\r\n{roles}"));
    for _ in 0..REPLY_MAX / 1024 {
        connection.answer(":1\r\n".repeat(1024));
    }
    assert!(connection.out.ends_with(b":1\r\n"));
    connection.answer("$0\r\n\r\n");
    assert!(connection.out.ends_with(format!(":1\r\n<{INFO:?}>$0\r\n\r\n").as_bytes()));
    assert_eq!(connection.ends(), [GivenUp::TooLong, GivenUp::TooLong]);
}

#[test]
fn more_questions_than_are_remembered_end_the_counting() {
    let mut connection = Connection::new();
    connection.ask("INFO\r\n".repeat(PENDING_MAX + 5));
    connection.answer("$0\r\n\r\n".repeat(PENDING_MAX + 5));
    assert_eq!(connection.text().matches("<Info").count(), PENDING_MAX);
    assert_eq!(connection.ends(), [GivenUp::Pipeline]);
}

#[test]
fn half_a_reply_is_not_kept_when_the_upstream_leaves() {
    let mut connection = Connection::new();
    connection.ask("INFO\r\n");
    connection.answer("$100\r\nabc");
    assert_eq!(connection.answering.finish(), &b"$100\r\nabc"[..]);
}

/// Commands with the replies they get, and what is to pass.
#[derive(Debug, Clone, Default)]
struct Exchange {
    command: Vec<u8>,
    reply: Vec<u8>,
    passes: Vec<u8>,
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let plain = (prop_oneof![Just("GET a"), Just("LRANGE info role"), Just("CLIENT LIST")], reply());
    let plain = plain.prop_map(|(words, reply)| (words, reply, None));
    let info =
        "[ -~\r\n]{0,40}".prop_map(|text| ("INFO", format!("${}\r\n{text}\r\n", text.len()).into_bytes(), Some(INFO)));
    let role = prop::collection::vec(reply(), 0..3).prop_map(|items| {
        ("role", [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat(), Some(Asked::Role))
    });
    let refused = Just(("INFO psyncd", b"-NOPERM\r\n".to_vec(), None));
    let single = prop_oneof![4 => plain, 2 => info, 2 => role, 1 => refused];
    let passes = |reply: &[u8], asked: Option<Asked>| asked.map_or(reply.to_vec(), |asked| marked(asked, reply));
    let alone = (single.clone(), any::<bool>()).prop_map(move |((words, reply, asked), inline)| {
        let passes = passes(&reply, asked);
        Exchange { command: told(words, inline), reply, passes }
    });
    let together = (prop::collection::vec(single, 1..4), any::<bool>()).prop_map(move |(commands, inline)| {
        let mut all = Exchange { command: told("MULTI", inline), reply: b"+OK\r\n".to_vec(), ..Exchange::default() };
        for (words, ..) in &commands {
            all.command.extend(told(words, inline));
            all.reply.extend_from_slice(b"+QUEUED\r\n");
        }
        all.command.extend(told("exec", inline));
        all.reply.extend(format!("*{}\r\n", commands.len()).into_bytes());
        all.passes = all.reply.clone();
        for (_, reply, asked) in commands {
            all.passes.extend(passes(&reply, asked));
            all.reply.extend(reply);
        }
        all
    });
    prop_oneof![4 => alone, 1 => together]
}

fn told(words: &str, inline: bool) -> Vec<u8> {
    if inline {
        format!("{words}\r\n").into_bytes()
    } else {
        encode_command(&words.split(' ').collect::<Vec<_>>()).to_vec()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_cutting_of_any_pipeline_passes_the_same(
        exchanges in prop::collection::vec(exchange(), 1..8),
        command_cuts in chop::cuts(),
        reply_cuts in chop::cuts(),
        turns in prop::collection::vec(any::<bool>(), 0..40),
    ) {
        let mut connection = Connection::new();
        let commands: Vec<u8> = exchanges.iter().flat_map(|e| e.command.clone()).collect();
        let replies: Vec<u8> = exchanges.iter().flat_map(|e| e.reply.clone()).collect();
        let passes: Vec<u8> = exchanges.iter().flat_map(|e| e.passes.clone()).collect();
        let mut ask = chop::pieces(&commands, &command_cuts).into_iter();
        let mut answer = chop::pieces(&replies, &reply_cuts).into_iter().peekable();
        let mut turns = turns.into_iter();
        let (mut asked, mut answered) = (0, 0);
        while let Some(next) = answer.peek() {
            // A server answers what it was asked, never more.
            let (mut command_end, mut reply_end) = (0, 0);
            for exchange in &exchanges {
                command_end += exchange.command.len();
                if command_end <= asked { reply_end += exchange.reply.len() } else { break }
            }
            let may_answer = answered + next.len() <= reply_end;
            if may_answer && turns.next() != Some(true) {
                answered += next.len();
                connection.answer(next);
                answer.next();
            } else if let Some(piece) = ask.next() {
                asked += piece.len();
                connection.ask(piece);
            } else {
                prop_assert!(may_answer);
            }
        }
        prop_assert!(connection.answering.held.is_empty());
        prop_assert_eq!(connection.ends(), vec![]);
        prop_assert!(connection.out == passes, "\n{:?}\n{:?}", connection.out.escape_ascii().to_string(), passes.escape_ascii().to_string());
    }

    #[test]
    fn whatever_comes_passes_in_full_when_nothing_is_rewritten(
        commands in prop::collection::vec(prop_oneof![Just(b"PING\r\n".to_vec()), Just(b"MULTI\r\n".to_vec()), Just(b"EXEC\r\n".to_vec()), Just(b"GET a\r\n".to_vec()), prop::collection::vec(any::<u8>(), 0..9)], 0..9),
        replies in prop::collection::vec(prop_oneof![reply(), prop::collection::vec(any::<u8>(), 0..9)], 0..9),
        cuts in chop::cuts(),
    ) {
        let mut connection = Connection::new();
        connection.ask(commands.concat());
        let replies = replies.concat();
        for piece in chop::pieces(&replies, &cuts) {
            connection.answer(piece);
        }
        let held = connection.answering.finish();
        prop_assert_eq!([&connection.out[..], &held].concat(), replies);
    }
}
