//! `rondo lab run` as an operator types it: the real programs from cohorts to a verified passport.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and writes its own input"
)]

use rondo_imaging::phantom::Centre;
use rondo_tests::federation::short_folder;
use rondo_tests::material::{PlanText, cohort};
use rondo_tests::{eventually, log, programs};
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SITES: [(&str, Centre); 3] =
    [("uker", Centre::Uker), ("stanford", Centre::Stanford), ("usz", Centre::Usz)];
const BAD_INPUT: i32 = 6;
const PATIENCE: Duration = Duration::from_secs(240);

/// A lab process with its folder. Dropping it ends both.
struct Lab {
    folder: TempDir,
    child: Option<Child>,
}

impl Lab {
    /// Three tiny cohorts and a plan.
    fn prepare(plan: &PlanText) -> Self {
        for name in ["rondo-node", "rondo-trainer"] {
            let _ = programs::packaged(name);
        }
        let folder = short_folder();
        for (name, centre) in SITES {
            let _ = cohort(&folder.path().join("cohorts").join(name), centre, rondo_tests::seed());
        }
        fs::write(folder.path().join("plan.toml"), plan.toml()).unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        Self { folder, child: None }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// `rondo lab run` with cohorts from the folder `cohorts`.
    fn start(&mut self, cohorts: &str) {
        let out = |name| File::create(self.path(name)).unwrap();
        let mut command = Command::new(programs::packaged("rondo"));
        command.args(["lab", "run", "--json", "--device", "cpu"]);
        command.arg("--cohorts").arg(self.path(cohorts));
        command.arg("--plan").arg(self.path("plan.toml"));
        command.arg("--workdir").arg(self.path("work"));
        command.env("XDG_RUNTIME_DIR", self.path("run")).env("OMP_NUM_THREADS", "1");
        command.env_remove("RONDO_LOG").env_remove("RONDO_HOME").stdin(Stdio::null());
        self.child = Some(command.stdout(out("out")).stderr(out("err")).spawn().unwrap());
    }

    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        let child = self.child.as_mut().unwrap();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the lab does not end within {} s", PATIENCE.as_secs());
    }

    fn text(&self, name: &str) -> String {
        log::text(&self.path(name))
    }

    fn site_logs(&self) -> impl Iterator<Item = std::path::PathBuf> {
        let work = self.path("work");
        let logs = move |(name, _): (&str, Centre)| {
            let site = work.join(name);
            [site.join("node.log"), site.join("home/trainer.log")]
        };
        SITES.into_iter().flat_map(logs)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        programs::kill_all_with(self.folder.path());
        if std::thread::panicking() {
            eprintln!("=== lab (seed {})\n{}", rondo_tests::seed(), log::tail(&self.path("err")));
            self.site_logs().for_each(|path| eprint!("{}", log::tail(&path)));
        }
    }
}

fn nothing_runs(folder: &Path) {
    let left = programs::running_with(folder);
    assert!(left.is_empty(), "left behind: {left:#?}");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

#[test]
fn a_lab_runs_a_round_and_tells_all_of_it() {
    let plan = PlanText::swt(&["uker", "stanford", "usz"]);
    let mut lab = Lab::prepare(&PlanText { topology: "cwt", cycles: 2, epochs: 2, ..plan });
    lab.start("cohorts");
    let status = lab.ended();
    assert!(status.success(), "{status}\n{}", lab.text("err"));
    nothing_runs(lab.folder.path());
    assert_eq!(fs::read_dir(lab.path("run")).unwrap().count(), 0, "sockets are cleared away");
    for path in lab.site_logs() {
        let bad = log::unexpected(&path, &[]);
        assert!(bad.is_empty() && path.exists(), "{}: {bad:#?}", path.display());
    }

    let text = lab.text("out");
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}:\n{text}"));
    assert_eq!(report["schema"], "rondo.lab/1");
    let visits = list(&report["visits"]);
    let order: Vec<_> = visits.iter().map(|v| (v["cycle"].as_u64(), v["site"].as_str())).collect();
    let expected = [1, 2].map(|cycle| SITES.map(|(site, _)| (Some(cycle), Some(site))));
    assert_eq!(order, expected.concat());
    for (visit, before) in visits.iter().skip(1).zip(visits) {
        assert_eq!(visit["parent"], before["weights"]);
    }
    assert!(visits.iter().all(|v| v["phase"] == "handed-over" && v["epochs"] == 2), "{visits:#?}");

    // Both models of each visit on each site's test set and on all of them; a fresh start received none.
    let evaluations = list(&report["evaluations"]);
    let models: Vec<_> = evaluations
        .iter()
        .map(|e| (e["visit"].as_u64().unwrap(), e["model"].as_str().unwrap()))
        .collect();
    let both = (2..=6).flat_map(|visit| [(visit, "received"), (visit, "trained")]);
    assert_eq!(models, [(1, "trained")].into_iter().chain(both).collect::<Vec<_>>());
    for evaluation in evaluations {
        let sets = list(&evaluation["sets"]);
        let names: Vec<_> = sets.iter().map(|s| s["site"].as_str().unwrap()).collect();
        assert_eq!(names, ["uker", "stanford", "usz", "all"]);
        let cases: Vec<_> = sets.iter().map(|s| s["pooled"]["cases"].as_u64().unwrap()).collect();
        assert_eq!(cases, [1, 1, 1, 3]);
        for figure in [
            "sensitivity",
            "precision",
            "fp_per_case",
            "f1",
            "f2",
            "dice",
            "surface_dice",
            "hd95_mm",
        ] {
            assert!(sets.iter().all(|s| s["pooled"].get(figure).is_some()), "{figure} is missing");
        }
    }
    let (received, trained) = (&evaluations[1], &evaluations[0]);
    assert_eq!(received["weights"], trained["weights"], "what one site trained the next receives");
    assert_eq!(received["sets"], trained["sets"]);

    let passport = &report["passport"];
    assert_eq!(passport["verified"], true);
    let hops: Vec<_> = list(&passport["hops"]).iter().map(|h| &h["weights"]).collect();
    assert_eq!(hops, visits.iter().map(|v| &v["weights"]).collect::<Vec<_>>());
    assert_eq!(report["final"]["weights"], *hops[5]);
    let file = fs::read_to_string(report["files"]["json"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&file).unwrap(), report, "the file says the same");
    for model in list(&report["models"]) {
        let bytes = fs::read(model["file"].as_str().unwrap()).unwrap();
        assert_eq!(rondo::ids::Digest::of(&bytes).to_string(), model["weights"].as_str().unwrap());
    }
}

#[test]
fn a_lab_with_bad_input_says_so_and_begins_nothing() {
    let mut lab = Lab::prepare(&PlanText::swt(&["uker", "mars"]));
    let mut refused = |cohorts: &str, parts: &[&str]| {
        lab.start(cohorts);
        let code = lab.ended().code();
        let text = lab.text("err");
        assert_eq!(code, Some(BAD_INPUT), "{text}");
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(!text.contains("panicked"), "{text}");
        nothing_runs(lab.folder.path());
        assert!(!lab.path("work").exists(), "nothing was begun");
        lab.path("plan.toml")
    };
    let plan = refused("cohorts", &["the plan names mars", "cohort.toml"]);
    fs::write(&plan, PlanText::swt(&["uker", "usz"]).toml()).unwrap();
    refused("nowhere", &["the plan names uker, usz", "nowhere"]);
    let zero = PlanText { topology: "cwt", cycles: 0, ..PlanText::swt(&["uker"]) };
    fs::write(&plan, zero.toml()).unwrap();
    refused("cohorts", &["plan.toml", "line 4", "`cycles` is 0"]);
    fs::remove_file(&plan).unwrap();
    refused("cohorts", &["plan.toml", "No such file"]);
}

#[tokio::test]
async fn a_killed_lab_leaves_nothing_running() {
    let plan = PlanText::swt(&["uker", "stanford", "usz"]);
    let mut lab = Lab::prepare(&PlanText { epochs: 10_000, ..plan });
    lab.start("cohorts");
    eventually("the first site trains", PATIENCE, async || {
        log::text(&lab.path("work/uker/home/trainer.log")).contains("training begins").then_some(())
    })
    .await;
    assert!(
        programs::running_with(&lab.path("work")).len() >= 7,
        "a lab, three daemons and trainers"
    );
    let mut child = lab.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let gone = async || programs::running_with(&lab.path("work")).is_empty().then_some(());
    eventually("every daemon and trainer ends", Duration::from_secs(20), gone).await;
    for path in lab.site_logs() {
        // Whether a trainer is killed before it sees its daemon go is chance.
        let bad = log::unexpected(&path, &["the daemon is gone".to_owned()]);
        assert!(bad.is_empty(), "{}: {bad:#?}", path.display());
    }
}
