//! What a site's journal says happened, read by others than its daemon.

use rondo::ids::{Digest, RoundId, SiteId};
use rondo::journal::{Record, Replay, Tip};
use rondo::manifest::Manifest;
use rondo::round::{Event, Receipt, ReceiptBody, SiteState};
use rusqlite::{Connection, OpenFlags, params};
use std::collections::BTreeMap;
use std::path::Path;

fn open(home: &Path, flags: OpenFlags) -> Connection {
    Connection::open_with_flags(home.join("journal.sqlite"), flags).expect("a journal")
}

/// Every record.
#[must_use]
pub fn records(home: &Path) -> Vec<Record> {
    let journal = open(home, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let mut all = journal
        .prepare("SELECT number, version, payload, digest FROM record ORDER BY number")
        .expect("a table of records");
    let read = |row: &rusqlite::Row<'_>| {
        let digest = Digest::from_bytes(row.get(3)?);
        Ok(Record { number: row.get(0)?, version: row.get(1)?, payload: row.get(2)?, digest })
    };
    all.query_map([], read).and_then(Iterator::collect).expect("whole records")
}

/// The state that the journal amounts to, and its events.
#[must_use]
pub fn replay(home: &Path) -> (SiteState, Vec<Event>, Tip) {
    let mut replay = Replay::default();
    let mut tip = Tip::EMPTY;
    let mut events = Vec::new();
    for record in records(home) {
        events.push(record.open(tip).expect("an unbroken chain"));
        replay.adopt(&record).expect("a journal that follows from itself");
        tip = record.tip();
    }
    (replay.finish().0, events, tip)
}

/// How often each visit was contributed, as signed receipts in the journal say.
#[must_use]
pub fn contributions(home: &Path, round: RoundId) -> BTreeMap<u32, usize> {
    let mut count = BTreeMap::new();
    for event in replay(home).1 {
        let Event::Receipt { receipt } = event else { continue };
        let receipt = Receipt::unverified(&receipt).expect("a receipt");
        if let (true, ReceiptBody::Contributed { manifest }) =
            (receipt.round == round, receipt.body)
        {
            let visit = Manifest::unverified(&manifest).expect("a manifest").visit;
            *count.entry(visit.0).or_default() += 1;
        }
    }
    count
}

/// Every site's statements in a round, in their order, by digest.
#[must_use]
pub fn statements(home: &Path, round: RoundId) -> BTreeMap<SiteId, Vec<Digest>> {
    let state = replay(home).0;
    let receipts = state.rounds().get(&round).map(|r| r.receipts.clone()).unwrap_or_default();
    let digests = |all: Vec<rondo::envelope::Envelope>| {
        all.iter().map(rondo::envelope::Envelope::payload_digest).collect()
    };
    receipts.into_iter().map(|(site, all)| (site, digests(all))).collect()
}

/// Appends an event to the journal of a stopped site, as its daemon would.
pub fn append(home: &Path, event: &Event) {
    let record = Record::next(replay(home).2, event).expect("a record");
    let insert = "INSERT INTO record (number, version, payload, digest) VALUES (?1, ?2, ?3, ?4)";
    let digest = record.digest.as_bytes();
    let values = params![record.number, record.version, record.payload, digest];
    open(home, OpenFlags::SQLITE_OPEN_READ_WRITE).execute(insert, values).expect("appended");
}

/// A backup of the journal of a stopped site: one file with everything in it.
#[must_use]
pub fn backup(home: &Path) -> Vec<u8> {
    // Closing the last connection brings what lies in the write-ahead log into the file.
    let count = "SELECT count(*) FROM record";
    let journal = open(home, OpenFlags::SQLITE_OPEN_READ_WRITE);
    journal.query_row(count, [], |row| row.get::<_, u64>(0)).expect("records");
    journal.close().expect("closed");
    std::fs::read(home.join("journal.sqlite")).expect("a journal")
}

/// Puts a backup, or what should have been one, in the place of the journal.
pub fn restore(home: &Path, bytes: &[u8]) {
    for ending in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(home.join(format!("journal.sqlite{ending}")));
    }
    std::fs::write(home.join("journal.sqlite"), bytes).expect("restored");
}

/// Runs SQL on the journal of a stopped site, its guards removed.
pub fn tamper(home: &Path, sql: &str) {
    let guards = "DROP TRIGGER record_stays; DROP TRIGGER record_is_kept;";
    let journal = open(home, OpenFlags::SQLITE_OPEN_READ_WRITE);
    journal.execute_batch(&format!("{guards} {sql}")).expect("tampered with");
}
