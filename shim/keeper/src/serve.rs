//! The keeper process: takes over from its predecessor, serves until nothing is left, hears its guardian.

use crate::connections::{self, CountedIncoming, Incoming};
use crate::events::Publisher;
use crate::guardian::LISTENER;
use crate::guardian::client::{Event, Events, Guardian};
use crate::keeper::{Keeper, blocking};
use crate::layout::Layout;
use crate::logs::Engine;
use crate::logs::journal::Journal;
use crate::{prepare, recovery, service, start, upgrade};
use containerd_shim::Flags;
use nix::sys::signal::{SigSet, Signal};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

/// Key of the journal's page with the guardian.
const JOURNAL: &str = "journal";

/// Between two tries to start another guardian.
const GUARDIAN_PAUSE: Duration = Duration::from_secs(1);

/// How long events that nobody takes hold the end up.
const LAST_EVENTS: Duration = Duration::from_secs(3);

/// Runs the keeper of the group in `root`; its standard input is the guardian's socket.
pub(crate) fn serve(root: PathBuf, flags: Flags) -> Result<(), Box<dyn Error>> {
    let socket = take_stdin()?;
    let (guardian, mut inheritance) = Guardian::meet(socket)?;
    let listener = inheritance.held.remove(LISTENER).ok_or("the guardian has no listener for us")?;
    let journal = match inheritance.held.remove(JOURNAL) {
        Some(journal) => journal,
        None => {
            let journal = Journal::memfd()?;
            guardian.keep(&[(JOURNAL, journal.as_fd())])?;
            journal
        }
    };
    let engine = Engine::start(Journal::open(journal.as_fd())?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .max_blocking_threads(128)
        .thread_stack_size(512 * 1024)
        .build()?;
    runtime.block_on(async {
        let layout = Layout::at(root);
        let events = Publisher::start(&layout, &flags.namespace)?;
        let keeper = Arc::new(Keeper::new(
            layout,
            flags.namespace.clone(),
            guardian,
            engine,
            events,
            inheritance.generation,
            prepare::nofile_from_env(),
        ));
        let asked = signal(SignalKind::user_defined1())?;
        // Blocked by the guardian, which has its own way to hear signals.
        let hangups = signal(SignalKind::hangup())?;
        let unblocked: SigSet = [Signal::SIGUSR1, Signal::SIGHUP].into_iter().collect();
        unblocked.thread_unblock()?;
        tokio::spawn(tell(Arc::clone(&keeper), asked));
        tokio::spawn(make_way(Arc::clone(&keeper), hangups));
        let connections = incoming(&keeper, &listener, &mut inheritance.held)?;
        let pending = recovery::rebuild(&keeper, inheritance.held)?;
        // Not before: a report that nobody waits for is forgotten.
        let listening = tokio::spawn(hear(Arc::clone(&keeper), flags));
        recovery::resume(&keeper, pending).await;
        let mut server = service::server(&keeper).add_listener(connections);
        server.start().await?;
        keeper.guardian.ready();
        tracing::info!(generation = keeper.generation, "keeper serves");
        if keeper.events.is_wanted() {
            let keeper = Arc::clone(&keeper);
            tokio::spawn(async move { keeper.end_unless_used().await });
        }
        tokio::spawn(renew_guardian(Arc::clone(&keeper)));
        loop {
            tokio::select! {
                () = keeper.should_end() => break,
                () = keeper.upgrade.asked() => {
                    if let Err(error) = upgrade::leave(&keeper, &mut server).await {
                        tracing::error!("{error}");
                    }
                }
            }
        }
        // Nobody may connect to a socket whose server is leaving; a start that comes now makes a new one.
        match std::fs::remove_file(keeper.layout.socket()?) {
            // Somebody has removed the whole directory: all the more reason to go.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        keeper.events.flush(LAST_EVENTS).await;
        keeper.guardian.quit();
        server.shutdown().await?;
        listening.abort();
        keeper.engine.stop();
        Ok(())
    })
}

/// To whoever asks as other shims are asked (SHIM-PROC-05).
async fn tell(keeper: Arc<Keeper>, mut asked: SignalStream) {
    while asked.recv().await.is_some() {
        keeper.tell();
    }
}

/// To whoever has installed another program.
async fn make_way(keeper: Arc<Keeper>, mut hangups: SignalStream) {
    while hangups.recv().await.is_some() {
        if let Err(error) = upgrade::ask(&keeper, None).await {
            tracing::error!("SIGHUP: {error}");
        }
    }
}

/// Once we serve: then what we are is no broken file.
async fn renew_guardian(keeper: Arc<Keeper>) {
    if let Err(error) = upgrade::renew_guardian(&keeper).await {
        tracing::error!("{error}");
    }
}

/// What the guardian says; when it is gone, another one takes its place.
async fn hear(keeper: Arc<Keeper>, flags: Flags) {
    let flags = Arc::new(flags);
    let mut child = None;
    loop {
        match keeper.guardian.events() {
            Ok(events) => hear_one(&keeper, events).await,
            Err(error) => tracing::error!("guardian: {error}"),
        }
        tracing::error!("the guardian is gone; containers run on, another guardian is started");
        if child.is_some() {
            // Whatever killed the second one so soon must not keep us busy.
            tokio::time::sleep(GUARDIAN_PAUSE).await;
        }
        end(child.take()).await;
        child = Some(succeed(&keeper, &flags).await);
        tracing::info!(pid = keeper.guardian.pid(), "a new guardian holds all descriptors");
    }
}

/// Returns when this guardian is gone.
async fn hear_one(keeper: &Keeper, mut events: Events) {
    loop {
        match events.next().await {
            Event::Died(exit) => recovery::report(keeper, exit),
            Event::Terminate => {
                if keeper.tasks.is_empty() && keeper.sandboxes.is_empty() {
                    keeper.ask_to_end(true);
                } else {
                    tracing::warn!("SIGTERM refused: there are containers or sandboxes");
                }
            }
            Event::Gone => return,
        }
    }
}

/// Tries until a new guardian has everything.
async fn succeed(keeper: &Arc<Keeper>, flags: &Arc<Flags>) -> Child {
    loop {
        let (own, own_flags) = (Arc::clone(keeper), Arc::clone(flags));
        let made = blocking(move || {
            let mut started = None;
            let made = own.guardian.succeed(own.generation, |socket| {
                let child =
                    start::another_guardian(&own_flags, own.layout.root(), &own.upgrade.path(), socket)?;
                let pid = child.id().cast_signed();
                started = Some(child);
                Ok(pid)
            });
            Ok((made, started))
        });
        let failure = match made.await {
            Ok((Ok(()), Some(child))) => return child,
            Ok((made, child)) => {
                end(child).await;
                made.err().map_or_else(String::new, |error| error.to_string())
            }
            Err(error) => error.to_string(),
        };
        tracing::error!("no new guardian: {failure}; our own death would now lose exit codes; trying again");
        tokio::time::sleep(GUARDIAN_PAUSE).await;
    }
}

/// Makes sure of a guardian's end: two of them would start two keepers.
async fn end(child: Option<Child>) {
    let Some(mut child) = child else { return };
    let ended = blocking(move || {
        let _ = child.kill();
        Ok(child.wait())
    });
    if let Err(error) = ended.await {
        tracing::error!("end of a guardian: {error}");
    }
}

/// What the server listens to: also the connections of a former keeper, for a client that must not lose them.
fn incoming(
    keeper: &Keeper,
    listener: &OwnedFd,
    held: &mut HashMap<String, OwnedFd>,
) -> Result<ttrpc::r#async::transport::Listener, Box<dyn Error>> {
    let listener = UnixListener::from(listener.try_clone()?);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    if !keeper.events.is_wanted() {
        let incoming = CountedIncoming { listener, connected: keeper.connected.clone() };
        return Ok(ttrpc::r#async::transport::Listener::new(incoming));
    }
    let dir = connections::directory(keeper.layout.root());
    let incoming = Incoming::new(listener, held, keeper.guardian.clone(), dir)?;
    Ok(ttrpc::r#async::transport::Listener::new(incoming))
}

/// Standard input as a descriptor that no container can inherit; /dev/null takes its place.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(null)?;
    Ok(socket)
}
