//! The keeper process: takes over from its predecessor, serves until nothing is left, hears its guardian.

use crate::events::Publisher;
use crate::guardian::client::{Event, Guardian};
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::logs::Engine;
use crate::logs::journal::Journal;
use crate::{prepare, recovery, service};
use rustix::fd::{AsFd, OwnedFd};
use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Key of the journal's page with the guardian.
const JOURNAL: &str = "journal";
/// Key of the listening socket.
const LISTENER: &str = "listener";

/// Runs the keeper of the group in `root`; its standard input is the guardian's socket.
pub(crate) fn serve(root: PathBuf, namespace: String) -> Result<(), Box<dyn Error>> {
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
        let events = Publisher::start(&std::env::var("TTRPC_ADDRESS").unwrap_or_default(), &namespace);
        let keeper = Arc::new(Keeper::new(
            Layout::at(root),
            namespace,
            guardian,
            engine,
            events,
            inheritance.generation,
            prepare::nofile_from_env(),
        ));
        let pending = recovery::rebuild(&keeper, inheritance.held)?;
        // Not before: a report that nobody waits for is forgotten.
        let listening = tokio::spawn(hear(Arc::clone(&keeper)));
        recovery::resume(&keeper, pending).await;
        let mut server = service::server(&keeper).add_listener(into_listener(&listener)?);
        server.start().await?;
        keeper.guardian.ready();
        tracing::info!(generation = keeper.generation, "keeper serves");
        keeper.should_end().await;
        // Nobody may connect to a socket whose server is leaving; a start that comes now makes a new one.
        std::fs::remove_file(keeper.layout.socket()?)?;
        keeper.guardian.quit();
        server.shutdown().await?;
        listening.abort();
        keeper.engine.stop();
        Ok(())
    })
}

/// What the guardian says, until it is gone.
async fn hear(keeper: Arc<Keeper>) {
    let mut events = match keeper.guardian.events() {
        Ok(events) => events,
        Err(error) => return tracing::error!("guardian: {error}"),
    };
    loop {
        match events.next().await {
            Event::Died(exit) => recovery::report(&keeper, exit),
            Event::Terminate => {
                if keeper.tasks.is_empty() && keeper.sandboxes.is_empty() {
                    keeper.ask_to_end(true);
                } else {
                    tracing::warn!("SIGTERM refused: there are containers or sandboxes");
                }
            }
            Event::Gone => {
                tracing::error!(
                    "the guardian is gone; containers run on, but our own death would now lose exit codes"
                );
                return;
            }
        }
    }
}

fn into_listener(listener: &OwnedFd) -> Result<ttrpc::r#async::transport::Listener, Box<dyn Error>> {
    let listener = UnixListener::from(listener.try_clone()?);
    listener.set_nonblocking(true)?;
    Ok(tokio::net::UnixListener::from_std(listener)?.into())
}

/// Standard input as a descriptor that no container can inherit; /dev/null takes its place.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(null)?;
    Ok(socket)
}
