//! Everything that C lets a host do wrong: an error with a code, and never a crash.

mod common;

use common::*;
use moec_c::*;
use proptest::prelude::*;
use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

fn ready(max_tokens: u64) -> *mut moec_layer {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    let layer = create(ARCHIVE.get_or_init(archive), max_tokens);
    load(layer);
    must(moec_layer_finish(layer));
    layer
}

#[test]
fn a_whole_life_in_order() {
    let bundle = open(&archive());
    let (mut json, mut layer, mut n) = (null(), null_mut(), 0);
    // SAFETY: handles and places.
    unsafe {
        must(moec_bundle_describe(bundle, &mut json));
        let text = CStr::from_ptr(json).to_str().unwrap();
        let described: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(described["inputs"][0]["shape"], serde_json::json!(["T", 64]));
        assert_eq!(described["targets"][0]["name"], "cpu");
        must(moec_layer_create(bundle, &options(5), &mut layer));
        must(moec_layer_param_count(layer, &mut n));
    }
    must(moec_bundle_free(bundle));
    assert_eq!(n, 4);
    let mut param = moec_param { struct_size: size_of::<moec_param>(), ..empty_param() };
    // SAFETY: a handle and a place.
    must(unsafe { moec_layer_param(layer, 1, &mut param) });
    assert_eq!((param.ndim, param.is_set, param.is_coded), (3, 0, 0));
    // SAFETY: what the library gives lives as long as the layer.
    let shape = unsafe { std::slice::from_raw_parts(param.shape, 3) };
    assert_eq!(shape[0], 8, "{shape:?}");
    load(layer);
    // SAFETY: as above.
    must(unsafe { moec_layer_param(layer, 1, &mut param) });
    assert_eq!(param.is_set, 1);
    must(moec_layer_finish(layer));
    let mut io = Io::new(layer, 5);
    must(io.launch(layer, |_, _| {}));
    assert!(io.output.iter().any(|x| *x != 0.0));
    assert!(io.ids.iter().all(|e| (0..8).contains(e)), "{:?}", io.ids);
    must(moec_layer_free(layer));
}

#[test]
fn threads_are_as_many_as_asked_for_or_refused() {
    let (bundle, mut layer) = (open(&archive()), null_mut());
    for (n_threads, refusal) in [(3, None), (1024, None), (1025, Some("1025")), (u32::MAX, Some("4294967295"))] {
        let options = moec_layer_options { n_threads, ..options(5) };
        // SAFETY: a handle, options and a place.
        let status = unsafe { moec_layer_create(bundle, &options, &mut layer) };
        let Some(named) = refusal else {
            must(status);
            must(moec_layer_free(layer));
            continue;
        };
        assert_eq!(refused(status), "argument-invalid");
        assert!(last().1.contains(named), "{}", last().1);
    }
    must(moec_bundle_free(bundle));
}

#[cfg(target_os = "linux")]
#[test]
fn memory_limits_are_kept_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, cache) = (c(checkpoint().to_str().expect("text")), c(folder.path().to_str().expect("text")));
    let run = |memory_limit: u64, cache: *const std::ffi::c_char| {
        let (bundle, mut layer) = (open(&archive()), null_mut());
        let options = moec_layer_options { memory_limit, ..options(5) };
        // SAFETY: a handle, options and a place.
        must(unsafe { moec_layer_create(bundle, &options, &mut layer) });
        must(moec_bundle_free(bundle));
        let from = moec_checkpoint_options {
            struct_size: size_of::<moec_checkpoint_options>(),
            path: path.as_ptr(),
            cache,
            progress: None,
            user: null_mut(),
        };
        // SAFETY: options, with texts that live.
        let loaded = unsafe { moec_layer_load_checkpoint(layer, &from) };
        let ready = if loaded == moec_status::MOEC_OK { moec_layer_finish(layer) } else { loaded };
        let result = if ready == moec_status::MOEC_OK {
            let mut io = Io::new(layer, 5);
            must(io.launch(layer, |_, _| {}));
            Ok(io.output)
        } else {
            Err(refused(ready))
        };
        must(moec_layer_free(layer));
        result
    };
    let want = run(0, cache.as_ptr()).expect("runs");
    assert_eq!(run(1 << 20, cache.as_ptr()).expect("runs"), want);
    assert_eq!(run(1, cache.as_ptr()).expect_err("too small"), "memory-limit-too-small");
    assert_eq!(run(1 << 20, null()).expect_err("no file"), "memory-limit-needs-file");
}

fn empty_param() -> moec_param {
    // SAFETY: zeros are a valid value of each field.
    unsafe { std::mem::zeroed() }
}

#[test]
fn null_is_refused_everywhere() {
    let layer = ready(4);
    let bundle = open(&archive());
    // SAFETY: null is refused before it is followed.
    unsafe {
        assert_eq!(refused(moec_bundle_open(null(), &mut null_mut())), "argument-null");
        assert_eq!(refused(moec_bundle_open(c"x".as_ptr(), null_mut())), "argument-null");
        assert_eq!(refused(moec_bundle_open_memory(null(), 7, &mut null_mut())), "argument-null");
        assert_eq!(refused(moec_bundle_describe(null(), &mut null())), "argument-null");
        assert_eq!(refused(moec_bundle_describe(bundle, null_mut())), "argument-null");
        assert_eq!(refused(moec_layer_create(null(), null(), &mut null_mut())), "argument-null");
        assert_eq!(refused(moec_layer_create(bundle, null(), null_mut())), "argument-null");
        assert_eq!(refused(moec_layer_param_count(layer, null_mut())), "argument-null");
        assert_eq!(refused(moec_layer_param(layer, 0, null_mut())), "argument-null");
        assert_eq!(refused(moec_layer_set_param(layer, null(), null(), 0)), "argument-null");
        assert_eq!(refused(moec_layer_set_param(layer, c"router.weight".as_ptr(), null(), 0)), "argument-null");
        assert_eq!(refused(moec_layer_load_checkpoint(layer, null())), "argument-null");
        assert_eq!(refused(moec_layer_workspace_bytes(layer, 1, null_mut())), "argument-null");
        assert_eq!(refused(moec_layer_launch(layer, null())), "argument-null");
    }
    assert_eq!(refused(moec_layer_finish(null_mut())), "argument-null");
    let mut io = Io::new(layer, 2);
    assert_eq!(refused(io.launch(layer, |_, l| (l.n_inputs, l.inputs) = (2, null()))), "argument-null");
    let nothing = [null(); 3];
    assert_eq!(refused(io.launch(layer, |_, l| l.outputs = nothing.as_ptr())), "argument-null");
    must(moec_layer_free(null_mut()));
    must(moec_bundle_free(null_mut()));
    must(moec_bundle_free(bundle));
    must(moec_layer_free(layer));
}

#[test]
fn handles_that_are_none_are_refused() {
    let (layer, bundle) = (ready(4), open(&archive()));
    let mut io = Io::new(layer, 1);
    // A bundle is no layer and a layer is no bundle; neither is an address, or any number.
    let number = 0x1234_5678_usize;
    for wrong in [bundle as usize, (&raw const number) as usize, 1, 3, usize::MAX, number] {
        let wrong = wrong as *mut moec_layer;
        assert_eq!(refused(moec_layer_finish(wrong)), "handle-invalid");
        assert_eq!(refused(io.launch(wrong, |_, _| {})), "handle-invalid");
        assert_eq!(refused(moec_layer_free(wrong)), "handle-invalid");
    }
    // SAFETY: places.
    assert_eq!(refused(unsafe { moec_bundle_describe(layer.cast(), &mut null()) }), "handle-invalid");
    must(moec_layer_free(layer));
    assert_eq!(refused(io.launch(layer, |_, _| {})), "handle-invalid");
    assert_eq!(refused(moec_layer_free(layer)), "handle-invalid");
    must(moec_bundle_free(bundle));
    assert_eq!(refused(moec_bundle_free(bundle)), "handle-invalid");
    // SAFETY: as above.
    assert_eq!(refused(unsafe { moec_layer_create(bundle, null(), &mut null_mut()) }), "handle-invalid");
}

#[test]
fn things_are_done_in_their_order() {
    let layer = create(&archive(), 4);
    let mut io = Io::new(layer, 1);
    assert_eq!(refused(io.launch(layer, |_, _| {})), "layer-not-finished");
    assert_eq!(refused(moec_layer_finish(layer)), "parameter-not-set");
    assert!(last().1.contains("`experts.gate`"), "{:?}", last());
    load(layer);
    must(moec_layer_finish(layer));
    must(io.launch(layer, |_, _| {}));
    assert_eq!(refused(moec_layer_finish(layer)), "layer-finished");
    let shape = [8, HIDDEN];
    let mut data = vec![0f32; 512];
    // SAFETY: a tensor that lives as long as the call.
    let set = unsafe { moec_layer_set_param(layer, c"router.weight".as_ptr(), &tensor(&mut data, &shape, 2), 0) };
    assert_eq!(refused(set), "layer-finished");
    must(moec_layer_free(layer));
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let layer = ready(8);
    let mut io = Io::new(layer, 4);
    let mut code = |change: &dyn Fn(&mut [moec_tensor; 4], &mut moec_launch)| {
        let refused = refused(io.launch(layer, change));
        must(io.launch(layer, |_, _| {}));
        refused
    };
    let (narrow, other, many, negative) = ([4, HIDDEN - 1], [3, HIDDEN], [9, HIDDEN], [-1, HIDDEN]);
    assert_eq!(code(&|t, _| t[0].shape = narrow.as_ptr()), "input-shape-mismatch");
    assert_eq!(code(&|t, _| t[1].shape = other.as_ptr()), "input-shape-mismatch");
    assert_eq!(code(&|t, _| t[0].ndim = 1), "input-shape-mismatch");
    assert_eq!(code(&|t, _| t[0].ndim = -1), "tensor-invalid");
    assert_eq!(code(&|t, _| t[0].ndim = i32::MAX), "tensor-invalid");
    assert_eq!(code(&|t, _| t[0].shape = null()), "tensor-invalid");
    assert_eq!(code(&|t, _| t[0].shape = negative.as_ptr()), "tensor-invalid");
    assert_eq!(code(&|t, _| t[0].data = null_mut()), "tensor-invalid");
    assert_eq!(code(&|t, _| t[0].byte_offset = u64::MAX), "tensor-invalid");
    assert_eq!(code(&|t, _| t[0].dtype.bits = 16), "input-type-mismatch");
    assert_eq!(code(&|t, _| t[0].dtype = moec_dtype { code: 9, bits: 3, lanes: 5 }), "input-type-mismatch");
    assert_eq!(code(&|t, _| t[2].dtype.code = 2), "input-type-mismatch");
    assert_eq!(code(&|t, _| t[0].device.device_type = 2), "tensor-device-mismatch");
    assert_eq!(code(&|t, _| t[0].byte_offset = 1), "tensor-misaligned");
    let transposed = [1, 4];
    assert_eq!(code(&|t, _| t[0].strides = transposed.as_ptr()), "tensor-not-dense");
    assert_eq!(code(&|_, l| l.workspace_bytes -= 1), "workspace-too-small");
    assert_eq!(code(&|_, l| l.workspace = null_mut()), "workspace-too-small");
    assert_eq!(code(&|_, l| l.struct_size = 0), "struct-size-invalid");
    assert_eq!(code(&|_, l| l.struct_size = usize::MAX), "struct-size-invalid");
    assert_eq!(code(&|_, l| l.n_inputs = 0), "input-missing");
    // Nine tokens: refused before any of their memory is touched.
    let slots = [9, TOP_K];
    assert_eq!(
        code(&|t, _| {
            (t[0].shape, t[1].shape) = (many.as_ptr(), many.as_ptr());
            (t[2].shape, t[3].shape) = (slots.as_ptr(), slots.as_ptr());
        }),
        "too-many-tokens"
    );
    must(moec_layer_free(layer));
}

#[test]
fn inputs_and_outputs_lie_at_any_aligned_address() {
    let layer = ready(4);
    let mut want = Io::new(layer, 3);
    must(want.launch(layer, |_, _| {}));
    for shift in 1..9 {
        let mut io = Io::new(layer, 3);
        let mut input = vec![0f32; io.input.len() + shift];
        input[shift..].copy_from_slice(&io.input);
        let mut output = vec![0f32; io.output.len() + shift];
        io.workspace.push(0);
        must(io.launch(layer, |t, l| {
            (t[0].data, t[0].byte_offset) = (input.as_mut_ptr().cast(), 4 * shift as u64);
            t[1].data = output[shift..].as_mut_ptr().cast();
            l.workspace = l.workspace.cast::<u8>().wrapping_add(1).cast();
            l.workspace_bytes -= 1;
        }));
        assert_eq!(output[shift..], want.output);
    }
    must(moec_layer_free(layer));
}

#[test]
fn parameters_that_do_not_fit_are_refused() {
    let layer = create(&archive(), 4);
    let mut data = vec![0.5f32; 8 * HIDDEN as usize];
    let (shape, flat) = ([8, HIDDEN], [8 * HIDDEN]);
    let good = tensor(&mut data, &shape, 2);
    let code = |name: &CStr, t: &moec_tensor, hold: i32| {
        // SAFETY: a tensor that lives as long as the layer.
        refused(unsafe { moec_layer_set_param(layer, name.as_ptr(), t, hold) })
    };
    let router = c"router.weight";
    assert_eq!(code(c"gate.weight", &good, 0), "unknown-parameter");
    assert_eq!(code(router, &moec_tensor { ndim: 1, shape: flat.as_ptr(), ..good }, 0), "tensor-shape-mismatch");
    assert_eq!(code(router, &good, 3), "argument-invalid");
    assert_eq!(code(c"\xFF\xFE", &good, 0), "argument-invalid");
    let cuda = moec_device { device_type: 2, device_id: 0 };
    assert_eq!(code(router, &moec_tensor { device: cuda, ..good }, 0), "tensor-device-mismatch");
    let ints = moec_dtype { code: 0, bits: 32, lanes: 1 };
    assert_eq!(code(router, &moec_tensor { dtype: ints, ..good }, 0), "weight-type-unsupported");
    let spread = [HIDDEN, 1];
    // SAFETY: as above.
    must(unsafe { moec_layer_set_param(layer, router.as_ptr(), &moec_tensor { strides: spread.as_ptr(), ..good }, 1) });
    let backwards = [-HIDDEN, 1];
    assert_eq!(code(router, &moec_tensor { strides: backwards.as_ptr(), ..good }, 0), "tensor-invalid");
    let mut param = moec_param { struct_size: size_of::<moec_param>(), ..empty_param() };
    // SAFETY: a place.
    assert_eq!(refused(unsafe { moec_layer_param(layer, 99, &mut param) }), "unknown-parameter");
    must(moec_layer_free(layer));
}

#[test]
fn an_error_belongs_to_its_thread() {
    assert_eq!(refused(moec_layer_finish(null_mut())), "argument-null");
    std::thread::spawn(|| {
        assert_eq!(last(), (String::new(), String::new()));
        assert_eq!(refused(moec_layer_finish(std::ptr::dangling_mut())), "handle-invalid");
    })
    .join()
    .unwrap();
    assert_eq!(last().0, "argument-null");
}

/// One thread frees what the others launch: each launch runs whole or is refused.
#[test]
fn a_layer_may_be_freed_while_it_runs() {
    for _ in 0..20 {
        let layer = ready(4) as usize;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    let layer = layer as *mut moec_layer;
                    // SAFETY: a place.
                    if unsafe { moec_layer_workspace_bytes(layer, 4, &mut 0) } != moec_status::MOEC_OK {
                        return;
                    }
                    let mut io = Io { workspace: vec![0; 1 << 20], ..Io::new(ready(4), 4) };
                    for _ in 0..50 {
                        match io.launch(layer, |_, _| {}) {
                            moec_status::MOEC_OK => assert!(io.output.iter().any(|x| *x != 0.0)),
                            _ => return assert_eq!(last().0, "handle-invalid"),
                        }
                    }
                });
            }
            must(moec_layer_free(layer as *mut moec_layer));
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes in the fields of a tensor that say what it is: a launch is refused or right, and nothing is written beside.
    #[test]
    fn tensors_of_any_content_are_refused_or_right(
        which in 0usize..4,
        ndim in prop_oneof![Just(2), any::<i32>(), 0..9],
        dtype in prop_oneof![Just((2u8, 32u8, 1u16)), Just((0, 32, 1)), any::<(u8, u8, u16)>()],
        device in prop_oneof![Just((1, 0)), any::<(i32, i32)>()],
        lengths in proptest::array::uniform8(prop_oneof![Just(4i64), Just(64), Just(2), any::<i64>(), 0..70i64]),
        strides in proptest::option::of(proptest::array::uniform8(prop_oneof![Just(1i64), Just(64), Just(2), any::<i64>()])),
        offset in prop_oneof![Just(0u64), Just(2), any::<u64>()],
    ) {
        static LAYER: OnceLock<usize> = OnceLock::new();
        let layer = *LAYER.get_or_init(|| ready(8) as usize) as *const moec_layer;
        let mut io = Io::new(layer, 4);
        let mut want = Io::new(layer, 4);
        must(want.launch(layer, |_, _| {}));
        // Room that no valid tensor reaches.
        let status = io.launch(layer, |t, _| {
            let good = t[which];
            t[which] = moec_tensor {
                ndim,
                dtype: moec_dtype { code: dtype.0, bits: dtype.1, lanes: dtype.2 },
                device: moec_device { device_type: device.0, device_id: device.1 },
                shape: lengths.as_ptr(),
                strides: strides.as_ref().map_or(null(), |s| s.as_ptr()),
                byte_offset: offset,
                ..good
            };
            // With an offset the memory would end too early: then the tensor must be refused for something else.
            if offset != 0 {
                t[which].device.device_type = 7;
            }
        });
        if status == moec_status::MOEC_OK {
            prop_assert_eq!(&io.output, &want.output);
        } else {
            prop_assert!(moec_ir::diag::code_page(&last().0).is_some());
        }
    }
}

/// A number that is no handle, one that was, or a living one of the other kind.
fn any_handle() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1usize..4000, any::<usize>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any number as a handle, in every function that takes one: an error with a page, or what the living handle gives.
    #[test]
    fn any_number_is_a_handle_or_refused(handle in any_handle(), n in any::<u64>(), hold in any::<i32>()) {
        let layer = handle as *mut moec_layer;
        let (mut count, mut bytes, mut json) = (0, 0, null());
        let mut param = moec_param { struct_size: size_of::<moec_param>(), ..empty_param() };
        let shape = [8, HIDDEN];
        let mut data = vec![0.5f32; 8 * HIDDEN as usize];
        let t = tensor(&mut data, &shape, 2);
        let name = c"router.weight".as_ptr();
        let codes = moec_codes { struct_size: size_of::<moec_codes>(), codes: &t, scales: &t, globals: &t };
        // SAFETY: places and tensors that live as long as the calls; handles are looked up, not followed. Nothing is freed or
        // borrowed that other tests use: a copy is made, or the call is refused.
        let all = unsafe {
            [
                moec_layer_param_count(layer, &mut count),
                moec_layer_param(layer, n as usize, &mut param),
                moec_layer_workspace_bytes(layer, n, &mut bytes),
                moec_bundle_describe(handle as *const moec_bundle, &mut json),
                moec_layer_set_codes(layer, name, &codes, hold),
                moec_layer_set_param(layer, c"no such parameter".as_ptr(), &t, hold),
            ]
        };
        // The thread keeps the last error only; each that failed had one.
        if all.iter().any(|s| *s != moec_status::MOEC_OK) {
            prop_assert!(moec_ir::diag::code_page(&last().0).is_some(), "{:?}", last());
        }
        prop_assert!(all[5] != moec_status::MOEC_OK);
    }

    /// Any content of a tensor that is given for a parameter, copied: refused, or the parameter is set.
    #[test]
    fn parameters_of_any_content_are_refused_or_set(
        ndim in prop_oneof![Just(2), any::<i32>(), 0..9],
        dtype in prop_oneof![Just((2u8, 32u8, 1u16)), Just((4, 16, 1)), Just((10, 8, 1)), any::<(u8, u8, u16)>()],
        device in prop_oneof![Just((1, 0)), any::<(i32, i32)>()],
        lengths in proptest::array::uniform8(prop_oneof![Just(8i64), Just(64), any::<i64>()]),
        strides in proptest::option::of(proptest::array::uniform8(prop_oneof![Just(1i64), Just(64), Just(0), any::<i64>()])),
        far in any::<bool>(),
        hold in prop_oneof![Just(0), Just(2), any::<i32>()],
        as_codes in any::<bool>(),
    ) {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        let layer = create(ARCHIVE.get_or_init(archive), 1);
        // As large as any tensor of these lengths that would be read: strides beyond 64 are refused for their extent below.
        let data = vec![0.5f32; 64 * 64 * 2];
        let given = moec_tensor {
            data: data.as_ptr().cast_mut().cast(),
            device: moec_device { device_type: device.0, device_id: device.1 },
            ndim,
            dtype: moec_dtype { code: dtype.0, bits: dtype.1, lanes: dtype.2 },
            shape: lengths.as_ptr(),
            strides: strides.as_ref().map_or(null(), |s| s.as_ptr()),
            byte_offset: if far { u64::MAX - 3 } else { 0 },
        };
        // C cannot tell that memory ends: what would be read beyond it is not given.
        let extent = (0..usize::try_from(ndim).unwrap_or(0).min(8)).try_fold(1i64, |sum, i| {
            let dense: Option<i64> = lengths[i + 1..usize::try_from(ndim).ok()?.min(8)].iter().try_fold(1i64, |a, &b| a.checked_mul(b));
            let stride = strides.as_ref().map_or(dense, |s| Some(s[i]));
            sum.checked_add(lengths[i].checked_sub(1)?.checked_mul(stride?)?)
        });
        prop_assume!(far || extent.is_none_or(|n| n < 0 || n <= 64 * 64));
        let codes = moec_codes { struct_size: size_of::<moec_codes>(), codes: &given, scales: &given, globals: null() };
        // SAFETY: memory of that extent, which outlives the layer.
        let status = unsafe {
            match as_codes {
                true => moec_layer_set_codes(layer, c"router.weight".as_ptr(), &codes, hold),
                false => moec_layer_set_param(layer, c"router.weight".as_ptr(), &given, hold),
            }
        };
        let mut param = moec_param { struct_size: size_of::<moec_param>(), ..empty_param() };
        // SAFETY: a place.
        must(unsafe { moec_layer_param(layer, 0, &mut param) });
        prop_assert_eq!(param.is_set == 1, status == moec_status::MOEC_OK);
        if status != moec_status::MOEC_OK {
            prop_assert!(moec_ir::diag::code_page(&last().0).is_some(), "{:?}", last());
        }
        must(moec_layer_free(layer));
    }
}
