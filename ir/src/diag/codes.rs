//! The list of diagnostic codes. Each is a file of `pages/`, shown by `moec explain CODE`.

/// A code and its page.
#[derive(Clone, Copy, Debug)]
pub struct CodePage {
    /// Kebab-case code: what the user did.
    pub code: &'static str,
    /// Markdown: what it means, an example, what to do.
    pub page: &'static str,
}

/// Every diagnostic code, in alphabetical order; made from the files of `pages/` by the build script.
pub const CODES: &[CodePage] = include!(concat!(env!("OUT_DIR"), "/codes.rs"));

/// The page of `code`, if there is such a code.
pub fn code_page(code: &str) -> Option<&'static CodePage> {
    CODES.iter().find(|p| p.code == code)
}
