//! Command line of the daemon.

use clap::{Parser, Subcommand};
use rondo::ids::SiteId;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The Rondo daemon of one site.
#[derive(Debug, Parser)]
#[command(name = "rondo-node", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the daemon's program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a site's keys, card and configuration.
    Init(Init),
    /// Renew the card of a site whose daemon does not run, for the same keys.
    RenewCard(RenewCard),
    /// Run the daemon in the foreground.
    Run(Run),
    /// Check the configuration, policy, keys and card, and say what is wrong.
    CheckConfig(Home),
    /// Try whether the daemon could open a file: restrict this process as the daemon is, and open it.
    /// Exits with 0 if that is refused. Run it as the daemon's user.
    CheckBoundary(CheckBoundary),
    /// Start the trainer for the daemon that is the standard input.
    #[command(name = crate::starter::COMMAND, hide = true)]
    StartTrainer(Home),
    /// What an auditor asks of a site's files; answers are JSON.
    #[command(subcommand)]
    Audit(Audit),
    /// Measure this machine with daemons of its own.
    #[command(subcommand)]
    Bench(Bench),
}

/// Questions of an auditor.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Check every line of the audit log and every signature over it.
    Verify {
        /// Where the site lives.
        #[command(flatten)]
        home: Home,
        /// A signature that was kept elsewhere: an earlier `audit-mark.json`.
        #[arg(long)]
        mark: Option<PathBuf>,
    },
    /// Print the audit log, a JSON object a line.
    Export {
        /// Where the site lives.
        #[command(flatten)]
        home: Home,
    },
    /// What left this site, by peer, round and kind of message.
    Egress {
        /// Where the site lives.
        #[command(flatten)]
        home: Home,
        /// Only this round: its digest, or the first digits.
        #[arg(long)]
        round: Option<String>,
        /// Only to this site.
        #[arg(long)]
        peer: Option<SiteId>,
    },
}

/// What `check-boundary` takes.
#[derive(Debug, clap::Args)]
pub struct CheckBoundary {
    /// Where the site lives.
    #[command(flatten)]
    pub home: Home,
    /// The file or folder to try, such as an image.
    pub file: PathBuf,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Hand a large checkpoint from one daemon to another, in turns with the same bytes over bare TLS.
    Transfer(BenchTransfer),
    /// Let three daemons pass a model around without training: what a round costs beside it.
    Round(BenchRound),
    /// One end of the bare connection that a transfer is compared with.
    #[command(hide = true)]
    Bare(BenchBare),
}

/// What `bench transfer` takes.
#[derive(Debug, clap::Args)]
pub struct BenchTransfer {
    /// About how large the checkpoint shall be, in bytes or with MiB or GiB.
    #[arg(long, default_value = "1GiB", value_parser = crate::bench::size)]
    pub size: u64,
    /// How often each is measured; medians are told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Folder on the disk that the daemons shall use; the system's temporary one otherwise.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Run the daemons in two network namespaces with a link of so many 10⁶ bits a second between them;
    /// needs root, `ip` and `tc`, and is skipped without.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub link_mbit_s: Option<u32>,
    /// Milliseconds that packets take over that link and back; needs a kernel with netem.
    #[arg(long, requires = "link_mbit_s", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub rtt_ms: u32,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `bench round` takes.
#[derive(Debug, clap::Args)]
pub struct BenchRound {
    /// About how large the checkpoint shall be, in bytes or with MiB or GiB.
    #[arg(long, default_value = "2600000", value_parser = crate::bench::size)]
    pub size: u64,
    /// How many rounds are measured; medians are told.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Folder on the disk that the daemons shall use; the system's temporary one otherwise.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What one end of a bare connection takes.
#[derive(Debug, clap::Args)]
pub struct BenchBare {
    /// Whose keys it shows.
    #[command(flatten)]
    pub home: Home,
    /// Home of the site at the other end.
    #[arg(long)]
    pub peer: PathBuf,
    /// Bytes that go over it.
    #[arg(long)]
    pub bytes: u64,
    /// Address at which it listens.
    #[arg(long)]
    pub listen: std::net::IpAddr,
    /// Where the other end listens; it listens itself without.
    #[arg(long)]
    pub connect: Option<SocketAddr>,
}

/// Where a site lives.
#[derive(Debug, clap::Args)]
pub struct Home {
    /// Folder with configuration, keys, journal and store.
    #[arg(long, env = "RONDO_HOME")]
    pub home: PathBuf,
}

/// What `run` takes.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Where the site lives.
    #[command(flatten)]
    pub home: Home,
    /// Stop when standard input ends; for whoever starts a node and must not outlive it.
    #[arg(long)]
    pub until_stdin_closes: bool,
}

/// What `renew-card` takes.
#[derive(Debug, clap::Args)]
pub struct RenewCard {
    /// Where the site lives.
    #[command(flatten)]
    pub home: Home,
    /// Days for which the card is valid.
    #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub valid_days: u32,
}

/// What `init` takes.
#[derive(Debug, clap::Args)]
pub struct Init {
    /// Where the site shall live.
    #[command(flatten)]
    pub home: Home,
    /// The site's id: 1 to 32 of a-z, 0-9 and `-`.
    #[arg(long)]
    pub site: SiteId,
    /// The site's name for people.
    #[arg(long)]
    pub name: String,
    /// Address and port to listen on.
    #[arg(long, default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// Where peers reach this site, as host:port; repeatable.
    #[arg(long = "endpoint")]
    pub endpoints: Vec<String>,
    /// Let the daemon start the trainer with this configuration.
    #[arg(long)]
    pub trainer_config: Option<PathBuf>,
    /// Folder for the sockets, if not `run` in the home folder.
    #[arg(long)]
    pub runtime_dir: Option<PathBuf>,
    /// Days for which the card is valid.
    #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub valid_days: u32,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
