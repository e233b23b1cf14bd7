//! The audit log on disk: an append-only SQLite table that an auditor can open with `sqlite3`.

use crate::daemon::unix_now;
use crate::durable::{self, Mode};
use crate::identity::Own;
use crate::journal;
use crate::ledger::Egress;
use crate::reason::{Reason, Refusals};
use rondo::audit::{self, Entry, Line, Mark, Walk, What, Who};
use rondo::envelope::Envelope;
use rondo::ids::{Digest, SiteId};
use rondo::journal::Tip;
use rondo::trust::SiteCard;
use rusqlite::{Connection, OpenFlags, params};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::server::UdsConnectInfo;

/// Name of the log in a site's home folder.
pub const FILE: &str = "audit.sqlite";
/// The last signature over the log, for an auditor to keep elsewhere.
pub const MARK_FILE: &str = "audit-mark.json";
/// Lines that are not yet signed, at most.
const SIGN_LINES: u64 = 100;
/// A line is signed after this long at the latest.
const SIGN_EVERY: Duration = Duration::from_secs(10);
/// Refusals of one peer for one reason are one line in this time.
const REFUSED_EVERY: Duration = Duration::from_secs(60);
/// How often the sums of the egress ledger are written down.
const EGRESS_EVERY: Duration = Duration::from_secs(3600);
/// `PRAGMA application_id` of an audit log ("rnau").
const APPLICATION_ID: i32 = 0x726e_6175;

/// Why the audit log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's own word.
    #[error("{what} {}: {source}. Free space on this disk, or restore the log from a backup", path.display())]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// The log.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// The file beside the log.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A line, the chain or a signature is not what it was.
    #[error("{}: [{}] {source}. Keep the file as evidence; compare it with a backup", path.display(), source.code())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// The place.
        source: audit::Error,
    },
    /// Another file.
    #[error("{} is not an audit log or a signature of one; restore it from a backup", .0.display())]
    Foreign(PathBuf),
}

impl Error {
    /// Whether trying again is of no use: the log itself is not in order.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => journal::is_damage(source),
            Self::File { .. } => false,
            Self::Damaged { .. } | Self::Foreign(_) => true,
        }
    }
}

/// What a check of a log found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its end.
    pub tip: Tip,
    /// The last signature.
    pub signed: Option<Mark>,
}

/// Checks the log in `home` line by line and against every signature: those in it, the file beside it,
/// and one that an auditor kept. Every entry is shown to `each`.
///
/// # Errors
/// The first thing that is wrong, by line.
pub fn verify(
    home: &Path,
    card: &SiteCard,
    kept: Option<&Path>,
    each: impl FnMut(&Line, &Entry),
) -> Result<Report, Error> {
    let path = home.join(FILE);
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|e| sqlite("opening the audit log", &path)(e))?;
    let beside = home.join(MARK_FILE);
    let files = [Some(beside.as_path()).filter(|p| p.exists()), kept];
    walk(&connection, &path, card, &files, each)
}

fn sqlite(what: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Sqlite { what, path: path.clone(), source }
}

fn walk(
    connection: &Connection,
    path: &Path,
    card: &SiteCard,
    files: &[Option<&Path>],
    mut each: impl FnMut(&Line, &Entry),
) -> Result<Report, Error> {
    let failed = sqlite("reading the audit log", path);
    let damaged = |source| Error::Damaged { path: path.to_owned(), source };
    // The signatures first: what is appended meanwhile is not yet signed, not cut off.
    let mut marks = connection
        .prepare("SELECT number, envelope FROM mark ORDER BY number")
        .and_then(|mut s| {
            s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<Result<Vec<(u64, Vec<u8>)>, _>>()
        })
        .map_err(&failed)?
        .into_iter()
        .map(|(number, bytes)| {
            let signature = |_| damaged(audit::Error::Signature(number));
            Ok((number, Envelope::from_json(&bytes).map_err(signature)?))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    for file in files.iter().copied().flatten() {
        marks.push(read_mark(file)?);
    }
    let mut walk = Walk::new(marks, card).map_err(damaged)?;
    let mut statement = connection
        .prepare("SELECT number, version, payload, digest FROM line ORDER BY number")
        .map_err(&failed)?;
    let lines = statement
        .query_map([], |row| {
            Ok(Line {
                number: row.get(0)?,
                version: row.get(1)?,
                payload: row.get(2)?,
                digest: Digest::from_bytes(row.get(3)?),
            })
        })
        .map_err(&failed)?;
    for line in lines {
        let line = line.map_err(&failed)?;
        let entry = walk.line(&line).map_err(damaged)?;
        each(&line, &entry);
    }
    let (tip, signed) = walk.finish().map_err(damaged)?;
    Ok(Report { tip, signed })
}

fn read_mark(path: &Path) -> Result<(u64, Envelope), Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::File {
        what: "reading the signature",
        path: path.to_owned(),
        source,
    })?;
    let envelope = Envelope::from_json(&bytes).map_err(|_| Error::Foreign(path.to_owned()))?;
    let number = Mark::number_of(&envelope).ok_or_else(|| Error::Foreign(path.to_owned()))?;
    Ok((number, envelope))
}

/// An open log, positioned at its end.
struct Log {
    path: PathBuf,
    mark_file: PathBuf,
    connection: Connection,
    own: Own,
    tip: Tip,
    signed: u64,
}

impl Log {
    fn open(home: &Path, own: Own) -> Result<Self, Error> {
        let (path, mark_file) = (home.join(FILE), home.join(MARK_FILE));
        let fail = sqlite("opening the audit log", &path);
        let connection = Connection::open(&path).map_err(&fail)?;
        let open = || -> rusqlite::Result<i32> {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
            if tables == 0 {
                connection.execute_batch(&schema())?;
            }
            connection.pragma_query_value(None, "application_id", |r| r.get(0))
        };
        if open().map_err(&fail)? != APPLICATION_ID {
            return Err(Error::Foreign(path));
        }
        let beside = Some(mark_file.as_path()).filter(|p| p.exists());
        let report = walk(&connection, &path, &own.now().own, &[beside], |_, _| ())?;
        let signed = report.signed.map_or(0, |mark| mark.number);
        Ok(Self { path, mark_file, connection, own, tip: report.tip, signed })
    }

    fn append(&mut self, who: Who, what: What) -> Result<(), Error> {
        let damaged = |source| Error::Damaged { path: self.path.clone(), source };
        let line = Line::next(self.tip, &Entry { at: unix_now(), who, what }).map_err(damaged)?;
        self.connection
            .execute(
                "INSERT INTO line (number, version, payload, digest) VALUES (?1, ?2, ?3, ?4)",
                params![line.number, line.version, line.payload, line.digest.as_bytes()],
            )
            .map_err(sqlite("writing the audit log", &self.path))?;
        self.tip = line.tip();
        if self.tip.number >= self.signed + SIGN_LINES { self.sign() } else { Ok(()) }
    }

    /// Signs what is not signed yet.
    fn sign(&mut self) -> Result<(), Error> {
        let Tip { number, digest } = self.tip;
        if number == self.signed {
            return Ok(());
        }
        let identity = self.own.now();
        let mark = Mark { site: identity.own.site.clone(), number, digest, at: unix_now() };
        let envelope = mark
            .sign(&identity.signing)
            .map_err(|source| Error::Damaged { path: self.path.clone(), source })?
            .to_json();
        self.connection
            .execute(
                "INSERT INTO mark (number, envelope) VALUES (?1, ?2)",
                params![number, envelope],
            )
            .map_err(sqlite("writing the audit log", &self.path))?;
        self.signed = number;
        let path = self.mark_file.clone();
        durable::write(&path, &envelope, Mode::Private).map_err(|source| Error::File {
            what: "writing the signature",
            path,
            source,
        })
    }
}

fn schema() -> String {
    let guarded = |table: &str| {
        format!(
            "CREATE TRIGGER {table}_stays BEFORE UPDATE ON {table}
                 BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
             CREATE TRIGGER {table}_is_kept BEFORE DELETE ON {table}
                 BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;"
        )
    };
    format!(
        "BEGIN;
         CREATE TABLE line (
             number  INTEGER PRIMARY KEY CHECK (number > 0),
             version INTEGER NOT NULL,
             payload BLOB    NOT NULL,
             digest  BLOB    NOT NULL CHECK (length(digest) = 32)
         ) STRICT;
         CREATE TABLE mark (
             number   INTEGER PRIMARY KEY CHECK (number > 0),
             envelope BLOB    NOT NULL
         ) STRICT;
         {} {}
         PRAGMA application_id = {APPLICATION_ID};
         COMMIT;",
        guarded("line"),
        guarded("mark")
    )
}

/// The log of the running daemon.
#[derive(Clone)]
pub struct Audit(Arc<Mutex<Log>>);

impl Audit {
    /// Opens or creates the log in `home`, and checks it.
    ///
    /// # Errors
    /// The place and kind of any damage.
    pub fn open(home: &Path, own: Own) -> Result<Self, Error> {
        Log::open(home, own).map(|log| Self(Arc::new(Mutex::new(log))))
    }

    fn log<T>(&self, with: impl FnOnce(&mut Log) -> Result<T, Error>) {
        if let Err(e) = with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            tracing::error!("{e}");
        }
    }

    /// Writes a line down; it is on disk when this returns. What happened has happened: a log that
    /// cannot be written is an error for the operator, not a reason to undo it.
    pub fn note(&self, who: Who, what: What) {
        self.log(|log| log.append(who, what));
    }

    /// Notes what the daemon did by itself.
    pub async fn daemon(&self, what: What) {
        self.note_aside(Who::Daemon, what).await;
    }

    /// Notes what an operator did.
    pub async fn operator(&self, whom: Option<UdsConnectInfo>, what: What) {
        let credentials = whom.and_then(|info| info.peer_cred);
        let who = Who::Operator {
            uid: credentials.as_ref().map(tokio::net::unix::UCred::uid),
            pid: credentials.as_ref().and_then(tokio::net::unix::UCred::pid),
        };
        self.note_aside(who, what).await;
    }

    /// The disk blocks, so this is done where it holds nobody up.
    async fn note_aside(&self, who: Who, what: What) {
        let this = self.clone();
        let _ = tokio::task::spawn_blocking(move || this.note(who, what)).await;
    }
}

/// What is written down at intervals.
pub struct Clerk {
    audit: Audit,
    refusals: Refusals,
    egress: Egress,
    summed: Instant,
    noted: BTreeMap<(Option<SiteId>, Reason), (u64, Instant)>,
}

impl Clerk {
    /// A clerk that has noted nothing yet.
    #[must_use]
    pub fn new(audit: Audit, refusals: Refusals, egress: Egress) -> Self {
        Self { audit, refusals, egress, summed: Instant::now(), noted: BTreeMap::new() }
    }

    /// Writes down at intervals, until dropped.
    pub async fn run(clerk: Arc<Mutex<Self>>) {
        loop {
            tokio::time::sleep(SIGN_EVERY).await;
            let clerk = clerk.clone();
            let work =
                move || clerk.lock().unwrap_or_else(PoisonError::into_inner).work(REFUSED_EVERY);
            let _ = tokio::task::spawn_blocking(work).await;
        }
    }

    fn work(&mut self, pause: Duration) {
        self.refused(pause);
        if self.summed.elapsed() >= EGRESS_EVERY {
            self.egress();
        }
        self.audit.log(Log::sign);
    }

    /// Notes the stop, with everything that was not noted before, and signs the log.
    pub fn close(&mut self) {
        self.refused(Duration::ZERO);
        self.egress();
        self.audit.note(Who::Daemon, What::Stopped);
        self.audit.log(Log::sign);
    }

    /// Notes refusals whose last line is older than `pause`.
    fn refused(&mut self, pause: Duration) {
        for ((site, reason), count) in self.refusals.all() {
            let key = (site, reason);
            let before = self.noted.get(&key);
            let new = count.count - before.map_or(0, |(n, _)| *n);
            if new == 0 || before.is_some_and(|(_, at)| at.elapsed() < pause) {
                continue;
            }
            let who = key.0.clone().map_or(Who::Stranger, |site| Who::Peer { site });
            let what = What::Refused { reason: reason.code().to_owned(), count: new };
            self.audit.note(who, what);
            self.noted.insert(key, (count.count, Instant::now()));
        }
    }

    /// Notes what has left to each peer.
    fn egress(&mut self) {
        self.summed = Instant::now();
        let mut bytes = BTreeMap::new();
        for (key, n) in self.egress.all() {
            *bytes.entry(key.peer).or_default() += n;
        }
        self.audit.note(Who::Daemon, What::Egress { bytes });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::{Identity, NewSite};

    fn site(home: &Path) -> Own {
        let new = NewSite {
            site: "uker".parse().unwrap(),
            name: "UKER".to_owned(),
            endpoints: vec![],
            now: 1_000_000,
            valid_days: 1,
        };
        Own::new(Identity::create(home, &new).unwrap())
    }

    fn wrong(home: &Path, own: &Own) -> audit::Error {
        match verify(home, &own.now().own, None, |_, _| ()) {
            Err(Error::Damaged { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    fn tamper(home: &Path, sql: &str) {
        let guards = "DROP TRIGGER IF EXISTS line_stays; DROP TRIGGER IF EXISTS line_is_kept;
            DROP TRIGGER IF EXISTS mark_stays; DROP TRIGGER IF EXISTS mark_is_kept;";
        let log = Connection::open(home.join(FILE)).unwrap();
        log.execute_batch(&format!("{guards} {sql}")).unwrap();
    }

    #[test]
    fn what_was_done_to_a_log_is_found_and_a_kept_signature_finds_an_old_log() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path();
        let identity = site(home);
        let audit = Audit::open(home, identity.clone()).unwrap();
        for n in 0..SIGN_LINES + 5 {
            let what = What::Refused { reason: "busy".to_owned(), count: n };
            audit.note(Who::Stranger, what);
        }
        let card = identity.now().own.clone();
        let seen = verify(home, &card, None, |_, _| ()).unwrap();
        assert_eq!(seen.tip.number, SIGN_LINES + 5, "a running daemon's log can be read");
        assert_eq!(seen.signed.unwrap().number, SIGN_LINES, "signed without being asked");
        Clerk::new(audit, Refusals::default(), Egress::default()).close();
        let last = SIGN_LINES + 7;
        let mut entries = 0;
        let report = verify(home, &card, None, |_, _| entries += 1).unwrap();
        assert_eq!((entries, report.signed.unwrap().number), (last, last));

        let whole = std::fs::read(home.join(FILE)).unwrap();
        let restore = || durable::write(&home.join(FILE), &whole, Mode::Private).unwrap();
        tamper(home, "DELETE FROM line WHERE number = 50");
        let missing = audit::Error::Missing { expected: 50, found: 51 };
        assert_eq!(wrong(home, &identity), missing);
        let refused = Audit::open(home, identity.clone()).err().unwrap().to_string();
        assert!(refused.contains("[audit-missing] audit line 50 is missing"), "{refused}");
        restore();
        // With the signature over the end gone too, the file beside the log still knows of it.
        tamper(home, "DELETE FROM line WHERE number > 103; DELETE FROM mark WHERE number > 103");
        assert_eq!(wrong(home, &identity), audit::Error::Cut { last: 103, signed: last });
        // Whoever removes that as well is found by a signature that was kept elsewhere.
        let kept = folder.path().join("kept.json");
        durable::rename(&home.join(MARK_FILE), &kept).unwrap();
        assert!(verify(home, &card, None, |_, _| ()).is_ok());
        assert!(verify(home, &card, Some(&kept), |_, _| ()).is_err());
        restore();
        let other = tempfile::tempdir().unwrap();
        let foreign = site(other.path());
        assert_eq!(wrong(home, &foreign), audit::Error::Signature(SIGN_LINES));
    }

    #[test]
    fn many_refusals_are_few_lines() {
        let home = tempfile::tempdir().unwrap();
        let identity = site(home.path());
        let audit = Audit::open(home.path(), identity.clone()).unwrap();
        let refusals = Refusals::default();
        let mut clerk = Clerk::new(audit, refusals.clone(), Egress::default());
        for _ in 0..10 {
            for _ in 0..50 {
                refusals.note(None, "connection", Reason::UnknownKey, "x");
            }
            clerk.refused(REFUSED_EVERY);
        }
        let mut counts = Vec::new();
        let mut each = |_: &Line, entry: &Entry| counts.push(entry.what.clone());
        verify(home.path(), &identity.now().own, None, &mut each).unwrap();
        assert_eq!(counts, [What::Refused { reason: "unknown-key".to_owned(), count: 50 }]);
    }
}
