//! The container: `GGUF`, a version, metadata, descriptions of tensors, and aligned data.
//!
//! Written here because the crates that read it believe what a file says: they allocate by its counts, or read it whole.
//! Source: `docs/gguf.md` of <https://github.com/ggml-org/ggml>, versions 2 and 3, little-endian.

use crate::formats::ggml::GgmlType;
use crate::read::safetensors::{Entry, StoredType};
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::Path;

/// What the header of a file says.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors by the names that the file has for them. Shapes have the outermost axis first.
    pub tensors: BTreeMap<String, Entry>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// A whole number of any width.
    Whole(i128),
    /// A float of either width.
    Real(f64),
    /// True or false.
    Flag(bool),
    /// A string.
    Text(String),
    /// Whole numbers, reals or flags (as 0 and 1).
    Numbers(Vec<f64>),
    /// Strings: how many. Vocabularies are not kept.
    Texts(u64),
}

/// Where tensors begin when the file does not say otherwise: at multiples of this.
const USUAL_ALIGNMENT: u64 = 32;
/// Axes that a tensor can have.
const MAX_AXES: u32 = 4;
/// The longest list of numbers that is kept: one for each layer or expert, not one for each word.
const MAX_NUMBERS: u64 = 65_536;

/// Reads and checks the header of a file that has been mapped or read whole.
///
/// # Errors
/// `gguf-invalid`, `gguf-truncated`, `gguf-type-unsupported` for a type of elements whose size is not known.
pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Gguf, Diagnostic> {
    let mut reader = Reader { file, bytes, at: 0 };
    let version = reader.preamble()?;
    let (n_tensors, n_values) = (reader.u64("the number of tensors")?, reader.u64("the number of metadata")?);
    let mut metadata = BTreeMap::new();
    for _ in 0..n_values {
        let key = reader.text("the name of a metadata value")?;
        let value = reader.value(&key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.invalid(format!("has the metadata value `{key}` twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => USUAL_ALIGNMENT,
        Some(Value::Whole(n)) if *n > 0 && n % 8 == 0 && *n <= 1 << 30 => *n as u64,
        Some(other) => {
            return Err(reader.invalid(format!("aligns tensors to {other:?}; a multiple of 8 is needed")));
        }
    };
    let mut described = Vec::new();
    for _ in 0..n_tensors {
        described.push(reader.tensor()?);
    }
    let data = (reader.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for one in described {
        let (name, entry) = one.place(&reader, data, alignment, version)?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(reader.invalid(format!("has the tensor `{name}` twice")));
        }
    }
    apart(&reader, &tensors)?;
    Ok(Gguf { metadata, tensors })
}

/// A tensor as the header describes it.
struct Described {
    name: String,
    shape: Vec<u64>,
    type_id: u32,
    offset: u64,
}

impl Described {
    fn place(
        self,
        reader: &Reader<'_>,
        data: u64,
        alignment: u64,
        version: u32,
    ) -> Result<(String, Entry), Diagnostic> {
        let name = &self.name;
        let dtype = stored_type(self.type_id).ok_or_else(|| {
            Diagnostic::input(
                "gguf-type-unsupported",
                format!(
                    "`{name}` in `{}` has elements of type {}, which GGUF version {version} has not in moec's list",
                    reader.file.display(),
                    self.type_id
                ),
            )
            .help("quantise the model again in a type that `moec explain gguf-type-unsupported` lists")
        })?;
        let (elements, bytes) = dtype.block();
        let row = self.shape.last().copied().unwrap_or(1);
        if row % elements != 0 {
            return Err(reader
                .invalid(format!("has `{name}` with rows of {row} elements, but {dtype} has blocks of {elements}")));
        }
        let count = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let length = count.and_then(|n| (n / elements).checked_mul(bytes));
        let Some(length) = length else {
            return Err(reader.invalid(format!("has `{name}` of the impossible shape {:?}", self.shape)));
        };
        if !self.offset.is_multiple_of(alignment) {
            return Err(reader.invalid(format!(
                "has `{name}` at byte {} of the data, which is no multiple of {alignment}",
                self.offset
            )));
        }
        let start = data.checked_add(self.offset);
        let end = start.and_then(|s| s.checked_add(length)).unwrap_or(u64::MAX);
        if end > reader.bytes.len() as u64 {
            let why = format!("`{name}` should end at byte {end} of the file, which has {}", reader.bytes.len());
            return Err(truncated(reader.file, why));
        }
        let (start, end) = (start.unwrap_or(0) as usize, end as usize);
        Ok((self.name, Entry { dtype, shape: self.shape, start, end }))
    }
}

/// Checks that no two tensors share bytes.
fn apart(reader: &Reader<'_>, tensors: &BTreeMap<String, Entry>) -> Result<(), Diagnostic> {
    let mut order: Vec<(&String, &Entry)> = tensors.iter().filter(|(_, e)| e.start < e.end).collect();
    order.sort_by_key(|(_, e)| (e.start, e.end));
    match order.windows(2).find(|w| w[1].1.start < w[0].1.end) {
        None => Ok(()),
        Some(w) => Err(reader.invalid(format!("has `{}` overlap `{}`", w[1].0, w[0].0))),
    }
}

fn stored_type(id: u32) -> Option<StoredType> {
    match id {
        0 => Some(StoredType::F32),
        1 => Some(StoredType::F16),
        24 => Some(StoredType::I8),
        25 => Some(StoredType::I16),
        26 => Some(StoredType::I32),
        27 => Some(StoredType::I64),
        28 => Some(StoredType::F64),
        30 => Some(StoredType::BF16),
        _ => GgmlType::from_id(id).map(StoredType::Ggml),
    }
}

/// A narrow float as a config has it: 2.827, not 2.8269999027252197.
fn as_written(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// Reads a header front to back; never past the end of the file.
struct Reader<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn preamble(&mut self) -> Result<u32, Diagnostic> {
        if !super::files::is_gguf(self.bytes) {
            return Err(self.invalid("does not begin with `GGUF`".into()));
        }
        self.at = 4;
        match self.u32("the version")? {
            version @ (2 | 3) => Ok(version),
            1 => Err(self
                .invalid("is of GGUF version 1; 2 and 3 are read".into())
                .help("convert the model again with a llama.cpp from after August 2023, or download a newer file")),
            other if matches!(other.swap_bytes(), 2 | 3) => Err(self
                .invalid("is big-endian".into())
                .help("convert it with `gguf-convert-endian FILE little` of the Python package `gguf`")),
            other => Err(self
                .invalid(format!("is of GGUF version {other}; 2 and 3 are read"))
                .help("take a newer moec, or a file that was written by an older tool")),
        }
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], Diagnostic> {
        let left = self.bytes.len() - self.at;
        if n > left as u64 {
            let why = format!("{what} takes {n} bytes at byte {}, but only {left} are left", self.at);
            return Err(truncated(self.file, why));
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Diagnostic> {
        Ok(self.take(N as u64, what)?.first_chunk().copied().unwrap_or([0; N]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Diagnostic> {
        self.fixed(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Diagnostic> {
        self.fixed(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Result<String, Diagnostic> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => Err(self.invalid(format!("has bytes that are not UTF-8 for {what}"))),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, Diagnostic> {
        let kind = self.u32(key)?;
        match kind {
            8 => {
                let length = self.u64(key)?;
                // A chat template may hold anything; only the values that are asked for have to be text.
                Ok(Value::Text(String::from_utf8_lossy(self.take(length, key)?).into_owned()))
            }
            9 => self.list(key),
            _ => self.scalar(kind, key),
        }
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, Diagnostic> {
        Ok(match kind {
            0 => Value::Whole(self.fixed(key).map(u8::from_le_bytes)?.into()),
            1 => Value::Whole(self.fixed(key).map(i8::from_le_bytes)?.into()),
            2 => Value::Whole(self.fixed(key).map(u16::from_le_bytes)?.into()),
            3 => Value::Whole(self.fixed(key).map(i16::from_le_bytes)?.into()),
            4 => Value::Whole(self.fixed(key).map(u32::from_le_bytes)?.into()),
            5 => Value::Whole(self.fixed(key).map(i32::from_le_bytes)?.into()),
            6 => Value::Real(as_written(self.fixed(key).map(f32::from_le_bytes)?)),
            7 => match self.fixed(key)? {
                [0] => Value::Flag(false),
                [1] => Value::Flag(true),
                [other] => return Err(self.invalid(format!("has {other} for `{key}`, which is 0 or 1"))),
            },
            10 => Value::Whole(self.fixed(key).map(u64::from_le_bytes)?.into()),
            11 => Value::Whole(self.fixed(key).map(i64::from_le_bytes)?.into()),
            12 => Value::Real(self.fixed(key).map(f64::from_le_bytes)?),
            _ => return Err(self.invalid(format!("has the metadata value `{key}` of the unknown type {kind}"))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, Diagnostic> {
        let (kind, count) = (self.u32(key)?, self.u64(key)?);
        if kind == 8 {
            for _ in 0..count {
                let length = self.u64(key)?;
                self.take(length, key)?;
            }
            return Ok(Value::Texts(count));
        }
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return Err(self.invalid(format!("has the list `{key}` of elements of the unknown type {kind}"))),
        };
        if count > MAX_NUMBERS {
            self.take(count.saturating_mul(width), key)?;
            return Ok(Value::Numbers(Vec::new()));
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(match self.scalar(kind, key)? {
                Value::Whole(n) => n as f64,
                Value::Real(x) => x,
                Value::Flag(b) => f64::from(u8::from(b)),
                Value::Text(_) | Value::Numbers(_) | Value::Texts(_) => f64::NAN,
            });
        }
        Ok(Value::Numbers(numbers))
    }

    fn tensor(&mut self) -> Result<Described, Diagnostic> {
        let name = self.text("the name of a tensor")?;
        let axes = self.u32(&name)?;
        if axes > MAX_AXES {
            return Err(self.invalid(format!("has `{name}` with {axes} axes; {MAX_AXES} are the most")));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(self.u64(&name)?);
        }
        // The file counts from the innermost axis.
        shape.reverse();
        Ok(Described { shape, type_id: self.u32(&name)?, offset: self.u64(&name)?, name })
    }

    fn invalid(&self, what: String) -> Diagnostic {
        Diagnostic::input("gguf-invalid", format!("`{}` {what}", self.file.display()))
            .help("the file is damaged or was written by a faulty tool; download or convert it again")
    }
}

fn truncated(file: &Path, why: String) -> Diagnostic {
    Diagnostic::input("gguf-truncated", format!("`{}` is cut off", file.display()))
        .note(why)
        .help("download the file again; an interrupted download leaves a file that is too short")
}
