//! Saying what is being done while it is done: spinners on a terminal, plain lines elsewhere, JSON lines for programs.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

const NAME_WIDTH: usize = 24;

/// How progress is told.
#[derive(Clone)]
pub enum Progress {
    /// Lines that replace themselves.
    Terminal(MultiProgress),
    /// A line for everything that has ended.
    Plain,
    /// A JSON object a line.
    Json,
    /// Nothing: what is done is told by somebody else.
    Silent,
}

/// Something that has begun. One that is dropped was given up.
pub struct Task {
    progress: Progress,
    name: String,
    begun: Instant,
    bar: Option<ProgressBar>,
    ended: bool,
}

impl Progress {
    /// What suits the standard output.
    pub fn detect(json: bool) -> Self {
        match (json, std::io::stdout().is_terminal()) {
            (true, _) => Progress::Json,
            (false, true) => Progress::Terminal(MultiProgress::new()),
            (false, false) => Progress::Plain,
        }
    }

    /// Begins something.
    pub fn begin(&self, name: &str) -> Task {
        let bar = match self {
            Progress::Terminal(bars) => {
                let style = ProgressStyle::with_template("  {spinner} {prefix} {elapsed:>6} {msg}");
                let bar = bars.add(ProgressBar::new_spinner());
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.set_prefix(format!("{name:<NAME_WIDTH$}"));
                bar.enable_steady_tick(Duration::from_millis(100));
                Some(bar)
            }
            _ => None,
        };
        Task { progress: self.clone(), name: name.to_owned(), begun: Instant::now(), bar, ended: false }
    }

    /// A line of text for people.
    pub fn say(&self, text: &str) {
        match self {
            // Above the bars, which are on standard error: what is said can be piped on.
            Progress::Terminal(bars) => bars.suspend(|| print(text)),
            Progress::Plain => print(text),
            Progress::Json | Progress::Silent => {}
        }
    }

    /// An object for programs.
    pub fn tell(&self, object: &Value) {
        if matches!(self, Progress::Json) {
            print(&object.to_string());
        }
    }
}

impl Task {
    /// It has ended well; the note says with what.
    pub fn done(mut self, note: &str) {
        self.end("done", note);
    }

    /// It has ended well, and took this long by another clock than ours.
    pub fn done_in(mut self, seconds: f64) {
        self.ended = true;
        self.report("done", seconds, "");
    }

    /// It has failed; the note says why.
    pub fn failed(mut self, note: &str) {
        self.end("failed", note);
    }

    fn end(&mut self, outcome: &str, note: &str) {
        self.ended = true;
        self.report(outcome, self.begun.elapsed().as_secs_f64(), note);
    }

    fn report(&self, outcome: &str, seconds: f64, note: &str) {
        let mark = if outcome == "done" { ' ' } else { '!' };
        let line = format!("{mark} {:<NAME_WIDTH$} {seconds:>6.2} s  {note}", self.name);
        match (&self.progress, &self.bar) {
            (Progress::Terminal(bars), Some(bar)) => {
                bar.finish_and_clear();
                bars.suspend(|| print(line.trim_end()));
            }
            (Progress::Json, _) => {
                print(&json!({"what": self.name, "outcome": outcome, "seconds": seconds, "note": note}).to_string());
            }
            (Progress::Silent, _) => {}
            _ => print(line.trim_end()),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.ended {
            self.end("given up", "");
        }
    }
}

/// Writes a line, and not at all to a reader that has gone.
pub fn print(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
