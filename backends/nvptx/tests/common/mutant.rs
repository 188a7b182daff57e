//! Slips in emitted text, each of which a test has to notice.
#![allow(dead_code)]

use moec_nvptx::GpuKernelImage;

/// A slip in the emitted text: which of the lines with a text, what of the line, and by what.
pub struct Mutant(pub &'static str, pub (&'static str, usize), pub &'static str, pub &'static str);

impl Mutant {
    /// Makes the change in a kernel.
    pub fn of(&self, image: &GpuKernelImage) -> GpuKernelImage {
        let &Mutant(name, (line, nth), from, to) = self;
        let mut seen = 0;
        let mut is_it = |l: &str| {
            seen += usize::from(l.contains(line));
            l.contains(line) && seen == nth + 1
        };
        let lines = image.ptx.lines().map(|l| if is_it(l) { l.replacen(from, to, 1) } else { l.to_string() });
        let ptx: String = lines.map(|l| l + "\n").collect();
        assert_ne!(ptx.trim_end(), image.ptx.trim_end(), "{name}: no such line");
        GpuKernelImage { ptx, ..image.clone() }
    }
}
