//! `libmoec_kernels.a`: the matrix products that objects of CPU layers call, for programs that link a layer as `moec compile --emit
//! header,c` writes it. It holds nothing else: no loader, no reader of checkpoints, no threads.
#![warn(missing_docs)]

use moec_ir::abi::CpuKernels;
use std::sync::OnceLock;

/// The functions that this processor runs fastest, for `moec_context.kernels`. Never null, the same at each call, and for all
/// threads.
#[unsafe(no_mangle)]
pub extern "C" fn moec_kernels() -> *const CpuKernels {
    static TABLE: OnceLock<CpuKernels> = OnceLock::new();
    TABLE.get_or_init(moec_cpu_kernels::table)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_one() {
        let first = super::moec_kernels();
        assert!(!first.is_null() && first == super::moec_kernels());
    }
}
