//! Puts a psyncd together and lets it run: directory, relay, listeners, then the tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, anyhow};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::faces::{self, Whereabouts};
use super::lend::{self, ReplicaInquiry};
use super::memory::Memory;
use super::ports::{Doors, Ports, locals};
use super::reload::{Changeable, Reach};
use super::{Daemon, Failure, Seams, Stop, announce, assist, files, options};
use crate::access::crowd::Crowd;
use crate::admin::control::Control;
use crate::admin::{self, Door};
use crate::cli::Exit;
use crate::config::Config;
use crate::counters::Counter;
use crate::downstream::Downstream;
use crate::front::{self, Front, face};
use crate::live::Live;
use crate::net::tls::{TlsNetwork, watch};
use crate::net::{Admit, Network};
use crate::observer::Observer;
use crate::operator::Operator;
use crate::relay::Relay;
use crate::store::kept;
use crate::store::state::Remembered;
use crate::upstream::cast::{Cast, Links};
use crate::upstream::guard::Guard;
use crate::upstream::inquiry::Inquiry;
use crate::upstream::link::MasterLink;
use crate::upstream::{Upstream, census, fetch, mirror, recovered};
use crate::{scribe, sentinel};

/// Builds everything and lets it run.
pub async fn start(config: Config, seams: Seams) -> Result<Daemon, Failure> {
    let tls = match &config.tls.options {
        Some(options) => Some(lend::open_tls(options.clone()).await?),
        None => None,
    };
    let secured = |admit: Option<Admit>| {
        let (tls, inner) = (tls.clone()?, Arc::clone(&seams.network));
        Some(Arc::new(TlsNetwork { inner, tls, admit }) as Arc<dyn Network>)
    };
    let crowd = Crowd::new(config.max_unauthenticated, config.max_connection_rate);
    let front_metrics: Arc<front::Metrics> = Arc::default();
    // A handshake is paid for before anybody has said who he is.
    let door = secured(Some(front::admit(Arc::clone(&crowd), Arc::clone(&front_metrics))));
    let secured = secured(None);
    let dialing = |in_tls: bool| match &secured {
        Some(secured) if in_tls => Arc::clone(secured),
        Some(_) | None => Arc::clone(&seams.network),
    };
    let (toward_upstream, toward_peers) = (dialing(config.tls.upstream), dialing(config.tls.peers));
    let temporary = match &config.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("psyncd-").tempdir().context("create a temporary directory")?),
    };
    let dir = match (&config.dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is there"),
    };
    announce::check(&config).await.map_err(|why| Failure { exit: Exit::Config, error: anyhow!(why) })?;
    let lasting = temporary.is_none();
    let (shelf, found, lock) = files::open_dir(&seams, dir.clone(), lasting).await?;
    let (state, remembered) = match lasting {
        true => files::remembered(&seams, dir, &config).await,
        false => (None, Remembered::default()),
    };
    let shelf = Arc::new(shelf);
    let relay = Relay::new(options::relay(&config));
    let identity = String::from_utf8_lossy(&seams.entropy.hex40()).into_owned();
    let known = remembered.master;
    let memory = Memory::new(&config, remembered, &identity);
    let target = Arc::clone(&memory.target);
    let journal_metrics: Arc<scribe::Metrics> = Arc::default();
    let upkeep = config.journal.as_ref().map(|journal| Live::new(options::upkeep(journal)));
    let (scribe, scanner) = match (&config.journal, &upkeep) {
        (Some(journal), Some(upkeep)) => {
            let place = (Arc::clone(&seams.disk), shelf.dir().to_owned());
            let (upkeep, adopt) = (upkeep.clone(), journal.adopt || memory.caught_up);
            let metrics = Arc::clone(&journal_metrics);
            let opened = files::journal(&config, journal, upkeep, adopt, place, Arc::clone(&relay), metrics).await?;
            (Some(opened.0), opened.1)
        }
        _ => (None, None),
    };
    let doors = Doors { plain: &seams.network, tls: door.as_ref(), admin: secured.as_ref() };
    let ports = Ports::open(&config, doors).await?;

    let socket = files::control_socket(&config.socket).await?;
    let guard = Arc::new(Guard::new(config.guard, known, socket.as_ref().map(|socket| socket.path().to_owned())));
    let login = Live::new(config.login());
    let upstream = Upstream {
        target: Arc::clone(&target),
        options: Live::new(options::upstream(&config, identity.clone(), login.clone())),
        relay: Arc::clone(&relay),
        network: Arc::clone(&toward_upstream),
        peers: Arc::clone(&toward_peers),
        shelf: Arc::clone(&shelf),
        guard: Arc::clone(&guard),
        entropy: Arc::clone(&seams.entropy),
        cast: Arc::new(Cast::default()),
        metrics: Arc::default(),
        forks: Arc::default(),
        node: Arc::default(),
    };
    let access = lend::access(&config, &seams, &toward_upstream, &target, Arc::clone(&upstream.node));
    let downstream = Downstream::new(
        options::downstream(&config, identity.clone()),
        Arc::clone(&relay),
        Arc::clone(&target),
        Arc::clone(&seams.entropy),
        Arc::clone(&access),
        Arc::new(ReplicaInquiry(Inquiry { network: toward_peers, login })),
    );
    let stop = Stop::default();
    let assist = assist::Assist::new(&config, &seams, &upstream, ports.port);
    let front = Front {
        options: Live::new(options::front(&config)),
        network: toward_upstream,
        relay: Arc::clone(&relay),
        target: Arc::clone(&target),
        access: Arc::clone(&access),
        crowd,
        serve_psyncd: assist.serve_psyncd(&stop.serving),
        hold_promotion: assist.hold_promotion(),
        serve_replica: lend::serve_replica(downstream.clone(), stop.serving.clone()),
        metrics: front_metrics,
    };
    let draining = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let face_addresses = locals(&ports.face);
    let (orders, ordered) = mpsc::channel(1);
    let operator = Arc::new(Operator {
        guard: Arc::clone(&guard),
        relay: Arc::clone(&relay),
        target: Arc::clone(&target),
        own: [ports.front(), face_addresses.clone()].concat(),
        sentinel_master: config.sentinels.as_ref().map(|sentinels| sentinels.master.clone()),
        draining: Arc::clone(&draining),
        ending: stop.feeding.clone(),
        remembers: lasting,
        reload: orders,
    });
    let here = Whereabouts {
        front: ports.front(),
        face: face_addresses.clone(),
        run_id: memory.run_id.clone(),
        identity,
        started,
    };
    let (face, hellos) = faces::face(&config, &front, &upstream, here);
    let scout = faces::scout(&config, &upstream, dialing(config.tls.sentinels));
    let admin_options = Live::new(options::admin(&config));
    let reach = Reach {
        upstream: upstream.clone(),
        downstream: downstream.clone(),
        front: front.options.clone(),
        face: face.options.clone(),
        admin: admin_options.clone(),
        access: Arc::clone(&access),
        crowd: Arc::clone(&front.crowd),
        upkeep,
        sentinel_login: scout.options.login.clone(),
        sentinel_timeout: scout.options.timeout.clone(),
        drain_timeout: Live::new(config.drain_timeout),
    };
    let changeable = Changeable::new(&config, reach);
    let scouting = config.sentinels.is_some() || !face_addresses.is_empty();
    let observer = Observer {
        target: Arc::clone(&target),
        relay: Arc::clone(&relay),
        upstream: Arc::clone(&upstream.metrics),
        downstream: Arc::clone(&downstream.metrics),
        senders: Arc::clone(&downstream.senders),
        bounds: downstream.options.clone(),
        front: Arc::clone(&front.metrics),
        assist: assist.metrics,
        tls: tls.clone(),
        access,
        journal: config.journal.is_some().then_some(journal_metrics),
        guard,
        face: (!face_addresses.is_empty()).then(|| Arc::clone(&face.metrics)),
        hub: Arc::clone(&face.hub),
        admin_troubles: Counter::new(),
        sentinel: scouting.then(|| Arc::clone(&scout.metrics)),
        draining: Arc::clone(&draining),
        started,
        events: seams.events.clone(),
        settings: changeable.settings.clone(),
        reloads: Arc::clone(&changeable.reloads),
    };

    let (tasks, admin_tasks) = (TaskTracker::new(), TaskTracker::new());
    let (addresses, tls_addresses) = (locals(&ports.plain), locals(&ports.tls));
    let admin_address = ports.admin.as_ref().map(|listener| listener.local());
    tasks.spawn(MasterLink::new(upstream.clone(), scanner).run(stop.feeding.clone()));
    tasks.spawn(census::run(upstream.clone(), state.clone(), stop.feeding.clone()));
    if let Some(asker) = assist.asker {
        tasks.spawn(asker.run(stop.serving.clone()));
    }
    if config.upstream_links == Links::Mirrored {
        tasks.spawn(mirror::run(upstream.clone(), stop.feeding.clone()));
    }
    let keeper = scribe.map(|scribe| tokio::spawn(scribe.run(stop.keeping.clone())));
    tasks.spawn(offer(upstream.clone(), found, stop.feeding.clone()));
    tasks.spawn(fetch::run(upstream, stop.feeding.clone()));
    tasks.spawn(kept::run(Arc::clone(&shelf), stop.feeding.clone()));
    if let Some(tls) = tls {
        let look = Arc::clone(&changeable.certificates);
        tasks.spawn(watch::run(tls, look, watch::LOOK_EVERY, stop.feeding.clone()));
    }
    for listener in ports.plain.into_iter().chain(ports.tls) {
        let accepting =
            front::accept(front.clone(), listener, tasks.clone(), stop.feeding.clone(), stop.serving.clone());
        tasks.spawn(accepting);
    }
    tasks.spawn(memory.keep(state, !face_addresses.is_empty(), stop.serving.clone()));
    if scouting {
        tasks.spawn(sentinel::run(scout, hellos, stop.feeding.clone()));
    }
    for listener in ports.face {
        let serve = face::serving(face.clone(), stop.serving.clone());
        tasks.spawn(front::accept_each(listener, tasks.clone(), stop.feeding.clone(), serve));
    }
    let observer: Arc<dyn admin::Source> = Arc::new(observer);
    let control: Arc<dyn Control> = Arc::clone(&operator) as _;
    let socket_path = socket.as_ref().map(|socket| socket.path().to_owned());
    let public = ports.admin.map(|listener| Door::Public(listener, admin_options, Arc::clone(&control)));
    let private = socket.map(|socket| Door::Private(socket, control));
    for door in public.into_iter().chain(private) {
        admin_tasks.spawn(admin::serve(door, Arc::clone(&observer), stop.watching.clone()));
    }
    let listed = |addresses: &[SocketAddr]| match addresses {
        [] => "none".to_owned(),
        _ => addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(","),
    };
    let (listen, listen_tls, face) = (listed(&addresses), listed(&tls_addresses), listed(&face_addresses));
    let admin = admin_address.map_or_else(|| "none".to_owned(), |address| address.to_string());
    info!(
        event = "started",
        upstream = target.name(),
        listen,
        listen_tls,
        face,
        admin,
        backlog_bytes = config.repl_backlog_bytes,
        "psyncd started"
    );
    Ok(Daemon {
        listen: addresses,
        listen_tls: tls_addresses,
        admin: admin_address,
        socket: socket_path,
        face: face_addresses,
        relay,
        operator,
        shelf,
        tasks,
        keeper,
        admin_tasks,
        stop,
        draining,
        changeable,
        source: observer,
        ordered,
        _lock: lock,
        _temporary: temporary,
    })
}

/// Offers what an earlier run kept, once the stream is there.
async fn offer(upstream: Upstream, found: Vec<kept::Found>, shutdown: CancellationToken) {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = recovered::offer(&upstream, found) => {}
    }
}
