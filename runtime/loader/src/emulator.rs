//! Layers on the PTX emulator: the GPU's program on the host's processor, with checks.
//!
//! Every buffer is an allocation of its own with exactly its size at the run's token count, and nobody has written the
//! intermediate ones before: reads beyond a buffer and of what no kernel wrote are found.

use crate::host;
use crate::plan::{Place, Plan, find_target};
use crate::times::Times;
use crate::weights::Weights;
use moec_bundle::Bundle;
use moec_bundle::manifest::{Launch, Manifest};
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, GpuLaunch, MapElem, Role, TensorMap};
use moec_ptx::ast::Module;
use moec_ptx::exec::{self, Device, ExecError, Options, Param, Program, Report, Traffic};
use moec_ptx::tensor::swizzle::Swizzle;
use moec_ptx::tensor::{TensorError, tensormap};
use std::collections::BTreeMap;
use std::time::Instant;

/// Blocks that a persistent kernel gets: few, so that each does several tiles one after another.
const MULTIPROCESSORS: u64 = 4;

/// A layer that is ready to run on the emulator.
pub struct EmulatorLayer {
    device: Device,
    code: Code,
    /// Addresses of the packed weights.
    weights: Vec<u64>,
    options: Options,
    reports: Vec<(String, Report)>,
    /// Seconds of the host for each kernel of the last run's variant.
    seconds: Vec<f64>,
    /// What the last run allocated, freed by the next.
    made: Vec<u64>,
    /// The last run's address of each buffer of its variant.
    addresses: Vec<u64>,
    /// The variant of the last run.
    ran: usize,
}

/// What a kernel of the last run moved to and from one of its buffers.
#[derive(Clone, Debug)]
pub struct BufferTraffic<'l> {
    /// The buffer.
    pub buffer: &'l Buffer,
    /// Sectors, each once and as often as asked for.
    pub traffic: Traffic,
}

/// The kernels of a target, and where their buffers lie.
pub(crate) struct Code {
    pub plan: Plan,
    pub variants: Vec<Vec<Step>>,
    pub programs: Vec<Program>,
}

pub(crate) struct Step {
    pub name: String,
    pub program: usize,
    launch: GpuLaunch,
    /// Indices of the variant's buffers.
    operands: Vec<usize>,
}

impl Step {
    /// The launch for `n_tokens` tokens, with the variant's buffers at these addresses and the token count at `count`; `None` where there is
    /// nothing to do.
    ///
    /// # Errors
    /// `emulator-refused` for a tensor map that cannot be.
    pub fn launch(&self, n_tokens: u64, buffers: &[u64], count: u64) -> Result<Option<exec::Launch>, Diagnostic> {
        let grid = self.launch.blocks(n_tokens, MULTIPROCESSORS);
        if grid.contains(&0) {
            return Ok(None);
        }
        let addresses: Vec<u64> = self.operands.iter().map(|&b| buffers[b]).collect();
        let mut params: Vec<Param> = addresses.iter().map(|&a| Param::U64(a)).collect();
        params.push(Param::U64(count));
        for map in &self.launch.tensor_maps {
            let bytes = encode(map, addresses[map.operand as usize], n_tokens);
            params.push(Param::Bytes(bytes.map_err(|e| {
                Diagnostic::input("emulator-refused", format!("a tensor map of `{}` is not valid: {e}", self.name))
            })?));
        }
        Ok(Some(exec::Launch {
            grid: grid.map(|n| n as u32),
            block: [self.launch.block_threads, 1, 1],
            cluster: [self.launch.cluster.max(1), 1, 1],
            dynamic_smem_bytes: self.launch.dynamic_smem_bytes,
            params,
        }))
    }
}

impl Code {
    /// Reads the kernels of a GPU target of a bundle.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `emulator-refused`.
    pub fn new(bundle: &Bundle, target: &str, max_tokens: u64) -> Result<Code, Diagnostic> {
        let manifest = bundle.manifest();
        let plan = Plan::new(find_target(manifest, target)?, max_tokens, None)?;
        let mut modules: BTreeMap<&str, Module> = BTreeMap::new();
        let mut by_entry: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let (mut programs, mut variants) = (Vec::new(), Vec::new());
        for variant in &plan.variants {
            let mut steps = Vec::new();
            for entry in &variant.kernels {
                let Launch::Gpu { file, launch } = &entry.launch else {
                    return Err(Diagnostic::input("bundle-invalid", format!("`{}` is no GPU kernel", entry.name)));
                };
                let refused = |why: String| {
                    Diagnostic::machine("emulator-refused", format!("the emulator cannot execute `{file}`"))
                        .note(why)
                        .help("a kernel that ptxas accepts and the emulator does not is worth a bug report")
                };
                let key = (file.as_str(), entry.entry.as_str());
                let program = match by_entry.get(&key) {
                    Some(&p) => p,
                    None => {
                        if !modules.contains_key(key.0) {
                            let module = Module::parse(bundle.text(file)?).map_err(|e| refused(e.to_string()))?;
                            modules.insert(key.0, module);
                        }
                        let compiled = modules.get(key.0).map(|m| Program::compile(m, key.1));
                        programs.extend(compiled.transpose().map_err(|e| refused(e.to_string()))?);
                        by_entry.insert(key, programs.len() - 1);
                        programs.len() - 1
                    }
                };
                steps.push(Step {
                    name: entry.name.clone(),
                    program,
                    launch: launch.clone(),
                    operands: entry.operands.iter().map(|o| o.buffer.index()).collect(),
                });
            }
            variants.push(steps);
        }
        Ok(Code { plan, variants, programs })
    }
}

/// The emulator's name of a target.
///
/// # Errors
/// `emulator-refused`.
pub(crate) fn architecture(target: &str) -> Result<exec::Target, Diagnostic> {
    exec::Target::parse(target).ok_or_else(|| {
        Diagnostic::machine("emulator-refused", format!("the emulator does not know the target {target}"))
    })
}

impl EmulatorLayer {
    /// Loads a GPU target of a bundle. `options` say what is checked.
    ///
    /// # Errors
    /// `target-not-in-bundle`, `too-many-tokens`, `emulator-refused` for PTX that the emulator cannot execute, and those
    /// of packing weights.
    pub fn load(
        bundle: &Bundle,
        weights: &Weights<'_>,
        target: &str,
        max_tokens: u64,
        options: Options,
    ) -> Result<EmulatorLayer, Diagnostic> {
        let manifest = bundle.manifest();
        let code = Code::new(bundle, target, max_tokens)?;
        let architecture = architecture(target)?;
        // The capacity is only a limit; memory is taken as it is allocated.
        let mut device = Device::with_capacity(architecture, 1 << 40);
        let mut addresses = Vec::new();
        let weights = weights.find(manifest)?;
        for slot in &code.plan.weights {
            let param = &manifest.params[slot.param];
            weights.begin(param, &slot.buffer);
            let mut packed = vec![0; slot.buffer.bytes(0) as usize];
            weights.pack(param, &slot.buffer, &mut packed)?;
            addresses.push(place(&mut device, Some(&packed), packed.len() as u64).map_err(failed)?);
        }
        Ok(EmulatorLayer {
            device,
            code,
            weights: addresses,
            options,
            reports: Vec::new(),
            seconds: Vec::new(),
            made: Vec::new(),
            addresses: Vec::new(),
            ran: 0,
        })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.code.plan
    }

    /// What each kernel of the last run found and counted, by name, in launch order.
    pub fn reports(&self) -> &[(String, Report)] {
        &self.reports
    }

    /// What the last run took.
    pub fn times(&self) -> Times {
        Times { all: self.seconds.iter().sum(), kernels: self.seconds.clone(), copies: Vec::new() }
    }

    /// Changes what the next runs check and count.
    pub fn set_options(&mut self, change: impl FnOnce(&mut Options)) {
        change(&mut self.options);
    }

    /// What a kernel of the last run moved, by buffer; empty unless the run counted; `report` is one of [`EmulatorLayer::reports`].
    pub fn traffic(&self, report: &Report) -> Vec<BufferTraffic<'_>> {
        let at = |address: u64| self.addresses.iter().position(|&a| a == address);
        let buffers = self.code.plan.variants.get(self.ran).map_or(&[][..], |v| &v.buffers);
        let known = report.traffic.iter().filter_map(|t| Some((*t, buffers.get(at(t.address)?)?)));
        known.map(|(traffic, buffer)| BufferTraffic { buffer, traffic }).collect()
    }

    /// An intermediate buffer as the last run left it: rows without padding.
    pub(crate) fn read_buffer(&self, name: &str, n_tokens: u64) -> Result<(Buffer, Vec<u8>), Diagnostic> {
        let v = self.code.plan.variant_for(n_tokens)?;
        let (i, buffer) = self.code.plan.intermediate(v, name)?;
        let lost = || Diagnostic::internal("internal-error", format!("`{name}` should be in device memory"));
        let address = *self.addresses.get(i).ok_or_else(lost)?;
        let bytes = self.device.download(address, buffer.bytes(n_tokens) as usize).map_err(failed)?;
        Ok((buffer.clone(), host::read_matrix(buffer, n_tokens, &bytes).ok_or_else(lost)?))
    }

    /// Runs the layer on host tensors; gives the outputs and what the checks found.
    pub(crate) fn run_host(
        &mut self,
        manifest: &Manifest,
        inputs: &[Tensor],
        n_tokens: u64,
    ) -> Result<(Vec<Tensor>, Vec<String>), Diagnostic> {
        let v = self.code.plan.variant_for(n_tokens)?;
        self.addresses.clear();
        self.ran = v;
        for address in std::mem::take(&mut self.made) {
            self.device.free(address).map_err(failed)?;
        }
        for (buffer, place_of) in self.code.plan.variants[v].buffers.iter().zip(&self.code.plan.places[v]) {
            let bytes = buffer.bytes(n_tokens);
            let content = match buffer.role {
                Role::Input(i) => {
                    let mut content = vec![0; bytes as usize];
                    host::write_rows(&inputs[i as usize], buffer, &mut content);
                    Some(content)
                }
                // Every run is a layer that was just loaded.
                Role::Counter => Some(vec![0; bytes as usize]),
                Role::Output(_) | Role::Weight(_) | Role::WeightScale(_) | Role::WeightGlobal(_) | Role::Workspace => {
                    None
                }
            };
            let address = match *place_of {
                Place::Weight(w) => self.weights[w],
                Place::Input(_) | Place::Output(_) | Place::Workspace(_) => {
                    let address = place(&mut self.device, content.as_deref(), bytes).map_err(failed)?;
                    self.made.push(address);
                    address
                }
            };
            self.addresses.push(address);
        }
        let count = place(&mut self.device, Some(&(n_tokens as u32).to_le_bytes()), 4).map_err(failed)?;
        self.made.push(count);
        self.reports.clear();
        self.seconds.clear();
        let mut findings = Vec::new();
        for step in &self.code.variants[v] {
            let Some(launch) = step.launch(n_tokens, &self.addresses, count)? else {
                self.seconds.push(0.0);
                continue;
            };
            let start = Instant::now();
            let report = self
                .device
                .launch(&self.code.programs[step.program], &launch, &self.options)
                .map_err(|e| failed(e).note(format!("kernel `{}`, {n_tokens} tokens", step.name)))?;
            self.seconds.push(start.elapsed().as_secs_f64());
            findings.extend(report.findings.iter().map(|f| format!("{}: {f}", step.name)));
            self.reports.push((step.name.clone(), report));
        }
        let buffers = self.code.plan.output_buffers(v);
        let mut out = Vec::with_capacity(buffers.len());
        for (info, buffer) in manifest.outputs.iter().zip(buffers) {
            let at = self.code.plan.variants[v].buffers.iter().position(|b| b.name == buffer.name);
            let address = at.map(|i| self.addresses[i]).unwrap_or_default();
            let bytes = self.device.download(address, buffer.bytes(n_tokens) as usize).map_err(failed)?;
            out.push(host::read_rows(info, buffer, n_tokens, &bytes)?);
        }
        Ok((out, findings))
    }
}

/// The 128 bytes that a kernel takes for a tensor map, for the operand at `address`, as the emulator reads them.
fn encode(map: &TensorMap, address: u64, n_tokens: u64) -> Result<Vec<u8>, TensorError> {
    let mut out = tensormap::TensorMap {
        address,
        elem: match map.elem {
            MapElem::U8 => tensormap::MapElem::U8,
            MapElem::F16 => tensormap::MapElem::F16,
            MapElem::Bf16 => tensormap::MapElem::Bf16,
            MapElem::F32 => tensormap::MapElem::F32,
            MapElem::U4Padded => tensormap::MapElem::B4x16P64,
        },
        rank: map.dims.len(),
        dims: [1; 5],
        strides: [0; 4],
        box_dims: [1; 5],
        element_strides: [1; 5],
        interleave: 0,
        swizzle: match map.swizzle_bytes {
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => Swizzle::None,
        },
        fill_nan: false,
    };
    out.dims.iter_mut().zip(map.dims_at(n_tokens)).for_each(|(to, n)| *to = n);
    out.strides.iter_mut().zip(&map.strides).for_each(|(to, n)| *to = *n);
    out.box_dims.iter_mut().zip(&map.box_dims).for_each(|(to, n)| *to = *n);
    Ok(out.encode()?.to_vec())
}

/// Device memory of `bytes` bytes, at least one, holding `content` when there is any.
fn place(device: &mut Device, content: Option<&[u8]>, bytes: u64) -> Result<u64, ExecError> {
    let address = device.alloc(bytes.max(1))?;
    if let Some(content) = content.filter(|c| !c.is_empty()) {
        device.upload(address, content)?;
    }
    Ok(address)
}

pub(crate) fn failed(e: ExecError) -> Diagnostic {
    Diagnostic::input("emulator-refused", format!("the emulator stopped: {e}"))
        .help("a kernel of moec that does this is a bug worth reporting")
}
