//! JSON with positions: every value knows its bytes in the user's file.
//!
//! Values are kept as spans of the text and parsed when they are read, one level at a time, so that a hostile file
//! costs little more than its own size: the text, and for each element of a list that is being read the 24 bytes of a
//! [`Json`]. Where a value stands is put into words only for a message.

use moec_ir::diag::{Diagnostic, Origin};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;

/// The diagnostic codes of one kind of document.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// What the document is called in messages.
    pub what: &'static str,
    /// Not JSON at all.
    pub not_json: &'static str,
    /// A required key is absent.
    pub missing_key: &'static str,
    /// A value of the wrong JSON type.
    pub key_type: &'static str,
    /// A value out of range.
    pub value_range: &'static str,
}

/// Codes of a `config.json`.
pub const CONFIG: Codes = Codes {
    what: "config",
    not_json: "config-not-json",
    missing_key: "missing-config-key",
    key_type: "config-key-type",
    value_range: "config-value-range",
};

/// Codes of a layer graph.
pub const GRAPH: Codes = Codes {
    what: "layer graph",
    not_json: "graph-not-json",
    missing_key: "missing-graph-key",
    key_type: "graph-key-type",
    value_range: "graph-value-range",
};

#[derive(Debug)]
struct Doc {
    file: String,
    text: String,
    codes: Codes,
}

/// What the values of one list or object have in common.
#[derive(Debug)]
struct Container {
    doc: Arc<Doc>,
    /// The list or object itself; `None` around the top value.
    node: Option<Json>,
}

/// One JSON value of a document.
#[derive(Clone, Debug)]
pub struct Json {
    within: Arc<Container>,
    /// First byte of the value in the text.
    start: u32,
    /// Byte behind the value.
    end: u32,
    /// Which element of a list it is.
    index: u32,
}

/// Longest text that is read: spans are 32 bits, and no config is longer.
pub const MAX_TEXT: u64 = 256 << 20;

/// The members of a JSON object, in file order.
#[derive(Clone, Debug)]
pub struct Object {
    node: Json,
    members: Vec<(String, Json)>,
}

impl Json {
    /// The top value of `text`, which is shown as `file` in messages.
    ///
    /// `NaN` and `Infinity`, which Python writes although JSON has no such words, are read as strings.
    ///
    /// # Errors
    /// The document's `not_json` code.
    pub fn parse(file: &str, text: String, codes: Codes) -> Result<Json, Diagnostic> {
        let text = match quote_python_numbers(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(quoted) => quoted,
        };
        if text.len() as u64 > MAX_TEXT {
            return Err(Diagnostic::input(
                codes.not_json,
                format!("{file} is {} bytes long; no {} is longer than {MAX_TEXT}", text.len(), codes.what),
            ));
        }
        match serde_json::from_str::<&RawValue>(&text) {
            Ok(raw) => {
                let (start, end) = span_of(&text, raw.get());
                let doc = Arc::new(Doc { file: file.to_string(), text, codes });
                Ok(Json { within: Arc::new(Container { doc, node: None }), start, end, index: 0 })
            }
            Err(e) => {
                let at = byte_at(&text, e.line(), e.column());
                let origin = Origin { file: file.to_string(), start: at, end: (at + 1).min(text.len()).max(at) };
                let reason = e.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                Err(Diagnostic::input(
                    codes.not_json,
                    format!("{file} is not JSON: {reason} (line {}, column {})", e.line(), e.column()),
                )
                .at(Some(origin)))
            }
        }
    }

    /// Where the value stands.
    pub fn origin(&self) -> Origin {
        Origin { file: self.file().to_string(), start: self.start as usize, end: self.end as usize }
    }

    /// The file's name as the user gave it.
    pub fn file(&self) -> &str {
        &self.doc().file
    }

    fn doc(&self) -> &Doc {
        &self.within.doc
    }

    /// Path from the top in the user's words, `text_config.hidden_size`; long keys are cut.
    pub fn path(&self) -> String {
        let mut steps = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.within.node {
            steps.push(if parent.is_list() { format!("[{}]", at.index) } else { format!(".{}", at.key()) });
            at = parent;
        }
        let path: String = steps.into_iter().rev().collect();
        if path.is_empty() { "the top value".to_string() } else { path.trim_start_matches('.').to_string() }
    }

    /// The key of a member of an object, read from the text before the value.
    fn key(&self) -> String {
        let before = self.doc().text[..self.start as usize].trim_end();
        let before = before.strip_suffix(':').unwrap_or(before).trim_end();
        let inside = before.strip_suffix('"').unwrap_or(before);
        // Within a string a quote has an odd number of backslashes before it.
        let opens = |&(at, _): &(usize, &str)| (at - inside[..at].trim_end_matches('\\').len()).is_multiple_of(2);
        let quote = inside.rmatch_indices('"').find(opens).map_or(0, |(at, _)| at);
        let key = serde_json::from_str(&before[quote..]).unwrap_or_else(|_| before[quote..].to_string());
        cut(&key).into_owned()
    }

    /// The value as written.
    pub fn raw(&self) -> &str {
        &self.doc().text[self.start as usize..self.end as usize]
    }

    /// The value as written, cut for messages.
    pub fn shown(&self) -> String {
        cut(self.raw()).into_owned()
    }

    /// Whether the value is `null`.
    pub fn is_null(&self) -> bool {
        self.raw() == "null"
    }

    /// Whether the value is a list.
    pub fn is_list(&self) -> bool {
        self.raw().starts_with('[')
    }

    /// Whether the value is an object.
    pub fn is_object(&self) -> bool {
        self.raw().starts_with('{')
    }

    /// Whether the value is a string.
    pub fn is_string(&self) -> bool {
        self.raw().starts_with('"')
    }

    /// A type error: `expected` says what should stand here.
    pub fn wrong_type(&self, expected: &str) -> Diagnostic {
        Diagnostic::input(
            self.doc().codes.key_type,
            format!("`{}` in {} is {}; expected {expected}", self.path(), self.file(), self.shown()),
        )
        .at(Some(self.origin()))
    }

    /// A range error: `expected` says what the value may be.
    pub fn out_of_range(&self, expected: &str) -> Diagnostic {
        Diagnostic::input(
            self.doc().codes.value_range,
            format!("`{}` in {} is {}; it must be {expected}", self.path(), self.file(), self.shown()),
        )
        .at(Some(self.origin()))
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// The codes for a wrong type and for a value out of range.
    pub fn whole(&self, range: std::ops::RangeInclusive<u64>) -> Result<u64, Diagnostic> {
        let raw = self.raw();
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let digits = raw.strip_prefix('-').unwrap_or(raw);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.wrong_type(&expected));
        }
        match raw.parse::<u64>() {
            Ok(n) if range.contains(&n) => Ok(n),
            Ok(_) | Err(_) => Err(self.out_of_range(&expected)),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// The codes for a wrong type and for a value out of range.
    pub fn real(&self) -> Result<f64, Diagnostic> {
        let raw = self.raw();
        if !raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            return Err(self.wrong_type("a number"));
        }
        match raw.parse::<f64>() {
            Ok(x) if x.is_finite() && (x as f32).is_finite() => Ok(x),
            Ok(_) | Err(_) => Err(self.out_of_range("a number that a 32-bit float can hold")),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// The code for a wrong type.
    pub fn flag(&self) -> Result<bool, Diagnostic> {
        match self.raw() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// The code for a wrong type.
    pub fn string(&self) -> Result<String, Diagnostic> {
        serde_json::from_str(self.raw()).map_err(|_| self.wrong_type("a string"))
    }

    /// A list.
    ///
    /// # Errors
    /// The code for a wrong type.
    pub fn list(&self) -> Result<Vec<Json>, Diagnostic> {
        if !self.is_list() {
            return Err(self.wrong_type("a list"));
        }
        let mut items = Vec::with_capacity(self.count().map_err(|_| self.wrong_type("a list"))?);
        let within = self.inside();
        let read = each(self.raw(), |_, raw| {
            let (start, end) = span_of(&within.doc.text, raw);
            items.push(Json { within: within.clone(), start, end, index: items.len() as u32 });
        });
        read.map_err(|_| self.wrong_type("a list"))?;
        Ok(items)
    }

    /// An object. Of repeated keys the last one counts, as in Python.
    ///
    /// # Errors
    /// The code for a wrong type.
    pub fn object(&self) -> Result<Object, Diagnostic> {
        if !self.is_object() {
            return Err(self.wrong_type("an object"));
        }
        let mut members = Vec::with_capacity(self.count().map_err(|_| self.wrong_type("an object"))?);
        let within = self.inside();
        let read = each(self.raw(), |key, raw| {
            let (start, end) = span_of(&within.doc.text, raw);
            members.push((key, Json { within: within.clone(), start, end, index: 0 }));
        });
        read.map_err(|_| self.wrong_type("an object"))?;
        Ok(Object { node: self.clone(), members })
    }

    /// How many elements a list or an object has, so that their memory is asked for once.
    fn count(&self) -> serde_json::Result<usize> {
        let mut n = 0;
        each(self.raw(), |_, _| n += 1)?;
        Ok(n)
    }

    fn inside(&self) -> Arc<Container> {
        Arc::new(Container { doc: self.within.doc.clone(), node: Some(self.clone()) })
    }
}

impl Object {
    /// The object as a value.
    pub fn node(&self) -> &Json {
        &self.node
    }

    /// The members in file order.
    pub fn members(&self) -> &[(String, Json)] {
        &self.members
    }

    /// The value of `key`; `None` when it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.members.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v).filter(|v| !v.is_null())
    }

    /// The value of `key`, null included.
    pub fn get_or_null(&self, key: &str) -> Option<&Json> {
        self.members.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// The code for a missing key.
    pub fn require(&self, key: &str) -> Result<&Json, Diagnostic> {
        self.get(key).ok_or_else(|| self.missing(&[key]))
    }

    /// The error for the absence of all of `keys`, which mean the same.
    pub fn missing(&self, keys: &[&str]) -> Diagnostic {
        let names: Vec<String> = keys.iter().map(|k| format!("`{k}`")).collect();
        let place = match self.node.within.node {
            None => String::new(),
            Some(_) => format!("`{}` of ", self.node.path()),
        };
        let codes = &self.node.doc().codes;
        let start = self.node.start as usize;
        let mut d =
            Diagnostic::input(codes.missing_key, format!("{place}{} has no {}", self.node.file(), names.join(" or ")))
                .at(Some(Origin { file: self.node.file().to_string(), start, end: start + 1 }));
        let members = || self.members.iter().map(|(m, _)| m.as_str());
        if let Some(near) = keys.iter().find_map(|k| nearest(k, members(), 2)) {
            d = d.help(format!("there is a key `{near}`; is it meant to be {}?", names[0]));
        }
        d
    }
}

/// The candidate with the fewest edits from `word`, when there are at most `most`. Lengths are compared first, so that
/// long words cost nothing.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>, most: usize) -> Option<&'a str> {
    candidates
        .filter(|c| c.len().abs_diff(word.len()) <= most)
        .map(|c| (strsim::levenshtein(c, word), c))
        .filter(|(d, _)| *d <= most)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

fn span_of(text: &str, part: &str) -> (u32, u32) {
    // `part` is a slice of `text`: serde_json borrows raw values. The text is no longer than MAX_TEXT.
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    (start as u32, (start + part.len()) as u32)
}

/// The first 40 characters, for messages.
fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(40) {
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

/// Byte offset of a line and column as serde_json counts them: from 1, columns in bytes.
fn byte_at(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (start + column.saturating_sub(1)).min(text.len())
}

/// Puts the words `NaN`, `Infinity` and `-Infinity` into quotes of the same length.
fn quote_python_numbers(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let replaced = [("-Infinity", "\"-Infini\""), ("Infinity", "\"Infini\""), ("NaN", "\"N\"")]
            .into_iter()
            .find(|(word, _)| !in_string && rest.starts_with(word));
        if let Some((word, quoted)) = replaced {
            out.push_str(quoted);
            rest = &rest[word.len()..];
            continue;
        }
        let mut taken = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\\' if in_string => taken += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    Cow::Owned(out)
}

/// Gives `take` the key (empty in a list) and the text of everything directly in a list or an object.
fn each(raw: &str, take: impl FnMut(String, &str)) -> serde_json::Result<()> {
    struct V<F>(F);
    impl<'de, F: FnMut(String, &str)> Visitor<'de> for V<F> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list or an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                (self.0)(key, value.get());
            }
            Ok(())
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(value) = seq.next_element::<&'de RawValue>()? {
                (self.0)(String::new(), value.get());
            }
            Ok(())
        }
    }
    let mut reader = serde_json::Deserializer::from_str(raw);
    reader.deserialize_any(V(take))?;
    reader.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse("c.json", text.to_string(), CONFIG).expect("text should be JSON")
    }

    #[test]
    fn values_know_their_bytes() {
        let top = parse(r#"{ "a": {"b": [1, 22] } }"#).object().expect("object");
        let b = top.get("a").expect("a").object().expect("object").get("b").expect("b").list().expect("list");
        assert_eq!(b[1].origin(), Origin { file: "c.json".into(), start: 17, end: 19 });
        assert_eq!(b[1].path(), "a.b[1]");
    }

    #[test]
    fn keys_in_paths_are_as_written() {
        let top = parse(r#"{"x": 1, "a \"b\\" : {"\\": [{"é": 2}]}}"#).object().expect("object");
        let a = top.get("a \"b\\").expect("a").object().expect("object");
        let list = a.get("\\").expect("backslash").list().expect("list");
        let last = list[0].object().expect("object");
        assert_eq!(last.get("é").expect("é").path(), "a \"b\\.\\[0].é");
        assert_eq!(top.node().path(), "the top value");
    }

    #[test]
    fn a_value_is_small() {
        assert_eq!(size_of::<Json>(), 24);
    }

    #[test]
    fn python_infinity_is_not_an_error_until_it_is_read_as_a_number() {
        let top = parse(r#"{"a": [0.0, Infinity], "s": "NaN \" Infinity", "b": -Infinity, "c": NaN, "d": 5}"#);
        let top = top.object().expect("object");
        assert_eq!(top.get("s").expect("s").string().expect("string"), "NaN \" Infinity");
        assert_eq!(top.get("d").expect("d").whole(0..=9), Ok(5));
        assert_eq!(top.get("c").expect("c").real().expect_err("NaN").code, "config-key-type");
    }

    #[test]
    fn whole_numbers_are_bounded() {
        let v = |text: &str| parse(text).whole(1..=100).map_err(|d| d.code);
        assert_eq!(v("7"), Ok(7));
        for (text, code) in [("0", "range"), ("-3", "range"), ("1e3", "type"), ("7.0", "type"), ("null", "type")] {
            assert!(v(text).expect_err(text).ends_with(code), "{text}");
        }
        assert_eq!(v(&"9".repeat(500)).expect_err("huge"), "config-value-range");
    }

    #[test]
    fn deep_nesting_is_read_without_recursion() {
        let deep = format!("{{\"a\": {}{}, \"b\": 1}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(parse(&deep).object().expect("object").get("b").expect("b").whole(0..=1), Ok(1));
    }

    #[test]
    fn the_place_of_a_syntax_error_is_given() {
        let d = Json::parse("c.json", "{\n \"a\": ]}".to_string(), CONFIG).expect_err("not JSON");
        assert_eq!((d.code.as_str(), d.origin.map(|o| o.start)), ("config-not-json", Some(8)));
    }
}
