//! An ordinary client: sends commands, often several at once, and wants exactly the answers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use psyncd::net::{Address, Link, Source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::chance::Chance;
use crate::log::Log;
use crate::network::SimNetwork;
use crate::resp::{array, words};

/// The model client of one host.
pub struct Client {
    pub name: String,
    auth: Option<(Option<String>, String)>,
    log: Log,
    network: SimNetwork,
    address: Address,
    chance: RefCell<Chance>,
    answered: Cell<u64>,
}

impl Client {
    pub fn new(
        name: &str,
        auth: Option<(Option<String>, String)>,
        chance: &Chance,
        log: Log,
        network: SimNetwork,
        address: Address,
    ) -> Rc<Self> {
        let chance = RefCell::new(chance.fork(name));
        Rc::new(Self { name: name.to_owned(), auth, log, network, address, chance, answered: Cell::new(0) })
    }

    /// Answers so far.
    pub fn answered(&self) -> u64 {
        self.answered.get()
    }

    pub async fn run(self: Rc<Self>) -> turmoil::Result {
        loop {
            let ended = timeout(Duration::from_secs(20), self.converse()).await;
            let why = match ended {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(e.to_string()),
                Err(_) => Some("no answer".to_owned()),
            };
            if let Some(why) = why {
                self.log.note(&self.name, format!("conversation ended: {why}"));
            }
            let pause = self.chance.borrow_mut().millis(200, 3000);
            sleep(pause).await;
        }
    }

    /// One link with some commands.
    async fn converse(&self) -> io::Result<()> {
        let (link, _) = self.network.open(&self.address).await?;
        let Link { mut source, mut sink, .. } = link;
        let mut expected: VecDeque<Vec<u8>> = VecDeque::new();
        let mut batch = Vec::new();
        if let Some((user, password)) = &self.auth {
            let user = user.as_deref().unwrap_or("default");
            batch.extend(words(&format!("AUTH {user} {password}")));
            expected.push_back(b"+OK\r\n".to_vec());
        }
        let rounds = self.chance.borrow_mut().between(1, 3);
        for _ in 0..rounds {
            self.invent(&mut batch, &mut expected);
            let (sent, heard) = (std::mem::take(&mut batch), std::mem::take(&mut expected));
            // At once: whoever only writes until everything is sent waits for a peer that waits for it.
            let (written, refused) = tokio::join!(sink.write_all(&sent), self.hear(&mut source, heard));
            if refused? {
                return Ok(());
            }
            written?;
        }
        sink.shutdown().await?;
        let mut rest = Vec::new();
        source.read_to_end(&mut rest).await?;
        if !rest.is_empty() {
            self.log.violation(&self.name, format!("{} bytes nobody asked for", rest.len()));
        }
        Ok(())
    }

    /// Reads the answers; says whether it was refused instead.
    async fn hear(&self, source: &mut Source, expected: VecDeque<Vec<u8>>) -> io::Result<bool> {
        for answer in expected {
            let mut got = vec![0; 1];
            source.read_exact(&mut got).await?;
            if got != answer[..1] && got == b"-" {
                return Ok(true);
            }
            got.resize(answer.len(), 0);
            source.read_exact(&mut got[1..]).await?;
            if got != answer {
                let (got, answer) = (String::from_utf8_lossy(&got), String::from_utf8_lossy(&answer));
                self.log.violation(&self.name, format!("got {got:?} for {answer:?}"));
                return Ok(true);
            }
            self.answered.set(self.answered.get() + 1);
        }
        Ok(false)
    }

    fn invent(&self, batch: &mut Vec<u8>, expected: &mut VecDeque<Vec<u8>>) {
        let mut chance = self.chance.borrow_mut();
        for _ in 0..chance.between(1, 5) {
            match chance.below(4) {
                0 => {
                    batch.extend(words("PING"));
                    expected.push_back(b"+PONG\r\n".to_vec());
                }
                1 => {
                    batch.extend(words(&format!("SET {} {}", self.name, chance.draw())));
                    expected.push_back(b"+OK\r\n".to_vec());
                }
                _ => {
                    let most = *chance.pick(&[10, 1000]);
                    let mut text = vec![0; chance.below(most) as usize];
                    chance.fill(&mut text);
                    batch.extend(array(&[b"ECHO", &text]));
                    let mut answer = format!("${}\r\n", text.len()).into_bytes();
                    answer.extend_from_slice(&text);
                    answer.extend_from_slice(b"\r\n");
                    expected.push_back(answer);
                }
            }
        }
    }
}
