//! A pickle interpreter that builds plain data and can do nothing else.
//!
//! Calls are never made: `REDUCE`, `NEWOBJ` and `BUILD` merely record what would have been called,
//! and the reader recognises the few calls that make tensors. Protocols 0 to 5, as far as
//! `torch.save` uses them.

use std::collections::HashMap;
use std::io::Read;

/// The most values one pickle may create.
const VALUES_MAX: usize = 1 << 24;
/// The longest string one pickle may hold.
const STRING_BYTES_MAX: usize = 1 << 28;

/// Index of a [`Value`] in a [`Pickle`].
pub type Id = usize;

/// A value as the pickle describes it; containers refer to other values by index.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// A longer one, as little-endian two's complement.
    Long(Vec<u8>),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// A dictionary in insertion order.
    Dict(Vec<(Id, Id)>),
    /// A class or function by `module name`.
    Global(String),
    /// A call that was not made: callee and argument tuple.
    Call(Id, Id),
    /// A reference to data outside the pickle.
    Persistent(Id),
}

/// One unpickled object and everything that it refers to.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Interprets one pickle and leaves `reader` behind its `STOP`.
    pub fn read(reader: &mut impl Read) -> Result<Self, String> {
        let machine = Machine {
            reader,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        machine.run()
    }

    /// The unpickled object.
    pub fn root(&self) -> Id {
        self.root
    }

    /// How many values there are; ids are below it.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// The value at `id`.
    pub fn value(&self, id: Id) -> &Value {
        &self.values[id]
    }
}

struct Machine<'a, R> {
    reader: &'a mut R,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<R: Read> Machine<'_, R> {
    fn run(mut self) -> Result<Pickle, String> {
        loop {
            let opcode = self.u8()?;
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { values: self.values, root });
            }
            self.step(opcode)?;
            if self.values.len() > VALUES_MAX || self.stack.len() > VALUES_MAX {
                return Err(format!("its pickle creates more than {VALUES_MAX} values"));
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => self.u8().map(drop),
            0x95 => self.bytes(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | b'I' | b'L' | 0x8a | b'G' | b'F' => {
                self.number(opcode)
            }
            b'X' | b'U' | b'T' | 0x8c | 0x8d | b'V' | b'S' | b'B' | b'C' | 0x8e => {
                self.string(opcode)
            }
            b')'
            | b't'
            | 0x85..=0x87
            | b']'
            | b'l'
            | 0x8f
            | b'}'
            | b'd'
            | b'a'
            | b'e'
            | 0x90
            | b's'
            | b'u' => self.container(opcode),
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.memo(opcode),
            b'c' | 0x93 | b'R' | 0x81 | b'b' | b'Q' => self.object(opcode),
            other => Err(format!("its pickle uses the unsupported opcode {other:#04x}")),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(self.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            b'G' => Value::Float(f64::from_be_bytes(self.array()?)),
            b'F' => Value::Float(self.parsed_line()?),
            b'I' => match self.line()?.as_str() {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                digits => Value::Int(digits.parse().map_err(|_| bad_number(digits))?),
            },
            b'L' => {
                let line = self.line()?;
                let digits = line.trim_end_matches('L');
                Value::Int(digits.parse().map_err(|_| bad_number(digits))?)
            }
            _ => {
                let length = self.u8()?.into();
                integer(&self.bytes(length)?)
            }
        };
        self.push(value)
    }

    fn string(&mut self, opcode: u8) -> Result<(), String> {
        let length = match opcode {
            b'X' | b'B' | b'T' => u32::from_le_bytes(self.array()?).into(),
            b'U' | 0x8c | b'C' => self.u8()?.into(),
            0x8d | 0x8e => u64::from_le_bytes(self.array()?),
            _ => {
                let line = self.line()?;
                let text = if opcode == b'S' { line.trim_matches(['\'', '"']) } else { &line };
                return self.push(Value::Str(text.to_owned()));
            }
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.bytes(length)?;
        self.push(match opcode {
            b'B' | b'C' | 0x8e => Value::Bytes(bytes),
            _ => Value::Str(String::from_utf8_lossy(&bytes).into_owned()),
        })
    }

    fn container(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                let items = self.stack.split_off(from.ok_or_else(underflow)?);
                self.push(Value::Tuple(items))
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))
            }
            b'd' => {
                let items = pairs(&self.pop_mark()?);
                self.push(Value::Dict(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_list(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])
            }
            _ => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)
            }
        }
    }

    fn memo(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' | b'h' => self.u8()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?).into(),
            b'p' | b'g' => self.parsed_line()?,
            _ => self.memo.len() as u64,
        };
        if matches!(opcode, b'h' | b'j' | b'g') {
            let id = *self.memo.get(&key).ok_or("its pickle reads an unset memo")?;
            self.stack.push(id);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn object(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module} {name}")))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (Value::Str(module), Value::Str(name)) => {
                        let global = format!("{module} {name}");
                        self.push(Value::Global(global))
                    }
                    _ => Err("its pickle names a class by something else than strings".into()),
                }
            }
            b'b' => self.pop().map(drop),
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            _ => {
                let arguments = self.pop()?;
                let callee = self.pop()?;
                self.push(match &self.values[callee] {
                    Value::Global(name) if name == "collections OrderedDict" => {
                        Value::Dict(Vec::new())
                    }
                    _ => Value::Call(callee, arguments),
                })
            }
        }
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend_from_slice(items),
            Value::Call(..) => {}
            _ => return Err("its pickle appends to something else than a list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        match &mut self.values[dict] {
            Value::Dict(dict) => dict.extend(pairs(items)),
            Value::Call(..) => {}
            _ => return Err("its pickle sets items of something else than a dictionary".into()),
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(underflow)
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(underflow)?))
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut buffer = [0; N];
        self.reader.read_exact(&mut buffer).map_err(|_| truncated())?;
        Ok(buffer)
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, String> {
        if length > STRING_BYTES_MAX {
            return Err(format!("its pickle holds a string of {length} bytes"));
        }
        let mut buffer = Vec::new();
        let read = self.reader.by_ref().take(length as u64).read_to_end(&mut buffer);
        if read.map_err(|e| e.to_string())? == length { Ok(buffer) } else { Err(truncated()) }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        loop {
            match self.u8()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
                _ if line.len() == STRING_BYTES_MAX => return Err(truncated()),
                byte => line.push(byte),
            }
        }
    }

    fn parsed_line<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let line = self.line()?;
        line.parse().map_err(|_| bad_number(&line))
    }
}

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

/// A little-endian two's-complement integer of any length.
fn integer(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Long(bytes.to_vec());
    }
    let negative = bytes.last().is_some_and(|&high| high & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

fn bad_number(text: &str) -> String {
    format!("its pickle holds {text:?} where a number belongs")
}

fn underflow() -> String {
    "its pickle takes more from the stack than it put there".into()
}

fn truncated() -> String {
    "its pickle ends too early".into()
}
