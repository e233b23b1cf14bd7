//! `node.toml`: what hospital IT decides about a node. Unknown keys are refused.

use crate::pace::{Direction, Hours, PeerRule};
use rondo::ids::SiteId;
use rondo::settings::{self, Problems, Table};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Name of the configuration in a site's home folder.
pub const FILE: &str = "node.toml";
/// Longest time in days that `keep_days` may say: a century.
const KEEP_DAYS_MAX: u32 = 36_500;
/// Least bandwidth that a peer may be held to: below it, its own patience would run out.
const LIMIT_MIN_MBIT_S: u32 = 1;
/// Most bandwidth that can be said.
const LIMIT_MAX_MBIT_S: u32 = 100_000;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("reading {}: {source}. Run `rondo site init` first, or name the right folder with --home", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says something impossible.
    #[error("{}: {problems}", path.display())]
    Problems {
        /// The file.
        path: PathBuf,
        /// All of it.
        problems: Problems,
    },
}

/// A resolved configuration; every path is absolute or relative to the working folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder with keys, journal and store.
    pub home: PathBuf,
    /// Where peers reach this node.
    pub listen: SocketAddr,
    /// Socket for operators.
    pub control_socket: PathBuf,
    /// Socket for the trainer.
    pub trainer_socket: PathBuf,
    /// How to start the trainer; empty if it is a service of its own.
    pub trainer_command: Vec<String>,
    /// Days after which checkpoints of finished rounds are removed, the last of each aside; none keeps all.
    pub keep_days: Option<u32>,
    /// What is special about single peers.
    pub peers: BTreeMap<SiteId, PeerRule>,
    /// Where monitoring on this machine asks for figures; nowhere if absent.
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// Reads `node.toml` in `home`.
    ///
    /// # Errors
    /// If it is missing, or all its problems with lines.
    pub fn load(home: &Path) -> Result<Self, Error> {
        let path = home.join(FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| Error::Read { path: path.clone(), source })?;
        Self::parse(home, &text).map_err(|problems| Error::Problems { path, problems })
    }

    /// Resolves the text of a configuration.
    ///
    /// # Errors
    /// All its problems.
    pub fn parse(home: &Path, text: &str) -> Result<Self, Problems> {
        settings::parse("node configuration", text, |t| {
            let socket = |t: &mut Table<'_>| Some(t.text("socket"));
            let listen = t.table("peer", |t| Some(t.parsed::<SocketAddr>("listen")));
            let control = t.table("control", socket).flatten();
            let keep_days =
                t.table("store", |t| Some(t.integer32("keep_days", 0, KEEP_DAYS_MAX))).flatten();
            let (trainer, command) = t
                .table("trainer", |t| Some((t.text("socket"), t.parsed_list::<String>("command"))))
                .unwrap_or_default();
            if command.as_ref().is_some_and(Vec::is_empty) {
                t.problem(
                    "`trainer.command` is empty; remove it if the trainer is its own service",
                );
            }
            let peers = peers(t);
            let metrics = t.table("metrics", |t| Some(t.parsed::<SocketAddr>("listen"))).flatten();
            if metrics.is_some_and(|address| !address.ip().is_loopback()) {
                t.problem("`metrics.listen` is not on loopback; figures do not leave this machine");
            }
            let at =
                |path: Option<String>, default: &str| home.join(path.as_deref().unwrap_or(default));
            let default = SocketAddr::from(([0, 0, 0, 0], 7443));
            Some(Self {
                home: home.to_owned(),
                listen: listen.flatten().unwrap_or(default),
                control_socket: at(control, "run/control.sock"),
                trainer_socket: at(trainer, "run/trainer.sock"),
                trainer_command: command.unwrap_or_default(),
                keep_days,
                peers,
                metrics,
            })
        })
    }
}

fn peers(t: &mut Table<'_>) -> BTreeMap<SiteId, PeerRule> {
    let mut rules = BTreeMap::new();
    t.tables("peers", |t| {
        let site = t.parsed::<SiteId>("site");
        if !t.was_given("site") {
            t.missing("site");
        }
        let rule = PeerRule {
            direction: t.parsed::<Direction>("direction").unwrap_or_default(),
            limit_mbit_s: t.integer32("limit_mbit_s", LIMIT_MIN_MBIT_S, LIMIT_MAX_MBIT_S),
            hours: t.parsed::<Hours>("hours").unwrap_or_default(),
        };
        let site = site?;
        if rules.insert(site.clone(), rule).is_some() {
            t.problem(format!("there are two `[[peers]]` of {site}; keep one"));
        }
        Some(())
    });
    rules
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_together() {
        let text = "[peer]\nlisten = \"nowhere\"\nport = 3\n[trainer]\ncommand = []\n[metrics]\nlisten = \"0.0.0.0:9464\"\n[extra]\na = 1\n";
        let report = Config::parse(Path::new("/srv"), text).unwrap_err().to_string();
        for part in [
            "line 2: `listen`",
            "unknown key `port`",
            "`trainer.command` is empty",
            "unknown key `extra`",
            "`metrics.listen` is not on loopback",
        ] {
            assert!(report.contains(part), "{part} is not in:\n{report}");
        }
        let text = "[[peers]]\nsite = \"usz\"\ndirection = \"both\"\n\n[[peers]]\nlimit_mbit_s = 0\n\
                    hours = \"22:00-6\"\nspeed = 1\n\n[[peers]]\nsite = \"usz\"\n";
        let problems = Config::parse(Path::new("/srv"), text).unwrap_err();
        let lines: Vec<usize> = problems.list.iter().map(|p| p.line).collect();
        assert_eq!(lines, [3, 5, 6, 7, 8, 10], "{problems}");
        for part in ["`direction`: `both`", "`site` is missing", "`limit_mbit_s` is 0", "two `[["] {
            assert!(problems.to_string().contains(part), "{part} is not in:\n{problems}");
        }
        let config = Config::parse(Path::new("/srv"), "").unwrap();
        assert_eq!(config.control_socket, Path::new("/srv/run/control.sock"));
        assert_eq!(config.keep_days, None, "nothing is removed unless the site says so");
        let config = Config::parse(Path::new("/srv"), "[store]\nkeep_days = 30\n").unwrap();
        assert_eq!(config.keep_days, Some(30));
    }
    #[test]
    fn the_example_says_everything() {
        let text = include_str!("../../deploy/examples/node.toml");
        let config = Config::parse(Path::new("/srv"), text).unwrap();
        let rules: Vec<&PeerRule> = config.peers.values().collect();
        assert_eq!(rules[0].limit_mbit_s, Some(100));
        assert!(rules[0].hours.hold(23, 0) && !rules[0].hours.hold(7, 0));
        assert_eq!(
            (rules[0].direction, rules[1].direction),
            (Direction::Automatic, Direction::Pull)
        );
        for key in ["listen", "socket", "command", "direction", "limit_mbit_s", "hours"] {
            assert!(text.contains(key), "{key} is not in the example");
        }
    }
}
