//! A terminal with a picture at the bottom that is redrawn in place, and a log that scrolls away above it.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As everything else.
    Plain,
    /// In the background.
    Dim,
    /// What matters.
    Bold,
    /// Version 1.
    V1,
    /// Version 2, and what is well.
    V2,
    /// What is wrong.
    Bad,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
            Self::V1 => "\x1b[34m",
            Self::V2 => "\x1b[32m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// A line of differently styled pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<(Style, String)>);

impl Line {
    /// A line with one piece.
    pub fn new(style: Style, text: impl Into<String>) -> Self {
        Self::default().and(style, text)
    }

    /// A line without anything.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The same line with a piece more.
    pub fn and(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    /// The line for the terminal, cut off at `width` characters.
    fn show(&self, width: usize, color: bool) -> String {
        let (mut shown, mut left) = (String::new(), width);
        for (style, text) in &self.0 {
            let piece: String = text.chars().take(left).collect();
            left -= piece.chars().count();
            if color && *style != Style::Plain && !piece.is_empty() {
                shown.push_str(&format!("{}{piece}\x1b[0m", style.code()));
            } else {
                shown.push_str(&piece);
            }
        }
        shown
    }
}

/// The terminal.
pub struct Screen {
    live: bool,
    color: bool,
    picture: Vec<Line>,
    /// Lines of the picture that stand on the terminal now.
    drawn: usize,
}

impl Screen {
    /// Standard output: with a picture where it is a terminal.
    pub fn new() -> Self {
        let live = io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
        let color = live && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            live,
            color,
            picture: Vec::new(),
            drawn: 0,
        }
    }

    /// Whether there is a picture.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Characters in a line.
    pub fn width(&self) -> usize {
        let size = rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .map(|size| usize::from(size.ws_col));
        size.filter(|columns| *columns >= 20).unwrap_or(100)
    }

    /// Adds a line to the log.
    pub fn log(&mut self, line: &Line) {
        // Lines of the log may be longer than the terminal is wide: there they wrap by themselves.
        let text = format!("{}{}\n", self.erase(), line.show(usize::MAX, self.color));
        let picture = self.paint();
        write(&format!("{text}{picture}"));
    }

    /// Replaces the picture.
    pub fn draw(&mut self, picture: Vec<Line>) {
        if self.live && (picture != self.picture || self.drawn == 0) {
            let erase = self.erase();
            self.picture = picture;
            let picture = self.paint();
            write(&format!("{erase}{picture}"));
        }
    }

    /// Leaves the picture as it is, for what comes after it.
    pub fn leave(&mut self) {
        if self.drawn > 0 {
            write("\x1b[?25h\n");
        }
        self.picture.clear();
        self.drawn = 0;
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    fn paint(&mut self) -> String {
        if self.picture.is_empty() {
            return String::new();
        }
        // A line that wrapped would be two, and the next one would be drawn a line too low.
        let width = self.width();
        let lines = self
            .picture
            .iter()
            .map(|line| format!("{}\n", line.show(width, self.color)));
        self.drawn = self.picture.len();
        format!("\x1b[?25l{}", lines.collect::<String>())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}

fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    // Nobody looks any more where this fails.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Breaks `text` at blanks into lines of at most `width` characters; longer words are left whole.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_by_what_is_seen_not_by_codes() {
        let line = Line::new(Style::Bold, "äb")
            .and(Style::Plain, "cd")
            .and(Style::Bad, "ef");
        assert_eq!(line.show(3, true), "\x1b[1mäb\x1b[0mc");
        assert_eq!(line.show(100, false), "äbcdef");
    }

    #[test]
    fn text_is_broken_at_blanks() {
        assert_eq!(wrap("one two  three fourteen", 9), ["one two", "three", "fourteen"]);
        assert!(wrap("", 9).is_empty());
    }
}
