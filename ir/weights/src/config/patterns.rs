//! Patterns over module names, as the lists of quantised configs spell them.
//!
//! Four spellings are in use: a name (`lm_head`, `model.layers.3.mlp`), a part of a name (`gate`, `experts`), a glob
//! (`model.layers.*.self_attn*`, ModelOpt) and a regular expression (`re:.*mlp\.(gate|up)_proj$`, compressed-tensors,
//! matched from the start of a name as Python's `re.match` does). A pattern covers a module and all that is within it.

/// A pattern over module names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// As the config has it.
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Names, parts and globs: the pieces between `*`.
    Glob(Vec<String>),
    /// A regular expression. The crates for them hold a hundred kilobytes for each, and configs have hundreds.
    Regex(Vec<Vec<Node>>),
    /// What cannot be told: an expression that is not understood, or a class of modules.
    Unknown,
}

/// One element of a regular expression.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Any,
    Char(char),
    /// `[a-z_]`, `\d`, `\w`, `\s` and their complements.
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Start,
    End,
    /// Alternatives in parentheses.
    Group(Vec<Vec<Node>>),
    /// `(?=…)` and `(?!…)`.
    Ahead {
        negated: bool,
        of: Vec<Vec<Node>>,
    },
    /// At least `min` and at most `max` times.
    Repeat {
        of: Box<Node>,
        min: u32,
        max: u32,
    },
}

/// Steps that a match may take: expressions that need more take exponentially many.
const MAX_STEPS: u32 = 100_000;
/// Parentheses within parentheses.
const MAX_DEPTH: u32 = 16;

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Pattern {
        let kind = match text.strip_prefix("re:") {
            None => Kind::Glob(text.split('*').map(str::to_string).collect()),
            Some(expression) => {
                let chars: Vec<char> = expression.chars().collect();
                let mut parser = Parser { chars: &chars, at: 0 };
                match parser.alternatives(0) {
                    Some(of) if parser.at == chars.len() => Kind::Regex(of),
                    _ => Kind::Unknown,
                }
            }
        };
        Pattern { text: text.to_string(), kind }
    }

    /// A pattern of which nobody here knows what it covers.
    pub fn unknown(text: &str) -> Pattern {
        Pattern { text: text.to_string(), kind: Kind::Unknown }
    }

    /// The pattern as the config has it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether what it covers can be told.
    pub fn is_known(&self) -> bool {
        self.kind != Kind::Unknown
    }

    /// Whether the pattern covers `module` or a module around it; `None` when that cannot be told.
    pub fn covers(&self, module: &str) -> Option<bool> {
        match &self.kind {
            Kind::Glob(parts) => Some(glob_covers(parts, module)),
            Kind::Regex(of) => regex_covers(of, module),
            Kind::Unknown => None,
        }
    }
}

/// Every part in order; the first at the start of the name or of a module of it, the last at the end of one.
fn glob_covers(parts: &[String], module: &str) -> bool {
    let starts = std::iter::once(0).chain(module.match_indices('.').map(|(i, _)| i + 1));
    starts.into_iter().any(|start| {
        let mut rest = &module[start..];
        for (i, part) in parts.iter().enumerate() {
            match if i == 0 { rest.starts_with(part.as_str()).then_some(0) } else { rest.find(part.as_str()) } {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.is_empty() || rest.starts_with('.') || parts.last().is_some_and(|p| p.is_empty())
    })
}

/// Whether an expression matches the start of a module's name, as `re.match` does; or of the stack of experts around it, which is
/// the module where experts are stacked. Names may have lost or got a prefix (`language_model.`) since the expression was
/// written, so that those before the layers may be missing; not all of them, for `layers` alone matches no name in Python.
fn regex_covers(of: &[Vec<Node>], module: &str) -> Option<bool> {
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = module.split('.').collect();
    let n_before = parts.iter().take_while(|p| **p != "layers" && !is_number(p)).count();
    let mut starts = vec![0];
    starts.extend((1..n_before.min(parts.len())).map(|n| parts[..n].iter().map(|p| p.len() + 1).sum::<usize>()));
    let mut ends = vec![module.len()];
    ends.extend(module.match_indices(".experts.").map(|(at, _)| at + ".experts".len()));
    if of.iter().flatten().any(looks_ahead) {
        // What must not be in a name is judged on the whole name.
        (starts, ends) = (vec![0], vec![module.len()]);
    }
    let mut steps = MAX_STEPS;
    for &start in starts.iter().filter(|&&s| s < module.len()) {
        for &end in ends.iter().filter(|&&e| e > start) {
            let text: Vec<char> = module[start..end].chars().collect();
            let found = any(of, &text, 0, &mut steps, &mut |_, _| true);
            if steps == 0 {
                return None;
            }
            if found {
                return Some(true);
            }
        }
    }
    Some(false)
}

fn looks_ahead(node: &Node) -> bool {
    match node {
        Node::Ahead { .. } => true,
        Node::Group(of) => of.iter().flatten().any(looks_ahead),
        Node::Repeat { of, .. } => looks_ahead(of),
        Node::Any | Node::Char(_) | Node::Set { .. } | Node::Start | Node::End => false,
    }
}

type Then<'a> = dyn FnMut(usize, &mut u32) -> bool + 'a;

fn any(of: &[Vec<Node>], text: &[char], at: usize, steps: &mut u32, then: &mut Then<'_>) -> bool {
    of.iter().any(|nodes| sequence(nodes, text, at, steps, then))
}

fn sequence(nodes: &[Node], text: &[char], at: usize, steps: &mut u32, then: &mut Then<'_>) -> bool {
    *steps = steps.saturating_sub(1);
    if *steps == 0 {
        return false;
    }
    let Some((first, rest)) = nodes.split_first() else { return then(at, steps) };
    let after = &mut |at: usize, steps: &mut u32| sequence(rest, text, at, steps, then);
    match first {
        Node::Start => at == 0 && after(at, steps),
        Node::End => at == text.len() && after(at, steps),
        Node::Any | Node::Char(_) | Node::Set { .. } => {
            text.get(at).is_some_and(|c| first.takes(*c)) && after(at + 1, steps)
        }
        Node::Group(of) => any(of, text, at, steps, after),
        Node::Ahead { negated, of } => any(of, text, at, steps, &mut |_, _| true) != *negated && after(at, steps),
        Node::Repeat { of, min, max } => repeat(of, (*min, *max), text, at, steps, after),
    }
}

fn repeat(of: &Node, (min, max): (u32, u32), text: &[char], at: usize, steps: &mut u32, then: &mut Then<'_>) -> bool {
    if min == 0 && then(at, steps) {
        return true;
    }
    if max == 0 {
        return false;
    }
    sequence(std::slice::from_ref(of), text, at, steps, &mut |next, steps| {
        // A repetition of nothing would not end.
        (next > at || min > 0) && repeat(of, (min.saturating_sub(1), max - 1), text, next, steps, then)
    })
}

impl Node {
    fn takes(&self, c: char) -> bool {
        match self {
            Node::Any => true,
            Node::Char(own) => *own == c,
            Node::Set { negated, ranges } => ranges.iter().any(|(a, b)| (*a..=*b).contains(&c)) != *negated,
            Node::Start | Node::End | Node::Group(_) | Node::Ahead { .. } | Node::Repeat { .. } => false,
        }
    }
}

/// Reads what this project has met in published lists; `None` for everything else.
struct Parser<'a> {
    chars: &'a [char],
    at: usize,
}

impl Parser<'_> {
    fn next_if(&mut self, c: char) -> bool {
        let found = self.chars.get(self.at) == Some(&c);
        self.at += usize::from(found);
        found
    }

    fn alternatives(&mut self, depth: u32) -> Option<Vec<Vec<Node>>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut all = vec![Vec::new()];
        while let Some(&c) = self.chars.get(self.at) {
            match c {
                ')' => break,
                '|' => {
                    self.at += 1;
                    all.push(Vec::new());
                }
                _ => {
                    let node = self.node(depth)?;
                    let node = self.repeated(node)?;
                    all.last_mut()?.push(node);
                }
            }
        }
        Some(all)
    }

    fn node(&mut self, depth: u32) -> Option<Node> {
        let c = *self.chars.get(self.at)?;
        self.at += 1;
        match c {
            '.' => Some(Node::Any),
            '^' => Some(Node::Start),
            '$' => Some(Node::End),
            '(' => {
                let kind = if self.next_if('?') { Some(*self.chars.get(self.at)?) } else { None };
                self.at += usize::from(kind.is_some());
                let of = self.alternatives(depth + 1)?;
                self.next_if(')').then_some(())?;
                match kind {
                    None | Some(':') => Some(Node::Group(of)),
                    Some('=') => Some(Node::Ahead { negated: false, of }),
                    Some('!') => Some(Node::Ahead { negated: true, of }),
                    Some(_) => None,
                }
            }
            '[' => self.set(),
            '\\' => {
                let c = *self.chars.get(self.at)?;
                self.at += 1;
                match class(c) {
                    Some((negated, ranges)) => Some(Node::Set { negated, ranges }),
                    None if c.is_ascii_alphanumeric() => None,
                    None => Some(Node::Char(c)),
                }
            }
            '*' | '+' | '?' | '{' => None,
            _ => Some(Node::Char(c)),
        }
    }

    /// What follows `[`.
    fn set(&mut self) -> Option<Node> {
        let negated = self.next_if('^');
        let mut ranges = Vec::new();
        loop {
            let mut c = *self.chars.get(self.at)?;
            self.at += 1;
            match c {
                ']' if !ranges.is_empty() => return Some(Node::Set { negated, ranges }),
                '\\' => {
                    c = *self.chars.get(self.at)?;
                    self.at += 1;
                    match class(c) {
                        Some((false, mut more)) => {
                            ranges.append(&mut more);
                            continue;
                        }
                        Some((true, _)) => return None,
                        None if c.is_ascii_alphanumeric() => return None,
                        None => {}
                    }
                }
                _ => {}
            }
            let is_range =
                self.chars.get(self.at) == Some(&'-') && self.chars.get(self.at + 1).is_some_and(|&e| e != ']');
            if is_range {
                let end = self.chars[self.at + 1];
                self.at += 2;
                if end == '\\' {
                    return None;
                }
                ranges.push((c, end));
            } else {
                ranges.push((c, c));
            }
        }
    }

    fn repeated(&mut self, node: Node) -> Option<Node> {
        let (min, max) = match self.chars.get(self.at) {
            Some('*') => (0, u32::MAX),
            Some('+') => (1, u32::MAX),
            Some('?') => (0, 1),
            Some('{') => {
                let close = self.at + self.chars[self.at..].iter().position(|&c| c == '}')?;
                let text: String = self.chars[self.at + 1..close].iter().collect();
                self.at = close;
                let number = |t: &str| t.parse::<u32>().ok().filter(|&n| n <= 1000);
                match text.split_once(',') {
                    None => (number(&text)?, number(&text)?),
                    Some((min, "")) => (number(min)?, u32::MAX),
                    Some((min, max)) => (number(min)?, number(max)?),
                }
            }
            _ => return Some(node),
        };
        self.at += 1;
        // Whether as much or as little as possible is tried first does not change whether there is a match.
        self.next_if('?');
        Some(Node::Repeat { of: Box::new(node), min, max })
    }
}

/// `\d`, `\w`, `\s` and their complements: negated, and the ranges.
fn class(c: char) -> Option<(bool, Vec<(char, char)>)> {
    let ranges = match c.to_ascii_lowercase() {
        'd' => vec![('0', '9')],
        'w' => vec![('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')],
        's' => vec![(' ', ' '), ('\t', '\t'), ('\n', '\n')],
        _ => return None,
    };
    Some((c.is_ascii_uppercase(), ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, module: &str) -> Option<bool> {
        Pattern::new(pattern).covers(module)
    }

    #[test]
    fn patterns_cover_modules_and_what_is_within() {
        let module = "model.layers.3.mlp.experts.0.up_proj";
        for pattern in [
            "model.layers.3.mlp.experts.0.up_proj",
            "up_proj",
            "model.layers.3.mlp",
            "experts",
            "model.layers.*.mlp.experts",
            "model.layers.3*",
            "*.up_proj",
            "*mlp.experts*",
            "model.layers.3.*",
            "re:.*mlp.experts.*",
            "re:.*experts.*(gate|up)_proj.*",
            r"re:model\.layers\.[0-9]+.*",
            r"re:^model\.layers\.\d+\.mlp\.experts\.\d+\.(gate|up|down)_proj$",
            r"re:.*\.experts\.\d+\.(?:gate_proj|up_proj)$",
            r"re:.*mlp\.experts$",
            r"re:model.layers.(1|2|3)\.mlp\.[^g]\w+\.\d{1,3}.*",
            "re:^(?!.*self_attn).*$",
            r"re:language_model\.model\.layers\.\d+\.mlp.*|re:nothing|model.*?up_proj",
        ] {
            assert_eq!(covers(pattern, module), Some(true), "{pattern}");
        }
        for pattern in [
            "lm_head",
            "gate",
            "proj",
            "model.layers.30",
            "model.layers.*.self_attn",
            "model.layers.3.mlp.gate*",
            "re:.*self_attn.*",
            // Kimi K2 Thinking's.
            r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
            r"re:.*mlp\.gate$",
            "re:^(?!.*experts).*$",
            "re:experts",
            r"re:layers\.3\.",
            r"re:.*mlp\.experts\.0$",
            r"re:.*layers\.3$.+",
            r"re:.*layers\.[4-9]\..*",
        ] {
            assert_eq!(covers(pattern, module), Some(false), "{pattern}");
        }
        // A pattern with the prefix of a wrapper, and one without it.
        let nested = "model.language_model.layers.3.mlp.experts.0.up_proj";
        assert_eq!(covers(r"re:^language_model\.layers\.3.*", nested), Some(true));
        assert_eq!(covers("re:^mlp.*", nested), Some(false));
    }

    #[test]
    fn expressions_that_are_not_understood_tell_nothing() {
        for pattern in [r"re:(?P<name>a)", "re:(a", "re:a)", "re:*a", r"re:\bgate", "re:[", "re:a{2", r"re:(a)\1"] {
            assert_eq!(covers(pattern, "a.b"), None, "{pattern}");
        }
        let deep = format!("re:{}a{}", "(".repeat(100), ")".repeat(100));
        assert_eq!(covers(&deep, "a"), None);
        // Exponentially many ways to fail.
        assert_eq!(covers("re:((a*)*)*b", &"a".repeat(60)), None);
    }
}
