//! What two psyncd's say to each other at a planned failover, on the fencer's main port.
//!
//! ```text
//!   asker                                        fencer
//!   PSYNCD ASSIST 1 <nonce>              ──▶
//!                                        ◀──     +PSYNCD 1 <nonce>
//!   PSYNCD FENCE <replid> <host|-> <port> <seal> ──▶
//!                                        ◀──     +FENCED <offset> <seal>
//!   PSYNCD READY <offset> <seal>         ──▶
//!                                        ◀──     +GO <seal>, or +FENCED <offset> <seal> once more
//!   PSYNCD DEMOTE <seal>                 ──▶
//!                                        ◀──     +DEMOTED <seal>
//! ```
//!
//! Instead of any of its words the asker may say `RELEASE`, which is answered `+RELEASED`; the fencer may answer any of
//! them with an error, which is not sealed and ends the conversation. Commands are arrays of bulks, one for each word;
//! nonces are 40 hexadecimal digits; seals are those of [`super::seal`].

use bytes::Bytes;

use super::resp::{Args, encode_command};
use crate::repl::{Offset, ReplId};

/// The first word of every command.
pub const COMMAND: &str = "PSYNCD";
/// The only version there is.
const VERSION: &str = "1";

/// What the asker asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To stop writes and the stream, for a replica of this history.
    Fence {
        /// The history.
        replid: ReplId,
        /// The address the replica announces; `None` for the one the asker calls from.
        host: Option<String>,
        /// The port it announces.
        port: u16,
    },
    /// Whether it is still there: the replica has everything up to it.
    Ready(Offset),
    /// To let the old master follow the replica, which is a master now.
    Demote,
    /// To forget it.
    Release,
}

/// What the fencer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// There are no writes, and nobody is sent anything beyond.
    Fenced(Offset),
    /// It is where the replica is: promote it.
    Go,
    /// The old master follows the replica.
    Demoted,
    /// All is as it was before.
    Released,
}

impl Ask {
    /// The words behind the command's first, without a seal.
    pub fn text(&self) -> String {
        match self {
            Ask::Fence { replid, host, port } => {
                format!("FENCE {} {} {port}", replid.as_str(), host.as_deref().unwrap_or("-"))
            }
            Ask::Ready(offset) => format!("READY {offset}"),
            Ask::Demote => "DEMOTE".into(),
            Ask::Release => "RELEASE".into(),
        }
    }

    /// Reads [`Self::text`].
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        Some(match words[..] {
            ["FENCE", replid, host, port] => Ask::Fence {
                replid: replid.parse().ok()?,
                host: (host != "-").then(|| host.to_owned()),
                port: port.parse().ok()?,
            },
            ["READY", offset] => Ask::Ready(Offset::new(offset.parse().ok()?)),
            ["DEMOTE"] => Ask::Demote,
            ["RELEASE"] => Ask::Release,
            _ => return None,
        })
    }
}

impl Answer {
    /// The words of the reply, without a seal.
    pub fn text(self) -> String {
        match self {
            Answer::Fenced(offset) => format!("FENCED {offset}"),
            Answer::Go => "GO".into(),
            Answer::Demoted => "DEMOTED".into(),
            Answer::Released => "RELEASED".into(),
        }
    }

    /// Reads [`Self::text`].
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        Some(match words[..] {
            ["FENCED", offset] => Answer::Fenced(Offset::new(offset.parse().ok()?)),
            ["GO"] => Answer::Go,
            ["DEMOTED"] => Answer::Demoted,
            ["RELEASED"] => Answer::Released,
            _ => return None,
        })
    }
}

/// The command that begins a conversation.
pub fn greeting(nonce: &[u8; 40]) -> Bytes {
    encode_command(&[COMMAND.as_bytes(), b"ASSIST", VERSION.as_bytes(), nonce])
}

/// The nonce of a command that begins a conversation.
pub fn parse_greeting(args: &Args) -> Option<[u8; 40]> {
    let words: Vec<&[u8]> = args.iter().map(|word| &word[..]).collect();
    match words[..] {
        [_, verb, version, nonce] if verb == b"ASSIST" && version == VERSION.as_bytes() => nonce.try_into().ok(),
        _ => None,
    }
}

/// The reply to it.
pub fn welcome(nonce: &[u8; 40]) -> Bytes {
    reply(&format!("{COMMAND} {VERSION} {}", String::from_utf8_lossy(nonce)))
}

/// The nonce of a reply line, without its end, that welcomes us.
pub fn parse_welcome(line: &[u8]) -> Option<[u8; 40]> {
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    match words[..] {
        [command, version, nonce] if command == b"+PSYNCD" && version == VERSION.as_bytes() => nonce.try_into().ok(),
        _ => None,
    }
}

/// A sealed text as a command.
pub fn command(sealed: &str) -> Bytes {
    let words: Vec<&str> = [COMMAND].into_iter().chain(sealed.split(' ')).collect();
    encode_command(&words)
}

/// The sealed text of a command.
pub fn sealed(args: &Args) -> Option<String> {
    let words: Option<Vec<&str>> = args.iter().skip(1).map(|word| str::from_utf8(word).ok()).collect();
    Some(words?.join(" "))
}

/// A sealed text as a reply.
pub fn reply(sealed: &str) -> Bytes {
    Bytes::from(format!("+{sealed}\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::resp::{FrameLimits, parse_command};

    fn args(bytes: &[u8]) -> Args {
        parse_command(bytes, &FrameLimits::HANDSHAKE).unwrap().unwrap().0
    }

    #[test]
    fn every_word_is_read_as_it_was_said() {
        let replid = ReplId::from_ascii(&[b'a'; 40]).unwrap();
        let asks = [
            Ask::Fence { replid, host: Some("10.0.0.2".into()), port: 6379 },
            Ask::Fence { replid, host: None, port: 6379 },
            Ask::Ready(Offset::new(7)),
            Ask::Demote,
            Ask::Release,
        ];
        for ask in asks {
            assert_eq!(sealed(&args(&command(&ask.text()))).as_deref(), Some(&*ask.text()));
            assert_eq!(Ask::parse(&ask.text()), Some(ask));
        }
        for answer in [Answer::Fenced(Offset::new(7)), Answer::Go, Answer::Demoted, Answer::Released] {
            assert_eq!(Answer::parse(&answer.text()), Some(answer));
        }
        let nonce = [b'5'; 40];
        assert_eq!(parse_greeting(&args(&greeting(&nonce))), Some(nonce));
        assert_eq!(parse_welcome(welcome(&nonce).trim_ascii_end()), Some(nonce));
    }

    #[test]
    fn what_is_none_of_these_words_is_not_read() {
        for bad in ["", "FENCE", "FENCE x - 1", "READY", "READY -1", "READY 1 2", "demote", "GO"] {
            assert_eq!(Ask::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Answer::parse("FENCED x"), None);
        assert_eq!(parse_welcome(b"-ERR unknown command 'PSYNCD'"), None);
        assert_eq!(parse_greeting(&args(b"PSYNCD ASSIST 2 x\r\n")), None);
    }
}
