//! Names that are given once.

/// `name`, or `name` with the first number behind `separator` that makes it one that is not taken.
pub fn unique(name: &str, separator: char, taken: impl Fn(&str) -> bool) -> String {
    if !taken(name) {
        return name.to_string();
    }
    (2u32..).map(|i| format!("{name}{separator}{i}")).find(|n| !taken(n)).unwrap_or_else(|| name.to_string())
}
