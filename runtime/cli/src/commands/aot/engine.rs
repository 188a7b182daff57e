
// From here on the text is the same for every layer.

/// What is wrong with a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// More tokens than the layer was compiled for.
    TooManyTokens,
    /// Less memory than `workspace_bytes` says.
    WorkspaceTooSmall,
    /// This processor or GPU cannot run the code.
    Processor,
    /// An address on the GPU is 0, or no multiple of 16; of weights, of 256.
    Address,
    /// The driver's own result.
    Cuda(i32),
}

/// A number of blocks or items: `mul * (ceil(per_token * T / div) + min(add, per_token * T))`, at least `min`.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub mul: u64,
    pub per_token: u64,
    pub div: u64,
    pub add: u64,
    pub min: u64,
}

impl Extent {
    pub fn at(&self, n_tokens: u64) -> u64 {
        let rows = self.per_token * n_tokens;
        (self.mul * (rows.div_ceil(self.div) + self.add.min(rows))).max(self.min)
    }
}

/// Whose memory a buffer is; numbers count in the lists of inputs, outputs and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Input(usize),
    Output(usize),
    Weight(usize),
    Workspace,
    /// One i32 that is 0 before the first launch.
    Counter,
}

/// `batch` matrices of `rows + rows_per_token * T` rows of `cols` elements, `pitch` elements from row to row.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub name: &'static str,
    pub dtype: &'static str,
    pub role: Role,
    pub batch: u64,
    pub rows: u64,
    pub rows_per_token: u64,
    pub cols: u64,
    pub pitch: u64,
    pub elem_bytes: u64,
    /// The first and the last kernel that name it.
    pub alive: (usize, usize),
}

impl Buffer {
    pub fn bytes(&self, n_tokens: u64) -> u64 {
        self.batch * (self.rows + self.rows_per_token * n_tokens) * self.pitch * self.elem_bytes
    }
}

/// A tensor map of a GPU kernel, in the driver's numbers; dimensions are innermost first, strides are bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap {
    pub operand: usize,
    pub elem: u32,
    pub swizzle: u32,
    pub rank: u32,
    pub dims: [u64; 5],
    pub dims_per_token: [u64; 5],
    pub strides: [u64; 5],
    pub box_dims: [u32; 5],
}

#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub name: &'static str,
    pub entry: &'static str,
    /// GPU: number of its image.
    pub image: usize,
    /// GPU: blocks. CPU: work items, in the first.
    pub grid: [Extent; 3],
    pub block_threads: u32,
    pub cluster: u32,
    pub dynamic_smem_bytes: u32,
    pub persistent: bool,
    pub programmatic: bool,
    pub scratch_bytes: u64,
    pub operands: &'static [usize],
    pub tensor_maps: &'static [TensorMap],
}

/// A program for a range of token counts; any count up to the last variant's largest is right in every variant.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub min_tokens: u64,
    pub max_tokens: u64,
    pub buffers: &'static [Buffer],
    pub kernels: &'static [Kernel],
    /// Whether buffers that are not alive at the same time share memory.
    pub overlay: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub variants: &'static [Variant],
    /// GPU: PTX, or cubins.
    pub images: &'static [&'static [u8]],
}

const fn aligned(n: u64) -> u64 {
    n.div_ceil(256) * 256
}

impl Variant {
    /// Where workspace buffers lie, and the size of all. Does not allocate: `offsets` has a place for each buffer.
    fn layout(&self, n_tokens: u64, offsets: &mut [u64]) -> u64 {
        let mut end = 0;
        for (i, b) in self.buffers.iter().enumerate() {
            offsets[i] = 0;
            if b.role != Role::Workspace {
                continue;
            }
            let (bytes, mut start, mut j) = (b.bytes(n_tokens), 0, 0);
            while j < i {
                let other = &self.buffers[j];
                let (from, to) = (offsets[j], offsets[j] + other.bytes(n_tokens));
                let alive = !self.overlay || (other.alive.0 <= b.alive.1 && b.alive.0 <= other.alive.1);
                if other.role == Role::Workspace && alive && start < to && from < start + bytes {
                    start = aligned(to);
                    j = 0;
                } else {
                    j += 1;
                }
            }
            offsets[i] = start;
            end = end.max(start + bytes);
        }
        aligned(end)
    }
}

impl Target {
    /// The variant for a token count, and the number of kernels of those before it.
    fn variant(&self, n_tokens: u64) -> Result<(&'static Variant, usize), Error> {
        let mut before = 0;
        for v in self.variants {
            if n_tokens <= v.max_tokens {
                return Ok((v, before));
            }
            before += v.kernels.len();
        }
        Err(Error::TooManyTokens)
    }
}
