//! A daemon that cannot be safe or useful does not run, and says why; a trainer that cannot is shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and writes bad input on purpose"
)]

use rondo_tests::federation::short_folder;
use rondo_tests::site::Site;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const IDENTITY: i32 = 10;
const CONFIG: i32 = 11;
const SOCKET: i32 = 13;

#[tokio::test]
async fn broken_keys_and_cards_never_listen() {
    let folder = short_folder();
    let site = Site::init(folder.path(), "uker", None);
    for name in ["keys/signing.pk8", "keys/tls.pk8", "keys/tls.pem", "card.json"] {
        let path = site.home.join(name);
        let good = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        site.start_refused().says(IDENTITY, &[name, "No such file", "Restore it from your backup"]);
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        if name.ends_with(".pk8") {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        let refused = site.start_refused();
        assert!(!refused.text.contains("ready"), "{}", refused.text);
        refused.says(IDENTITY, &[name]);
        fs::write(&path, &good).unwrap();
    }
    for name in ["keys/signing.pk8", "keys/tls.pk8"] {
        let path = site.home.join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        site.start_refused()
            .says(IDENTITY, &[name, "can be read by others (mode 644)", "chmod 600"]);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    let other = Site::init(folder.path(), "usz", None);
    fs::copy(other.home.join("card.json"), site.home.join("card.json")).unwrap();
    site.start_refused().says(IDENTITY, &["card.json", "does not belong to the keys beside it"]);
    assert!(!site.home.join("journal.sqlite").exists(), "nothing was begun");
}

#[tokio::test]
async fn a_wrong_configuration_is_reported_whole() {
    let folder = short_folder();
    let mut site = Site::init(folder.path(), "uker", None);
    let good = fs::read_to_string(site.home.join("node.toml")).unwrap();
    let line = good.lines().count() + 1;
    site.configure(|text| format!("{}speed = 3\n", text.replace("127.0.0.1", "nowhere")));
    let unknown = format!("line {line}: unknown key `speed`");
    site.start_refused().says(CONFIG, &["node.toml", "2 problems", "line 2: `listen`", &unknown]);
    site.configure(|_| "[peer\n".to_owned());
    site.start_refused().says(CONFIG, &["node.toml", "line 1"]);
    fs::remove_file(site.home.join("node.toml")).unwrap();
    site.start_refused().says(CONFIG, &["node.toml", "rondo site init"]);
    site.configure_new(&good);
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn sockets_ports_and_homes_that_are_taken_are_named() {
    let folder = short_folder();
    let mut site = Site::init(folder.path(), "uker", None);
    let taken = TcpListener::bind(site.listen).unwrap();
    let address = format!("listening on {}", site.listen);
    site.start_refused().says(SOCKET, &[&address, "Address already in use", "node.toml"]);
    drop(taken);

    let good = fs::read_to_string(site.home.join("node.toml")).unwrap();
    let run = site.socket.parent().unwrap().to_owned();
    let elsewhere = |site: &Site, folder: &Path| {
        site.configure(|_| good.replace(run.to_str().unwrap(), folder.to_str().unwrap()));
    };
    // Not even root can make a folder below a file.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    elsewhere(&site, &file.join("run"));
    site.start_refused().says(SOCKET, &["creating the socket folder", "make it writable"]);
    let deep = folder.path().join("d".repeat(100));
    elsewhere(&site, &deep);
    site.start_refused().says(SOCKET, &["longer than 107 bytes", "shorter one in node.toml"]);
    elsewhere(&site, &run);

    site.start();
    let records = site.ready().await.journal_records;
    site.start_refused().says(SOCKET, &["another daemon runs on", "stop it first"]);
    assert_eq!(site.ready().await.journal_records, records, "the first one is not disturbed");
    // A socket that a killed daemon left behind is no obstacle.
    site.kill();
    assert!(site.socket.exists());
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn a_trainer_without_a_cohort_is_a_problem_that_is_shown() {
    let folder = short_folder();
    let mut site = Site::init(folder.path(), "uker", Some(&folder.path().join("nowhere")));
    site.expect_error("nowhere");
    site.start();
    let problem = |text: &str| text.contains("the trainer ended") && text.contains("trainer.log");
    let shown = site.ready_when("its trainer's problem is shown", |site| {
        site.trainer.as_ref().is_some_and(|t| !t.connected && problem(&t.problem))
    });
    shown.await;
    let log = fs::read_to_string(site.trainer_log()).unwrap();
    assert!(log.contains("reading the cohort") && log.contains("nowhere"), "{log}");
    site.ready().await;
}
