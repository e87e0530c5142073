//! What a connection is for, judged by its first words.
//!
//! ```text
//!            PING (once), AUTH, HELLO
//!              ┌──────┐
//!              ▼      │            REPLCONF, PSYNC, SYNC
//!   start ─▶ ambiguous ─┬────────────────────────────────▶ replica
//!                       ├──── PSYNCD ────────────────────▶ psyncd
//!                       └────────────────────────────────▶ client
//!                          anything else, a second PING
//! ```
//!
//! Replicas of every version begin with one PING, then maybe AUTH, then REPLCONF; psyncd begins with REPLCONF.
//! Clients begin with anything. Only the first word is needed, so a client whose first command is a 100 MB value
//! is recognised before it has arrived.

use crate::wire::resp::{FirstWord, first_word};

/// What was said so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    pinged: bool,
}

/// What to do with the next command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Its first word has not arrived yet.
    NeedMore,
    /// Pass this one command on, hand back its reply, and look at the next: a PING, an AUTH or a HELLO.
    Ambiguous(Opening),
    /// It is a replica's.
    Replica,
    /// It is another psyncd's.
    Psyncd,
    /// It is a client's.
    Client,
}

/// A command both clients and replicas open with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// `PING`.
    Ping,
    /// `AUTH`.
    Auth,
    /// `HELLO`, which may name a user and a password as well.
    Hello,
}

impl Heard {
    /// Judges the command at the front of `buffer`.
    pub fn route(&self, buffer: &[u8]) -> Route {
        let word = match first_word(buffer) {
            FirstWord::NeedMore => return Route::NeedMore,
            FirstWord::NotACommand => return Route::Client,
            FirstWord::Word(word) => word,
        };
        match word.as_slice() {
            b"REPLCONF" | b"PSYNC" | b"SYNC" => Route::Replica,
            b"PSYNCD" => Route::Psyncd,
            b"PING" if !self.pinged => Route::Ambiguous(Opening::Ping),
            b"AUTH" => Route::Ambiguous(Opening::Auth),
            b"HELLO" => Route::Ambiguous(Opening::Hello),
            _ => Route::Client,
        }
    }

    /// That command was passed on.
    pub fn passed(&mut self, opening: Opening) {
        self.pinged |= opening == Opening::Ping;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(commands: &[&str]) -> Vec<Route> {
        let mut heard = Heard::default();
        commands
            .iter()
            .map(|command| {
                let route = heard.route(command.as_bytes());
                if let Route::Ambiguous(opening) = route {
                    heard.passed(opening);
                }
                route
            })
            .collect()
    }

    const PING: Route = Route::Ambiguous(Opening::Ping);
    const AUTH: Route = Route::Ambiguous(Opening::Auth);

    #[test]
    fn replicas_of_every_generation_are_recognised() {
        assert_eq!(routes(&["PING\r\n", "REPLCONF listening-port 1\r\n"]), [PING, Route::Replica]);
        assert_eq!(
            routes(&["*1\r\n$4\r\nPING\r\n", "*2\r\n$4\r\nAUTH\r\n", "*5\r\n$8\r\nREPLCONF\r\n"]),
            [PING, AUTH, Route::Replica]
        );
        assert_eq!(routes(&["SYNC\r\n"]), [Route::Replica]);
        assert_eq!(routes(&["*2\r\n$6\r\nPSYNCD\r\n$6\r\nASSIST\r\n"]), [Route::Psyncd]);
        assert_eq!(routes(&["psync ? -1\r\n"]), [Route::Replica]);
    }

    #[test]
    fn everything_else_is_a_client_s() {
        assert_eq!(routes(&["PING\r\n", "GET a\r\n"]), [PING, Route::Client]);
        assert_eq!(routes(&["PING\r\n", "PING\r\n"]), [PING, Route::Client]);
        assert_eq!(routes(&["HELLO 3\r\n", "GET a\r\n"]), [Route::Ambiguous(Opening::Hello), Route::Client]);
        assert_eq!(routes(&["*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$104857600\r\nxxxx"]), [Route::Client]);
        assert_eq!(routes(&["\x16\x03\x01"]), [Route::Client]);
        assert_eq!(routes(&["GET / HTTP/1.1\r\n"]), [Route::Client]);
    }

    #[test]
    fn half_a_word_is_not_judged() {
        assert_eq!(routes(&["", "*", "*1\r\n$4\r\nPI", "REPL"]), [Route::NeedMore; 4]);
    }
}
