//! From the sources of a layer's parameters to the tensors of a checkpoint: which, in which scheme, through which view.

use crate::config::{Declared, Published};
use crate::decode::Elements;
use crate::formats;
use crate::formats::ggml::{GgmlType, Stored};
use crate::read::checkpoint::Checkpoint;
use crate::read::safetensors::{StoredType, TensorView};
use crate::strided::Strided;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::weights::{WeightSource, WeightStep};
use std::sync::Arc;

/// A stored tensor and the view of it that a source describes.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    /// The float tensor that it is, or stands for.
    pub name: String,
    /// The tensor that is stored: of codes, or the float tensor itself.
    pub tensor: String,
    /// What is stored: `BF16[64, 2048]`, `e2m1 by e8m0(1, 32) [64, 2048]`.
    pub stored: String,
    pub elements: Elements<'a>,
    pub view: Strided,
}

/// A checkpoint and what is said of its weights.
#[derive(Clone, Copy)]
pub(crate) struct From<'a, 'p> {
    pub checkpoint: &'a Checkpoint,
    pub published: Option<&'p Published>,
}

pub(crate) fn fixed_shape(param: &Param) -> Option<Vec<u64>> {
    param.ty.shape.iter().map(|d| d.fixed()).collect()
}

/// A way to make a parameter that fits it.
struct Way<'a> {
    pieces: Vec<Piece<'a>>,
    /// The steps of its source.
    steps: Vec<WeightStep>,
}

/// Which way round a family stores its stacks of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orientation {
    AsComputed,
    Transposed,
}

impl Orientation {
    fn of(steps: &[WeightStep]) -> Orientation {
        let turned = steps.iter().filter(|s| matches!(s, WeightStep::Transpose)).count() % 2 == 1;
        if turned { Orientation::Transposed } else { Orientation::AsComputed }
    }
}

/// The tensors of each parameter of a layer, in order.
///
/// Layouts may share names and differ in shape only. Where the shape fits several, because a matrix is square, the other
/// matrices of the layer decide, which are stored alike; where all are square, the first layout counts, which is the published
/// one.
pub(crate) fn resolve<'a>(from: From<'a, '_>, params: &[Param]) -> Vec<Result<Vec<Piece<'a>>, Diagnostic>> {
    let ways: Vec<Result<Vec<Way<'a>>, Diagnostic>> = params.iter().map(|p| ways(from, p)).collect();
    let mut seen: Option<(Orientation, &str)> = None;
    let mut conflict = None;
    for (param, ways) in params.iter().zip(&ways) {
        let Ok(Some((orientation, true))) = ways.as_ref().map(|w| choice(w, from, param)) else { continue };
        match seen {
            Some((other, first)) if other != orientation => conflict = conflict.or(Some((first, &*param.name))),
            Some(_) => {}
            None => seen = Some((orientation, &param.name)),
        }
    }
    let decided = seen.map(|(orientation, _)| orientation);
    let one = |(param, ways): (&Param, Result<Vec<Way<'a>>, Diagnostic>)| {
        let mut ways = ways?;
        if ways.len() > 1 && same_tensor(&ways) {
            if let Some((a, b)) = conflict {
                return Err(layouts_differ(from.checkpoint, param, a, b));
            }
            let at = ways.iter().position(|w| decided.is_none_or(|d| Orientation::of(&w.steps) == d));
            ways.swap(0, at.unwrap_or(0));
        }
        ways.truncate(1);
        ways.pop().map(|w| w.pieces).ok_or_else(|| missing(from.checkpoint, param))
    };
    params.iter().zip(ways).map(one).collect()
}

/// The orientation of a parameter's tensor, and whether its shape alone decides between layouts that share its name; `None`
/// where its family knows one layout only.
fn choice(ways: &[Way<'_>], from: From<'_, '_>, param: &Param) -> Option<(Orientation, bool)> {
    let first = ways.first()?;
    let mut there = Vec::new();
    existing(from.checkpoint, &param.source, &mut there);
    let turned: Vec<Orientation> = there
        .iter()
        .filter_map(|s| match s {
            WeightSource::Tensor { names, steps } if names.contains(&first.pieces.first()?.name) => {
                Some(Orientation::of(steps))
            }
            _ => None,
        })
        .collect();
    let two = turned.iter().any(|o| *o != turned[0]);
    two.then(|| (Orientation::of(&first.steps), !(ways.len() > 1 && same_tensor(ways))))
}

/// Whether all ways read the same stored tensor.
fn same_tensor(ways: &[Way<'_>]) -> bool {
    let name = |w: &Way<'_>| w.pieces.first().map(|p| p.name.clone());
    ways.iter().all(|w| w.pieces.len() == 1 && name(w) == name(&ways[0]))
}

fn layouts_differ(checkpoint: &Checkpoint, param: &Param, a: &str, b: &str) -> Diagnostic {
    Diagnostic::input(
        "weight-layout-ambiguous",
        format!(
            "`{}` holds `{a}` and `{b}` in different layouts, so that nothing says how `{}` lies",
            checkpoint.path().display(),
            param.name
        ),
    )
    .note("its matrices are square; the other matrices of the layer would have to tell whether it is transposed")
    .help("save the checkpoint again in one layout")
}

/// Every way to make a parameter that fits it; the first error when none does.
fn ways<'a>(from: From<'a, '_>, param: &Param) -> Result<Vec<Way<'a>>, Diagnostic> {
    let mut there = Vec::new();
    existing(from.checkpoint, &param.source, &mut there);
    let (mut good, mut error) = (Vec::new(), None);
    for source in there {
        match pieces(from, param, source) {
            Ok(way) => good.push(way),
            // A damaged tensor is not passed over for another layout of the same weight.
            Err(d) if !matches!(&*d.code, "tensor-shape-mismatch" | "weight-steps-mismatch" | "tensor-missing") => {
                return Err(d);
            }
            Err(d) => error = error.or(Some(d)),
        }
    }
    match error {
        Some(d) if good.is_empty() => Err(d),
        _ if good.is_empty() => Err(missing(from.checkpoint, param)),
        _ => {
            let single = good.iter().find(|w| w.pieces.len() > 1);
            let stack = good.iter().find(|w| w.pieces.len() == 1);
            match single.zip(stack).and_then(|(a, b)| Some((a.pieces.first()?, b.pieces.first()?))) {
                Some((single, stack)) => Err(there_twice(from.checkpoint, param, single, stack)),
                None => Ok(good),
            }
        }
    }
}

/// The error of experts that are there one by one and as a stack.
fn there_twice(checkpoint: &Checkpoint, param: &Param, single: &Piece<'_>, stack: &Piece<'_>) -> Diagnostic {
    let at = checkpoint.path().display();
    Diagnostic::input(
        "quantised-form-ambiguous",
        format!("`{at}` has `{}` twice: expert by expert (`{}`) and as `{}`", param.name, single.tensor, stack.tensor),
    )
    .note("nothing says which of them counts")
    .help("give a checkpoint that holds one of them")
}

fn pieces<'a>(from: From<'a, '_>, param: &Param, source: &WeightSource) -> Result<Way<'a>, Diagnostic> {
    let checkpoint = from.checkpoint;
    let want = fixed_shape(param).unwrap_or_default();
    match source {
        WeightSource::Tensor { names, steps } => {
            let name =
                names.iter().find(|n| formats::contains(checkpoint, n)).ok_or_else(|| missing(checkpoint, param))?;
            let pieces = vec![piece(from, param, name, names, steps, &want)?];
            Ok(Way { pieces, steps: steps.clone() })
        }
        WeightSource::PerExpert { names, first, count, steps } => {
            let template = template(checkpoint, names, *first).ok_or_else(|| missing(checkpoint, param))?;
            if want.first() != Some(count) || *count > checkpoint.names().count() as u64 {
                return Err(missing(checkpoint, param).note(format!(
                    "{count} experts are asked for, the weight is {}, and the checkpoint has {} tensors in all",
                    param.ty,
                    checkpoint.names().count()
                )));
            }
            let one = |e: u64| {
                let of = |n: &String| n.replace("{e}", &e.to_string());
                let all: Vec<String> = names.iter().map(of).collect();
                let name = of(template);
                if !formats::contains(checkpoint, &name) {
                    return Err(missing_expert(checkpoint, param, &name, e, &want[1..]));
                }
                piece(from, param, &name, &all, steps, &want[1..])
            };
            let pieces = (*first..first.saturating_add(*count)).map(one).collect::<Result<Vec<_>, _>>()?;
            one_input_scaling(checkpoint, param, &pieces)?;
            Ok(Way { pieces, steps: steps.clone() })
        }
        WeightSource::FirstOf(_) | WeightSource::LargestInputScale(_) => Err(missing(checkpoint, param)),
    }
}

/// Refuses experts of which some have `pre_quant_scale` and others have not, or of another type.
fn one_input_scaling(checkpoint: &Checkpoint, param: &Param, pieces: &[Piece<'_>]) -> Result<(), Diagnostic> {
    let scaling = |p: &Piece<'_>| -> Result<(String, Option<StoredType>), Diagnostic> {
        let name = format!("{}.pre_quant_scale", formats::stem(&p.name));
        let dtype = checkpoint.tensor(&name)?.map(|t| t.dtype);
        Ok((name, dtype))
    };
    let quantised = pieces.iter().filter(|p| !matches!(p.elements, Elements::Plain(..) | Elements::Ggml(_)));
    let all: Vec<_> = quantised.map(scaling).collect::<Result<_, _>>()?;
    let types: Vec<StoredType> = all.iter().filter_map(|(_, t)| *t).collect();
    let Some(first) = types.first() else { return Ok(()) };
    let at = checkpoint.path().display();
    match all.iter().find(|(_, t)| t.as_ref() != Some(first)) {
        None => Ok(()),
        Some((name, found)) => {
            let found = found.map_or_else(|| "is not there".to_string(), |t| format!("is {t}"));
            let message = format!("`{name}` in `{at}` {found}, but those of other experts are {first}");
            Err(Diagnostic::input("quantised-scale-missing", message)
                .note(format!("the input of every expert of `{}` is scaled, or of none", param.name))
                .help("give the checkpoint whole: a shard may be missing, or the file may have been cut"))
        }
    }
}

/// The sources, depth first, that have tensors in the checkpoint.
pub(crate) fn existing<'s>(checkpoint: &Checkpoint, source: &'s WeightSource, out: &mut Vec<&'s WeightSource>) {
    match source {
        WeightSource::Tensor { names, .. } if names.iter().any(|n| formats::contains(checkpoint, n)) => {
            out.push(source)
        }
        WeightSource::PerExpert { names, first, .. } if template(checkpoint, names, *first).is_some() => {
            out.push(source);
        }
        WeightSource::Tensor { .. } | WeightSource::PerExpert { .. } | WeightSource::LargestInputScale(_) => {}
        WeightSource::FirstOf(list) => list.iter().for_each(|s| existing(checkpoint, s, out)),
    }
}

/// The template of names whose first expert is there.
pub(crate) fn template<'s>(checkpoint: &Checkpoint, names: &'s [String], first: u64) -> Option<&'s String> {
    names.iter().find(|n| formats::contains(checkpoint, &n.replace("{e}", &first.to_string())))
}

fn piece<'a>(
    from: From<'a, '_>,
    param: &Param,
    name: &str,
    spellings: &[String],
    steps: &[WeightStep],
    want: &[u64],
) -> Result<Piece<'a>, Diagnostic> {
    let checkpoint = from.checkpoint;
    let declared = match from.published {
        None => Declared::NoConfig,
        Some(p) => {
            let modules: Vec<String> = std::iter::once(name)
                .chain(spellings.iter().map(String::as_str))
                .map(|n| formats::stem(n).to_string())
                .collect();
            p.described(&modules)
        }
    };
    let found = if param.ty.dtype.is_float() { formats::find(checkpoint, name, declared)? } else { None };
    let (mut view, stored, file) = match found.as_ref().map(|(_, elements)| elements) {
        Some(Elements::Integers(q)) => {
            let view = Strided::dense(&q.shape());
            let stored = format!("{} {:?}", q.words(), view.shape());
            (view, stored, checkpoint.path())
        }
        Some(Elements::Blocks(b)) => {
            let mut view = Strided::dense(&b.shape());
            if b.transposed {
                view = view.step(&WeightStep::Transpose).map_err(|why| internal(param, &why))?;
            }
            let stored = format!("{} {:?}", b.format, view.shape());
            (view, stored, checkpoint.path())
        }
        Some(Elements::Plain(..) | Elements::Ggml(_)) | None => {
            let tensor = checkpoint.tensor(name)?.ok_or_else(|| missing(checkpoint, param))?;
            (Strided::dense(tensor.shape), tensor.describe(), tensor.file)
        }
    };
    let (tensor, elements) = match found {
        Some(found) => found,
        None => (name.to_string(), plain(checkpoint, param, name, declared)?),
    };
    let (before, file) = (view.shape(), file.display());
    for step in steps {
        view = view.step(step).map_err(|why| {
            Diagnostic::input(
                "weight-steps-mismatch",
                format!(
                    "`{name}` in `{file}` is {stored}, which cannot be brought into the layout of `{}`, {}",
                    param.name, param.ty
                ),
            )
            .note(why)
            .help(
                "config.json and weights do not belong together, or the model's family stores this weight another way",
            )
        })?;
    }
    if view.shape() != want {
        let found = view.shape();
        let how = if found == before { String::new() } else { format!(" ({found:?} in the layer's layout)") };
        return Err(Diagnostic::input(
            "tensor-shape-mismatch",
            format!(
                "`{name}` in `{file}` is {stored}{how}, but the layer asks for {want:?} (`{}`, {})",
                param.name, param.ty
            ),
        )
        .help("config.json and weights do not belong together; check that both come from the same model"));
    }
    Ok(Piece { name: name.to_string(), tensor, stored, elements, view })
}

fn plain<'a>(
    checkpoint: &'a Checkpoint,
    param: &Param,
    name: &str,
    declared: Declared<'_>,
) -> Result<Elements<'a>, Diagnostic> {
    let tensor = checkpoint.tensor(name)?.ok_or_else(|| missing(checkpoint, param))?;
    if let StoredType::Ggml(blocks) = tensor.dtype {
        return ggml(param, name, &tensor, blocks);
    }
    let fits = |d: &DType| match param.ty.dtype.is_float() {
        true => matches!(d, DType::F32 | DType::F16 | DType::BF16),
        false => !d.is_float(),
    };
    match tensor.dtype.dtype().filter(fits) {
        Some(dtype) => match formats::scales_beside(checkpoint, name, declared).filter(|_| dtype.is_float()) {
            Some(scales) => Err(scaled_floats(name, &tensor, &scales)),
            None => Ok(Elements::Plain(dtype, tensor.data)),
        },
        None => {
            let what = format!("`{name}` in `{}`", tensor.file.display());
            Err(unsupported(param, &what, tensor.dtype.name()))
        }
    }
}

/// The error of floats that have scales as codes have them.
fn scaled_floats(name: &str, tensor: &TensorView<'_>, scales: &str) -> Diagnostic {
    Diagnostic::input(
        "quantised-form-ambiguous",
        format!(
            "`{name}` in `{}` is {}, but has scales beside it (`{scales}`), as codes have them",
            tensor.file.display(),
            tensor.describe()
        ),
    )
    .note("nothing says whether these floats are the weights, or still have to be rounded or multiplied")
    .help("save the checkpoint with its codes, or as floats without scales")
}

/// A tensor of blocks of a GGUF file.
fn ggml<'a>(param: &Param, name: &str, tensor: &TensorView<'a>, blocks: GgmlType) -> Result<Elements<'a>, Diagnostic> {
    if param.ty.dtype.is_float() && blocks.is_read() {
        return Ok(Elements::Ggml(Arc::new(Stored { blocks, data: tensor.data, name: name.to_string() })));
    }
    let what = format!("`{name}` in `{}` is {}", tensor.file.display(), tensor.describe());
    Err(Diagnostic::input("gguf-type-unsupported", format!("{what}, whose values moec does not read"))
        .note(format!("types that are read: F32, F16, BF16, {}", GgmlType::read_names().join(", ")))
        .help("take a file of another quantisation, for example Q4_K_M or Q8_0, or the model's safetensors checkpoint"))
}

pub(crate) fn missing(checkpoint: &Checkpoint, param: &Param) -> Diagnostic {
    let mut tried = Vec::new();
    candidates(&param.source, &mut tried);
    let mut d = Diagnostic::input(
        "tensor-missing",
        format!("`{}` has no tensor for the weight `{}`, {}", checkpoint.path().display(), param.name, param.ty),
    )
    .note(format!("looked for {}", tried.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")));
    if let Some(near) = tried.first().and_then(|n| checkpoint.nearest(n)) {
        d = d.note(format!("the most similar name there is `{near}`"));
    }
    d.help("check the layer number, and that config.json and weights come from the same model")
}

fn missing_expert(checkpoint: &Checkpoint, param: &Param, name: &str, expert: u64, shape: &[u64]) -> Diagnostic {
    Diagnostic::input(
        "tensor-missing",
        format!(
            "`{}` has no tensor for expert {expert} of the weight `{}`, {}",
            checkpoint.path().display(),
            param.name,
            param.ty
        ),
    )
    .note(format!("looked for `{name}`, {shape:?} in floats or any quantised form; tensors of other experts are there"))
    .help("give the checkpoint whole: a shard may be missing, or the file may have been cut")
}

fn candidates(source: &WeightSource, out: &mut Vec<String>) {
    match source {
        WeightSource::Tensor { names, .. } => out.extend(names.iter().cloned()),
        WeightSource::PerExpert { names, first, .. } => {
            out.extend(names.iter().map(|n| n.replace("{e}", &first.to_string())));
        }
        WeightSource::FirstOf(list) | WeightSource::LargestInputScale(list) => {
            list.iter().for_each(|s| candidates(s, out));
        }
    }
}

pub(crate) fn unsupported(param: &Param, what: &str, found: &str) -> Diagnostic {
    let supported = if param.ty.dtype.is_float() { "float32, float16 or bfloat16" } else { "int32 or int64" };
    Diagnostic::input(
        "weight-type-unsupported",
        format!("{what} is stored as {found}, but `{}`, {}, has to be read from {supported}", param.name, param.ty),
    )
    .help("give a checkpoint that was converted to one of these types")
}

pub(crate) fn internal(param: &Param, what: &str) -> Diagnostic {
    Diagnostic::internal("internal-error", format!("{what} (weight `{}`)", param.name))
}
