//! Names of kernels as their authors wrote them.

use std::borrow::Cow;

/// Longest name in a finding, in characters.
const LONGEST: usize = 72;

/// A symbol demangled (Rust, C++) and short enough for a line: arguments go, then what is in angle brackets. A name that nobody
/// mangled is returned as it is.
pub fn readable(symbol: &str) -> Cow<'_, str> {
    let Some(name) = demangled(symbol) else { return shortened(symbol) };
    // `void f<T>(int)`: without the arguments, and without the type that comes back.
    let name = outside_brackets(&name, '(', ')');
    let name = if name.chars().count() > LONGEST { outside_brackets(&name, '<', '>') } else { name };
    // The type that comes back ends at the last blank outside of brackets.
    let mut depth = 0usize;
    let blank = name.char_indices().filter(|(_, c)| {
        depth = match c {
            '<' => depth + 1,
            '>' => depth.saturating_sub(1),
            _ => depth,
        };
        *c == ' ' && depth == 0
    });
    let start = blank.last().map_or(0, |(at, _)| at + 1);
    Cow::Owned(shortened(&name[start..]).into_owned())
}

fn demangled(symbol: &str) -> Option<String> {
    if let Ok(name) = rustc_demangle::try_demangle(symbol) {
        return Some(format!("{name:#}"));
    }
    let symbol = cpp_demangle::Symbol::new(symbol).ok()?;
    symbol.demangle().ok()
}

/// `text` without what is in brackets; angle brackets leave a mark.
fn outside_brackets(text: &str, open: char, close: char) -> String {
    let (mut out, mut depth) = (String::new(), 0usize);
    for c in text.chars() {
        if c == open {
            if depth == 0 && open == '<' {
                out.push_str("<…>");
            }
            depth += 1;
        } else if c == close && depth > 0 {
            depth -= 1;
        } else if depth == 0 {
            out.push(c);
        }
    }
    out.trim().to_string()
}

fn shortened(name: &str) -> Cow<'_, str> {
    let count = name.chars().count();
    if count <= LONGEST {
        return Cow::Borrowed(name);
    }
    // The end of a name says more than its middle.
    let chars: Vec<char> = name.chars().collect();
    let (head, tail) = (LONGEST / 2, LONGEST - LONGEST / 2 - 1);
    let (head, tail): (String, String) = (chars[..head].iter().collect(), chars[count - tail..].iter().collect());
    Cow::Owned(format!("{head}…{tail}"))
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn names_are_those_of_the_source() {
        assert_eq!(readable("route"), "route");
        assert_eq!(readable("_Z3addPfS_i"), "add");
        assert_eq!(readable("_Z4gemmIfLi128EEvPT_S1_i"), "gemm<float, 128>");
        assert_eq!(readable("_ZN4core3fmt9Formatter5write17h0123456789abcdefE"), "core::fmt::Formatter::write");
    }

    #[test]
    fn long_names_are_cut() {
        let long = "kernel_".repeat(40);
        assert_eq!(readable(&long).chars().count(), 72);
        let words = (0..30).map(|i| format!("10Argument{i:02}")).collect::<String>();
        assert_eq!(readable(&format!("_Z4gemmIJ{words}EEvPf")), "gemm<…>");
    }
}
