//! Many sites on one machine: a real daemon and trainer for each, real mutual TLS and signatures on
//! loopback, driven only through the control sockets that operators use.
//!
//! [`workdir`] holds everything, [`node`] is one site, [`federation`] runs the round among them,
//! [`judge`] judges every checkpoint on every test split, [`report`] tells.

mod board;
mod demo;
mod federation;
mod judge;
mod node;
mod report;
mod workdir;

use crate::args::{Lab, LabPlace};
use crate::commands::cohort::load;
use crate::commands::round::plan_file;
use crate::exit::{Exit, Failure};
use crate::output::{Output, document, line};
use crate::programs;
use board::Board;
use federation::Federation;
use judge::Centre;
use node::{Node, Setup};
use report::{Files, Findings, Report, Seconds, SiteReport};
use rondo::plan::{Plan, Start};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use workdir::Workdir;

/// What is said every so many seconds while sites start.
const WAITING_EVERY_SECONDS: f64 = 10.0;

/// A lab that is about to run.
struct Run<'a> {
    workdir: &'a Workdir,
    place: &'a LabPlace,
    plan: Plan,
    plan_toml: String,
    centres: Vec<Centre>,
    board: &'a Board,
}

pub(crate) async fn run(command: Lab, output: Output) -> Result<(), Failure> {
    for program in [programs::NODE, programs::TRAINER] {
        programs::find(program)?;
    }
    let board = Board::new();
    let (place, workdir, cohorts, plan) = match command {
        Lab::Run(args) => {
            // Before the folder is touched, so that a wrong plan costs nothing.
            centres(&plan_file(&args.plan)?.1, &args.cohorts)?;
            let workdir = Workdir::open(&args.place.workdir)?;
            (args.place, workdir, args.cohorts, args.plan)
        }
        Lab::Demo(args) => {
            demo::is_sound(args.seed)?;
            let workdir = Workdir::open(&args.place.workdir)?;
            let made = tokio::task::block_in_place(|| demo::prepare(&workdir, args.seed, &board));
            let (cohorts, plan) = made?;
            (args.place, workdir, cohorts, plan)
        }
    };
    let (plan_toml, plan) = plan_file(&plan)?;
    let centres = centres(&plan, &cohorts)?;
    workdir.start_over(&plan.sites)?;
    let run = Run { workdir: &workdir, place: &place, plan, plan_toml, centres, board: &board };

    let mut nodes = Vec::new();
    let done = tokio::select! {
        done = run.all(&mut nodes) => done,
        name = interrupted() => Err(Failure::new(Exit::Interrupted, format!("the lab was stopped by {name}; every node was stopped too"))),
    };
    stop(&mut nodes, &board).await;
    let report = done?;
    drop(board);
    if output.json {
        line(&document(report::SCHEMA, &report)?);
    } else {
        line(&report.text());
    }
    if report.set_aside.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} test case(s) were set aside and not judged; the report names them",
        report.set_aside.len()
    );
    Err(Failure::after_result(Exit::SetAside, text))
}

/// The cohorts of the plan's sites, in the order of the plan.
fn centres(plan: &Plan, folder: &Path) -> Result<Vec<Centre>, Failure> {
    if plan.start != Start::Fresh {
        let text = "the lab's sites have empty stores, so the plan cannot start from a checkpoint; remove `start_checkpoint`";
        return Err(Failure::new(Exit::BadInput, text));
    }
    let missing: Vec<&str> = (plan.sites.iter().map(rondo::ids::SiteId::as_str))
        .filter(|site| !folder.join(site).join("cohort.toml").is_file())
        .collect();
    if !missing.is_empty() {
        let text = format!(
            "the plan names {}, but {} holds no cohort.toml in a folder of that name; add it or change the plan",
            missing.join(", "),
            folder.display()
        );
        return Err(Failure::new(Exit::BadInput, text));
    }
    let centre = |site: &rondo::ids::SiteId| {
        let path = folder.join(site.as_str()).join("cohort.toml");
        let file = std::fs::canonicalize(&path)
            .map_err(|e| Failure::storage(format!("finding {}", path.display()), &e))?;
        let cohort = load(&file)?;
        Ok(Centre { site: site.to_string(), file, cohort })
    };
    plan.sites.iter().map(centre).collect()
}

impl Run<'_> {
    /// From nothing to the report. What is started goes into `nodes`, for the caller to stop.
    async fn all(&self, nodes: &mut Vec<Node>) -> Result<Report, Failure> {
        let board = self.board;
        let runtime = tempfile::Builder::new()
            .prefix("rondo-")
            .tempdir_in(runtime_folder())
            .map_err(|e| Failure::storage("making a folder for sockets", &e))?;
        let ports = node::free_ports(self.plan.sites.len())?;
        for ((site, centre), port) in self.plan.sites.iter().zip(&self.centres).zip(ports) {
            let setup = Setup {
                site,
                folder: self.workdir.site(site.as_str()),
                runtime: runtime.path().join(site.as_str()),
                cohort: &centre.file,
                device: &self.place.device,
                port,
            };
            nodes.push(Node::start(&setup).await?);
        }
        let mut sites = Vec::new();
        for node in nodes.iter_mut() {
            let name = node.site.to_string();
            let mut said = board.seconds();
            let view = node
                .ready(|why| {
                    board.now(&format!("waiting for {name}: {why}"));
                    if board.seconds() - said > WAITING_EVERY_SECONDS {
                        said = board.seconds();
                        board.say(&format!("waiting for {name}: {why}"));
                    }
                })
                .await?;
            let trainer = view.trainer.clone().unwrap_or_default();
            board.say(&format!("{name} is ready: {}", crate::render::site::trainer_text(&trainer)));
            sites.push(view);
        }
        let mut federation = Federation { nodes: nodes.as_mut_slice(), board };
        let roster = federation.exchange_cards(&sites).await?;
        let setup = board.seconds();

        let round = federation.begin(self.plan_toml.clone()).await?;
        let finished = federation.follow(&round).await?;
        let made = federation.export(&finished, &roster, &self.workdir.models()).await?;
        let last = made
            .last()
            .ok_or_else(|| Failure::new(Exit::RoundUnfinished, "the round made no model"))?;
        federation.held_everywhere(&last.weights).await?;
        let reports = sites
            .iter()
            .zip(nodes.iter())
            .map(|(site, node)| SiteReport::new(site, node.log.clone(), node.memory()));
        let reports = reports.collect();
        // Judging needs neither daemons nor their memory.
        stop(nodes, board).await;
        nodes.clear();
        let round = board.seconds();

        let folder = self.workdir.predictions();
        let judgements =
            judge::judge(&made, &self.centres, &folder, &self.place.device, board).await?;
        if !self.place.keep {
            std::fs::remove_dir_all(&folder)
                .map_err(|e| Failure::storage(format!("removing {}", folder.display()), &e))?;
        }
        let total = board.seconds();
        let seconds = Seconds { setup, round: round - setup, evaluation: total - round, total };
        let files =
            Files { json: self.workdir.file("report.json"), text: self.workdir.file("report.txt") };
        let findings = Findings {
            round: &finished,
            sites: reports,
            made: &made,
            judgements: &judgements,
            seconds,
            files,
        };
        let report = Report::new(findings)
            .ok_or_else(|| Failure::new(Exit::RoundUnfinished, "the round made no model"))?;
        let json = document(report::SCHEMA, &report)?;
        self.workdir.write(&report.files.json, format!("{json}\n").as_bytes())?;
        self.workdir.write(&report.files.text, format!("{}\n", report.text()).as_bytes())?;
        Ok(report)
    }
}

/// Where sockets have short paths.
fn runtime_folder() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|folder| folder.is_dir())
        .unwrap_or_else(std::env::temp_dir)
}

/// Stops every node in order; at a second signal at once.
async fn stop(nodes: &mut [Node], board: &Board) {
    if nodes.is_empty() {
        return;
    }
    board.now("stopping every node");
    let orderly = async {
        for node in nodes.iter_mut() {
            if !node.stop().await {
                board.say(&format!("{} did not stop in time and was ended by force", node.site));
            }
        }
    };
    let forced = tokio::select! {
        () = orderly => false,
        _ = interrupted() => true,
    };
    if forced {
        nodes.iter_mut().for_each(Node::kill);
    }
    board.say("every node has stopped");
}

/// Waits for a signal that asks to stop; its name.
async fn interrupted() -> &'static str {
    let listen = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = listen(SignalKind::interrupt()) => "Ctrl-C",
        _ = listen(SignalKind::terminate()) => "SIGTERM",
        _ = listen(SignalKind::hangup()) => "SIGHUP",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_with_an_unknown_site_or_a_stored_start_does_not_begin() {
        let folder = tempfile::tempdir().unwrap();
        let toml = "name = \"x\"\ntopology = \"swt\"\nsites = [\"uker\"]\n[recipe]\n";
        let plan = Plan::from_toml(toml, 1).unwrap();
        let failure = centres(&plan, folder.path()).unwrap_err();
        assert_eq!(failure.exit, Exit::BadInput);
        assert!(failure.text.contains("the plan names uker"), "{failure}");
        let stored = format!("start_checkpoint = \"{}\"\n{toml}", "0".repeat(64));
        let plan = Plan::from_toml(&stored, 1).unwrap();
        assert!(centres(&plan, folder.path()).unwrap_err().text.contains("start_checkpoint"));
    }
}
