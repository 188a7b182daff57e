//! Mistakes that only callers of the libraries can make.

use moec_ir::{DType, Tensor, graph, tile};
use moec_tests::cases;

#[test]
fn the_reference_refuses_tensors_of_another_shape_or_type() {
    let case = cases::all().into_iter().next().expect("there should be cases");
    let hidden = case.graph.inputs[0].ty.shape[1].at(0) as usize;
    let code = |input: Tensor| graph::evaluate(&case.graph, &[input], &case.params).map_err(|d| d.code);
    let wide = Tensor::float(DType::F32, &[1, hidden + 1], vec![0.0; hidden + 1]);
    assert_eq!(code(wide), Err("tensor-shape".to_string()));
    let half = Tensor::float(DType::F16, &[1, hidden], vec![0.0; hidden]);
    assert_eq!(code(half), Err("tensor-type".to_string()));
    let missing = graph::evaluate(&case.graph, &[], &case.params).map_err(|d| d.code);
    assert_eq!(missing, Err("tensor-missing".to_string()));
}

#[test]
fn text_that_is_no_tile_program_is_refused() {
    assert_eq!(tile::parse("program {").map_err(|d| d.code), Err("text-syntax".to_string()));
}

#[test]
fn a_folder_without_a_pack_is_refused() {
    let read = moec_runtime::gpu_pack::read_pack(std::path::Path::new("/nonexistent")).map_err(|d| d.code);
    assert_eq!(read.err(), Some("pack-invalid".to_string()));
}
