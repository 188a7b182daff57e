//! Reads a launch recipe from JSON and says where it is wrong.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::spec::{Launch, LaunchError, Param, Patch, PatchValue, SWIZZLES, TENSOR_TYPES, TensorMap};
use crate::tensor::swizzle::Swizzle;
use crate::tensor::tensormap::MapElem;

pub(super) type Result<T> = std::result::Result<T, LaunchError>;

/// A value with its path from the root.
#[derive(Clone)]
pub(super) struct At<'a> {
    path: String,
    value: &'a Value,
}

/// Reads a launch recipe.
///
/// What can be checked without the PTX and the buffers is checked: field names, types, ranges, and for tensor maps the
/// limits of `cuTensorMapEncodeTiled`.
///
/// # Errors
/// [`LaunchError::Json`] with line and column, [`LaunchError::Field`] with the path of the guilty field, what was found
/// and what was expected.
pub fn parse(text: &str) -> Result<Launch> {
    let root: Value = serde_json::from_str(text).map_err(|error| LaunchError::Json(error.to_string()))?;
    let root = At::root(&root);
    let object =
        root.object(&[&CALL[..], &["target", "outputs", "tolerance", "note", "source", "confidence"]].concat())?;
    let call = root.call(object)?;
    let (outputs, tolerance) = root.results(object)?;
    let text_of = |name: &str| root.get(object, name).map_or(Ok(String::new()), |at| at.string());
    Ok(Launch {
        target: root.need(object, "target")?.string()?,
        outputs,
        tolerance,
        note: text_of("note")?,
        source: text_of("source")?,
        ..call
    })
}

/// The fields of a launch that say how its kernel is called.
pub(super) const CALL: [&str; 6] = ["entry", "grid", "block", "cluster", "dynamic_smem_bytes", "params"];

/// The outputs, and the tolerance of those that have one.
type Results = (Vec<String>, BTreeMap<String, f64>);

impl<'a> At<'a> {
    /// The root of a recipe.
    pub(super) fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value }
    }

    /// The fields of [`CALL`].
    pub(super) fn call(&self, object: &'a Map<String, Value>) -> Result<Launch> {
        let grid = self.need(object, "grid")?.triple(0x7fff_ffff)?;
        let block = self.need(object, "block")?.triple(1024)?;
        let threads = block.iter().product::<u32>();
        if threads > 1024 {
            return Err(self.child("block").wrong(format!("{threads} threads"), "at most 1024"));
        }
        let cluster = match self.get(object, "cluster") {
            Some(at) => at.triple(16)?,
            None => [1; 3],
        };
        if cluster.iter().product::<u32>() > 16 {
            return Err(self.child("cluster").wrong(format!("{cluster:?}"), "at most 16 CTAs"));
        }
        if let Some(axis) = (0..3).find(|axis| grid[*axis] % cluster[*axis] != 0) {
            let expected = format!("multiples of the cluster {cluster:?}");
            return Err(self.child(&format!("grid[{axis}]")).wrong(grid[axis].to_string(), &expected));
        }
        let dynamic_smem_bytes = match self.get(object, "dynamic_smem_bytes") {
            Some(at) => at.unsigned(232_448)? as u32,
            None => 0,
        };
        let params = self.need(object, "params")?.list()?.iter().map(At::param).collect::<Result<Vec<_>>>()?;
        let entry = self.need(object, "entry")?.string()?;
        Ok(Launch { entry, grid, block, cluster, dynamic_smem_bytes, params, ..Launch::default() })
    }

    /// Outputs and tolerances.
    pub(super) fn results(&self, object: &'a Map<String, Value>) -> Result<Results> {
        let outputs = self.need(object, "outputs")?.strings()?;
        let tolerance = match self.get(object, "tolerance") {
            Some(at) => at.tolerance(&outputs)?,
            None => BTreeMap::new(),
        };
        Ok((outputs, tolerance))
    }

    pub(super) fn strings(&self) -> Result<Vec<String>> {
        self.list()?.iter().map(At::string).collect()
    }

    pub(super) fn child(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { path, value: self.value }
    }

    pub(super) fn wrong(&self, found: String, expected: &str) -> LaunchError {
        LaunchError::Field { field: self.path.clone(), found, expected: expected.to_string() }
    }

    /// An error about the value itself, shown as JSON, shortened.
    pub(super) fn unlike(&self, expected: &str) -> LaunchError {
        let mut found = self.value.to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(57).collect::<String>() + "...";
        }
        self.wrong(found, expected)
    }

    /// The value as an object whose keys are all in `known`.
    pub(super) fn object(&self, known: &[&str]) -> Result<&'a Map<String, Value>> {
        let expected = format!("an object with fields out of {}", known.join(", "));
        let Value::Object(object) = self.value else {
            return Err(self.unlike(&expected));
        };
        match object.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.child(key).wrong("an unknown field".to_string(), &expected)),
            None => Ok(object),
        }
    }

    pub(super) fn get(&self, object: &'a Map<String, Value>, name: &str) -> Option<Self> {
        object.get(name).map(|value| Self { path: self.child(name).path, value })
    }

    pub(super) fn need(&self, object: &'a Map<String, Value>, name: &str) -> Result<Self> {
        self.get(object, name).ok_or_else(|| self.child(name).wrong("no such field".to_string(), "it to be given"))
    }

    pub(super) fn list(&self) -> Result<Vec<Self>> {
        let Value::Array(items) = self.value else {
            return Err(self.unlike("a list"));
        };
        let at = |(i, value)| Self { path: format!("{}[{i}]", self.path), value };
        Ok(items.iter().enumerate().map(at).collect())
    }

    pub(super) fn string(&self) -> Result<String> {
        self.value.as_str().map(str::to_string).ok_or_else(|| self.unlike("a string"))
    }

    fn unsigned(&self, max: u64) -> Result<u64> {
        match self.value.as_u64() {
            Some(number) if number <= max => Ok(number),
            _ => Err(self.unlike(&format!("a whole number from 0 to {max}"))),
        }
    }

    fn signed(&self, bits: u32) -> Result<i64> {
        let (min, max) = (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
        match self.value.as_i64() {
            Some(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(self.unlike(&format!("a whole number from {min} to {max}"))),
        }
    }

    /// A number, or one of `"nan"`, `"inf"`, `"-inf"`, which JSON has no number for.
    fn float(&self) -> Result<f64> {
        match self.value {
            Value::String(text) if text == "nan" => Ok(f64::NAN),
            Value::String(text) if text == "inf" => Ok(f64::INFINITY),
            Value::String(text) if text == "-inf" => Ok(f64::NEG_INFINITY),
            other => other.as_f64().ok_or_else(|| self.unlike("a number, \"nan\", \"inf\" or \"-inf\"")),
        }
    }

    fn triple(&self, max: u64) -> Result<[u32; 3]> {
        let items = self.list()?;
        let [x, y, z] = items.as_slice() else {
            return Err(self.unlike("a list of three numbers: x, y, z"));
        };
        let mut out = [0; 3];
        for (out, item) in out.iter_mut().zip([x, y, z]) {
            let number = item.unsigned(max)?;
            if number == 0 {
                return Err(item.unlike(&format!("a whole number from 1 to {max}")));
            }
            *out = number as u32;
        }
        Ok(out)
    }

    fn numbers(&self, min: u64, max: u64) -> Result<Vec<u64>> {
        let one = |item: &Self| match item.unsigned(max)? {
            number if number < min => Err(item.unlike(&format!("a whole number from {min} to {max}"))),
            number => Ok(number),
        };
        self.list()?.iter().map(one).collect()
    }

    fn one_of<T: Copy>(&self, names: &[(&str, T)]) -> Result<T> {
        let found = self.value.as_str().and_then(|text| names.iter().find(|(name, _)| *name == text));
        let all = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        found.map(|(_, value)| *value).ok_or_else(|| self.unlike(&format!("one of {}", all())))
    }

    fn tolerance(&self, outputs: &[String]) -> Result<BTreeMap<String, f64>> {
        let Value::Object(object) = self.value else {
            return Err(self.unlike("an object: output to {\"rel_fro\": number}"));
        };
        let mut all = BTreeMap::new();
        for (name, value) in object {
            let at = Self { path: self.child(name).path, value };
            if !outputs.contains(name) {
                return Err(at.wrong(format!("`{name}`"), &format!("one of the outputs {}", outputs.join(", "))));
            }
            let limit = at.need(at.object(&["rel_fro"])?, "rel_fro")?;
            match limit.float()? {
                number if number >= 0.0 => all.insert(name.clone(), number),
                _ => return Err(limit.unlike("a number of at least 0")),
            };
        }
        Ok(all)
    }

    fn param(&self) -> Result<Param> {
        const KINDS: [&str; 17] = [
            "buffer",
            "pointers",
            "null",
            "bytes",
            "tensor_map",
            "u8",
            "i8",
            "u16",
            "i16",
            "u32",
            "i32",
            "u64",
            "i64",
            "f32",
            "f64",
            "offset_bytes",
            "patch",
        ];
        let object = self.object(&KINDS)?;
        let extra = |allowed: &[&str]| match object.keys().find(|key| !allowed.contains(&key.as_str())) {
            Some(key) => Err(self.child(key).wrong("a field".to_string(), &format!("only {}", allowed.join(", ")))),
            None => Ok(()),
        };
        if let Some(name) = self.get(object, "buffer") {
            extra(&["buffer", "offset_bytes"])?;
            return Ok(Param::Buffer { name: name.string()?, offset_bytes: self.offset(object)? });
        }
        if let Some(names) = self.get(object, "pointers") {
            extra(&["pointers"])?;
            return Ok(Param::Pointers(names.strings()?));
        }
        if let Some(null) = self.get(object, "null") {
            extra(&["null"])?;
            return if null.value == &Value::Bool(true) { Ok(Param::Null) } else { Err(null.unlike("true")) };
        }
        if let Some(bytes) = self.get(object, "bytes") {
            extra(&["bytes", "patch"])?;
            let bytes = bytes.hex()?;
            let patches = match self.get(object, "patch") {
                Some(list) => list.list()?.iter().map(|at| at.patch(bytes.len())).collect::<Result<Vec<_>>>()?,
                None => Vec::new(),
            };
            return Ok(Param::Bytes { bytes, patches });
        }
        if let Some(map) = self.get(object, "tensor_map") {
            extra(&["tensor_map"])?;
            return Ok(Param::TensorMap(map.tensor_map()?));
        }
        let Some((kind, _)) = object.iter().next() else {
            return Err(self.unlike(&format!("one of {}", KINDS[..15].join(", "))));
        };
        let at = self.need(object, kind)?;
        extra(&[kind.as_str()])?;
        Ok(Param::Scalar(match kind.as_str() {
            "u8" => vec![at.unsigned(u64::from(u8::MAX))? as u8],
            "i8" => vec![at.signed(8)? as u8],
            "u16" => (at.unsigned(u64::from(u16::MAX))? as u16).to_le_bytes().to_vec(),
            "i16" => (at.signed(16)? as i16).to_le_bytes().to_vec(),
            "u32" => (at.unsigned(u64::from(u32::MAX))? as u32).to_le_bytes().to_vec(),
            "i32" => (at.signed(32)? as i32).to_le_bytes().to_vec(),
            "u64" => at.unsigned(u64::MAX)?.to_le_bytes().to_vec(),
            "i64" => at.signed(64)?.to_le_bytes().to_vec(),
            "f32" => (at.float()? as f32).to_le_bytes().to_vec(),
            "f64" => at.float()?.to_le_bytes().to_vec(),
            _ => return Err(self.unlike(&format!("one of {}", KINDS[..15].join(", ")))),
        }))
    }

    fn offset(&self, object: &'a Map<String, Value>) -> Result<u64> {
        self.get(object, "offset_bytes").map_or(Ok(0), |at| at.unsigned(1 << 48))
    }

    fn hex(&self) -> Result<Vec<u8>> {
        let expected = "an even number of hexadecimal digits";
        let text = self.value.as_str().ok_or_else(|| self.unlike(expected))?;
        let digits = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<Vec<u8>>>();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => Ok(digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()),
            _ => Err(self.unlike(expected)),
        }
    }

    fn patch(&self, size: usize) -> Result<Patch> {
        let object = self.object(&["at", "buffer", "offset_bytes", "tensor_map"])?;
        let place = self.need(object, "at")?;
        let at = place.unsigned(size as u64)? as usize;
        let (value, width) = match (self.get(object, "buffer"), self.get(object, "tensor_map")) {
            (Some(name), None) => (PatchValue::Buffer { name: name.string()?, offset_bytes: self.offset(object)? }, 8),
            (None, Some(map)) => (PatchValue::TensorMap(map.tensor_map()?), 128),
            _ => return Err(self.unlike("either `buffer` or `tensor_map` beside `at`")),
        };
        if at + width > size {
            let found = format!("bytes {at} to {}", at + width);
            return Err(place.wrong(found, &format!("a place within the struct of {size} bytes")));
        }
        Ok(Patch { at, value })
    }

    fn tensor_map(&self) -> Result<TensorMap> {
        let object = self.object(&[
            "buffer",
            "offset_bytes",
            "dtype",
            "dims",
            "strides_bytes",
            "box",
            "element_strides",
            "swizzle",
            "interleave",
            "oob",
        ])?;
        let dtype = self.need(object, "dtype")?.one_of(&TENSOR_TYPES)?;
        let dims_at = self.need(object, "dims")?;
        let dims = dims_at.numbers(1, 1 << 32)?;
        let rank = dims.len();
        if !(1..=5).contains(&rank) {
            return Err(dims_at.wrong(format!("{rank} dimensions"), "1 to 5"));
        }
        let of_rank = |at: &Self, count: usize, want: usize| {
            let found = format!("{count} numbers");
            if count == want { Ok(()) } else { Err(at.wrong(found, &format!("{want}, since `dims` has {rank}"))) }
        };
        let strides_bytes = match self.get(object, "strides_bytes") {
            Some(at) => {
                let strides = at.numbers(0, (1 << 40) - 1)?;
                of_rank(&at, strides.len(), rank - 1)?;
                let unit = if dtype == MapElem::B4x16P64 || dtype == MapElem::B6x16P32 { 32 } else { 16 };
                if let Some(stride) = strides.iter().find(|stride| *stride % unit != 0) {
                    return Err(at.wrong(format!("{stride} bytes"), &format!("multiples of {unit}")));
                }
                strides
            }
            None if rank == 1 => Vec::new(),
            None => {
                return Err(self.child("strides_bytes").wrong("no such field".into(), "it to be given"));
            }
        };
        let box_at = self.need(object, "box")?;
        let box_dims: Vec<u32> = box_at.numbers(1, 256)?.iter().map(|n| *n as u32).collect();
        of_rank(&box_at, box_dims.len(), rank)?;
        let element_strides = match self.get(object, "element_strides") {
            Some(at) => {
                let strides: Vec<u32> = at.numbers(1, 8)?.iter().map(|n| *n as u32).collect();
                of_rank(&at, strides.len(), rank)?;
                strides
            }
            None => vec![1; rank],
        };
        let named = |name: &str| self.get(object, name);
        let swizzle = named("swizzle").map_or(Ok(Swizzle::None), |at| at.one_of(&SWIZZLES))?;
        named("interleave").map_or(Ok(()), |at| at.one_of(&[("none", ())]))?;
        let fill_nan = named("oob").map_or(Ok(false), |at| at.one_of(&[("zero", false), ("nan", true)]))?;
        let row_bytes = dtype.shared_bytes(u64::from(box_dims[0]));
        if row_bytes % 16 != 0 {
            return Err(box_at.wrong(format!("{row_bytes} bytes innermost"), "a multiple of 16 bytes"));
        }
        if swizzle != Swizzle::None && row_bytes > u64::from(swizzle.span()) {
            let expected = format!("at most the {} bytes of the swizzle", swizzle.span());
            return Err(box_at.wrong(format!("{row_bytes} bytes innermost"), &expected));
        }
        Ok(TensorMap {
            buffer: self.need(object, "buffer")?.string()?,
            offset_bytes: self.offset(object)?,
            dtype,
            dims,
            strides_bytes,
            box_dims,
            element_strides,
            swizzle,
            fill_nan,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(params: &str) -> String {
        format!(
            r#"{{"entry":"k","target":"sm_90a","grid":[4,1,1],"block":[128,1,1],"cluster":[2,1,1],
                "dynamic_smem_bytes":1024,"params":[{params}],"outputs":["c"],"tolerance":{{"c":{{"rel_fro":0.01}}}}}}"#
        )
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_parameter_is_read() {
        let launch = parse(&with(
            r#"{"buffer":"a"}, {"buffer":"a","offset_bytes":128}, {"null":true}, {"u32":128}, {"i32":-1}, {"u64":5},
               {"f32":1.5}, {"bytes":"00ff"}, {"u8":255}, {"i16":-2}, {"f64":"-inf"},
               {"bytes":"0000000000000000", "patch":[{"at":0,"buffer":"b","offset_bytes":8}]},
               {"tensor_map":{"buffer":"a","dtype":"bf16","dims":[64,128],"strides_bytes":[128],"box":[64,64],
                "element_strides":[1,1],"swizzle":"128B","interleave":"none","oob":"zero"}}"#,
        ))
        .unwrap();
        assert_eq!(launch.cluster, [2, 1, 1]);
        assert_eq!(launch.tolerance["c"], 0.01);
        let sizes: Vec<usize> = launch.params.iter().map(Param::size_bytes).collect();
        assert_eq!(sizes, [8, 8, 8, 4, 4, 8, 4, 2, 1, 2, 8, 8, 128]);
        assert_eq!(launch.params[1], Param::Buffer { name: "a".into(), offset_bytes: 128 });
        assert_eq!(launch.params[4], Param::Scalar(vec![255; 4]));
        assert_eq!(launch.params[6], Param::Scalar(1.5f32.to_le_bytes().to_vec()));
        assert_eq!(launch.params[7], Param::Bytes { bytes: vec![0, 255], patches: vec![] });
        let Param::TensorMap(map) = &launch.params[12] else { panic!() };
        assert_eq!((map.swizzle, map.dtype, map.fill_nan), (Swizzle::B128, MapElem::Bf16, false));
    }

    #[test]
    fn errors_name_the_field_and_both_sides() {
        assert_eq!(
            error(&with(r#"{"i32": 1}, {"i16": 40000}"#)),
            "launch recipe: `params[1].i16`: found 40000, expected a whole number from -32768 to 32767"
        );
        assert_eq!(error(&with(r#"{"buffer": 3}"#)), "launch recipe: `params[0].buffer`: found 3, expected a string");
        assert_eq!(
            error(&with("").replace("[4,1,1]", "[3,1,1]")),
            "launch recipe: `grid[0]`: found 3, expected multiples of the cluster [2, 1, 1]"
        );
        assert_eq!(
            error(&with("").replace("\"block\"", "\"blok\"")).split(", expected").next().unwrap(),
            "launch recipe: `blok`: found an unknown field"
        );
        assert_eq!(
            error(&with("").replace(r#""tolerance":{"c""#, r#""tolerance":{"d""#)),
            "launch recipe: `tolerance.d`: found `d`, expected one of the outputs c"
        );
        assert_eq!(
            error(&with(r#"{"bytes":"0011","patch":[{"at":0,"buffer":"b"}]}"#)),
            "launch recipe: `params[0].patch[0].at`: found bytes 0 to 8, expected a place within the struct of 2 bytes"
        );
        assert!(error("{").starts_with("launch recipe: EOF while parsing"));
        assert!(error("[]").contains("expected an object"));
    }

    #[test]
    fn tensor_maps_that_the_driver_would_refuse_are_refused() {
        let map = |change: (&str, &str)| {
            let text = r#"{"tensor_map":{"buffer":"a","dtype":"bf16","dims":[64,128],"strides_bytes":[128],"box":[64,64],
                "element_strides":[1,1],"swizzle":"128B","interleave":"none","oob":"zero"}}"#;
            error(&with(&text.replace(change.0, change.1)))
        };
        assert!(map(("\"128B\"", "\"64B\"")).contains("found 128 bytes innermost, expected at most the 64 bytes"));
        assert!(map(("[128],\"box\"", "[120],\"box\"")).contains("found 120 bytes, expected multiples of 16"));
        assert!(map(("[64,64]", "[64]")).contains("`params[0].tensor_map.box`: found 1 numbers, expected 2"));
        assert!(map(("[64,64]", "[64,257]")).contains("`params[0].tensor_map.box[1]`: found 257"));
        assert!(map(("\"bf16\"", "\"bf17\"")).contains("one of u8, u16"));
        assert!(map(("[64,64]", "[4,64]")).contains("a multiple of 16 bytes"));
    }
}
