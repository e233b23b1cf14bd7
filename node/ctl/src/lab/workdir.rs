//! The folder a lab works in: known by its marker, locked while a lab runs, cleared of what an
//! earlier run of ours left and of nothing else.

use crate::exit::{Exit, Failure};
use rondo::ids::SiteId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

const MARKER: &str = "rondo-lab.json";
const LOCK: &str = "rondo-lab.lock";
const SCHEMA: &str = "rondo.lab-workdir/1";
/// Folders of the lab itself; no site may be called so.
const MODELS: &str = "models";
const PREDICTIONS: &str = "predictions";
const COHORTS: &str = "cohorts";

/// Says that a folder is ours, and which sites it holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    schema: String,
    sites: Vec<SiteId>,
}

/// A locked folder; the lock goes with it.
#[derive(Debug)]
pub(crate) struct Workdir {
    root: PathBuf,
    _lock: File,
}

impl Workdir {
    /// Takes a folder: a new or empty one, or one that an earlier lab made.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let shown = root.display();
        let fail = |e| Failure::storage(format!("using {shown} as the lab's folder"), &e);
        fs::create_dir_all(root).map_err(fail)?;
        // Programs that the lab starts get paths that hold wherever they run.
        let root = fs::canonicalize(root).map_err(fail)?;
        if !root.join(MARKER).exists() {
            let foreign =
                fs::read_dir(&root).map_err(fail)?.flatten().find(|e| e.file_name() != LOCK);
            if let Some(found) = foreign {
                let text = format!(
                    "using {shown} as the lab's folder: it holds {} and was not made by a lab. Choose a new or empty folder with --workdir",
                    found.file_name().to_string_lossy()
                );
                return Err(Failure::new(Exit::Refused, text));
            }
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join(LOCK))
            .map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "using {shown} as the lab's folder: another lab is running in it. Wait for it, or choose another with --workdir"
                );
                return Err(Failure::new(Exit::Refused, text));
            }
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        let workdir = Self { root, _lock: lock };
        if !workdir.root.join(MARKER).exists() {
            workdir.mark(&[])?;
        }
        Ok(workdir)
    }

    /// Removes what an earlier run left and makes room for `sites`.
    pub(crate) fn start_over(&self, sites: &[SiteId]) -> Result<(), Failure> {
        if let Some(site) =
            sites.iter().find(|s| [MODELS, PREDICTIONS, COHORTS].contains(&s.as_str()))
        {
            let text =
                format!("the lab uses a folder `{site}` itself; give that site another name");
            return Err(Failure::new(Exit::BadInput, text));
        }
        let path = self.root.join(MARKER);
        let bytes = crate::daemon::read_file("the lab's marker", &path, 1 << 20)?;
        let marker: Marker = serde_json::from_slice(&bytes)
            .ok()
            .filter(|m: &Marker| m.schema == SCHEMA)
            .ok_or_else(|| {
                let text = format!(
                    "reading {}: it is not the marker of a lab's folder. Choose another folder with --workdir",
                    path.display()
                );
                Failure::new(Exit::BadInput, text)
            })?;
        let names = marker.sites.iter().map(SiteId::as_str).chain([MODELS, PREDICTIONS]);
        for folder in names.map(|name| self.root.join(name)) {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(|e| {
                    Failure::storage(format!("removing {} of an earlier run", folder.display()), &e)
                })?;
            }
        }
        self.mark(sites)?;
        for site in sites {
            self.made(self.site(site.as_str()))?;
        }
        self.made(self.models())?;
        self.made(self.predictions())?;
        Ok(())
    }

    /// Everything of one site.
    pub(crate) fn site(&self, site: &str) -> PathBuf {
        self.root.join(site)
    }

    /// Exported checkpoints with their passports.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join(MODELS)
    }

    /// Predicted masks.
    pub(crate) fn predictions(&self) -> PathBuf {
        self.root.join(PREDICTIONS)
    }

    /// Cohorts that the lab made itself.
    pub(crate) fn cohorts(&self) -> PathBuf {
        self.root.join(COHORTS)
    }

    /// A file directly in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file durably.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        rondo_imaging::durable::write(path, bytes)
            .map_err(|e| Failure::storage(format!("writing {}", path.display()), &e))
    }

    fn made(&self, folder: PathBuf) -> Result<PathBuf, Failure> {
        fs::create_dir_all(&folder)
            .map_err(|e| Failure::storage(format!("making the folder {}", folder.display()), &e))?;
        Ok(folder)
    }

    fn mark(&self, sites: &[SiteId]) -> Result<(), Failure> {
        let marker = Marker { schema: SCHEMA.to_owned(), sites: sites.to_vec() };
        let bytes = serde_json::to_vec(&marker).unwrap_or_default();
        self.write(&self.root.join(MARKER), &bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn foreign_and_busy_folders_are_refused_and_ours_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("thesis");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("chapter-1"), "x").unwrap();
        let refused = Workdir::open(&foreign).unwrap_err();
        assert_eq!(refused.exit, Exit::Refused);
        assert!(foreign.join("chapter-1").exists());

        let path = folder.path().join("lab");
        let workdir = Workdir::open(&path).unwrap();
        assert!(Workdir::open(&path).unwrap_err().text.contains("another lab is running"));
        let sites = ["uker".parse().unwrap()];
        workdir.start_over(&sites).unwrap();
        fs::write(workdir.site("uker").join("journal"), "old").unwrap();
        fs::write(path.join("notes"), "mine").unwrap();
        drop(workdir);

        let workdir = Workdir::open(&path).unwrap();
        workdir.start_over(&sites).unwrap();
        assert!(!workdir.site("uker").join("journal").exists());
        assert!(path.join("notes").exists());
        let clash = workdir.start_over(&["models".parse().unwrap()]).unwrap_err();
        assert_eq!(clash.exit, Exit::BadInput);
    }
}
