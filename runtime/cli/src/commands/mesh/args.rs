//! The options of ranks.

use moec::{Diagnostic, Mesh};
use moec_ir::graph::Wire;
use moec_ir::{ActQuant, DType};
use std::path::PathBuf;
use std::time::Duration;

/// Ranks that share a layer, each with tokens and experts of its own.
#[derive(clap::Args, Debug)]
pub struct MeshArgs {
    /// Spread tokens over N * M ranks, and experts over N groups of M ranks, which share their matrices column by column. The
    /// output has the bits of one rank.
    #[arg(long, value_name = "ep=N[,tp=M]", value_parser = parse_mesh, conflicts_with_all = ["tp", "ep", "rank"])]
    pub mesh: Option<Mesh>,
    /// Which rank holds which experts, as `moec place` writes it [default: ranges of experts, as equal as can be].
    #[arg(long, value_name = "FILE")]
    pub placement: Option<PathBuf>,
    /// Tokens of each rank, in the order of the input [default: as equal as can be].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub tokens_per_rank: Option<Vec<usize>>,
    /// Round rows on their way to experts to this format [default: they are sent as they are].
    #[arg(long, value_parser = parse_wire,
          value_name = "none|bf16|f16|fp8-block|fp8-block-pow2|fp8-token|mxfp8|mxfp4|nvfp4")]
    pub wire: Option<WireArg>,
    /// What the ranks are: threads of this process, or processes that mpirun started; LIBRARY is the MPI library of the
    /// standard ABI, where the loader does not find `libmpi_abi.so.1`. The first process writes and compares the output
    /// [default: threads].
    #[arg(long, value_parser = parse_ranks, value_name = "threads|mpi[:LIBRARY]")]
    pub ranks: Option<RanksArg>,
    /// What brings rows to experts and results back: kernels of the ranks, in the emulator, or the host between launches
    /// [default: kernels in the emulator, where they do the layer; else the host].
    #[arg(long, value_enum, value_name = "kernels|host")]
    pub exchange: Option<ExchangeArg>,
    /// On CPUs: make so many steps more, and say how long one took, as the first rank sees it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rounds: Option<u32>,
    /// Longest time to wait for a rank [default: 60].
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
}

impl MeshArgs {
    /// Refuses options of ranks for a layer on one.
    ///
    /// # Errors
    /// `wrong-usage`.
    pub fn refuse(&self) -> Result<(), Diagnostic> {
        let given = [
            ("--placement", self.placement.is_some()),
            ("--tokens-per-rank", self.tokens_per_rank.is_some()),
            ("--wire", self.wire.is_some()),
            ("--ranks", self.ranks.is_some()),
            ("--exchange", self.exchange.is_some()),
            ("--rounds", self.rounds.is_some()),
            ("--timeout", self.timeout.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((option, _)) => {
                let what = format!("{option} is for a layer on several ranks, and this one is on one rank");
                Err(Diagnostic::machine("wrong-usage", what).help("give --mesh, or a bundle that was compiled with it"))
            }
        }
    }

    /// What the ranks are.
    pub fn ranks(&self) -> &RanksArg {
        self.ranks.as_ref().unwrap_or(&RanksArg::Threads)
    }

    /// Longest wait for a rank.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(60))
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|s: &f64| *s > 0.0);
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(|| "seconds above 0".to_string())
}

/// What exchanges rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExchangeArg {
    Kernels,
    Host,
}

/// What ranks are.
#[derive(Clone, Debug)]
pub enum RanksArg {
    Threads,
    /// Processes; the MPI library, where it is named.
    Mpi(Option<PathBuf>),
}

fn parse_ranks(text: &str) -> Result<RanksArg, String> {
    match text.split_once(':') {
        None if text == "threads" => Ok(RanksArg::Threads),
        None if text == "mpi" => Ok(RanksArg::Mpi(None)),
        Some(("mpi", path)) if !path.is_empty() => Ok(RanksArg::Mpi(Some(path.into()))),
        _ => Err("threads, mpi or mpi:LIBRARY".into()),
    }
}

/// How rows are rounded; `None` for not at all.
#[derive(Clone, Copy, Debug)]
pub struct WireArg(pub Option<Wire>);

pub fn parse_mesh(text: &str) -> Result<Mesh, String> {
    Mesh::parse(text).map_err(|d| format!("{}; {}", d.message, d.help.unwrap_or_default()))
}

pub fn parse_wire(name: &str) -> Result<WireArg, String> {
    match name {
        "none" => return Ok(WireArg(None)),
        "bf16" => return Ok(WireArg(Some(Wire::Rows(DType::BF16)))),
        "f16" => return Ok(WireArg(Some(Wire::Rows(DType::F16)))),
        _ => {}
    }
    let format = ActQuant::from_name(name).filter(|q| !q.has_global());
    let names = ActQuant::NAMES.iter().filter(|(_, q)| !q.has_global()).map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
    format.map(|q| WireArg(Some(Wire::Codes(q)))).ok_or_else(|| format!("none, bf16, f16 or one of {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_wire_is_a_format_that_needs_nothing_but_the_row() {
        assert!(matches!(parse_wire("none"), Ok(WireArg(None))));
        assert!(matches!(parse_wire("bf16"), Ok(WireArg(Some(Wire::Rows(DType::BF16))))));
        assert!(parse_wire("nvfp4").is_ok());
        assert!(parse_wire("nvfp4-static").is_err_and(|e| e.contains("mxfp8")));
        assert!(matches!(parse_ranks("mpi:/a/b.so"), Ok(RanksArg::Mpi(Some(p))) if p == Path::new("/a/b.so")));
        assert!(matches!(parse_ranks("mpi"), Ok(RanksArg::Mpi(None))));
        assert!(parse_ranks("mpi:").is_err() && parse_ranks("tcp").is_err());
        assert!(parse_mesh("ep=2,pp=2").is_err_and(|e| e.contains("ep=N")));
    }
}
