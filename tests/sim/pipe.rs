//! The least that can stand in front of a master: copies bytes both ways and knows nothing. It shows that
//! the seams carry a subject; what it promises nobody is that one snapshot serves all.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;

use psyncd::net::Link;
use psyncd::repl::Position;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::task::JoinSet;

use crate::world::{PROXY_PORT, Seams, Subject};

pub struct Pipe;

impl Subject for Pipe {
    fn run(&self, seams: Seams) -> Pin<Box<dyn Future<Output = turmoil::Result>>> {
        Box::pin(async move {
            let mut listener = seams.network.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT))).await?;
            let mut copies = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    Some(ended) = copies.join_next() => ended?,
                    link = listener.accept() => {
                        let (link, seams) = (link?, seams.clone());
                        copies.spawn(async move {
                            if let Ok(up) = seams.network.dial(&seams.upstream).await {
                                join(link, up).await;
                            }
                        });
                    }
                }
            }
        })
    }

    fn serves(&self, _: &Position) -> Option<bool> {
        None
    }

    fn fetches_once(&self) -> bool {
        false
    }
}

/// A pipe that changes what ordinary clients are answered, for the checks to notice.
pub struct Garbling;

impl Subject for Garbling {
    fn run(&self, seams: Seams) -> Pin<Box<dyn Future<Output = turmoil::Result>>> {
        Box::pin(async move {
            let mut listener = seams.network.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT))).await?;
            loop {
                let mut link = listener.accept().await?;
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(1..) = link.source.read(&mut buffer).await {
                        let _ = link.sink.write_all(b"$4\r\nwhat\r\n").await;
                    }
                });
            }
        })
    }

    fn serves(&self, _: &Position) -> Option<bool> {
        None
    }
}

async fn join(mut a: Link, mut b: Link) {
    tokio::select! {
        biased;
        _ = copy(&mut a.source, &mut b.sink) => {}
        _ = copy(&mut b.source, &mut a.sink) => {}
    }
}
