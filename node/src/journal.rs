//! The journal on disk: an append-only SQLite table that an auditor can open with `sqlite3`.

use rondo::ids::Digest;
use rondo::journal::{self, Record, Replay, Tip};
use rondo::owner::Log;
use rondo::round::{Event, SiteState};
use rusqlite::{Connection, OpenFlags, params};
use std::path::{Path, PathBuf};

/// Name of the journal in a site's home folder.
pub const FILE: &str = "journal.sqlite";
/// `PRAGMA application_id` of a journal ("rndo").
const APPLICATION_ID: i32 = 0x726e_646f;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's own word.
    #[error("{what} {}: {source}{}", path.display(), advice(source))]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A record or the chain is damaged.
    #[error("{}: {source}", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// The place and what to do.
        source: journal::Error,
    },
    /// Another file.
    #[error("{} is not a Rondo journal; restore the journal from a backup", .0.display())]
    Foreign(PathBuf),
}

impl Error {
    /// Whether trying again is of no use: the journal itself is not in order.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => is_damage(source),
            Self::Damaged { .. } | Self::Foreign(_) => true,
        }
    }
}

/// Whether SQLite says that a file is damaged; anything else, such as a full disk, may pass.
pub(crate) fn is_damage(source: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
    match source.sqlite_error_code() {
        // A table that is not there is SQLite's general error.
        Some(code) => matches!(code, NotADatabase | DatabaseCorrupt | Unknown),
        // A value of another type than its column has.
        None => true,
    }
}

fn advice(source: &rusqlite::Error) -> &'static str {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => ". Free space on this disk; nothing was lost",
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            ". Restore the journal from a backup"
        }
        _ => "",
    }
}

/// An open journal, positioned at its end.
pub struct Journal {
    path: PathBuf,
    connection: Connection,
    tip: Tip,
}

impl Journal {
    /// Opens or creates the journal and replays it.
    ///
    /// # Errors
    /// The place and kind of any damage.
    pub fn open(path: &Path) -> Result<(Self, SiteState), Error> {
        let fail = |what| move |source| Error::Sqlite { what, path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection =
            Connection::open_with_flags(path, flags).map_err(fail("opening the journal"))?;
        let open = || -> rusqlite::Result<i32> {
            // Nowhere but in its home may the daemon make a file.
            connection.pragma_update(None, "temp_store", "MEMORY")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let id: i32 = connection.pragma_query_value(None, "application_id", |r| r.get(0))?;
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
            if id == 0 && tables == 0 {
                connection.execute_batch(&format!(
                    "BEGIN;
                     CREATE TABLE record (
                         number  INTEGER PRIMARY KEY CHECK (number > 0),
                         version INTEGER NOT NULL,
                         payload BLOB    NOT NULL,
                         digest  BLOB    NOT NULL CHECK (length(digest) = 32)
                     ) STRICT;
                     CREATE TRIGGER record_stays BEFORE UPDATE ON record
                         BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
                     CREATE TRIGGER record_is_kept BEFORE DELETE ON record
                         BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
                     PRAGMA application_id = {APPLICATION_ID};
                     COMMIT;"
                ))?;
                return Ok(APPLICATION_ID);
            }
            Ok(id)
        };
        if open().map_err(fail("opening the journal"))? != APPLICATION_ID {
            return Err(Error::Foreign(path.to_owned()));
        }
        let mut replay = Replay::default();
        {
            let mut statement = connection
                .prepare("SELECT number, version, payload, digest FROM record ORDER BY number")
                .map_err(fail("reading the journal"))?;
            let rows = statement
                .query_map([], |row| {
                    Ok(Record {
                        number: row.get(0)?,
                        version: row.get(1)?,
                        payload: row.get(2)?,
                        digest: Digest::from_bytes(row.get(3)?),
                    })
                })
                .map_err(fail("reading the journal"))?;
            for row in rows {
                let record = row.map_err(fail("reading the journal"))?;
                replay
                    .adopt(&record)
                    .map_err(|source| Error::Damaged { path: path.to_owned(), source })?;
            }
        }
        let (state, tip) = replay.finish();
        Ok((Self { path: path.to_owned(), connection, tip }, state))
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.tip.number
    }

    /// Whether nothing was ever recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tip.number == 0
    }
}

impl Log for Journal {
    type Error = Error;

    fn append(&mut self, event: &Event) -> Result<(), Error> {
        let record = Record::next(self.tip, event)
            .map_err(|source| Error::Damaged { path: self.path.clone(), source })?;
        self.connection
            .execute(
                "INSERT INTO record (number, version, payload, digest) VALUES (?1, ?2, ?3, ?4)",
                params![record.number, record.version, record.payload, record.digest.as_bytes()],
            )
            .map_err(|source| Error::Sqlite {
                what: "writing the journal",
                path: self.path.clone(),
                source,
            })?;
        self.tip = record.tip();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::{Identity, NewSite};
    use rondo::ids::VisitNo;
    use rondo::round::RoundPhase;

    #[test]
    fn a_journal_is_replayed_and_damage_is_named() {
        let home = tempfile::tempdir().unwrap();
        let new = NewSite {
            site: "uker".parse().unwrap(),
            name: "UKER".to_owned(),
            endpoints: vec![],
            now: 1_000_000,
            valid_days: 1,
        };
        let card = Identity::create(home.path(), &new).unwrap().card;
        let path = home.path().join(FILE);
        let (mut journal, state) = Journal::open(&path).unwrap();
        assert!(journal.is_empty() && state.own().is_none());
        journal.append(&Event::SiteOpened { card }).unwrap();
        drop(journal);
        let (journal, state) = Journal::open(&path).unwrap();
        assert_eq!(state.own().unwrap().site.as_str(), "uker");
        assert!(journal.connection.execute("DELETE FROM record", []).is_err());
        let change = "DROP TRIGGER record_stays; UPDATE record SET payload = CAST('{}' AS BLOB)";
        journal.connection.execute_batch(change).unwrap();
        drop(journal);
        let error = Journal::open(&path).err().unwrap().to_string();
        assert!(error.contains("journal record 1 was changed or moved"), "{error}");
        crate::durable::write(&path, &[7; 5000], crate::durable::Mode::Private).unwrap();
        let error = Journal::open(&path).err().unwrap();
        assert!(error.is_damage());
        assert!(error.to_string().contains("Restore the journal from a backup"), "{error}");
        for (code, damage) in [
            (rusqlite::ffi::SQLITE_FULL, false),
            (rusqlite::ffi::SQLITE_IOERR_WRITE, false),
            (rusqlite::ffi::SQLITE_CANTOPEN, false),
            (rusqlite::ffi::SQLITE_BUSY, false),
            (rusqlite::ffi::SQLITE_READONLY, false),
            (rusqlite::ffi::SQLITE_CORRUPT, true),
            (rusqlite::ffi::SQLITE_NOTADB, true),
        ] {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            assert_eq!(is_damage(&source), damage, "{code}");
        }
    }
    /// What the first release wrote at site usz: a round of two cycles that stalled once, a model of
    /// another round that came as a file, and a peer that was revoked.
    const FIRST_RELEASE: &[u8] = include_bytes!("../../src/fixtures/0.1/journal.sqlite");

    #[test]
    fn a_journal_of_the_first_release_means_what_it_meant() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE);
        let open = |bytes: &[u8]| {
            crate::durable::write(&path, bytes, crate::durable::Mode::Private).unwrap();
            Journal::open(&path)
        };
        assert!(open(&FIRST_RELEASE[..FIRST_RELEASE.len() / 2]).is_err(), "it is looked at");
        let (journal, state) = open(FIRST_RELEASE).unwrap();
        assert_eq!(journal.len(), 30);
        let tip = "07d5243e6daa";
        assert_eq!(journal.tip.digest.short().to_string(), tip);
        assert_eq!(state.own().unwrap().site.as_str(), "usz");
        let trusted = |site: &str| state.roster().trusted(&site.parse().unwrap()).is_ok();
        assert_eq!([trusted("uker"), trusted("usz"), trusted("nyu")], [true, true, false]);
        let (id, round) = state.rounds().first_key_value().unwrap();
        assert_eq!((state.rounds().len(), id.short().to_string()), (1, "eec197922ca0".to_owned()));
        assert_eq!(round.phase(), RoundPhase::Finished);
        let told: Vec<_> = round.receipts.iter().map(|(s, r)| (s.as_str(), r.len())).collect();
        assert_eq!(told, [("uker", 10), ("usz", 7)]);
        let visits: Vec<_> =
            round.visits.iter().map(|v| v.weights().unwrap().short().to_string()).collect();
        assert_eq!(visits, ["cd51f9abbe68", "56bbd9513033", "17f3ca339c05", "84f472499e0a"]);
        let passport = round.passport(VisitNo(4)).unwrap();
        assert_eq!(passport.verify(state.roster()).unwrap().hops().len(), 4);
        let imported: Vec<_> = state.imported().keys().map(|d| d.short().to_string()).collect();
        assert_eq!(imported, ["cd51f9abbe68"]);
        assert!(state.effects().is_empty(), "{:?}", state.effects());
    }

    #[test]
    fn a_full_disk_is_named_changes_nothing_and_is_over_with_space() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE);
        crate::durable::write(&path, FIRST_RELEASE, crate::durable::Mode::Private).unwrap();
        let (mut journal, state) = Journal::open(&path).unwrap();
        assert!(state.roster().trusted(&"uker".parse().unwrap()).is_ok());
        let event = Event::PeerRevoked { site: "uker".parse().unwrap() };
        // No page beyond those that are there, as on a disk without space.
        let have = journal_pages(&journal.connection, 1);
        let mut last = Ok(());
        let mut kept = journal.len();
        for _ in 0..1000 {
            last = journal.append(&event);
            if last.is_err() {
                break;
            }
            kept += 1;
        }
        let error = last.unwrap_err().to_string();
        for part in ["writing the journal", "full", "Free space on this disk; nothing was lost"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(journal.len(), kept, "what was not written does not count");
        assert!(journal.append(&event).is_err());
        journal_pages(&journal.connection, have + 1000);
        journal.append(&event).unwrap();
        drop(journal);
        let (journal, state) = Journal::open(&path).unwrap();
        assert_eq!(journal.len(), kept + 1, "no gap and nothing twice");
        assert!(state.roster().trusted(&"uker".parse().unwrap()).is_err());
    }

    /// Limits the file to so many pages; the limit then, which is never below what is there.
    fn journal_pages(connection: &Connection, pages: i64) -> i64 {
        let set = format!("PRAGMA max_page_count = {pages}");
        connection.query_row(&set, [], |row| row.get(0)).unwrap()
    }
}
