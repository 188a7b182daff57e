//! Where experts are: a mesh of ranks, and a placement map.
//!
//! A map is data of a run, not of a compiled layer. It has a version, so that ranks can tell whether they mean the same
//! one, and a layer can take a new one between two steps.

use crate::diag::Diagnostic;
use serde::{Deserialize, Serialize};

/// The largest number of ranks. Ranks tell each other what they send, each to all: more would need another protocol.
pub const MAX_RANKS: u32 = 1024;

/// Ranks that share a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Groups of ranks that the experts are spread over.
    pub ep: u32,
    /// Ranks of a group, over which the matrices of each of its experts are cut.
    pub tp: u32,
}

impl Mesh {
    /// Reads `ep=N` or `ep=N,tp=M`.
    ///
    /// # Errors
    /// `mesh-invalid`.
    pub fn parse(text: &str) -> Result<Mesh, Diagnostic> {
        let wrong = |why: String| {
            Diagnostic::machine("mesh-invalid", format!("`{text}` is no mesh: {why}"))
                .help(format!("write ep=N or ep=N,tp=M, with 1 to {MAX_RANKS} ranks in all"))
        };
        let (mut ep, mut tp) = (None, None);
        for part in text.split(',') {
            let Some((axis, n)) = part.split_once('=') else {
                return Err(wrong(format!("`{part}` is not AXIS=N")));
            };
            let n: u32 = n.parse().map_err(|_| wrong(format!("`{n}` is no number of ranks")))?;
            if n == 0 || n > MAX_RANKS {
                return Err(wrong(format!("{n} ranks are not from 1 to {MAX_RANKS}")));
            }
            match axis {
                "ep" if ep.is_none() => ep = Some(n),
                "tp" if tp.is_none() => tp = Some(n),
                "ep" | "tp" => return Err(wrong(format!("`{axis}` is given twice"))),
                _ => return Err(wrong(format!("it has no axis `{axis}`; the axes are `ep` and `tp`"))),
            }
        }
        let mesh = ep.map(|ep| Mesh { ep, tp: tp.unwrap_or(1) }).ok_or_else(|| wrong("it does not say `ep`".into()))?;
        if mesh.n_ranks() > MAX_RANKS {
            return Err(wrong(format!("{} ranks are not from 1 to {MAX_RANKS}", mesh.n_ranks())));
        }
        Ok(mesh)
    }

    /// All ranks: rank `g * tp + m` is member `m` of group `g`.
    pub fn n_ranks(self) -> u32 {
        self.ep * self.tp
    }
}

impl std::fmt::Display for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ep={}", self.ep)?;
        if self.tp > 1 { write!(f, ",tp={}", self.tp) } else { Ok(()) }
    }
}

/// Which ranks hold which experts. Where a mesh cuts experts over groups of ranks, a rank of the map is a group.
///
/// Every expert is on one rank at least and on a rank at most once; a rank may hold none. The place of an expert in its
/// rank's list is its *local expert*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    version: u64,
    ranks: Vec<Vec<u32>>,
    /// For each expert, rank and local expert of each of its replicas, by rank.
    replicas: Vec<Vec<(u32, u32)>>,
}

/// A placement as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    moec_placement: u32,
    version: u64,
    experts: u32,
    ranks: Vec<Vec<u32>>,
}

/// The version of the file format.
const FORMAT: u32 = 1;

impl Placement {
    /// The map number `version` by which rank `r` holds the experts `ranks[r]`, of `n_experts`.
    ///
    /// # Errors
    /// `placement-invalid` for an expert that there is not, that no rank holds, or that a rank holds twice, and for no ranks.
    pub fn new(version: u64, n_experts: u32, ranks: Vec<Vec<u32>>) -> Result<Placement, Diagnostic> {
        if ranks.is_empty() || ranks.len() > MAX_RANKS as usize {
            return Err(invalid(format!("a placement is of 1 to {MAX_RANKS} ranks, this one of {}", ranks.len())));
        }
        let mut replicas = vec![Vec::new(); n_experts as usize];
        for (rank, list) in (0u32..).zip(&ranks) {
            for (local, &expert) in (0u32..).zip(list) {
                let Some(of) = replicas.get_mut(expert as usize) else {
                    return Err(invalid(format!("rank {rank} holds expert {expert}, and there are {n_experts}")));
                };
                // Replicas come by rank: one on this rank is the last.
                if of.last().is_some_and(|&(r, _)| r == rank) {
                    return Err(invalid(format!("rank {rank} holds expert {expert} twice")));
                }
                of.push((rank, local));
            }
        }
        if let Some(expert) = replicas.iter().position(Vec::is_empty) {
            return Err(invalid(format!("no rank holds expert {expert}: its tokens would be lost")));
        }
        Ok(Placement { version, ranks, replicas })
    }

    /// Contiguous ranges of experts, as equal as they can be; the first ranks hold one more. Version 0.
    ///
    /// # Errors
    /// `placement-invalid` for no ranks or too many.
    pub fn even(n_experts: u32, n_ranks: u32) -> Result<Placement, Diagnostic> {
        let (each, more) = (n_experts / n_ranks.max(1), n_experts % n_ranks.max(1));
        let at = |r: u32| r * each + r.min(more);
        Placement::new(0, n_experts, (0..n_ranks).map(|r| (at(r)..at(r + 1)).collect()).collect())
    }

    /// Reads a placement file; `name` stands for it in messages.
    ///
    /// # Errors
    /// `placement-invalid`.
    pub fn from_json(name: &str, text: &str) -> Result<Placement, Diagnostic> {
        let file: File = serde_json::from_str(text).map_err(|e| invalid(format!("`{name}` is no placement: {e}")))?;
        if file.moec_placement != FORMAT {
            let found = file.moec_placement;
            return Err(invalid(format!("`{name}` has \"moec_placement\": {found}; this moec reads {FORMAT}")));
        }
        Placement::new(file.version, file.experts, file.ranks).map_err(|d| d.note(format!("in `{name}`")))
    }

    /// The file that [`Placement::from_json`] reads.
    pub fn to_json(&self) -> String {
        let ranks: Vec<String> = self.ranks.iter().map(|r| format!("    {r:?}")).collect();
        format!(
            "{{\n  \"moec_placement\": {FORMAT},\n  \"version\": {},\n  \"experts\": {},\n  \"ranks\": [\n{}\n  ]\n}}\n",
            self.version,
            self.n_experts(),
            ranks.join(",\n")
        )
    }

    /// The same map with another version.
    #[must_use]
    pub fn with_version(self, version: u64) -> Placement {
        Placement { version, ..self }
    }

    /// Number of the map; a newer one has a larger number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Experts of the layer.
    pub fn n_experts(&self) -> u32 {
        self.replicas.len() as u32
    }

    /// Number of ranks.
    pub fn n_ranks(&self) -> u32 {
        self.ranks.len() as u32
    }

    /// The experts of a rank, in the order of its local experts; none for a rank that there is not.
    pub fn experts_of(&self, rank: u32) -> &[u32] {
        self.ranks.get(rank as usize).map_or(&[], Vec::as_slice)
    }

    /// Rank and local expert of each replica of an expert, by rank; none for an expert that there is not.
    pub fn replicas_of(&self, expert: u32) -> &[(u32, u32)] {
        self.replicas.get(expert as usize).map_or(&[], Vec::as_slice)
    }

    /// The replica of an expert that a token goes to: they take turns from token to token, and ranks begin with different ones.
    /// Needs nothing but `rank` and the token's number on it, so that each slot finds its way alone.
    pub fn replica_for(&self, expert: u32, rank: u32, token: u32) -> Option<(u32, u32)> {
        let replicas = self.replicas_of(expert);
        let n = replicas.len() as u32;
        replicas.get(rank.wrapping_add(token).checked_rem(n)? as usize).copied()
    }

    /// The map as kernels read it, 32-bit words: the low half of its version, a digest of version and map, the number of experts E, E + 1
    /// numbers of replicas before each expert, and rank and local expert of each replica.
    pub fn to_words(&self) -> Vec<u32> {
        let mut words = vec![self.version as u32, 0, self.n_experts()];
        let mut before = 0;
        words.push(before);
        for of in &self.replicas {
            before += of.len() as u32;
            words.push(before);
        }
        words.extend(self.replicas.iter().flatten().flat_map(|&(rank, local)| [rank, local]));
        let version = [self.version as u32, (self.version >> 32) as u32];
        let bytes = version.into_iter().chain(words[2..].iter().copied()).flat_map(u32::to_le_bytes);
        words[1] = crate::window::fnv32(bytes);
        words
    }

    /// Most experts of a rank.
    pub fn most_local(&self) -> u32 {
        self.ranks.iter().map(Vec::len).max().unwrap_or(0) as u32
    }

    /// That the map is one of a layer of `n_experts` experts on `n_ranks` ranks that have room for `n_local` each.
    ///
    /// # Errors
    /// `placement-invalid`.
    pub fn check(&self, n_experts: u32, n_ranks: u32, n_local: u32) -> Result<(), Diagnostic> {
        if self.n_experts() != n_experts {
            let what = format!("the placement is of {} experts, the layer has {n_experts}", self.n_experts());
            return Err(invalid(what));
        }
        if self.n_ranks() != n_ranks {
            let what = format!("the placement is of {} ranks, the mesh has {n_ranks}", self.n_ranks());
            return Err(invalid(what));
        }
        if let Some(rank) = self.ranks.iter().position(|r| r.len() > n_local as usize) {
            let what = format!("rank {rank} is to hold {} experts and has room for {n_local}", self.ranks[rank].len());
            return Err(invalid(what).help("spread the experts more evenly, or compile for more local experts"));
        }
        Ok(())
    }

    /// The largest load of a rank over the mean, when experts have the loads `counts` and replicas share them equally.
    /// 1 is perfect; 1 when there is no load.
    pub fn imbalance(&self, counts: &[u64]) -> f64 {
        let share = |&e: &u32| {
            let count = counts.get(e as usize).copied().unwrap_or(0);
            count as f64 / self.replicas_of(e).len() as f64
        };
        let loads: Vec<f64> = self.ranks.iter().map(|r| r.iter().map(share).sum()).collect();
        let total: f64 = loads.iter().sum();
        let most = loads.iter().copied().fold(0.0, f64::max);
        if total > 0.0 { most * loads.len() as f64 / total } else { 1.0 }
    }
}

fn invalid(what: String) -> Diagnostic {
    Diagnostic::input("placement-invalid", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_spread_as_evenly_as_they_can_be() {
        let p = Placement::even(8, 3).unwrap();
        assert_eq!([p.experts_of(0), p.experts_of(1), p.experts_of(2)], [&[0, 1, 2][..], &[3, 4, 5], &[6, 7]]);
        let p = Placement::even(2, 4).unwrap();
        assert_eq!((p.most_local(), p.experts_of(3).len()), (1, 0));
        assert_eq!(Placement::even(4, 0).unwrap_err().code, "placement-invalid");
    }

    #[test]
    fn a_map_that_loses_tokens_is_refused() {
        let of = |ranks: &[&[u32]]| Placement::new(1, 3, ranks.iter().map(|r| r.to_vec()).collect());
        assert!(of(&[&[0, 1], &[2, 0], &[]]).is_ok());
        for (ranks, why) in [
            (&[&[0, 1][..], &[1]][..], "no rank holds expert 2"),
            (&[&[0, 1, 2, 3]], "there are 3"),
            (&[&[0, 1, 0, 2]], "rank 0 holds expert 0 twice"),
            (&[], "1 to"),
        ] {
            let d = of(ranks).unwrap_err();
            assert!(d.code == "placement-invalid" && d.message.contains(why), "{d}");
        }
    }

    #[test]
    fn a_file_is_read_back() {
        let p = Placement::new(7, 3, vec![vec![2, 0], vec![], vec![1, 2]]).unwrap();
        assert_eq!(Placement::from_json("p", &p.to_json()).unwrap(), p);
        for wrong in ["", "{}", r#"{"moec_placement":2,"version":0,"experts":1,"ranks":[[0]]}"#] {
            assert_eq!(Placement::from_json("p", wrong).unwrap_err().code, "placement-invalid");
        }
        for (e, n, l) in [(4, 3, 2), (3, 2, 2), (3, 3, 1)] {
            assert_eq!(p.check(e, n, l).unwrap_err().code, "placement-invalid");
        }
    }

    #[test]
    fn replicas_share_their_load() {
        let p = Placement::new(0, 2, vec![vec![0], vec![0, 1]]).unwrap();
        assert!((p.imbalance(&[8, 2]) - 1.2).abs() < 1e-12);
        assert!((p.imbalance(&[0, 0]) - 1.0).abs() < 1e-12);
        assert_eq!(p.replicas_of(0), [(0, 0), (1, 0)]);
    }

    #[test]
    fn kernels_read_the_same_map() {
        let p = Placement::new(5, 3, vec![vec![0, 1], vec![2], vec![1]]).unwrap();
        assert_eq!(p.to_words()[2..], [3, 0, 1, 3, 4, 0, 0, 0, 1, 2, 0, 1, 0]);
        assert_ne!(p.to_words()[1], p.clone().with_version(6).to_words()[1]);
        assert_eq!([0, 1, 2].map(|token| p.replica_for(1, 1, token)), [Some((2, 0)), Some((0, 1)), Some((2, 0))]);
        assert_eq!(p.replica_for(3, 0, 0), None);
    }

    #[test]
    fn a_mesh_is_read_or_refused() {
        assert_eq!(Mesh::parse("ep=4").unwrap(), Mesh { ep: 4, tp: 1 });
        assert_eq!(Mesh::parse("tp=2,ep=4").unwrap().to_string(), "ep=4,tp=2");
        assert_eq!(Mesh::parse("ep=4,tp=1").unwrap().to_string(), "ep=4");
        for wrong in
            ["", "4", "ep=0", "ep=x", "ep=2,ep=2", "tp=1", "pp=2,ep=1", "ep=2,tp=2,tp=1", "ep=99999", "ep=512,tp=3"]
        {
            assert_eq!(Mesh::parse(wrong).unwrap_err().code, "mesh-invalid", "{wrong}");
        }
    }
}
