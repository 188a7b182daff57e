//! Runs one warp: picks a part, executes its instructions, splits and merges parts.
//!
//! Parts of a warp stand at different instructions. The one deepest in calls and lowest in the code goes first, so that
//! the others are caught up with and merged where the paths meet. A part that spins makes room for the others.

use super::access;
use super::context::Cx;
use super::error::ExecError;
use super::findings::Check;
use super::memory::FUNCTION_WINDOW;
use super::program::{CallOp, CallTarget, Flow, Lanes, Op, Slot, Src, WARP};
use super::unwritten::Holes;
use super::warp::{Frame, Part, STACK_BASE};

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its turn is over.
    Turn,
    /// Every part waits.
    Blocked,
    /// Every lane has left.
    Done,
}

/// Backward branches after which a part makes room.
const SPINS: u32 = 128;
/// Turns after which blocked parts look again even if nothing happened (see `mbarrier.try_wait`).
const RETRY_TURNS: u64 = 4096;
/// Nested calls beyond which a kernel is stopped.
const MAX_CALLS: usize = 1024;

/// Merges parts that stand at the same place.
fn merge(parts: &mut Vec<Part>) {
    let mut i = 0;
    while i < parts.len() {
        let mut j = i + 1;
        while j < parts.len() {
            if parts[i].pc == parts[j].pc && parts[i].stack == parts[j].stack {
                let other = parts.swap_remove(j);
                parts[i].mask |= other.mask;
                parts[i].blocked = None;
                parts[i].token = 0;
                parts[i].yielded = false;
            } else {
                j += 1;
            }
        }
        i += 1;
    }
}

/// The part to run, if one may.
fn pick(parts: &mut [Part], events: u64, retry: bool) -> Option<usize> {
    for attempt in 0..2 {
        let best = parts
            .iter()
            .enumerate()
            .filter(|(_, p)| !p.yielded && (retry || p.blocked.is_none_or(|(_, at)| at != events)))
            .min_by_key(|(_, p)| (std::cmp::Reverse(p.stack.len()), p.pc))
            .map(|(i, _)| i);
        if best.is_some() || attempt == 1 {
            return best;
        }
        parts.iter_mut().for_each(|p| p.yielded = false);
    }
    None
}

/// Runs the warp for at most `quantum` instructions (as `cluster.quantum_left` counts them).
pub(crate) fn run(cx: &mut Cx<'_>, quantum: i64) -> Result<Outcome, ExecError> {
    cx.m.cluster.quantum_left = quantum;
    let program = cx.m.launch.program;
    let retry = cx.m.cluster.turns.wrapping_sub(cx.warp.blocked_turn) > RETRY_TURNS && cx.warp.blocked_at.is_some();
    if cx.warp.blocked_at.is_none() || retry {
        cx.warp.blocked_turn = cx.m.cluster.turns;
    }
    let mut first = retry;
    'pick: loop {
        if cx.warp.parts.is_empty() {
            return Ok(Outcome::Done);
        }
        if cx.warp.parts.len() > 1 {
            merge(&mut cx.warp.parts);
        }
        let Some(best) = pick(&mut cx.warp.parts, cx.m.cluster.events, first) else {
            return Ok(Outcome::Blocked);
        };
        first = false;
        let mut part = cx.warp.parts.swap_remove(best);
        part.blocked = None;
        let depth = part.stack.len();
        let events = cx.m.cluster.events;
        // The part stops where another one of its depth waits to go on.
        let mut limit = cx
            .warp
            .parts
            .iter()
            .filter(|p| !p.yielded && p.stack.len() == depth && p.blocked.is_none_or(|(_, at)| at != events))
            .map(|p| p.pc)
            .min()
            .unwrap_or(u32::MAX);
        loop {
            if part.pc >= limit {
                cx.warp.parts.push(part);
                continue 'pick;
            }
            if cx.m.cluster.quantum_left <= 0 {
                cx.warp.parts.push(part);
                return Ok(Outcome::Turn);
            }
            cx.m.cluster.quantum_left -= 1;
            let pc = part.pc as usize;
            let instr = &program.code[pc];
            cx.m.pc = part.pc;
            let mut mask = part.mask;
            if instr.guard.slot.0 != 0 || instr.guard.negated {
                let unknown = cx.warp.pred_poison(instr.guard) & mask;
                if unknown != 0 {
                    cx.m.report(Check::Uninitialized, Some(unknown.trailing_zeros()), || {
                        "the guard predicate was never written".to_owned()
                    });
                }
                mask &= cx.warp.pred(instr.guard);
            }
            let count = &mut cx.m.worker.executed[pc];
            count.0 += 1;
            count.1 += u64::from(mask.count_ones());
            cx.m.worker.unreported += 1;
            cx.warp.executed += 1;
            if mask == 0 {
                part.pc += 1;
                continue;
            }
            match &instr.op {
                Op::Map1 { f, d, a, spread } => {
                    let mut out = [0u64; WARP];
                    f(cx.lanes(*a), &mut out);
                    if cx.poison(*a) & mask == 0 {
                        cx.warp.write(*d, mask, &out, 0);
                    } else {
                        cx.write_spread(*spread, &[*a], &|v, d| f(&v[0], d), *d, mask, &out);
                    }
                    part.pc += 1;
                }
                Op::Map2 { f, d, a, b, spread } => {
                    let mut out = [0u64; WARP];
                    f(cx.lanes(*a), cx.lanes(*b), &mut out);
                    if (cx.poison(*a) | cx.poison(*b)) & mask == 0 {
                        cx.warp.write(*d, mask, &out, 0);
                    } else {
                        cx.write_spread(*spread, &[*a, *b], &|v, d| f(&v[0], &v[1], d), *d, mask, &out);
                    }
                    part.pc += 1;
                }
                Op::Map3 { f, d, a, b, c, spread } => {
                    let mut out = [0u64; WARP];
                    f(cx.lanes(*a), cx.lanes(*b), cx.lanes(*c), &mut out);
                    if (cx.poison(*a) | cx.poison(*b) | cx.poison(*c)) & mask == 0 {
                        cx.warp.write(*d, mask, &out, 0);
                    } else {
                        cx.write_spread(*spread, &[*a, *b, *c], &|v, d| f(&v[0], &v[1], &v[2], d), *d, mask, &out);
                    }
                    part.pc += 1;
                }
                Op::Setp { f, d, not_d, a, b, combine, kind } => {
                    let holds = f(cx.lanes(*a), cx.lanes(*b));
                    let mut unknown = cx.poison(*a) | cx.poison(*b);
                    if unknown & mask != 0 {
                        unknown &= !cx.decided(*kind, *a, *b, *f);
                    }
                    let (mut p, mut q) = (holds, !holds);
                    if let Some((f, c)) = combine {
                        let c_value = cx.warp.pred(*c);
                        // A lane is known if the other operand decides: false and …, true or ….
                        let decided = |v: u32| !(f(v, 0) ^ f(v, u32::MAX)) | !(f(0, v) ^ f(u32::MAX, v));
                        let c_unknown = cx.warp.pred_poison(*c);
                        unknown =
                            (unknown & !(decided(c_value) & !c_unknown)) | (c_unknown & !(decided(holds) & !unknown));
                        p = f(p, c_value);
                        q = f(q, c_value);
                    }
                    cx.warp.write_pred(*d, mask, p, unknown);
                    if let Some(not_d) = not_d {
                        cx.warp.write_pred(*not_d, mask, q, unknown);
                    }
                    part.pc += 1;
                }
                Op::Logic { f, d, a, b } => {
                    let (va, vb) = (cx.warp.pred(*a), cx.warp.pred(*b));
                    let (ua, ub) = (cx.warp.pred_poison(*a), cx.warp.pred_poison(*b));
                    // An unknown operand matters only where the result would change with it.
                    let by_a = f(0, vb) ^ f(u32::MAX, vb);
                    let by_b = f(va, 0) ^ f(va, u32::MAX);
                    let unknown = ua & (by_a | ub) | ub & (by_b | ua);
                    cx.warp.write_pred(*d, mask, f(va, vb), unknown);
                    part.pc += 1;
                }
                Op::Selp { d, a, b, p } => {
                    let holds = cx.warp.pred(*p);
                    let (va, vb) = (cx.lanes(*a), cx.lanes(*b));
                    let mut out = [0u64; WARP];
                    for i in 0..WARP {
                        let keep = 0u64.wrapping_sub(u64::from(holds >> i & 1));
                        out[i] = va[i] & keep | vb[i] & !keep;
                    }
                    let open = cx.warp.pred_poison(*p);
                    let poison = (cx.poison(*a) & holds | cx.poison(*b) & !holds | open) & mask;
                    if poison == 0 {
                        cx.warp.write(*d, mask, &out, 0);
                    } else {
                        select_bits(cx, [*a, *b], holds, open, *d, mask, &out);
                    }
                    part.pc += 1;
                }
                Op::Unpack { d, a, mask: field } => {
                    let v = *cx.lanes(*a);
                    if cx.poison(*a) & mask == 0 {
                        for (d, shift) in d {
                            cx.warp.write(*d, mask, &v.map(|v| v >> shift & field), 0);
                        }
                    } else {
                        let (holes, padding) = (cx.unwritten(*a), cx.warp.padding_of(*a));
                        for (d, shift) in d {
                            let bits = holes.map(|b| b >> shift & field);
                            cx.warp.write_bits(*d, mask, &v.map(|v| v >> shift & field), &bits, padding);
                        }
                    }
                    part.pc += 1;
                }
                Op::Pack { d, a } => {
                    let mut out = [0u64; WARP];
                    let mut poison = 0;
                    for (s, shift) in a {
                        let v = cx.lanes(*s);
                        for i in 0..WARP {
                            out[i] |= v[i] << shift;
                        }
                        poison |= cx.poison(*s);
                    }
                    if poison & mask == 0 {
                        cx.warp.write(*d, mask, &out, 0);
                    } else {
                        pack_bits(cx, a, *d, mask, &out);
                    }
                    part.pc += 1;
                }
                Op::Load(op) => {
                    access::load(cx, op, mask)?;
                    part.pc += 1;
                }
                Op::Store(op) => {
                    access::store(cx, op, mask)?;
                    part.pc += 1;
                }
                Op::Nop => part.pc += 1,
                Op::Bra { target, p } => {
                    let unknown = cx.warp.pred_poison(*p) & part.mask;
                    if unknown != 0 {
                        cx.m.report(Check::Uninitialized, Some(unknown.trailing_zeros()), || {
                            "the branch predicate was never written".to_owned()
                        });
                    }
                    let taken = cx.warp.pred(*p) & part.mask;
                    let next = part.pc + 1;
                    if taken == 0 {
                        part.pc = next;
                        continue;
                    }
                    let backward = *target <= part.pc;
                    if taken == part.mask {
                        part.pc = *target;
                    } else {
                        let (low, high) = if *target < next {
                            ((*target, taken), (next, part.mask & !taken))
                        } else {
                            ((next, part.mask & !taken), (*target, taken))
                        };
                        let other = Part {
                            pc: high.0,
                            mask: high.1,
                            stack: part.stack.clone(),
                            blocked: None,
                            token: 0,
                            spins: 0,
                            yielded: false,
                        };
                        limit = limit.min(high.0);
                        cx.warp.parts.push(other);
                        (part.pc, part.mask) = low;
                    }
                    if backward {
                        part.spins += 1;
                        if part.spins > SPINS && !cx.warp.parts.is_empty() {
                            part.yielded = true;
                            part.spins = 0;
                            cx.warp.parts.push(part);
                            continue 'pick;
                        }
                    }
                }
                Op::Custom(f) => {
                    cx.part_mask = part.mask;
                    cx.token = part.token;
                    match f(cx, mask)? {
                        Flow::Next => {
                            part.token = 0;
                            part.pc += 1;
                        }
                        Flow::Block(wait) => {
                            let count = &mut cx.m.worker.executed[pc];
                            count.0 -= 1;
                            count.1 -= u64::from(mask.count_ones());
                            cx.m.worker.counters.blocked_attempts += 1;
                            part.token = cx.token;
                            part.blocked = Some((wait, cx.m.cluster.events));
                            cx.warp.parts.push(part);
                            continue 'pick;
                        }
                    }
                }
                Op::Brx { index, targets } => {
                    cx.require(*index, mask, "the branch index");
                    let v = *cx.lanes(*index);
                    let mut left = mask;
                    while left != 0 {
                        let n = v[left.trailing_zeros() as usize];
                        let group =
                            (0..WARP).filter(|l| left >> l & 1 == 1 && v[*l] == n).fold(0u32, |m, l| m | 1 << l);
                        let Some(pc) = targets.get(n as usize) else {
                            return Err(cx
                                .m
                                .fault(format!("branch index {n} is outside of a table of {}", targets.len())));
                        };
                        cx.warp.parts.push(Part {
                            pc: *pc,
                            mask: group,
                            stack: part.stack.clone(),
                            blocked: None,
                            token: 0,
                            spins: 0,
                            yielded: false,
                        });
                        left &= !group;
                    }
                    if part.mask & !mask != 0 {
                        cx.warp.parts.push(Part { pc: part.pc + 1, mask: part.mask & !mask, ..part });
                    }
                    continue 'pick;
                }
                Op::Call(call) => {
                    call_function(cx, call, part, mask)?;
                    continue 'pick;
                }
                Op::Ret | Op::Exit => {
                    let leave = matches!(instr.op, Op::Exit) || part.stack.is_empty();
                    if part.mask & !mask != 0 {
                        cx.warp.parts.push(Part {
                            pc: part.pc + 1,
                            mask: part.mask & !mask,
                            stack: part.stack.clone(),
                            blocked: None,
                            token: 0,
                            spins: 0,
                            yielded: false,
                        });
                    }
                    if leave {
                        exit_lanes(cx, mask);
                    } else {
                        return_from(cx, part, mask);
                    }
                    continue 'pick;
                }
            }
        }
    }
}

/// The unwritten bits of a selection. Where the predicate is open, bits that are equal in both values are known.
#[cold]
fn select_bits(cx: &mut Cx<'_>, [a, b]: [Src; 2], holds: u32, open: u32, d: Slot, mask: u32, out: &Lanes) {
    let (ua, ub) = (cx.unwritten(a), cx.unwritten(b));
    let (va, vb) = (cx.lanes(a), cx.lanes(b));
    let bits = std::array::from_fn(|l| match (open >> l & 1, holds >> l & 1) {
        (1, _) => va[l] ^ vb[l] | ua[l] | ub[l],
        (_, 1) => ua[l],
        _ => ub[l],
    });
    let padding = (cx.warp.padding_of(a) & holds | cx.warp.padding_of(b) & !holds) & !open;
    cx.warp.write_bits(d, mask, out, &bits, padding);
}

#[cold]
fn pack_bits(cx: &mut Cx<'_>, parts: &[(Src, u32)], d: Slot, mask: u32, out: &Lanes) {
    let (mut bits, mut padding) = ([0u64; WARP], u32::MAX);
    for (s, shift) in parts {
        let holes = cx.unwritten(*s);
        (0..WARP).for_each(|l| bits[l] |= holes[l] << shift);
        padding &= cx.warp.padding_of(*s) | !cx.poison(*s);
    }
    cx.warp.write_bits(d, mask, out, &bits, padding);
}

/// Lanes leave the kernel.
fn exit_lanes(cx: &mut Cx<'_>, mask: u32) {
    cx.warp.exited |= mask;
    let gone = mask.count_ones();
    let done = cx.warp.parts.is_empty();
    let cta = cx.m.own();
    cta.live_threads -= gone.min(cta.live_threads);
    if done {
        cta.live_warps -= 1;
    }
    let index = cx.m.cta;
    super::barrier::threads_left(cx.m.cluster, index);
    cx.m.cluster.wake();
}

fn call_function(cx: &mut Cx<'_>, call: &CallOp, part: Part, mask: u32) -> Result<(), ExecError> {
    let rest = part.mask & !mask;
    if rest != 0 {
        cx.warp.parts.push(Part {
            pc: part.pc + 1,
            mask: rest,
            stack: part.stack.clone(),
            blocked: None,
            token: 0,
            spins: 0,
            yielded: false,
        });
    }
    match &call.target {
        CallTarget::Direct(n) => enter(cx, call, &part, *n, mask),
        CallTarget::Indirect(s) => {
            cx.require(*s, mask, "the called address");
            let v = *cx.lanes(*s);
            let mut left = mask;
            while left != 0 {
                let address = v[left.trailing_zeros() as usize];
                let group = (0..WARP).filter(|l| left >> l & 1 == 1 && v[*l] == address).fold(0u32, |m, l| m | 1 << l);
                let number = address.wrapping_sub(FUNCTION_WINDOW) / 16;
                let known = address >= FUNCTION_WINDOW
                    && address.is_multiple_of(16)
                    && number > 0
                    && (number as usize) < cx.m.launch.program.functions.len();
                if !known {
                    return Err(cx.m.fault(format!("{address:#x} is not the address of a function")));
                }
                enter(cx, call, &part, number as u32, group)?;
                left &= !group;
            }
            Ok(())
        }
    }
}

/// Starts an activation of function `number` for the lanes in `mask`.
fn enter(cx: &mut Cx<'_>, call: &CallOp, part: &Part, number: u32, mask: u32) -> Result<(), ExecError> {
    let program = cx.m.launch.program;
    let caller = part.stack.last().map_or(0, |f| f.function);
    let depth = part.stack.len();
    if depth >= MAX_CALLS {
        return Err(cx.m.fault(format!("calls are nested deeper than {MAX_CALLS}")));
    }
    let (from, to) = (&program.functions[caller as usize], &program.functions[number as usize]);
    // The callee's registers may belong to an activation further up.
    if !to.saved.is_empty() {
        save(cx, depth, number, mask);
    }
    let room = access::lanes_of(mask).map(|l| cx.warp.frame[l] + from.frame_bytes + to.frame_bytes).max().unwrap_or(0);
    grow_local(cx, room)?;
    if program.uses_stack {
        if room > STACK_BASE {
            return Err(cx.m.fault(format!("frames need {room} bytes; beside `alloca` there are {STACK_BASE}")));
        }
        if cx.warp.stacks.len() <= depth {
            cx.warp.stacks.resize(depth + 1, [0; WARP]);
        }
        access::lanes_of(mask).for_each(|l| cx.warp.stacks[depth][l] = cx.warp.stack[l]);
    }
    let stride = cx.warp.local_stride as usize;
    for l in access::lanes_of(mask) {
        let old = l * stride + cx.warp.frame[l] as usize;
        let new = old + from.frame_bytes as usize;
        // What an earlier activation left there is not this one's.
        cx.warp.local_holes[new..new + to.frame_bytes as usize].fill(0xff);
        for ((at, have), (param, bytes)) in call.args.iter().zip(&to.params) {
            let (from, to, n) = (old + *at as usize, new + *param as usize, *bytes.min(have) as usize);
            cx.warp.local.copy_within(from..from + n, to);
            cx.warp.local_holes.copy_within(from..from + n, to);
        }
        cx.warp.frame[l] += from.frame_bytes;
    }
    let mut stack = part.stack.clone();
    stack.push(Frame { return_pc: part.pc + 1, function: number, caller, call_pc: part.pc });
    cx.warp.parts.push(Part { pc: to.entry_pc, mask, stack, blocked: None, token: 0, spins: 0, yielded: false });
    Ok(())
}

fn return_from(cx: &mut Cx<'_>, mut part: Part, mask: u32) {
    let program = cx.m.launch.program;
    let Some(frame) = part.stack.pop() else { return };
    let (from, to) = (&program.functions[frame.function as usize], &program.functions[frame.caller as usize]);
    let stride = cx.warp.local_stride as usize;
    let Op::Call(call) = &program.code[frame.call_pc as usize].op else { return };
    for l in access::lanes_of(mask) {
        let old = l * stride + cx.warp.frame[l] as usize;
        cx.warp.frame[l] -= to.frame_bytes;
        let new = l * stride + cx.warp.frame[l] as usize;
        for ((at, have), (result, bytes)) in call.returns.iter().zip(&from.returns) {
            let (from, to, n) = (old + *result as usize, new + *at as usize, *bytes.min(have) as usize);
            cx.warp.local.copy_within(from..from + n, to);
            cx.warp.local_holes.copy_within(from..from + n, to);
        }
    }
    if program.uses_stack
        && let Some(ends) = cx.warp.stacks.get(part.stack.len())
    {
        // What the function took by `alloca` is given back.
        access::lanes_of(mask).for_each(|l| cx.warp.stack[l] = ends[l]);
    }
    if !from.saved.is_empty() {
        restore(cx, part.stack.len(), frame.function, mask);
    }
    part.pc = frame.return_pc;
    part.mask = mask;
    part.token = 0;
    cx.warp.parts.push(part);
}

fn save(cx: &mut Cx<'_>, depth: usize, function: u32, mask: u32) {
    let info = &cx.m.launch.program.functions[function as usize];
    let warp = &mut *cx.warp;
    let saved = warp.saved.entry((depth, function)).or_default();
    saved.regs.resize(info.saved.len(), ([0; WARP], 0, None));
    saved.preds.resize(info.saved_preds.len(), (0, 0));
    for (s, (lanes, poison, holes)) in info.saved.iter().zip(&mut saved.regs) {
        let reg: &Lanes = &warp.regs[s.0 as usize];
        access::lanes_of(mask).for_each(|l| lanes[l] = reg[l]);
        *poison = *poison & !mask | warp.poison[s.0 as usize] & mask;
        if let Some(now) = warp.holes[s.0 as usize].as_deref().filter(|_| *poison & mask != 0) {
            let kept = holes.get_or_insert_with(|| Box::new(Holes { bits: [u64::MAX; WARP], padding: 0 }));
            access::lanes_of(mask).for_each(|l| kept.bits[l] = now.bits[l]);
            kept.padding = kept.padding & !mask | now.padding & mask;
        }
    }
    for (s, (value, poison)) in info.saved_preds.iter().zip(&mut saved.preds) {
        *value = *value & !mask | warp.preds[s.0 as usize] & mask;
        *poison = *poison & !mask | warp.pred_poison[s.0 as usize] & mask;
    }
}

fn restore(cx: &mut Cx<'_>, depth: usize, function: u32, mask: u32) {
    let info = &cx.m.launch.program.functions[function as usize];
    let Some(saved) = cx.warp.saved.remove(&(depth, function)) else { return };
    for (s, (lanes, poison, holes)) in info.saved.iter().zip(&saved.regs) {
        match holes {
            Some(h) if *poison & mask != 0 => {
                let bits = std::array::from_fn(|l| if poison >> l & 1 == 1 { h.bits[l] } else { 0 });
                cx.warp.write_bits(*s, mask, lanes, &bits, h.padding);
            }
            _ => cx.warp.write(*s, mask, lanes, *poison),
        }
    }
    for (s, (value, poison)) in info.saved_preds.iter().zip(&saved.preds) {
        cx.warp.write_pred(*s, mask, *value, *poison);
    }
    // Lanes that have not returned yet still need their copies.
    cx.warp.saved.insert((depth, function), saved);
}

/// Makes room for `bytes` of local memory in each lane.
pub(crate) fn grow_local(cx: &mut Cx<'_>, bytes: u32) -> Result<(), ExecError> {
    if bytes <= cx.warp.local_stride {
        return Ok(());
    }
    // 512 KiB is PTX's limit of local memory of a thread.
    if bytes > 512 << 10 {
        return Err(cx.m.fault("a thread needs more than 512 KiB of local memory".to_owned()));
    }
    let stride = bytes.next_power_of_two() as usize;
    let old = cx.warp.local_stride as usize;
    let mut local = vec![0u8; stride * WARP];
    let mut holes = vec![0xffu8; stride * WARP];
    for l in 0..WARP {
        local[l * stride..l * stride + old].copy_from_slice(&cx.warp.local[l * old..(l + 1) * old]);
        holes[l * stride..l * stride + old].copy_from_slice(&cx.warp.local_holes[l * old..(l + 1) * old]);
    }
    cx.warp.local = local;
    cx.warp.local_holes = holes;
    cx.warp.local_stride = stride as u32;
    Ok(())
}
