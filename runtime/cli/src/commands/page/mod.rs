//! `moec explain --html`: what is decided for a layer, as one page that needs nothing else.

mod bars;
mod charts;
mod graph;

use super::decisions::Decided;
use super::explain::Options;
use moec::{Diagnostic, ModelLayer};
use moec_passes::allowed;
use moec_passes::plan::model::Model;

/// The page on a layer.
///
/// # Errors
/// `unsupported-op` for the CPU, where no times are modelled; those of the compiler.
pub fn page(layer: &ModelLayer, options: &Options) -> Result<String, Diagnostic> {
    let decided = Decided::of(&layer.graph, options, &allowed(options.compile.numerics))?.ok_or_else(|| {
        Diagnostic::machine("wrong-usage", format!("there is no page for `{}`", options.target.name))
            .note("times on the CPU are not modelled, so nothing is chosen by them")
            .help("name a GPU with --target")
    })?;
    let model = Model::new(decided.chip, options.target).with_routing(options.routing.clone());
    let facts = layer.facts.as_ref().map_or_else(String::new, |f| f.paragraph());
    let (name, chip, tokens) = (&layer.info.name, &decided.chip.name, options.tokens);
    let sections = [
        format!(
            "<h1>{}</h1>\n<p>{}</p>\n<p class=soft>Programs for {} on {}, moec {}. Every time on this page is modelled, none is measured. \
             {tokens} tokens, {} routing.</p>\n",
            escaped(name),
            escaped(&facts),
            options.target.name,
            escaped(chip),
            env!("CARGO_PKG_VERSION"),
            options.routing
        ),
        graph::section(&layer.graph, &decided),
        bars::launches(&decided, &model, tokens),
        charts::roofline(&decided, &model, tokens),
        bars::programs(&decided),
        charts::regret(&decided, options),
    ];
    let style = include_str!("style.css");
    Ok(format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<meta name=viewport content=\"width=device-width, initial-scale=1\">\n\
         <title>{}: {}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        escaped(name),
        escaped(chip),
        sections.concat()
    ))
}

/// Text within HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One of eight colours, by number.
pub fn colour(n: usize) -> String {
    format!("var(--c{})", n % 8)
}
