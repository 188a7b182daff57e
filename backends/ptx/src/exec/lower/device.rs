//! What compilers call without a definition: the device heap, `printf`, assertions.

use super::Lower;
use crate::ast::Operand;
use crate::exec::access::lanes_of;
use crate::exec::context::Cx;
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::memory::resolve;
use crate::exec::program::{Flow, MemorySpace};

/// Bytes of a string beyond which it is cut.
const MAX_TEXT: u64 = 4096;

impl Lower<'_> {
    /// Lowers a call of a function of the device runtime; `None` if the name is none.
    pub(super) fn builtin_call(
        &mut self,
        name: &str,
        args: &[Operand],
        returns: &[Operand],
    ) -> Result<Option<()>, CompileError> {
        if self.module.functions().any(|f| f.name == name && f.body.is_some()) {
            return Ok(None);
        }
        if !matches!(name, "__assertfail" | "vprintf" | "malloc" | "free") {
            return Ok(None);
        }
        let args = self.call_frames(args)?;
        let returns = self.call_frames(returns)?;
        match name {
            "__assertfail" => self.emit_custom(Box::new(move |cx, mask| {
                let l = mask.trailing_zeros() as usize & 31;
                let text = |cx: &Cx<'_>, n: usize| args.get(n).and_then(|a| string(cx, frame(cx, *a, l))).unwrap_or_default();
                let (message, file, function) = (text(cx, 0), text(cx, 1), text(cx, 3));
                let line = args.get(2).map_or(0, |a| frame(cx, *a, l));
                let thread = cx.m.launch.tid(cx.m.warp_index as u32 * 32 + l as u32);
                let block = cx.m.cluster.ctas[cx.m.cta].ctaid;
                Err(cx.m.fault(format!(
                    "a device assertion failed: `{message}` at {file}:{line} in `{function}` (block {block:?}, thread {thread:?})"
                )))
            })),
            "vprintf" => self.emit_custom(Box::new(move |cx, mask| {
                for l in lanes_of(mask) {
                    let format = args.first().and_then(|a| string(cx, frame(cx, *a, l))).unwrap_or_default();
                    let values = args.get(1).map_or(0, |a| frame(cx, *a, l));
                    let (text, count) = print(cx, &format, values, l);
                    cx.m.worker.print(&text);
                    if let Some(r) = returns.first() {
                        set_frame(cx, *r, l, count);
                    }
                }
                Ok(Flow::Next)
            })),
            "malloc" => {
                self.uses_heap = true;
                self.emit_custom(Box::new(move |cx, mask| {
                    for l in lanes_of(mask) {
                        let bytes = args.first().map_or(0, |a| frame(cx, *a, l));
                        let address = cx.m.launch.heap_alloc(bytes);
                        if let Some(r) = returns.first() {
                            set_frame(cx, *r, l, address);
                        }
                    }
                    Ok(Flow::Next)
                }));
            }
            _ => {
                self.uses_heap = true;
                self.emit_custom(Box::new(move |cx, mask| {
                    for l in lanes_of(mask) {
                        let address = args.first().map_or(0, |a| frame(cx, *a, l));
                        if address != 0 && !cx.m.launch.heap_free(address) {
                            cx.m.report(Check::Bounds, Some(l as u32), || {
                                format!("`free` of {address:#x}, which `malloc` did not give or which is free already")
                            });
                        }
                    }
                    Ok(Flow::Next)
                }));
            }
        }
        Ok(Some(()))
    }
}

/// Up to eight bytes of a lane's frame.
fn frame(cx: &Cx<'_>, (at, bytes): (u32, u32), l: usize) -> u64 {
    let start = l * cx.warp.local_stride as usize + (cx.warp.frame[l] + at) as usize;
    let mut v = [0u8; 8];
    let n = bytes.min(8) as usize;
    if let Some(from) = cx.warp.local.get(start..start + n) {
        v[..n].copy_from_slice(from);
    }
    u64::from_le_bytes(v)
}

fn set_frame(cx: &mut Cx<'_>, (at, bytes): (u32, u32), l: usize, value: u64) {
    let start = l * cx.warp.local_stride as usize + (cx.warp.frame[l] + at) as usize;
    let n = bytes.min(8) as usize;
    if let Some(to) = cx.warp.local.get_mut(start..start + n) {
        to.copy_from_slice(&value.to_le_bytes()[..n]);
    }
    if let Some(holes) = cx.warp.local_holes.get_mut(start..start + n) {
        holes.fill(0);
    }
}

/// Up to eight bytes at a generic address; `None` outside of memory.
fn peek(cx: &Cx<'_>, address: u64, bytes: usize, l: usize) -> Option<u64> {
    let (space, at) = resolve(address);
    let mut v = [0u8; 8];
    let index = usize::try_from(at).ok()?;
    match space {
        MemorySpace::Local => {
            let start = l * cx.warp.local_stride as usize + index;
            (index + bytes <= cx.warp.local_stride as usize).then_some(())?;
            v[..bytes].copy_from_slice(cx.warp.local.get(start..start + bytes)?);
        }
        MemorySpace::Const => v[..bytes].copy_from_slice(cx.m.launch.const_bank.get(index..index.checked_add(bytes)?)?),
        MemorySpace::Param => v[..bytes].copy_from_slice(cx.m.launch.params.get(index..index.checked_add(bytes)?)?),
        MemorySpace::Global => {
            let a = cx.m.launch.find(address, bytes as u64)?;
            a.read(address - a.base, &mut v[..bytes]);
        }
        _ => {
            let shared = &cx.m.cluster.ctas.get((at >> 24) as usize)?.shared;
            shared.holds(at & 0xff_ffff, bytes as u64).then_some(())?;
            v[..bytes].copy_from_slice(shared.bytes((at & 0xff_ffff) as usize, bytes));
        }
    }
    Some(u64::from_le_bytes(v))
}

/// The zero-terminated text at a generic address.
fn string(cx: &Cx<'_>, address: u64) -> Option<String> {
    string_of(cx, address, 0)
}

fn string_of(cx: &Cx<'_>, address: u64, l: usize) -> Option<String> {
    let mut bytes = Vec::new();
    for n in 0..MAX_TEXT {
        match peek(cx, address.checked_add(n)?, 1, l)? as u8 {
            0 => return Some(String::from_utf8_lossy(&bytes).into_owned()),
            b => bytes.push(b),
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `printf` makes of a format and the packed arguments at an address, and how many arguments it took.
fn print(cx: &Cx<'_>, format: &str, values: u64, l: usize) -> (String, u64) {
    let (mut out, mut at, mut count) = (String::new(), values, 0);
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let length = rest.find(|c: char| !"-+ #0123456789.*hlzjtL".contains(c)).unwrap_or(rest.len());
        let (flags, tail) = rest.split_at(length);
        let Some(kind) = tail.chars().next() else { break };
        rest = &tail[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        // Arguments lie one behind the other, each aligned to its size.
        let mut take = |bytes: u64| {
            at = at.div_ceil(bytes) * bytes;
            let value = peek(cx, at, bytes as usize, l).unwrap_or(0);
            at += bytes;
            count += 1;
            value
        };
        let mut spec = String::new();
        for c in flags.chars() {
            if c == '*' { spec.push_str(&(take(4) as i32).to_string()) } else { spec.push(c) }
        }
        let wide = flags.contains(['l', 'j', 'z', 't']);
        let spec = Spec::of(&spec);
        out.push_str(&match kind {
            'd' | 'i' => {
                let v = if wide { take(8) as i64 } else { i64::from(take(4) as i32) };
                spec.signed(v < 0, v.unsigned_abs().to_string())
            }
            'u' => spec.signed(false, if wide { take(8) } else { take(4) }.to_string()),
            'x' => spec
                .number(if spec.alternate { "0x" } else { "" }, format!("{:x}", if wide { take(8) } else { take(4) })),
            'X' => spec
                .number(if spec.alternate { "0X" } else { "" }, format!("{:X}", if wide { take(8) } else { take(4) })),
            'o' => spec.number("", format!("{:o}", if wide { take(8) } else { take(4) })),
            'c' => spec.pad("", char::from(take(4) as u8).to_string(), false),
            's' => {
                let text = string_of(cx, take(8), l).unwrap_or_else(|| "(null)".to_owned());
                let text = spec.precision.map_or(text.clone(), |n| text.chars().take(n).collect());
                spec.pad("", text, false)
            }
            'p' => spec.pad("", format!("{:#x}", take(8)), false),
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' => {
                let x = f64::from_bits(take(8));
                let text = float(x.abs(), kind, spec.precision.unwrap_or(6), spec.alternate);
                spec.signed(x.is_sign_negative() && !x.is_nan(), text)
            }
            other => format!("%{flags}{other}"),
        });
    }
    out.push_str(rest);
    (out, count)
}

/// Flags, width and precision of a conversion.
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    fn of(text: &str) -> Spec {
        let flags: String = text.chars().take_while(|c| "-+ #0".contains(*c)).collect();
        let rest = text[flags.len()..].trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let (width, precision) = match rest.split_once('.') {
            Some((w, p)) => (w, Some(p.parse().unwrap_or(0))),
            None => (rest, None),
        };
        Spec {
            left: flags.contains('-'),
            zero: flags.contains('0'),
            plus: flags.contains('+'),
            space: flags.contains(' '),
            alternate: flags.contains('#'),
            width: width.parse::<usize>().unwrap_or(0).min(1024),
            precision: precision.map(|p: usize| p.min(1024)),
        }
    }

    fn signed(&self, negative: bool, digits: String) -> String {
        let sign = match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        };
        self.pad(sign, digits, true)
    }

    fn number(&self, prefix: &str, digits: String) -> String {
        self.pad(prefix, digits, true)
    }

    fn pad(&self, prefix: &str, body: String, numeric: bool) -> String {
        let missing = self.width.saturating_sub(prefix.len() + body.chars().count());
        match (self.left, self.zero && numeric) {
            (true, _) => format!("{prefix}{body}{}", " ".repeat(missing)),
            (_, true) => format!("{prefix}{}{body}", "0".repeat(missing)),
            _ => format!("{}{prefix}{body}", " ".repeat(missing)),
        }
    }
}

/// A number without sign as C prints it.
fn float(x: f64, kind: char, precision: usize, alternate: bool) -> String {
    let upper = kind.is_ascii_uppercase();
    let text = match kind.to_ascii_lowercase() {
        _ if !x.is_finite() => if x.is_nan() { "nan" } else { "inf" }.to_owned(),
        'f' => format!("{x:.precision$}"),
        'e' => exponent(x, precision),
        _ => {
            let precision = precision.max(1);
            let scientific = exponent(x, precision - 1);
            let power: i32 = scientific.rsplit_once('e').and_then(|(_, p)| p.parse().ok()).unwrap_or(0);
            let plain = power >= -4 && power < precision as i32;
            let text =
                if plain { format!("{x:.*}", (precision as i32 - 1 - power).max(0) as usize) } else { scientific };
            if alternate {
                text
            } else {
                let (digits, tail) = text.split_once('e').map_or((text.as_str(), None), |(d, t)| (d, Some(t)));
                let digits =
                    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
                tail.map_or(digits.to_owned(), |t| format!("{digits}e{t}"))
            }
        }
    };
    if upper { text.to_ascii_uppercase() } else { text }
}

fn exponent(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
}

#[cfg(test)]
mod tests {
    use super::{Spec, float};

    #[test]
    fn numbers_print_as_in_c() {
        assert_eq!(float(1.5, 'f', 6, false), "1.500000");
        assert_eq!(float(12345.678, 'e', 2, false), "1.23e+04");
        assert_eq!(float(0.0001, 'g', 6, false), "0.0001");
        assert_eq!(float(1e10, 'g', 6, false), "1e+10");
        assert_eq!(float(100.0, 'g', 6, false), "100");
        assert_eq!(Spec::of("-5").signed(true, "12".to_owned()), "-12  ");
        assert_eq!(Spec::of("05").signed(true, "12".to_owned()), "-0012");
    }
}
