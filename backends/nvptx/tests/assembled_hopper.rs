//! What NVIDIA's assembler makes of products on sm_90a: instructions of its tensor cores, in flight together, without spills.

mod common;

use common::assembler::{find_nvdisasm, find_ptxas, opcodes};
use common::programs::{Layer, Schedules, layer, schedule};
use moec_ir::act_quant::ActQuant;
use moec_ir::engine;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::{Schedule, Team};
use moec_nvptx::GpuKernelImage;
use moec_ptx::ptxas;
use std::path::Path;

/// A row of the table. A thread decodes `codes` in a step; 0 where none are.
fn disassembled(
    (ptxas, nvdisasm): (&Path, &Path),
    (name, codes): (&str, u32),
    image: &GpuKernelImage,
    wrong: &mut Vec<String>,
) -> String {
    let done = ptxas::assemble(ptxas, &image.ptx, "sm_90a").unwrap_or_else(|e| panic!("{name}: {e}"));
    let entry = done.report.entry(&image.entry).expect("the entry should be reported");
    let spills = (entry.spill_store_bytes, entry.spill_load_bytes);
    // Products that run one after another, or registers that are not given, come with a message.
    let messages = done.report.messages.iter().map(|m| format!(" {m}")).collect::<String>();
    if spills != (0, 0) || !messages.is_empty() {
        wrong.push(format!("{name}, {}: spills {spills:?}{messages}", image.entry));
    }
    let sass = ptxas::disassemble(nvdisasm, &done.cubin).unwrap_or_else(|e| panic!("{name}: {e}"));
    let blocks = opcodes(&sass);
    let product = if name.contains(" x ") { "QGMMA" } else { "HGMMA" };
    let count = |what: &str| blocks.iter().flatten().filter(|o| o.starts_with(what)).count();
    let [products, copies, fallback] = [product, "UTMALDG", "HMMA"].map(count);
    assert!(products > 0 && copies > 0 && fallback == 0, "{name}: {products}, {copies}, {fallback}");
    let loops = blocks.iter().filter(|b| b.iter().any(|o| o.starts_with(product)));
    let lengths: Vec<usize> = loops.map(Vec::len).collect();
    let (in_loops, shortest) = (lengths.iter().sum::<usize>(), lengths.iter().min().expect("there are products"));
    let for_a_code = match codes {
        0 => String::new(),
        codes => format!(", with few rows {:.1} for a code", *shortest as f64 / f64::from(codes)),
    };
    format!(
        "{name:<18} {:<6} {:>3} registers, {:>6} bytes of shared memory, {:>5.1} instructions for a product{for_a_code}\n",
        image.entry,
        entry.registers,
        image.launch.dynamic_smem_bytes,
        in_loops as f64 / products as f64,
    )
}

#[test]
fn products_on_sm_90_are_instructions_of_its_tensor_cores() {
    let Some(ptxas) = find_ptxas() else { return };
    let Some(nvdisasm) = find_nvdisasm(&ptxas) else { return };
    let format = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
    let formats = [
        ("bf16", None),
        ("fp8", format(Code::E4M3, ScaleCode::F32, 128, 128)),
        ("mxfp4", format(Code::E2M1, ScaleCode::E8M0, 1, 32)),
        ("nvfp4", format(Code::E2M1, ScaleCode::E4M3, 1, 16)),
        ("int4", format(Code::Int4, ScaleCode::BF16, 1, 32)),
    ];
    let int4_128 = format(Code::Int4, ScaleCode::BF16, 1, 128);
    // Rows as codes; results of the first product become such, too.
    let of_codes = [
        ("fp8 x fp8", formats[1].1),
        ("fp8 x mxfp4", formats[2].1),
        ("fp8 x nvfp4", formats[3].1),
        ("fp8 x int4", formats[4].1),
        ("fp8 x int4/128", int4_128),
    ];
    let target = Target::by_name("sm_90a").expect("a target");
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for (name, format) in formats.into_iter().chain(of_codes) {
        let tiles = [(16, 128, Team::SplitK), (64, 128, Team::One), (256, 128, Team::One), (64, 64, Team::One)];
        let of_codes = name.contains(" x ");
        let decodes = format.is_some() && name != "fp8 x fp8";
        for (tile_m, tile_n, team) in tiles {
            // Of codes that become floats or FP8, small tiles differ in numbers only.
            if decodes && tile_n == 128 && tile_m != 256 || of_codes && tile_n == 64 {
                continue;
            }
            let k_parts = if team == Team::SplitK { 8 } else { 1 };
            let s = Schedule { team, k_parts, ..schedule(tile_m, tile_n, 64, 32, 12) };
            let s = Schedules { gemm1: s, gemm2: s, ..Schedules::for_rows(32) };
            let mut program = layer(&Layer::deepseek_r1(), &s);
            program = match format {
                Some(format) if of_codes => common::coded::in_codes(program, ActQuant::FP8_BLOCK, format),
                Some(format) => common::coded::in_format(program, format, format.has_global()),
                None => program,
            };
            // One panel is made in tiles of 128 columns only.
            program.kernels.retain(|k| k.name == "gemm1" || k.name == "gemm2" && tile_n == 128);
            engine::fit(&mut program, target);
            for image in common::emit(&program, target).unwrap_or_else(|e| panic!("{name}: {e}")) {
                let s = program.kernels[image.kernel].schedule;
                let split = if team == Team::SplitK { " split" } else { "" };
                let wide = if tile_n == 64 { format!("/{tile_n}") } else { String::new() };
                let name = format!("{name}/{}{wide}{split}", s.tile_m);
                let panels = if image.entry == "gemm1" { 2 } else { 1 };
                let codes = if decodes { panels * s.tile_n * s.tile_k / 256 } else { 0 };
                table += &disassembled((&ptxas, &nvdisasm), (&name, codes), &image, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("wgmma", table);
    }
}
