//! Integer weights with zero points, in the packings of GPTQ, AWQ and compressed-tensors.
//!
//! The value of an element is `(code - zero) · scale`, computed in f32. `stem` is the float tensor's name `N` without
//! `.weight`; W is the number of codes in 32 bits.
//!
//! | packing | codes | zero points | scales | groups |
//! |---|---|---|---|---|
//! | GPTQ | `stem.qweight` `[K/W, N]`, low bits first along K | `stem.qzeros` `[G, N/W]`; stored less one, but in `gptq_v2` | `stem.scales` `[G, N]` | `stem.g_idx` `[K]` |
//! | AWQ | `stem.qweight` `[K, N/8]`, columns 0 2 4 6 1 3 5 7 from the low bits | `stem.qzeros` `[G, N/8]` alike | `stem.scales` `[G, N]` | equal |
//! | compressed-tensors | `N_packed` `[N, K/W]`, low bits first, offset binary | `N_zero_point` `[N/W, G]` along N, alike | `N_scale` `[N, G]` | `N_g_idx` `[K]` |
//! | compressed-tensors, INT8 | `N` I8 `[N, K]` | `N_zero_point` I8 `[N, G]` | `N_scale` `[N, G]` | equal |
//!
//! Sources: AutoGPTQ and GPTQModel (`qlinear_torch`), AutoAWQ (`packing_utils`), compressed-tensors (`pack_quantized`).

use crate::checkpoint::Checkpoint;
use crate::safetensors::{StoredType, TensorView};
use moec_ir::diag::Diagnostic;
use moec_ir::quant::ScaleCode;

/// One quantised `[n, k]` matrix.
#[derive(Clone, Debug)]
pub struct Integers<'a> {
    /// Rows, of the float matrix.
    pub n: u64,
    /// Columns.
    pub k: u64,
    packing: Packing,
    bits: u32,
    codes: &'a [u8],
    /// Axis lengths of the codes, in words or bytes.
    code_cols: u64,
    scales: &'a [u8],
    scale: ScaleCode,
    zeros: Zeros<'a>,
    n_groups: u64,
    group_size: u64,
    /// The group of each column; checked to be below `n_groups`.
    group_of: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Gptq,
    Awq,
    Rows,
    Bytes,
}

#[derive(Clone, Copy, Debug)]
enum Zeros<'a> {
    /// The same for all.
    All(i32),
    /// Packed as the packing says; `add` is added and the sum cut to the bits of a code.
    Packed { words: &'a [u8], cols: u64, add: u32 },
    /// Signed bytes `[n, groups]`.
    Bytes(&'a [u8]),
}

/// Bit position, in codes, of each of eight columns of an AWQ word.
const AWQ_PLACE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Whether the checkpoint has the codes of `name` under a name that only integers have.
pub(crate) fn contains(checkpoint: &Checkpoint, name: &str) -> bool {
    name.strip_suffix(".weight").is_some_and(|stem| checkpoint.contains(&format!("{stem}.qweight")))
}

/// The integer matrix that stands for the float tensor `name`; `None` when it is stored in another way, or not at all.
///
/// # Errors
/// `quantised-scale-missing`, `quantised-scale-mismatch`, `quantised-checkpoint` for widths that are not read, and those
/// of [`Checkpoint::tensor`].
pub fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<Option<Integers<'a>>, Diagnostic> {
    if let Some(stem) = name.strip_suffix(".weight")
        && let Some(codes) = checkpoint.tensor(&format!("{stem}.qweight"))?
    {
        return columns(checkpoint, stem, codes).map(Some);
    }
    if let Some(codes) = checkpoint.tensor(&format!("{name}_packed"))?.filter(|c| c.dtype == StoredType::I32) {
        return rows(checkpoint, name, codes);
    }
    if let Some(codes) = checkpoint.tensor(name)?.filter(|c| c.dtype == StoredType::I8) {
        return bytes(checkpoint, name, codes);
    }
    Ok(None)
}

/// GPTQ and AWQ: codes packed from the transposed matrix.
fn columns<'a>(checkpoint: &'a Checkpoint, stem: &str, codes: TensorView<'a>) -> Result<Integers<'a>, Diagnostic> {
    let hints = checkpoint.hints();
    let m = Mismatch { name: format!("{stem}.qweight"), codes };
    if let Some(format) = hints.packing.as_deref().filter(|f| !matches!(*f, "gptq" | "gptq_v2" | "gemm")) {
        return Err(unread(&m, &format!("in the packing `{format}`")));
    }
    let scales = need(checkpoint, &m, &format!("{stem}.scales"))?;
    let zeros = checkpoint.tensor(&format!("{stem}.qzeros"))?;
    let group_of = checkpoint.tensor(&format!("{stem}.g_idx"))?;
    let (&[code_rows, code_cols], &[n_groups, n]) = (codes.shape, scales.shape) else {
        return Err(m.fits_not(&scales, "codes and scales are matrices"));
    };
    if codes.dtype != StoredType::I32 || n == 0 || n_groups == 0 {
        return Err(m.fits_not(&scales, "codes are I32, scales one for each group and column"));
    }
    let packing = if code_cols == n { Packing::Gptq } else { Packing::Awq };
    let bits = match (packing, &zeros) {
        (Packing::Gptq, Some(z)) => {
            z.shape.get(1).map_or(4, |&c| c.saturating_mul(32).checked_div(n).unwrap_or(0) as u32)
        }
        (Packing::Gptq, None) => hints.bits.unwrap_or(4),
        _ => 4,
    };
    if !matches!(bits, 4 | 8) {
        return Err(unread(&m, &format!("with {bits} bits a code")));
    }
    let per_word = u64::from(32 / bits);
    let k = if packing == Packing::Gptq { code_rows.saturating_mul(per_word) } else { code_rows };
    if packing == Packing::Awq && code_cols.checked_mul(8) != Some(n) {
        return Err(m.fits_not(
            &scales,
            "a word holds eight columns (AWQ), or a row of words has a word for each column (GPTQ)",
        ));
    }
    let zeros = match zeros {
        None => Zeros::All(1 << (bits - 1)),
        Some(z) if z.dtype == StoredType::I32 && z.shape == [n_groups, n.div_ceil(per_word)] => {
            // The first version stores one less, and a zero point of 0 as all ones.
            let add = u32::from(packing == Packing::Gptq && hints.packing.as_deref() != Some("gptq_v2"));
            Zeros::Packed { words: z.data, cols: z.shape[1], add }
        }
        Some(z) => return Err(m.fits_not(&z, "zero points are packed I32, one row for each group")),
    };
    let group_of = group_of.map(|g| groups(&m, g, k, n_groups)).transpose()?;
    let scale = scale_code(&m, &scales)?;
    let group_size = group_size(&m, &scales, hints.group_size, k, n_groups)?;
    Ok(Integers {
        n,
        k,
        packing,
        bits,
        codes: codes.data,
        code_cols,
        scales: scales.data,
        scale,
        zeros,
        n_groups,
        group_size,
        group_of,
    })
}

/// compressed-tensors' `pack-quantized`, where [`crate::quantised`] does not read it: zero points, group indices, eight
/// bits, or rows that do not fill their words.
fn rows<'a>(checkpoint: &'a Checkpoint, name: &str, codes: TensorView<'a>) -> Result<Option<Integers<'a>>, Diagnostic> {
    let m = Mismatch { name: format!("{name}_packed"), codes };
    let zeros = checkpoint.tensor(&format!("{name}_zero_point"))?;
    let group_of = checkpoint.tensor(&format!("{name}_g_idx"))?;
    let shape = checkpoint.tensor(&format!("{name}_shape"))?.and_then(|s| integers(&s));
    let &[n, code_cols] = codes.shape else { return Ok(None) };
    let k = match shape.as_deref() {
        Some(&[rows, k]) if rows == n => k,
        Some(_) => return Err(m.fits_not(&codes, "the shape that is stored with the codes has other rows")),
        None => code_cols.saturating_mul(8),
    };
    let bits = [4u32, 8].into_iter().find(|b| k.div_ceil(u64::from(32 / b)) == code_cols);
    let Some(bits) = bits else { return Err(unread(&m, &format!("with {k} columns in {code_cols} words a row"))) };
    let scales = need(checkpoint, &m, &format!("{name}_scale"))?;
    let n_groups = groups_of_rows(&m, &scales, n)?;
    let regular = k.is_multiple_of(8) && (n_groups == 1 || k.is_multiple_of(n_groups));
    if bits == 4 && zeros.is_none() && group_of.is_none() && regular {
        return Ok(None);
    }
    let per_word = u64::from(32 / bits);
    let zeros = match zeros {
        None => Zeros::All(1 << (bits - 1)),
        Some(z) if z.dtype == StoredType::I32 && z.shape == [n.div_ceil(per_word), n_groups] => {
            Zeros::Packed { words: z.data, cols: n_groups, add: 0 }
        }
        Some(z) if z.dtype == StoredType::I8 && z.data.len() as u64 == n.saturating_mul(n_groups) => {
            Zeros::Bytes(z.data)
        }
        Some(z) => return Err(m.fits_not(&z, "zero points are packed along the rows, one column for each group")),
    };
    let group_of = group_of.map(|g| groups(&m, g, k, n_groups)).transpose()?;
    let scale = scale_code(&m, &scales)?;
    let group_size = group_size(&m, &scales, checkpoint.hints().group_size, k, n_groups)?;
    Ok(Some(Integers {
        n,
        k,
        packing: Packing::Rows,
        bits,
        codes: codes.data,
        code_cols,
        scales: scales.data,
        scale,
        zeros,
        n_groups,
        group_size,
        group_of,
    }))
}

/// compressed-tensors' `int-quantized`: signed bytes.
fn bytes<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    codes: TensorView<'a>,
) -> Result<Option<Integers<'a>>, Diagnostic> {
    let Some(scales) = checkpoint.tensor(&format!("{name}_scale"))? else { return Ok(None) };
    let float = matches!(scales.dtype, StoredType::F32 | StoredType::F16 | StoredType::BF16);
    let (&[n, k], true) = (codes.shape, float) else { return Ok(None) };
    let m = Mismatch { name: name.to_string(), codes };
    let n_groups = groups_of_rows(&m, &scales, n)?;
    let zeros = match checkpoint.tensor(&format!("{name}_zero_point"))? {
        None => Zeros::All(0),
        Some(z) if z.dtype == StoredType::I8 && z.data.len() as u64 == n.saturating_mul(n_groups) => {
            Zeros::Bytes(z.data)
        }
        Some(z) => return Err(m.fits_not(&z, "zero points are I8, one for each scale")),
    };
    let scale = scale_code(&m, &scales)?;
    let group_size = group_size(&m, &scales, checkpoint.hints().group_size, k, n_groups)?;
    Ok(Some(Integers {
        n,
        k,
        packing: Packing::Bytes,
        bits: 8,
        codes: codes.data,
        code_cols: k,
        scales: scales.data,
        scale,
        zeros,
        n_groups,
        group_size,
        group_of: None,
    }))
}

impl Integers<'_> {
    /// Dequantises elements `start, start + stride, …`, counted row by row, into `out`.
    pub fn read(&self, start: u64, stride: u64, out: &mut [f32]) {
        for (i, v) in out.iter_mut().enumerate() {
            let at = start + i as u64 * stride;
            *v = self.element(at / self.k, at % self.k);
        }
    }

    fn element(&self, row: u64, col: u64) -> f32 {
        let group = match self.group_of {
            Some(g) => u64::from(word(g, col)),
            None => (col / self.group_size).min(self.n_groups - 1),
        };
        let at = match self.packing {
            Packing::Gptq | Packing::Awq => group * self.n + row,
            Packing::Rows | Packing::Bytes => row * self.n_groups + group,
        };
        let difference = self.code(row, col) - self.zero(row, group);
        difference as f32 * self.scale.decode(self.scales, at as usize)
    }

    fn code(&self, row: u64, col: u64) -> i32 {
        let per_word = u64::from(32 / self.bits);
        let (word_at, place) = match self.packing {
            Packing::Bytes => return i32::from(self.codes[(row * self.code_cols + col) as usize] as i8),
            Packing::Gptq => (col / per_word * self.code_cols + row, (col % per_word) as u32),
            Packing::Awq => (col * self.code_cols + row / 8, AWQ_PLACE[(row % 8) as usize]),
            Packing::Rows => (row * self.code_cols + col / per_word, (col % per_word) as u32),
        };
        self.cut(word(self.codes, word_at), place, 0)
    }

    fn zero(&self, row: u64, group: u64) -> i32 {
        let per_word = u64::from(32 / self.bits);
        match self.zeros {
            Zeros::All(zero) => zero,
            Zeros::Packed { words, cols, add } => match self.packing {
                Packing::Gptq => self.cut(word(words, group * cols + row / per_word), (row % per_word) as u32, add),
                Packing::Awq => self.cut(word(words, group * cols + row / 8), AWQ_PLACE[(row % 8) as usize], add),
                Packing::Rows | Packing::Bytes => {
                    self.cut(word(words, row / per_word * cols + group), (row % per_word) as u32, add)
                }
            },
            Zeros::Bytes(bytes) => {
                let offset = if self.packing == Packing::Bytes { 0 } else { 1 << (self.bits - 1) };
                i32::from(bytes[(row * self.n_groups + group) as usize] as i8) + offset
            }
        }
    }

    fn cut(&self, word: u32, place: u32, add: u32) -> i32 {
        let mask = (1u32 << self.bits) - 1;
        ((((word >> (place * self.bits)) & mask) + add) & mask) as i32
    }
}

/// Word `i` of little-endian bytes.
fn word(bytes: &[u8], i: u64) -> u32 {
    let at = i as usize * 4;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The values of a short tensor of integers.
fn integers(t: &TensorView<'_>) -> Option<Vec<u64>> {
    let tensor = Some(t).filter(|t| t.data.len() <= 64)?.to_tensor().filter(|t| !t.dtype.is_float())?;
    tensor.ints().iter().map(|&i| u64::try_from(i).ok()).collect()
}

/// The group indices, if there is one for each column and each is below `n_groups`.
fn groups<'a>(m: &Mismatch<'_>, g: TensorView<'a>, k: u64, n_groups: u64) -> Result<&'a [u8], Diagnostic> {
    let fits = g.dtype == StoredType::I32 && g.data.len() as u64 == k.saturating_mul(4);
    if !fits || (0..k).any(|i| u64::from(word(g.data, i)) >= n_groups) {
        return Err(m.fits_not(&g, &format!("a group below {n_groups} is needed for each of {k} columns")));
    }
    Ok(g.data)
}

/// How many groups a row has, from scales `[n, groups]`.
fn groups_of_rows(m: &Mismatch<'_>, scales: &TensorView<'_>, n: u64) -> Result<u64, Diagnostic> {
    let count = scales.shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b)).unwrap_or(0);
    match count.checked_div(n) {
        Some(groups) if groups > 0 && groups.checked_mul(n) == Some(count) => Ok(groups),
        _ => Err(m.fits_not(scales, "as many scales for each row are needed")),
    }
}

/// Columns of a group: what the config says where that gives as many groups, else equal ones.
fn group_size(
    m: &Mismatch<'_>,
    scales: &TensorView<'_>,
    hint: Option<u64>,
    k: u64,
    n_groups: u64,
) -> Result<u64, Diagnostic> {
    let size = hint.filter(|&s| s > 0 && k.div_ceil(s) == n_groups).unwrap_or_else(|| k.div_ceil(n_groups));
    if size == 0 || k.div_ceil(size) != n_groups {
        return Err(m.fits_not(scales, &format!("{n_groups} groups do not divide {k} columns")));
    }
    Ok(size)
}

fn scale_code(m: &Mismatch<'_>, scales: &TensorView<'_>) -> Result<ScaleCode, Diagnostic> {
    match scales.dtype {
        StoredType::F32 => Ok(ScaleCode::F32),
        StoredType::BF16 => Ok(ScaleCode::BF16),
        StoredType::F16 => Ok(ScaleCode::F16),
        _ => Err(m.fits_not(scales, "scales of integers are F32, BF16 or F16")),
    }
}

fn need<'a>(checkpoint: &'a Checkpoint, m: &Mismatch<'_>, name: &str) -> Result<TensorView<'a>, Diagnostic> {
    checkpoint.tensor(name)?.ok_or_else(|| {
        Diagnostic::input(
            "quantised-scale-missing",
            format!(
                "`{}` in `{}` is quantised, but its scales are not in the checkpoint",
                m.name,
                m.codes.file.display()
            ),
        )
        .note(format!("looked for `{name}`"))
        .help("give the checkpoint whole, or one in a format that `moec explain quantised-scale-missing` lists")
    })
}

/// Codes that something does not fit.
struct Mismatch<'a> {
    name: String,
    codes: TensorView<'a>,
}

impl Mismatch<'_> {
    fn fits_not(&self, other: &TensorView<'_>, why: &str) -> Diagnostic {
        Diagnostic::input(
            "quantised-scale-mismatch",
            format!(
                "a tensor {} does not fit the codes of `{}`, {}, in `{}`",
                other.describe(),
                self.name,
                self.codes.describe(),
                self.codes.file.display()
            ),
        )
        .note(why)
        .help("see `moec explain quantised-scale-mismatch` for the formats that are read")
    }
}

fn unread(m: &Mismatch<'_>, how: &str) -> Diagnostic {
    Diagnostic::input(
        "quantised-checkpoint",
        format!("`{}` in `{}` is stored {how}, which moec does not read", m.name, m.codes.file.display()),
    )
    .help("GPTQ and AWQ are read with 4 bits a code, GPTQ and compressed-tensors with 8 too")
}
