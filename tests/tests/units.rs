//! The units of the package: two users, and between them what federation is built on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that `systemd-analyze security` may find open.
const EXPOSURE_MAX: f64 = 1.5;

const BOTH: [&str; 12] = [
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "DevicePolicy=closed",
    "LimitCORE=0",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=~@privileged @resources",
    "ProtectProc=invisible",
];
const NODE: [&str; 6] = [
    "User=rondo-node",
    "PrivateDevices=yes",
    "MemoryDenyWriteExecute=yes",
    "InaccessiblePaths=-/data -/srv -/mnt -/media -/var/lib/rondo-trainer -/etc/rondo/trainer",
    "NoExecPaths=/",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
];
const TRAINER: [&str; 6] = [
    "User=rondo-trainer",
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "RestrictAddressFamilies=AF_UNIX",
    "InaccessiblePaths=-/var/lib/rondo-node -/run/rondo/control",
    "DeviceAllow=char-nvidia rw",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn analyze(arguments: &[&str]) -> Option<String> {
    let done =
        Command::new("systemd-analyze").args(arguments).current_dir(folder()).output().ok()?;
    Some(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

#[test]
fn what_must_be_shut_is_shut() {
    for (unit, own) in [("rondo-node.service", NODE), ("rondo-trainer.service", TRAINER)] {
        let text = read(unit);
        for line in BOTH.iter().chain(&own) {
            assert!(text.lines().any(|l| l == *line), "{unit} lacks `{line}`");
        }
        assert!(!text.contains("User=root"), "{unit}");
    }
    // A line that says it again would undo it.
    for (unit, key, times) in [
        ("rondo-trainer.service", "PrivateNetwork=", 1),
        ("rondo-trainer.service", "RestrictAddressFamilies=", 1),
        ("rondo-node.service", "ReadWritePaths=", 1),
        ("rondo-node.service", "BindPaths=", 0),
        ("rondo-node.service", "DeviceAllow=", 0),
    ] {
        let found = read(unit).lines().filter(|l| l.starts_with(key)).count();
        assert_eq!(found, times, "`{key}` in {unit}");
    }
}

#[test]
fn users_and_socket_folders_are_those_of_the_units() {
    let users = read("rondo.sysusers");
    for user in ["u rondo-node ", "u rondo-trainer ", "g rondo-operator "] {
        assert!(users.lines().any(|l| l.starts_with(user)), "{user}");
    }
    let folders = read("rondo.tmpfiles");
    for line in [
        "d /run/rondo/control 2750 rondo-node rondo-operator -",
        "d /run/rondo/trainer 2750 rondo-node rondo-trainer  -",
    ] {
        assert!(folders.lines().any(|l| l == line), "{line}");
    }
    assert!(read("rondo-trainer.service").contains("--socket /run/rondo/trainer/trainer.sock"));
}

#[test]
fn systemd_finds_the_units_sound_and_little_exposed() {
    for unit in ["rondo-node.service", "rondo-trainer.service"] {
        let Some(found) = analyze(&["security", "--offline=true", &format!("./{unit}")]) else {
            eprintln!("SKIPPED units: systemd-analyze is not here");
            return;
        };
        let overall = found.lines().find(|l| l.contains("Overall exposure level"));
        let level = overall.and_then(|l| l.split_once(".service: ")?.1.split(' ').next());
        let level: f64 = level.and_then(|l| l.parse().ok()).unwrap_or_else(|| panic!("{found}"));
        println!("{unit}: exposure {level}");
        assert!(level <= EXPOSURE_MAX, "{unit} is exposed: {found}");
        let said = analyze(&["verify", "--man=no", &format!("./{unit}")]).unwrap();
        // The package is not installed where this runs.
        let missing = |l: &&str| l.contains("is not executable: No such file or directory");
        let bad: Vec<&str> = said.lines().filter(|l| !missing(l)).collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }
}
