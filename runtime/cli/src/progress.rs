//! Progress of long work: a spinner on a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A spinner on standard error; invisible when that is not a terminal. Removed when dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Starts with this text.
    pub fn start(text: &str) -> Progress {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(text.to_string());
        Progress(bar)
    }

    /// Says what begins now.
    pub fn say(&self, text: &str) {
        self.0.set_message(text.to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
