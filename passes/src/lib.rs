//! Fusion decisions by equality saturation and lowering to the tile IR
