//! One site of the lab: its daemon as a process, which supervises its trainer.
//!
//! The daemon holds our pipe as its standard input and stops when that ends, so that it never
//! outlives the lab, not even a killed one. Daemon and trainer share a process group of their own:
//! Ctrl-C on the terminal reaches only the lab, which then stops them in order.

use crate::args::SiteInit;
use crate::commands::site::init_arguments;
use crate::daemon::Client;
use crate::exit::{Exit, Failure};
use crate::programs;
use crate::render::site::trainer_text;
use rondo::ids::SiteId;
use rondo_proto::control::{GetSiteRequest, SiteView};
use rondo_proto::unix;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long a daemon may take to stop by itself.
const GRACE: Duration = Duration::from_secs(15);
/// How long daemon and trainer may take until they are ready: the trainer reads its cohort first.
const READY_MAX: Duration = Duration::from_secs(600);
/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(200);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 12;
/// Bytes of a log that are looked at for them.
const TAIL_BYTES: u64 = 8 * 1024;

/// What the trainer of a site is told.
#[derive(Serialize)]
struct TrainerConfig<'a> {
    cohort: &'a Path,
    device: &'a str,
    work: PathBuf,
}

/// What a site is made from.
pub(crate) struct Setup<'a> {
    pub(crate) site: &'a SiteId,
    /// The site's folder in the lab's.
    pub(crate) folder: PathBuf,
    /// Short folder for sockets, whose paths have a limit.
    pub(crate) runtime: PathBuf,
    pub(crate) cohort: &'a Path,
    pub(crate) device: &'a str,
    pub(crate) port: u16,
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) site: SiteId,
    pub(crate) log: PathBuf,
    trainer_log: PathBuf,
    socket: PathBuf,
    child: Child,
    group: Option<Pid>,
}

/// The most memory a site's processes held, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    pub(crate) node_peak_bytes: u64,
    pub(crate) trainer_peak_bytes: u64,
}

impl Node {
    /// Makes the site and starts its daemon.
    pub(crate) async fn start(setup: &Setup<'_>) -> Result<Self, Failure> {
        let Setup { site, folder, .. } = setup;
        let program = programs::find(programs::NODE)?;
        let fail =
            |what: &Path, e| Failure::storage(format!("setting up {site}: {}", what.display()), &e);
        std::fs::create_dir_all(&setup.runtime).map_err(|e| fail(&setup.runtime, e))?;
        let work = folder.join("work");
        std::fs::create_dir_all(&work).map_err(|e| fail(&work, e))?;
        let config = folder.join("trainer.toml");
        let text =
            toml::to_string(&TrainerConfig { cohort: setup.cohort, device: setup.device, work })
                .map_err(|e| Failure::new(Exit::Internal, format!("writing trainer.toml: {e}")))?;
        rondo_imaging::durable::write(&config, text.as_bytes()).map_err(|e| fail(&config, e))?;

        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, setup.port));
        let init = SiteInit {
            site: (*site).clone(),
            name: site.as_str().to_uppercase(),
            listen: Some(listen),
            endpoints: vec![listen.to_string()],
            trainer_config: Some(config),
            runtime_dir: Some(setup.runtime.clone()),
            valid_days: None,
        };
        let home = folder.join("home");
        programs::printed(&program, &init_arguments(&init, &home)).await?;

        let log = folder.join("node.log");
        let open =
            || File::options().create(true).append(true).open(&log).map_err(|e| fail(&log, e));
        let child = Command::new(&program)
            .args(["run", "--until-stdin-closes", "--home"])
            .arg(&home)
            .stdin(Stdio::piped())
            .stdout(open()?)
            .stderr(open()?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| programs::not_started(&program, &e))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let socket = setup.runtime.join("control.sock");
        let trainer_log = home.join("trainer.log");
        Ok(Self { site: (*site).clone(), log, trainer_log, socket, child, group })
    }

    /// A connection to the daemon, as its operator has it.
    pub(crate) async fn control(&self) -> Result<Client, Failure> {
        Ok(unix::control(&self.socket).await?)
    }

    /// Waits until the daemon answers and its trainer is connected.
    pub(crate) async fn ready(
        &mut self,
        mut waiting: impl FnMut(&str),
    ) -> Result<SiteView, Failure> {
        let begin = Instant::now();
        let mut why = "its daemon does not answer yet".to_owned();
        loop {
            self.alive()?;
            if let Ok(mut client) = unix::control(&self.socket).await
                && let Ok(site) = client.get_site(GetSiteRequest {}).await
            {
                let site = site.into_inner();
                let trainer = site.trainer.clone().unwrap_or_default();
                if trainer.connected {
                    return Ok(site);
                }
                why = format!("trainer {}", trainer_text(&trainer));
            }
            if begin.elapsed() > READY_MAX {
                return Err(
                    self.failed(&format!("is not ready after {} s: {why}", READY_MAX.as_secs()))
                );
            }
            waiting(&why);
            sleep(POLL).await;
        }
    }

    /// Fails if the daemon has ended.
    pub(crate) fn alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.gone(status)),
            _ => Ok(()),
        }
    }

    fn gone(&self, status: ExitStatus) -> Failure {
        self.failed(&programs::ended(status))
    }

    /// A failure of this site, with the ends of its logs.
    pub(crate) fn failed(&self, what: &str) -> Failure {
        let mut text = format!("the node of {} {what}", self.site);
        for log in [&self.log, &self.trainer_log] {
            if let Some(end) = tail(log) {
                text.push_str(&format!(". The end of {}:\n{end}\n", log.display()));
            }
        }
        Failure::new(Exit::RoundUnfinished, text.trim_end())
    }

    /// The most memory that daemon and trainer held so far.
    pub(crate) fn memory(&self) -> Memory {
        let Some(own) = self.child.id() else { return Memory::default() };
        let mut memory =
            Memory { node_peak_bytes: programs::peak_bytes(own), trainer_peak_bytes: 0 };
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid =
                entry.file_name().to_string_lossy().parse::<u32>().ok().filter(|pid| *pid != own);
            if let Some(pid) = pid.filter(|pid| group_of(*pid) == Some(own)) {
                memory.trainer_peak_bytes =
                    memory.trainer_peak_bytes.max(programs::peak_bytes(pid));
            }
        }
        memory
    }

    /// Stops the daemon in order, or by force if that takes too long. True if in order.
    pub(crate) async fn stop(&mut self) -> bool {
        drop(self.child.stdin.take());
        let orderly = timeout(GRACE, self.child.wait()).await.is_ok();
        // Whatever is left of the group: the daemon itself, or a trainer that it lost.
        self.kill();
        let _ = self.child.wait().await;
        self.group = None;
        orderly
    }

    /// Ends the whole process group at once.
    pub(crate) fn kill(&mut self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Process group of a process, as the kernel counts it; field 5 of its status line.
fn group_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold blanks and parentheses.
    stat.rsplit_once(") ")?.1.split(' ').nth(2)?.parse().ok()
}

/// Ports that nobody uses now, one for each site.
pub(crate) fn free_ports(n: usize) -> Result<Vec<u16>, Failure> {
    let bound: std::io::Result<Vec<TcpListener>> =
        (0..n).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    bound
        .and_then(|all| all.iter().map(|l| Ok(l.local_addr()?.port())).collect())
        .map_err(|e| Failure::storage("looking for free ports on loopback", &e))
}

/// The last lines of a log; none if it is empty or not there.
fn tail(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    file.take(TAIL_BYTES).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let shown: Vec<String> = lines.iter().skip(from).map(|line| format!("  {line}")).collect();
    (!shown.is_empty()).then(|| shown.join("\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_short() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..5000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        let tail = tail(file.path()).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 4999"), "{tail}");
        assert_eq!(super::tail(Path::new("/nowhere")), None);
    }

    #[test]
    fn ports_differ_and_groups_are_found() {
        let ports = free_ports(3).unwrap();
        assert!(ports[0] != ports[1] && ports[1] != ports[2]);
        assert!(group_of(std::process::id()).is_some());
        assert_eq!(group_of(u32::MAX), None);
    }
}
