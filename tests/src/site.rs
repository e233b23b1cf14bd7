//! One site: its home, its daemon as a process, and the daemon's own child, the trainer.

use crate::{eventually, log, programs};
use rondo_proto::control::control_client::ControlClient;
use rondo_proto::control::{
    GetSiteRequest, ModelRequest, ModelView, RoundRequest, RoundView, SiteView,
};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A client of a site's control socket.
pub type Control = ControlClient<Channel>;

/// How long a daemon may take to answer, its trainer to attach, and both to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// A site and, while it runs, its daemon. Dropping it stops the daemon and checks its logs.
#[derive(Debug)]
pub struct Site {
    /// Its id.
    pub name: String,
    /// Folder with configuration, keys, journal and store.
    pub home: PathBuf,
    /// Where peers reach it.
    pub listen: SocketAddr,
    /// The operator's socket.
    pub socket: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    expected: Vec<String>,
}

/// How a daemon ended that did not want to run.
#[derive(Debug)]
pub struct Refused {
    /// Its exit code.
    pub code: i32,
    /// What it wrote.
    pub text: String,
}

impl Refused {
    /// Checks exit code and sentence.
    pub fn says(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "`{part}` is not in:\n{}", self.text);
        }
        assert!(!self.text.contains("panicked"), "{}", self.text);
    }
}

impl Site {
    /// Makes the site `name` in `folder` with the real `rondo-node init`. With a cohort, its daemon
    /// starts a trainer for it.
    #[must_use]
    pub fn init(folder: &Path, name: &str, cohort: Option<&Path>) -> Self {
        let listen = free_address();
        Self::init_at(folder, name, cohort, listen, &[listen])
    }

    /// As [`Site::init`]: it listens at one address, and its card names others.
    #[must_use]
    pub fn init_at(
        folder: &Path,
        name: &str,
        cohort: Option<&Path>,
        listen: SocketAddr,
        endpoints: &[SocketAddr],
    ) -> Self {
        let (home, run) = (folder.join(name), folder.join("run").join(name));
        let mut command = Command::new(programs::node());
        command.args(["init", "--site", name, "--name", &name.to_uppercase(), "--home"]).arg(&home);
        command.args(["--listen", &listen.to_string()]);
        for endpoint in endpoints {
            command.args(["--endpoint", &endpoint.to_string()]);
        }
        command.arg("--runtime-dir").arg(&run);
        if let Some(cohort) = cohort {
            let config = folder.join(format!("{name}-trainer.toml"));
            let work = folder.join(format!("{name}-work"));
            let text = format!(
                "cohort = {cohort:?}\nwork = {work:?}\ndevice = \"cpu\"\nsave_every_s = 0\n"
            );
            fs::write(&config, text).unwrap();
            command.arg("--trainer-config").arg(config);
        }
        let done = command.env_remove("RONDO_HOME").output().expect("rondo-node starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let log = folder.join(format!("{name}-node.log"));
        let socket = run.join("control.sock");
        assert!(
            socket.as_os_str().len() < 90,
            "{}: set TMPDIR to a shorter path",
            socket.display()
        );
        let name = name.to_owned();
        let site = Self { name, home, listen, socket, log, child: None, expected: Vec::new() };
        site.configure(|text| {
            text.replace("\"rondo-trainer\"", &format!("{:?}", programs::trainer()))
        });
        site
    }

    /// Changes `node.toml`.
    pub fn configure(&self, change: impl FnOnce(&str) -> String) {
        let path = self.home.join("node.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(&text)).unwrap();
    }

    /// Writes `node.toml`.
    pub fn configure_new(&self, text: &str) {
        fs::write(self.home.join("node.toml"), text).unwrap();
    }

    fn spawn(&self, log: &Path) -> Child {
        let open = || File::options().create(true).append(true).open(log).unwrap();
        Command::new(programs::node())
            .args(["run", "--until-stdin-closes", "--home"])
            .arg(&self.home)
            .env_remove("RONDO_LOG")
            .env("TZ", "UTC")
            // Several sites share this machine's few cores.
            .env("OMP_NUM_THREADS", "1")
            .env("RAYON_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(open())
            .stderr(open())
            .process_group(0)
            .spawn()
            .expect("rondo-node starts")
    }

    /// Starts the daemon.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.child = Some(self.spawn(&self.log));
    }

    /// Starts a daemon, which must refuse, and says how it did. Beside one that runs this is a second.
    #[must_use]
    pub fn start_refused(&self) -> Refused {
        let log = self.log.with_extension("refused.log");
        let _ = fs::remove_file(&log);
        let mut child = self.spawn(&log);
        let ended = ended_within(&mut child, Duration::from_secs(20));
        let text = log::text(&log);
        let Some(status) = ended else {
            let _ = child.kill().and_then(|()| child.wait());
            panic!("{} started all the same:\n{text}", self.name);
        };
        Refused { code: status.code().expect("an exit code"), text }
    }

    /// `kill -9` of the daemon alone; its trainer has to notice by itself.
    pub fn kill(&mut self) {
        // What its trainer says when it finds out.
        self.expect_error("error: the daemon is gone");
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the daemon in order.
    pub fn stop(&mut self) {
        let Some(child) = &mut self.child else { return };
        drop(child.stdin.take());
        let ended = ended_within(child, PATIENCE);
        let status = ended.unwrap_or_else(|| panic!("{} does not stop", self.name));
        self.child = None;
        assert!(status.success(), "{} ended with {status}", self.name);
        // A trainer that was killed may take a moment to be gone.
        let begun = Instant::now();
        while !self.processes().is_empty() {
            let left = self.processes();
            assert!(begun.elapsed() < GONE, "{} left processes behind: {left:?}", self.name);
            sleep(Duration::from_millis(20));
        }
    }

    /// The process of its daemon; none while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Processes that belong to this site: its daemon and its trainer.
    #[must_use]
    pub fn processes(&self) -> Vec<programs::Running> {
        let mut all = programs::running_with(&self.home);
        all.extend(programs::running_with(self.socket.parent().unwrap()));
        all.sort_by_key(|p| p.pid);
        all.dedup();
        all
    }

    /// Its trainers.
    #[must_use]
    pub fn trainers(&self) -> Vec<programs::Running> {
        self.processes().into_iter().filter(|p| p.command.contains(" serve ")).collect()
    }

    /// What the daemon wrote so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        log::text(&self.log)
    }

    /// What its trainers wrote so far.
    #[must_use]
    pub fn trainer_log(&self) -> PathBuf {
        self.home.join("trainer.log")
    }

    /// Lets the logs hold error lines with `text`.
    pub fn expect_error(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// A client of its control socket.
    pub async fn control(&self) -> Control {
        rondo_proto::unix::control(&self.socket).await.expect("the daemon answers")
    }

    /// Waits until the daemon answers.
    pub async fn ready(&mut self) -> SiteView {
        self.ready_when("its daemon answers", |_| true).await
    }

    /// Waits until the daemon answers and its trainer is attached.
    pub async fn ready_to_train(&mut self) -> SiteView {
        let attached = |site: &SiteView| site.trainer.as_ref().is_some_and(|t| t.connected);
        self.ready_when("its trainer is attached", attached).await
    }

    /// Waits until the daemon answers as `enough` wants it.
    pub async fn ready_when(&mut self, what: &str, enough: impl Fn(&SiteView) -> bool) -> SiteView {
        let begun = Instant::now();
        loop {
            let ended = self.child.as_mut().expect("it was started").try_wait().unwrap();
            assert!(ended.is_none(), "{} ended: {}", self.name, log::tail(&self.log));
            if let Ok(mut control) = rondo_proto::unix::control(&self.socket).await
                && let Ok(site) = control.get_site(GetSiteRequest {}).await
                && enough(site.get_ref())
            {
                return site.into_inner();
            }
            assert!(begun.elapsed() < PATIENCE, "{}: never {what}", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What it knows of a round; none if it knows nothing.
    pub async fn round(&self, round: &str) -> Option<RoundView> {
        match self.control().await.get_round(request(round)).await {
            Ok(view) => Some(view.into_inner()),
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{}: {status}", self.name),
        }
    }

    /// Waits until what it knows of a round is as `enough` wants it.
    pub async fn round_when(
        &self,
        round: &str,
        what: &str,
        limit: Duration,
        enough: impl Fn(&RoundView) -> bool,
    ) -> RoundView {
        let what = format!("{} at {}", what, self.name);
        eventually(&what, limit, async || self.round(round).await.filter(&enough)).await
    }

    /// Approves a round.
    pub async fn approve(&self, round: &str) -> Result<RoundView, Status> {
        self.control().await.approve_round(request(round)).await.map(tonic::Response::into_inner)
    }

    /// Starts a round.
    pub async fn begin(&self, round: &str) -> Result<RoundView, Status> {
        self.control().await.start_round(request(round)).await.map(tonic::Response::into_inner)
    }

    /// Lets the daemon check a stored model.
    pub async fn verify(&self, weights: &str) -> Result<ModelView, Status> {
        let request = ModelRequest { weights: weights.to_owned() };
        self.control().await.verify_model(request).await.map(tonic::Response::into_inner)
    }

    /// Where a stored checkpoint lies.
    #[must_use]
    pub fn stored(&self, weights: &str) -> PathBuf {
        self.home.join("store/checkpoints").join(weights)
    }

    /// Where a checkpoint is being received, once that has begun.
    #[must_use]
    pub fn incoming(&self, weights: &str) -> Option<PathBuf> {
        incoming(&self.home, weights)
    }

    /// Ends everything of this site at once, a trainer without a daemon too.
    fn kill_all(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        programs::kill_all_with(&self.home);
        programs::kill_all_with(self.socket.parent().unwrap());
    }
}

fn ended_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        sleep(Duration::from_millis(20));
    }
    None
}

/// A request about one round.
#[must_use]
pub fn request(round: &str) -> RoundRequest {
    RoundRequest { round: round.to_owned() }
}

impl Drop for Site {
    fn drop(&mut self) {
        if panicking() {
            self.kill_all();
            let tails = log::tail(&self.log) + &log::tail(&self.trainer_log());
            eprintln!("=== {} (seed {})\n{tails}", self.name, crate::seed());
            return;
        }
        let orderly = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.stop()));
        self.kill_all();
        let mut bad = log::unexpected(&self.log, &self.expected);
        bad.extend(log::unexpected(&self.trainer_log(), &self.expected));
        let tails = log::tail(&self.log) + &log::tail(&self.trainer_log());
        assert!(
            orderly.is_ok(),
            "{} (seed {}) did not stop in order\n{tails}",
            self.name,
            crate::seed()
        );
        assert!(bad.is_empty(), "{} (seed {}) logged {bad:#?}\n{tails}", self.name, crate::seed());
    }
}

/// A port on loopback that nobody uses. It lies below the range from which the kernel takes ports for
/// outgoing connections, so that none of those takes it before the daemon does.
#[must_use]
pub fn free_address() -> SocketAddr {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 16_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let of_process = u16::try_from(std::process::id() * 37 % u32::from(COUNT)).unwrap();
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (of_process + n) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Where the site of `home` receives a checkpoint, once that has begun.
#[must_use]
pub fn incoming(home: &Path, weights: &str) -> Option<PathBuf> {
    let folder = fs::read_dir(home.join("store/incoming")).expect("a store");
    let mut paths = folder.map(|entry| entry.expect("an entry").path());
    paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(weights) && path.extension().is_none()
    })
}
