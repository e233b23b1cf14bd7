//! Damaged and hostile files cost no more memory than an honest one. On its own, because it reads the
//! high-water mark of the whole process.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use rondo_learn::import;

const GOLDEN: &[u8] = include_bytes!("golden/published_layout_narrow.tar");
/// What thousands of refused files may add to the process: the longest pickle that is read costs
/// some 20 MB, this file's tensors half a megabyte.
const BOUND_KIB: u64 = 48 * 1024;

fn high_water_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|w| w == what).unwrap()
}

/// The file with `pickle` in the place of its own, as long as that, and a checksum that fits.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    let mut bytes = GOLDEN.to_vec();
    let start = find(&bytes, b"\x80\x02}q\0(X\x04\0\0\0iter");
    let first = find(&bytes, b"PK\x01\x02");
    bytes[start..start + pickle.len()].copy_from_slice(pickle);
    bytes[first + 16..first + 20].copy_from_slice(&crc32fast::hash(pickle).to_le_bytes());
    bytes
}

#[test]
fn damage_costs_no_memory() {
    let start = find(GOLDEN, b"\x80\x02}q\0(X\x04\0\0\0iter");
    let pickle = &GOLDEN[start..start + 31_844];
    assert!(import::any(&with_pickle(pickle)).is_ok(), "the pickle is found");
    let before = high_water_kib();
    let mut refused = 0;
    for at in (0..pickle.len()).step_by(41) {
        for value in [0xff, 0x7f, b'(', b'j'] {
            let mut bad = pickle.to_vec();
            bad[at] = value;
            refused += u32::from(import::any(&with_pickle(&bad)).is_err());
        }
    }
    for fill in
        [&b"("[..], b"}", b"]", b")\x85", b"X\xff\xff\xff\xff", b"\x8a\xff", b"N0", b"Nq\0h\0"]
    {
        let mut bad = fill.repeat(pickle.len() / fill.len() + 1);
        bad.truncate(pickle.len());
        refused += u32::from(import::any(&with_pickle(&bad)).is_err());
    }
    for at in (0..GOLDEN.len()).step_by(97) {
        refused += u32::from(import::any(&GOLDEN[..at]).is_err());
        let mut bad = GOLDEN.to_vec();
        bad[at] ^= 0xff;
        refused += u32::from(import::any(&bad).is_err());
    }
    // Lengths that claim more than there is, in a safetensors header.
    for length in [u64::MAX, 1 << 40, 1 << 20, 200] {
        let header = br#"{"branch1.0.0.weight":{"dtype":"F32","shape":[4294967295,4294967295],"data_offsets":[0,18446744073709551615]}}"#;
        let bytes = [&length.to_le_bytes()[..], header, &[b' '; 200]].concat();
        refused += u32::from(import::any(&bytes).is_err());
    }
    let grown = high_water_kib() - before;
    println!("{refused} files refused, {grown} KiB more than before");
    assert!(refused > 6000 && grown < BOUND_KIB, "{refused} refused, {grown} KiB");
}
