//! Over which nodes of memory packed weights are spread.

use std::fmt;
use std::path::Path;

/// Over which NUMA nodes the packed weights of layers are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interleaving {
    /// They lie where the system puts them: no processors were named, or one node has all that were.
    Off,
    /// Page by page over these nodes, whose processors are used.
    Over(Vec<usize>),
    /// They should be spread over these nodes, but the system refuses in these words. They lie where it puts them.
    Refused(Vec<usize>, String),
}

impl fmt::Display for Interleaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[usize]| nodes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Interleaving::Off => write!(f, "packed weights lie where the system puts them"),
            Interleaving::Over(nodes) => {
                write!(f, "packed weights are spread over the memory of nodes {}", list(nodes))
            }
            Interleaving::Refused(nodes, why) => write!(
                f,
                "packed weights are not spread over the memory of nodes {}, whose processors are used: {why}; each page lies on the \
                 node of the thread that packed it",
                list(nodes)
            ),
        }
    }
}

impl Interleaving {
    /// For threads on these processors.
    pub(super) fn of(cpus: &[usize]) -> Interleaving {
        // Other systems have no such folder.
        Interleaving::over(nodes_of(Path::new("/sys/devices/system/node"), cpus))
    }

    fn over(nodes: Vec<usize>) -> Interleaving {
        if nodes.len() < 2 {
            return Interleaving::Off;
        }
        // Asked once, of a page that is not used: what is refused depends on the nodes and on the rights of the process.
        let asked = memmap2::MmapMut::map_anon(1).and_then(|mut page| ask(&mut page, &nodes));
        match asked {
            Ok(()) => Interleaving::Over(nodes),
            Err(e) => Interleaving::Refused(nodes, e.to_string()),
        }
    }

    /// Spreads memory that starts at a page and has not been written.
    pub(super) fn apply(&self, memory: &mut [u8]) {
        if let Interleaving::Over(nodes) = self {
            // The system took the same nodes before. Failing is no error: places of pages decide times only.
            let _ = ask(memory, nodes);
        }
    }
}

/// The nodes that have any of the processors, in order, as the system's folder lists them.
fn nodes_of(folder: &Path, cpus: &[usize]) -> Vec<usize> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let with_any = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let node = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let list = std::fs::read_to_string(entry.path().join("cpulist")).ok()?;
        cpus.iter().any(|&cpu| has(&list, cpu)).then_some(node)
    });
    let mut nodes: Vec<usize> = with_any.collect();
    nodes.sort_unstable();
    nodes
}

/// Whether a list as `0-3,8` has the processor; that of a node without processors is empty.
fn has(list: &str, cpu: usize) -> bool {
    list.trim().split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<usize>(), last.parse::<usize>()), (Ok(first), Ok(last)) if (first..=last).contains(&cpu))
    })
}

/// Most nodes that Linux can be built for.
#[cfg(target_os = "linux")]
const MAX_NODES: usize = 1024;

/// Asks the system to take the pages of this memory from the nodes in turn.
#[cfg(target_os = "linux")]
fn ask(memory: &mut [u8], nodes: &[usize]) -> std::io::Result<()> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let mut mask = [0 as libc::c_ulong; MAX_NODES / BITS];
    for &node in nodes {
        let word = mask.get_mut(node / BITS).ok_or(std::io::ErrorKind::InvalidInput)?;
        *word |= 1 << (node % BITS);
    }
    // The system counts one bit less than it is told. Source: mbind(2), get_nodes in mm/mempolicy.c.
    let n_bits = MAX_NODES + 1;
    // SAFETY: the range is memory of ours, which the call neither reads nor writes; it reads the mask, of as many bits.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.as_mut_ptr(),
            memory.len(),
            libc::c_long::from(libc::MPOL_INTERLEAVE),
            mask.as_ptr(),
            n_bits,
            0 as libc::c_long,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn ask(_: &mut [u8], _: &[usize]) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_those_of_the_named_processors() {
        let folder = tempfile::tempdir().expect("a folder");
        // Node 2 has memory and no processors, as CXL memory does; what is no node stands beside them.
        for (node, list) in [("node0", "0-3,8-11\n"), ("node1", "4-7,12\n"), ("node2", "\n"), ("node10", "13\n")] {
            std::fs::create_dir(folder.path().join(node)).expect("a folder");
            std::fs::write(folder.path().join(node).join("cpulist"), list).expect("writes");
        }
        std::fs::write(folder.path().join("online"), "0-2,10\n").expect("writes");
        std::fs::create_dir(folder.path().join("power")).expect("a folder");
        let of = |cpus: &[usize]| nodes_of(folder.path(), cpus);
        assert_eq!(of(&[0, 3, 9]), [0]);
        assert_eq!(of(&[12, 0]), [0, 1]);
        assert_eq!(of(&[13, 5, 8]), [0, 1, 10]);
        assert_eq!(of(&[14, 100]), [] as [usize; 0]);
        assert_eq!(nodes_of(&folder.path().join("none"), &[0]), [] as [usize; 0]);
    }

    #[test]
    fn one_node_is_not_asked_for() {
        assert_eq!(Interleaving::over(vec![0]), Interleaving::Off);
        assert_eq!(Interleaving::over(Vec::new()), Interleaving::Off);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_refusal_is_told_with_what_happens_instead() {
        // No machine has these nodes.
        let refused = Interleaving::over(vec![1022, 1023]);
        assert!(matches!(&refused, Interleaving::Refused(nodes, _) if nodes[..] == [1022, 1023]), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("nodes 1022, 1023,") && text.contains("each page lies on the node"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_is_asked_for_the_nodes_in_turn() {
        let mut map = memmap2::MmapMut::map_anon(8 << 20).expect("memory");
        if let Err(e) = ask(&mut map, &[0]) {
            // Containers and systems without NUMA forbid the call; then the refusal is what is told.
            assert!(matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)), "{e}");
            assert!(matches!(Interleaving::over(vec![0, 1]), Interleaving::Refused(..)));
            return;
        }
        map.fill(1);
        let maps = std::fs::read_to_string("/proc/self/numa_maps").expect("Linux");
        let start = format!("{:x} ", map.as_ptr().addr());
        let line = maps.lines().find(|l| l.trim_start_matches('0').starts_with(&start)).expect("the map begins there");
        assert!(line.contains("interleave:0 "), "{line}");
    }
}
