//! Every kernel of every target is accepted by NVIDIA's assembler and keeps its values in registers.
//!
//! `ptxas` is looked for in `MOEC_PTXAS`, in `target/tools` and on `PATH`. Without one the test says so and passes, unless
//! `MOEC_REQUIRE` names `ptxas`.

mod common;

use common::assembler::{find_nvdisasm, find_ptxas, opcodes};
use common::programs::{Layer, Schedules, layer, schedule};
use moec_ir::exchange::{Cut, Exchange, Piece, RowCodes};
use moec_ir::expr::Real;
use moec_ir::target::{TARGETS, Target};
use moec_ir::tile::{Body, Buffer, BufferId, Places, Program, Role, Schedule, Team};
use moec_ir::{ActQuant, Activation, DType};
use moec_ptx::ptxas;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;

/// The machines that PTX for a target is assembled for.
fn machines(target: &str) -> &[&str] {
    match target {
        "sm_100f" => &["sm_100f", "sm_100a", "sm_103a", "sm_107"],
        "sm_120f" => &["sm_120f", "sm_121a"],
        "sm_80" => &["sm_80"],
        "sm_86" => &["sm_86"],
        "sm_89" => &["sm_89"],
        "sm_90a" => &["sm_90a"],
        "sm_100a" => &["sm_100a"],
        "sm_103a" => &["sm_103a"],
        "sm_107f" => &["sm_107f", "sm_107a"],
        "sm_120a" => &["sm_120a"],
        other => panic!("no machine is listed for {other}"),
    }
}

/// Assembles every kernel; returns a line for each with what it takes.
fn assemble(ptxas: &Path, name: &str, program: &Program, target: &Target, machines: &[&str]) -> String {
    let images = common::emit(program, target).unwrap_or_else(|e| panic!("{name}: {e}"));
    let next = std::sync::atomic::AtomicUsize::new(0);
    let jobs: Vec<_> = images.iter().flat_map(|i| machines.iter().map(move |m| (i, *m))).collect();
    let lines = Mutex::new(vec![String::new(); jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((image, machine)) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let done = ptxas::assemble(ptxas, &image.ptx, machine);
                    let done = done.unwrap_or_else(|e| panic!("{name}, {} for {machine}: {e}", image.entry));
                    let entry = done.report.entry(&image.entry).expect("the entry should be reported");
                    let spills = (entry.spill_store_bytes, entry.spill_load_bytes);
                    assert_eq!(spills, (0, 0), "{name}, {} for {machine} spills", image.entry);
                    let line = format!(
                        "{name:<12} {:<8} {machine:<8} {:>3} registers, {:>4} threads, {:>6} bytes of shared memory\n",
                        image.entry, entry.registers, image.launch.block_threads, image.launch.dynamic_smem_bytes
                    );
                    let at = jobs.iter().position(|j| std::ptr::eq(j.0, *image) && j.1 == *machine);
                    lines.lock().expect("no panics above")[at.expect("a job")] = line;
                }
            });
        }
    });
    lines.into_inner().expect("no panics above").concat()
}

#[test]
fn the_kernels_of_deepseek_r1_assemble_for_every_machine_without_spills() {
    let Some(ptxas) = find_ptxas() else { return };
    let mut table = String::new();
    for target in TARGETS.iter().filter(|t| !t.is_cpu()) {
        for tile_m in [16, 32, 64, 128] {
            let program = layer(&Layer::deepseek_r1(), &Schedules::for_rows(tile_m));
            // Tiles of 32 and 64 rows differ from the others in numbers only; the main targets stand for all.
            if matches!(tile_m, 32 | 64) && !matches!(target.name, "sm_80" | "sm_89" | "sm_90a" | "sm_100f" | "sm_120f")
            {
                continue;
            }
            let machines = if tile_m == 128 { machines(target.name) } else { &machines(target.name)[..1] };
            write!(table, "{}", assemble(&ptxas, &format!("r1/{tile_m}"), &program, target, machines)).expect("memory");
        }
    }
    // Registers are the assembler's choice: the table holds for one release of it.
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("registers", table);
    }
}

#[test]
fn products_that_read_codes_assemble_without_spills() {
    let Some(ptxas) = find_ptxas() else { return };
    use moec_ir::quant::{Code, QuantFormat, ScaleCode};
    let format = |code, scale, block_rows, block_cols| QuantFormat { code, scale, block_rows, block_cols };
    let formats = [
        ("fp8", format(Code::E4M3, ScaleCode::F32, 128, 128), false),
        ("mxfp4", format(Code::E2M1, ScaleCode::E8M0, 1, 32), false),
        ("nvfp4", format(Code::E2M1, ScaleCode::E4M3, 1, 16), true),
        ("int4", format(Code::Int4, ScaleCode::BF16, 1, 32), false),
        ("odd", format(Code::E5M2, ScaleCode::F16, 3, 24), true),
    ];
    let mut table = String::new();
    for (name, format, global) in formats {
        for target in ["sm_80", "sm_90a", "sm_100f", "sm_120f"] {
            for tile_m in [16, 128] {
                let dense = layer(&Layer::deepseek_r1(), &Schedules::for_rows(tile_m));
                // The text of the program: contents would be as large as the layer.
                let mut program = common::coded::in_format(dense, format, global);
                program.kernels.retain(|k| k.name.starts_with("gemm"));
                let target = Target::by_name(target).expect("a target");
                // Machines of a family differ in the numbers of instructions only: one format stands for all.
                let all = tile_m == 128 && name == "nvfp4";
                let machines = if all { machines(target.name) } else { &machines(target.name)[..1] };
                write!(table, "{}", assemble(&ptxas, &format!("{name}/{tile_m}"), &program, target, machines))
                    .expect("memory");
            }
        }
    }
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("registers_of_codes", table);
    }
}

/// The last product of a layer with results at places, as experts have it whose tokens live on other ranks.
fn at_places(mut program: Program) -> Program {
    program.kernels.retain(|k| k.name == "gemm2");
    let of_rows = BufferId(program.buffers.len() as u32);
    let Some(Body::Contract(c)) = program.kernels.first_mut().map(|k| &mut k.body) else { panic!("no product") };
    c.segments.truncate(1);
    c.segments[0].out_places = Some(Places { of_rows, unit: 8 });
    let out = c.segments[0].out;
    let (name, dtype, role) = ("row_places".to_string(), DType::I64, Role::Workspace);
    let rows = program.buffer(out).rows;
    program.buffers.push(Buffer { name, dtype, batch: 1, rows, cols: 1, pitch: 1, role });
    for (id, buffer) in (0..).map(BufferId).zip(&mut program.buffers) {
        match buffer.role {
            _ if id == out => buffer.role = Role::Output(0),
            Role::Output(_) => buffer.role = Role::Workspace,
            _ => {}
        }
    }
    program
}

#[test]
fn products_that_store_at_places_assemble_without_spills() {
    let Some(ptxas) = find_ptxas() else { return };
    use moec_ir::quant::{Code, QuantFormat, ScaleCode};
    let mxfp4 = QuantFormat { code: Code::E2M1, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 };
    let fp8 = QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 };
    for target in ["sm_80", "sm_90a", "sm_100f", "sm_120f"] {
        for tile_m in [16, 64, 128] {
            let target = Target::by_name(target).expect("a target");
            let dense = layer(&Layer::deepseek_r1(), &Schedules::for_rows(tile_m));
            let mut all =
                vec![("dense", dense.clone()), ("mxfp4", common::coded::in_format(dense.clone(), mxfp4, false))];
            match target.name {
                "sm_90a" => all.push(("fp8 x fp8", common::coded::in_codes(dense, ActQuant::FP8_BLOCK, fp8))),
                "sm_100f" | "sm_120f" => {
                    all.push(("mxfp8 x mxfp4", common::coded::in_codes(dense, ActQuant::MXFP8, mxfp4)));
                }
                _ => {}
            }
            for (name, program) in all {
                assemble(&ptxas, &format!("{name}/{tile_m}"), &at_places(program), target, &machines(target.name)[..1]);
            }
        }
    }
}

fn spill_nowhere(ptxas: &Path, name: &str, image: &moec_nvptx::GpuKernelImage, machines: &[&str]) {
    for machine in machines {
        let done = ptxas::assemble(ptxas, &image.ptx, machine).unwrap_or_else(|e| panic!("{name} for {machine}: {e}"));
        let entry = done.report.entry(&image.entry).expect("the entry should be reported");
        let spills = (entry.spill_store_bytes, entry.spill_load_bytes);
        assert_eq!(spills, (0, 0), "{name}, {} for {machine} spills", image.entry);
    }
}

#[test]
fn kernels_that_exchange_rows_assemble_for_every_machine_without_spills() {
    let Some(ptxas) = find_ptxas() else { return };
    // DeepSeek-V3, and a shape of which no vector divides anything: 64-bit ids, rows of odd length, no weights.
    let v3 = Exchange {
        top_k: 8,
        row_bytes: 2 * 7168,
        codes: None,
        result_bytes: 2 * 7168,
        ids: DType::I32,
        weights: Some(DType::F32),
        cut: None,
    };
    let row = |quant, cols, sent, read| RowCodes { quant, cols, sent, read };
    let mxfp8 = row(ActQuant::MXFP8, 7168, DType::BF16, DType::BF16);
    let nvfp4 = row(ActQuant::NVFP4_ROW, 35, DType::F16, DType::F32);
    let coded = |codes: RowCodes| Exchange { row_bytes: codes.bytes(), codes: Some(codes), ..v3 };
    let odd =
        Exchange { top_k: 3, row_bytes: 33, codes: None, result_bytes: 34, ids: DType::I64, weights: None, cut: None };
    // The second of three, of widths that three do not divide.
    let (act, result) = (Piece { first: 1366, bytes: 1364 }, Piece { first: 4778, bytes: 4780 });
    let third = Cut { members: 3, member: 1, act_bytes: 4096, act, result };
    let cut = Exchange { cut: Some(third), ..v3 };
    let mut table = String::new();
    for target in TARGETS.iter().filter(|t| !t.is_cpu()) {
        for (name, exchange) in
            [("v3", v3), ("odd", odd), ("mxfp8", coded(mxfp8)), ("nvfp4", coded(nvfp4)), ("cut", cut)]
        {
            let kernels = moec_nvptx::emit_exchange(&exchange, target).unwrap_or_else(|e| panic!("{name}: {e}"));
            for (kernel, machine) in kernels.iter().flat_map(|k| machines(target.name).iter().map(move |m| (k, m))) {
                let done = ptxas::assemble(&ptxas, &kernel.ptx, machine);
                let done = done.unwrap_or_else(|e| panic!("{name}, {} for {machine}: {e}", kernel.entry));
                let entry = done.report.entry(&kernel.entry).expect("the entry should be reported");
                let spills = (entry.spill_store_bytes, entry.spill_load_bytes);
                assert_eq!(spills, (0, 0), "{name}, {} for {machine} spills", kernel.entry);
                let (entry, registers) = (&kernel.entry, entry.registers);
                writeln!(table, "{name:<5} {entry:<13} {machine:<8} {registers:>3} registers").expect("memory");
            }
        }
    }
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("registers_of_exchange", table);
    }
}

/// What the assembler makes of a product on sm_100: a row of a table.
fn disassembled(ptxas: &Path, nvdisasm: &Path, name: &str, image: &moec_nvptx::GpuKernelImage) -> String {
    let done = ptxas::assemble(ptxas, &image.ptx, "sm_100a").unwrap_or_else(|e| panic!("{name}: {e}"));
    let entry = done.report.entry(&image.entry).expect("the entry should be reported");
    let sass = ptxas::disassemble(nvdisasm, &done.cubin).unwrap_or_else(|e| panic!("{name}: {e}"));
    let blocks = opcodes(&sass);
    let count = |what: &str| blocks.iter().flatten().filter(|o| o.starts_with(what)).count();
    let [products, copies, loads, fallback] = ["UTCHMMA", "UTMALDG", "LDTM", "HMMA"].map(count);
    assert!(
        products > 0 && copies > 0 && loads > 0 && fallback == 0,
        "{name}: {products}, {copies}, {loads}, {fallback}"
    );
    assert_eq!((entry.spill_store_bytes, entry.spill_load_bytes), (0, 0), "{name} spills");
    let pairs = blocks.iter().flatten().filter(|o| o.starts_with("UTCHMMA") && o.contains(".2CTA")).count();
    assert_eq!(pairs, if name.contains("pair") { products } else { 0 }, "{name}: products of pairs");
    let loops = blocks.iter().filter(|b| b.iter().any(|o| o.starts_with("UTCHMMA")));
    let in_loops: usize = loops.map(Vec::len).sum();
    let line = image.ptx.lines().find(|l| l.contains("tcgen05.alloc")).expect("tensor memory is taken");
    let register = line.rsplit(' ').next().expect("an operand").trim_end_matches(';');
    let set = format!("{register}, ");
    let columns = image.ptx.lines().find_map(|l| l.trim().strip_prefix("mov.b32")?.trim().strip_prefix(set.as_str()));
    // Beside those of the stages: two for each set of sums, two for each of four places on the board, two for sums of others.
    let of_parts = if image.launch.cluster > 2 { 2 } else { 0 };
    let stages = (image.ptx.matches("mbarrier.init").count() - 12 - of_parts) / 2;
    format!(
        "{name:<12} {:<6} {:>3} registers, {:>3} threads, {:>6} bytes of shared memory, {stages:>2} stages, {:>3} columns of \
         tensor memory, {:>4.1} instructions for a product\n",
        image.entry,
        entry.registers,
        image.launch.block_threads,
        image.launch.dynamic_smem_bytes,
        columns.map_or("?", |c| c.trim_end_matches(';')),
        in_loops as f64 / products as f64,
    )
}

#[test]
fn products_on_sm_100_are_instructions_of_its_tensor_cores() {
    let Some(ptxas) = find_ptxas() else { return };
    let Some(nvdisasm) = find_nvdisasm(&ptxas) else { return };
    use moec_ir::quant::{Code, QuantFormat, ScaleCode};
    let format = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
    let formats = [
        ("bf16", None),
        ("fp8", format(Code::E4M3, ScaleCode::F32, 128, 128)),
        ("mxfp4", format(Code::E2M1, ScaleCode::E8M0, 1, 32)),
        ("nvfp4", format(Code::E2M1, ScaleCode::E4M3, 1, 16)),
    ];
    let mut table = String::new();
    for (name, format) in formats {
        // Rows of a tile, by one block, by a pair or in parts of k. What decodes does not depend on them.
        let tiles = match name {
            "bf16" => {
                &[(16, Team::SplitK), (128, Team::One), (256, Team::One), (256, Team::Pair), (256, Team::TwoPairs)][..]
            }
            "nvfp4" => &[(16, Team::SplitK), (128, Team::One), (128, Team::Pair)],
            _ => &[(128, Team::One)],
        };
        for &(tile_m, team) in tiles {
            let k_parts = if team == Team::SplitK { 8 } else { 1 };
            let s = Schedule { team, k_parts, ..schedule(tile_m, 128, 64, 16, 8) };
            let s = Schedules { gemm1: s, gemm2: s, ..Schedules::for_rows(32) };
            let mut program = layer(&Layer::deepseek_r1(), &s);
            if let Some(format) = format {
                program = common::coded::in_format(program, format, format.has_global());
            }
            program.kernels.retain(|k| k.name.starts_with("gemm"));
            let target = Target::by_name("sm_100f").expect("a target");
            for image in common::emit(&program, target).expect("kernels") {
                let made = match team {
                    Team::One | Team::Neighbours => "",
                    Team::Pair => " pair",
                    Team::TwoPairs => " two pairs",
                    Team::SplitK => " split",
                };
                let name = format!("{name}/{tile_m}{made}");
                table += &disassembled(&ptxas, &nvdisasm, &name, &image);
                if team != Team::One {
                    spill_nowhere(&ptxas, &name, &image, &["sm_100f", "sm_103a", "sm_107"]);
                }
            }
        }
    }
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("tcgen05", table);
    }
}

#[test]
fn products_of_codes_on_sm_89_and_sm_120_are_instructions_of_their_tensor_cores() {
    let Some(ptxas) = find_ptxas() else { return };
    let Some(nvdisasm) = find_nvdisasm(&ptxas) else { return };
    use moec_ir::act_quant::ActQuant;
    use moec_ir::quant::{Code, QuantFormat, ScaleCode};
    let format = |code, scale, block_rows, block_cols| QuantFormat { code, scale, block_rows, block_cols };
    let mxfp4 = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
    let pairs = [
        ("fp8", ActQuant::FP8_BLOCK, format(Code::E4M3, ScaleCode::F32, 128, 128), "QMMA.16832.F32.E4M3.E4M3"),
        ("mxfp8", ActQuant::MXFP8, format(Code::E4M3, ScaleCode::E8M0, 1, 32), "QMMA.SF.16832.F32.E4M3.E4M3.E8"),
        ("mxfp8-fp4", ActQuant::MXFP8, mxfp4, "QMMA.SF.16832.F32.E2M1.E4M3.E8"),
        ("mxfp4", ActQuant::MXFP4, mxfp4, "OMMA.SF.16864.F32.E2M1.E2M1.E8"),
        ("nvfp4", ActQuant::NVFP4, format(Code::E2M1, ScaleCode::E4M3, 1, 16), "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"),
    ];
    let mut table = String::new();
    for (name, rows, weights, instruction) in pairs {
        // Decode, and many rows.
        for (tile_m, tile_n, tile_k, stages, warps) in [(8, 32, 256, 4, 2), (128, 64, 128, 3, 8)] {
            let s = schedule(tile_m, tile_n, tile_k, stages, warps);
            let s = Schedules { gemm1: s, gemm2: s, ..Schedules::for_rows(32) };
            let mut program = common::coded::in_codes(layer(&Layer::deepseek_r1(), &s), rows, weights);
            program.kernels.retain(|k| k.name == "gemm1" || (k.name == "gemm2" && tile_m == 8));
            // The two spellings of sm_120 differ in their name only; sm_89 multiplies FP8.
            let targets = match name {
                "nvfp4" => &["sm_120f", "sm_120a"][..],
                "fp8" => &["sm_120f", "sm_89"],
                _ => &["sm_120f"],
            };
            for target in targets {
                let target = Target::by_name(target).expect("a target");
                for image in common::emit(&program, target).unwrap_or_else(|e| panic!("{name}: {e}")) {
                    let done =
                        ptxas::assemble(&ptxas, &image.ptx, target.name).unwrap_or_else(|e| panic!("{name}: {e}"));
                    let entry = done.report.entry(&image.entry).expect("the entry should be reported");
                    let spills = (entry.spill_store_bytes, entry.spill_load_bytes);
                    assert_eq!(spills, (0, 0), "{name}/{tile_m}, {} spills", image.entry);
                    if target.name == "sm_120a" {
                        continue;
                    }
                    let sass = ptxas::disassemble(&nvdisasm, &done.cubin).unwrap_or_else(|e| panic!("{name}: {e}"));
                    let blocks = opcodes(&sass);
                    let all: Vec<&String> = blocks.iter().flatten().collect();
                    let products = all.iter().filter(|o| ***o == instruction).count();
                    assert!(products > 0, "{name}: no {instruction}");
                    assert!(!all.iter().any(|o| o.starts_with("HMMA")), "{name} multiplies floats");
                    let loops = blocks.iter().filter(|b| b.iter().any(|o| *o == instruction));
                    let in_loops: usize = loops.map(Vec::len).sum();
                    writeln!(
                        table,
                        "{:<14} {:<6} {:>3} registers, {:>3} threads, {:>6} bytes of shared memory, {:>4.1} instructions \
                         for a product",
                        format!("{name}/{tile_m}{}", if target.name == "sm_89" { " sm_89" } else { "" }),
                        image.entry,
                        entry.registers,
                        image.launch.block_threads,
                        image.launch.dynamic_smem_bytes,
                        in_loops as f64 / products as f64,
                    )
                    .expect("memory");
                }
            }
        }
    }
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("scaled", table);
    }
}

#[test]
fn products_of_codes_on_sm_100_are_instructions_of_its_tensor_cores() {
    let Some(ptxas) = find_ptxas() else { return };
    let Some(nvdisasm) = find_nvdisasm(&ptxas) else { return };
    use moec_ir::act_quant::ActQuant;
    use moec_ir::quant::{Code, QuantFormat, ScaleCode};
    let format = |code, scale, block_rows, block_cols| QuantFormat { code, scale, block_rows, block_cols };
    let mxfp4 = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
    // The product, and whether block scales are copied to tensor memory.
    let pairs = [
        ("fp8", ActQuant::FP8_BLOCK, format(Code::E4M3, ScaleCode::F32, 128, 128), "UTCQMMA", false),
        ("mxfp8", ActQuant::MXFP8, format(Code::E4M3, ScaleCode::E8M0, 1, 32), "UTCQMMA", true),
        ("mxfp8-fp4", ActQuant::MXFP8, mxfp4, "UTCQMMA", true),
        ("mxfp4-fp8", ActQuant::MXFP4, format(Code::E4M3, ScaleCode::E8M0, 1, 32), "UTCQMMA", true),
        ("mxfp4", ActQuant::MXFP4, mxfp4, "UTCOMMA", true),
        ("nvfp4", ActQuant::NVFP4, format(Code::E2M1, ScaleCode::E4M3, 1, 16), "UTCOMMA", true),
    ];
    let target = Target::by_name("sm_100f").expect("a target");
    let (mut table, mut spills) = (String::new(), Vec::new());
    for (name, rows, weights, product, scaled) in pairs {
        // Formats that share a kernel differ in numbers only; the first and the last stand for all.
        let stands = matches!(name, "fp8" | "nvfp4");
        for (tile_m, team) in [(32, Team::One), (256, Team::One), (256, Team::Pair)] {
            if !stands && (tile_m == 32 || (team == Team::Pair && name != "mxfp8-fp4")) {
                continue;
            }
            let s = Schedule { team, ..schedule(tile_m, 128, 128, 16, 8) };
            let s = Schedules { gemm1: s, gemm2: s, ..Schedules::for_rows(32) };
            let mut program = common::coded::in_codes(layer(&Layer::deepseek_r1(), &s), rows, weights);
            program.kernels.retain(|k| k.name == "gemm1" || (k.name == "gemm2" && tile_m == 256 && stands));
            let name = format!("{name}/{tile_m}{}", if team == Team::Pair { " pair" } else { "" });
            for image in common::emit(&program, target).unwrap_or_else(|e| panic!("{name}: {e}")) {
                // PTX of the family is one program for all its machines; ptxas makes the code of each.
                let registers_run_out = name.starts_with("fp8");
                let of_pair = team == Team::Pair && stands || name.starts_with("mxfp4-fp8");
                let every = tile_m == 256 && image.entry == "gemm1" && (registers_run_out || of_pair);
                let others = match (every, of_pair) {
                    (true, true) => &["sm_100f", "sm_103a", "sm_107"][..],
                    (true, false) => &["sm_103a", "sm_107"],
                    (false, _) => &[],
                };
                for machine in others {
                    let done = ptxas::assemble(&ptxas, &image.ptx, machine);
                    let done = done.unwrap_or_else(|e| panic!("{name} for {machine}: {e}"));
                    let entry = done.report.entry(&image.entry).expect("the entry should be reported");
                    let spilled = (entry.spill_store_bytes, entry.spill_load_bytes);
                    if spilled != (0, 0) {
                        spills.push(format!("{name}, {} for {machine}: {spilled:?}", image.entry));
                    }
                }
                let done = ptxas::assemble(&ptxas, &image.ptx, "sm_100a").unwrap_or_else(|e| panic!("{name}: {e}"));
                let entry = done.report.entry(&image.entry).expect("the entry should be reported");
                let spilled = (entry.spill_store_bytes, entry.spill_load_bytes);
                if spilled != (0, 0) {
                    spills.push(format!("{name}, {} for sm_100a: {spilled:?}", image.entry));
                }
                let sass = ptxas::disassemble(&nvdisasm, &done.cubin).unwrap_or_else(|e| panic!("{name}: {e}"));
                let blocks = opcodes(&sass);
                let count = |what: &str| blocks.iter().flatten().filter(|o| o.starts_with(what)).count();
                let products = count(product);
                assert!(products > 0 && count("UTMALDG") > 0 && count("LDTM") > 0, "{name}: no {product}");
                let of_pairs =
                    blocks.iter().flatten().filter(|o| o.starts_with(product) && o.contains(".2CTA")).count();
                assert_eq!(of_pairs, if team == Team::Pair { products } else { 0 }, "{name}: products of pairs");
                assert_eq!(count("UTCCP") > 0, scaled, "{name}: copies of scales");
                assert_eq!((count("HMMA"), count("UTCHMMA")), (0, 0), "{name} multiplies floats");
                let loops = blocks.iter().filter(|b| b.iter().any(|o| o.starts_with(product)));
                let in_loops: usize = loops.map(Vec::len).sum();
                writeln!(
                    table,
                    "{name:<18} {:<6} {product} {:>3} registers, {:>3} threads, {:>6} bytes of shared memory, {:>4.1} \
                     instructions for a product",
                    image.entry,
                    entry.registers,
                    image.launch.block_threads,
                    image.launch.dynamic_smem_bytes,
                    in_loops as f64 / products as f64,
                )
                .expect("memory");
            }
        }
    }
    assert_eq!(spills, [""; 0]);
    if ptxas::release(&ptxas).is_ok_and(|r| r == "13.5") {
        insta::assert_snapshot!("scaled_sm_100", table);
    }
}

#[test]
fn odd_sizes_and_types_assemble_without_spills() {
    let Some(ptxas) = find_ptxas() else { return };
    let small = Layer::small(DType::BF16);
    let odd = Layer {
        hidden: 41,
        ffn: 37,
        n_experts: 40,
        top_k: 6,
        biases: true,
        shared: 19,
        groups: Some((8, 3)),
        ..small.clone()
    };
    let f32 = Layer {
        dtype: DType::F32,
        router: DType::F32,
        hidden: 2880,
        ffn: 2880,
        n_experts: 1024,
        top_k: 64,
        biases: true,
        ..small.clone()
    };
    let gpt_oss = Layer {
        hidden: 2880,
        ffn: 2880,
        n_experts: 128,
        top_k: 4,
        biases: true,
        activation: Activation::SwiGluOai { alpha: Real(1.702), limit: Real(7.0) },
        ..small.clone()
    };
    let layers = [
        ("odd f16", Layer { dtype: DType::F16, router: DType::F16, ..odd.clone() }),
        ("odd f32", Layer { dtype: DType::F32, router: DType::F32, ..odd.clone() }),
        ("odd pitch", Layer { padding: 1, ..odd }),
        ("wide f32", f32),
        ("f32 router", Layer { router: DType::F32, ..small.clone() }),
        ("gpt-oss", gpt_oss),
        ("gelu", Layer { activation: Activation::GeGluErf, ..small }),
    ];
    for (name, l) in &layers {
        for (target, tile_m) in [("sm_80", 16), ("sm_100f", 128)] {
            let target = Target::by_name(target).expect("a target");
            assemble(&ptxas, name, &layer(l, &Schedules::for_rows(tile_m)), target, &[target.name]);
        }
    }
}

#[test]
fn any_tile_shape_assembles_without_spills() {
    let Some(ptxas) = find_ptxas() else { return };
    let target = Target::by_name("sm_90a").expect("a target");
    for dtype in [DType::BF16, DType::F32] {
        let l = Layer { dtype, router: dtype, ..Layer::deepseek_r1() };
        for (m, n, k, stages, warps) in [
            (16, 32, 128, 4, 4),
            (16, 256, 64, 3, 8),
            (32, 128, 64, 4, 4),
            (64, 128, 32, 4, 4),
            (128, 128, 64, 3, 4),
            (128, 256, 64, 3, 8),
            (256, 128, 64, 2, 16),
            (1, 1, 1, 1, 1),
            (1000, 1000, 1000, 100, 100),
        ] {
            let s = schedule(m, n, k, stages, warps);
            let all = Schedules { rows: s, plan: s, gemm1: s, gemm2: s, combine: schedule(m, n, 1, 1, warps) };
            let mut program = layer(&l, &all);
            program.kernels.retain(|k| k.name.starts_with("gemm"));
            assemble(&ptxas, &format!("{m}x{n}x{k}"), &program, target, &["sm_90a"]);
        }
    }
}
