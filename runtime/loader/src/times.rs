//! What a layer and each of its kernels take.

/// Times of a layer, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// A launch, as engines do it: on a GPU, a replay of a graph.
    pub all: f64,
    /// Each kernel, launched alone; 0 for one that has nothing to do.
    pub kernels: Vec<f64>,
    /// Bytes a second of copies of device memory before those launches, read and written bytes together; only on a GPU.
    pub copies: Vec<f64>,
}
