//! `include/moec.h` is what the crate says.
//!
//! `MOEC_WRITE_HEADER=1 cargo test -p moec-capi --test header` writes it anew.

mod made_header;

use std::path::Path;

/// What no tool can read out of the crate: DLPack's own type, where a host includes it, is the same as ours.
const TRAILER: &str = "#ifdef DLPACK_DLPACK_H_
/* For hosts that include <dlpack/dlpack.h> before this header: the same structure under its other name. */
static inline const struct moec_tensor *moec_tensor_of_dlpack(const DLTensor *tensor) {
  return (const struct moec_tensor *)(const void *)tensor;
}
#endif";

#[test]
fn the_header_is_what_the_crate_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config {
        include_guard: Some("MOEC_H".into()),
        header: Some("/* The runtime of moec. Made from the crate moec-capi by cbindgen: change that one. */".into()),
        trailer: Some(TRAILER.into()),
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        ..made_header::config()
    };
    config.export.include = vec!["moec_hold".into()];
    made_header::check(root, &root.join("include/moec.h"), config);
}
