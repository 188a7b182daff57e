//! What is compared: layers, formats of weights, and who else has them.

/// A layer of some model's size.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Qwen3-30B-A3B: 128 experts of 2048 × 768, 8 a token.
    Qwen3,
    /// Few experts: 8 of 1024 × 3584, 2 a token.
    Mixtral,
    /// gpt-oss-20b: 32 experts of 2880 × 2880, 4 a token, biases.
    GptOss,
}

/// Numbers of a layer.
pub struct Size {
    pub experts: u64,
    pub top_k: u64,
    pub hidden: u64,
    pub ffn: u64,
    /// gpt-oss's activation, and biases.
    pub oai: bool,
    /// What the sum over a token's experts is multiplied by; moec's example has it as DeepSeek-V3 does.
    pub scale: f64,
}

impl Model {
    pub const ALL: [Model; 3] = [Model::Qwen3, Model::Mixtral, Model::GptOss];

    /// As `layer_times` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Model::Qwen3 => "qwen3",
            Model::Mixtral => "mixtral",
            Model::GptOss => "gpt-oss",
        }
    }

    pub fn size(self) -> Size {
        let size = |experts, top_k, hidden, ffn| Size { experts, top_k, hidden, ffn, oai: false, scale: 2.5 };
        match self {
            Model::Qwen3 => size(128, 8, 2048, 768),
            Model::Mixtral => size(8, 2, 1024, 3584),
            Model::GptOss => Size { oai: true, ..size(32, 4, 2880, 2880) },
        }
    }

    /// Those that are measured when nobody asks for others.
    pub fn formats(self) -> &'static [Format] {
        match self {
            Model::Qwen3 => &[Format::Bf16, Format::F32, Format::Fp8, Format::Mxfp4, Format::Nvfp4, Format::Int4],
            Model::Mixtral => &[Format::Bf16],
            Model::GptOss => &[Format::Mxfp4],
        }
    }
}

/// How weights are stored. Rows are bf16 in moec, but f32 beside weights in f32.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Bf16,
    F32,
    /// e4m3, a scale in f32 for 128 × 128.
    Fp8,
    /// e2m1, a power of two for 32.
    Mxfp4,
    /// e2m1, a scale in e4m3 for 16.
    Nvfp4,
    /// A nibble less 8, a scale in bf16 for 32.
    Int4,
}

/// A package that brings an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    Ggml,
    Torch,
    Onnx,
}

/// An engine with weights in some way of its own.
pub struct Peer {
    pub name: &'static str,
    pub package: Package,
    /// What its program is told: a type of ggml, a way of PyTorch.
    pub way: &'static str,
    /// How far a row of its result may be from moec's, over the length of that row.
    pub tolerance: f64,
    /// Its time over moec's that is aimed at with 1, 16, 64 and 512 tokens.
    pub aims: Option<[f64; 4]>,
}

/// Sums in another order.
const FLOATS: f64 = 1e-4;
/// Values between the products are rounded to bf16 in other places: 2^-9 each.
const ROUNDED: f64 = 2e-2;
/// ggml rounds rows to 8 bits for each 32 elements beside codes of 4 and 8 bits, and weights in FP8 become other codes.
const EIGHT_BITS: f64 = 3e-2;

const GGML: [f64; 4] = [1.1, 1.2, 1.5, 1.5];
const GROUPED_MM: [f64; 4] = [1.9, 2.3, 3.5, 5.0];

const fn ggml(name: &'static str, way: &'static str, tolerance: f64) -> Peer {
    Peer { name, package: Package::Ggml, way, tolerance, aims: Some(GGML) }
}

const fn torch(name: &'static str, way: &'static str, tolerance: f64, aims: Option<[f64; 4]>) -> Peer {
    Peer { name, package: Package::Torch, way, tolerance, aims }
}

const fn onnx(name: &'static str, tolerance: f64) -> Peer {
    Peer { name, package: Package::Onnx, way: "", tolerance, aims: None }
}

const BF16: [Peer; 3] = [
    ggml("ggml BF16", "bf16", ROUNDED),
    torch("torch grouped_mm", "grouped_mm", ROUNDED, Some(GROUPED_MM)),
    torch("torch linear", "linear", ROUNDED, None),
];
const F32: [Peer; 4] = [
    ggml("ggml F32", "f32", FLOATS),
    torch("torch grouped_mm", "grouped_mm", FLOATS, None),
    torch("torch linear", "linear", FLOATS, None),
    onnx("onnxruntime MoE", FLOATS),
];
const FP8: [Peer; 1] = [ggml("ggml Q8_0", "q8_0", EIGHT_BITS)];
const MXFP4: [Peer; 1] = [ggml("ggml MXFP4", "mxfp4", EIGHT_BITS)];
const NVFP4: [Peer; 1] = [ggml("ggml NVFP4", "nvfp4", EIGHT_BITS)];
const INT4: [Peer; 3] =
    [ggml("ggml Q4_0", "q4_0", EIGHT_BITS), ggml("ggml Q4_1", "q4_1", EIGHT_BITS), onnx("onnxruntime QMoE", ROUNDED)];

impl Format {
    const ALL: [Format; 6] = [Format::Bf16, Format::F32, Format::Fp8, Format::Mxfp4, Format::Nvfp4, Format::Int4];

    /// As `layer_times` and `weights.py` call it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Bf16 => "bf16",
            Format::F32 => "f32",
            Format::Fp8 => "fp8",
            Format::Mxfp4 => "mxfp4",
            Format::Nvfp4 => "nvfp4",
            Format::Int4 => "int4",
        }
    }

    /// The format called `name` by programs, if there is one.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Who else has such weights, or others of as many bits.
    pub fn peers(self) -> &'static [Peer] {
        match self {
            Format::Bf16 => &BF16,
            Format::F32 => &F32,
            Format::Fp8 => &FP8,
            Format::Mxfp4 => &MXFP4,
            Format::Nvfp4 => &NVFP4,
            Format::Int4 => &INT4,
        }
    }
}

impl Peer {
    /// What its time over moec's is to be with so many tokens, if that is said.
    pub fn aim(&self, n_tokens: u64) -> Option<f64> {
        let which = [1, 16, 64, 512].iter().position(|&n| n == n_tokens)?;
        self.aims.map(|aims| aims[which])
    }
}
