//! The safetensors format: a header that is checked before anything is believed, and a writer.
//!
//! A file is an 8-byte little-endian header length, a JSON object of that length, and the data region. Each entry names
//! a tensor's type, shape and byte range within the data region; the ranges tile the region without hole or overlap.
//! Source: the format section of <https://github.com/huggingface/safetensors>.

use crate::formats::ggml::GgmlType;
use moec_ir::diag::Diagnostic;
use moec_ir::{DType, Tensor};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::Path;

/// Element type of a stored tensor, as the format spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
pub enum StoredType {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    /// Blocks of a GGUF file; safetensors files have none.
    Ggml(GgmlType),
}

use StoredType as S;

/// `(name in the header, type, bits of an element, the same type in moec)`
const TYPES: &[(&str, StoredType, u64, Option<DType>)] = &[
    ("BOOL", S::BOOL, 8, None),
    ("F4", S::F4, 4, None),
    ("F6_E2M3", S::F6_E2M3, 6, None),
    ("F6_E3M2", S::F6_E3M2, 6, None),
    ("U8", S::U8, 8, None),
    ("I8", S::I8, 8, None),
    ("F8_E5M2", S::F8_E5M2, 8, None),
    ("F8_E4M3", S::F8_E4M3, 8, None),
    ("F8_E8M0", S::F8_E8M0, 8, None),
    ("I16", S::I16, 16, None),
    ("U16", S::U16, 16, None),
    ("F16", S::F16, 16, Some(DType::F16)),
    ("BF16", S::BF16, 16, Some(DType::BF16)),
    ("I32", S::I32, 32, Some(DType::I32)),
    ("U32", S::U32, 32, None),
    ("F32", S::F32, 32, Some(DType::F32)),
    ("C64", S::C64, 64, None),
    ("F64", S::F64, 64, Some(DType::F64)),
    ("I64", S::I64, 64, Some(DType::I64)),
    ("U64", S::U64, 64, None),
];

impl StoredType {
    fn row(self) -> Option<&'static (&'static str, StoredType, u64, Option<DType>)> {
        TYPES.iter().find(|t| t.1 == self)
    }

    /// The name in headers: `BF16`, `F8_E4M3`, …
    pub fn name(self) -> &'static str {
        match self {
            S::Ggml(t) => t.name(),
            _ => self.row().map_or("", |t| t.0),
        }
    }

    /// Size of one element in bits; 0 for blocks, see [`StoredType::block`].
    pub fn bits(self) -> u64 {
        self.row().map_or(0, |t| t.2)
    }

    /// Elements and bytes of the smallest piece that lies by itself. Types of less than a byte have none: 0.
    pub fn block(self) -> (u64, u64) {
        match self {
            S::Ggml(t) => t.block(),
            _ => (1, self.bits() / 8),
        }
    }

    /// The same type in moec; `None` for those it does not compute in.
    pub fn dtype(self) -> Option<DType> {
        self.row().and_then(|t| t.3)
    }

    fn from_name(name: &str) -> Option<StoredType> {
        TYPES.iter().find(|t| t.0 == name).map(|t| t.1)
    }
}

impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor inside a mapped file. The data may have any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: StoredType,
    /// Axis lengths, outermost first.
    pub shape: &'a [u64],
    /// The elements, little-endian, row-major: as many bytes as type and shape ask for.
    pub data: &'a [u8],
    /// The file that holds it, for messages.
    pub file: &'a Path,
}

impl TensorView<'_> {
    /// The elements as a host tensor; `None` when moec has no such element type.
    pub fn to_tensor(&self) -> Option<Tensor> {
        let shape: Vec<usize> = self.shape.iter().map(|&n| n as usize).collect();
        Tensor::from_bytes(self.dtype.dtype()?, &shape, self.data)
    }

    /// Type and shape, as in messages: `BF16[64, 2048]`.
    pub fn describe(&self) -> String {
        describe(self.dtype, self.shape)
    }
}

pub(crate) fn describe(dtype: StoredType, shape: &[u64]) -> String {
    format!("{dtype}{shape:?}")
}

/// One entry of a header: type, shape, and where the elements lie, as byte offsets from the start of the file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub dtype: StoredType,
    pub shape: Vec<u64>,
    pub start: usize,
    pub end: usize,
}

/// Checks a safetensors file that is in memory; gives the number of its tensors.
///
/// # Errors
/// `safetensors-truncated`, `safetensors-header-invalid`, `safetensors-duplicate-tensor`, `safetensors-tensor-invalid`.
pub fn check(file: &Path, bytes: &[u8]) -> Result<usize, Diagnostic> {
    parse_header(file, bytes).map(|entries| entries.len())
}

/// Reads and checks the header of a safetensors file that has been mapped or read whole.
///
/// # Errors
/// `safetensors-truncated`, `safetensors-header-invalid`, `safetensors-duplicate-tensor`, `safetensors-tensor-invalid`.
pub(crate) fn parse_header(file: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Diagnostic> {
    let name = file.display();
    let invalid = |what: String| {
        Diagnostic::input("safetensors-header-invalid", format!("`{name}` is not a safetensors file: {what}"))
            .help("download the file again, or check that it is safetensors and not another format")
    };
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(truncated(file, format!("it has {} bytes; the shortest safetensors file has 10", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let room = bytes.len() as u64 - 8;
    if length < 2 {
        return Err(invalid(format!("its header is {length} bytes long")));
    }
    // A JSON header starts with a brace. Without one the length is not a length either, so do not call the file cut off.
    if room > 0 && bytes[8] != b'{' {
        return Err(invalid("its header is not a JSON object".into()));
    }
    if length > room {
        return Err(truncated(
            file,
            format!("its header should be {length} bytes long, but only {room} bytes follow the length"),
        ));
    }
    let data_start = 8 + length as usize;
    let header: Header = serde_json::from_slice(&bytes[8..data_start]).map_err(|e| {
        let message = e.to_string();
        match message.strip_prefix(DUPLICATE).and_then(|rest| rest.split('`').nth(1)) {
            Some(tensor) => duplicate(file, file, tensor),
            None => invalid(message),
        }
    })?;
    let data_bytes = (bytes.len() - data_start) as u64;
    let mut entries = BTreeMap::new();
    for (tensor, raw) in header.entries {
        let bad = |what: String| {
            Diagnostic::input("safetensors-tensor-invalid", format!("`{tensor}` in `{name}` {what}"))
                .help("the file is damaged or was written by a faulty tool; download or write it again")
        };
        let dtype = StoredType::from_name(&raw.dtype)
            .ok_or_else(|| bad(format!("has the element type `{}`, which safetensors does not have", raw.dtype)))?;
        let bits = raw
            .shape
            .iter()
            .try_fold(dtype.bits(), |n, &axis| n.checked_mul(axis))
            .ok_or_else(|| bad(format!("has the impossible shape {:?}", raw.shape)))?;
        if bits % 8 != 0 {
            return Err(bad(format!("is {}, which is no whole number of bytes", describe(dtype, &raw.shape))));
        }
        let (start, end) = raw.data_offsets;
        if start > end {
            return Err(bad(format!("starts at byte {start} and ends before it, at byte {end}")));
        }
        if end > data_bytes {
            return Err(truncated(
                file,
                format!("`{tensor}` should end at byte {end} of the data, which has {data_bytes} bytes"),
            ));
        }
        if end - start != bits / 8 {
            return Err(bad(format!(
                "is {}, which takes {} bytes, but has {}",
                describe(dtype, &raw.shape),
                bits / 8,
                end - start
            )));
        }
        let entry =
            Entry { dtype, shape: raw.shape, start: data_start + start as usize, end: data_start + end as usize };
        entries.insert(tensor, entry);
    }
    check_tiling(file, data_start, bytes.len(), &entries)?;
    Ok(entries)
}

/// Checks that the byte ranges cover the data region without hole or overlap.
fn check_tiling(
    file: &Path,
    data_start: usize,
    file_end: usize,
    entries: &BTreeMap<String, Entry>,
) -> Result<(), Diagnostic> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, e)| (e.start, e.end));
    let mut reached = data_start;
    let mut previous = "the header";
    let bad = |message: String| {
        Diagnostic::input("safetensors-tensor-invalid", message)
            .note("the tensors of a safetensors file lie one behind the other, without overlap or gap")
            .help("the file is damaged or was written by a faulty tool; download or write it again")
    };
    for (tensor, entry) in order {
        if entry.start != reached {
            let how = if entry.start < reached { "overlaps" } else { "leaves a gap after" };
            return Err(bad(format!("`{tensor}` in `{}` {how} `{previous}`", file.display())));
        }
        reached = entry.end;
        previous = tensor;
    }
    if reached != file_end {
        return Err(bad(format!(
            "`{}` has {} bytes behind its last tensor, `{previous}`",
            file.display(),
            file_end - reached
        )));
    }
    Ok(())
}

fn truncated(file: &Path, why: String) -> Diagnostic {
    Diagnostic::input("safetensors-truncated", format!("`{}` is cut off", file.display()))
        .note(why)
        .help("download the file again; an interrupted download leaves a file that is too short")
}

pub(crate) fn duplicate(first: &Path, second: &Path, tensor: &str) -> Diagnostic {
    let place = if first == second {
        format!("twice in `{}`", first.display())
    } else {
        format!("in `{}` and again in `{}`", first.display(), second.display())
    };
    Diagnostic::input("safetensors-duplicate-tensor", format!("the tensor `{tensor}` is {place}"))
        .help("keep one of them, or give an index file (`model.safetensors.index.json`) that says which one counts")
}

const DUPLICATE: &str = "the tensor occurs twice: ";

struct Header {
    entries: BTreeMap<String, RawEntry>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            // A map would keep the last of two equal names silently; which one the writer meant is not knowable.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut described) = (BTreeMap::new(), false);
                while let Some(name) = map.next_key::<String>()? {
                    let is_description = name == "__metadata__";
                    if entries.contains_key(&name) || (is_description && described) {
                        return Err(de::Error::custom(format!("{DUPLICATE}`{name}`")));
                    }
                    if is_description {
                        map.next_value::<Words>()?;
                        described = true;
                    } else {
                        entries.insert(name, map.next_value()?);
                    }
                }
                Ok(Header { entries })
            }
        }
        d.deserialize_map(Entries)
    }
}

/// An object of strings, looked at and not kept.
struct Words;

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Words, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Words;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Words, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(Words)
            }
        }
        d.deserialize_map(Each)
    }
}

/// A safetensors file with these tensors, in the order of their names.
///
/// The data region starts at a multiple of 256 bytes and larger elements come first, so that a mapped file can be read
/// in place by type.
pub fn to_safetensors(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    let mut sorted: Vec<&(&str, &Tensor)> = tensors.iter().collect();
    sorted.sort_by_key(|(name, t)| (std::cmp::Reverse(t.dtype.bytes()), *name));
    let mut header = String::from("{");
    let mut data = Vec::new();
    for (name, tensor) in sorted {
        let start = data.len();
        data.extend_from_slice(&tensor.to_bytes());
        let dtype = stored_as(tensor.dtype);
        if header.len() > 1 {
            header.push(',');
        }
        header += &format!(
            "{}:{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":[{start},{}]}}",
            serde_json::Value::from(*name),
            serde_json::Value::from(tensor.shape.clone()),
            data.len()
        );
    }
    header.push('}');
    while (8 + header.len()) % 256 != 0 {
        header.push(' ');
    }
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&data);
    out
}

/// The type in files of a host tensor.
fn stored_as(dtype: DType) -> StoredType {
    match dtype {
        DType::F64 => S::F64,
        DType::F32 => S::F32,
        DType::F16 => S::F16,
        DType::BF16 => S::BF16,
        DType::I64 => S::I64,
        DType::I32 => S::I32,
        DType::U8 => S::U8,
    }
}

/// Writes [`to_safetensors`] to a file, all or nothing.
///
/// # Errors
/// `output-not-written` when the folder does not exist, is not writable, or the disk is full.
pub fn write_safetensors(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<(), Diagnostic> {
    moec_ir::files::write_atomically(path, &to_safetensors(tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Diagnostic> {
        parse_header(Path::new("m.safetensors"), bytes)
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    fn code(bytes: &[u8]) -> String {
        parse(bytes).expect_err("the file should be refused").code
    }

    #[test]
    fn every_element_type_is_written() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8] {
            let t = Tensor::from_bytes(dtype, &[3], &vec![1; 3 * dtype.bytes()]).expect("three elements");
            let entries = parse(&to_safetensors(&[("t", &t)])).expect("should parse");
            assert_eq!(entries["t"].dtype.name().to_lowercase(), dtype.to_string());
        }
    }

    #[test]
    fn what_is_written_is_read_by_the_reference_crate() {
        let a = Tensor::float(DType::BF16, &[2, 3], vec![1.0, -2.0, 3.5, 0.0, 1e30, f32::INFINITY]);
        let b = Tensor::int(DType::I64, &[2], vec![-1, 1 << 40]);
        let bytes = to_safetensors(&[("a", &a), ("ids", &b)]);
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).expect("should be valid");
        assert_eq!(theirs.tensor("a").expect("a").data(), a.to_bytes());
        assert_eq!(theirs.tensor("ids").expect("ids").shape(), [2]);
        assert_eq!(parse(&bytes).expect("should parse").len(), 2);
    }

    #[test]
    fn what_the_reference_crate_writes_is_read() {
        let data = [0u8; 24];
        let view = ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, vec![2, 3], &data).expect("view");
        let meta = Some([("format".to_string(), "pt".to_string())].into());
        let bytes = ::safetensors::serialize([("w", view)], meta).expect("bytes");
        let entries = parse(&bytes).expect("should parse");
        assert_eq!((entries["w"].dtype, &entries["w"].shape[..]), (StoredType::F32, &[2, 3][..]));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let a = Tensor::float(DType::F32, &[8], vec![0.5; 8]);
        let bytes = to_safetensors(&[("a", &a)]);
        for n in 0..bytes.len() {
            assert_eq!(code(&bytes[..n]), "safetensors-truncated", "cut to {n} bytes");
        }
    }

    #[test]
    fn an_absurd_header_length_is_refused() {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(code(&bytes), "safetensors-truncated");
        assert_eq!(code(&file("", 0)), "safetensors-header-invalid");
        assert_eq!(code(b"PK\x03\x04 a zip file, not safetensors"), "safetensors-header-invalid");
    }

    #[test]
    fn bad_headers_are_refused() {
        for header in [
            "{\"a\":1}",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}",
            "{",
            "{\"__metadata__\":3}",
        ] {
            assert_eq!(code(&file(header, 4)), "safetensors-header-invalid", "{header}");
        }
    }

    #[test]
    fn sizes_and_ranges_must_fit() {
        let one = |dtype: &str, shape: &str, range: &str, data| {
            file(&format!("{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{range}}}}}"), data)
        };
        assert_eq!(code(&one("F32", "[2]", "[0,4]", 4)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F33", "[1]", "[0,4]", 4)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F4", "[3]", "[0,2]", 2)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F32", "[1]", "[4,0]", 4)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F32", "[4611686018427387904,16]", "[0,0]", 0)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F32", "[1]", "[0,4]", 9)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F32", "[1]", "[4,8]", 8)), "safetensors-tensor-invalid");
        assert_eq!(code(&one("F32", "[2]", "[0,8]", 4)), "safetensors-truncated");
        assert!(parse(&one("F32", "[0,7]", "[0,0]", 0)).is_ok());
    }

    #[test]
    fn overlapping_tensors_and_equal_names_are_refused() {
        let two = |a: &str, b: &str, second: &str| {
            let entry = |name: &str, range: &str| {
                format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{range}}}")
            };
            file(&format!("{{{},{}}}", entry("a", a), entry(second, b)), 16)
        };
        assert!(parse(&two("[0,8]", "[8,16]", "b")).is_ok());
        assert_eq!(code(&two("[0,8]", "[4,12]", "b")), "safetensors-tensor-invalid");
        assert_eq!(code(&two("[0,8]", "[0,8]", "b")), "safetensors-tensor-invalid");
        assert_eq!(code(&two("[0,8]", "[8,16]", "a")), "safetensors-duplicate-tensor");
    }
}
