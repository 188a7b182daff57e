//! The part of a file that a diagnostic shows: lines around a place, or, where one is too long to be read, what is near it in its own.

use miette::{MietteError, MietteSpanContents, NamedSource, SourceCode, SourceSpan, SpanContents};

/// Bytes of a line that are still shown whole.
const LONGEST: usize = 300;

/// Bytes that are shown on either side of a place in a longer one, and of the place itself.
const AROUND: usize = 50;

/// A file and its text.
#[derive(Debug)]
pub struct Excerpt {
    source: NamedSource<String>,
}

impl Excerpt {
    pub fn new(file: &str, text: String) -> Excerpt {
        Excerpt { source: NamedSource::new(file, text) }
    }
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let whole = self.source.read_span(span, before, after)?;
        // Without lines around it is asked for the place alone: for its line and column.
        if before == 0 || whole.data().split(|b| *b == b'\n').all(|line| line.len() <= LONGEST) {
            return Ok(whole);
        }
        // A place may lie within a character: where a parser stopped, or in a file that has changed since.
        let text = self.source.inner();
        let place = text.floor_char_boundary(span.offset());
        let line_start = text[..place].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[place..].find('\n').map_or(text.len(), |i| place + i);
        let start = text.ceil_char_boundary(place.saturating_sub(AROUND).max(line_start));
        let end = text.floor_char_boundary((place + span.len().min(AROUND) + AROUND).min(line_end)).max(start);
        let line = text[..start].matches('\n').count();
        Ok(Box::new(MietteSpanContents::new_named(
            self.source.name().to_string(),
            &text.as_bytes()[start..end],
            (start, end - start).into(),
            line,
            start - line_start,
            1,
        )))
    }
}
