//! Views of a stored tensor: the steps of a weight source as index arithmetic, without moving an element.

use moec_ir::weights::WeightStep;

/// A view of a dense row-major tensor.
///
/// Transposes, slices and most reshapes only change strides. A reshape that cannot (of a transposed or sliced view)
/// starts a new stage, whose element numbers are element positions of the stage before.
#[derive(Clone, Debug)]
pub struct Strided {
    /// Never empty; the last is what the reader sees.
    stages: Vec<Stage>,
}

#[derive(Clone, Debug)]
struct Stage {
    offset: u64,
    /// `(length, stride)` of each axis, outermost first.
    axes: Vec<(u64, u64)>,
}

impl Stage {
    fn dense(shape: &[u64]) -> Stage {
        let mut axes: Vec<(u64, u64)> = shape.iter().map(|&n| (n, 0)).collect();
        let mut stride = 1;
        for axis in axes.iter_mut().rev() {
            axis.1 = stride;
            stride *= axis.0.max(1);
        }
        Stage { offset: 0, axes }
    }

    /// Position of element number `i`, counting row by row.
    fn at(&self, mut i: u64) -> u64 {
        let mut position = self.offset;
        for &(len, stride) in self.axes.iter().rev() {
            position += i % len * stride;
            i /= len;
        }
        position
    }
}

impl Strided {
    /// All of a dense tensor. The number of elements must fit a `u64`.
    pub fn dense(shape: &[u64]) -> Strided {
        Strided { stages: vec![Stage::dense(shape)] }
    }

    /// A view of memory with given distances: `(length, stride)` of each axis, outermost first, in elements.
    pub fn of_axes(axes: Vec<(u64, u64)>) -> Strided {
        Strided { stages: vec![Stage { offset: 0, axes }] }
    }

    /// The view after `step`; the error says in words why the step does not fit.
    pub fn step(mut self, step: &WeightStep) -> Result<Strided, String> {
        let shape = self.shape();
        let stage = self.stages.last_mut().expect("a view should have a stage");
        match step {
            WeightStep::Transpose => {
                let rank = stage.axes.len();
                if rank < 2 {
                    return Err(format!("a transpose needs two axes, the tensor is {shape:?} there"));
                }
                stage.axes.swap(rank - 2, rank - 1);
            }
            WeightStep::Slice { axis, start, step, len, of } => {
                let Some(cut) = stage.axes.get_mut(*axis as usize) else {
                    return Err(format!("a slice of axis {axis} needs that axis, the tensor is {shape:?} there"));
                };
                if of.is_some_and(|n| n != cut.0) {
                    let n = of.unwrap_or_default();
                    return Err(format!("axis {axis} should have {n} entries, the tensor is {shape:?} there"));
                }
                let last = len.checked_sub(1).and_then(|n| n.checked_mul(*step)).and_then(|n| n.checked_add(*start));
                let fits = *len == 0 || (*step > 0 && last.is_some_and(|l| l < cut.0));
                if !fits {
                    return Err(format!(
                        "a slice of {len} entries of axis {axis} from {start}, {step} apart, does not fit {shape:?}"
                    ));
                }
                if *len > 0 {
                    stage.offset += start * cut.1;
                }
                *cut = (*len, cut.1.saturating_mul(*step));
            }
            WeightStep::Reshape { shape: wanted } => {
                let count = |s: &[u64]| s.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
                if count(wanted) != count(&shape) {
                    return Err(format!("a reshape to {wanted:?} needs as many elements as {shape:?} has"));
                }
                match reshape(&stage.axes, wanted) {
                    Some(axes) => stage.axes = axes,
                    None => self.stages.push(Stage::dense(wanted)),
                }
            }
        }
        Ok(self)
    }

    /// Axis lengths, outermost first.
    pub fn shape(&self) -> Vec<u64> {
        self.stages.last().map(|s| s.axes.iter().map(|a| a.0).collect()).unwrap_or_default()
    }

    /// Whether the view is a contiguous piece of the stored tensor, in order; gives the first element's position.
    pub fn contiguous(&self) -> Option<u64> {
        let [stage] = &self.stages[..] else { return None };
        let mut stride = 1;
        for &(len, s) in stage.axes.iter().rev() {
            if len != 1 && s != stride {
                return None;
            }
            stride *= len.max(1);
        }
        Some(stage.offset)
    }

    /// Positions in the stored tensor of row number `row`: rows are what the last axis runs over, counted row by row.
    pub fn row(&self, row: u64) -> Row<'_> {
        let stage = self.stages.last().expect("a view should have a stage");
        let (len, stride) = stage.axes.last().copied().unwrap_or((1, 1));
        let start = stage.at(row * len);
        Row { earlier: &self.stages[..self.stages.len() - 1], start, stride }
    }
}

/// Where the elements of one row are.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    earlier: &'a [Stage],
    start: u64,
    stride: u64,
}

impl Row<'_> {
    /// Position of column `c` in the stored tensor.
    #[inline]
    pub fn at(&self, c: u64) -> u64 {
        let mut position = self.start + c * self.stride;
        for stage in self.earlier.iter().rev() {
            position = stage.at(position);
        }
        position
    }

    /// When the columns are `stride` apart in the stored tensor: `(position of column 0, stride)`.
    #[inline]
    pub fn affine(&self) -> Option<(u64, u64)> {
        self.earlier.is_empty().then_some((self.start, self.stride))
    }
}

/// Strides for `wanted` over the same elements in the same order; `None` when no strides can say it.
///
/// Runs of axes with equal products are matched; within a run the old axes must be contiguous to each other.
fn reshape(axes: &[(u64, u64)], wanted: &[u64]) -> Option<Vec<(u64, u64)>> {
    if wanted.contains(&0) {
        return Some(wanted.iter().map(|&n| (n, 1)).collect());
    }
    let old: Vec<(u64, u64)> = axes.iter().copied().filter(|a| a.0 != 1).collect();
    let mut out = Vec::with_capacity(wanted.len());
    let (mut i, mut j) = (0, 0);
    while j < wanted.len() {
        if wanted[j] == 1 {
            out.push((1, 1));
            j += 1;
            continue;
        }
        let (first_old, first_new) = (i, j);
        let (mut have, mut want) = (old.get(i)?.0, wanted[j]);
        i += 1;
        j += 1;
        while have != want {
            if have < want {
                have *= old.get(i)?.0;
                i += 1;
            } else {
                want *= wanted.get(j)?;
                j += 1;
            }
        }
        let run = &old[first_old..i];
        if run.windows(2).any(|w| w[0].1 != w[1].0 * w[1].1) {
            return None;
        }
        let mut stride = run.last()?.1;
        let mut strides: Vec<(u64, u64)> = Vec::new();
        for &n in wanted[first_new..j].iter().rev() {
            strides.push((n, stride));
            stride *= n;
        }
        out.extend(strides.into_iter().rev());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious way: move the elements at every step.
    fn moved(shape: &[u64], steps: &[WeightStep]) -> (Vec<u64>, Vec<u64>) {
        let mut shape = shape.to_vec();
        let mut data: Vec<u64> = (0..shape.iter().product()).collect();
        for step in steps {
            let strides: Vec<u64> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
            match step {
                WeightStep::Reshape { shape: s } => shape = s.clone(),
                WeightStep::Transpose | WeightStep::Slice { .. } => {
                    let mut new = shape.clone();
                    let r = shape.len();
                    if let WeightStep::Slice { axis, len, .. } = step {
                        new[*axis as usize] = *len;
                    } else {
                        new.swap(r - 2, r - 1);
                    }
                    let n: u64 = new.iter().product();
                    let mut out = Vec::new();
                    for mut i in 0..n {
                        let mut coords = vec![0; r];
                        for a in (0..r).rev() {
                            coords[a] = i % new[a];
                            i /= new[a];
                        }
                        if let WeightStep::Slice { axis, start, step, .. } = step {
                            coords[*axis as usize] = start + coords[*axis as usize] * step;
                        } else {
                            coords.swap(r - 2, r - 1);
                        }
                        out.push(data[coords.iter().zip(&strides).map(|(c, s)| c * s).sum::<u64>() as usize]);
                    }
                    (data, shape) = (out, new);
                }
            }
        }
        (shape, data)
    }

    fn read(view: &Strided) -> Vec<u64> {
        let shape = view.shape();
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().product::<u64>().checked_div(cols).unwrap_or(0);
        (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).map(|(r, c)| view.row(r).at(c)).collect()
    }

    proptest! {
        #[test]
        fn views_read_what_moving_elements_gives(seed in prop::collection::vec(0u8..6, 0..6)) {
            let shape = vec![4u64, 6, 8];
            let mut steps = Vec::new();
            let mut now = shape.clone();
            for s in seed {
                let r = now.len();
                let step = match s {
                    0 if r >= 2 => WeightStep::Transpose,
                    1 => WeightStep::Slice { axis: 0, start: 1, step: 1, len: now[0].saturating_sub(1), of: None },
                    2 => WeightStep::Slice { axis: (r - 1) as u32, start: 0, step: 2, len: now[r - 1].div_ceil(2), of: None },
                    3 => WeightStep::Reshape { shape: vec![now.iter().product()] },
                    4 => WeightStep::Reshape { shape: vec![now[0], now[1..].iter().product()] },
                    _ if now[r - 1].is_multiple_of(2) && now[r - 1] > 0 => {
                        let mut to = now.clone();
                        to[r - 1] /= 2;
                        to.push(2);
                        WeightStep::Reshape { shape: to }
                    }
                    _ => continue,
                };
                steps.push(step);
                now = moved(&shape, &steps).0;
            }
            let view = steps.iter().try_fold(Strided::dense(&shape), |v, s| v.step(s)).expect("steps should fit");
            let (want_shape, want) = moved(&shape, &steps);
            prop_assert_eq!(view.shape(), want_shape);
            prop_assert_eq!(read(&view), want.clone());
            if let Some(at) = view.contiguous() {
                prop_assert_eq!(want.clone(), (at..at + want.len() as u64).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn steps_that_do_not_fit_are_refused() {
        let view = || Strided::dense(&[2, 3]);
        let slice = |axis, start, step, len| WeightStep::Slice { axis, start, step, len, of: None };
        assert!(Strided::dense(&[3]).step(&WeightStep::Transpose).is_err());
        assert!(view().step(&slice(2, 0, 1, 1)).is_err());
        assert!(view().step(&slice(1, 1, 1, 3)).is_err());
        assert!(view().step(&slice(1, 0, 0, 2)).is_err());
        assert!(view().step(&slice(1, u64::MAX, 1, 2)).is_err());
        assert!(view().step(&slice(1, 0, u64::MAX, 3)).is_err());
        assert!(view().step(&slice(1, 0, 2, 2)).is_ok());
        let half = |of| WeightStep::Slice { axis: 0, start: 0, step: 1, len: 1, of: Some(of) };
        assert!(view().step(&half(2)).is_ok() && view().step(&half(3)).is_err());
        assert!(view().step(&WeightStep::Reshape { shape: vec![7] }).is_err());
    }
}
