//! Opens moec bundles, packs weights, binds tensors and launches
