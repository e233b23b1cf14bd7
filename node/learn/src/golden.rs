//! The numbers of this crate against PyTorch's, and that no comparison with them passes by itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::device::{Choice, Device};
use crate::import;
use crate::parity::{self, Check, Section, built_in};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;

const FORWARD: &str = "deepmedic_full_forward.safetensors";
const WEIGHTS: &str = "deepmedic_full_weights.safetensors";
const LOSSES: &str = "losses.safetensors";
const UPDATES: &str = "lwf_five_updates.safetensors";
const VOLUME: &str = "tiled_inference.safetensors";
const PUBLISHED: &str = "published_layout_narrow.tar";
const JSON: &str = "learning.json";
const FILES: [&str; 7] = [FORWARD, WEIGHTS, LOSSES, UPDATES, VOLUME, PUBLISHED, JSON];

/// Runs everything and demands that it passes; gives the number of checks.
fn all_pass(read: &parity::Read<'_>, choice: Choice) -> usize {
    let device = Device::open(choice).unwrap();
    let mut checks = Vec::new();
    let passed = parity::check(read, &device, &mut |check| checks.push(check));
    let failed: Vec<_> = checks.iter().filter(|c| !c.pass).collect();
    assert!(passed && failed.is_empty(), "{choice}: {failed:?}");
    assert!(checks.iter().all(|c| c.max_abs_error <= c.tolerance));
    checks.len()
}

#[test]
fn the_paper_s_network_and_five_updates() {
    let read =
        |name: &str| std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR")));
    // 3 of the network, 7 of each of 4 losses, 3 of each of 5 updates and 7 of their end, 4 of the
    // published checkpoint, 3 of the volume.
    assert_eq!(all_pass(&read, Choice::Cpu), 3 + 28 + 22 + 4 + 3);
    // The volume takes the pure Rust device half a minute; it has the small one below.
    let device = Device::open(Choice::Flex).unwrap();
    for section in [Section::Forward, Section::Losses, Section::Updates] {
        section.check(&read, &device, &mut |check| assert!(check.pass, "flex: {check:?}"));
    }
}

#[test]
fn the_small_directory_inside_the_program() {
    for choice in [Choice::Cpu, Choice::Flex] {
        assert_eq!(all_pass(&built_in, choice), 3 + 28 + 16 + 4 + 3);
    }
}

/// A tensor apart from its file.
type Loose = (Dtype, Vec<usize>, Vec<u8>);

/// A directory in memory, to be damaged.
#[derive(Clone)]
struct Directory(BTreeMap<&'static str, Vec<u8>>);

impl Directory {
    fn new() -> Self {
        Self(FILES.iter().map(|name| (*name, built_in(name).unwrap())).collect())
    }

    fn tensors(&self, file: &'static str) -> BTreeMap<String, Loose> {
        let tensors = SafeTensors::deserialize(&self.0[file]).unwrap();
        let loose =
            |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        tensors.tensors().into_iter().map(|(name, view)| (name, loose(view))).collect()
    }

    /// The directory with other tensors in `file`.
    fn with(&self, file: &'static str, edit: impl FnOnce(&mut BTreeMap<String, Loose>)) -> Self {
        let mut tensors = self.tensors(file);
        edit(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let mut other = self.clone();
        other.0.insert(file, bytes);
        other
    }

    /// The directory with every number of `tensor` changed.
    fn changed_all(&self, file: &'static str, tensor: &str, change: impl Fn(f32) -> f32) -> Self {
        self.with(file, |tensors| {
            for number in tensors.get_mut(tensor).unwrap().2.as_chunks_mut().0 {
                *number = change(f32::from_le_bytes(*number)).to_le_bytes();
            }
        })
    }

    /// The directory with the first number of `tensor` changed.
    fn changed(&self, file: &'static str, tensor: &str, change: impl Fn(f32) -> f32) -> Self {
        self.with(file, |tensors| {
            let (dtype, _, data) = tensors.get_mut(tensor).unwrap();
            if *dtype == Dtype::U8 {
                data[0] = change(f32::from(data[0])) as u8;
            } else {
                let value = f32::from_le_bytes(data[..4].try_into().unwrap());
                data[..4].copy_from_slice(&change(value).to_le_bytes());
            }
        })
    }

    fn json(&self, edit: impl FnOnce(&mut Value)) -> Self {
        let mut json = serde_json::from_slice(&self.0[JSON]).unwrap();
        edit(&mut json);
        let mut other = self.clone();
        other.0.insert(JSON, json.to_string().into_bytes());
        other
    }

    fn scaled(&self, pointer: &str, factor: f64) -> Self {
        self.json(|json| {
            let number = json.pointer_mut(pointer).unwrap();
            *number = json!(number.as_f64().unwrap() * factor);
        })
    }

    /// The directory with other bytes in the entries of the published checkpoint.
    fn published(&self, edit: impl Fn(&mut [u8])) -> Self {
        let mut other = self.clone();
        let zip = other.0.get_mut(PUBLISHED).unwrap();
        let word = |zip: &[u8], at: usize| {
            u32::from_le_bytes(zip[at..at + 4].try_into().unwrap()) as usize
        };
        let half = |zip: &[u8], at: usize| {
            usize::from(u16::from_le_bytes(zip[at..at + 2].try_into().unwrap()))
        };
        let end = zip.len() - 22;
        let (count, mut at) = (half(zip, end + 10), word(zip, end + 16));
        for _ in 0..count {
            let (size, local) = (word(zip, at + 24), word(zip, at + 42));
            let data = local + 30 + half(zip, local + 26) + half(zip, local + 28);
            edit(&mut zip[data..data + size]);
            let crc = crc32(&zip[data..data + size]).to_le_bytes();
            zip[at + 16..at + 20].copy_from_slice(&crc);
            if word(zip, local + 14) != 0 {
                zip[local + 14..local + 18].copy_from_slice(&crc);
            }
            if zip[data + size..].starts_with(b"PK\x07\x08") {
                zip[data + size + 4..data + size + 8].copy_from_slice(&crc);
            }
            at += 46 + half(zip, at + 28) + half(zip, at + 30) + half(zip, at + 32);
        }
        other
    }

    fn checks(&self, section: Section) -> Vec<Check> {
        let read = |name: &str| {
            self.0.get(name).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let device = Device::open(Choice::Cpu).unwrap();
        let mut checks = Vec::new();
        section.check(&read, &device, &mut |check| checks.push(check));
        checks
    }

    /// Names of the checks that fail.
    fn failing(&self, section: Section) -> Vec<String> {
        let checks = self.checks(section).into_iter().filter(|c| !c.pass);
        checks.inspect(|c| assert!(c.detail.is_some(), "{c:?}")).map(|c| c.check).collect()
    }

    /// Details of the checks that fail.
    fn complaints(&self, section: Section) -> String {
        let checks = self.checks(section).into_iter().filter(|c| !c.pass);
        checks.filter_map(|c| c.detail).collect::<Vec<_>>().join("\n")
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8)
            .fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

fn section_of(file: &str) -> Section {
    match file {
        FORWARD | WEIGHTS => Section::Forward,
        LOSSES => Section::Losses,
        UPDATES | PUBLISHED => Section::Updates,
        _ => Section::Volume,
    }
}

#[test]
fn every_golden_number_decides_its_own_check() {
    let good = Directory::new();
    for section in [Section::Forward, Section::Losses, Section::Updates, Section::Volume] {
        assert_eq!(good.failing(section), [""; 0], "{section:?}");
    }
    let fails = |directory: Directory, section: Section, expected: &[&str]| {
        assert_eq!(directory.failing(section), expected);
    };
    let off = |by: f32| move |v: f32| v + by;
    let evaluated = ["forward.eval", "forward.eval_unfolded"];
    fails(good.changed(FORWARD, "logits_eval", off(3e-4)), Section::Forward, &evaluated);
    fails(good.changed(FORWARD, "logits_train", off(-3e-4)), Section::Forward, &["forward.train"]);
    let volume = ["tiled.blocks_of_9", "tiled.blocks_of_2", "tiled.blocks_of_1"];
    let changed = good.changed(VOLUME, "prob", off(2e-4)).failing(Section::Volume);
    assert!(!changed.is_empty() && changed.iter().all(|c| volume.contains(&c.as_str())));
    assert_eq!(changed.len(), good.checks(Section::Volume).len());

    let json: Value = serde_json::from_slice(&good.0[JSON]).unwrap();
    for (i, case) in json["losses"].as_array().unwrap().iter().enumerate() {
        for key in case.as_object().unwrap().keys().filter(|key| *key != "case") {
            let parts: &[&str] = match key.split_once(['_', 'T']).map_or("ce", |(part, _)| part) {
                "ce" => &["ce"],
                "kdl" => &["kdl", "kdl_voxel_mean"],
                "total" => &["total"],
                _ if key.starts_with("vss_any") => &["vss_any_background"],
                _ => &["vss_all_background"],
            };
            let expected: Vec<String> = parts.iter().map(|p| format!("losses.{i}.{p}")).collect();
            // Where the number is below the floor of the scale, what is a bit beyond is more.
            let factor = if case[key].as_f64().unwrap() < 5e-3 { 2.0 } else { 1.0 + 2e-4 };
            let changed = good.scaled(&format!("/losses/{i}/{key}"), factor);
            assert_eq!(changed.failing(Section::Losses), expected);
        }
        let name = format!("{i}.grad_total");
        let most = SafeTensors::deserialize(&good.0[LOSSES]).unwrap();
        let most = most.tensor(&name).unwrap().data().as_chunks().0.iter();
        let most = most.map(|b| f32::from_le_bytes(*b).abs()).fold(0.0, f32::max);
        let changed = good.changed(LOSSES, &name, off(2e-4 * most));
        fails(changed, Section::Losses, &[&format!("losses.{i}.gradient")]);
    }

    for (i, key) in ["seg", "kdl", "total"].iter().enumerate() {
        let pointer = format!("/lwf_five_updates/losses/{i}/{key}");
        let expected = format!("updates.{i}.{key}");
        fails(good.scaled(&pointer, 1.0 - 2e-4), Section::Updates, &[&expected]);
    }
    for (tensor, part) in [
        ("branch1.3.conv2.weight", "parameters"),
        ("branch2.7.1.running_mean", "running_mean"),
        ("fc.1.1.running_var", "running_variance"),
    ] {
        let changed = good.changed(UPDATES, &format!("end.{tensor}"), off(2e-4));
        let expected = ["updates", "published"].map(|section| format!("{section}.{part}"));
        assert_eq!(changed.failing(Section::Updates), expected);
    }
}

#[test]
fn the_published_checkpoint_decides_its_own_checks() {
    let good = Directory::new();
    let weights = import::published(&good.0[PUBLISHED]).unwrap().weights;
    let adam = weights.optimizer.unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    // The first convolution has 27 numbers a channel, and its tensor is one entry.
    let first = weights.architecture.n1 as usize * 27;
    for (part, vector) in [
        ("published.parameters", &weights.parameters),
        ("updates.adam.first_moment", &adam.first),
        ("updates.adam.second_moment", &adam.second),
        ("updates.adam.maximum", &adam.maximum),
    ] {
        let wanted = bytes(&vector[..first]);
        // Second moments and maxima may be the same numbers: the checks that fail then name both.
        let same = |other: &[f32]| bytes(&other[..first]) == wanted;
        let changed = good.published(|entry| {
            if entry == wanted.as_slice() {
                for number in entry.chunks_exact_mut(4) {
                    let value = f32::from_le_bytes(number.try_into().unwrap()) * 1.002;
                    number.copy_from_slice(&value.to_le_bytes());
                }
            }
        });
        let failing = changed.failing(Section::Updates);
        assert!(failing.contains(&part.to_owned()), "{failing:?}");
        let most = if same(&adam.second) && same(&adam.maximum) { 2 } else { 1 };
        assert!(failing.len() <= most, "{failing:?}");
    }
    let steps = bytes(&[adam.step as f32]);
    let changed = good.published(|entry| {
        if entry == steps.as_slice() {
            entry.copy_from_slice(&9.0_f32.to_le_bytes());
        }
    });
    assert_eq!(changed.failing(Section::Updates), ["updates.adam.step"]);
    let rate = adam.learning_rate.to_be_bytes();
    let changed = good.published(|entry| {
        if let Some(at) = entry.windows(8).position(|w| w == rate) {
            entry[at..at + 8].copy_from_slice(&2e-3_f64.to_be_bytes());
        }
    });
    assert_eq!(changed.failing(Section::Updates), ["published.learning_rate"]);
}

#[test]
fn other_inputs_and_settings_are_noticed() {
    let good = Directory::new();
    let other = |file, tensor: &str, section| {
        let changed = good.changed_all(file, tensor, |v| 1.02 * v + 0.02);
        assert!(!changed.failing(section).is_empty(), "{file} {tensor}");
    };
    for tensor in ["x1", "x2"] {
        other(FORWARD, tensor, Section::Forward);
    }
    for tensor in ["branch1.0.0.weight", "branch2.5.1.running_var"] {
        other(WEIGHTS, tensor, Section::Forward);
        other(WEIGHTS, tensor, Section::Volume);
    }
    other(VOLUME, "volume", Section::Volume);
    for part in ["logits", "teacher"] {
        other(LOSSES, &format!("0.{part}"), Section::Losses);
    }
    let flip = |v: f32| 1.0 - v;
    assert!(!good.changed(LOSSES, "0.target", flip).failing(Section::Losses).is_empty());
    other(UPDATES, "x1.1", Section::Updates);
    assert!(!good.changed(UPDATES, "target.0", flip).failing(Section::Updates).is_empty());
    for (setting, factor) in [("weight_decay", 50.0), ("T", 1.01)] {
        let changed = good.scaled(&format!("/lwf_five_updates/{setting}"), factor);
        assert!(!changed.failing(Section::Updates).is_empty(), "{setting}");
    }
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let good = Directory::new();
    for file in FILES {
        let mut less = good.clone();
        less.0.remove(file);
        let section = if file == JSON { Section::Losses } else { section_of(file) };
        let complaint = less.complaints(section);
        assert!(complaint.contains(file), "{file}: {complaint}");
        let mut cut = good.clone();
        let bytes = cut.0.get_mut(file).unwrap();
        bytes.truncate(bytes.len() / 2);
        let complaint = cut.complaints(section);
        assert!(complaint.contains(file), "{file}: {complaint}");
    }
    for file in [FORWARD, WEIGHTS, LOSSES, UPDATES, VOLUME] {
        let section = section_of(file);
        let mut tensors: Vec<String> = good.tensors(file).into_keys().collect();
        tensors.retain(|name| !name.ends_with("num_batches_tracked"));
        // Every tensor is read by the same code; of the many of a model, some do.
        let few = tensors.len().div_ceil(12);
        for name in tensors.iter().step_by(few) {
            let quoted = format!("`{name}`");
            let missing = good.with(file, |all| drop(all.remove(name))).complaints(section);
            assert!(missing.contains(&quoted) && missing.contains("missing"), "{name}: {missing}");
            let flat = good.with(file, |all| {
                let (_, shape, data) = all.get_mut(name).unwrap();
                *shape = vec![data.len() / 4 * 2, 2];
                data.resize(data.len() / 4 * 16, 0);
                all.get_mut(name).unwrap().0 = Dtype::F32;
            });
            let flat = flat.complaints(section);
            assert!(flat.contains(&quoted), "{name}: {flat}");
            let float = good.tensors(file)[name].0 == Dtype::F32;
            for bad in [f32::NAN, f32::INFINITY] {
                let bad = good.changed(file, name, |_| if float { bad } else { 7.0 });
                let bad = bad.complaints(section);
                assert!(bad.contains(&quoted), "{name}: {bad}");
            }
        }
    }
    let extra = |file, name: &str| {
        let more = good.with(file, |all| {
            all.insert(name.to_owned(), (Dtype::F32, vec![1], vec![0; 4]));
        });
        let complaint = more.complaints(section_of(file));
        assert!(complaint.contains(&format!("`{name}`")), "{complaint}");
    };
    extra(LOSSES, "77.logits");
    extra(UPDATES, "x1.77");
    extra(UPDATES, "end.branch1.9.weight");
}

#[test]
fn a_damaged_json_file_is_named() {
    let good = Directory::new();
    let mut text = good.clone();
    text.0.insert(JSON, br#"{"losses": [{"case": 0, "ce": NaN}]}"#.to_vec());
    for (section, directory, word) in [
        (Section::Losses, text.clone(), "learning.json"),
        (Section::Updates, text, "learning.json"),
        (Section::Losses, good.json(|j| j["losses"] = json!([])), "no case"),
        (Section::Losses, good.json(|j| j["losses"][1]["ce"] = json!("1")), "`ce`"),
        (Section::Losses, good.json(|j| j["losses"][1]["total_lambda9e9"] = json!(1)), "twice"),
        (Section::Updates, good.json(|j| j["lwf_five_updates"]["losses"] = json!([])), "no update"),
        (Section::Updates, good.json(|j| j["lwf_five_updates"]["lr"] = json!(-1)), "learning_rate"),
        (
            Section::Updates,
            good.json(|j| j["lwf_five_updates"]["widths"]["m"] = json!(9)),
            "widths",
        ),
        (Section::Updates, good.json(|j| j["lwf_five_updates"] = json!(7)), "lwf_five_updates"),
    ] {
        let complaint = directory.complaints(section);
        assert!(complaint.contains(word), "{word}: {complaint}");
    }
    let more = good.json(|j| j["losses"][0]["dice"] = json!(0.5)).checks(Section::Losses);
    let noted = more.iter().find(|c| c.check == "losses.0.ce").unwrap();
    assert!(noted.pass && noted.detail.as_ref().unwrap().contains("not checked: dice"));
}

#[test]
fn a_map_of_the_weights_as_stored_is_accepted_too() {
    let good = Directory::new();
    let first = &good.checks(Section::Volume)[0];
    assert!(first.detail.as_ref().unwrap().contains("in the running statistics"), "{first:?}");
    // Another forward batch: its pass is not in the map, so neither state agrees.
    let other = good.changed_all(FORWARD, "x1", |v| 2.0 * v);
    assert!(other.complaints(Section::Volume).contains("nor do the weights as stored"));
    let mut alone = good.clone();
    alone.0.remove(FORWARD);
    assert!(alone.complaints(Section::Volume).contains(FORWARD));
}

#[test]
fn what_is_no_number_never_passes() {
    for (found, expected) in [
        (vec![1.0, f64::NAN, 9.0], vec![1.0, 1.0, 9.0]),
        (vec![f64::NAN], vec![f64::NAN]),
        (vec![f64::INFINITY], vec![f64::INFINITY]),
        (vec![1.0], vec![1.0, 1.0]),
        (vec![], vec![]),
    ] {
        let check = Check::compare("x", &found, &expected, 1.0, 1e9);
        assert!(!check.pass && check.max_abs_error.is_nan(), "{check:?}");
        assert!(serde_json::to_string(&check).unwrap().contains(r#""max_abs_error":null"#));
    }
    let infinite = Check::compare("x", &[f64::INFINITY], &[0.0], 1.0, 1e9);
    assert!(!infinite.pass);
    assert!(Check::compare("x", &[1.0, 2.0], &[1.0, 2.5], 1.0, 0.5).pass);
    let check = Check::relative("x", 101.0, 100.0, 1.0, 0.005);
    assert!(!check.pass && (check.max_abs_error - 0.01).abs() < 1e-12);
    let line = serde_json::to_string(&Check::relative("x", 1.0, 1.0, 1.0, 0.5)).unwrap();
    assert_eq!(line, r#"{"check":"x","max_abs_error":0.0,"tolerance":0.5,"pass":true}"#);
}
