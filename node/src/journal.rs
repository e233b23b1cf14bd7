//! The journal on disk: an append-only SQLite table that an auditor can open with `sqlite3`.

use rondo::ids::Digest;
use rondo::journal::{self, Record, Replay, Tip};
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

    /// Appends `event` durably. When this returns, the event has happened.
    ///
    /// # Errors
    /// If it could not be written; then it has not.
    pub fn append(&mut self, event: &Event) -> Result<(), Error> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::{Identity, NewSite};

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
        let error = Journal::open(&path).err().unwrap().to_string();
        assert!(error.contains("Restore the journal from a backup"), "{error}");
    }
}
