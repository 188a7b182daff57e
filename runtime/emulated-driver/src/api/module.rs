//! Modules and libraries from PTX text, and the linker, which passes one PTX text through.

use crate::call::*;
use crate::state::{Function, Module, State, current, state};
use crate::structs::Handle;
use moec_ptx::ast::Module as Ptx;
use moec_ptx::exec::{CompileError, Program};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::sync::Arc;

/// What a module's image is by its first bytes.
unsafe fn text<'a>(image: *const c_void) -> Result<&'a str, Error> {
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    let refuse = |what: &str| {
        tell(&format!("{what} cannot be run: the emulator takes PTX text (nvcc -ptx)"));
        Err(NO_BINARY_FOR_GPU)
    };
    // SAFETY: an image has at least four bytes, or ends with a zero before.
    let head = unsafe { CStr::from_ptr(image.cast()) }.to_bytes();
    match head {
        [0x7f, b'E', b'L', b'F', ..] => return refuse("a cubin"),
        [0x50, 0xed, 0x55, 0xba, ..] => return refuse("a fatbin"),
        [0xb1, 0x43, 0x62, 0x46, ..] => return refuse("a wrapped fatbin"),
        [0xed, 0x43, 0x4e, 0x4c, ..] => return refuse("an NVVM or LTO image"),
        _ => {}
    }
    std::str::from_utf8(head).map_err(|_| INVALID_IMAGE)
}

/// Writes a message to the log that the options ask for.
unsafe fn log_error(options: (c_uint, *const c_uint, *const *mut c_void), message: &str) {
    let (n, names, values) = options;
    let mut log = (std::ptr::null_mut::<u8>(), 0usize);
    for i in 0..n as usize {
        // SAFETY: there are as many options as the program says.
        let (name, value) = unsafe { (*names.add(i), *values.add(i)) };
        match name {
            5 => log.0 = value.cast(),
            6 => log.1 = value as usize,
            _ => {}
        }
    }
    if !log.0.is_null() && log.1 > 0 {
        let n = message.len().min(log.1 - 1);
        // SAFETY: the log has as many bytes as the program says.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr(), log.0, n);
            *log.0.add(n) = 0;
        }
    }
}

/// Loads PTX; its kernels are compiled when they are asked for, as the driver does by default.
unsafe fn load(place: *mut Handle, ptx: &str, options: (c_uint, *const c_uint, *const *mut c_void)) -> Call {
    let module = match Ptx::parse(ptx) {
        Ok(module) => module,
        Err(e) => {
            tell(&format!("PTX, line {e}"));
            // SAFETY: the caller's contract.
            unsafe { log_error(options, &format!("line {e}")) };
            return Err(INVALID_PTX);
        }
    };
    let ptx = Arc::new(module);
    let handle = state()?.modules.add(Module { ptx, kernels: BTreeMap::new(), variables: BTreeMap::new() });
    // SAFETY: the caller's contract.
    unsafe { put(place, handle) }
}

impl State {
    /// A kernel of a module by its name.
    fn kernel(&mut self, module: Handle, name: &str) -> Result<Handle, Error> {
        let m = self.modules.get(module)?;
        if let Some(known) = m.kernels.get(name) {
            return Ok(*known);
        }
        let program = Program::compile(&m.ptx, name).map_err(|e| {
            tell(&format!("`{name}`: {e}"));
            match e {
                CompileError::NoEntry { .. } => NOT_FOUND,
                CompileError::Unsupported { .. } => NOT_SUPPORTED,
                CompileError::Target(_) => NO_BINARY_FOR_GPU,
                _ => INVALID_PTX,
            }
        })?;
        let target = self.emulator.target();
        if !target.runs(program.target()) {
            tell(&format!("`{name}` is for {}, which {target} does not run", program.target()));
            return Err(NO_BINARY_FOR_GPU);
        }
        let name_c = CString::new(name).map_err(|_| NOT_FOUND)?;
        let program = Arc::new(program);
        let handle = self.functions.add(Function { module, program, attributes: BTreeMap::new(), name: name_c });
        self.modules.get_mut(module)?.kernels.insert(name.to_owned(), handle);
        Ok(handle)
    }

    /// Address and bytes of a variable of a module.
    fn global(&mut self, module: Handle, name: &str) -> Result<(u64, u64), Error> {
        let device = self.device()?;
        // Any kernel knows all variables of its module.
        let first = self.modules.get(module)?.ptx.entries().next().map(|f| f.name.clone()).ok_or(NOT_FOUND)?;
        let kernel = self.kernel(module, &first)?;
        self.variables(kernel, device)?.find(name).ok_or(NOT_FOUND)
    }

    fn unload(&mut self, module: Handle) -> Call {
        let m = self.modules.remove(module)?;
        for kernel in m.kernels.values() {
            self.functions.remove(*kernel)?;
        }
        for variables in m.variables.values() {
            self.emulator.free_variables(variables).map_err(|_| INVALID_VALUE)?;
            for (address, _) in variables.all() {
                self.allocations.remove(&address);
            }
        }
        Ok(())
    }

    fn names(&self, module: Handle) -> Result<Vec<String>, Error> {
        Ok(self.modules.get(module)?.ptx.entries().map(|f| f.name.clone()).collect())
    }
}

unsafe fn name<'a>(name: *const c_char) -> Result<std::borrow::Cow<'a, str>, Error> {
    if name.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: a name of the program ends with a zero.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy())
}

/// A file with an image.
unsafe fn file(path: *const c_char) -> Result<Vec<u8>, Error> {
    // SAFETY: the caller's contract.
    let path = unsafe { name(path)? };
    let mut bytes = std::fs::read(&*path).map_err(|e| {
        tell(&format!("{path}: {e}"));
        FILE_NOT_FOUND
    })?;
    bytes.push(0);
    Ok(bytes)
}

/// Adds PTX, which is number 1 among the linker's inputs.
fn add_to_link(link: Handle, kind: c_uint, bytes: &[u8]) -> Call {
    if kind != 1 {
        tell("the linker of the emulated driver takes PTX text, and nothing else");
        return Err(NOT_SUPPORTED);
    }
    let text = String::from_utf8_lossy(bytes);
    let module = Ptx::parse(text.trim_end_matches('\0')).map_err(|e| {
        tell(&format!("PTX, line {e}"));
        INVALID_PTX
    })?;
    let mut s = state()?;
    let (modules, first) = s.links.get_mut(link)?;
    if modules.is_empty() {
        *first = text.trim_end_matches('\0').as_bytes().to_vec();
    }
    modules.push(module);
    Ok(())
}

const NO_OPTIONS: (c_uint, *const c_uint, *const *mut c_void) = (0, std::ptr::null(), std::ptr::null());

api! {
    fn cuModuleLoadData(place: *mut Handle, image: *const c_void) {
        current()?;
        load(place, text(image)?, NO_OPTIONS)
    }

    fn cuModuleLoadDataEx(
        place: *mut Handle,
        image: *const c_void,
        n: c_uint,
        options: *const c_uint,
        values: *const *mut c_void,
    ) {
        current()?;
        load(place, text(image)?, (n, options, values))
    }

    fn cuModuleLoadFatBinary(place: *mut Handle, image: *const c_void) {
        current()?;
        load(place, text(image)?, NO_OPTIONS)
    }

    fn cuModuleLoad(place: *mut Handle, path: *const c_char) {
        current()?;
        let bytes = file(path)?;
        load(place, text(bytes.as_ptr().cast())?, NO_OPTIONS)
    }

    fn cuModuleUnload(module: Handle) {
        state()?.unload(module)
    }

    fn cuModuleGetFunction(place: *mut Handle, module: Handle, of: *const c_char) {
        let kernel = state()?.kernel(module, &name(of)?)?;
        put(place, kernel)
    }

    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: Handle, of: *const c_char) {
        let (at, n) = state()?.global(module, &name(of)?)?;
        put_if(address, at);
        put_if(bytes, n as usize);
        Ok(())
    }

    fn cuModuleGetLoadingMode(mode: *mut c_uint) {
        // Lazy.
        put(mode, 2)
    }

    fn cuModuleGetFunctionCount(count: *mut c_uint, module: Handle) {
        put(count, state()?.names(module)?.len() as c_uint)
    }

    fn cuModuleEnumerateFunctions(places: *mut Handle, n: c_uint, module: Handle) {
        let mut s = state()?;
        for (i, name) in s.names(module)?.iter().take(n as usize).enumerate() {
            *places.add(i) = s.kernel(module, name)?;
        }
        Ok(())
    }

    fn cuLibraryLoadData(
        place: *mut Handle,
        image: *const c_void,
        jit: *const c_uint,
        jit_values: *const *mut c_void,
        n_jit: c_uint,
        _options: *const c_uint,
        _values: *const *mut c_void,
        _n: c_uint,
    ) {
        load(place, text(image)?, (n_jit, jit, jit_values))
    }

    fn cuLibraryLoadFromFile(
        place: *mut Handle,
        path: *const c_char,
        jit: *const c_uint,
        jit_values: *const *mut c_void,
        n_jit: c_uint,
        _options: *const c_uint,
        _values: *const *mut c_void,
        _n: c_uint,
    ) {
        let bytes = file(path)?;
        load(place, text(bytes.as_ptr().cast())?, (n_jit, jit, jit_values))
    }

    fn cuLibraryUnload(library: Handle) {
        state()?.unload(library)
    }

    fn cuLibraryGetKernel(place: *mut Handle, library: Handle, of: *const c_char) {
        let kernel = state()?.kernel(library, &name(of)?)?;
        put(place, kernel)
    }

    fn cuLibraryGetModule(place: *mut Handle, library: Handle) {
        state()?.modules.get(library)?;
        put(place, library)
    }

    fn cuLibraryGetGlobal(address: *mut u64, bytes: *mut usize, library: Handle, of: *const c_char) {
        let (at, n) = state()?.global(library, &name(of)?)?;
        put_if(address, at);
        put_if(bytes, n as usize);
        Ok(())
    }

    fn cuLibraryGetKernelCount(count: *mut c_uint, library: Handle) {
        put(count, state()?.names(library)?.len() as c_uint)
    }

    fn cuLibraryEnumerateKernels(places: *mut Handle, n: c_uint, library: Handle) {
        let code = cuModuleEnumerateFunctions(places, n, library);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuLinkCreate_v2(_n: c_uint, _options: *const c_uint, _values: *const *mut c_void, place: *mut Handle) {
        current()?;
        let link = state()?.links.add((Vec::new(), Vec::new()));
        put(place, link)
    }

    fn cuLinkAddData_v2(
        link: Handle,
        kind: c_uint,
        data: *const u8,
        bytes: usize,
        _name: *const c_char,
        _n: c_uint,
        _options: *const c_uint,
        _values: *const *mut c_void,
    ) {
        add_to_link(link, kind, std::slice::from_raw_parts(data, bytes))
    }

    fn cuLinkAddFile_v2(
        link: Handle,
        kind: c_uint,
        path: *const c_char,
        _n: c_uint,
        _options: *const c_uint,
        _values: *const *mut c_void,
    ) {
        add_to_link(link, kind, &file(path)?)
    }

    fn cuLinkComplete(link: Handle, image: *mut *const u8, bytes: *mut usize) {
        let mut s = state()?;
        let (modules, text) = s.links.get_mut(link)?;
        // One module stays as it is, lines and all.
        if modules.len() != 1 {
            let linked = moec_ptx::link::link(modules).map_err(|why| {
                tell(&format!("linking: {why}"));
                INVALID_PTX
            })?;
            *text = linked.to_string().into_bytes();
        }
        text.push(0);
        put(image, text.as_ptr())?;
        put_if(bytes, text.len());
        Ok(())
    }

    fn cuLinkDestroy(link: Handle) {
        state()?.links.remove(link).map(|_| ())
    }
}
