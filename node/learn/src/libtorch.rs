//! Which version a libtorch on disk is. The build script asks the same of the one it links.

use std::path::Path;

/// Version of the libtorch in the folder `root`: from `build-version` of a kit, or `version.py` of a
/// Python package. None where neither says it.
pub(crate) fn version(root: &Path) -> Option<String> {
    let kit = std::fs::read_to_string(root.join("build-version"));
    let said = kit.ok().or_else(|| {
        let python = std::fs::read_to_string(root.join("version.py")).ok()?;
        let quoted = python.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(quoted.replace(['\'', '"'], ""))
    })?;
    // What follows `+` names the kind of build, for processor or GPU.
    let version = said.trim().split('+').next()?;
    (!version.is_empty()).then(|| version.to_owned())
}
