//! The part of a file that a diagnostic shows: lines around a place, or, of a line that is too long to be read, what is near it.

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
        let text = self.source.inner();
        let line_start = text[..span.offset()].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[span.offset()..].find('\n').map_or(text.len(), |i| span.offset() + i);
        // Without lines around it is asked for the place alone: for its line and column.
        if line_end - line_start <= LONGEST || before == 0 {
            return Ok(whole);
        }
        let start = text.ceil_char_boundary(span.offset().saturating_sub(AROUND).max(line_start));
        let end = text.floor_char_boundary((span.offset() + span.len().min(AROUND) + AROUND).min(line_end));
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
