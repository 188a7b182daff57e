//! A snapshot test of a compiled layer, as you would write it in your own repository: when an upgrade of moec, or a change of
//! the config, compiles the layer to something else, the test shows what. `cargo insta review` takes the new text.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec::{CompileRequest, Model, Target};
use moec_snapshot::{Kernels, Snapshot};

#[test]
fn mixtral_on_hopper() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/models/mixtral-8x7b/config.json");
    let layer = Model::open(config).unwrap().layer(None).unwrap();
    let request = CompileRequest {
        tokens: (1, 16),
        ..CompileRequest::new(&layer.graph, Target::by_name("sm_90a").into_iter().collect())
    };
    let compiled = moec::compile(&request).unwrap();
    // Another release of LLVM orders instructions in another way: what is hashed are the instructions.
    insta::assert_snapshot!(Snapshot::of(&compiled.bundle, Kernels::Digested).unwrap().to_string());
}
