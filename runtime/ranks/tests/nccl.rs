//! Windows by NCCL, against a library whose ranks are threads (`fake_nccl/libnccl.rs`): what ranks call, in which order, what they get, and
//! what is said where NCCL has no windows.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use moec_ir::Diagnostic;
use moec_ranks::nccl::{Nccl, NcclRank, NcclWindow};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// Compiles the stand-in; `cfg` names what differs in it.
fn library(dir: &Path, cfg: &str) -> PathBuf {
    let to = dir.join(format!("libnccl-{cfg}.so.2"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nccl/libnccl.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "nccl", "--cfg", cfg, "-A"]);
    let out = command.arg("unexpected_cfgs").arg("-o").arg(&to).arg(source).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    to
}

/// Fills memory of the host, where the stand-in's windows are.
fn zero(at: u64, bytes: u64) -> Result<(), Diagnostic> {
    let at: *mut u8 = std::ptr::with_exposed_provenance_mut(at as usize);
    // SAFETY: the memory is a window's, which nobody else has yet.
    unsafe { std::ptr::write_bytes(at, 0, bytes as usize) };
    Ok(())
}

/// Runs ranks on threads, each with the communicator that they make together.
fn ranks<R: Send>(nccl: &Arc<Nccl>, n: u32, f: impl Fn(u32, NcclRank) -> R + Sync) -> Vec<Result<R, Diagnostic>> {
    let id = nccl.unique_id().unwrap();
    std::thread::scope(|scope| {
        let rank = |rank| {
            let (nccl, f) = (nccl.clone(), &f);
            scope.spawn(move || NcclRank::join(nccl, (rank, n), id, LONG).map(|joined| f(rank, joined)))
        };
        let all: Vec<_> = (0..n).map(rank).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn each_rank_has_the_addresses_of_all_windows() {
    let dir = tempfile::tempdir().unwrap();
    let nccl = Arc::new(Nccl::open(Some(&library(dir.path(), "plain"))).unwrap());
    assert_eq!(nccl.version, 23_203);
    let barrier = std::sync::Barrier::new(3);
    let done = ranks(&nccl, 3, |rank, mut joined| {
        // Two windows, of which one is no whole page.
        let made: Vec<NcclWindow> = [5000, 4096].map(|bytes| joined.register(bytes, zero).unwrap()).into();
        for window in &made {
            let (to, own) = (window.peers()[(rank as usize + 1) % 3], window.peers()[rank as usize]);
            let at = |address: u64| -> *mut u32 { std::ptr::with_exposed_provenance_mut(address as usize) };
            // SAFETY: both are windows; this rank alone writes to the next one's, and reads its own behind the barrier.
            unsafe {
                assert!(at(own).read() == 0 || at(own).read() == 100 + (rank + 2) % 3);
                at(to).write(100 + rank);
                barrier.wait();
                assert_eq!(at(own).read(), 100 + (rank + 2) % 3);
            }
            assert_eq!(window.table(), [window.peers(), &[0x7000_0000]].concat());
        }
        barrier.wait();
        (made[0].bytes(), made[0].peers().to_vec(), made[1].peers().to_vec())
    });
    let first = done[0].as_ref().unwrap();
    assert!(done.iter().all(|d| d.as_ref().unwrap() == first), "windows have one address here");
    assert!(first.0 == 8192 && first.1 != first.2);
}

#[test]
fn what_nccl_does_not_give_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path, code: &str, words: &str| {
        let d = Nccl::open(Some(path)).unwrap_err();
        assert!(d.code == code && d.to_string().contains(words) && d.help.is_some(), "{d}");
    };
    refused(&dir.path().join("none.so"), "nccl-unavailable", "no NCCL can be opened");
    refused(&library(dir.path(), "old"), "nccl-unavailable", "NCCL is 2.28.9; moec needs 2.29.2 or newer");
    refused(&library(dir.path(), "bare"), "nccl-unavailable", "NCCL 2.32.3 has no function `ncclGetPeerDevicePointer`");
    for (cfg, words) in [
        ("two_domains", "4 ranks are not one NVLink domain: 2 of them"),
        ("no_window", "NCCL made no window of 4096 bytes"),
        ("far", "does not reach the memory of rank 1"),
    ] {
        let nccl = Arc::new(Nccl::open(Some(&library(dir.path(), cfg))).unwrap());
        let said = ranks(&nccl, 4, |_, mut joined| joined.register(8, zero).map(drop));
        for d in said.into_iter().map(|r| r.and_then(|r| r).unwrap_err()) {
            assert!(d.code == "nccl-unavailable" && d.message.contains(words), "{cfg}: {d}");
        }
    }
    let nccl = Arc::new(Nccl::open(Some(&library(dir.path(), "no_multicast"))).unwrap());
    let tables = ranks(&nccl, 2, |_, mut joined| joined.register(8, zero).unwrap().table());
    assert!(tables.iter().all(|t| t.as_ref().unwrap()[2] == 0));
}

#[test]
fn a_rank_that_does_not_come_is_waited_for_as_long_as_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let nccl = Arc::new(Nccl::open(Some(&library(dir.path(), "alone"))).unwrap());
    let id = nccl.unique_id().unwrap();
    let short = Duration::from_millis(30);
    let d = NcclRank::join(nccl.clone(), (0, 3), id, short).unwrap_err();
    assert!(d.code == "rank-not-answering" && d.message.contains("rank 0 waited 30ms for the other 2 ranks"), "{d}");
    let d = NcclRank::join(nccl, (3, 3), id, short).unwrap_err();
    assert!(d.code == "nccl-failed" && d.notes == ["no such rank in this stand-in"], "{d}");
}
