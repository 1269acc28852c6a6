//! Colours for verdicts, where they are wanted.

use std::io;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use clap::ColorChoice;
use privet_report::{Ending, Verdict};

/// Whether words are painted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paint {
    /// They are left as they are.
    Plain,
    /// Verdicts are painted with the escape sequences of ANSI.
    Ansi,
}

impl Paint {
    /// What `--color`, `NO_COLOR` and its relatives, and the kind of standard output make of it.
    pub fn on_stdout(choice: ColorChoice) -> Self {
        let choice = match choice {
            ColorChoice::Auto => AutoStream::choice(&io::stdout()),
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        };
        if choice == anstream::ColorChoice::Never { Self::Plain } else { Self::Ansi }
    }

    /// `word` in the colour of a verdict.
    pub(crate) fn verdict(self, verdict: Verdict, word: &str) -> String {
        let colour = match verdict {
            Verdict::Pass => AnsiColor::Green,
            Verdict::Fail | Verdict::Error => AnsiColor::Red,
            Verdict::Timeout => AnsiColor::Magenta,
            Verdict::Skip => AnsiColor::Cyan,
        };
        self.painted(colour, word)
    }

    /// `word` in the colour of an end: what is neither red nor simply green is yellow.
    pub(crate) fn ending(self, ending: &Ending, word: &str) -> String {
        if ending.quarantined.is_some() || ending.surprise.is_some() || ending.is_flaky() {
            return self.painted(AnsiColor::Yellow, word);
        }
        self.verdict(ending.report.verdict, word)
    }

    fn painted(self, colour: AnsiColor, word: &str) -> String {
        match self {
            Paint::Plain => word.to_owned(),
            Paint::Ansi => {
                let style = Style::new().bold().fg_color(Some(colour.into()));
                format!("{style}{word}{style:#}")
            }
        }
    }
}
