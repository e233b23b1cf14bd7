//! The reference tool of OpenSSF Model Signing on an exported model, where Python has it.

use crate::site::Site;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Says that something stays unchecked; `make test` counts these lines. The harness swallows what
/// passing tests print, but not what goes to the error stream itself.
fn skipped(why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED model-signing: {why}\n").as_bytes());
}

/// Unpacks `model` with `tar`: the tool accepts it with the site's key, and refuses it after a flipped
/// byte, with a file more, and with another site's key.
pub(crate) fn accepts_and_refuses(site: &Site, model: &Path, folder: &Path) {
    let python = std::env::var_os("RONDO_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let has = Command::new(&python)
        .args(["-c", "import model_signing"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !has {
        let python = python.display();
        return skipped(&format!(
            "{python} has no model_signing; RONDO_TEST_PYTHON names one that has"
        ));
    }
    let unpacked = folder.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let tar = Command::new("tar").arg("xf").arg(model).arg("-C").arg(&unpacked).status();
    assert!(tar.unwrap().success());
    let key = folder.join("site.pub");
    site.ok(&["site", "key", "--out", key.to_str().unwrap()]);
    let verify = || {
        let done = Command::new(&python)
            .args(["-m", "model_signing", "verify", "key"])
            .arg(&unpacked)
            .arg("--signature")
            .arg(unpacked.join("model.sig"))
            .arg("--public_key")
            .arg(&key)
            .output()
            .unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    for name in ["checkpoint.safetensors", "passport.json", "receipts.json", "cards/usz.json"] {
        let path = unpacked.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (accepted, said) = verify();
        assert!(!accepted && said.contains(name), "{name}: {said}");
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
    }
    let more = unpacked.join("more.txt");
    fs::write(&more, "").unwrap();
    assert!(!verify().0, "a file more");
    fs::remove_file(more).unwrap();
    let (accepted, said) = verify();
    assert!(accepted && said.contains("Verification succeeded"), "{said}");
}
