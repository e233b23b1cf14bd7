//! Dependencies point one way: the daemon sees no image and no tensor, the libraries no network.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo_tests::programs;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Whom each crate of the workspace may use among the others.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("rondo", &[]),
    ("rondo-imaging", &[]),
    ("rondo-proto", &["rondo"]),
    // For recipes and the layout of checkpoints, which are the core's.
    ("rondo-learn", &["rondo", "rondo-imaging"]),
    ("rondo-node", &["rondo", "rondo-proto"]),
    ("rondo-trainer", &["rondo", "rondo-imaging", "rondo-learn", "rondo-proto"]),
    ("rondo-ctl", &["rondo", "rondo-imaging", "rondo-proto"]),
];

/// Crates by name with the names of those they use when they run; not to build or to be tested.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn read() -> Self {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let done = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(["--filter-platform", &platform])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let metadata: Value = serde_json::from_slice(&done.stdout).unwrap();
        let list = |value: &Value| value.as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|p| (text(&p["id"]), text(&p["name"])))
            .collect();
        let mut graph = BTreeMap::<_, BTreeSet<_>>::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let normal = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|k| k["kind"].is_null());
            let deps = list(&node["deps"]);
            let used = deps.iter().filter(normal).map(|dep| names[&text(&dep["pkg"])].clone());
            // Several versions of a crate count as one.
            graph.entry(names[&text(&node["id"])].clone()).or_default().extend(used);
        }
        Self(graph)
    }

    /// Everything that `name` uses, however indirectly.
    fn tree(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![name];
        while let Some(next) = open.pop() {
            for used in &self.0[next] {
                if seen.insert(used.as_str()) {
                    open.push(used);
                }
            }
        }
        seen
    }

    fn refuse(&self, name: &str, whatever: &[&str]) {
        let tree = self.tree(name);
        assert!(tree.len() > 10, "the tree of {name} is not read: {tree:?}");
        let found: Vec<_> = whatever.iter().filter(|bad| tree.contains(**bad)).collect();
        assert!(found.is_empty(), "{name} links {found:?}");
    }
}

const TENSORS: [&str; 6] = ["burn", "burn-tch", "tch", "torch-sys", "rondo-learn", "safetensors"];
const IMAGES: [&str; 5] = ["rondo-imaging", "ndarray", "nifti", "dicom-object", "flate2"];
const TLS: [&str; 6] = ["rustls", "tokio-rustls", "openssl-sys", "native-tls", "reqwest", "ureq"];

#[test]
fn crates_use_only_those_below_them() {
    let graph = Graph::read();
    let own: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in ALLOWED {
        let used: BTreeSet<&str> = graph.0[name].iter().map(String::as_str).collect();
        let extra: Vec<_> = used.intersection(&own).filter(|u| !allowed.contains(u)).collect();
        assert!(extra.is_empty(), "{name} uses {extra:?}");
    }
    let others = graph.0.keys().filter(|name| name.starts_with("rondo"));
    let unknown: Vec<_> =
        others.filter(|n| !own.contains(n.as_str()) && *n != "rondo-tests").collect();
    assert!(unknown.is_empty(), "say in this test whom {unknown:?} may use");
}

#[test]
fn each_layer_lacks_what_it_must_not_have() {
    let graph = Graph::read();
    graph.refuse("rondo-node", &TENSORS);
    graph.refuse("rondo-node", &IMAGES);
    graph.refuse("rondo-ctl", &TENSORS);
    graph.refuse("rondo-ctl", &TLS);
    graph.refuse("rondo-trainer", &TLS);
    graph.refuse("rondo-learn", &TLS);
    for library in ["rondo-imaging", "rondo-learn"] {
        graph.refuse(library, &["tonic", "tokio", "hyper", "rusqlite"]);
    }
    graph.refuse("rondo", &["tokio", "tonic", "hyper", "rusqlite", "rand", "ndarray"]);
    graph.refuse("rondo", &TENSORS);
}

fn names_libtorch(program: &Path) -> bool {
    let bytes = std::fs::read(program).unwrap();
    // Names of needed libraries stand in the dynamic string table between zero bytes.
    let names: [&[u8]; 2] = [b"\0libtorch_cpu.so\0", b"\0libc10.so\0"];
    names.iter().any(|name| bytes.windows(name.len()).any(|w| w == *name))
}

#[test]
fn the_daemon_and_the_command_line_need_no_libtorch() {
    assert!(names_libtorch(&programs::trainer()), "the trainer is what this test can tell apart");
    let mut checked = 0;
    for program in
        [Some(programs::node()), programs::beside("rondo-node"), programs::beside("rondo")]
    {
        let Some(program) = program else { continue };
        assert!(!names_libtorch(&program), "{} needs libtorch", program.display());
        checked += 1;
    }
    assert!(checked > 0);
}
