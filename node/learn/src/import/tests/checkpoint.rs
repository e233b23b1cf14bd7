//! Whole files: what is read from good ones, and which entry a refusal names.

use super::*;
use rondo::checkpoint::{Extras, Measure};

#[test]
fn the_golden_checkpoint_is_read_to_the_bit() {
    let read = any(GOLDEN).unwrap();
    assert_eq!((read.format, read.iterations), (Format::Published, 5));
    assert_eq!(read.weights.architecture, Architecture { n1: 4, n2: 6, n3: 8, m: 12 });
    let end = SafeTensors::deserialize(GOLDEN_END).unwrap();
    let expected = Weights::from_tensors(read.weights.architecture, Extras::NONE, |name| {
        let view = end.tensor(&format!("end.{name}")).ok()?;
        Some(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    });
    assert_eq!(Weights { optimizer: None, ..read.weights.clone() }, expected.unwrap());

    let adam = read.weights.optimizer.as_ref().unwrap();
    assert_eq!((adam.step, adam.learning_rate), (5, 0.001));
    assert!(adam.maximum.iter().zip(&adam.second).all(|(max, now)| max >= now));
    // As PyTorch sums them, and the first and last number of each.
    let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
    for (values, total, ends) in [
        (&adam.first, 16.646_520_320_772_538, [-0.028_896_103, -2.010_172_4]),
        (&adam.second, 6.514_768_925_722_969, [0.002_533_211_4, 0.121_415_49]),
        (&adam.maximum, 6.514_961_680_676_755, [0.002_533_211_4, 0.121_415_49]),
    ] {
        assert!((sum(values) / total - 1.0).abs() < 1e-9, "{} {total}", sum(values));
        assert_eq!([values[0], values[values.len() - 1]], ends);
    }
    let canonical = read.weights.to_bytes();
    let again = any(&canonical).unwrap();
    assert_eq!((again.format, again.weights), (Format::Canonical, read.weights));
}

#[test]
fn every_way_of_writing_the_same_model_is_read_the_same() {
    let model = Model::new();
    let big = || Save { big_endian: true, ..Save::new() };
    for bytes in [
        model.bytes(),
        model.save(Save::new(), true),
        model.save(big(), false),
        model.save(Save { silent: true, ..Save::new() }, true),
        model.save(Save { device: "cpu", ..Save::new() }, false),
    ] {
        let read = any(&bytes).unwrap();
        assert_eq!(read.weights, model.weights);
        assert_eq!((read.iterations, read.format), (7, Format::Published));
        assert_eq!(read.notes.len(), 1, "{:?}", read.notes);
    }
    let bare = Model::without_adam();
    assert_eq!(any(&bare.bytes()).unwrap().weights, bare.weights);

    let mut half = model.clone();
    let bias = &mut half.state.iter_mut().find(|(n, _)| n == "branch1.2.bn1.weight").unwrap().1;
    *bias = Written::new("BFloat16Storage", [0x80, 0x3f].repeat(3), &[3]);
    let read = any(&half.bytes()).unwrap();
    assert_eq!(read.weights, model.weights, "γ of a fresh model is 1");
    assert!(read.notes.iter().any(|n| n.contains("BF16 are converted")), "{:?}", read.notes);

    // A kernel that lies in its storage with the input channels first, behind two other numbers.
    let mut turned = model.clone();
    let (name, kernel) = turned.state.iter_mut().find(|(n, _)| n == "fc.0.0.weight").unwrap();
    assert_eq!((name.as_str(), &kernel.shape[..]), ("fc.0.0.weight", &[5, 8, 1, 1, 1][..]));
    let values: Vec<[u8; 4]> = kernel.data.as_chunks::<4>().0.to_vec();
    let mut data = vec![0xee; 8];
    (0..40).for_each(|i| data.extend(values[i % 5 * 8 + i / 5]));
    kernel.data = data;
    (kernel.offset, kernel.strides) = (2, vec![1, 5, 1, 1, 1]);
    assert_eq!(any(&turned.bytes()).unwrap().weights, model.weights);
}

/// Refusal of a model that was changed at one of its tensors.
fn changed(name: &str, change: impl FnOnce(&mut Written)) -> String {
    let mut model = Model::new();
    change(&mut model.state.iter_mut().find(|(n, _)| n == name).unwrap().1);
    refusal(&model.bytes())
}

#[test]
fn a_refusal_names_the_entry_of_the_state() {
    let mut model = Model::new();
    let all: Vec<String> = model.state.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(all.len(), 110);
    for (i, name) in all.iter().enumerate() {
        let mut less = model.clone();
        less.state.remove(i);
        assert_eq!(refusal(&less.bytes()), format!("entry `{name}` is missing"));
        let found = changed(name, |t| {
            match t.shape.last_mut() {
                Some(last) => *last *= 2,
                None => (t.shape, t.strides) = (vec![2], vec![1]),
            }
            t.data.extend(t.data.clone());
            t.strides.iter_mut().rev().skip(1).for_each(|stride| *stride *= 2);
        });
        assert!(found.contains(&format!("`{name}`")), "{found}");
    }
    let one = Written::floats(&[1], &[0.5]);
    model.state.push(("branch3.0.weight\u{7}".to_owned(), one.clone()));
    assert!(refusal(&model.bytes()).contains("entry `branch3.0.weight\\u{7}` is none"));
    model.state.pop();
    model.state.push(("fc.2.bias".to_owned(), one));
    assert!(refusal(&model.bytes()).contains("`state_dict.fc.2.bias` is there twice"));

    let nan = changed("fc.1.1.running_var", |t| t.data[4..8].copy_from_slice(&[0xff; 4]));
    assert!(nan.contains("`fc.1.1.running_var`") && nan.contains("not finite"), "{nan}");
    let whole = changed("fc.1.1.weight", |t| {
        t.kind = "LongStorage";
        t.data = vec![0; 40];
    });
    assert!(whole.contains("`fc.1.1.weight` is I64"), "{whole}");
    let count = changed("fc.1.1.num_batches_tracked", |t| t.data = vec![0xff; 8]);
    assert!(count.contains("`fc.1.1.num_batches_tracked` is I64"), "{count}");
}

#[test]
fn a_tensor_stays_within_its_storage() {
    let kernel = |change: fn(&mut Written)| changed("branch1.1.0.weight", change);
    for (found, word) in [
        (kernel(|t| t.claimed = Some(1_000_000)), "claims 1000000 numbers F32, but has 432 bytes"),
        (kernel(|t| t.claimed = Some(-1)), "claims -1"),
        (kernel(|t| drop(t.data.split_off(400))), "reaches beyond its storage of 100"),
        (kernel(|t| t.key = Some("../../etc/passwd")), "`../../etc/passwd`"),
        (kernel(|t| t.key = Some("999")), "is not in the file"),
        (kernel(|t| t.offset = 1), "reaches beyond"),
        (kernel(|t| t.offset = -1), "negative"),
        (kernel(|t| t.strides[0] = 0x7fff_ffff), "reaches beyond"),
        (kernel(|t| t.strides = vec![0; 5]), "overlap"),
        (kernel(|t| t.strides = vec![1; 5]), "overlap"),
        (kernel(|t| t.shape = vec![0x7fff_ffff; 5]), "reaches beyond"),
        (kernel(|t| t.shape = vec![1; 40]), "axes"),
        (kernel(|t| t.shape.truncate(4)), "axes"),
        (kernel(|t| t.kind = "QInt8Storage"), "`torch.QInt8Storage`"),
    ] {
        assert!(found.contains(word), "{word}: {found}");
    }
}

#[test]
fn a_refusal_names_the_entry_of_the_optimizer() {
    let change = |change: fn(&mut Model)| {
        let mut model = Model::new();
        change(&mut model);
        refusal(&model.bytes())
    };
    for (found, word) in [
        (change(|m| drop(m.adam.pop())), "`optim_dict.state.55 (fc.2.bias)` is missing"),
        (change(|m| m.adam.push(m.adam[0].clone())), "`optim_dict.state.56`"),
        (change(|m| drop(m.adam[3].0.pop())), "`optim_dict.state.3.max_exp_avg_sq (branch1.1.0"),
        (change(|m| m.adam[3].0[1].0 = "sum"), "`optim_dict.state.3.exp_avg_sq (branch1.1.0"),
        (
            change(|m| m.adam[2].0.push(("sum", Written::floats(&[], &[1.0])))),
            "`optim_dict.state.2.sum` is none",
        ),
        (change(|m| m.adam.swap(0, 1)), "`optim_dict.state.0.exp_avg` has shape [2]"),
        (change(|m| m.adam[9].1 = 8.0), "`optim_dict.state.9.step`"),
        (change(|m| m.adam.iter_mut().for_each(|a| a.1 = 0.5)), "step` is not a count"),
        (change(|m| m.adam.iter_mut().for_each(|a| a.1 = 1e9)), "step` is not a count"),
    ] {
        assert!(found.contains(word), "{word}: {found}");
    }
}

#[test]
fn without_amsgrad_the_last_second_moment_is_the_largest_known() {
    let mut model = Model::new();
    model.amsgrad = false;
    model.adam.iter_mut().for_each(|(three, _)| three.truncate(2));
    let moments = any(&model.bytes()).unwrap().weights.optimizer.unwrap();
    assert_eq!(moments.second, model.weights.optimizer.unwrap().second);
    assert_eq!(moments.maximum, moments.second);
}

#[test]
fn the_dictionary_itself_is_closed() {
    let write = |fill: &dyn Fn(&mut Save)| {
        let mut to = Save::new();
        to.raw(b"}(");
        fill(&mut to);
        to.raw(b"u");
        refusal(&to.finish())
    };
    let model = Model::without_adam();
    let iterations = |to: &mut Save| {
        to.text("iter");
        to.int(1);
    };
    assert!(write(&|to| model.write_state(to)).contains("`iter` is missing"));
    assert!(write(&iterations).contains("`state_dict` is missing"));
    let found = write(&|to| {
        iterations(to);
        model.write_state(to);
        to.text("epoch");
        to.int(1);
    });
    assert!(found.contains("`epoch` is none"), "{found}");
    let found = write(&|to| {
        to.text("iter");
        to.int(-1);
        model.write_state(to);
    });
    assert!(found.contains("`iter` is not a count"), "{found}");
    let found = write(&|to| {
        iterations(to);
        to.text("state_dict");
        to.raw(b"]q\0h\0a");
    });
    assert!(found.contains("`state_dict` is not a dictionary"), "{found}");
    let found = write(&|to| {
        iterations(to);
        to.text("state_dict");
        to.raw(b"}q\0h\0h\0s");
    });
    assert!(found.contains("`state_dict` has a key"), "{found}");
    // No optimizer, an empty one, and one that has made no step are the same.
    for nothing in [&b"N"[..], b"}"] {
        let mut to = Save::new();
        to.raw(b"}(");
        iterations(&mut to);
        model.write_state(&mut to);
        to.text("optim_dict");
        to.raw(nothing);
        to.raw(b"u");
        assert_eq!(any(&to.finish()).unwrap().weights, model.weights);
    }
}

#[test]
fn a_small_file_does_not_become_a_large_model() {
    // All kernels claim the widest network; each is there once, in one storage that all share.
    let wide = Architecture { n1: 512, n2: 512, n3: 512, m: 512 };
    let mut to = Save::new();
    to.raw(b"}(");
    to.text("iter");
    to.int(1);
    to.text("state_dict");
    to.raw(b"}(");
    let largest = 512 * 512 * 27;
    to.storages.push(vec![0; 2 * largest]);
    to.storages.push(vec![0; 8]);
    let mut entry = |name: &str, shape: &[u64], kind: &str, key: &str, count: usize| {
        to.text(name);
        to.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        to.text("storage");
        to.raw(format!("ctorch\n{kind}\n").as_bytes());
        to.text(key);
        to.text("cpu");
        to.int(count as i32);
        to.raw(b"tQK\0");
        to.sizes(shape);
        to.sizes(&(0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect::<Vec<_>>());
        to.raw(b"\x89}tR");
    };
    for TensorSpec { name, shape } in parameters(&wide) {
        entry(&name, &shape, "HalfStorage", "0", largest);
        if let Some(norm) = name.strip_suffix(".bias").filter(|norm| *norm != "fc.2") {
            for part in ["running_mean", "running_var"] {
                entry(&format!("{norm}.{part}"), &[512], "HalfStorage", "0", largest);
            }
            entry(&format!("{norm}.num_batches_tracked"), &[], "LongStorage", "1", 1);
        }
    }
    to.raw(b"uu");
    let found = refusal(&to.finish());
    assert!(found.contains("they share their numbers"), "{found}");
}

#[test]
fn a_damaged_file_is_refused_or_read_the_same() {
    let whole = any(GOLDEN).unwrap();
    for end in (0..GOLDEN.len()).step_by(97) {
        assert!(any(&GOLDEN[..end]).is_err(), "cut at {end}");
    }
    let mut bytes = GOLDEN.to_vec();
    for at in (0..GOLDEN.len()).step_by(199) {
        bytes[at] ^= 0x10;
        if let Ok(read) = any(&bytes) {
            assert!(read == whole, "byte {at}");
        }
        bytes[at] ^= 0x10;
    }
}

#[test]
fn files_of_other_kinds_are_told_apart() {
    assert_eq!(any(&[LEGACY, b"rest"].concat()), Err(Error::Legacy));
    for bytes in [&b""[..], b"short", &[0xff; 100], b"\x02\0\0\0\0\0\0\0[]"] {
        assert!(matches!(any(bytes), Err(Error::Safetensors(_))), "{bytes:?}");
    }
    let found = refusal(&zip(&[Entry::new("archive/code/a.py", b"")], false));
    assert!(found.contains("not of torch.save"), "{found}");
}

/// A safetensors file of these tensors, in this order.
fn safetensors_file(tensors: &[(String, &str, &[u64], Vec<u8>)], metadata: bool) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    if metadata {
        header.insert("__metadata__".to_owned(), serde_json::json!({"format": "pt"}));
    }
    for (name, kind, shape, bytes) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({"dtype": kind, "shape": shape, "data_offsets": range});
        header.insert(name.clone(), entry);
        data.extend_from_slice(bytes);
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

#[test]
fn safetensors_of_pytorch_are_read_in_any_order_and_type() {
    // Every value of these weights is a multiple of 1/4, so each type holds it exactly.
    let mut weights = Model::new().weights;
    weights.importance = Some((Measure::Mas, weights.parameters.iter().map(|p| p.abs()).collect()));
    let coarse = |list: &mut Vec<f32>| list.iter_mut().for_each(|v| *v = (*v * 4.0).round() / 4.0);
    coarse(&mut weights.parameters);
    coarse(&mut weights.mean);
    coarse(&mut weights.variance);
    let bytes = weights.to_bytes();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shapes: Vec<(String, Vec<u64>)> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().iter().map(|n| *n as u64).collect()))
        .collect();
    let entry = |i: usize, kind| {
        let (name, shape) = &shapes[i];
        let beside = name.starts_with("optimizer.") || name.starts_with("importance.");
        let kind = if beside { "F32" } else { kind };
        let values = file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        let numbers = values.into_iter().map(f32::from_le_bytes);
        let data: Vec<u8> = match kind {
            "F64" => numbers.flat_map(|v| f64::from(v).to_le_bytes()).collect(),
            "F16" => numbers.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
            "BF16" => numbers.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            _ => numbers.flat_map(f32::to_le_bytes).collect(),
        };
        (name.clone(), kind, &shape[..], data)
    };
    let counted = |list: &mut Vec<_>| {
        for (name, _) in &shapes {
            if let Some(norm) = name.strip_suffix(".running_mean") {
                let count = 9_i64.to_le_bytes().to_vec();
                list.push((format!("{norm}.num_batches_tracked"), "I64", &[][..], count));
            }
        }
    };
    for kind in ["F32", "F64", "F16", "BF16"] {
        let mut list: Vec<_> = (0..shapes.len()).rev().map(|i| entry(i, kind)).collect();
        counted(&mut list);
        let read = any(&safetensors_file(&list, true)).unwrap();
        assert_eq!((&read.weights, read.format), (&weights, Format::Safetensors), "{kind}");
        assert_eq!((read.iterations, read.notes.len()), (7, 1 + usize::from(kind != "F32")));
        let found = refusal(&safetensors_file(&list[1..], true));
        assert!(found.contains("is missing"), "{found}");
        list.pop();
        let found = refusal(&safetensors_file(&list, true));
        assert!(found.contains(".num_batches_tracked` is missing"), "{found}");
    }
    let plain: Vec<_> = (0..shapes.len()).rev().map(|i| entry(i, "F32")).collect();
    assert_eq!(any(&safetensors_file(&plain, false)).unwrap().weights, weights);
    let mut more = plain.clone();
    more.push(("notes".to_owned(), "F32", &[1], vec![0; 4]));
    assert!(refusal(&safetensors_file(&more, false)).contains("`notes` is none"));
    let mut other = plain.clone();
    other[0] = (other[0].0.clone(), "U8", &[4], vec![0; 4]);
    let found = refusal(&safetensors_file(&other, false));
    assert!(found.contains(&other[0].0) && found.contains("U8"), "{found}");
}
