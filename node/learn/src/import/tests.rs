#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod checkpoint;
mod machine;
mod zip;

use super::*;
use crate::checkpoint::Moments;
use rondo::checkpoint::{TensorSpec, parameters};

const GOLDEN: &[u8] = include_bytes!("../../tests/golden/published_layout_narrow.tar");
const GOLDEN_END: &[u8] = include_bytes!("../../tests/golden/lwf_five_updates.safetensors");
const NARROW: Architecture = Architecture { n1: 2, n2: 3, n3: 4, m: 5 };

/// An entry of a zip to be written, and what may be wrong with it.
#[derive(Clone, Default)]
struct Entry {
    name: String,
    data: Vec<u8>,
    method: u16,
    flags: u16,
    /// Added to the checksum, the listed size and the listed place.
    crc: u32,
    size: u32,
    shift: u32,
}

impl Entry {
    fn new(name: &str, data: &[u8]) -> Self {
        Self { name: name.to_owned(), data: data.to_vec(), ..Self::default() }
    }
}

/// A zip of stored entries; with `large`, sizes and places are in zip64 fields.
fn zip(entries: &[Entry], large: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for e in entries {
        let place = (bytes.len() as u32).wrapping_add(e.shift);
        let size = (e.data.len() as u32).wrapping_add(e.size);
        let crc = crc32fast::hash(&e.data).wrapping_add(e.crc).to_le_bytes();
        let name = (e.name.len() as u16).to_le_bytes();
        let words = |list: &[u16]| list.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let head = [words(&[0, e.flags, e.method, 0, 0]), crc.to_vec()].concat();
        let length = size.to_le_bytes();
        bytes.extend([b"PK\x03\x04", &head[..], &length, &length, &name, &[0, 0]].concat());
        bytes.extend_from_slice(e.name.as_bytes());
        bytes.extend_from_slice(&e.data);
        directory.extend([b"PK\x01\x02\0\0", &head[..]].concat());
        let ones = [0xff; 4];
        let wide = |n: u32| u64::from(n).to_le_bytes();
        let extra = [&[1, 0, 24, 0], &wide(size)[..], &wide(size), &wide(place)].concat();
        let extra = if large { extra } else { Vec::new() };
        let sizes = if large { ones } else { length };
        directory.extend([&sizes[..], &sizes, &name].concat());
        directory.extend(words(&[extra.len() as u16, 0, 0, 0, 0, 0]));
        directory.extend(if large { ones } else { place.to_le_bytes() });
        directory.extend([e.name.as_bytes(), &extra].concat());
    }
    let (count, at, size) = (entries.len() as u64, bytes.len() as u64, directory.len() as u64);
    bytes.extend_from_slice(&directory);
    if large {
        let record = bytes.len() as u64;
        bytes.extend(b"PK\x06\x06");
        [44, 0x2d_002d].iter().for_each(|n: &u64| bytes.extend(n.to_le_bytes()));
        // The version word is four bytes, and so are the two numbers of disks.
        bytes.extend([0; 4]);
        [count, count, size, at].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend([b"PK\x06\x07", &[0; 4][..], &record.to_le_bytes(), &[1, 0, 0, 0]].concat());
    }
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    let short = if large { 0xffff } else { count as u16 };
    bytes.extend([short.to_le_bytes(), short.to_le_bytes()].concat());
    for n in [size, at] {
        bytes.extend(if large { [0xff; 4] } else { (n as u32).to_le_bytes() });
    }
    bytes.extend([0, 0]);
    bytes
}

/// Writes pickles as `torch.save` does, and the storages beside them.
#[derive(Default)]
struct Save {
    pickle: Vec<u8>,
    storages: Vec<Vec<u8>>,
    big_endian: bool,
    /// Leaves out the record of the byte order, as PyTorch did until 2.0.
    silent: bool,
    device: &'static str,
}

/// A tensor to be written.
#[derive(Clone)]
struct Written {
    kind: &'static str,
    data: Vec<u8>,
    /// Numbers claimed, if another count than there is.
    claimed: Option<i32>,
    key: Option<&'static str>,
    offset: i32,
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl Written {
    fn floats(shape: &[u64], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new("FloatStorage", data, shape)
    }

    fn new(kind: &'static str, data: Vec<u8>, shape: &[u64]) -> Self {
        let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        Self { kind, data, claimed: None, key: None, offset: 0, shape: shape.to_vec(), strides }
    }
}

impl Save {
    fn new() -> Self {
        Self { pickle: vec![0x80, 2], device: "cuda:0", ..Self::default() }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.pickle.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.raw(b"X");
        self.raw(&(text.len() as u32).to_le_bytes());
        self.raw(text.as_bytes());
    }

    fn int(&mut self, number: i32) {
        self.raw(b"J");
        self.raw(&number.to_le_bytes());
    }

    fn float(&mut self, number: f64) {
        self.raw(b"G");
        self.raw(&number.to_be_bytes());
    }

    fn sizes(&mut self, list: &[u64]) {
        self.raw(b"(");
        list.iter().for_each(|n| self.int(*n as i32));
        self.raw(b"t");
    }

    fn tensor(&mut self, t: &Written) {
        let key = t.key.map_or_else(|| self.storages.len().to_string(), str::to_owned);
        let width = match t.kind {
            "DoubleStorage" | "LongStorage" => 8,
            "HalfStorage" | "BFloat16Storage" => 2,
            _ => 4,
        };
        let count = t.claimed.unwrap_or((t.data.len() / width) as i32);
        let mut data = t.data.clone();
        if self.big_endian {
            data.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        self.storages.push(data);
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.raw(format!("ctorch\n{}\n", t.kind).as_bytes());
        self.text(&key);
        let device = self.device;
        self.text(device);
        self.int(count);
        self.raw(b"tQ");
        self.int(t.offset);
        self.sizes(&t.shape);
        self.sizes(&t.strides);
        self.raw(b"\x89ccollections\nOrderedDict\n)RtR");
    }

    /// The zip with this pickle, its end added.
    fn finish(mut self) -> Vec<u8> {
        self.raw(b".");
        let mut entries = vec![Entry::new("model/data.pkl", &self.pickle)];
        let order: &[u8] = if self.big_endian { b"big" } else { b"little" };
        if !self.silent {
            entries.push(Entry::new("model/byteorder", order));
        }
        for (i, data) in self.storages.iter().enumerate() {
            entries.push(Entry::new(&format!("model/data/{i}"), data));
        }
        entries.push(Entry::new("model/version", b"3\n"));
        zip(&entries, false)
    }
}

/// A checkpoint to be written: names and tensors, in their order.
#[derive(Clone)]
struct Model {
    weights: Weights,
    state: Vec<(String, Written)>,
    /// By parameter: exp_avg, exp_avg_sq, max_exp_avg_sq; and the steps.
    adam: Vec<(Vec<(&'static str, Written)>, f32)>,
    amsgrad: bool,
}

impl Model {
    fn new() -> Self {
        let mut weights = Weights::initial(NARROW, 5);
        let random = Weights::initial(NARROW, 6).parameters;
        let squares: Vec<f32> = random.iter().map(|x| x * x).collect();
        weights.mean.iter_mut().zip(&random).for_each(|(m, r)| *m = *r);
        weights.variance.iter_mut().zip(&squares).for_each(|(v, s)| *v = *s);
        weights.optimizer = Some(Moments {
            first: random,
            maximum: squares.iter().map(|x| 2.0 * x).collect(),
            second: squares,
            step: 7,
            learning_rate: 1e-4,
        });
        let bytes = weights.to_bytes();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let get = |name: &str| {
            let view = file.tensor(name).unwrap();
            let shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
            Written::new("FloatStorage", view.data().to_vec(), &shape)
        };
        let mut state = Vec::new();
        let mut adam = Vec::new();
        for TensorSpec { name, .. } in parameters(&NARROW) {
            state.push((name.clone(), get(&name)));
            if let Some(norm) = name.strip_suffix(".bias").filter(|norm| *norm != "fc.2") {
                for part in ["running_mean", "running_var"] {
                    state.push((format!("{norm}.{part}"), get(&format!("{norm}.{part}"))));
                }
                let count = Written::new("LongStorage", 7_i64.to_le_bytes().to_vec(), &[]);
                state.push((format!("{norm}.num_batches_tracked"), count));
            }
            let part = |part: &str| get(&format!("optimizer.{part}.{name}"));
            let three = [
                ("exp_avg", part("first_moment")),
                ("exp_avg_sq", part("second_moment")),
                ("max_exp_avg_sq", part("maximum")),
            ];
            adam.push((three.to_vec(), 7.0));
        }
        Self { weights, state, adam, amsgrad: true }
    }

    fn without_adam() -> Self {
        let mut model = Self::new();
        model.weights.optimizer = None;
        model.adam.clear();
        model
    }

    fn write_state(&self, to: &mut Save) {
        to.text("state_dict");
        to.raw(b"ccollections\nOrderedDict\n)R(");
        for (name, tensor) in &self.state {
            to.text(name);
            to.tensor(tensor);
        }
        to.raw(b"u}");
        to.text("_metadata");
        to.raw(b"ccollections\nOrderedDict\n)Rsb");
    }

    /// Adam's dictionary; `plain` steps are numbers, as PyTorch wrote them until 1.11.
    fn write_adam(&self, to: &mut Save, plain: bool) {
        to.text("optim_dict");
        to.raw(b"}(");
        to.text("state");
        to.raw(b"}(");
        for (i, (three, step)) in self.adam.iter().enumerate() {
            to.int(i as i32);
            to.raw(b"}(");
            to.text("step");
            if plain {
                to.int(*step as i32)
            } else {
                to.tensor(&Written::floats(&[], &[*step]))
            }
            for (name, tensor) in three {
                to.text(name);
                to.tensor(tensor);
            }
            to.raw(b"u");
        }
        to.raw(b"u");
        to.text("param_groups");
        to.raw(b"](}(");
        for (name, value) in [("lr", 1e-4), ("eps", 1e-8), ("weight_decay", 1e-4)] {
            to.text(name);
            to.float(value);
        }
        to.text("betas");
        to.float(0.9);
        to.float(0.999);
        to.raw(b"\x86");
        to.text("amsgrad");
        to.raw(if self.amsgrad { b"\x88" } else { b"\x89" });
        to.text("params");
        to.raw(b"](");
        (0..56).for_each(|i| to.int(i));
        to.raw(b"eueu");
    }

    fn save(&self, mut to: Save, plain: bool) -> Vec<u8> {
        to.raw(b"}(");
        to.text("iter");
        to.int(7);
        self.write_state(&mut to);
        if !self.adam.is_empty() {
            self.write_adam(&mut to, plain);
        }
        to.raw(b"u");
        to.finish()
    }

    fn bytes(&self) -> Vec<u8> {
        self.save(Save::new(), false)
    }
}

fn refusal(bytes: &[u8]) -> String {
    any(bytes).map(|_| "accepted".to_owned()).unwrap_or_else(|e| e.to_string())
}
