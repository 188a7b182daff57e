//! moec's layers over candle's tensors: golden files, candle's own arithmetic, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{D, DType, Device, Module, Tensor, Var};
use moec_candle::{Experts, MoeLayer};
use std::path::{Path, PathBuf};

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance").join(name)
}

/// A tensor of what transformers computed.
fn golden(model: &str, layer: u32, name: &str) -> Tensor {
    let file = checkpoint(model).join(format!("golden.layer{layer}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()[name].clone()
}

fn error(got: &Tensor, want: &Tensor) -> f32 {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
    let [got, want] = [got, want].map(|t| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap());
    norm(&(got - &want).unwrap()) / norm(&want)
}

#[test]
fn whole_layers_give_what_transformers_computed() {
    for (model, number, dtype, limit) in [
        ("mixtral.f32", 0, DType::F32, 1e-5),
        ("qwen3_moe.bf16", 0, DType::BF16, 2e-2),
        ("deepseek_v3.fp8-block.h256", 1, DType::BF16, 2e-2),
    ] {
        let layer = MoeLayer::open(checkpoint(model), Some(number), 64).unwrap();
        let (x, want) = (golden(model, number, "input"), golden(model, number, "output"));
        let x = &x.to_dtype(dtype).unwrap();
        let got = layer.forward(x).unwrap();
        assert_eq!((got.dtype(), got.dims()), (x.dtype(), x.dims()));
        assert!(error(&got, &want) < limit, "{model}: {}", error(&got, &want));
        // A batch of sequences, rows that do not lie one behind the other, no rows.
        let n = x.dims()[0];
        assert_eq!(bits(&layer.forward(&x.unsqueeze(0).unwrap()).unwrap().squeeze(0).unwrap()), bits(&got));
        let apart = Tensor::cat(&[x, x], 1).unwrap().narrow(1, 0, x.dims()[1]).unwrap();
        assert!(!apart.is_contiguous() && bits(&layer.forward(&apart).unwrap()) == bits(&got));
        assert_eq!(layer.forward(&x.narrow(0, n - 1, 1).unwrap()).unwrap().dims(), [1, x.dims()[1]]);
        assert_eq!(layer.forward(&x.narrow(0, 0, 0).unwrap()).unwrap().dims(), [0, x.dims()[1]]);
    }
}

fn bits(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn experts_of_a_checkpoint_take_ids_of_every_kind() {
    let experts = Experts::open(checkpoint("mixtral.f32"), Some(0), 64).unwrap();
    let [x, ids, weights, want] = ["input", "topk_ids", "topk_weights", "output"].map(|n| golden("mixtral.f32", 0, n));
    assert_eq!(ids.dtype(), DType::I64);
    let got = experts.forward(&x, &ids, &weights).unwrap();
    assert!(error(&got, &want) < 1e-5, "{}", error(&got, &want));
    for dtype in [DType::U32, DType::I32] {
        let ids = ids.to_dtype(dtype).unwrap();
        assert_eq!(bits(&experts.forward(&x, &ids, &weights).unwrap()), bits(&got));
    }
    // Ids that no expert has.
    for id in [-1, 8, i64::MAX, i64::MIN] {
        let none = Tensor::full(id, ids.shape(), &Device::Cpu).unwrap();
        assert!(bits(&experts.forward(&x, &none, &weights).unwrap()).iter().all(|&v| v == 0.0), "{id}");
    }
}

/// `[E, 2I, H]`, `[E, H, I]` and a router's choice.
struct Given {
    gate_up: Tensor,
    down: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
}

const E: usize = 8;
const H: usize = 64;
const I: usize = 32;
const T: usize = 6;

impl Given {
    fn new(dtype: DType) -> Given {
        let random =
            |shape: &[usize], scale| Tensor::randn(0f32, scale, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let scores = Tensor::rand(0f32, 1., (T, E), &Device::Cpu).unwrap();
        let ids = scores.arg_sort_last_dim(false).unwrap().narrow(D::Minus1, 0, 2).unwrap().contiguous().unwrap();
        Given {
            gate_up: random(&[E, 2 * I, H], 0.1),
            down: random(&[E, H, I], 0.1),
            x: random(&[T, H], 1.0),
            weights: scores.gather(&ids, D::Minus1).unwrap(),
            ids,
        }
    }

    fn by_candle(&self) -> Tensor {
        let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let (gate_up, down, x) = (f32(&self.gate_up), f32(&self.down), f32(&self.x));
        let ids = self.ids.to_vec2::<u32>().unwrap();
        let row = |t: usize| {
            let mut sum = Tensor::zeros((1, H), DType::F32, &Device::Cpu).unwrap();
            for (k, &e) in ids[t].iter().enumerate() {
                let e = e as usize;
                let both = x.narrow(0, t, 1).unwrap().matmul(&gate_up.get(e).unwrap().t().unwrap()).unwrap();
                let both = both.chunk(2, 1).unwrap();
                let sigmoid = (both[0].neg().unwrap().exp().unwrap() + 1.).unwrap().recip().unwrap();
                let act = ((&both[0] * sigmoid).unwrap() * &both[1]).unwrap();
                let y = act.matmul(&down.get(e).unwrap().t().unwrap()).unwrap();
                let weight = self.weights.get(t).unwrap().get(k).unwrap();
                sum = (sum + y.broadcast_mul(&weight).unwrap()).unwrap();
            }
            sum
        };
        Tensor::cat(&(0..T).map(row).collect::<Vec<_>>(), 0).unwrap()
    }
}

#[test]
fn tensors_of_candle_are_read_where_they_lie() {
    for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
        let g = Given::new(dtype);
        let experts = Experts::new(&g.gate_up, &g.down, "swiglu", 2, 16).unwrap();
        let got = experts.forward(&g.x, &g.ids, &g.weights).unwrap();
        assert!(error(&got, &g.by_candle()) < limit, "{dtype:?}: {}", error(&got, &g.by_candle()));
        // What is written to them is seen: they were not copied.
        let twice = (&g.down * 2.).unwrap();
        g.down.slice_set(&twice, 0, 0).unwrap();
        let again = experts.forward(&g.x, &g.ids, &g.weights).unwrap();
        let want = (got.to_dtype(DType::F32).unwrap() * 2.).unwrap();
        assert!(error(&again, &want) < limit, "{dtype:?}");
    }
}

#[test]
fn transposed_weights_are_copied() {
    let g = Given::new(DType::F32);
    let stored = g.gate_up.transpose(1, 2).unwrap().contiguous().unwrap();
    let experts = Experts::new(&stored.transpose(1, 2).unwrap(), &g.down, "swiglu", 2, 16).unwrap();
    let got = experts.forward(&g.x, &g.ids, &g.weights).unwrap();
    assert!(error(&got, &g.by_candle()) < 1e-5);
}

#[test]
fn threads_share_a_layer() {
    let g = Given::new(DType::F32);
    let experts = Experts::new(&g.gate_up, &g.down, "swiglu", 2, 16).unwrap();
    let want = bits(&experts.forward(&g.x, &g.ids, &g.weights).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (experts, g, want) = (experts.clone(), &g, &want);
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&bits(&experts.forward(&g.x, &g.ids, &g.weights).unwrap()), want);
                }
            });
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let g = Given::new(DType::F32);
    let experts = Experts::new(&g.gate_up, &g.down, "swiglu", 2, 16).unwrap();
    let said = |x: &Tensor, ids: &Tensor, w: &Tensor| experts.forward(x, ids, w).unwrap_err().to_string();
    let text = said(&g.x.to_dtype(DType::BF16).unwrap(), &g.ids, &g.weights);
    assert!(text.contains("x is BF16[6, 64], but the layer takes F32[.., 64]"), "{text}");
    let text = said(&g.x, &g.ids.narrow(1, 0, 1).unwrap(), &g.weights);
    assert!(text.contains("ids are [6, 1], but there are 6 tokens of 2"), "{text}");
    let text = said(&g.x, &g.ids.to_dtype(DType::F32).unwrap(), &g.weights);
    assert!(text.contains("ids are u32, i32 or i64, not F32"), "{text}");
    let many = Tensor::zeros((17, H), DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::zeros((17, 2), DType::U32, &Device::Cpu).unwrap();
    let text = said(&many, &ids, &ids.to_dtype(DType::F32).unwrap());
    assert!(text.contains("error[too-many-tokens]"), "{text}");

    let open = Experts::new(&g.gate_up, &g.down, "swigloo", 2, 16).err().unwrap().to_string();
    assert!(open.contains("swigloo"), "{open}");
    assert!(Experts::new(&g.down, &g.down, "swiglu", 2, 16).is_err());
    assert!(Experts::new(&g.gate_up.to_dtype(DType::F64).unwrap(), &g.down, "swiglu", 2, 16).is_err());
    let text = MoeLayer::open("nowhere", None, 16).err().unwrap().to_string();
    assert!(text.contains("error[not-a-model]"), "{text}");
}

#[test]
fn a_backward_pass_says_that_there_is_none() {
    let g = Given::new(DType::F32);
    let experts = Experts::new(&g.gate_up, &g.down, "swiglu", 2, 16).unwrap();
    let x = Var::from_tensor(&g.x).unwrap();
    let y = experts.forward(x.as_tensor(), &g.ids, &g.weights).unwrap();
    let text = y.sum_all().unwrap().backward().err().unwrap().to_string();
    assert!(text.contains("backward") && text.contains("moec"), "{text}");
}
