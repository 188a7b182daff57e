//! How sums become results: bias, epilogue expression, store.

mod column;
mod scaled;

pub use column::Epilogue;
pub use scaled::ScaledColumn;
