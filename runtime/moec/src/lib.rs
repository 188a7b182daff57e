//! Compiles and runs Mixture-of-Experts layers
