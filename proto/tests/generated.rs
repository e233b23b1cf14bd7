//! The generated code that is checked in is the one that the `.proto` files give.
//!
//! After a change of a `.proto` file: `RONDO_GENERATE=1 cargo test -p rondo-proto --test generated`.

use std::path::Path;

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["peer", "control", "trainer"].map(|f| root.join(format!("rondo/v1/{f}.proto")));
    let descriptors = protox::compile(files, [root]).expect("the .proto files compile");
    let fresh = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .build_transport(false)
        // Chunks are passed on without a copy.
        .bytes(".rondo.peer.v1.Chunk.data")
        .out_dir(fresh.path())
        .compile_fds(descriptors)
        .expect("code is generated");
    let kept = root.join("src/generated");
    for name in ["rondo.peer.v1.rs", "rondo.control.v1.rs", "rondo.trainer.v1.rs"] {
        let new = std::fs::read_to_string(fresh.path().join(name)).expect("generated file");
        if std::env::var_os("RONDO_GENERATE").is_some() {
            std::fs::copy(fresh.path().join(name), kept.join(name)).expect("copied");
        }
        let old = std::fs::read_to_string(kept.join(name)).unwrap_or_default();
        assert!(old == new, "{name} is out of date; run again with RONDO_GENERATE=1");
    }
}
