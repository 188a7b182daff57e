//! Graph IR and tile IR of moec: data, verifier, text form and reference evaluator
