//! The harness itself: what fails leaves nothing running, and what goes wrong quietly fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_tests::federation::{Federation, short_folder};
use rondo_tests::{log, programs};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::mpsc;

/// Runs `scenario` with one running site on a thread of its own; its folder, and whether it failed.
fn run(scenario: impl FnOnce(&Federation) + Send + 'static) -> (PathBuf, bool) {
    let (tell, folder) = mpsc::channel();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let all = Federation::without_trainers(&["uker"]).await;
            assert_eq!(all.sites[0].processes().len(), 1);
            tell.send(all.folder().to_owned()).unwrap();
            scenario(&all);
        });
    };
    let failed = std::thread::spawn(body).join().is_err();
    (folder.recv().unwrap(), failed)
}

#[test]
fn a_scenario_that_panics_leaves_nothing_behind() {
    let (folder, failed) = run(|_| panic!("on purpose"));
    assert!(failed);
    assert!(programs::running_with(&folder).is_empty() && !folder.exists());
    let (folder, failed) = run(|_| ());
    assert!(!failed);
    assert!(programs::running_with(&folder).is_empty() && !folder.exists());
}

#[test]
fn an_error_in_a_log_fails_the_scenario() {
    for line in
        ["2026-01-01T00:00:00Z ERROR the disk is on fire", "thread 'x' panicked at a.rs:1:1:"]
    {
        let (folder, failed) = run(move |all| {
            let path = all.folder().join("uker-node.log");
            writeln!(std::fs::File::options().append(true).open(path).unwrap(), "{line}").unwrap();
        });
        assert!(failed, "{line}");
        assert!(programs::running_with(&folder).is_empty() && !folder.exists());
    }
}

#[test]
fn only_what_is_expected_is_let_through() {
    let folder = short_folder();
    let path = folder.path().join("node.log");
    let mut file = std::fs::File::create(&path).unwrap();
    writeln!(file, "1  INFO an ERROR in words\n2 ERROR one\n3 ERROR two\nerror: three").unwrap();
    assert_eq!(log::unexpected(&path, &["one".to_owned()]), ["3 ERROR two", "error: three"]);
    assert!(log::tail(&path).ends_with("error: three\n"));
}
