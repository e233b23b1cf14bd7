//! The egress ledger: every byte that left to a peer, by peer, round and kind of message.
//!
//! Bytes are counted where they go into TLS ([`meter`]); what is DATA of HTTP/2 counts for the message
//! it belongs to ([`calls`]), everything else for the kind [`HTTP2`]. So the kinds of a peer always add up
//! to what its sockets carried. Totals are saved every [`SAVE_EVERY`] and at the stop, as absolute
//! figures: a save that happens twice counts once.

pub mod calls;
pub mod meter;

use crate::journal;
use rondo::ids::{RoundId, SiteId};
use rusqlite::{Connection, OpenFlags, params};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Name of the ledger in a site's home folder.
pub const FILE: &str = "egress.sqlite";
/// What a `kill -9` may lose at most.
pub const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Kind of what HTTP/2 itself needs: headers, settings, pings, window updates.
pub const HTTP2: &str = "http2";
/// Rows at most; beyond that, bytes are counted without their round.
const ROWS_MAX: usize = 100_000;
/// `PRAGMA application_id` of a ledger ("rneg").
const APPLICATION_ID: i32 = 0x726e_6567;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's own word.
    #[error("{what} {}: {source}. Free space on this disk, or restore the file from a backup", path.display())]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// The ledger.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// Another file, or a row that makes no sense.
    #[error("{} is not an egress ledger; restore it from a backup", .0.display())]
    Foreign(PathBuf),
}

impl Error {
    /// Whether trying again is of no use: the ledger itself is not in order.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => journal::is_damage(source),
            Self::Foreign(_) => true,
        }
    }
}

/// What a row of the ledger counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Who it was sent to.
    pub peer: SiteId,
    /// The round it was about, where the message names one.
    pub round: Option<RoundId>,
    /// Call and direction, such as `SendChunks.request`, or [`HTTP2`].
    pub kind: Arc<str>,
}

/// A row's running total.
type Row = Arc<AtomicU64>;

/// The totals in memory.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    rows: Arc<Mutex<BTreeMap<Key, Row>>>,
    connections: Arc<AtomicUsize>,
}

impl Egress {
    fn row(&self, key: Key) -> Row {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let full = rows.len() >= ROWS_MAX && !rows.contains_key(&key);
        let key = if full { Key { round: None, ..key } } else { key };
        rows.entry(key).or_default().clone()
    }

    /// Connections with peers that are open now, whoever opened them.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn open(&self) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(self.connections.clone())
    }

    /// Every row and its bytes.
    #[must_use]
    pub fn all(&self) -> Vec<(Key, u64)> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().map(|(key, row)| (key.clone(), row.load(Ordering::Relaxed))).collect()
    }
}

/// An open connection, for as long as it lives.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The ledger on disk, an SQLite table that an auditor can open with `sqlite3`.
pub struct Book {
    path: PathBuf,
    connection: Connection,
    egress: Egress,
    saved: BTreeMap<Key, u64>,
}

impl Book {
    /// Opens or creates the ledger and goes on with its totals.
    ///
    /// # Errors
    /// If it cannot be read or is another file.
    pub fn open(path: &Path) -> Result<(Self, Egress), Error> {
        let fail = |source| Error::Sqlite {
            what: "opening the egress ledger",
            path: path.to_owned(),
            source,
        };
        let connection = Connection::open(path).map_err(fail)?;
        let open = || -> rusqlite::Result<i32> {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
            if tables == 0 {
                connection.execute_batch(&format!(
                    "BEGIN;
                     CREATE TABLE egress (
                         peer  TEXT    NOT NULL,
                         round TEXT    NOT NULL,
                         kind  TEXT    NOT NULL,
                         bytes INTEGER NOT NULL CHECK (bytes >= 0),
                         PRIMARY KEY (peer, round, kind)
                     ) STRICT, WITHOUT ROWID;
                     PRAGMA application_id = {APPLICATION_ID};
                     COMMIT;"
                ))?;
            }
            connection.pragma_query_value(None, "application_id", |r| r.get(0))
        };
        if open().map_err(fail)? != APPLICATION_ID {
            return Err(Error::Foreign(path.to_owned()));
        }
        let saved = read(&connection, path)?;
        let egress = Egress::default();
        for (key, bytes) in &saved {
            egress.row(key.clone()).store(*bytes, Ordering::Relaxed);
        }
        Ok((Self { path: path.to_owned(), connection, egress: egress.clone(), saved }, egress))
    }

    /// What a ledger says, for anybody who may read the file.
    ///
    /// # Errors
    /// If it cannot be read or is another file.
    pub fn read(path: &Path) -> Result<BTreeMap<Key, u64>, Error> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|source| Error::Sqlite {
                what: "opening the egress ledger",
                path: path.to_owned(),
                source,
            })?;
        read(&connection, path)
    }

    /// Saves what was counted since the last time, all of it or nothing.
    ///
    /// # Errors
    /// If it could not be written; the next save brings it again.
    pub fn save(&mut self) -> Result<(), Error> {
        let changed: Vec<_> = self.egress.all();
        let changed: Vec<_> =
            changed.into_iter().filter(|(key, n)| self.saved.get(key) != Some(n)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let path = self.path.clone();
        let fail = |source| Error::Sqlite { what: "writing the egress ledger", path, source };
        let transaction = |connection: &mut Connection| -> rusqlite::Result<()> {
            let all = connection.transaction()?;
            for (key, bytes) in &changed {
                let round = key.round.map(|r| r.to_string()).unwrap_or_default();
                all.prepare_cached(
                    "INSERT OR REPLACE INTO egress (peer, round, kind, bytes) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![key.peer.as_str(), round, &*key.kind, bytes])?;
            }
            all.commit()
        };
        transaction(&mut self.connection).map_err(fail)?;
        self.saved.extend(changed);
        Ok(())
    }
}

fn read(connection: &Connection, path: &Path) -> Result<BTreeMap<Key, u64>, Error> {
    let read = || -> rusqlite::Result<Vec<(String, String, String, u64)>> {
        let mut all = connection.prepare("SELECT peer, round, kind, bytes FROM egress")?;
        all.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?.collect()
    };
    let rows = read().map_err(|source| Error::Sqlite {
        what: "reading the egress ledger",
        path: path.to_owned(),
        source,
    })?;
    let foreign = || Error::Foreign(path.to_owned());
    rows.into_iter()
        .map(|(peer, round, kind, bytes)| {
            let peer = peer.parse().map_err(|_| foreign())?;
            let round = match round.as_str() {
                "" => None,
                digits => Some(digits.parse().map_err(|_| foreign())?),
            };
            Ok((Key { peer, round, kind: kind.into() }, bytes))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo::ids::Digest;

    fn key(round: Option<RoundId>, kind: &str) -> Key {
        Key { peer: "usz".parse().unwrap(), round, kind: kind.into() }
    }

    #[test]
    fn totals_are_saved_once_and_go_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let round = Some(Digest::of(b"a plan"));
        let (mut book, egress) = Book::open(&path).unwrap();
        egress.row(key(round, "Greet.answer")).fetch_add(7, Ordering::Relaxed);
        book.save().unwrap();
        book.save().unwrap();
        egress.row(key(None, HTTP2)).fetch_add(5, Ordering::Relaxed);
        // As after `kill -9`: what was not saved is lost, what was saved counts once.
        drop((book, egress));
        let (mut book, egress) = Book::open(&path).unwrap();
        assert_eq!(egress.all(), [(key(round, "Greet.answer"), 7)]);
        egress.row(key(round, "Greet.answer")).fetch_add(1, Ordering::Relaxed);
        book.save().unwrap();
        assert_eq!(Book::read(&path).unwrap(), BTreeMap::from([(key(round, "Greet.answer"), 8)]));
        crate::durable::write(&path, b"no ledger", crate::durable::Mode::Private).unwrap();
        assert!(Book::open(&path).is_err());
    }

    #[test]
    fn rows_are_bounded() {
        let egress = Egress::default();
        for n in 0..u32::try_from(ROWS_MAX).unwrap() + 10 {
            egress
                .row(key(Some(Digest::of(&n.to_le_bytes())), "x"))
                .fetch_add(1, Ordering::Relaxed);
        }
        let all = egress.all();
        assert_eq!(all.len(), ROWS_MAX + 1);
        assert_eq!(all.iter().find(|(key, _)| key.round.is_none()).unwrap().1, 10);
    }
}
