//! Layers for ranks as bundles on disk.

use crate::fits;
use crate::layer::{ExchangeKernels, ExpertProgram, ExpertPrograms, MemberKernels, PlacedLayer};
use moec_bundle::manifest::{LayerInfo, ParamInfo, TensorInfo};
use moec_bundle::{
    Bundle, Crossing, PLACED_FORMAT, PlacedBundle, PlacedExchange, PlacedExperts, PlacedManifest, PlacedOutput,
    PlacedProgram,
};
use moec_ir::Mesh;
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;

/// What a bundle says of a layer besides what was compiled.
#[derive(Clone, Debug)]
pub struct PlacedInfo {
    /// The whole layer.
    pub layer: LayerInfo,
    /// Its inputs, in order.
    pub inputs: Vec<TensorInfo>,
    /// The mesh that it was compiled for.
    pub mesh: Mesh,
    /// Most tokens of a rank in a step.
    pub max_tokens: u64,
}

impl PlacedLayer {
    /// The layer as a bundle for ranks.
    ///
    /// # Errors
    /// `bundle-invalid` for a mesh whose groups have other members than the layer.
    pub fn to_bundle(&self, info: PlacedInfo) -> Result<PlacedBundle, Diagnostic> {
        let mut files = BTreeMap::new();
        let mut put = |file: String, bundle: &Bundle| {
            files.insert(file.clone(), bundle.to_archive());
            file
        };
        let head = self.head.as_ref().map(|bundle| put("head.tar".into(), bundle));
        let mut experts = Vec::new();
        for (member, of) in self.experts.iter().enumerate() {
            let program = |(name, program): (String, &ExpertProgram)| PlacedProgram {
                file: put(name, &program.bundle),
                stacks: program.stacks.iter().map(ParamInfo::from).collect(),
            };
            let named = match of {
                ExpertPrograms::Whole(whole) => vec![("experts.tar".to_string(), &**whole)],
                ExpertPrograms::Columns { up, down } => {
                    vec![(format!("up.{member}.tar"), &**up), (format!("down.{member}.tar"), &**down)]
                }
            };
            experts.push(PlacedExperts { programs: named.into_iter().map(program).collect() });
        }
        let tail = put("tail.tar".into(), &self.tail);
        let mut exchange = Vec::new();
        for (member, of) in self.exchange.iter().flat_map(|e| &e.members).enumerate() {
            for (target, kernel) in of.kernels.iter().flat_map(|(t, all)| all.iter().map(move |k| (t, k))) {
                files.insert(PlacedBundle::kernel_path(target, member, &kernel.entry), kernel.ptx.clone().into_bytes());
            }
            exchange.push(PlacedExchange { what: of.what, kernels: of.kernels.iter().cloned().collect() });
        }
        let output = |(name, made_by): &(String, _)| PlacedOutput { name: name.clone(), made_by: *made_by };
        let crossing = |(name, source): &(String, _)| Crossing { name: name.clone(), source: Clone::clone(source) };
        let manifest = PlacedManifest {
            moec_placed: PLACED_FORMAT,
            moec_version: env!("CARGO_PKG_VERSION").to_string(),
            layer: info.layer,
            mesh: info.mesh,
            max_tokens: info.max_tokens,
            n_experts: self.n_experts,
            n_local: self.n_local,
            top_k: self.top_k as u64,
            inputs: info.inputs,
            outputs: self.outputs.iter().map(output).collect(),
            rows: self.rows.clone(),
            ids: self.ids.clone(),
            weights: self.weights.clone(),
            crossing: self.crossing.iter().map(crossing).collect(),
            wire: self.wire,
            head,
            experts,
            tail,
            exchange,
            files: BTreeMap::new(),
        };
        PlacedBundle::new(manifest, files)
    }

    /// The layer of a bundle for ranks.
    ///
    /// # Errors
    /// `bundle-invalid` when its parts do not fit each other; those of the bundles in it.
    pub fn from_bundle(bundle: &PlacedBundle) -> Result<PlacedLayer, Diagnostic> {
        let m = bundle.manifest();
        let broken = |why: &str| {
            let what = format!("the bundle of `{}` for ranks is not one that moec writes: {why}", m.layer.name);
            Diagnostic::input("bundle-invalid", what).help("compile the layer again")
        };
        let program = |p: &PlacedProgram| {
            let stacks = p.stacks.iter().map(ParamInfo::param).collect();
            Ok::<_, Diagnostic>(Box::new(ExpertProgram { bundle: bundle.program(&p.file)?, stacks }))
        };
        let mut experts = Vec::new();
        for of in &m.experts {
            experts.push(match &of.programs[..] {
                [whole] => ExpertPrograms::Whole(program(whole)?),
                [up, down] => ExpertPrograms::Columns { up: program(up)?, down: program(down)? },
                _ => return Err(broken("a member has not the programs of its experts")),
            });
        }
        let first = experts.first().ok_or_else(|| broken("it has no experts"))?;
        let row = first.input_row().ok_or_else(|| broken("its experts read no rows"))?;
        let slot_type = first.result_type().ok_or_else(|| broken("its experts make no rows"))?;
        let slot = (slot_type, experts.iter().map(|e| e.columns().1).sum());
        let n_local = first.n_local().ok_or_else(|| broken("its experts have no weights"))?;
        if n_local != u64::from(m.n_local) {
            return Err(broken("its programs have room for other experts"));
        }
        let mut members = Vec::new();
        for (member, of) in m.exchange.iter().enumerate() {
            let mut kernels = Vec::new();
            for (target, all) in &of.kernels {
                let mut read = all.clone();
                for kernel in &mut read {
                    let ptx = bundle.file(&PlacedBundle::kernel_path(target, member, &kernel.entry))?;
                    kernel.ptx = String::from_utf8(ptx.to_vec()).map_err(|_| broken("a kernel is no text"))?;
                }
                kernels.push((target.clone(), read));
            }
            members.push(MemberKernels { what: of.what, kernels });
        }
        let layer = PlacedLayer {
            head: m.head.as_ref().map(|file| bundle.program(file)).transpose()?,
            experts,
            tail: bundle.program(&m.tail)?,
            rows: m.rows.clone(),
            ids: m.ids.clone(),
            weights: m.weights.clone(),
            crossing: m.crossing.iter().map(|c| (c.name.clone(), c.source.clone())).collect(),
            wire: m.wire,
            n_experts: m.n_experts,
            n_local: m.n_local,
            top_k: m.top_k as usize,
            outputs: m.outputs.iter().map(|o| (o.name.clone(), o.made_by)).collect(),
            row,
            slot,
            exchange: (!members.is_empty()).then_some(ExchangeKernels { members }),
        };
        fits::check(&layer, m).map_err(|why| broken(&why))?;
        Ok(layer)
    }
}
