//! The process that starts the trainer. What the daemon starts would be restricted as the daemon is
//! ([`crate::boundary`]) and could open no image. So the daemon, before it restricts itself, starts this
//! process, and from then on can tell it one thing only: start what `node.toml` said at that time.
//!
//! One byte goes to the starter for each start; a line comes back when the trainer has ended. When the
//! daemon is gone, the trainer is killed and the starter ends.

use crate::config::Config;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// Exit code of a trainer whose libraries could not be loaded.
const NOT_STARTED: i32 = 127;
/// Name of the command that this process runs as.
pub(crate) const COMMAND: &str = "start-trainer";
/// Longest report on how a trainer ended.
const REPORT_MAX: u64 = 4096;

/// The daemon's end.
#[derive(Debug)]
pub struct Starter {
    link: StdStream,
    process: Child,
}

impl Starter {
    /// Starts the process for the site in `home`; none if the trainer is a service of its own.
    ///
    /// # Errors
    /// What the system said.
    pub fn spawn(config: &Config) -> io::Result<Option<Self>> {
        if config.trainer_command.is_empty() {
            return Ok(None);
        }
        let (link, theirs) = StdStream::pair()?;
        link.set_nonblocking(true)?;
        let process = Command::new(std::env::current_exe()?)
            .args([COMMAND, "--home"])
            .arg(&config.home)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Some(Self { link, process }))
    }

    /// Takes up the talk with the process.
    ///
    /// # Errors
    /// Outside a runtime.
    pub fn connect(self) -> io::Result<Link> {
        let stream = BufReader::new(UnixStream::from_std(self.link)?);
        Ok(Link { stream, _process: self.process })
    }
}

/// A talk with the process.
#[derive(Debug)]
pub struct Link {
    stream: BufReader<UnixStream>,
    _process: Child,
}

impl Link {
    /// Lets the trainer be started; how it ended, once it did.
    ///
    /// # Errors
    /// If the process is gone.
    pub async fn run_trainer(&mut self) -> io::Result<String> {
        self.stream.write_all(&[1]).await?;
        let mut report = String::new();
        (&mut self.stream).take(REPORT_MAX).read_line(&mut report).await?;
        if report.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        report.truncate(report.trim_end().len());
        Ok(report)
    }
}

/// The trainer's log in a site's home.
#[must_use]
pub fn log(home: &Path) -> PathBuf {
    home.join("trainer.log")
}

/// The process itself; its standard input is the daemon. Ends when the daemon does.
///
/// # Errors
/// If it was not started by a daemon.
pub(crate) fn run(home: &Path) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let config = Config::load(home)?;
    let (program, arguments) =
        config.trainer_command.split_first().context("node.toml has no `trainer.command`")?;
    let program = beside_this_program(program);
    let link = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    link.set_nonblocking(true).context("only a daemon starts this command")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut daemon = UnixStream::from_std(link).context("only a daemon starts this command")?;
        let log = log(home);
        while daemon.read_u8().await.is_ok() {
            let ended = match start(&program, arguments, &log) {
                Err(e) => format!("starting the trainer {}: {e}", program.display()),
                Ok(mut trainer) => tokio::select! {
                    status = trainer.wait() => told(status, &log),
                    _ = daemon.read_u8() => {
                        let _ = trainer.kill().await;
                        break;
                    }
                },
            };
            if daemon.write_all(format!("{}\n", ended.replace('\n', " ")).as_bytes()).await.is_err()
            {
                break;
            }
        }
        Ok(())
    })
}

fn told(status: io::Result<std::process::ExitStatus>, log: &Path) -> String {
    let log = log.display();
    match status {
        Ok(status) if status.code() == Some(NOT_STARTED) => format!(
            "the trainer could not start, as when libtorch is missing or of another version; the end of its log {log} says why"
        ),
        Ok(status) => format!("the trainer ended ({status}); its log is {log}"),
        Err(e) => format!("waiting for the trainer: {e}"),
    }
}

/// A program without a folder is looked for beside this one first, then in `PATH`.
fn beside_this_program(program: &str) -> PathBuf {
    let path = Path::new(program);
    let sibling = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(program)));
    match sibling {
        Some(sibling) if path.components().count() == 1 && sibling.is_file() => sibling,
        _ => path.to_owned(),
    }
}

/// The trainer's own words go to a file that only this site reads: they may name cases.
fn start(program: &Path, arguments: &[String], log: &Path) -> io::Result<tokio::process::Child> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
}
