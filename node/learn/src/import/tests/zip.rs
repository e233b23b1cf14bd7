//! Zips that are not of `torch.save`, refused before a pickle is looked at.

use super::*;

fn good() -> Vec<Entry> {
    let mut list = vec![Entry::new("m/data.pkl", b"N."), Entry::new("m/version", b"3\n")];
    list.push(Entry::new("m/data/0", &[1, 2, 3, 4]));
    list
}

fn refuse(list: &[Entry]) -> String {
    super::super::archive::Archive::open(&zip(list, false)).unwrap_err().to_string()
}

fn with(change: impl FnOnce(&mut Entry)) -> String {
    let mut list = good();
    change(&mut list[2]);
    refuse(&list)
}

#[test]
fn entries_are_pieces_of_the_file() {
    for large in [false, true] {
        let bytes = zip(&good(), large);
        let archive = Archive::open(&bytes).unwrap();
        assert_eq!(archive.storage("0"), Some(&[1, 2, 3, 4][..]), "zip64: {large}");
        assert_eq!(archive.get("data.pkl"), Some(&b"N."[..]));
        for key in ["", "1", "../0", "0/../0", "x", "00000000000", "-0"] {
            assert_eq!(archive.storage(key), None, "{key}");
        }
    }
}

#[test]
fn departures_are_refused_by_the_name_of_the_entry() {
    for (found, word) in [
        (with(|e| e.method = 8), "compressed"),
        (with(|e| e.flags = 1), "encrypted"),
        (with(|e| e.crc = 1), "does not match its checksum"),
        (with(|e| e.size = 1_000_000), "outside the file"),
        (with(|e| e.size = 0xffff_fff0), "outside the file"),
        (with(|e| e.shift = 0_u32.wrapping_sub(41)), "not the one that the directory lists"),
        (with(|e| e.shift = 0x7fff_ffff), "outside the file"),
        (with(|e| e.name = "m/version".to_owned()), "is there twice"),
    ] {
        assert!(found.contains(word) && found.contains("`m/"), "{word}: {found}");
    }
    for name in ["m/../x", "n/data/0", "/data/1", "m/data/../1", "m/code/a.py", "m\\data\\0"] {
        let found = with(|e| e.name = name.to_owned());
        assert!(found.contains("is none of those that torch.save writes"), "{found}");
        assert!(found.contains(&name.escape_default().to_string()), "{found}");
    }
    assert!(with(|e| e.name = "m/\u{1b}[31m".to_owned()).contains("\\u{1b}"));
    assert!(with(|e| e.name = format!("m/{}", "x".repeat(600))).contains("more than 512 bytes"));
    assert!(refuse(&good()[1..]).contains("no `data.pkl`"));
}

#[test]
fn entries_do_not_share_bytes() {
    // The second entry lies inside the data of the first, with a header of its own.
    let inner = zip(&[Entry::new("m/version", b"3\n")], false);
    let size = inner.len() as u32;
    let mut outer = Entry::new("m/data/0", &inner);
    outer.flags = 0;
    let place = 30 + outer.name.len() as u32;
    let mut second = Entry::new("m/version", b"3\n");
    let pickle = Entry::new("m/data.pkl", b"N.");
    second.shift = place.wrapping_sub(place + size);
    let found = refuse(&[outer, second, pickle]);
    assert!(found.contains("`m/version` overlaps another one"), "{found}");
}

#[test]
fn a_directory_that_lies_is_refused() {
    let bytes = zip(&good(), false);
    let end = bytes.len() - 22;
    let change = |at: usize, value: &[u8]| {
        let mut bad = bytes.clone();
        bad[end + at..end + at + value.len()].copy_from_slice(value);
        Archive::open(&bad).unwrap_err().to_string()
    };
    assert!(change(20, &[1]).contains("comment"));
    assert!(change(4, &[1]).contains("part of a zip"));
    assert!(change(8, &[9, 0, 9, 0]).contains("directory"));
    assert!(change(8, &[2, 0, 2, 0]).contains("holds more than it says"));
    assert!(change(8, &[0xff, 0xfe, 0xff, 0xfe]).contains("65279 entries"));
    assert!(change(12, &[0xff; 4]).contains("does not lie where"));
    assert!(change(16, &[0; 4]).contains("does not lie where"));
    let large = zip(&good(), true);
    for at in large.len() - 98..large.len() {
        let mut bad = large.clone();
        bad[at] ^= 0x5a;
        // The versions in the record say nothing; everything else is looked at.
        let ignored = (large.len() - 86..large.len() - 82).contains(&at);
        assert_eq!(Archive::open(&bad).is_ok(), ignored, "byte {at} of {}", large.len());
    }
}
