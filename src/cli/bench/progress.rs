//! What a run shows of itself while it lasts, on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One line that changes on a terminal; elsewhere a line now and then.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    last: Instant,
}

/// Between two lines where there is no terminal.
const QUIET: Duration = Duration::from_secs(5);

impl Progress {
    /// Begins to show.
    #[must_use]
    pub fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            last: Instant::now(),
        }
    }

    /// Says what begins now.
    #[expect(clippy::print_stderr, reason = "progress is shown on stderr")]
    pub fn step(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(text.to_owned());
                bar.tick();
            }
            None => eprintln!("{text}"),
        }
        self.last = Instant::now();
    }

    /// Says how far it is; may be called as often as one likes.
    pub fn update(&mut self, text: impl FnOnce() -> String) {
        if self.bar.is_some() || self.last.elapsed() >= QUIET {
            self.step(&text());
        }
    }

    /// Clears the line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
