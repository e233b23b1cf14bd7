//! Lets the programs and tests of this package find libtorch without `LD_LIBRARY_PATH`: where it
//! stood at build time, or in `../lib/rondo` beside an installed program.
//! Says which version that was. rondo-trainer uses this file too.

#[path = "src/libtorch.rs"]
mod libtorch;

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let libtorch = env::var("LIBTORCH").unwrap_or_default();
    match Path::new(&libtorch).join("lib").canonicalize() {
        Ok(lib) if lib.join("libtorch_cpu.so").is_file() => {
            // The second for a program that itself lies in `lib/rondo`.
            println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/rondo:$ORIGIN");
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
            if let Some(version) = lib.parent().and_then(libtorch::version) {
                println!("cargo::rustc-env=RONDO_LIBTORCH_VERSION={version}");
            }
        }
        _ => println!(
            "cargo::error=LIBTORCH={libtorch} has no lib/libtorch_cpu.so: run `make libtorch` in \
             the checkout, or export LIBTORCH with the folder of a libtorch 2.9.0"
        ),
    }
}
