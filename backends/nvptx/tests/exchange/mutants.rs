//! What a slip in the emitted text of a kernel would be.

use moec_ir::exchange::ExchangeKernel;

/// A change: its kernel, which of the lines with a text, what of the line, and by what.
pub struct Mutant(pub &'static str, &'static str, (&'static str, usize), &'static str, &'static str);

pub const MUTANTS: [Mutant; 47] = [
    Mutant("a relaxed flag", "dispatch", ("st.release.sys", 0), "release", "relaxed"),
    Mutant("a flag for the device", "dispatch", ("st.release.sys", 0), "sys", "gpu"),
    Mutant("a weak flag", "dispatch", ("st.release.sys", 0), "release.sys.", ""),
    Mutant("no barrier behind the slots", "dispatch", ("bar.sync", 0), "bar", "//"),
    Mutant("no barrier behind the first slots", "dispatch", ("bar.sync", 1), "bar", "//"),
    Mutant("no barrier behind the rows", "dispatch", ("bar.sync", 2), "bar", "//"),
    Mutant("no fence behind the rows", "dispatch", ("membar.gl", 0), "membar", "//"),
    Mutant("no fence in the last block", "dispatch", ("membar.gl", 1), "membar", "//"),
    Mutant("flags before the last block", "dispatch", ("bar.sync", 3), "bar.sync", "ret; //"),
    Mutant("rows always to one buffer", "dispatch", ("and.b32", 0), ", 4;", ", 0;"),
    Mutant("the flag of all always to one buffer", "dispatch", ("and.b32", 2), ", 4;", ", 0;"),
    Mutant("flags always to one buffer", "dispatch", ("and.b32", 3), ", 4;", ", 0;"),
    Mutant("a relaxed flag of a rank", "dispatch", ("st.release.sys", 1), "release", "relaxed"),
    Mutant("a flag of a rank for the device", "dispatch", ("st.release.sys", 1), "sys", "gpu"),
    Mutant("a weak flag of a rank", "dispatch", ("st.release.sys", 1), "release.sys.", ""),
    Mutant("a wait for the device", "receive", ("ld.relaxed.sys", 0), "sys", "gpu"),
    Mutant("a weak wait", "receive", ("ld.relaxed.sys", 0), "relaxed.sys.", ""),
    Mutant("no fence behind the wait", "receive", ("fence.acq_rel.sys", 0), "fence", "//"),
    Mutant("a fence for the device", "receive", ("fence.acq_rel.sys", 0), "sys", "gpu"),
    Mutant("no wait", "receive", ("setp.ne.b32", 1), "ne.b32", "lt.u32"),
    Mutant("nobody waits for the thread that does", "receive", ("bar.sync", 0), "bar", "//"),
    Mutant("flags of one buffer", "receive", ("and.b32", 0), ", 4;", ", 0;"),
    Mutant("slots of one buffer", "receive", ("and.b32", 1), ", 4;", ", 0;"),
    Mutant("what came in a step before counts", "receive", ("setp.eq.b32", 4), "eq.b32", "le.u32"),
    Mutant("rows to one member of a group", "dispatch", ("setp.lt.s32", 5), ", 2;", ", 1;"),
    Mutant("a relaxed flag", "share", ("st.release.sys", 0), "release", "relaxed"),
    Mutant("a flag for the device", "share", ("st.release.sys", 0), "sys", "gpu"),
    Mutant("a weak flag", "share", ("st.release.sys", 0), "release.sys.", ""),
    Mutant("a wait for the device", "share", ("ld.relaxed.sys", 0), "sys", "gpu"),
    Mutant("a weak wait", "share", ("ld.relaxed.sys", 0), "relaxed.sys.", ""),
    Mutant("no fence behind the wait", "share", ("fence.acq_rel.sys", 0), "fence", "//"),
    Mutant("a fence for the device", "share", ("fence.acq_rel.sys", 0), "sys", "gpu"),
    Mutant("no wait", "share", ("setp.ne.b32", 2), "ne.b32", "gt.u32"),
    Mutant("no barrier behind the columns", "share", ("bar.sync", 0), "bar", "//"),
    Mutant("no fence behind the columns", "share", ("membar.gl", 0), "membar", "//"),
    Mutant("no fence in the last block", "share", ("membar.gl", 1), "membar", "//"),
    Mutant("flags before the last block", "share", ("setp.ne.b32", 0), "ne.b32", "gt.u32"),
    Mutant("a relaxed flag", "answer", ("st.release.sys", 0), "release", "relaxed"),
    Mutant("a flag for the device", "answer", ("st.release.sys", 0), "sys", "gpu"),
    Mutant("a weak flag", "answer", ("st.release.sys", 0), "release.sys.", ""),
    Mutant("flags always to one buffer", "answer", ("and.b32", 0), ", 4;", ", 0;"),
    Mutant("flags to one rank", "answer", ("mul.wide.u32", 0), ", 8;", ", 0;"),
    Mutant("no fence behind the wait", "collect", ("fence.acq_rel.sys", 0), "fence", "//"),
    Mutant("a wait for the device", "collect", ("ld.relaxed.sys", 0), "sys", "gpu"),
    Mutant("no wait", "collect", ("setp.ne.b32", 2), "ne.b32", "gt.u32"),
    Mutant("a step counts for two", "collect", ("add.s32", 11), ", 1;", ", 2;"),
    Mutant("a step does not count", "collect", ("add.s32", 11), ", 1;", ", 0;"),
];

impl Mutant {
    /// Makes the change in the kernels of all members; `None` where the text, of other sizes, has no such line.
    pub fn of(&self, kernels: &[Vec<ExchangeKernel>]) -> Option<Vec<Vec<ExchangeKernel>>> {
        if !kernels.iter().flatten().any(|k| k.entry.ends_with(self.1)) {
            return None;
        }
        let &Mutant(_, kernel, (line, nth), from, to) = self;
        let change = |k: &ExchangeKernel| {
            if !k.entry.ends_with(kernel) {
                return Some(k.clone());
            }
            let mut seen = 0;
            let mut is_it = |l: &str| {
                seen += usize::from(l.contains(line));
                l.contains(line) && seen == nth + 1
            };
            let lines = k.ptx.lines().map(|l| if is_it(l) { l.replacen(from, to, 1) } else { l.to_string() });
            let ptx: String = lines.map(|l| l + "\n").collect();
            (ptx.trim_end() != k.ptx.trim_end()).then(|| ExchangeKernel { ptx, ..k.clone() })
        };
        kernels.iter().map(|of| of.iter().map(change).collect()).collect()
    }

    pub fn name(&self) -> String {
        format!("{}: {}", self.1, self.0)
    }
}
