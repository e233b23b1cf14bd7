use super::*;
use crate::store::Store;
use crate::transfer::{PIECE_BYTES, receive};
use rondo::checkpoint::Extras;
use rondo::recipe::Architecture;
use rondo_proto::peer::Chunk;
use std::fs::OpenOptions;
use tokio_stream::StreamExt as _;

/// Some 40 MB, more than is received without a record.
fn scene() -> (tempfile::TempDir, Store, Vec<u8>, ChunkTable, Layout) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let layout = Layout::new(&Architecture { n1: 120, n2: 160, n3: 200, m: 300 }, Extras::NONE);
    let mut object = layout.header().to_vec();
    while (object.len() as u64) < layout.len() {
        object.extend_from_slice(&(object.len() as f32).to_le_bytes());
    }
    let table = ChunkTable::of(&object);
    assert!(table.bytes > SYNC_BYTES, "{} bytes", table.bytes);
    (folder, store, object, table, layout)
}

fn part<'a>(object: &'a [u8], table: &ChunkTable, index: u32) -> &'a [u8] {
    let r = table.range(u64::from(index)).unwrap();
    &object[usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap()]
}

#[test]
fn pieces_follow_each_other_or_are_refused() {
    let (_folder, store, object, table, layout) = scene();
    let mut incoming = store.receive(table.clone(), layout.clone()).unwrap();
    let first = part(&object, &table, 0);
    assert!(matches!(incoming.accept(0, 4, &first[4..]), Err(Error::Gap(0))));
    incoming.accept(0, 0, &first[..1000]).unwrap();
    assert!(matches!(incoming.accept(0, 1004, &first[1004..]), Err(Error::Gap(0))));
    assert!(matches!(incoming.accept(1, 1000, &first[1000..]), Err(Error::Gap(1))));
    assert!(matches!(incoming.accept(0, 1000, &[]), Err(Error::Gap(0))));
    let long = [&first[1000..], &[0]].concat();
    let refused = incoming.accept(0, 1000, &long);
    assert!(matches!(refused, Err(Error::Transfer(transfer::Error::Length { .. }))));
    for begun_anew in [0, 1] {
        assert!(matches!(incoming.accept(begun_anew, 0, &first[..9]), Err(Error::Gap(_))));
    }
    assert_eq!(incoming.offset(), 1000);
    drop(incoming);

    // What is half there goes on where it stopped, and half a chunk that is torn comes again.
    let mut incoming = store.receive(table.clone(), layout.clone()).unwrap();
    assert_eq!((incoming.missing()[0], incoming.offset()), (0, 1000));
    incoming.accept(0, 1000, &first[1000..]).unwrap();
    let second = part(&object, &table, 1);
    let mut torn = second[..5000].to_vec();
    torn[4000] ^= 1;
    incoming.accept(1, 0, &torn).unwrap();
    drop(incoming);
    let mut incoming = store.receive(table.clone(), layout).unwrap();
    assert_eq!((incoming.missing()[0], incoming.offset()), (1, 5000));
    incoming.accept(1, 5000, &second[5000..]).unwrap();
    assert_eq!((incoming.missing()[0], incoming.offset()), (1, 0), "torn, so asked for again");
    let mut bad = second.to_vec();
    bad[9] ^= 1;
    assert!(matches!(incoming.accept(1, 0, &bad), Err(Error::Transfer(_))));
    incoming.accept(1, 0, second).unwrap();
    assert!(matches!(incoming.accept(1, 0, second), Err(Error::Repeated(1))));
}

#[test]
fn a_record_saves_reading_and_is_not_believed_at_the_end() {
    let (_folder, store, object, table, layout) = scene();
    let mut incoming = store.receive(table.clone(), layout.clone()).unwrap();
    let count = u32::try_from(table.chunks.len()).unwrap();
    for index in 0..count - 1 {
        incoming.accept(index, 0, part(&object, &table, index)).unwrap();
    }
    let path = incoming.path.clone();
    let Err(incoming) = incoming.finish().unwrap() else { panic!("a chunk is missing") };
    drop(incoming);
    let record = record_path(&path);
    let have = recorded(&record, &table);
    assert!(have.iter().filter(|have| **have).count() as u64 * table.chunk_bytes >= SYNC_BYTES);

    // A record that is torn or of another table says nothing.
    let good = fs::read(&record).unwrap();
    for bad in [&good[..good.len() - 1], &[&good[..], &[0]].concat()] {
        fs::write(&record, bad).unwrap();
        assert!(!recorded(&record, &table).contains(&true));
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&record, bad).unwrap();
        assert!(!recorded(&record, &table).contains(&true), "byte {at}");
    }
    fs::write(&record, &good).unwrap();
    let other = ChunkTable { object: Digest::of(b"x"), ..table.clone() };
    assert!(!recorded(&record, &other).contains(&true));

    // A byte that the disk lost under the record is found at the end, and only its chunk comes again.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[object[700] ^ 1], 700).unwrap();
    let mut incoming = store.receive(table.clone(), layout).unwrap();
    assert_eq!(incoming.missing(), [count - 1]);
    incoming.accept(count - 1, 0, part(&object, &table, count - 1)).unwrap();
    let Err(mut incoming) = incoming.finish().unwrap() else { panic!("it is damaged") };
    assert_eq!((incoming.missing(), incoming.offset()), (vec![0], 0));
    incoming.accept(0, 0, part(&object, &table, 0)).unwrap();
    assert_eq!(incoming.finish().unwrap().unwrap().0, table.object);
    assert_eq!(store.get(table.object).unwrap(), object);
    assert!(!path.exists() && !record.exists());
}

#[test]
fn who_lies_about_a_digest_writes_nowhere_near_the_truth() {
    let (_folder, store, object, table, layout) = scene();
    let garbage = vec![0x5a; object.len()];
    let lie = ChunkTable { object: table.object, ..ChunkTable::of(&garbage) };
    let liar = || store.receive(lie.clone(), layout.clone()).unwrap();
    let honest = || store.receive(table.clone(), layout.clone()).unwrap();

    // First of all, and while the truth is under way: a whole chunk that is no model, and half a one.
    liar().accept(0, 0, part(&garbage, &lie, 0)).unwrap_err();
    let mut incoming = honest();
    for index in 0..2 {
        incoming.accept(index, 0, part(&object, &table, index)).unwrap();
    }
    liar().accept(0, 0, part(&garbage, &lie, 0)).unwrap_err();
    liar().accept(1, 0, &garbage[..1000]).unwrap();
    // In between two attempts.
    drop(incoming);
    liar().accept(0, 0, part(&garbage, &lie, 0)).unwrap_err();
    let narrow = Layout::new(&Architecture { n1: 20, n2: 24, n3: 28, m: 40 }, Extras::NONE);
    let mut other = store.receive(table.clone(), narrow).unwrap();
    other.accept(0, 0, part(&object, &table, 0)).unwrap_err();
    let mut incoming = honest();
    let count = u32::try_from(table.chunks.len()).unwrap();
    assert_eq!(incoming.missing(), (2..count).collect::<Vec<_>>());
    for index in 2..count {
        liar().accept(index, 0, &garbage[..1000]).unwrap();
        incoming.accept(index, 0, part(&object, &table, index)).unwrap();
    }
    assert_eq!(incoming.finish().unwrap().unwrap().0, table.object);
    assert_eq!(store.get(table.object).unwrap(), object);
}

#[tokio::test]
async fn a_broken_off_transfer_holds_its_claim_until_nothing_writes() {
    let (_folder, store, object, table, layout) = scene();
    let pieces: Vec<_> = object[..PIECE_BYTES * 24].chunks(PIECE_BYTES).enumerate().collect();
    let each = table.chunk_bytes as usize / PIECE_BYTES;
    let chunk = |(n, data): &(usize, &[u8])| Chunk {
        index: u32::try_from(n / each).unwrap(),
        offset: u32::try_from(n % each * PIECE_BYTES).unwrap(),
        data: data.to_vec().into(),
        ..Chunk::default()
    };
    let chunks: Vec<_> = pieces.iter().map(|piece| Ok(chunk(piece))).collect();
    let (all, over) = tokio::sync::oneshot::channel();
    let end = std::iter::once_with(move || all.send(()));
    let silence = tokio_stream::iter(end).then(|_| std::future::pending());
    let incoming = store.receive(table.clone(), layout.clone()).unwrap();
    let busy = store.receive(table.clone(), layout.clone());
    assert!(matches!(busy, Err(Error::Busy(object)) if object == table.object));
    let work = tokio::spawn(receive(incoming, tokio_stream::iter(chunks).chain(silence)));
    over.await.unwrap();
    work.abort();
    let again = loop {
        match store.receive(table.clone(), layout.clone()) {
            Err(Error::Busy(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(again.here(), (PIECE_BYTES * pieces.len()) as u64);
}
