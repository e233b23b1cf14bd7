//! From the command line to a running daemon, and down again.

use crate::audit::{Audit, Clerk};
use crate::boundary::{self, FileAccess, Tried};
use crate::cli::{Arguments, Bench, CheckBoundary, Command, Init, RenewCard, Run};
use crate::config::{self, Config};
use crate::contacts::Contacts;
use crate::daemon::{Daemon, unix_now};
use crate::durable::{self, Mode};
use crate::effects::Workers;
use crate::expiry;
use crate::gate;
use crate::greeting::Greeter;
use crate::identity::{self, Identity, NewSite, Own};
use crate::journal::{self, Journal};
use crate::ledger::{self, Book, Egress};
use crate::metrics::Metrics;
use crate::outbound::{Outbound, book};
use crate::pace::Paces;
use crate::policy::{self, Policy};
use crate::pull::Pulls;
use crate::reason::Refusals;
use crate::renewal::Renewal;
use crate::rpc::control::ControlService;
use crate::rpc::peer::PeerService;
use crate::rpc::trainer::TrainerService;
use crate::starter::{self, Starter};
use crate::store::Store;
use crate::trainer::TrainerHub;
use crate::{audit, auditor, bench, listen, retention};
use anyhow::Context as _;
use rondo::audit::{What, Who};
use rondo::owner::Log as _;
use rondo::round::{Event, SiteState, step};
use rustix::fs::{FlockOperation, flock};
use std::fmt::Write as _;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Exit code when keys or card are missing or broken: the daemon never listens without them.
const EXIT_IDENTITY: u8 = 10;
/// Exit code when the configuration is wrong.
const EXIT_CONFIG: u8 = 11;
/// Exit code when the journal, the egress ledger or the audit log is damaged. A full disk is no damage:
/// what passes by itself must not keep systemd from starting the daemon again.
const EXIT_JOURNAL: u8 = 12;
/// Exit code when a socket or port cannot be used, or another daemon runs.
const EXIT_SOCKET: u8 = 13;

/// How long a stop waits for what hangs.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let outcome = match arguments.command {
        Command::Init(init) => make_site(&init),
        Command::RenewCard(renew) => renew_card(&renew),
        Command::Run(run) => serve(&run),
        Command::CheckConfig(home) => check(&home.home),
        Command::CheckBoundary(check) => check_boundary(&check),
        Command::StartTrainer(home) => starter::run(&home.home),
        Command::Audit(question) => auditor::run(&question),
        Command::Bench(Bench::Transfer(bench)) => bench::transfer(&bench),
        Command::Bench(Bench::Round(bench)) => bench::round(&bench),
        Command::Bench(Bench::Bare(end)) => bench::bare(&end),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", sentence(&e));
            ExitCode::from(exit_code(&e))
        }
    }
}

/// The chain of an error; a cause that the text before it names already is not named again.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let is = |found: bool, code| found.then_some(code);
    error
        .chain()
        .find_map(|cause| {
            is(cause.is::<identity::Error>(), EXIT_IDENTITY)
                .or(is(cause.is::<config::Error>(), EXIT_CONFIG))
                .or(is(cause.is::<policy::Error>(), EXIT_CONFIG))
                .or(is(is_damage(cause), EXIT_JOURNAL))
                .or(is(cause.is::<SocketProblem>(), EXIT_SOCKET))
        })
        .unwrap_or(1)
}

fn is_damage(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref().is_some_and(journal::Error::is_damage)
        || cause.downcast_ref().is_some_and(ledger::Error::is_damage)
        || cause.downcast_ref().is_some_and(audit::Error::is_damage)
        || cause.downcast_ref().is_some_and(book::Error::is_damage)
}

/// Marks errors about sockets, ports and a second daemon.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SocketProblem(String);

fn make_site(init: &Init) -> anyhow::Result<()> {
    let home = &init.home.home;
    let new = NewSite {
        site: init.site.clone(),
        name: init.name.clone(),
        endpoints: init.endpoints.clone(),
        now: unix_now(),
        valid_days: init.valid_days,
    };
    Identity::refuse_existing(home)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home)
        .with_context(|| format!("creating {}", home.display()))?;
    // The configuration comes first: keys are never left without it.
    let path = home.join(config::FILE);
    durable::write(&path, configuration(init)?.as_bytes(), Mode::Private)
        .with_context(|| format!("writing {}", path.display()))?;
    Config::load(home)?;
    let identity = Identity::create(home, &new)?;
    let card = home.join(identity::CARD);
    let fingerprint = identity.own.fingerprint();
    let text = if init.json {
        serde_json::json!({
            "schema": "rondo.site-init/1",
            "site": init.site, "fingerprint": fingerprint, "home": home, "card": card,
        })
        .to_string()
    } else {
        format!(
            "site {} made in {}\nfingerprint {fingerprint}\nGive {} to the other sites, and compare the fingerprint with them by phone.",
            init.site,
            home.display(),
            card.display()
        )
    };
    #[allow(clippy::print_stdout, reason = "the answer of a command")]
    {
        println!("{text}");
    }
    Ok(())
}

/// The text of a new site's `node.toml`.
fn configuration(init: &Init) -> anyhow::Result<String> {
    let quote = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map(|p| p.to_string_lossy().into_owned())
            .with_context(|| format!("finding {}", path.display()))
    };
    let run = match &init.runtime_dir {
        Some(folder) => absolute(folder)?,
        None => absolute(&init.home.home.join("run"))?,
    };
    let trainer_socket = format!("{run}/trainer.sock");
    let mut text = format!(
        "[peer]\nlisten = {}\n\n[control]\nsocket = {}\n\n[trainer]\nsocket = {}\n",
        quote(&init.listen.to_string()),
        quote(&format!("{run}/control.sock")),
        quote(&trainer_socket),
    );
    if let Some(file) = &init.trainer_config {
        let file = absolute(file)?;
        let command = ["rondo-trainer", "serve", "--socket", &trainer_socket, "--config", &file];
        let command: Vec<String> = command.iter().map(|part| quote(part)).collect();
        let _ = writeln!(text, "command = [{}]", command.join(", "));
    }
    Ok(text)
}

fn check(home: &Path) -> anyhow::Result<()> {
    Config::load(home)?;
    Policy::load(home)?;
    Identity::load(home)?;
    #[allow(clippy::print_stdout, reason = "the answer of a command")]
    {
        println!("{}: configuration, policy, keys and card are in order", home.display());
    }
    Ok(())
}

fn renew_card(renew: &RenewCard) -> anyhow::Result<()> {
    let home = &renew.home.home;
    let _lock = lock(home)?;
    let renewed = Identity::load(home)?.renew_card(home, unix_now(), renew.valid_days)?;
    #[allow(clippy::print_stdout, reason = "the answer of a command")]
    {
        println!(
            "new card of {} in {}; fingerprint {} as before",
            renewed.own.site,
            home.join(identity::CARD).display(),
            renewed.own.fingerprint()
        );
    }
    Ok(())
}

fn check_boundary(check: &CheckBoundary) -> anyhow::Result<()> {
    let file = check.file.display();
    Config::load(&check.home.home)?;
    let refused = match boundary::try_open(&check.home.home, &check.file)? {
        Tried::Refused => "the daemon's restrictions refuse it",
        Tried::NotThisUser => {
            "this user may not open it at all; the daemon's restrictions were not needed"
        }
        Tried::Opened => anyhow::bail!(
            "{file} could be opened by the daemon: it lies in the daemon's home or where names are looked up; move it elsewhere"
        ),
        Tried::NotRestricted => anyhow::bail!(
            "{file} could be opened by a daemon of this user: this kernel has no Landlock, or one older than Linux 5.19; let the daemon run as a user of its own, from the systemd unit"
        ),
    };
    #[allow(clippy::print_stdout, reason = "the answer of a command")]
    {
        println!("{file}: {refused}");
    }
    Ok(())
}

fn serve(run: &Run) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("RONDO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();

    // What the daemon makes is for its own user alone, sockets and SQLite's files included.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let home = &run.home.home;
    let config = Config::load(home)?;
    let policy = Arc::new(Policy::load(home)?);
    let identity = Identity::load(home)?;
    identity.own.valid_at(unix_now()).map_err(|e| anyhow::anyhow!("this site's own card: {e}"))?;
    let lock = lock(home)?;
    identity.settle(home)?;
    let unix = |path: &Path| listen::bind_unix(path).map_err(|e| SocketProblem(format!("{e:#}")));
    let sockets = [unix(&config.control_socket)?, unix(&config.trainer_socket)?];
    let starter =
        Starter::spawn(&config).context("starting the process that starts the trainer")?;
    // Before any other thread is there: each thread is restricted as the one that began it.
    let file_access = boundary::enter(home)?;
    boundary::check_home(home, &["", "keys", "store", "store/checkpoints", "store/incoming"])?;
    if file_access == FileAccess::NotRestricted {
        tracing::warn!(
            "this kernel has no Landlock, or one older than Linux 5.19: the daemon's access to files is what its user and its systemd unit allow"
        );
    } else {
        tracing::info!(%file_access, "the daemon's access to files is restricted to its home");
    }
    let (mut journal, mut state) = Journal::open(&home.join(journal::FILE))?;
    open_site(&mut journal, &mut state, &identity)?;
    let own = Own::new(identity);
    let store = Store::open(&home.join("store"))?;
    let (book, egress) = Book::open(&home.join(ledger::FILE))?;
    let book = Arc::new(Mutex::new(book));
    let outbound = Outbound::open(home, policy.clone())?;
    let audit = Audit::open(home, own.clone())?;
    let (version, journal_records) = (crate::version(), journal.len());
    audit.note(Who::Daemon, What::Started { version, journal_records });
    let refusals = Refusals::default();
    let clerk = Clerk::new(audit.clone(), refusals.clone(), egress.clone());
    let clerk = Arc::new(Mutex::new(clerk));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let around = Surroundings { sockets, starter, file_access, policy };
    let (daemon, journal_thread) = Daemon::start(journal, state, own.clone());
    let records = Records { audit, refusals, egress, outbound };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = live(&config, home, own, daemon, store, around, records) => ended,
            () = keep(book.clone()) => Ok(()),
            () = Clerk::run(clerk.clone()) => Ok(()),
            () = stop_requested(run.until_stdin_closes) => Ok(()),
        }
    });
    // Bounded, so that a write that hangs on a broken disk does not hold the stop up for ever.
    runtime.shutdown_timeout(STOP_PATIENCE);
    // Every handle is gone with the runtime; what was being written is written first.
    let begun = Instant::now();
    while !journal_thread.is_finished() && begun.elapsed() < STOP_PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    save(&book);
    clerk.lock().unwrap_or_else(PoisonError::into_inner).close();
    tracing::info!("stopped");
    drop(lock);
    ended
}

/// What is kept about what happens.
struct Records {
    audit: Audit,
    refusals: Refusals,
    egress: Egress,
    outbound: Outbound,
}

/// Saves the egress ledger for as long as the daemon runs.
async fn keep(book: Arc<Mutex<Book>>) {
    loop {
        tokio::time::sleep(ledger::SAVE_EVERY).await;
        let book = book.clone();
        let _ = tokio::task::spawn_blocking(move || save(&book)).await;
    }
}

fn save(book: &Mutex<Book>) {
    if let Err(e) = book.lock().unwrap_or_else(PoisonError::into_inner).save() {
        tracing::error!("{e}; nothing is lost while the daemon runs");
    }
}

/// One daemon for one home.
fn lock(home: &Path) -> anyhow::Result<File> {
    let path = home.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        SocketProblem(format!("another daemon runs on {}; stop it first", home.display()))
    })?;
    Ok(file)
}

/// Records the site's card as the journal's beginning, or again if it was renewed.
fn open_site(
    journal: &mut Journal,
    state: &mut SiteState,
    identity: &Identity,
) -> anyhow::Result<()> {
    if state.own() != Some(&identity.own) {
        let event = Event::SiteOpened { card: identity.card.clone() };
        *state = step(state, &event).context("the journal belongs to another site's keys")?;
        journal.append(&event)?;
    }
    Ok(())
}

/// What was made before the daemon restricted itself, and how it did.
struct Surroundings {
    /// For operators, and for the trainer.
    sockets: [UnixListener; 2],
    starter: Option<Starter>,
    file_access: FileAccess,
    policy: Arc<Policy>,
}

async fn live(
    config: &Config,
    home: &Path,
    own: Own,
    daemon: Daemon,
    store: Store,
    around: Surroundings,
    records: Records,
) -> anyhow::Result<()> {
    let Records { audit, refusals, egress, outbound } = records;
    let hub = TrainerHub::default();
    let contacts = Contacts::default();
    let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(|e| {
        SocketProblem(format!(
            "listening on {}: {e}; free the port or choose another in {}",
            config.listen,
            config::FILE
        ))
    })?;
    let scrapes = match config.metrics {
        Some(address) => Some(tokio::net::TcpListener::bind(address).await.map_err(|e| {
            SocketProblem(format!(
                "listening for metrics on {address}: {e}; choose another in {}",
                config::FILE
            ))
        })?),
        None => None,
    };
    let greeter =
        Greeter::new(daemon.clone(), own.clone(), contacts.clone(), egress.clone(), audit.clone());
    let paces = Paces::new(config.peers.clone(), around.policy.rate_mbit_s);
    let peers = PeerService::new(store.clone(), greeter.clone(), paces.clone(), around.policy);
    let [control_socket, trainer_socket] = around.sockets.map(tokio::net::UnixListener::from_std);
    let (control_socket, trainer_socket) = (control_socket?, trainer_socket?);
    let trainer = TrainerService::new(hub.clone(), store.clone());
    let control = ControlService {
        daemon: daemon.clone(),
        store: store.clone(),
        hub: hub.clone(),
        contacts: contacts.clone(),
        greeter: greeter.clone(),
        renewal: Renewal::new(home.to_owned(), greeter.clone()),
        file_access: around.file_access,
        paces: paces.clone(),
        refusals: refusals.clone(),
        audit: audit.clone(),
        outbound: outbound.clone(),
    };
    let tidying = retention::run(store.clone(), daemon.clone(), config.keep_days);
    let quarantine = gate::keep(store.clone(), daemon.clone(), audit.clone());
    let (states, keys) = (daemon.states(), own.clone());
    let pulls = Pulls { greeter: greeter.clone(), paces: paces.clone(), service: peers.clone() };
    let metrics = Metrics {
        daemon: daemon.clone(),
        refusals: refusals.clone(),
        egress: egress.clone(),
        store: config.home.join("store"),
        outbound: outbound.clone(),
    };
    let workers = Workers {
        daemon: daemon.clone(),
        own,
        store,
        hub: hub.clone(),
        contacts,
        paces,
        egress: egress.clone(),
        since: Instant::now(),
        outbound,
        audit,
    };
    tracing::info!(address = %config.listen, control = %config.control_socket.display(), "ready");
    let ended = tokio::select! {
        ended = listen::peers(listener, keys, states, peers, refusals, egress) => ended,
        ended = listen::control(control_socket, control) => ended,
        ended = listen::trainer(trainer_socket, trainer) => ended,
        () = workers.run() => Ok(()),
        () = tidying => Ok(()),
        () = quarantine => Ok(()),
        () = greeter.run() => Ok(()),
        () = expiry::watch(daemon) => Ok(()),
        failed = async {
            match hub.supervise(config, around.starter).await {
                Ok(()) => std::future::pending().await,
                Err(e) => e,
            }
        } => return Err(failed).context("talking to the process that starts the trainer"),
        () = pulls.run() => Ok(()),
        () = async {
            match scrapes {
                Some(listener) => metrics.serve(listener).await,
                None => std::future::pending().await,
            }
        } => Ok(()),
    };
    ended.context("serving")
}

async fn stop_requested(until_stdin_closes: bool) {
    let (closed, closes) = tokio::sync::oneshot::channel::<()>();
    let stdin_closed = async move {
        if until_stdin_closes {
            // A thread of its own: a blocked read of standard input cannot be cancelled.
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                drop(closed);
            });
            let _ = closes.await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return stdin_closed.await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stdin_closed => {}
    }
}
