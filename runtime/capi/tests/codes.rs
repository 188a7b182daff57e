//! Quantised parameters that are given one by one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::host::{BORROW, COPY, EITHER, F32, U8, View, layer, outputs, params, set, set_codes};
use common::{c, last, must, refused};
use moec::{Bundle, CompileRequest, Model, Target, WeightStorage, Weights};
use moec_c::*;
use moec_runtime::write_packed;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance").join(name)
}

fn compiled(path: &Path, weights: WeightStorage) -> Bundle {
    let layer = Model::open(path).expect("model").layer(None).expect("layer");
    let targets = Target::by_name("cpu").into_iter().collect();
    let request = CompileRequest { tokens: (0, 64), weights, ..CompileRequest::new(&layer.graph, targets) };
    moec::compile(&request).expect("compiles").bundle
}

/// What kernels read, by the names of their buffers: bytes, rows of a matrix, columns, and columns from row to row.
struct Packed(Vec<(String, Vec<u8>, [i64; 4])>);

impl Packed {
    fn of(bundle: &Bundle, checkpoint: &Path) -> Packed {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("packed.safetensors");
        let weights = Weights::from_checkpoint(moec::Checkpoint::open(checkpoint).unwrap());
        write_packed(bundle, "cpu", &weights, &file).unwrap();
        let file = moec::Checkpoint::open(&file).unwrap();
        let buffers = moec_runtime::weight_buffers(bundle.manifest(), "cpu").unwrap();
        let one = |(name, b): (String, moec_ir::tile::Buffer)| {
            let bytes = file.tensor(&name).unwrap().unwrap().data.to_vec();
            let shape = [b.batch, b.rows.at(0), b.cols, b.pitch].map(|n| n as i64);
            (name, bytes, shape)
        };
        Packed(buffers.into_iter().map(one).collect())
    }

    /// A view of a buffer without its padding; `stacked` with the axis of matrices.
    fn view(&self, name: &str, dtype: moec_dtype, stacked: bool) -> Option<View> {
        let (_, bytes, [batch, rows, cols, pitch]) = self.0.iter().find(|(n, ..)| n == name)?;
        let (shape, strides) = ([*batch, *rows, *cols], [rows * pitch, *pitch, 1]);
        let from = if stacked { 0 } else { 1 };
        Some(View::dense(bytes, dtype, &[]).cut(0, &shape[from..], &strides[from..]))
    }
}

/// Gives every parameter: codes and scales where it has them.
fn give(layer: *mut moec_layer, packed: &Packed, hold: i32) {
    for (name, param) in params(layer) {
        let stacked = param.ndim == 3;
        if param.is_coded == 1 {
            let codes = packed.view(&name, U8, stacked).unwrap();
            let scales = packed.view(&format!("{name}_scale"), param.scale_dtype, stacked).unwrap();
            let globals = packed.view(&format!("{name}_global"), F32, false).map(|v| {
                let n = v.shape[1];
                v.cut(0, &[n], &[1])
            });
            assert_eq!(globals.is_some(), param.has_global == 1);
            must(set_codes(layer, &name, [Some(&codes), Some(&scales), globals.as_ref()], hold));
        } else {
            let mut view = packed.view(&name, param.dtype, stacked).unwrap();
            // SAFETY: what the library gives lives as long as the layer.
            let shape = unsafe { std::slice::from_raw_parts(param.shape, param.ndim as usize) };
            if view.shape != shape {
                // Rows of all matrices together, or a vector.
                let (_, _, [.., pitch]) = packed.0.iter().find(|(n, ..)| *n == name).unwrap();
                view = view.cut(0, shape, &[*pitch, 1][2 - shape.len()..]);
            }
            must(set(layer, &name, &view, EITHER));
        }
    }
}

/// Every format, as it is published and as floats, copied and in place: the bits of a layer that read the checkpoint.
#[test]
fn codes_and_scales_are_what_the_checkpoint_gives() {
    for name in [
        "deepseek_v3.fp8-block.h256",
        "gpt_oss.mxfp4-gptoss.h256",
        "qwen3_moe.nvfp4-modelopt",
        "qwen3_moe.int4-pack",
        "qwen3_moe.mxfp8",
        "qwen3_moe.fp8-channel",
    ] {
        let path = model(name);
        let bundle = compiled(&path, WeightStorage::AsPublished);
        let packed = Packed::of(&bundle, &path);
        for (bundle, holds) in [(bundle, &[COPY, EITHER][..]), (compiled(&path, WeightStorage::Dequantised), &[COPY])] {
            let want = layer(&bundle, 8);
            let text = c(path.to_str().unwrap());
            // SAFETY: zeros are null and no function.
            let mut options: moec_checkpoint_options = unsafe { std::mem::zeroed() };
            (options.struct_size, options.path) = (size_of::<moec_checkpoint_options>(), text.as_ptr());
            // SAFETY: a path that lives as long as the call.
            must(unsafe { moec_layer_load_checkpoint(want, &options) });
            must(moec_layer_finish(want));
            for hold in holds {
                let layer = layer(&bundle, 8);
                assert!(params(layer).iter().any(|(_, p)| p.is_coded == 1), "{name}");
                give(layer, &packed, *hold);
                must(moec_layer_finish(layer));
                for n in [1, 5] {
                    assert!(outputs(layer, &bundle, n) == outputs(want, &bundle, n), "{name}, {n} tokens, hold {hold}");
                }
                must(moec_layer_free(layer));
            }
            must(moec_layer_free(want));
        }
    }
}

/// The FP8 layer whose `experts.gate` the refusals are about: E, N, K, and its scales' rows and columns.
struct Fp8 {
    bundle: Bundle,
    layer: *mut moec_layer,
    shape: [i64; 3],
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Fp8 {
    fn new() -> Fp8 {
        let path = model("deepseek_v3.fp8-block.h256");
        let bundle = compiled(&path, WeightStorage::AsPublished);
        let layer = layer(&bundle, 4);
        let (_, gate) = params(layer).into_iter().find(|(n, _)| n == "experts.gate").unwrap();
        assert_eq!((gate.code_dtype.code, gate.scale_dtype, gate.block_rows, gate.block_cols), (10, F32, 128, 128));
        // SAFETY: what the library gives lives as long as the layer.
        let shape = unsafe { *gate.shape.cast::<[i64; 3]>() };
        let codes = vec![0x38; shape.iter().product::<i64>() as usize];
        let scales = vec![0.5; (shape[0] * Fp8::grid(shape)[0] * Fp8::grid(shape)[1]) as usize];
        Fp8 { bundle, layer, shape, codes, scales }
    }

    fn grid([_, n, k]: [i64; 3]) -> [i64; 2] {
        [(n + 127) / 128, (k + 127) / 128]
    }

    fn codes(&self, code: u8) -> View {
        View::dense(&self.codes, moec_dtype { code, bits: 8, lanes: 1 }, &self.shape)
    }

    fn scales(&self) -> View {
        let [rows, cols] = Fp8::grid(self.shape);
        View::dense(&self.scales, F32, &[self.shape[0], rows, cols])
    }

    fn code(&self, codes: &View, scales: &View, globals: Option<&View>, hold: i32) -> String {
        refused(set_codes(self.layer, "experts.gate", [Some(codes), Some(scales), globals], hold))
    }
}

#[test]
fn codes_that_do_not_fit_are_refused() {
    let mut f = Fp8::new();
    let (codes, scales) = (f.codes(10), f.scales());
    must(set_codes(f.layer, "experts.gate", [Some(&codes), Some(&scales), None], COPY));
    assert_eq!(params(f.layer).iter().filter(|(_, p)| p.is_set == 1).count(), 1);

    // Codes of other types: e5m2, and e4m3 without infinities and with one zero, whose values are half.
    assert_eq!(f.code(&f.codes(12), &scales, None, COPY), "stored-format-mismatch");
    assert!(last().1.contains("e5m2"), "{:?}", last());
    assert_eq!(f.code(&f.codes(11), &scales, None, COPY), "input-type-mismatch");
    assert_eq!(f.code(&f.codes(14), &scales, None, COPY), "weight-type-unsupported");
    assert_eq!(f.code(&View::dense(&f.scales, F32, &f.shape), &scales, None, COPY), "weight-type-unsupported");
    let ints = View { dtype: moec_dtype { code: 0, bits: 32, lanes: 1 }, ..f.scales() };
    assert_eq!(f.code(&codes, &ints, None, COPY), "weight-type-unsupported");

    // Shapes.
    let [e, n, k] = f.shape;
    assert_eq!(f.code(&View::dense(&f.codes, U8, &[2 * e, n / 2, k]), &scales, None, COPY), "tensor-shape-mismatch");
    assert_eq!(f.code(&View::dense(&f.codes, U8, &[e * n, k]), &scales, None, COPY), "tensor-shape-mismatch");
    assert_eq!(f.code(&codes, &View::dense(&f.scales, F32, &[e, 1, 1, 1]), None, COPY), "tensor-shape-mismatch");
    assert_eq!(f.code(&codes, &View::dense(&f.scales, F32, &[e]), None, COPY), "tensor-shape-mismatch");
    let global = [1f32, 1.0, 1.0];
    assert_eq!(f.code(&codes, &scales, Some(&View::dense(&global, F32, &[3])), COPY), "tensor-shape-mismatch");
    assert_eq!(f.code(&codes, &scales, Some(&View::dense(&global, U8, &[3])), COPY), "weight-type-unsupported");

    // Scales that are none.
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        f.scales[1] = bad;
        assert_eq!(f.code(&codes, &f.scales(), None, COPY), "quantised-scale-invalid");
        assert!(last().1.contains("scale 1 "), "{:?}", last());
        f.scales[1] = 0.5;
        assert_eq!(f.code(&codes, &scales, Some(&View::dense(&[bad], F32, &[1])), COPY), "quantised-scale-invalid");
    }

    // Codes that do not lie in rows stay with nobody; scales may.
    let across = f.codes(10).cut(0, &f.shape, &[n * k, 1, n]);
    assert_eq!(f.code(&across, &scales, None, BORROW), "parameter-not-borrowable");
    must(set_codes(f.layer, "experts.gate", [Some(&across), Some(&scales), None], EITHER));
    let [rows, cols] = Fp8::grid(f.shape);
    let one_for_all = f.scales().cut(0, &[e, rows, cols], &[0, 0, 0]);
    must(set_codes(f.layer, "experts.gate", [Some(&codes), Some(&one_for_all), None], BORROW));

    // Other parameters, other handles, nothing at all.
    assert_eq!(
        refused(set_codes(f.layer, "router.weight", [Some(&codes), Some(&scales), None], COPY)),
        "stored-format-mismatch"
    );
    assert_eq!(refused(set_codes(f.layer, "gate", [Some(&codes), Some(&scales), None], COPY)), "unknown-parameter");
    assert_eq!(refused(set_codes(f.layer, "experts.gate", [None, Some(&scales), None], COPY)), "argument-null");
    assert_eq!(refused(set_codes(f.layer, "experts.gate", [Some(&codes), None, None], COPY)), "argument-null");
    assert_eq!(refused(set_codes(f.layer, "experts.gate", [Some(&codes), Some(&scales), None], 7)), "argument-invalid");
    // FP8 alone has no meaning, for coded parameters and for others.
    for name in ["experts.gate", "router.weight"] {
        assert_eq!(refused(set(f.layer, name, &codes, COPY)), "weight-type-unsupported");
        assert!(last().1.contains("e4m3["), "{:?}", last());
    }
    let floats = vec![0.5f32; f.codes.len()];
    let floats = View::dense(&floats, F32, &f.shape);
    assert_eq!(refused(set(f.layer, "experts.gate", &floats, COPY)), "stored-format-mismatch");
    // SAFETY: text of the library.
    let help = unsafe { std::ffi::CStr::from_ptr(moec_last_error_help()) };
    assert!(help.to_str().unwrap().contains("moec_layer_set_codes"));
    // SAFETY: null is looked at.
    assert_eq!(
        refused(unsafe { moec_layer_set_codes(f.layer, c("experts.gate").as_ptr(), std::ptr::null(), 0) }),
        "argument-null"
    );
    must(moec_layer_free(f.layer));
    assert_eq!(
        refused(set_codes(f.layer, "experts.gate", [Some(&codes), Some(&scales), None], COPY)),
        "handle-invalid"
    );
    assert!(f.bundle.manifest().params.iter().any(|p| p.stored.is_some()));
}

/// Powers of two that are given as floats become e8m0; other numbers do not.
#[test]
fn scales_of_another_type_are_converted_where_that_is_exact() {
    let path = model("gpt_oss.mxfp4-gptoss.h256");
    let bundle = compiled(&path, WeightStorage::AsPublished);
    let layer = layer(&bundle, 4);
    let (name, param) = params(layer).into_iter().find(|(_, p)| p.is_coded == 1).unwrap();
    assert_eq!((param.code_dtype.code, param.scale_dtype.code, param.block_cols), (17, 14, 32));
    // SAFETY: what the library gives lives as long as the layer.
    let [e, n, k] = unsafe { *param.shape.cast::<[i64; 3]>() };
    let codes = vec![0x21u8; (e * n * k / 2) as usize];
    let mut scales = vec![0.25f32; (e * n * k / 32) as usize];
    // As gpt-oss has them: blocks of 16 bytes.
    let blocks = View::dense(&codes, U8, &[e, n, k / 32, 16]);
    let pairs = View::dense(&codes, moec_dtype { code: 17, bits: 4, lanes: 2 }, &[e, n, k / 2]);
    let given = |scales: &[f32]| View::dense(scales, F32, &[e, n, k / 32]);
    must(set_codes(layer, &name, [Some(&blocks), Some(&given(&scales)), None], COPY));
    must(set_codes(layer, &name, [Some(&pairs), Some(&given(&scales)), None], BORROW));
    scales[3] = 0.3;
    let status = set_codes(layer, &name, [Some(&pairs), Some(&given(&scales)), None], COPY);
    assert_eq!(refused(status), "scale-not-exact");
    must(moec_layer_free(layer));
}
