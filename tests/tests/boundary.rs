//! One boundary at a site: the daemon speaks to the world and opens no image, the trainer opens images
//! and speaks to nobody.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and lays files out on purpose"
)]

use rondo::plan::Plan;
use rondo::round::ReceiptBody;
use rondo_tests::federation::{Federation, propose, short_folder};
use rondo_tests::hand::{Hand, digest};
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::programs;
use rondo_tests::site::Site;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use tonic::Code;

/// What a kernel without Landlock is reported as.
const WITHOUT: &str = "not-restricted";

/// Says that a part was left out for want of Landlock, and why.
fn skipped(file_access: &str) -> bool {
    if file_access == WITHOUT {
        eprintln!("SKIPPED boundary: this kernel has no Landlock");
    }
    file_access == WITHOUT
}

fn check_boundary(home: &Path, file: &Path) -> Output {
    Command::new(programs::node())
        .args(["check-boundary", "--home"])
        .arg(home)
        .arg(file)
        .output()
        .unwrap()
}

fn status_of(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[tokio::test]
async fn an_image_outside_the_home_cannot_be_opened_by_the_daemon() {
    let mut all = Federation::without_trainers(&["usz"]).await;
    let hand = Hand::init(all.folder(), "uker");
    hand.trusted_by(&all.sites[0]).await;
    let file_access = all.sites[0].ready().await.file_access;
    if skipped(&file_access) {
        return;
    }
    assert!(file_access.starts_with("landlock-abi-"), "{file_access}");
    let data = all.folder().join("data");
    fs::create_dir(&data).unwrap();
    let image = data.join("patient.nii.gz");
    fs::write(&image, "an image").unwrap();

    // The daemon that runs is led to the image by a link in its own store.
    let usz = &all.sites[0];
    let pid = usz.processes().iter().find(|p| p.command.contains(" run ")).unwrap().pid;
    assert_eq!(status_of(pid, "NoNewPrivs"), "1");
    let view = propose(usz, &PlanText::swt(&["uker", "usz"]).toml()).await.unwrap();
    let round = digest(&view.round);
    let approval = hand.receipt(round, 1, ReceiptBody::Approved);
    assert_eq!(hand.deliver(usz, round, &[approval]).await.unwrap(), 1);
    usz.approve(&view.round).await.unwrap();
    usz.begin(&view.round).await.unwrap();
    let plan = Plan::from_canonical(view.plan_json.as_bytes()).unwrap();
    let manifest = hand.manifest(&plan, &checkpoint(&plan, 0.25));
    let weights = manifest.weights.object.to_string();
    let passport = hand.passport(usz, &manifest).to_json();
    hand.offer(usz, round, 1, passport.clone()).await.unwrap();
    let incoming = usz.incoming(&weights).unwrap();
    fs::remove_file(&incoming).unwrap();
    symlink(&image, &incoming).unwrap();
    let led = hand.offer(usz, round, 1, passport.clone()).await.expect_err("it opened an image");
    assert!(led.message().contains("[storage]") && !led.message().contains('/'), "{led}");
    assert!(usz.log_text().contains("Permission denied"));
    assert_ne!(led.code(), Code::Internal);
    assert_eq!(fs::read(&image).unwrap(), b"an image");
    // A file of its own in the same place serves.
    fs::remove_file(&incoming).unwrap();
    hand.offer(usz, round, 1, passport).await.unwrap();

    // The same for hospital IT, without any round.
    for file in [&image, &data] {
        let tried = check_boundary(&usz.home, file);
        let said = String::from_utf8_lossy(&tried.stdout);
        assert!(tried.status.success() && said.contains("restrictions refuse it"), "{tried:?}");
    }
    let tried = check_boundary(&usz.home, &usz.home.join("card.json"));
    let said = String::from_utf8_lossy(&tried.stderr);
    assert!(!tried.status.success() && said.contains("could be opened"), "{tried:?}");
    let tried = check_boundary(&usz.home, &data.join("nothing"));
    assert!(String::from_utf8_lossy(&tried.stderr).contains("No such file"), "{tried:?}");
}

#[tokio::test]
async fn a_store_that_leads_out_of_the_home_is_refused() {
    const FAILED: i32 = 1;
    let folder = short_folder();
    let mut site = Site::init(folder.path(), "uker", None);
    site.start();
    if skipped(&site.ready().await.file_access) {
        return;
    }
    site.stop();
    let (store, outside) = (site.home.join("store"), folder.path().join("outside"));
    fs::rename(&store, &outside).unwrap();
    symlink(&outside, &store).unwrap();
    let parts = ["store cannot be opened", "Permission denied", "mount another disk there"];
    site.start_refused().says(FAILED, &parts);
    fs::remove_file(&store).unwrap();
    fs::rename(&outside, &store).unwrap();
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn the_trainer_that_a_restricted_daemon_started_reads_images_and_no_network() {
    let mut all = Federation::with_trainers(&["uker"]).await;
    let uker = &mut all.sites[0];
    let view = uker.ready_to_train().await;
    assert!(view.trainer.unwrap().training_cases > 0, "it has read the cohort's images");
    let trainers = uker.trainers();
    assert_eq!(trainers.len(), 1, "{trainers:?}");
    // A seccomp filter is in force; what it refuses is tested with the filter itself.
    assert_eq!(status_of(trainers[0].pid, "Seccomp"), "2");
    let daemon = uker.processes().into_iter().find(|p| p.command.contains(" run ")).unwrap();
    if !skipped(&view.file_access) {
        assert_eq!(status_of(daemon.pid, "NoNewPrivs"), "1");
    }
    let internet = internet_sockets(daemon.pid);
    assert!(!sockets(daemon.pid).is_disjoint(&internet), "the daemon listens");
    assert!(sockets(trainers[0].pid).is_disjoint(&internet), "the trainer has an internet socket");
    // The same program where everybody else gets through.
    let listen = uker.listen.to_string();
    TcpStream::connect(uker.listen).unwrap();
    let tried = Command::new(programs::trainer())
        .args(["self-test", "network", "--connect", &listen])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tried.stdout);
    assert!(tried.status.success() && said.contains("Permission denied"), "{tried:?}");
}

/// Numbers of the sockets that a process holds.
fn sockets(pid: u32) -> BTreeSet<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let number = |link: std::path::PathBuf| {
        Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    links.filter_map(number).collect()
}

/// Numbers of the internet sockets in the network that a process sees.
fn internet_sockets(pid: u32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        found.extend(text.lines().filter_map(|l| l.split_whitespace().nth(9).map(str::to_owned)));
    }
    found
}
