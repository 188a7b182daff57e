//! Damaged PTX: neither the parser nor the executor panics, hangs or takes much memory.
//!
//! Each case is a kernel of the corpus with a few tokens deleted, doubled, exchanged or replaced. The seed of a case that
//! fails is in the message; `MOEC_FUZZ_SECONDS` makes the run longer, `MOEC_FUZZ_SEED` starts it elsewhere.
#![allow(clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use moec_ptx::ast::Module;
use moec_ptx::launch::{Options, emulate_launch};
use moec_ptx::parse::tokenize;

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const INSTRUCTION_LIMIT: u64 = 40_000;
/// Resident memory of the whole test process.
const MEMORY_LIMIT_KIB: u64 = 3 << 20;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

const NUMBERS: [&str; 20] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "16",
    "31",
    "32",
    "33",
    "64",
    "255",
    "256",
    "4096",
    "65535",
    "2147483647",
    "-2147483648",
    "4294967295",
    "18446744073709551615",
    "0x7fffffffffffffff",
];
const WORDS: [&str; 30] = [
    ".sync", ".aligned", ".b8", ".b16", ".b32", ".b64", ".b128", ".f16", ".f32", ".f64", ".u8", ".s64", ".v2", ".v4",
    ".v8", ".shared", ".global", ".local", ".const", ".param", ".sat", ".rn", ".wide", ".hi", "ret", "bra", "{", "}",
    "@!%p1", "[",
];

/// Damages a text in one to four places.
fn damage(text: &str, random: &mut Random) -> String {
    let Ok(tokens) = tokenize(text) else { return text.to_string() };
    let mut words: Vec<&str> = tokens.iter().map(|token| token.text).collect();
    words.pop(); // the end
    for _ in 0..1 + random.below(4) {
        let at = random.below(words.len());
        let Some(word) = words.get(at).copied() else { break };
        match random.below(9) {
            0 => {
                words.remove(at);
            }
            1 => words.insert(at, word),
            2 => {
                let other = random.below(words.len());
                words.swap(at, other);
            }
            3 => {
                // Another word of the same kind, such as another register.
                let like = |w: &&&str| w.as_bytes().first() == word.as_bytes().first();
                let same: Vec<&str> = words.iter().filter(like).copied().collect();
                words[at] = same[random.below(same.len())];
            }
            4 => words[at] = WORDS[random.below(WORDS.len())],
            5 => {
                let numbers: Vec<usize> =
                    (0..words.len()).filter(|i| words[*i].starts_with(|c: char| c.is_ascii_digit())).collect();
                if !numbers.is_empty() {
                    words[numbers[random.below(numbers.len())]] = NUMBERS[random.below(NUMBERS.len())];
                }
            }
            6 => {
                // A whole statement goes.
                let start = words[..at].iter().rposition(|w| *w == ";").map_or(0, |i| i + 1);
                let end = words[at..].iter().position(|w| *w == ";").map_or(words.len(), |i| at + i + 1);
                words.drain(start..end);
            }
            7 => {
                // A whole statement goes elsewhere.
                let start = words[..at].iter().rposition(|w| *w == ";").map_or(0, |i| i + 1);
                let end = words[at..].iter().position(|w| *w == ";").map_or(words.len(), |i| at + i + 1);
                let statement: Vec<&str> = words.drain(start..end).collect();
                let place = words.iter().enumerate().filter(|(_, w)| **w == ";").map(|(i, _)| i + 1);
                let places: Vec<usize> = place.collect();
                let place = places.get(random.below(places.len())).copied().unwrap_or(0);
                words.splice(place..place, statement);
            }
            _ => words.truncate(at),
        }
    }
    // Words that begin with a dot stick to the word in front of them.
    let mut out = String::with_capacity(text.len());
    for word in words {
        if !word.starts_with('.') || out.ends_with([';', '{', '}', ')']) {
            out.push(' ');
        }
        out.push_str(word);
        if word == ";" {
            out.push('\n');
        }
    }
    out
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs `case` for successive seeds until the time is over; a case that does not come back or panics fails the test.
fn explore(name: &str, case: impl Fn(&mut Random) + Send + Sync + 'static) {
    let seconds = setting("MOEC_FUZZ_SECONDS", 4);
    let first = setting("MOEC_FUZZ_SEED", 1);
    let case = std::sync::Arc::new(case);
    let (started, mut seed) = (Instant::now(), first);
    // Panics are reported with their seed below; the default hook would print thousands of lines into the output.
    while started.elapsed() < Duration::from_secs(seconds) {
        let (send, receive) = mpsc::channel();
        let run = std::sync::Arc::clone(&case);
        let batch = seed..seed + 16;
        std::thread::spawn(move || {
            for seed in batch {
                let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                let result = catch_unwind(AssertUnwindSafe(|| run(&mut random)));
                if send.send((seed, result.is_ok())).is_err() {
                    return;
                }
            }
        });
        for _ in 0..16 {
            match receive.recv_timeout(PATIENCE) {
                Ok((at, true)) => seed = at + 1,
                Ok((at, false)) => panic!("{name}: panic with MOEC_FUZZ_SEED={at}"),
                Err(_) => panic!("{name}: no end with MOEC_FUZZ_SEED={seed}"),
            }
        }
    }
    assert!(seed >= first + 16);
    if let Some(kib) = resident_kib() {
        assert!(kib < MEMORY_LIMIT_KIB, "{name}: {} MiB resident", kib >> 10);
    }
}

#[test]
fn damaged_text_is_refused_or_parsed_without_panic() {
    let texts: Vec<String> = common::entry_names().iter().map(|name| common::entry(name).ptx).collect();
    explore("parser", move |random| {
        let text = &texts[random.below(texts.len())];
        let damaged = damage(text, random);
        if let Ok(module) = Module::parse(&damaged) {
            let printed = module.to_string();
            Module::parse(&printed).expect("what was printed should parse");
        }
        // Bytes that are no tokens at all.
        let mut bytes = text.as_bytes()[..text.len().min(4000)].to_vec();
        for _ in 0..8 {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        let _ = Module::parse(&String::from_utf8_lossy(&bytes));
    });
}

#[test]
fn damaged_kernels_are_refused_or_run_without_panic() {
    let entries: Vec<common::Entry> =
        common::entry_names().iter().map(|name| common::entry(name)).filter(|entry| entry.ptx.len() < 60_000).collect();
    explore("executor", move |random| {
        let entry = &entries[random.below(entries.len())];
        let damaged = damage(&entry.ptx, random);
        let options = Options { instruction_limit: INSTRUCTION_LIMIT, ..Options::default() };
        let _ = emulate_launch(&damaged, &entry.launch, &entry.buffers, &options);
    });
}
