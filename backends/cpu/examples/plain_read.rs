//! Reads memory on request: what a machine gives, and a way to empty its caches of what programs had there.
//!
//! `plain_read THREADS` prints `ready`, then answers every line `BYTES` of its input with the seconds that its threads took to read as
//! many bytes together, of the clock and of the processor, mean over the threads. The bytes lie one after the other in 1 GiB.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::clock::{cpu_seconds, read, time};
use std::io::BufRead;

const BYTES: usize = 1 << 30;

fn main() {
    let Some(threads) = std::env::args().nth(1) else {
        println!("plain_read THREADS");
        return;
    };
    let threads: usize = threads.parse().unwrap();
    let memory: Vec<u8> = (0..BYTES).map(|i| i as u8).collect();
    let mut start = 0;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let part = line.unwrap().trim().parse::<usize>().unwrap() / threads;
        assert!(part * threads <= BYTES);
        if start + part * threads > BYTES {
            start = 0;
        }
        let took = time(threads, |i| {
            let begin = cpu_seconds();
            std::hint::black_box(read(&memory[start + i * part..][..part]));
            cpu_seconds() - begin
        });
        start += part * threads;
        println!("{:.9} {:.9}", took.wall, took.cpu);
    }
}
