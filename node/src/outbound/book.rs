//! The file of results that are held, and of what noised releases have cost.

use crate::daemon::unix_now;
use crate::journal;
use crate::policy::{Filter, Noise, Policy};
use crate::trainer::Trained;
use rondo::ids::{Digest, RoundId, VisitNo};
use rondo::manifest::{Counts, Validation};
use rondo::privacy::Cost;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Name of the file in a site's home folder.
pub const FILE: &str = "outbound.sqlite";
/// `PRAGMA application_id` of the file ("rnob").
const APPLICATION_ID: i32 = 0x726e_6f62;

/// Why the file of what is held and paid for cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's own word.
    #[error("{what} {}: {source}. Free space on this disk, or restore the file from a backup", path.display())]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// Another file, or a row that makes no sense.
    #[error("{} does not hold results and their privacy; restore it from a backup", .0.display())]
    Foreign(PathBuf),
}

impl Error {
    /// Whether the file is damaged or another's; anything else, such as a full disk, may pass.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => journal::is_damage(source),
            Self::Foreign(_) => true,
        }
    }
}

/// A result that was made here, and whether its operator let it go.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The result, as the trainer made it.
    pub trained: Trained,
    /// Whether it may leave.
    pub released: bool,
}

/// The ledger and the results that wait, shared by all who ask.
#[derive(Clone)]
pub struct Outbound {
    policy: Arc<Policy>,
    path: Arc<PathBuf>,
    file: Arc<Mutex<Connection>>,
    released: Arc<watch::Sender<u64>>,
}

impl Outbound {
    /// Opens or creates the file in `home`.
    ///
    /// # Errors
    /// If it cannot be read or is another file.
    pub fn open(home: &Path, policy: Arc<Policy>) -> Result<Self, Error> {
        let path = home.join(FILE);
        let fail = |source| Error::Sqlite { what: "opening", path: path.clone(), source };
        let file = Connection::open(&path).map_err(fail)?;
        let open = || -> rusqlite::Result<i32> {
            file.pragma_update(None, "journal_mode", "WAL")?;
            file.pragma_update(None, "synchronous", "FULL")?;
            let tables: i64 =
                file.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
            if tables == 0 {
                file.execute_batch(&format!(
                    "BEGIN;
                     CREATE TABLE held (
                         round    TEXT    NOT NULL,
                         visit    INTEGER NOT NULL,
                         trained  TEXT    NOT NULL,
                         figures  TEXT    NOT NULL,
                         released INTEGER NOT NULL CHECK (released IN (0, 1)),
                         PRIMARY KEY (round, visit)
                     ) STRICT, WITHOUT ROWID;
                     CREATE TABLE privacy (
                         number     INTEGER PRIMARY KEY,
                         round      TEXT    NOT NULL,
                         visit      INTEGER NOT NULL,
                         trained    TEXT    NOT NULL,
                         weights    TEXT    NOT NULL,
                         clip       REAL    NOT NULL,
                         multiplier REAL    NOT NULL CHECK (multiplier > 0),
                         at         INTEGER NOT NULL
                     ) STRICT;
                     PRAGMA application_id = {APPLICATION_ID};
                     COMMIT;"
                ))?;
            }
            file.pragma_query_value(None, "application_id", |r| r.get(0))
        };
        if open().map_err(fail)? != APPLICATION_ID {
            return Err(Error::Foreign(path));
        }
        let this = Self {
            policy,
            path: Arc::new(path),
            file: Arc::new(Mutex::new(file)),
            released: Arc::default(),
        };
        // What cannot be read stops the daemon now, not in the middle of a round.
        this.spent()?;
        Ok(this)
    }

    /// The site's policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn file(&self) -> MutexGuard<'_, Connection> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> Error + use<> {
        let path = self.path.to_path_buf();
        move |source| Error::Sqlite { what, path: path.clone(), source }
    }

    /// The result of a visit that is kept here.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn kept(&self, round: RoundId, visit: VisitNo) -> Result<Option<Kept>, Error> {
        let row: Option<(String, String, bool)> = self
            .file()
            .query_row(
                "SELECT trained, figures, released FROM held WHERE round = ?1 AND visit = ?2",
                params![round.to_string(), visit.0],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            )
            .optional()
            .map_err(self.fail("reading"))?;
        let Some((weights, figures, released)) = row else { return Ok(None) };
        let foreign = || Error::Foreign(self.path.to_path_buf());
        let weights = weights.parse().map_err(|_| foreign())?;
        let (counts, validation): (Counts, Validation) =
            serde_json::from_str(&figures).map_err(|_| foreign())?;
        Ok(Some(Kept { trained: Trained { weights, counts, validation }, released }))
    }

    /// Keeps the result of a visit until it is released; another one of the same visit takes its place.
    ///
    /// # Errors
    /// If it could not be written.
    pub fn keep(&self, round: RoundId, visit: VisitNo, trained: &Trained) -> Result<(), Error> {
        let figures = serde_json::to_string(&(trained.counts, trained.validation));
        self.file()
            .execute(
                "INSERT OR REPLACE INTO held (round, visit, trained, figures, released)
                 VALUES (?1, ?2, ?3, ?4, 0)",
                params![
                    round.to_string(),
                    visit.0,
                    trained.weights.to_string(),
                    figures.unwrap_or_default()
                ],
            )
            .map(drop)
            .map_err(self.fail("writing"))
    }

    /// Lets the result of a visit go; says whether there was one.
    ///
    /// # Errors
    /// If it could not be written.
    pub fn release(&self, round: RoundId, visit: VisitNo) -> Result<bool, Error> {
        let rows = self
            .file()
            .execute(
                "UPDATE held SET released = 1 WHERE round = ?1 AND visit = ?2",
                params![round.to_string(), visit.0],
            )
            .map_err(self.fail("writing"))?;
        self.released.send_modify(|n| *n = n.wrapping_add(1));
        Ok(rows > 0)
    }

    /// Forgets the result of a visit, which has left.
    ///
    /// # Errors
    /// If it could not be written.
    pub fn forget(&self, round: RoundId, visit: VisitNo) -> Result<(), Error> {
        let key = params![round.to_string(), visit.0];
        self.file()
            .execute("DELETE FROM held WHERE round = ?1 AND visit = ?2", key)
            .map(drop)
            .map_err(self.fail("writing"))
    }

    /// Changes whenever an operator lets a result go.
    #[must_use]
    pub fn releases(&self) -> watch::Receiver<u64> {
        self.released.subscribe()
    }

    /// What all releases so far cost.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn spent(&self) -> Result<Cost, Error> {
        self.spent_before(i64::MAX)
    }

    /// What the releases before row `number` cost.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn spent_before(&self, number: i64) -> Result<Cost, Error> {
        let file = self.file();
        let read = || -> rusqlite::Result<Vec<f64>> {
            let mut all = file.prepare("SELECT multiplier FROM privacy WHERE number < ?1")?;
            all.query_map([number], |r| r.get(0))?.collect()
        };
        let multipliers = read().map_err(self.fail("reading"))?;
        if multipliers.iter().any(|m| !m.is_finite() || *m <= 0.0) {
            return Err(Error::Foreign(self.path.to_path_buf()));
        }
        Ok(multipliers.into_iter().map(Cost::gaussian).fold(Cost::default(), Cost::and))
    }

    /// The noised release of a result that was paid for already: its row, weights and noise.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn paid(
        &self,
        round: RoundId,
        visit: VisitNo,
        trained: Digest,
    ) -> Result<Option<(i64, Digest, Filter)>, Error> {
        let row: Option<(i64, String, f64, f64)> = self
            .file()
            .query_row(
                "SELECT number, weights, clip, multiplier FROM privacy
                 WHERE round = ?1 AND visit = ?2 AND trained = ?3
                 ORDER BY number DESC LIMIT 1",
                params![round.to_string(), visit.0, trained.to_string()],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
            )
            .optional()
            .map_err(self.fail("reading"))?;
        let Some((number, weights, clip, multiplier)) = row else { return Ok(None) };
        let weights = weights.parse().map_err(|_| Error::Foreign(self.path.to_path_buf()))?;
        let noise = self.policy.noise().map(|noise| Noise { multiplier, ..noise });
        Ok(Some((number, weights, Filter { clip, noise })))
    }

    /// Writes down a noised release; its row. A result whose release was lost is paid for again.
    ///
    /// # Errors
    /// If it could not be written.
    pub fn pay(
        &self,
        round: RoundId,
        visit: VisitNo,
        trained: Digest,
        weights: Digest,
        (clip, multiplier): (f64, f64),
    ) -> Result<i64, Error> {
        let file = self.file();
        let paid = || -> rusqlite::Result<i64> {
            file.execute(
                "INSERT INTO privacy (round, visit, trained, weights, clip, multiplier, at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    round.to_string(),
                    visit.0,
                    trained.to_string(),
                    weights.to_string(),
                    clip,
                    multiplier,
                    unix_now()
                ],
            )?;
            Ok(file.last_insert_rowid())
        };
        paid().map_err(self.fail("writing"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn noise() -> Noise {
        Noise { multiplier: 1.0, delta: 1e-5, epsilon_max: 8.0 }
    }

    fn trained(bytes: &[u8]) -> Trained {
        let weights = Digest::of(bytes);
        let validation = Validation { received_dice: Some(0.1), trained_dice: None };
        Trained { weights, counts: Counts { updates: 3, ..Counts::default() }, validation }
    }

    fn open(home: &Path) -> Outbound {
        let text = "[update]\nclip = 0.5\nnoise_multiplier = 1\ndelta = 1e-5\nepsilon_max = 8\n";
        Outbound::open(home, Arc::new(Policy::parse(text).unwrap())).unwrap()
    }

    #[test]
    fn what_is_held_survives_and_leaves_once() {
        let home = tempfile::tempdir().unwrap();
        let (round, visit) = (Digest::of(b"plan"), VisitNo(2));
        let outbound = open(home.path());
        assert!(!outbound.release(round, visit).unwrap(), "nothing is held");
        outbound.keep(round, visit, &trained(b"a")).unwrap();
        drop(outbound);
        let outbound = open(home.path());
        let kept = Kept { trained: trained(b"a"), released: false };
        assert_eq!(outbound.kept(round, visit).unwrap(), Some(kept.clone()));
        let mut told = outbound.releases();
        assert!(outbound.release(round, visit).unwrap() && told.has_changed().unwrap());
        told.mark_unchanged();
        assert_eq!(outbound.kept(round, visit).unwrap(), Some(Kept { released: true, ..kept }));
        outbound.keep(round, visit, &trained(b"b")).unwrap();
        let again = outbound.kept(round, visit).unwrap().unwrap();
        assert!(!again.released, "another result is not released");
        outbound.forget(round, visit).unwrap();
        assert_eq!(outbound.kept(round, visit).unwrap(), None);
    }

    #[test]
    fn every_release_is_paid_for_and_found_again() {
        let home = tempfile::tempdir().unwrap();
        let (round, [a, b, out]) = (Digest::of(b"plan"), [b"a", b"b", b"c"].map(|x| Digest::of(x)));
        let outbound = open(home.path());
        assert_eq!(outbound.spent().unwrap(), Cost::default());
        let number = outbound.pay(round, VisitNo(1), a, out, (0.5, 1.0)).unwrap();
        drop(outbound);
        let outbound = open(home.path());
        let found = outbound.paid(round, VisitNo(1), a).unwrap();
        assert_eq!(found, Some((number, out, Filter { clip: 0.5, noise: Some(noise()) })));
        assert_eq!(outbound.paid(round, VisitNo(1), b).unwrap(), None);
        assert_eq!(outbound.spent_before(number).unwrap(), Cost::default());
        let spent = outbound.spent().unwrap();
        assert_eq!(spent, Cost::gaussian(1.0));
    }

    #[test]
    fn another_file_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE);
        crate::durable::write(&path, b"no ledger", crate::durable::Mode::Private).unwrap();
        assert!(Outbound::open(home.path(), Arc::default()).is_err());
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let refused = Outbound::open(home.path(), Arc::default());
        assert!(matches!(refused, Err(Error::Foreign(_))));
    }
}
