//! A layer's weights: given one by one, or loaded out of a checkpoint.

use crate::layer::{Created, elsewhere, get, moec_layer};
use crate::memory::{optional_text, text};
use crate::status::{c_string, guard, moec_status};
use crate::structs::{self, moec_checkpoint_options, moec_codes};
use crate::tensor::{Coded, Given, moec_tensor};
use ::moec_bundle::manifest::ParamInfo;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::ScaleCode;
use moec_ir::tile::Buffer;
use moec_runtime::{CachedWeights, Device, Hold, LayerBuilder, Weights};
use moec_weights::{Checkpoint, CodedView, GivenCodes};
use std::ffi::c_char;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whose memory a weight stays in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moec_hold {
    /// The layer's: the elements are copied before the call returns.
    MOEC_COPY = 0,
    /// The caller's, who keeps it unchanged until the layer is freed; an error where kernels need another layout.
    MOEC_BORROW = 1,
    /// The caller's where kernels read it as it lies, else the layer's. The caller keeps it either way.
    MOEC_BORROW_IF_POSSIBLE = 2,
}

/// Where a weight lies that is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnDevice {
    Host,
    Gpu,
}

impl Created {
    /// # Safety
    /// As [`moec_layer_set_param`].
    pub unsafe fn set_param(&self, name: &str, given: *const moec_tensor, hold: Hold) -> Result<(), Diagnostic> {
        // SAFETY: the caller's contract.
        let given = unsafe { Given::read(given, name) }?;
        if given.coded.is_some() {
            let what = format!("the tensor given for `{name}` is {given}: codes without their scales");
            return Err(Diagnostic::input("weight-type-unsupported", what)
                .help("give both with `moec_layer_set_codes`, or floats"));
        }
        let set = |builder: &mut LayerBuilder| {
            let param = builder.param(name)?;
            match self.place(name, &given)? {
                // SAFETY: the caller's contract: the memory lives as long as `hold` asks for.
                OnDevice::Host => unsafe { builder.set(param, &given.view(), hold) },
                // SAFETY: as above; the view describes memory of the GPU.
                OnDevice::Gpu => unsafe { builder.set_from_device(param, given.address, &given.description(), hold) },
            }
        };
        self.change(set).map_err(|d| match d.code.as_str() {
            "stored-format-mismatch" => d.help("give its codes and scales with `moec_layer_set_codes`"),
            _ => d,
        })
    }

    /// # Safety
    /// As [`moec_layer_set_codes`].
    pub unsafe fn set_codes(
        &self,
        name: &str,
        [codes, scales, globals]: [*const moec_tensor; 3],
        hold: Hold,
    ) -> Result<(), Diagnostic> {
        let (codes_name, scales_name) = (format!("{name} (codes)"), format!("{name} (scales)"));
        // SAFETY: the caller's contract.
        let (codes, scales) = unsafe { (Given::read(codes, &codes_name)?, Given::read(scales, &scales_name)?) };
        // SAFETY: as above.
        let globals = unsafe { self.globals(name, globals) }?;
        let place = self.place(&codes_name, &codes)?;
        if self.place(&scales_name, &scales)? != place {
            return Err(elsewhere(&scales_name, &self.device).note(format!("`{codes_name}` lies there")));
        }
        self.change(|builder| {
            let param = builder.param(name)?;
            let view = |given: &Given| match place {
                // SAFETY: the caller's contract: the memory lives as long as `hold` asks for.
                OnDevice::Host => unsafe { given.view() },
                OnDevice::Gpu => given.description(),
            };
            let wrong = |what: &str, given: &Given| {
                Diagnostic::input("weight-type-unsupported", format!("the {what} given for `{name}` are {given}"))
                    .help("codes are bytes or FP8, FP4; scales are floats, bytes, e8m0 or e4m3")
            };
            let (code, scale) = (codes.coded.map(Coded::code), scales.coded.map(Coded::scale));
            if codes.dtype != DType::U8 || code == Some(None) {
                return Err(wrong("codes", &codes));
            }
            let scale = match (scales.dtype, scale) {
                (DType::U8, Some(None)) => return Err(wrong("scales", &scales)),
                (DType::U8, scale) => scale.flatten(),
                (DType::F32, _) => Some(ScaleCode::F32),
                (DType::BF16, _) => Some(ScaleCode::BF16),
                (DType::F16, _) => Some(ScaleCode::F16),
                (DType::F64 | DType::I32 | DType::I64, _) => return Err(wrong("scales", &scales)),
            };
            let code = code.flatten();
            let given = GivenCodes { code, codes: view(&codes), scale, scales: view(&scales), globals };
            let view = CodedView::new(&builder.manifest().params[param].param(), given)?;
            match place {
                // SAFETY: as above.
                OnDevice::Host => unsafe { builder.set_codes(param, &view, hold) },
                // SAFETY: as above; the views describe memory of the GPU.
                OnDevice::Gpu => unsafe {
                    builder.set_codes_from_device(param, (codes.address, scales.address), &view, hold)
                },
            }
        })
    }

    /// Global scales of a host; none for null.
    ///
    /// # Safety
    /// As [`moec_layer_set_codes`].
    unsafe fn globals(&self, name: &str, given: *const moec_tensor) -> Result<Vec<f32>, Diagnostic> {
        if given.is_null() {
            return Ok(Vec::new());
        }
        let name = format!("{name} (globals)");
        // SAFETY: the caller's contract.
        let given = unsafe { Given::read(given, &name) }?;
        if given.dtype != DType::F32 {
            let what = format!("the tensor given for `{name}` is {given}; global scales are f32");
            return Err(Diagnostic::input("weight-type-unsupported", what));
        }
        if !given.on_cpu() {
            let what = format!("the tensor given for `{name}` does not lie in the host's memory");
            return Err(Diagnostic::input("tensor-device-mismatch", what).help("copy it to the host"));
        }
        given.check_place(&name, 1)?;
        // SAFETY: as above.
        let bytes = unsafe { given.view() }.bytes;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect())
    }

    /// Where a tensor lies that is given for a parameter.
    fn place(&self, name: &str, given: &Given) -> Result<OnDevice, Diagnostic> {
        match self.device {
            Device::Cuda { ordinal } if given.on_cuda(ordinal) => Ok(OnDevice::Gpu),
            _ if given.on_cpu() => Ok(OnDevice::Host),
            _ => Err(elsewhere(name, &self.device)),
        }
    }

    pub fn load(
        &self,
        path: &str,
        cache: Option<&str>,
        progress: &(dyn Fn(&ParamInfo, u64, u64) + Sync),
    ) -> Result<(), Diagnostic> {
        self.change(|builder| {
            let checkpoint = Checkpoint::open(path)?;
            let weights = match cache {
                Some(dir) => Weights::Cached(CachedWeights::new(checkpoint.into(), Path::new(dir))?),
                None => Weights::from_checkpoint(checkpoint),
            };
            let (done, total) = (AtomicU64::new(0), builder.weight_bytes());
            let watch = |param: &ParamInfo, buffer: &Buffer| {
                progress(param, done.fetch_add(buffer.bytes(0), Ordering::Relaxed), total);
            };
            builder.load(&Weights::Watched(&weights, &watch))
        })
    }
}

pub(crate) fn hold(number: i32) -> Result<Hold, Diagnostic> {
    match number {
        0 => Ok(Hold::Copy),
        1 => Ok(Hold::Borrow),
        2 => Ok(Hold::Either),
        n => Err(Diagnostic::input("argument-invalid", format!("`hold` is {n}, which is no moec_hold"))),
    }
}

/// Gives the parameter called `name` its weight: a tensor of the parameter's shape, with any strides that are not negative,
/// in the host's memory or the layer's GPU. Elements are rounded to the parameter's type. `hold` is one of `moec_hold`: on the
/// CPU, and on GPUs where kernels read a weight through tensor maps, a matrix whose rows are whole is borrowed wherever its rows
/// and matrices lie, such as half of `[E, 2I, H]`. What lies on a GPU and has to be copied goes through the host's memory, once;
/// no stream still writes it.
///
/// Errors: `unknown-parameter`, `tensor-shape-mismatch`, `weight-type-unsupported`, `parameter-not-borrowable`,
/// `stored-format-mismatch` for a coded parameter, `tensor-device-mismatch`, `tensor-invalid`, `layer-finished`.
///
/// # Safety
/// `name` is null or ends with a zero; `tensor` is null or a tensor whose memory can be read, and stays as it is until the
/// layer is freed unless `hold` is `MOEC_COPY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_set_param(
    layer: *mut moec_layer,
    name: *const c_char,
    tensor: *const moec_tensor,
    hold: i32,
) -> moec_status {
    guard(|| {
        let layer = get(layer as usize)?;
        // SAFETY: the caller's contract.
        unsafe { layer.set_param(text(name, "name")?, tensor, self::hold(hold)?) }
    })
}

/// Gives the parameter called `name`, which is published as codes and scales, both: as `moec_layer_set_param`. With `MOEC_BORROW`
/// the codes stay where they lie; scales do where kernels read them so, and are copied where not.
///
/// Errors: `unknown-parameter`, `stored-format-mismatch` for a parameter without codes or with others, `tensor-shape-mismatch`,
/// `weight-type-unsupported`, `quantised-scale-invalid`, `scale-not-exact`, `parameter-not-borrowable`,
/// `tensor-device-mismatch`, `tensor-invalid`, `layer-finished`.
///
/// # Safety
/// As [`moec_layer_set_param`], of each tensor; `codes` is null or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_set_codes(
    layer: *mut moec_layer,
    name: *const c_char,
    codes: *const moec_codes,
    hold: i32,
) -> moec_status {
    guard(|| {
        let layer = get(layer as usize)?;
        // SAFETY: the caller's contract.
        let given = unsafe { structs::read(codes) }?;
        let tensors = [given.codes, given.scales, given.globals];
        // SAFETY: as above.
        unsafe { layer.set_codes(text(name, "name")?, tensors, self::hold(hold)?) }
    })
}

/// Gives all parameters their weights out of a checkpoint of the model, in the names and formats that it is published in.
///
/// Errors: `checkpoint-not-found` and others about the checkpoint, `layer-finished`, `out-of-memory`,
/// `weight-cache-unusable`.
///
/// # Safety
/// `options` is null or has `struct_size` bytes, and texts that end with a zero; `progress` does not unwind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_layer_load_checkpoint(
    layer: *mut moec_layer,
    options: *const moec_checkpoint_options,
) -> moec_status {
    guard(|| {
        let layer = get(layer as usize)?;
        // SAFETY: the caller's contract.
        let options = unsafe { structs::read(options) }?;
        // SAFETY: as above.
        let (path, cache) = unsafe { (text(options.path, "path")?, optional_text(options.cache, "cache")?) };
        // The host's own pointer, which is nobody else's business: loading calls back on this thread.
        let (progress, user) = (options.progress, options.user.expose_provenance());
        layer.load(path, cache, &|param, done, total| {
            if let Some(progress) = progress {
                let name = c_string(&param.name);
                // SAFETY: the caller's contract.
                unsafe { progress(std::ptr::with_exposed_provenance_mut(user), name.as_ptr(), done, total) };
            }
        })
    })
}
