//! Patterns over module names, as the lists of quantised configs spell them.
//!
//! Four spellings are in use: a name (`lm_head`, `model.layers.3.mlp`), a part of a name (`gate`, `experts`), a glob
//! (`model.layers.*.self_attn*`, ModelOpt) and a regular expression (`re:.*mlp\.(gate|up)_proj$`, compressed-tensors,
//! matched from the start of a name as Python's `re.match` does). A pattern covers a module and all that is within it.

use fancy_regex::Regex;
use std::sync::Arc;

/// A pattern over module names.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As the config has it.
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Names, parts and globs: the pieces between `*`.
    Glob(Vec<String>),
    /// A regular expression of Python.
    Regex(Arc<Regex>),
    /// What cannot be told: no expression that is understood, or a class of modules.
    Unknown,
}

/// Longest expression that is read, in bytes.
const LONGEST: usize = 4096;

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Pattern {
        let kind = match text.strip_prefix("re:") {
            None => Kind::Glob(text.split('*').map(str::to_string).collect()),
            Some(expression) if expression.len() > LONGEST => Kind::Unknown,
            // Python matches from the start of a name, and knows the end of a text by another letter.
            Some(expression) => {
                let anchored = format!("^(?:{})", expression.replace(r"\Z", r"\z"));
                Regex::new(&anchored).map_or(Kind::Unknown, |r| Kind::Regex(Arc::new(r)))
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
        !matches!(self.kind, Kind::Unknown)
    }

    /// Whether the pattern covers `module` or a module around it; `None` when that cannot be told.
    pub fn covers(&self, module: &str) -> Option<bool> {
        match &self.kind {
            Kind::Glob(parts) => Some(glob_covers(parts, module)),
            Kind::Regex(r) => regex_covers(r, &self.text, module),
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
fn regex_covers(r: &Regex, text: &str, module: &str) -> Option<bool> {
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = module.split('.').collect();
    let n_before = parts.iter().take_while(|p| **p != "layers" && !is_number(p)).count();
    let mut starts = vec![0];
    starts.extend((1..n_before.min(parts.len())).map(|n| parts[..n].iter().map(|p| p.len() + 1).sum::<usize>()));
    let mut ends = vec![module.len()];
    ends.extend(module.match_indices(".experts.").map(|(at, _)| at + ".experts".len()));
    if text.contains("(?=") || text.contains("(?!") || text.contains("(?<") {
        // What must not be in a name is judged on the whole name.
        (starts, ends) = (vec![0], vec![module.len()]);
    }
    for &start in starts.iter().filter(|&&s| s < module.len()) {
        for &end in ends.iter().filter(|&&e| e > start) {
            match r.is_match(&module[start..end]) {
                Ok(true) => return Some(true),
                Ok(false) => {}
                // It takes more steps than a name is worth.
                Err(_) => return None,
            }
        }
    }
    Some(false)
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
            r"re:(?P<name>.*)\.(?i)EXPERTS\b.*\Z",
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
            r"re:(a)\1",
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
        for pattern in ["re:(a", "re:a)", "re:*a", "re:[", r"re:\400", "re:(?(1)a|b)x(?#", "re:(?P=gone)"] {
            assert_eq!(covers(pattern, "a.b"), None, "{pattern}");
        }
        let deep = format!("re:{}a{}", "(".repeat(100_000), ")".repeat(100_000));
        assert_eq!(covers(&deep, "a"), None);
        // Exponentially many ways to fail where steps are counted.
        assert_ne!(covers(r"re:(?=(a*)*b)((a*)*)*b", &"a".repeat(60)), Some(true));
    }
}
