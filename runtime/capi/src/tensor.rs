//! Tensors of the host: DLPack's `DLTensor`, and the checks before one is used.

use crate::memory::{element, null};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, ScaleCode};
use moec_weights::MemoryView;
use std::ffi::c_void;

/// Where a tensor lies: DLPack's `DLDevice`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct moec_device {
    /// 1: the host's memory; 2: CUDA; 3: the host's memory, page-locked by CUDA; 13: CUDA managed memory.
    pub device_type: i32,
    /// Number of the device.
    pub device_id: i32,
}

/// Type of an element: DLPack's `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct moec_dtype {
    /// 0: signed integer; 1: unsigned integer; 2: IEEE float; 4: bfloat16. Of codes and scales: 10: FP8 e4m3fn; 12: FP8 e5m2;
    /// 14: e8m0fnu; 17: FP4 e2m1fn, whose elements are bytes of two: 4 bits, 2 lanes.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// 1.
    pub lanes: u16,
}

/// A tensor in memory of the host: DLPack's `DLTensor`, field by field, so that a pointer to one can be given.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_tensor {
    /// Start of the memory.
    pub data: *mut c_void,
    /// Where it lies.
    pub device: moec_device,
    /// Number of axes.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: moec_dtype,
    /// Lengths of the axes, outermost first.
    pub shape: *const i64,
    /// Distances of the axes in elements; null for a dense tensor, row by row.
    pub strides: *const i64,
    /// From `data` to the first element, in bytes.
    pub byte_offset: u64,
}

/// No type at all.
pub(crate) const NO_DTYPE: moec_dtype = moec_dtype { code: 0, bits: 0, lanes: 0 };

/// DLPack's name of a type of codes; bytes for INT4, which it does not have in pairs.
pub(crate) fn code_dtype(of: Code) -> moec_dtype {
    match of {
        Code::E4M3 => Coded::E4M3.dtype(),
        Code::E5M2 => Coded::E5M2.dtype(),
        Code::E2M1 => Coded::E2M1.dtype(),
        Code::Int4 | Code::Int16 => dtype(DType::U8),
    }
}

/// DLPack's name of a type of scales.
pub(crate) fn scale_dtype(of: ScaleCode) -> moec_dtype {
    match of {
        ScaleCode::F32 => dtype(DType::F32),
        ScaleCode::BF16 => dtype(DType::BF16),
        ScaleCode::F16 => dtype(DType::F16),
        ScaleCode::E8M0 => Coded::E8M0.dtype(),
        ScaleCode::E4M3 => Coded::E4M3.dtype(),
    }
}

/// Types that are bytes with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coded {
    E4M3,
    E5M2,
    E8M0,
    E2M1,
}

impl Coded {
    /// DLPack's name of it.
    fn dtype(self) -> moec_dtype {
        let (code, bits, lanes) = match self {
            Coded::E4M3 => (10, 8, 1),
            Coded::E5M2 => (12, 8, 1),
            Coded::E8M0 => (14, 8, 1),
            Coded::E2M1 => (17, 4, 2),
        };
        moec_dtype { code, bits, lanes }
    }

    /// What DLPack calls so. Its types without infinities and with one zero (`fnuz`), and other FP8, have other values and are
    /// none of these.
    fn of(t: moec_dtype) -> Option<Coded> {
        [Coded::E4M3, Coded::E5M2, Coded::E8M0, Coded::E2M1].into_iter().find(|c| c.dtype() == t)
    }

    fn name(self) -> &'static str {
        match self {
            Coded::E4M3 => "e4m3",
            Coded::E5M2 => "e5m2",
            Coded::E8M0 => "e8m0",
            Coded::E2M1 => "e2m1 pairs ",
        }
    }

    /// As codes of elements; `None` for scales.
    pub fn code(self) -> Option<Code> {
        match self {
            Coded::E4M3 => Some(Code::E4M3),
            Coded::E5M2 => Some(Code::E5M2),
            Coded::E2M1 => Some(Code::E2M1),
            Coded::E8M0 => None,
        }
    }

    /// As scales; `None` for what is none.
    pub fn scale(self) -> Option<ScaleCode> {
        match self {
            Coded::E4M3 => Some(ScaleCode::E4M3),
            Coded::E8M0 => Some(ScaleCode::E8M0),
            Coded::E5M2 | Coded::E2M1 => None,
        }
    }
}

/// Page-locked memory is host memory, managed memory is a GPU's, as far as kernels are concerned.
const CPU: [i32; 2] = [1, 3];
const CUDA: [i32; 2] = [2, 13];
/// Most axes that are looked at: a layer's tensors have one to three.
pub(crate) const MAX_AXES: usize = 8;

/// A tensor that was looked at: nothing in it is impossible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// That of its elements; bytes for those of codes.
    pub dtype: DType,
    /// What the bytes are, where their type says so.
    pub coded: Option<Coded>,
    device: moec_device,
    ndim: usize,
    /// `(length, stride)`, as far as `ndim`.
    axes: [(u64, u64); MAX_AXES],
    /// Address of the first element.
    pub address: u64,
}

/// DLPack's name of a type.
pub(crate) fn dtype(of: DType) -> moec_dtype {
    let (code, bits) = match of {
        DType::F64 => (2, 64),
        DType::F32 => (2, 32),
        DType::F16 => (2, 16),
        DType::BF16 => (4, 16),
        DType::I32 => (0, 32),
        DType::I64 => (0, 64),
        DType::U8 => (1, 8),
    };
    moec_dtype { code, bits, lanes: 1 }
}

fn invalid(what: &str, why: String) -> Diagnostic {
    Diagnostic::input("tensor-invalid", format!("the tensor given for `{what}` {why}"))
}

impl Given {
    /// Looks at a tensor of the host. Does not allocate unless it fails.
    ///
    /// # Errors
    /// `argument-null`, `tensor-invalid`, `input-type-mismatch` for a type that moec does not have.
    ///
    /// # Safety
    /// Null, or a tensor whose `shape` and `strides` are null or have `ndim` elements.
    pub unsafe fn read(from: *const moec_tensor, what: &str) -> Result<Given, Diagnostic> {
        if from.is_null() {
            return Err(null(what));
        }
        // SAFETY: the caller's contract.
        let t = unsafe { from.read_unaligned() };
        let known = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U8];
        let coded = Coded::of(t.dtype);
        let found = known.into_iter().find(|d| dtype(*d) == t.dtype).or(coded.map(|_| DType::U8));
        let Some(dtype) = found else {
            let moec_dtype { code, bits, lanes } = t.dtype;
            return Err(Diagnostic::input(
                "input-type-mismatch",
                format!(
                    "the tensor given for `{what}` has elements of code {code}, {bits} bits, {lanes} lanes, which moec does not have"
                ),
            ));
        };
        let ndim = usize::try_from(t.ndim).ok().filter(|n| *n <= MAX_AXES);
        let ndim = ndim.ok_or_else(|| invalid(what, format!("has {} axes", t.ndim)))?;
        if ndim > 0 && t.shape.is_null() {
            return Err(invalid(what, "has no shape: `shape` is null".into()));
        }
        let mut axes = [(0, 0); MAX_AXES];
        let mut dense = 1u64;
        for i in (0..ndim).rev() {
            // SAFETY: the caller's contract.
            let length = unsafe { element(t.shape, i) };
            let length = u64::try_from(length).map_err(|_| invalid(what, format!("has an axis of length {length}")))?;
            let stride = match t.strides.is_null() {
                true => dense,
                false => {
                    // SAFETY: the caller's contract.
                    let stride = unsafe { element(t.strides, i) };
                    u64::try_from(stride).map_err(|_| invalid(what, format!("has an axis of stride {stride}")))?
                }
            };
            axes[i] = (length, stride);
            dense =
                dense.checked_mul(length.max(1)).ok_or_else(|| invalid(what, "is larger than any memory".into()))?;
        }
        let extent = MemoryView::extent(dtype, &axes[..ndim]);
        let extent = extent.ok_or_else(|| invalid(what, "is larger than any memory".into()))?;
        let address = (t.data as u64).checked_add(t.byte_offset);
        let address = address.filter(|a| a.checked_add(extent).is_some());
        let address = address.ok_or_else(|| invalid(what, "ends beyond all memory".into()))?;
        if t.data.is_null() && extent > 0 {
            return Err(invalid(what, "has no memory: `data` is null".into()));
        }
        Ok(Given { dtype, coded, device: t.device, ndim, axes, address })
    }

    pub fn axes(&self) -> &[(u64, u64)] {
        &self.axes[..self.ndim]
    }

    /// Whether it lies in the host's memory.
    pub fn on_cpu(&self) -> bool {
        CPU.contains(&self.device.device_type)
    }

    /// Whether it lies in the memory of a CUDA device.
    pub fn on_cuda(&self, ordinal: usize) -> bool {
        CUDA.contains(&self.device.device_type) && usize::try_from(self.device.device_id) == Ok(ordinal)
    }

    /// Whether elements lie one behind the other, row by row.
    fn is_dense(&self) -> bool {
        let mut want = 1;
        self.axes().iter().rev().all(|&(length, stride)| {
            let fits = length == 1 || stride == want;
            want *= length.max(1);
            fits
        }) || self.axes().iter().any(|a| a.0 == 0)
    }

    /// That kernels can read or write it where it lies: dense, at an address that is a multiple of `align` or of the
    /// element's size, whichever is more.
    ///
    /// # Errors
    /// `tensor-not-dense`, `tensor-misaligned`.
    pub fn check_place(&self, what: &str, align: u64) -> Result<(), Diagnostic> {
        if !self.is_dense() {
            let strides: Vec<u64> = self.axes().iter().map(|a| a.1).collect();
            return Err(Diagnostic::input(
                "tensor-not-dense",
                format!("the tensor given for `{what}` is {self} with strides {strides:?}; kernels take dense rows"),
            )
            .help("hand in a dense copy"));
        }
        let align = align.max(self.dtype.bytes() as u64);
        let elements: u64 = self.axes().iter().map(|a| a.0).product();
        if elements > 0 && !self.address.is_multiple_of(align) {
            return Err(Diagnostic::input(
                "tensor-misaligned",
                format!("the tensor given for `{what}` begins at {:#x}, which is no multiple of {align}", self.address),
            )
            .help("hand in memory that is aligned to it"));
        }
        Ok(())
    }

    /// Type and shape alone, of memory that is not the host's to read.
    pub fn description(&self) -> MemoryView<'static> {
        MemoryView { dtype: self.dtype, axes: self.axes().to_vec(), bytes: &[] }
    }

    /// The elements as a weight.
    ///
    /// # Safety
    /// The memory can be read for `'a`, and lies on the host, or is not read.
    pub unsafe fn view<'a>(&self) -> MemoryView<'a> {
        // `read` has computed the same without overflow.
        let extent = MemoryView::extent(self.dtype, self.axes()).unwrap_or(0);
        let bytes = match extent {
            0 => &[][..],
            // SAFETY: the caller's contract; `read` has checked that it is not null and does not wrap.
            n => unsafe { std::slice::from_raw_parts(self.address as *const u8, n as usize) },
        };
        MemoryView { dtype: self.dtype, axes: self.axes().to_vec(), bytes }
    }
}

impl std::fmt::Display for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lengths: Vec<u64> = self.axes().iter().map(|a| a.0).collect();
        match self.coded {
            None => write!(f, "{}{lengths:?}", self.dtype),
            Some(coded) => write!(f, "{}{lengths:?}", coded.name()),
        }
    }
}
