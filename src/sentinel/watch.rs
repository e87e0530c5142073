//! One Sentinel: asked when there is reason to, and every now and then; heard when it says that the master changed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Scout;
use super::talk::Talk;
use super::tracker::Fact;
use crate::net::Address;
use crate::relay::LinkState;
use crate::wire::reply::Reply;
use crate::wire::resp::encode_command;

/// Between two questions while the link is up, as often as Sentinel itself asks its instances.
const CALM: Duration = Duration::from_secs(10);
/// Between two while it is not.
const EAGER: Duration = Duration::from_secs(1);
/// What a Sentinel says when it has changed the address of a master.
const SWITCHED: &str = "+switch-master";

/// Watches the Sentinel at that place of the list for as long as it is polled.
pub async fn run(scout: Scout, voice: usize, address: Address, tell: mpsc::Sender<Fact>, nudge: Arc<Notify>) {
    let mut known = None;
    loop {
        let end = watch(&scout, voice, &address, &tell, &nudge, &mut known).await;
        if known != Some(false) {
            warn!(event = "sentinel_lost", sentinel = %address, why = %end, "sentinel lost");
        } else {
            debug!(sentinel = %address, why = %end, "sentinel not reached");
        }
        known = Some(false);
        if tell.send(Fact::Silent(voice)).await.is_err() {
            return;
        }
        sleep(EAGER).await;
    }
}

/// Until something fails, which is why it ends.
async fn watch(
    scout: &Scout,
    voice: usize,
    address: &Address,
    tell: &mpsc::Sender<Fact>,
    nudge: &Notify,
    known: &mut Option<bool>,
) -> io::Error {
    let (mut asking, mut hearing) = match open(scout, address).await {
        Ok(both) => both,
        Err(error) => return error,
    };
    loop {
        let nudged = nudge.notified();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        let fact = match ask(scout, &mut asking).await {
            Ok(Some((master, epoch))) => Fact::Said { voice, address: master, epoch },
            Ok(None) => {
                let name = scout.options.master.as_deref().unwrap_or_default();
                return io::Error::other(format!("it knows no master named {name}"));
            }
            Err(error) => return error,
        };
        if *known != Some(true) {
            info!(event = "sentinel_answers", sentinel = %address, "sentinel answers");
            *known = Some(true);
        }
        if tell.send(fact).await.is_err() {
            return io::Error::other("nobody listens");
        }
        let pause = if scout.relay.link() == LinkState::Streaming { CALM } else { EAGER };
        tokio::select! {
            biased;
            () = &mut nudged => {}
            heard = switched(scout, &mut hearing) => match heard {
                // The others will know soon, too.
                Ok(()) => nudge.notify_waiters(),
                Err(error) => return error,
            },
            () = sleep(pause) => {}
        }
    }
}

async fn open(scout: &Scout, address: &Address) -> io::Result<(Talk, Talk)> {
    let options = &scout.options;
    let login = options.login.get();
    let open = || Talk::open(&*scout.sentinels, address, &login, *options.timeout.get());
    let (asking, mut hearing) = (open().await?, open().await?);
    match hearing.ask(encode_command(&["SUBSCRIBE", SWITCHED])).await? {
        Reply::Error(why) => Err(io::Error::other(why)),
        _ => Ok((asking, hearing)),
    }
}

/// Where the Sentinel takes the master to be, and since which configuration; `None` when it knows no such master.
async fn ask(scout: &Scout, talk: &mut Talk) -> io::Result<Option<(Address, u64)>> {
    let name = scout.options.master.as_deref().unwrap_or_default();
    let place = talk.ask(encode_command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", name])).await?;
    // Its number, which the first reply lacks. The first has the new address as soon as a replica was promoted; the
    // number changes in the same instant (redis sentinel.c, `sentinelRefreshInstanceInfo`).
    let state = talk.ask(encode_command(&["SENTINEL", "MASTER", name])).await?;
    Ok(opinion(&place, &state))
}

fn opinion(place: &Reply, state: &Reply) -> Option<(Address, u64)> {
    let [host, port] = place.items()? else { return None };
    let address = Address::tcp(host.str()?, port.str()?)?;
    let (pairs, _) = state.items()?.as_chunks::<2>();
    let epoch = pairs.iter().find(|[key, _]| key.str() == Some("config-epoch")).and_then(|[_, value]| value.str())?;
    Some((address, epoch.parse().ok()?))
}

/// Resolves when it says that our master changed its address. Cancel-safe.
async fn switched(scout: &Scout, talk: &mut Talk) -> io::Result<()> {
    loop {
        let message = talk.hear().await?;
        let Some([_, channel, text]) = message.items() else { continue };
        let name = text.str().and_then(|text| text.split(' ').next());
        if channel.str() == Some(SWITCHED) && name.is_some() && name == scout.options.master.as_deref() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opinion_is_an_address_and_a_number() {
        let list = |words: &[&str]| Reply::Array(words.iter().map(Reply::bulk).collect());
        let place = list(&["::1", "6380"]);
        let state = list(&["name", "mymaster", "config-epoch", "3", "quorum", "2"]);
        let expected = Address::Tcp { host: "::1".into(), port: 6380 };
        assert_eq!(opinion(&place, &state), Some((expected, 3)));
        assert_eq!(opinion(&Reply::Null, &Reply::Error("ERR No such master with that name".into())), None);
        assert_eq!(opinion(&place, &list(&["config-epoch", "x"])), None);
        assert_eq!(opinion(&list(&["host", "0"]), &state), None);
    }
}
