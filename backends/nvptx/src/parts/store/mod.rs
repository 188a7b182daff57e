//! How sums become results: bias, epilogue expression, store.

mod column;

pub use column::Epilogue;
