//! Pickles that want something else than tensors.

use super::super::pickle;
use super::*;
use proptest::prelude::{Strategy, prop, prop_assert, prop_oneof, proptest};

fn read(bytes: &[u8]) -> Result<String, String> {
    let archive = Archive::default();
    let values = pickle::read(bytes, &archive, false).map_err(|e| e.to_string())?;
    Ok(format!("{:?}", values.get(values.root)))
}

fn refuse(bytes: &[u8]) -> String {
    read(bytes).unwrap_err()
}

fn golden_pickle() -> &'static [u8] {
    Archive::open(GOLDEN).unwrap().get("data.pkl").unwrap()
}

#[test]
fn plain_values_are_read() {
    for (bytes, expected) in [
        (&b"\x80\x02N."[..], "None"),
        (b"K\x07.", "Int(7)"),
        (b"M\x01\x02.", "Int(513)"),
        (b"J\xff\xff\xff\xff.", "Int(-1)"),
        (b"\x8a\x00.", "Int(0)"),
        (b"\x8a\x02\x00\x80.", "Int(-32768)"),
        (b"G?\xf0\0\0\0\0\0\0.", "Float(1.0)"),
        (b"X\x02\0\0\0ab.", "Text(\"ab\")"),
        (b"X\x01\0\0\0aq\x000h\0.", ""),
    ] {
        match expected {
            "" => assert!(read(bytes).is_err()),
            expected => assert_eq!(read(bytes).as_deref(), Ok(expected)),
        }
    }
}

#[test]
fn nothing_is_executed() {
    for name in [
        "os\nsystem",
        "posix\nsystem",
        "builtins\neval",
        "__builtin__\ngetattr",
        "torch\nload",
        "torch._utils\n_rebuild_tensor",
        "torch.storage\n_load_from_bytes",
        "collections\nOrderedDict.update",
        "collections\ndefaultdict",
        "torch\nFloatStorage.__reduce__",
    ] {
        let found = refuse(format!("c{name}\n(X\x04\0\0\0true").as_bytes());
        assert!(found.contains(&format!("`{}`", name.replace('\n', "."))), "{found}");
        assert!(found.contains("nothing is executed"), "{found}");
    }
    // Every instruction that makes or asks for an object by another way, or that is not needed.
    for code in *b"io\x81\x82\x83\x84\x92\x93P0124FILSTUVdl\x8b\x8c\x8d\x8e\x8f\x90\x91\x94\x95\x96\x97\x98B C" {
        let found = refuse(&[b'N', code]);
        let name = format!("instruction 0x{code:02x} at byte 1");
        assert!(found.contains(&name), "{found}");
    }
    for bytes in [&b"N)R."[..], b"X\x01\0\0\0a)R.", b"])R.", b"ctorch\nFloatStorage\n)R."] {
        assert!(refuse(bytes).contains("is called") || refuse(bytes).contains("is made from"));
    }
    let made = b"ccollections\nOrderedDict\n(K\x01tR.";
    assert!(refuse(made).contains("cannot be made of"));
    let state = b"ccollections\nOrderedDict\n)R}X\x09\0\0\0__class__Nsb.";
    assert!(refuse(state).contains("a state is set"));
}

#[test]
fn limits_hold() {
    for (bytes, word) in [
        ([b"(".repeat(1000), b".".to_vec()].concat(), "32 nested containers"),
        (b"N".repeat(20_000), "8192 waiting values"),
        ([b"]".to_vec(), b"q\0".repeat(200_000)].concat(), "100000 instructions"),
        (b"X\xff\xff\xff\xffa".to_vec(), "256 bytes of a text"),
        (b"\x8a\xff".to_vec(), "8 bytes of a whole number"),
        (b"\x8b\xff\xff\xff\x7f".to_vec(), "0x8b"),
        ([b"c".to_vec(), b"a".repeat(5000)].concat(), "cut off"),
        (b"\x80\x04".to_vec(), "protocol"),
        (b"N.N".to_vec(), "left over"),
        (b"NN.".to_vec(), "left over"),
        (b".".to_vec(), "value is missing"),
        (b"N(.".to_vec(), "value is missing"),
        (b"N(\x85".to_vec(), "value is missing"),
        (b"t".to_vec(), "never began"),
        (b"h\x05".to_vec(), "never kept"),
        (b"NNNs".to_vec(), "no dictionary"),
        (b"}(Nu".to_vec(), "no dictionary"),
        (b"NNa".to_vec(), "no list"),
        (b"X\x01\0\0\0\xff".to_vec(), "not UTF-8"),
        (b"NQ".to_vec(), "none to a storage"),
        (Vec::new(), "cut off"),
    ] {
        let found = refuse(&bytes);
        assert!(found.contains(word), "{word}: {found}");
    }
    // A value a hundred thousand deep, and one that holds itself, cost nothing to read or drop.
    assert!(read(&[b")".to_vec(), b"\x85".repeat(90_000), b".".to_vec()].concat()).is_ok());
    assert!(read(b"]q\0h\0a.").is_ok());
}

#[test]
fn a_damaged_pickle_of_a_checkpoint_never_panics() {
    let archive = Archive::open(GOLDEN).unwrap();
    let good = golden_pickle();
    for at in (0..good.len()).step_by(11) {
        let mut bad = good.to_vec();
        bad[at] ^= [1, 0x80, 0xff][at % 3];
        if let Ok(values) = pickle::read(&bad, &archive, false) {
            let _ = published::read(&values, GOLDEN.len());
        }
    }
    for end in (0..good.len()).step_by(37) {
        assert!(pickle::read(&good[..end], &archive, false).is_err(), "cut at {end}");
    }
}

/// Instructions the machine knows, with arguments that often fit.
fn program() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(&b"(N})]tsuaeQRb\x85\x86\x87\x88\x89"[..]).prop_map(|c| vec![c]),
        (prop::sample::select(&b"qhK"[..]), 0_u8..6).prop_map(|(c, n)| vec![c, n]),
        prop::sample::select(vec!["storage", "0", "cpu", "_metadata"]).prop_map(|text| {
            [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
        }),
        prop::sample::select(vec![
            "collections\nOrderedDict",
            "torch._utils\n_rebuild_tensor_v2",
            "torch._utils\n_rebuild_parameter",
            "torch\nFloatStorage",
        ])
        .prop_map(|name| format!("c{name}\n").into_bytes()),
        prop::collection::vec(prop::num::u8::ANY, 1..4),
    ];
    prop::collection::vec(piece, 0..200).prop_map(|pieces| [pieces.concat(), vec![b'.']].concat())
}

proptest! {
    #[test]
    fn random_bytes_end(bytes in prop::collection::vec(prop::num::u8::ANY, 0..2000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn random_programs_end(bytes in program()) {
        let archive = Archive::open(GOLDEN).unwrap();
        if let Ok(values) = pickle::read(&bytes, &archive, false) {
            prop_assert!(published::read(&values, GOLDEN.len()).is_err());
        }
    }

    #[test]
    fn random_files_are_refused(bytes in prop::collection::vec(prop::num::u8::ANY, 0..2000)) {
        prop_assert!(super::super::any(&bytes).is_err());
        prop_assert!(super::super::any(&[ZIP, &bytes].concat()).is_err());
    }
}
