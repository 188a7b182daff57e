//! Reads published model configs, checkpoints and layer graphs into the moec graph IR
