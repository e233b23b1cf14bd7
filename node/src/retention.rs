//! The store's housekeeping: what lies in it, what is damaged, what is needed, and what may go.

use crate::daemon::{Daemon, unix_now};
use crate::durable;
use crate::store::{self, Store};
use crate::transfer::transfer_object;
use rondo::ids::Digest;
use rondo::round::{Effect, Round, SiteState};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where damaged and refused checkpoints are moved, in the store's folder; nothing is ever removed from there.
pub const QUARANTINE: &str = "quarantine";
/// How often the rules are applied.
const PACE: Duration = Duration::from_secs(6 * 3600);
const DAY_S: u64 = 86_400;
/// How long a part lies here that no round wants: an import may have been broken off by a crash.
const UNWANTED_DAYS: u64 = 7;

/// What a check of the store found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Intact checkpoints.
    pub checkpoints: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Parts of checkpoints on their way in.
    pub incoming: u32,
    /// Files that are not what their name says, or whose name is none.
    pub damaged: Vec<String>,
    /// Intact, but of no round and no import that this site knows.
    pub unreferenced: Vec<Digest>,
    /// Needed by an open round, and neither here nor on its way.
    pub missing: Vec<Digest>,
    /// Files that were set aside: damaged ones, and those that the gate refused.
    pub quarantined: Vec<String>,
}

/// Reads every checkpoint, and compares what is there with what `state` needs. With `repair`, what is
/// damaged is moved aside, so that it is fetched or trained again.
///
/// # Errors
/// What the disk said.
pub fn check(store: &Store, state: &SiteState, repair: bool) -> Result<Report, store::Error> {
    let mut report = Report::default();
    let referenced = referenced(state);
    for path in files(&store.folder().join("checkpoints"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest = name.parse::<Digest>().ok();
        let read = |digest| store.find(digest).and_then(|stored| stored.table());
        match digest.map(read) {
            Some(Ok(table)) => {
                report.checkpoints += 1;
                report.bytes += table.bytes;
                report.unreferenced.extend(digest.filter(|digest| !referenced.contains(digest)));
            }
            Some(Err(e @ store::Error::Io { .. })) => return Err(e),
            Some(Err(_)) | None => {
                if repair {
                    set_aside(store.folder(), &path, &name)?;
                }
                report.damaged.push(name);
            }
        }
    }
    let incoming: Vec<PathBuf> = files(&store.folder().join("incoming"))?
        .into_iter()
        .filter(|path| path.extension().is_none())
        .collect();
    report.incoming = u32::try_from(incoming.len()).unwrap_or(u32::MAX);
    let incoming: BTreeSet<Digest> =
        incoming.iter().filter_map(|path| transfer_object(path)).collect();
    let lacks = |digest: &Digest| {
        let damaged = || report.damaged.contains(&digest.to_string());
        !incoming.contains(digest) && (!store.has(*digest) || damaged())
    };
    let quarantine = store.folder().join(QUARANTINE);
    if quarantine.is_dir() {
        let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
        report.quarantined = files(&quarantine)?.into_iter().filter_map(name).collect();
    }
    report.missing = needed(state).into_iter().filter(lacks).collect();
    Ok(report)
}

/// Applies the rules from time to time, until dropped.
pub async fn run(store: Store, daemon: Daemon, keep_days: Option<u32>) {
    loop {
        let (store, state) = (store.clone(), daemon.state());
        let done = tokio::task::spawn_blocking(move || tidy(&store, &state, keep_days, unix_now()));
        match done.await {
            Ok(Ok(removed)) if !removed.is_empty() => {
                let names: Vec<String> = removed.iter().map(Digest::short).collect();
                tracing::info!(removed = names.join(" "), "checkpoints past their time removed");
            }
            Ok(Err(e)) => tracing::warn!("tidying the store: {e}"),
            Ok(Ok(_)) | Err(_) => {}
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Removes parts of rounds that are over, parts that no round wants and nothing came to for
/// [`UNWANTED_DAYS`], and, after `keep_days`, the checkpoints of rounds that are over but
/// for the last of each. What was removed of the latter.
fn tidy(
    store: &Store,
    state: &SiteState,
    keep_days: Option<u32>,
    now: u64,
) -> Result<Vec<Digest>, store::Error> {
    let kept = state.kept();
    let over: BTreeSet<Digest> = state
        .rounds()
        .values()
        .flat_map(Round::weights)
        .filter(|digest| !kept.contains(digest))
        .collect();
    let referenced = referenced(state);
    for path in files(&store.folder().join("incoming"))? {
        // Beside a part may lie the record of what of it is safe on disk.
        let Some(digest) = transfer_object(&path) else { continue };
        let unwanted = !referenced.contains(&digest) && age(&path, now)? > UNWANTED_DAYS * DAY_S;
        if over.contains(&digest) || unwanted {
            fs::remove_file(&path).map_err(|e| failed("removing", &path, e))?;
        }
    }
    let Some(days) = keep_days else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for path in files(&store.folder().join("checkpoints"))? {
        let Some(digest) = named(&path).filter(|digest| over.contains(digest)) else { continue };
        if age(&path, now)? > u64::from(days) * DAY_S {
            fs::remove_file(&path).map_err(|e| failed("removing", &path, e))?;
            removed.push(digest);
        }
    }
    Ok(removed)
}

/// Seconds since a file was written last.
fn age(path: &Path, now: u64) -> Result<u64, store::Error> {
    let metadata = fs::metadata(path).map_err(|e| failed("reading", path, e))?;
    Ok(now.saturating_sub(u64::try_from(metadata.mtime()).unwrap_or(now)))
}

/// Checkpoints that some round or import names.
pub(crate) fn referenced(state: &SiteState) -> BTreeSet<Digest> {
    let rounds = state.rounds().values();
    let named = rounds.flat_map(|round| round.weights().chain(round.start_weights()));
    named.chain(state.imported().keys().copied()).collect()
}

/// Checkpoints without which an open round cannot go on from here.
fn needed(state: &SiteState) -> BTreeSet<Digest> {
    let of_effect = |effect| match effect {
        Effect::HandOver { weights, .. } => Some(weights),
        Effect::Train { received, .. } => received,
        Effect::DeliverReceipts { .. } | Effect::Expire { .. } => None,
    };
    state.effects().into_iter().filter_map(of_effect).collect()
}

fn named(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.parse().ok()
}

fn failed(what: &'static str, path: &Path, source: std::io::Error) -> store::Error {
    store::Error::Io { what, path: path.to_owned(), source }
}

/// Files of a folder in order, temporary ones aside.
fn files(folder: &Path) -> Result<Vec<PathBuf>, store::Error> {
    let fail = |e| failed("listing", folder, e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.file_type().map_err(fail)?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Moves a file of the store in `folder` to where nothing serves it or trains on it.
pub(crate) fn set_aside(folder: &Path, path: &Path, name: &str) -> Result<(), store::Error> {
    let quarantine = folder.join(QUARANTINE);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&quarantine)
        .map_err(|e| failed("creating", &quarantine, e))?;
    // The same checkpoint may be damaged again.
    let free = (0_u32..).map(|n| quarantine.join(format!("{name}.{n}"))).find(|p| !p.exists());
    let place = free.unwrap_or_else(|| quarantine.join(name));
    durable::rename(path, &place).map_err(|e| failed("moving aside", path, e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::durable::Mode;
    use std::time::SystemTime;

    #[test]
    fn parts_that_nobody_wants_go_after_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (now, days) = (unix_now(), |n: u64| Duration::from_secs(n * DAY_S));
        let part = |name: &str, old: u64| {
            let digest = Digest::of(name.as_bytes());
            let path = folder.path().join(format!("incoming/{digest}-{digest}{name}"));
            durable::write(&path, b"a part", Mode::Private).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - days(old)).unwrap();
            path
        };
        let fresh = [part("", UNWANTED_DAYS - 1), part(".received", 0)];
        let stale = [part("a", UNWANTED_DAYS + 1), part("b.received", UNWANTED_DAYS + 1)];
        assert!(tidy(&store, &SiteState::default(), None, now).unwrap().is_empty());
        assert!(fresh.iter().all(|path| path.exists()));
        assert!(stale.iter().all(|path| !path.exists()));
    }
}
