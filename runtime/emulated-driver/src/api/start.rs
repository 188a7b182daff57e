//! Starting the driver, its version, errors, and functions by name.

use crate::call::*;
use crate::state::initialize;
use crate::symbols;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// The version of CUDA that this driver is for.
const VERSION: c_int = 13050;

/// Names and sentences by code.
fn errors() -> &'static BTreeMap<c_uint, (CString, CString)> {
    static ERRORS: OnceLock<BTreeMap<c_uint, (CString, CString)>> = OnceLock::new();
    ERRORS.get_or_init(|| {
        let parse = |line: &str| {
            let (code, name) = line.split_once(' ')?;
            let words = name.strip_prefix("CUDA_").unwrap_or(name);
            let words = words.strip_prefix("ERROR_").unwrap_or(words).to_ascii_lowercase().replace('_', " ");
            Some((code.parse().ok()?, (CString::new(name).ok()?, CString::new(words).ok()?)))
        };
        include_str!("../../data/errors.txt").lines().filter_map(parse).collect()
    })
}

api! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        initialize()
    }

    fn cuDriverGetVersion(version: *mut c_int) {
        put(version, VERSION)
    }

    fn cuGetErrorName(code: c_uint, text: *mut *const c_char) {
        let known = errors().get(&code);
        put(text, known.map_or(std::ptr::null(), |(name, _)| name.as_ptr()))?;
        known.map(|_| ()).ok_or(INVALID_VALUE)
    }

    fn cuGetErrorString(code: c_uint, text: *mut *const c_char) {
        let known = errors().get(&code);
        put(text, known.map_or(std::ptr::null(), |(_, sentence)| sentence.as_ptr()))?;
        known.map(|_| ()).ok_or(INVALID_VALUE)
    }

    fn cuGetProcAddress(name: *const c_char, function: *mut *const (), version: c_int, flags: u64) {
        let code = cuGetProcAddress_v2(name, function, version, flags, std::ptr::null_mut());
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuGetProcAddress_v2(
        name: *const c_char,
        function: *mut *const (),
        version: c_int,
        _flags: u64,
        status: *mut c_uint,
    ) {
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        // Not known: 1.
        let found = symbols::find(&CStr::from_ptr(name).to_string_lossy(), version);
        put(function, found.unwrap_or(std::ptr::null()))?;
        put_if(status, c_uint::from(found.is_none()));
        // With a place for the status, a name that is not known is no error.
        if found.is_some() || !status.is_null() { Ok(()) } else { Err(NOT_FOUND) }
    }

    fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) {
        static TOLD: std::sync::Once = std::sync::Once::new();
        TOLD.call_once(|| tell(
            "cuGetExportTable is not in the emulated driver: the CUDA runtime asks for undocumented tables; use the driver API",
        ));
        put(table, std::ptr::null())?;
        Err(NOT_SUPPORTED)
    }

    fn cuProfilerStart() {
        Ok(())
    }

    fn cuProfilerStop() {
        Ok(())
    }
}
