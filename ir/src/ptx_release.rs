//! Which NVIDIA driver knows which version of PTX.

/// A version of PTX, and the first release of CUDA whose drivers compile it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtxRelease {
    /// The version, times ten.
    pub ptx: u32,
    /// The release of CUDA, times ten.
    pub cuda: u32,
    /// The first branch of drivers for Linux with it, where that is known here.
    pub driver: Option<u32>,
}

/// From the first that a target of ours needs. Source: PTX ISA, release notes; CUDA toolkit release notes, table of drivers.
const RELEASES: &[PtxRelease] = &[
    release(70, 110, 450),
    release(71, 111, 455),
    release(72, 112, 460),
    release(73, 113, 465),
    release(74, 114, 470),
    release(75, 115, 495),
    release(76, 116, 510),
    release(77, 117, 515),
    release(78, 118, 520),
    release(80, 120, 525),
    release(81, 121, 530),
    release(82, 122, 535),
    release(83, 123, 545),
    release(84, 124, 550),
    release(85, 125, 555),
    release(86, 127, 565),
    release(87, 128, 570),
    release(88, 129, 575),
    release(90, 130, 580),
    PtxRelease { ptx: 94, cuda: 134, driver: None },
];

const fn release(ptx: u32, cuda: u32, driver: u32) -> PtxRelease {
    PtxRelease { ptx, cuda, driver: Some(driver) }
}

impl PtxRelease {
    /// The first release of CUDA that knows PTX `ptx` (times ten); `None` for versions after the last known here.
    pub fn of(ptx: u32) -> Option<PtxRelease> {
        RELEASES.iter().copied().find(|r| r.ptx >= ptx)
    }

    /// What `cuDriverGetVersion` gives for the first driver that knows it: 1000 times major, plus 10 times minor.
    pub fn driver_version(self) -> u32 {
        self.cuda / 10 * 1000 + self.cuda % 10 * 10
    }

    /// What a driver has to be: `a driver for CUDA 12.9 or newer (575 or newer on Linux)`.
    pub fn sentence(self) -> String {
        let (major, minor) = (self.cuda / 10, self.cuda % 10);
        let on_linux = self.driver.map(|d| format!(" ({d} or newer on Linux)")).unwrap_or_default();
        format!("a driver for CUDA {major}.{minor} or newer{on_linux}")
    }
}

/// The `.version` of PTX text, times ten.
pub fn ptx_version(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(".version"))?;
    let (major, minor) = line.trim().split_once('.')?;
    Some(major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{TARGETS, TargetKind};

    #[test]
    fn every_target_has_a_driver() {
        for target in TARGETS {
            if let TargetKind::Gpu { ptx_version, .. } = target.kind {
                assert_eq!(PtxRelease::of(ptx_version).map(|r| r.ptx), Some(ptx_version), "{}", target.name);
            }
        }
        assert!(RELEASES.is_sorted_by_key(|r| (r.ptx, r.cuda)));
    }

    #[test]
    fn the_version_of_a_text_is_its_header_s() {
        assert_eq!(ptx_version("//\n// Generated\n.version 8.4\n.target sm_89\n"), Some(84));
        assert_eq!(ptx_version(".target sm_89"), None);
        let r = PtxRelease::of(84).expect("known");
        assert_eq!(r.sentence(), "a driver for CUDA 12.4 or newer (550 or newer on Linux)");
        assert_eq!(PtxRelease::of(999), None);
    }
}
