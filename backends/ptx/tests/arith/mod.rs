//! Runs one instruction over many operands.

use moec_ptx::buffers::{Buffer, Buffers, Dtype};
use moec_ptx::launch::{Options, emulate};

/// Reproducible 64-bit numbers (splitmix64).
pub struct Samples(u64);

impl Samples {
    pub fn new(name: &str) -> Self {
        Self(name.bytes().fold(0x9e37_79b9, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

pub fn map1(from: u32, to: u32, a: &[u64], body: &str) -> Vec<u64> {
    run(from, to, &[a], body)
}

pub fn map2(from: u32, to: u32, a: &[u64], b: &[u64], body: &str) -> Vec<u64> {
    run(from, to, &[a, b], body)
}

pub fn map3(from: u32, to: u32, a: &[u64], b: &[u64], c: &[u64], body: &str) -> Vec<u64> {
    run(from, to, &[a, b, c], body)
}

/// Runs `body` for every index: `%a`, `%b`, `%c` hold `from` bits of each input, `%o` the `to` bits of the result.
fn run(from: u32, to: u32, inputs: &[&[u64]], body: &str) -> Vec<u64> {
    let count = inputs[0].len();
    let names = ["a", "b", "c"];
    let (mut loads, mut params, mut buffers, mut json) = (String::new(), String::new(), Buffers::new(), String::new());
    for (values, name) in inputs.iter().zip(names) {
        params.push_str(&format!(".param .u64 p{name}, "));
        loads.push_str(&format!(
            ".reg .b{from} %{name};\nld.param.u64 %rd1, [p{name}];\nmad.wide.u32 %rd1, %r1, {}, %rd1;\n\
             ld.global.b{from} %{name}, [%rd1];\n",
            from / 8
        ));
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()[..from as usize / 8].to_vec()).collect();
        buffers.insert(name.to_string(), Buffer::raw(bytes));
        json.push_str(&format!(r#"{{"buffer":"{name}"}}, "#));
    }
    buffers.insert("o".to_string(), Buffer::zeros(Dtype::U8, count * to as usize / 8));
    let ptx = format!(
        ".version 8.8\n.target sm_100a\n.address_size 64\n.visible .entry k({params}.param .u64 po, .param .u32 n)\n{{\n\
         .reg .pred %p<4>;\n.reg .b32 %r<8>;\n.reg .b64 %rd<4>;\n.reg .b{to} %o;\n\
         mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %tid.x;\nshl.b32 %r1, %r1, 8;\nadd.u32 %r1, %r1, %r2;\n\
         ld.param.u32 %r3, [n];\nsetp.ge.u32 %p1, %r1, %r3;\n@%p1 ret;\n{loads}{body}\n\
         ld.param.u64 %rd2, [po];\nmad.wide.u32 %rd2, %r1, {}, %rd2;\nst.global.b{to} [%rd2], %o;\nret;\n}}\n",
        to / 8
    );
    let json = format!(
        r#"{{"entry":"k","target":"sm_100a","grid":[{},1,1],"block":[256,1,1],
            "params":[{json}{{"buffer":"o"}},{{"u32":{count}}}],"outputs":["o"]}}"#,
        count.div_ceil(256)
    );
    let result = emulate(&ptx, &json, &buffers, &Options::default()).unwrap_or_else(|error| panic!("{body}: {error}"));
    assert!(result.report.findings.is_empty(), "{body}: {:?}", result.report.findings);
    result.outputs["o"]
        .bytes
        .chunks(to as usize / 8)
        .map(|chunk| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
        .collect()
}

/// Fails with the first five operands for which `right` says no.
pub fn check(name: &str, inputs: &[&[u64]], got: &[u64], right: impl Fn(&[u64], u64) -> bool) {
    assert_eq!(got.len(), inputs[0].len());
    let mut wrong = Vec::new();
    for (index, result) in got.iter().enumerate() {
        let operands: Vec<u64> = inputs.iter().map(|values| values[index]).collect();
        if !right(&operands, *result) {
            wrong.push(format!("{operands:x?} -> {result:x}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{name}: {} of {} wrong: {}",
        wrong.len(),
        got.len(),
        wrong[..wrong.len().min(5)].join("; ")
    );
}
