//! Steps of ranks: tokens and experts that are spread unevenly, maps that change while steps go on, and faults.

use moec::ranks::{Comm, ExpertLoader, Fault, Loaded, PlacedLayer, RankLayer, split_evenly, threads};
use moec::{DType, Diagnostic, Placement, Spread, Tensor, Weights, compile_placed};
use moec_ir::graph::Wire;
use moec_tests::placed::{
    LONG, Recorded, alone, assert_same, folder, gather, named, options, parts, recorded, request, together,
};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Eight experts, two for each token, and a layer with room for all of them on any rank.
fn mixtral() -> (Recorded, Arc<PlacedLayer>) {
    let r = recorded(&folder("mixtral.bf16"), 0);
    let placed = compile_placed(&request(&r.layer), &Spread::new(8), &mut |_| {}).expect("compiles");
    (r, Arc::new(placed))
}

fn map(version: u64, ranks: &[&[u32]]) -> Placement {
    Placement::new(version, 8, ranks.iter().map(|r| r.to_vec()).collect()).expect("a map")
}

#[test]
fn nothing_depends_on_where_tokens_and_experts_are() {
    let (r, placed) = mixtral();
    let want = alone(&r, &r.inputs);
    let weights = Weights::Checkpoint(r.weights.clone());
    let n = r.inputs[0].1.shape[0];
    let maps = [
        ("uneven", map(0, &[&[0, 1, 2, 3, 4, 5], &[7], &[6]])),
        ("a rank without experts", map(0, &[&[7, 6, 5, 4], &[], &[0, 1, 2, 3]])),
        ("all on one", map(0, &[&[], &[], &[0, 1, 2, 3, 4, 5, 6, 7]])),
        ("redundant", map(0, &[&[0, 1, 2, 3], &[3, 0, 4, 5], &[6, 7, 0, 5]])),
        ("everything everywhere", map(0, &[&[0, 1, 2, 3, 4, 5, 6, 7][..]; 3])),
    ];
    for (what, map) in &maps {
        for counts in [vec![n, 0, 0], vec![1, 0, n - 1], split_evenly(n, 3)] {
            let (got, steps) = together(&placed, &weights, map, &r.inputs, &counts).expect(what);
            assert_same(&got, &want, &format!("{what}, {counts:?} tokens"));
            let slots: u64 = steps.iter().map(|s| s.traffic.slots_computed).sum();
            assert_eq!(slots, 2 * n as u64, "{what}: every slot is computed once");
            for (rank, step) in steps.iter().enumerate() {
                // A row goes to a rank once, however many of its experts the token has.
                assert!(step.traffic.rows_sent <= 2 * counts[rank] as u64, "{what}");
            }
        }
    }
    let (_, steps) = together(&placed, &weights, &maps[2].1, &r.inputs, &[n, 0, 0]).expect("runs");
    assert_eq!(steps[0].traffic.rows_sent, n as u64, "both of a token's experts are on one rank");
    assert_eq!(steps[0].traffic.row_bytes_sent, (n * placed.bytes_on_the_wire().0) as u64);
}

#[test]
fn no_tokens_at_all_give_none() {
    let (r, placed) = mixtral();
    let weights = Weights::Checkpoint(r.weights.clone());
    let none: Vec<(String, Tensor)> = parts(&r.inputs, &[r.inputs[0].1.shape[0], 0]).remove(1);
    let (got, _) = together(&placed, &weights, &Placement::even(8, 2).expect("a map"), &none, &[0, 0]).expect("runs");
    assert_eq!(got[0].1.shape[0], 0);
}

#[test]
fn replicas_of_a_busy_expert_share_its_slots() {
    let (r, placed) = mixtral();
    let weights = Weights::Checkpoint(r.weights.clone());
    // The same token over and over: all slots go to two experts.
    let one = parts(&r.inputs, &[1, r.inputs[0].1.shape[0] - 1]).remove(0);
    let many: Vec<(String, Tensor)> =
        one.iter().map(|(name, t)| (name.clone(), moec::ranks::join_tokens(&vec![t; 40]).expect("copies"))).collect();
    let want = alone(&r, &many);
    let everywhere = map(0, &[&[0, 1, 2, 3, 4, 5, 6, 7][..]; 4]);
    let (got, steps) = together(&placed, &weights, &everywhere, &many, &[10, 10, 10, 10]).expect("runs");
    assert_same(&got, &want, "skewed");
    let slots: Vec<u64> = steps.iter().map(|s| s.traffic.slots_computed).collect();
    assert!(slots.iter().all(|&n| (18..=22).contains(&n)), "{slots:?}");
}

/// −1 (vLLM), E (transformers), and what no expert has: with weights that would spoil a sum if they were multiplied.
#[test]
fn slots_without_an_expert_are_dropped() {
    use moec::{LayerOptions, Model, Part};
    let part = Part::Experts { ids: DType::I64, weights: DType::F32 };
    let dir = folder("mixtral.bf16");
    let layer =
        Model::open(&dir).expect("model").layer_with(Some(0), &LayerOptions { part, ..LayerOptions::default() });
    let recorded = recorded(&dir, 0);
    let file = moec::Checkpoint::open(dir.join("golden.layer0.safetensors")).expect("golden");
    let tensor = |name: &str| file.tensor(name).expect("readable").and_then(|t| t.to_tensor()).expect("there");
    let (ids, weights) = (tensor("topk_ids"), tensor("topk_weights").cast(DType::F32));
    let (mut strange, mut spoilt) = (ids.ints().to_vec(), weights.floats().to_vec());
    for (i, id) in [-1, 8, 1 << 40, i64::MIN, -1, -1].into_iter().enumerate() {
        // One slot of some tokens, both of the last.
        let slot = if i < 4 { 3 * i } else { 14 + i };
        strange[slot] = id;
        spoilt[slot] = [f32::NAN, f32::INFINITY, -0.0][i % 3];
    }
    let inputs = vec![
        recorded.inputs[0].clone(),
        ("topk_ids".to_string(), Tensor::int(DType::I64, &ids.shape, strange)),
        ("topk_weights".to_string(), Tensor::float(DType::F32, &weights.shape, spoilt)),
    ];
    let r = Recorded { layer: layer.expect("layer"), inputs, ..recorded };
    let want = alone(&r, &r.inputs);
    let placed = Arc::new(compile_placed(&request(&r.layer), &Spread::new(4), &mut |_| {}).expect("compiles"));
    let weights = Weights::Checkpoint(r.weights.clone());
    let counts = split_evenly(ids.shape[0], 3);
    let (got, steps) =
        together(&placed, &weights, &Placement::even(8, 3).expect("a map"), &r.inputs, &counts).expect("runs");
    assert_same(&got, &want, "dropped slots");
    assert!(got[0].1.floats().iter().all(|v| v.is_finite()));
    assert_eq!(steps.iter().map(|s| s.traffic.slots_dropped).sum::<u64>(), 6);
}

/// Experts move twice while steps go on; ranks load the new ones at their own pace. No step waits for them, no token is lost.
#[test]
fn experts_move_while_tokens_flow() {
    let (r, placed) = mixtral();
    let want = alone(&r, &r.inputs);
    let weights = Weights::Checkpoint(r.weights.clone());
    let maps = [
        map(0, &[&[0, 1, 2], &[3, 4, 5], &[6, 7]]),
        map(4, &[&[7, 1], &[3, 0, 2, 5], &[6, 4, 0]]),
        map(9, &[&[0, 1, 2, 3, 4, 5, 6, 7], &[], &[2, 6]]),
    ];
    let counts = split_evenly(r.inputs[0].1.shape[0], 3);
    let parts = parts(&r.inputs, &counts);
    let ranks = threads::run(threads::connect(3, LONG), |comm| {
        let rank = comm.rank() as usize;
        let mut layer = RankLayer::join(placed.clone(), comm, maps[0].clone(), &weights, options(64))?;
        std::thread::scope(|scope| {
            let (loader, (sender, loaded)) = (layer.loader(), mpsc::channel());
            let (maps, weights) = (&maps, &weights);
            scope.spawn(move || {
                for map in &maps[1..] {
                    std::thread::sleep(Duration::from_millis(15 * rank as u64));
                    let _ = sender.send(loader.load(map.clone(), weights));
                }
            });
            let mut steps = Vec::new();
            // All ranks see the last map at the same step, or they would wait for each other.
            while steps.iter().filter(|s: &&moec::ranks::StepResult| s.map_version == 9).count() < 3 {
                if let Ok(new) = loaded.try_recv() {
                    layer.stage(new?)?;
                }
                steps.push(layer.step(&named(&parts[rank]))?);
                assert!(steps.len() < 100_000, "the last map should have come");
            }
            Ok(steps)
        })
    })
    .expect("runs");
    let n_steps = ranks[0].len();
    assert!(ranks.iter().all(|r| r.len() == n_steps));
    for i in 0..n_steps {
        let step: Vec<_> = ranks.iter().map(|r| r[i].clone()).collect();
        assert!(step.iter().all(|s| s.map_version == step[0].map_version), "step {i}");
        assert_same(&gather(&step), &want, &format!("step {i}, map {}", step[0].map_version));
    }
    assert_eq!((ranks[0][0].map_version, ranks[0][n_steps - 1].map_version), (0, 9));
}

/// A comm whose parts are spoilt on their way, in one of its calls.
struct Spoilt<C> {
    inner: C,
    call: usize,
    /// Rank that spoils, and the call in which it does.
    at: (u32, usize),
    how: fn(&mut Vec<u8>),
}

impl<C: Comm> Comm for Spoilt<C> {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }

    fn n_ranks(&self) -> u32 {
        self.inner.n_ranks()
    }

    fn exchange(&mut self, mut parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Fault> {
        if self.at == (self.rank(), self.call) {
            let own = self.rank() as usize;
            parts.iter_mut().enumerate().filter(|(r, _)| *r != own).for_each(|(_, p)| (self.how)(p));
        }
        self.call += 1;
        self.inner.exchange(parts)
    }

    fn end(&mut self, why: &str) {
        self.inner.end(why);
    }
}

/// What each of three ranks says when `rank` is run on each.
fn each<C: Comm>(ends: Vec<C>, rank: impl Fn(C) -> Result<(), Diagnostic> + Sync) -> Vec<Option<Diagnostic>> {
    threads::run(ends, |end| Ok(rank(end).err())).expect("no thread panics")
}

fn assert_refused(found: &Option<Diagnostic>, code: &str, words: &[&str], what: &str) {
    let d = found.as_ref().unwrap_or_else(|| panic!("{what}: should be refused"));
    assert!(d.code == code && words.iter().all(|w| d.message.contains(w)), "{what}: {d}");
    assert!(d.help.is_some(), "{what}: a remedy is named");
}

#[test]
fn what_is_spoilt_on_its_way_is_refused_before_a_number_is_made() {
    let (r, placed) = mixtral();
    let weights = Weights::Checkpoint(r.weights.clone());
    let parts = parts(&r.inputs, &split_evenly(r.inputs[0].1.shape[0], 3));
    type Case = (&'static str, usize, fn(&mut Vec<u8>), &'static str);
    let faults: [Case; 9] = [
        ("another format", 1, |p| p[0] ^= 1, "no message"),
        ("another fingerprint", 1, |p| p[8] ^= 1, "fingerprint"),
        ("another largest number of tokens", 1, |p| p[16] += 1, "up to"),
        ("a step too far", 1, |p| p[24] += 1, "step 1"),
        ("a newer map", 1, |p| p[32] += 1, "newer placement map, version 1"),
        ("a lost message", 1, Vec::clear, "no message"),
        ("a cut message", 1, |p| p.truncate(p.len() - 1), "cannot read"),
        ("a local expert that is not there", 1, |p| *p.last_mut().expect("a byte") = 1, "cannot read"),
        ("lost results", 2, |p| p.truncate(p.len().saturating_sub(1)), "answered"),
    ];
    for (what, call, how, word) in faults {
        let ends = threads::connect(3, LONG).into_iter();
        let ends = ends.map(|inner| Spoilt { inner, call: 0, at: (1, call), how }).collect();
        let found = each(ends, |comm| {
            let rank = comm.rank() as usize;
            let even = Placement::even(8, 3)?;
            let mut layer = RankLayer::join(placed.clone(), comm, even, &weights, options(64))?;
            layer.step(&named(&parts[rank]))?;
            Ok(())
        });
        for rank in [0, 2] {
            let words = ["rank 1", word];
            let told = found[rank].as_ref().is_some_and(|d| d.code == "rank-not-answering");
            // A rank that waits for one that found the fault first is told by it.
            if !told {
                assert_refused(&found[rank], "ranks-disagree", &words, what);
            }
        }
        assert!(found.iter().flatten().any(|d| d.code == "ranks-disagree"), "{what}");
    }
}

#[test]
fn ranks_that_do_not_mean_the_same_are_refused_before_they_load() {
    let (r, placed) = mixtral();
    let wire = Wire::Codes(moec_ir::ActQuant::MXFP8);
    let other = Arc::new(
        compile_placed(&request(&r.layer), &Spread { wire: Some(wire), ..Spread::new(8) }, &mut |_| {})
            .expect("compiles"),
    );
    let weights = Weights::Checkpoint(r.weights.clone());
    let even = Placement::even(8, 3).expect("a map");
    let swapped = map(0, &[&[1, 0, 2], &[3, 4, 5], &[6, 7]]);
    type Odd<'a> = (&'a Arc<PlacedLayer>, Placement, u64);
    let cases: [(&str, Odd<'_>, &str); 4] = [
        ("another bundle", (&other, even.clone(), 64), "fingerprint"),
        ("another T_max", (&placed, even.clone(), 65), "up to 65"),
        ("a newer map", (&placed, even.clone().with_version(1), 64), "version 1"),
        ("another map of the same version", (&placed, swapped, 64), "both are version 0"),
    ];
    for (what, (layer, map, most), word) in cases {
        let found = each(threads::connect(3, LONG), |comm| {
            let odd = comm.rank() == 2;
            let (layer, map, most) = if odd { (layer, &map, most) } else { (&placed, &even, 64) };
            RankLayer::join(layer.clone(), comm, map.clone(), &weights, options(most)).map(|_| ())
        });
        for rank in [0, 1] {
            assert_refused(&found[rank], "ranks-disagree", &["rank 2", word], what);
        }
        assert_refused(&found[2], "ranks-disagree", &[], what);
    }
    // Three ranks are no groups of two.
    let spread = Spread { n_members: 2, ..Spread::new(8) };
    let cut = Arc::new(compile_placed(&request(&r.layer), &spread, &mut |_| {}).expect("compiles"));
    let found = each(threads::connect(3, LONG), |comm| {
        RankLayer::join(cut.clone(), comm, even.clone(), &weights, options(64)).map(|_| ())
    });
    assert!(found.iter().flatten().any(|d| d.code == "mesh-invalid" && d.message.contains("groups of 2")), "{found:?}");
    for (what, map, word) in [
        ("of another layer", Placement::even(9, 3).expect("a map"), "9 experts"),
        ("of another mesh", Placement::even(8, 2).expect("a map"), "2 ranks"),
    ] {
        let found = each(threads::connect(3, LONG), |comm| {
            RankLayer::join(placed.clone(), comm, map.clone(), &weights, options(64)).map(|_| ())
        });
        assert!(found.iter().flatten().any(|d| d.code == "placement-invalid" && d.message.contains(word)), "{what}");
    }
}

#[test]
fn a_rank_that_is_not_there_is_named_within_the_time() {
    let (r, placed) = mixtral();
    let weights = Weights::Checkpoint(r.weights.clone());
    let parts = parts(&r.inputs, &split_evenly(r.inputs[0].1.shape[0], 3));
    let even = Placement::even(8, 3).expect("a map");
    let join = |comm| RankLayer::join(placed.clone(), comm, even.clone(), &weights, options(64));
    let holds = "rank 1, which holds experts 3, 4, 5,";

    // It never comes.
    let mut ends = threads::connect(3, Duration::from_millis(300));
    let absent = ends.remove(1);
    let start = Instant::now();
    let found = each(ends, |comm| join(comm).map(|_| ()));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(found.iter().flatten().any(|d| d.message.contains(holds) && d.message.contains("before the first step")));
    found.iter().for_each(|d| assert_refused(d, "rank-not-answering", &["rank"], "absent"));
    drop(absent);

    // It comes late, but in time.
    let found = each(threads::connect(3, LONG), |comm| {
        std::thread::sleep(Duration::from_millis(if comm.rank() == 1 { 50 } else { 0 }));
        let rank = comm.rank() as usize;
        join(comm)?.step(&named(&parts[rank])).map(|_| ())
    });
    assert!(found.iter().all(Option::is_none), "{found:?}");

    // It ends after a step, or is stuck in one.
    for (what, word) in [("ended", "has ended in the dispatch of step 1"), ("stuck", "not answered rank")] {
        let timeout = if what == "stuck" { Duration::from_millis(1500) } else { LONG };
        let found = each(threads::connect(3, timeout), |comm| {
            let rank = comm.rank() as usize;
            let mut layer = join(comm)?;
            layer.step(&named(&parts[rank]))?;
            if rank == 1 {
                std::thread::sleep(if what == "stuck" { timeout * 2 } else { Duration::ZERO });
                return Ok(());
            }
            let d = layer.step(&named(&parts[rank])).expect_err("rank 1 takes no part");
            let again = layer.step(&named(&parts[rank])).expect_err("a step failed");
            assert!(again.code == "rank-not-answering" && again.message.contains("no more steps"), "{again}");
            Err(d)
        });
        for rank in [0, 2] {
            assert_refused(&found[rank], "rank-not-answering", &[], what);
        }
        assert!(
            found.iter().flatten().any(|d| d.message.contains("holds experts 3, 4, 5") && d.message.contains(word)),
            "{found:?}"
        );
    }
}

#[test]
fn a_rank_that_fails_tells_the_others_why() {
    let (r, placed) = mixtral();
    let weights = Weights::Checkpoint(r.weights.clone());
    let parts = parts(&r.inputs, &split_evenly(r.inputs[0].1.shape[0], 3));
    let start = Instant::now();
    for (what, most, code) in [("too many tokens", 1, "too-many-tokens"), ("no input", 64, "input-missing")] {
        let found = each(threads::connect(3, LONG), |comm| {
            let rank = comm.rank() as usize;
            let mut layer = RankLayer::join(placed.clone(), comm, Placement::even(8, 3)?, &weights, options(most))?;
            let none =
                parts.iter().map(|p| p[0].1.clone()).next().map(|t| Tensor::float(t.dtype, &[0, t.cols()], vec![]));
            let none = none.map(|t| vec![("input".to_string(), t)]).unwrap_or_default();
            match (rank, what) {
                (1, "no input") => layer.step(&[]).map(|_| ()),
                (1, _) => layer.step(&named(&parts[1])).map(|_| ()),
                _ => layer.step(&named(&none)).map(|_| ()),
            }
        });
        assert_eq!(found[1].as_ref().map(|d| d.code.as_str()), Some(code), "{what}");
        for rank in [0, 2] {
            assert_refused(&found[rank], "rank-not-answering", &[], what);
        }
        let why = &found[1].as_ref().expect("failed").message;
        assert!(found.iter().flatten().any(|d| d.message.contains("rank 1") && d.message.contains(why)), "{found:?}");
    }
    assert!(start.elapsed() < LONG, "nobody waits for the end of time");
}

#[test]
fn a_map_that_ranks_cannot_go_over_to_is_refused() {
    let (r, _) = mixtral();
    let weights = Weights::Checkpoint(r.weights.clone());
    let parts = parts(&r.inputs, &split_evenly(r.inputs[0].1.shape[0], 2));
    let small = Arc::new(compile_placed(&request(&r.layer), &Spread::new(4), &mut |_| {}).expect("compiles"));
    let found = each(threads::connect(2, LONG), |comm| {
        let rank = comm.rank() as usize;
        let mut layer =
            RankLayer::join(small.clone(), comm, Placement::even(8, 2)?.with_version(5), &weights, options(64))?;
        let loader = layer.loader();
        let crowded = map(6, &[&[0, 1, 2, 3, 4], &[5, 6, 7]]);
        let d = loader.load(crowded, &weights).expect_err("five experts have no room");
        assert!(d.code == "placement-invalid" && d.message.contains("room for 4"), "{d}");
        let old = loader.load(Placement::even(8, 2)?.with_version(5), &weights)?;
        let d = layer.stage(old).expect_err("it is not newer");
        assert!(d.code == "placement-invalid" && d.message.contains("version 5"), "{d}");
        // One version, two maps.
        let ranks: [&[u32]; 2] =
            if rank == 0 { [&[4, 5, 6, 7], &[0, 1, 2, 3]] } else { [&[0, 1, 6, 7], &[2, 3, 4, 5]] };
        layer.stage(loader.load(map(6, &ranks), &weights)?)?;
        layer.step(&named(&parts[rank]))?;
        layer.step(&named(&parts[rank])).map(|_| ())
    });
    let codes: Vec<_> = found.iter().flatten().map(|d| d.code.as_str()).collect();
    assert!(codes.contains(&"ranks-disagree") && codes.len() == 2, "{found:?}");
}

/// The experts of two ranks, which several clients share: loaded once.
struct Pool<'w> {
    placed: Arc<PlacedLayer>,
    experts: Vec<Loaded>,
    weights: &'w Weights<'w>,
}

/// Ranks 0 and 1 hold all experts and have no tokens; rank 2, which a client is, has the tokens and no experts.
impl<'w> Pool<'w> {
    fn new(placed: Arc<PlacedLayer>, n_experts: u32, weights: &'w Weights<'w>) -> Pool<'w> {
        let half = n_experts / 2;
        let map = Placement::new(0, n_experts, vec![(0..half).collect(), (half..n_experts).collect(), vec![]]);
        let map = map.expect("a map");
        let load = |rank| ExpertLoader::new(placed.clone(), rank, 3, options(64)).load(map.clone(), weights);
        let experts = (0..3).map(|rank| load(rank).expect("loads")).collect();
        Pool { placed, experts, weights }
    }

    fn join<C: Comm>(&self, comm: C) -> Result<RankLayer<C>, Diagnostic> {
        let experts = self.experts[comm.rank() as usize].clone();
        RankLayer::join_pool(self.placed.clone(), comm, experts, self.weights, options(64))
    }

    /// Steps of a client with tokens `inputs`, and what ranks 0 and 1 and the client said at the end. The expert ranks go on until the
    /// client has ended.
    fn serve<C: Comm>(
        &self,
        ends: Vec<C>,
        inputs: &[(String, Tensor)],
        client: impl Fn(RankLayer<C>) -> Result<(), Diagnostic> + Sync,
    ) -> Vec<Option<Diagnostic>> {
        let none = parts(inputs, &[0, inputs[0].1.shape[0]]).remove(0);
        each(ends, |comm| {
            let is_client = comm.rank() == 2;
            let mut layer = self.join(comm)?;
            if is_client {
                return client(layer);
            }
            loop {
                layer.step(&named(&none))?;
            }
        })
    }
}

/// Three clients of two models on one set of expert ranks. One dies, one sends nonsense, one asks for too much: each is told so, or those that
/// waited for it are; the others' bits are those of the layer alone, in every step.
#[test]
fn clients_of_a_pool_of_experts_do_not_harm_each_other() {
    let (r, placed) = mixtral();
    let (want, weights) = (alone(&r, &r.inputs), Weights::Checkpoint(r.weights.clone()));
    let pool = Pool::new(placed, 8, &weights);
    let q = recorded(&folder("qwen3_moe.bf16"), 0);
    let (want_q, weights_q) = (alone(&q, &q.inputs), Weights::Checkpoint(q.weights.clone()));
    let other = compile_placed(&request(&q.layer), &Spread::new(4), &mut |_| {}).expect("compiles");
    let other_pool = Pool::new(Arc::new(other), 8, &weights_q);
    type Fails = fn(&mut RankLayer<Spoilt<threads::ThreadComm>>, &[(String, Tensor)]) -> Result<(), Diagnostic>;
    let faults: [(&str, (u32, usize), Fails, &str); 4] = [
        ("a client that dies", (9, 9), |_, _| Ok(()), "it has left"),
        ("a client that sends no message", (2, 1), |layer, t| layer.step(&named(t)).map(drop), "no message"),
        ("a client with half a row", (2, 1), |layer, t| layer.step(&named(t)).map(drop), "cannot read"),
        (
            "a client with too many tokens",
            (9, 9),
            |layer, t| {
                let many = moec::ranks::join_tokens(&[&t[0].1; 9]).expect("copies");
                layer.step(&[("input", &many)]).map(drop)
            },
            "at most 64",
        ),
    ];
    for (i, (what, at, fails, word)) in faults.into_iter().enumerate() {
        let how: fn(&mut Vec<u8>) = if i == 1 { |p| p.fill(0xAB) } else { |p| p.truncate(p.len() - 1) };
        let spoilt = || threads::connect(3, LONG).into_iter().map(|inner| Spoilt { inner, call: 0, at, how }).collect();
        let steps = |pool: &Pool<'_>, r: &Recorded, want: &[(String, Tensor)]| {
            let ended = pool.serve(threads::connect(3, LONG), &r.inputs, |mut layer| {
                for i in 0..12 {
                    assert_same(&layer.step(&named(&r.inputs))?.outputs, want, &format!("{what}: step {i}"));
                }
                Ok(())
            });
            assert!(ended[2].is_none(), "{what}: {ended:?}");
        };
        std::thread::scope(|scope| {
            let good = scope.spawn(|| steps(&pool, &r, &want));
            let third = scope.spawn(|| steps(&other_pool, &q, &want_q));
            // In its own exchange and its own steps, after one that is right.
            let found = pool.serve(spoilt(), &r.inputs, |mut layer| {
                let first = layer.step(&named(&r.inputs));
                // What is spoilt in the first step is found by the others.
                if at.0 != 2 {
                    assert_same(&first?.outputs, &want, what);
                }
                fails(&mut layer, &r.inputs)
            });
            let said = found.iter().flatten().any(|d| d.message.contains(word));
            assert!(said && found[..2].iter().all(Option::is_some), "{what}: {found:?}");
            good.join().expect("the other client");
            third.join().expect("the client of another model");
        });
    }
    // Experts of another rank, or layer, are not taken.
    let comm = threads::connect(3, LONG).remove(0);
    let wrong = RankLayer::join_pool(pool.placed.clone(), comm, pool.experts[1].clone(), &weights, options(64));
    assert!(wrong.is_err_and(|d| d.code == "placement-invalid" && d.message.contains("rank 1 of 3")));
    let comm = threads::connect(3, LONG).remove(0);
    let wrong = RankLayer::join_pool(pool.placed.clone(), comm, other_pool.experts[0].clone(), &weights, options(64));
    assert!(wrong.is_err_and(|d| d.message.contains("another layer")));
}
