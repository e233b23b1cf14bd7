//! A pickle machine that executes nothing: it can build numbers, texts, lists, dictionaries and
//! tensors, and knows no other object.
//!
//! A pickle is a program. The instructions below are the ones that `torch.save` writes for a
//! dictionary of tensors and an optimizer's state with its protocol 2; every other one is refused,
//! and so is every global name that is not in [`Global::named`]. Values lie in one list and refer to
//! each other by number, so that a value that contains itself, or one nested a million deep, costs
//! what its instructions cost: nothing here, and nobody who reads the result, recurses.
//! Memory is bounded by [`STEPS_MAX`] values of fixed size; texts are pieces of the input.

use super::archive::Archive;
use super::array::{self, AXES_MAX, Array, Kind, Storage};
use super::cursor::Cursor;
use super::quoted;
use std::collections::HashMap;

/// Most instructions; a checkpoint with its optimizer has some 11,200 at any width.
const STEPS_MAX: usize = 100_000;
/// Longest text; the longest name of a tensor has 35 bytes.
const TEXT_MAX_BYTES: usize = 256;
/// Longest name of a module or a function.
const NAME_MAX_BYTES: usize = 128;
/// Values waiting at once; 1000 pairs of a dictionary come together.
const STACK_MAX: usize = 8192;
/// Containers being filled at once; a checkpoint has six.
const NESTING_MAX: usize = 32;
/// Highest protocol: a later one may hold instructions that are not known here.
const PROTOCOL_MAX: u8 = 3;
/// Bytes of the longest whole number.
const INTEGER_MAX_BYTES: usize = 8;

/// Why a pickle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("it is cut off in the instruction at byte {0}")]
    Cut(usize),
    #[error(
        "instruction 0x{code:02x} at byte {at} is none that a checkpoint needs (save it with pickle \
         protocol 2, the default of torch.save)"
    )]
    Instruction { code: u8, at: usize },
    #[error("it is of pickle protocol {0}; save it with protocol 2, the default of torch.save")]
    Protocol(u8),
    #[error("it asks for {name} at byte {at}, which is not allowed: nothing is executed here")]
    Global { name: String, at: usize },
    #[error("it is beyond the limit of {most} {what} at byte {at}")]
    Limit { what: &'static str, most: usize, at: usize },
    #[error("{reason} at byte {at}")]
    Misuse { reason: &'static str, at: usize },
    #[error("storage {key} at byte {at} {reason}")]
    Storage { key: String, reason: String, at: usize },
    #[error("the tensor at byte {at} is refused: {error}")]
    Tensor { error: array::Error, at: usize },
}

/// What a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    OrderedDict,
    Tensor,
    Parameter,
    Storage(Kind),
}

impl Global {
    fn named(module: &[u8], name: &[u8]) -> Option<Self> {
        Some(match (module, name) {
            (b"collections", b"OrderedDict") => Self::OrderedDict,
            (b"torch._utils", b"_rebuild_tensor_v2") => Self::Tensor,
            (b"torch._utils", b"_rebuild_parameter") => Self::Parameter,
            (b"torch", b"DoubleStorage") => Self::Storage(Kind::F64),
            (b"torch", b"FloatStorage") => Self::Storage(Kind::F32),
            (b"torch", b"HalfStorage") => Self::Storage(Kind::F16),
            (b"torch", b"BFloat16Storage") => Self::Storage(Kind::Bf16),
            (b"torch", b"LongStorage") => Self::Storage(Kind::I64),
            (b"torch", b"IntStorage") => Self::Storage(Kind::I32),
            _ => return None,
        })
    }
}

/// Number of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ref(usize);

/// One value.
#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Array<'a>),
}

/// What a pickle holds.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    all: Vec<Value<'a>>,
    /// The outermost value.
    pub(crate) root: Ref,
}

impl<'a> Values<'a> {
    /// The value of a number that this pickle gave out.
    pub(crate) fn get(&self, at: Ref) -> &Value<'a> {
        self.all.get(at.0).unwrap_or(&Value::None)
    }
}

/// Reads a pickle whose storages lie in `archive`.
///
/// # Errors
/// The first instruction, name or storage that is not allowed or does not fit.
pub(crate) fn read<'a>(
    pickle: &'a [u8],
    archive: &Archive<'a>,
    big_endian: bool,
) -> Result<Values<'a>, Error> {
    let mut machine = Machine {
        input: Cursor::new(pickle),
        archive,
        big_endian,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..STEPS_MAX {
        if let Some(root) = machine.step()? {
            return match machine.input.is_at_end() && machine.stack.is_empty() {
                true => Ok(Values { all: machine.values, root }),
                false => Err(machine.misuse("something is left over after the end")),
            };
        }
    }
    Err(machine.limit("instructions", STEPS_MAX))
}

struct Machine<'a, 'b> {
    input: Cursor<'a>,
    archive: &'b Archive<'a>,
    big_endian: bool,
    /// Where the instruction began.
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Ref>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

impl<'a> Machine<'a, '_> {
    /// One instruction; the last one gives the result.
    fn step(&mut self) -> Result<Option<Ref>, Error> {
        self.at = self.input.position();
        let code = self.need(Cursor::u8)?;
        match code {
            0x80 => {
                let protocol = self.need(Cursor::u8)?;
                if protocol > PROTOCOL_MAX {
                    return Err(Error::Protocol(protocol));
                }
            }
            b'.' => return self.pop().map(Some),
            b'(' => {
                if self.marks.len() >= NESTING_MAX {
                    return Err(self.limit("nested containers", NESTING_MAX));
                }
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let number = i32::from_le_bytes(self.need(Cursor::array)?);
                self.push(Value::Int(i64::from(number)))?;
            }
            b'K' => {
                let number = self.need(Cursor::u8)?;
                self.push(Value::Int(i64::from(number)))?;
            }
            b'M' => {
                let number = self.need(Cursor::u16)?;
                self.push(Value::Int(i64::from(number)))?;
            }
            0x8a => self.long()?,
            b'G' => {
                let number = f64::from_be_bytes(self.need(Cursor::array)?);
                self.push(Value::Float(number))?;
            }
            b'X' => self.text()?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.insert(&items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b'q' | b'r' => {
                let place = self.index(code == b'q')?;
                let top = self.top()?;
                self.memo.insert(place, top);
            }
            b'h' | b'j' => {
                let place = self.index(code == b'h')?;
                let found = self.memo.get(&place).copied();
                let found = found
                    .ok_or_else(|| self.misuse("something is recalled that was never kept"))?;
                self.push_ref(found)?;
            }
            b'c' => self.global()?,
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            code => return Err(Error::Instruction { code, at: self.at }),
        }
        Ok(None)
    }

    fn misuse(&self, reason: &'static str) -> Error {
        Error::Misuse { reason, at: self.at }
    }

    fn limit(&self, what: &'static str, most: usize) -> Error {
        Error::Limit { what, most, at: self.at }
    }

    fn need<T>(&mut self, read: impl FnOnce(&mut Cursor<'a>) -> Option<T>) -> Result<T, Error> {
        read(&mut self.input).ok_or(Error::Cut(self.at))
    }

    fn index(&mut self, short: bool) -> Result<u32, Error> {
        if short { self.need(Cursor::u8).map(u32::from) } else { self.need(Cursor::u32) }
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Error> {
        self.values.push(value);
        self.push_ref(Ref(self.values.len() - 1))
    }

    fn push_ref(&mut self, value: Ref) -> Result<(), Error> {
        if self.stack.len() >= STACK_MAX {
            return Err(self.limit("waiting values", STACK_MAX));
        }
        self.stack.push(value);
        Ok(())
    }

    fn top(&self) -> Result<Ref, Error> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(<[Ref]>::last);
        above.copied().ok_or_else(|| self.misuse("a value is missing"))
    }

    fn pop(&mut self) -> Result<Ref, Error> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Result<Vec<Ref>, Error> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        mark.map(|mark| self.stack.split_off(mark))
            .ok_or_else(|| self.misuse("a container ends that never began"))
    }

    fn get(&self, at: Ref) -> &Value<'a> {
        self.values.get(at.0).unwrap_or(&Value::None)
    }

    fn long(&mut self) -> Result<(), Error> {
        let length = usize::from(self.need(Cursor::u8)?);
        if length > INTEGER_MAX_BYTES {
            return Err(self.limit("bytes of a whole number", INTEGER_MAX_BYTES));
        }
        let bytes = self.need(|input| input.take(length))?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; INTEGER_MAX_BYTES];
        number.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.push(Value::Int(i64::from_le_bytes(number)))
    }

    fn text(&mut self) -> Result<(), Error> {
        let length = self.need(Cursor::u32)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > TEXT_MAX_BYTES {
            return Err(self.limit("bytes of a text", TEXT_MAX_BYTES));
        }
        let bytes = self.need(|input| input.take(length))?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.misuse("a text is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn tuple(&mut self, count: usize) -> Result<(), Error> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn insert(&mut self, items: &[Ref]) -> Result<(), Error> {
        let target = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.values.get_mut(target.0) {
            Some(Value::Dict(all)) if rest.is_empty() => {
                all.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.misuse("pairs are put into what is no dictionary")),
        }
    }

    fn append(&mut self, items: &[Ref]) -> Result<(), Error> {
        let target = self.top()?;
        match self.values.get_mut(target.0) {
            Some(Value::List(all)) => {
                all.extend_from_slice(items);
                Ok(())
            }
            _ => Err(self.misuse("items are put into what is no list")),
        }
    }

    fn global(&mut self) -> Result<(), Error> {
        let module = self.need(|input| input.line(NAME_MAX_BYTES))?;
        let name = self.need(|input| input.line(NAME_MAX_BYTES))?;
        let global = Global::named(module, name).ok_or_else(|| {
            let full = [module, name].map(String::from_utf8_lossy).join(".");
            Error::Global { name: quoted(&full), at: self.at }
        })?;
        self.push(Value::Global(global))
    }

    /// The persistent id of a storage: `("storage", type, key, device, count)`.
    fn storage(&mut self) -> Result<(), Error> {
        let id = self.pop()?;
        let fields: Vec<&Value<'a>> = match self.get(id) {
            Value::Tuple(items) => items.iter().map(|item| self.get(*item)).collect(),
            _ => Vec::new(),
        };
        let &[
            Value::Text("storage"),
            Value::Global(Global::Storage(kind)),
            Value::Text(key),
            Value::Text(_device),
            Value::Int(count),
        ] = &fields[..]
        else {
            return Err(self.misuse("a reference is none to a storage of numbers"));
        };
        let wrong = |reason| Error::Storage { key: quoted(key), reason, at: self.at };
        let data =
            self.archive.storage(key).ok_or_else(|| wrong("is not in the file".to_owned()))?;
        let claimed =
            usize::try_from(*count).ok().and_then(|count| count.checked_mul(kind.bytes()));
        if claimed != Some(data.len()) {
            let (name, held) = (kind.name(), data.len());
            return Err(wrong(format!("claims {count} numbers {name}, but has {held} bytes")));
        }
        let storage = Storage { data, kind: *kind, big_endian: self.big_endian };
        self.push(Value::Storage(storage))
    }

    fn call(&mut self) -> Result<(), Error> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Value::Tuple(items) = self.get(arguments) else {
            return Err(self.misuse("a call has no arguments"));
        };
        let values: Vec<&Value<'a>> = items.iter().map(|item| self.get(*item)).collect();
        let empty = |value: &Value<'_>| match value {
            Value::None => true,
            Value::Dict(pairs) => pairs.is_empty(),
            _ => false,
        };
        let made =
            match (self.get(function), &values[..]) {
                (Value::Global(Global::OrderedDict), []) => Value::Dict(Vec::new()),
                (
                    Value::Global(Global::Tensor),
                    [Value::Storage(s), Value::Int(offset), shape, strides, Value::Bool(_), hooks],
                ) if empty(hooks) => {
                    let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                    let offset =
                        u64::try_from(*offset).map_err(|_| self.misuse("an offset is negative"))?;
                    let array = Array::view(*s, offset, shape, strides)
                        .map_err(|error| Error::Tensor { error, at: self.at })?;
                    Value::Tensor(array)
                }
                (
                    Value::Global(Global::Parameter),
                    [Value::Tensor(array), Value::Bool(_), hooks],
                ) if empty(hooks) => Value::Tensor(array.clone()),
                (Value::Global(_), _) => {
                    return Err(self
                        .misuse("a tensor or dictionary is made from what it cannot be made of"));
                }
                _ => return Err(self.misuse("something is called that is no function")),
            };
        self.push(made)
    }

    fn sizes(&self, value: &Value<'_>) -> Result<Vec<u64>, Error> {
        let Value::Tuple(items) = value else {
            return Err(self.misuse("a shape is no tuple"));
        };
        if items.len() > AXES_MAX {
            return Err(self.limit("axes of a tensor", AXES_MAX));
        }
        let size = |item: &Ref| match self.get(*item) {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        let sizes: Option<Vec<u64>> = items.iter().map(size).collect();
        sizes.ok_or_else(|| self.misuse("a shape holds what is no size"))
    }

    /// The state that PyTorch gives a `state_dict`: `{"_metadata": …}`, the versions of its layers,
    /// which say nothing that is needed. No other state is let through.
    fn build(&mut self) -> Result<(), Error> {
        let state = self.pop()?;
        let target = self.top()?;
        let metadata = match self.get(state) {
            Value::Dict(pairs) => pairs.iter().all(|(key, value)| {
                matches!(self.get(*key), Value::Text("_metadata"))
                    && matches!(self.get(*value), Value::Dict(_))
            }),
            _ => false,
        };
        if metadata && matches!(self.get(target), Value::Dict(_)) {
            return Ok(());
        }
        Err(self.misuse("a state is set that no dictionary of tensors has"))
    }
}
