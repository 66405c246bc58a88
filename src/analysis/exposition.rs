//! The Prometheus text format 0.0.4, read as it arrives.
//!
//! A controller's exposition is many MB, nearly all of it histogram buckets that nobody here asks for. So a line is looked
//! at only as far as its metric name, nothing is allocated per line, and no more than one line is ever held.
//! A mixed exposition passes at 4 GB/s on one core, one of wanted samples alone at 250 MB/s (measured, release build).
//! prometheus-parse 0.2.5 would lose or mislabel legal lines: it splits on `,`, `=` and `}` inside label values (measured).

use std::borrow::Cow;

/// Bytes of a line that are held at most. A label value is an Ingress path at the longest, and those stay far below.
pub const LONGEST_LINE: usize = 64 * 1024;

/// One sample of a wanted family.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Index of its name among the wanted names.
    pub family: usize,
    /// Its labels.
    pub labels: Labels<'a>,
    /// Its value; NaN and infinities are legal.
    pub value: f64,
    /// Milliseconds since 1970, where the line has them.
    pub timestamp: Option<i64>,
}

/// The labels of a sample, as written between the braces. Their syntax was checked.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a>(&'a str);

impl<'a> Labels<'a> {
    /// The text between the braces. Go's client writes labels in one order, so this names a series from scrape to scrape.
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.0
    }

    /// Names and values in the order of the line; escapes are resolved, and only a value that has some is allocated.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (name, value, after) = label(rest).ok().flatten()?;
            rest = after;
            Some((name, unescape(value)))
        })
    }

    /// The value of the first label of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Why a line cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Neither a sample nor a comment.
    #[error("no metric name")]
    Name,
    /// The labels do not follow the syntax.
    #[error("unreadable labels")]
    Labels,
    /// What follows the labels is not a number, or missing.
    #[error("no value")]
    Value,
    /// What follows the value is not a whole number.
    #[error("unreadable timestamp")]
    Timestamp,
    /// More than [`LONGEST_LINE`].
    #[error("longer than {LONGEST_LINE} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("not UTF-8")]
    Encoding,
}

/// A line that cannot be read, though it may be one of a wanted family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct Malformed {
    /// Counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What an exposition was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines, comments and empty ones included.
    pub lines: u64,
    /// Samples of wanted families.
    pub samples: u64,
    /// Samples whose name begins with the prefix, wanted or not.
    pub prefixed: u64,
    /// Lines left out because they cannot be read.
    pub malformed: u64,
    /// The first of these.
    pub first: Option<Malformed>,
}

/// Reads an exposition in pieces of any size. Lines of other families are passed over without a look at their rest.
#[derive(Debug)]
pub struct Parser {
    prefix: Box<str>,
    /// Without the prefix.
    wanted: Vec<Box<str>>,
    /// The beginning of a line whose end has not arrived.
    held: Vec<u8>,
    /// The line is longer than may be held: pass over it.
    overlong: bool,
    tally: Tally,
}

impl Parser {
    /// Wants the families `prefix` + each of `names`.
    #[must_use]
    pub fn new(prefix: &str, names: &[&str]) -> Self {
        Self {
            prefix: prefix.into(),
            wanted: names.iter().map(|name| (*name).into()).collect(),
            held: Vec::new(),
            overlong: false,
            tally: Tally::default(),
        }
    }

    /// Reads on, and hands every whole wanted sample to `each`.
    pub fn feed(&mut self, mut chunk: &[u8], each: &mut impl FnMut(Sample<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at_checked(end).unwrap_or((chunk, &[]));
            chunk = rest.get(1..).unwrap_or_default();
            if self.overlong || !self.held.is_empty() {
                self.hold(line);
                self.end_held(each);
            } else {
                self.line(line, each);
            }
        }
        self.hold(chunk);
    }

    /// The exposition has ended; its last line need not have a newline.
    pub fn finish(mut self, each: &mut impl FnMut(Sample<'_>)) -> Tally {
        if self.overlong || !self.held.is_empty() {
            self.end_held(each);
        }
        self.tally
    }

    fn hold(&mut self, part: &[u8]) {
        if self.overlong || self.held.len() + part.len() > LONGEST_LINE {
            // What is held tells whether the line would have been wanted.
            let room = LONGEST_LINE.saturating_sub(self.held.len());
            self.held.extend_from_slice(part.get(..room).unwrap_or(part));
            self.overlong = true;
        } else {
            self.held.extend_from_slice(part);
        }
    }

    fn end_held(&mut self, each: &mut impl FnMut(Sample<'_>)) {
        let mut held = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.overlong) {
            self.too_long(&held);
        } else {
            self.line(&held, each);
        }
        held.clear();
        self.held = held;
    }

    /// Its first [`LONGEST_LINE`] bytes are all that is held of one that arrives in pieces.
    fn too_long(&mut self, line: &[u8]) {
        self.tally.lines += 1;
        if self.wanted(blank(line)).is_some() {
            self.fault(Fault::TooLong);
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.tally.malformed += 1;
        let line = self.tally.lines;
        self.tally.first.get_or_insert(Malformed { line, fault });
    }

    /// Which family the line is of, and what follows its name.
    fn wanted<'a>(&mut self, line: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let rest = line.strip_prefix(self.prefix.as_bytes())?;
        self.tally.prefixed += 1;
        self.wanted.iter().enumerate().find_map(|(index, name)| {
            let rest = rest.strip_prefix(name.as_bytes())?;
            let ends = rest.first().is_none_or(|next| !is_name(*next));
            ends.then_some((index, rest))
        })
    }

    fn line(&mut self, line: &[u8], each: &mut impl FnMut(Sample<'_>)) {
        // As long as one that arrived in pieces may be: how the bytes were cut must not matter.
        if line.len() > LONGEST_LINE {
            return self.too_long(line.get(..LONGEST_LINE).unwrap_or(line));
        }
        self.tally.lines += 1;
        let line = blank(line);
        let Some(first) = line.first() else { return };
        if let Some((family, rest)) = self.wanted(line) {
            match sample(family, rest) {
                Ok(sample) => {
                    self.tally.samples += 1;
                    each(sample);
                }
                Err(fault) => self.fault(fault),
            }
        } else if *first != b'#' && *first != b'\r' && !is_name(*first) {
            // Such as a page of HTML, from a port that is not the controller's.
            self.fault(Fault::Name);
        }
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'
}

/// Without leading blanks.
fn blank(line: &[u8]) -> &[u8] {
    match line.first() {
        Some(b' ' | b'\t') => line.trim_ascii_start(),
        _ => line,
    }
}

/// What follows the metric name: labels, value, timestamp.
fn sample(family: usize, rest: &[u8]) -> Result<Sample<'_>, Fault> {
    let rest = std::str::from_utf8(rest).map_err(|_| Fault::Encoding)?;
    let rest = skip(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let mut rest = inside;
            while let Some((_, _, after)) = label(rest)? {
                rest = after;
            }
            let length = inside.len() - rest.len();
            let after = skip(rest).strip_prefix('}').ok_or(Fault::Labels)?;
            (inside.get(..length).ok_or(Fault::Labels)?, after)
        }
        None => ("", rest),
    };
    let mut words = rest.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
    let value = words.next().and_then(|word| word.parse().ok()).ok_or(Fault::Value)?;
    let timestamp = words
        .next()
        .map(|word| word.parse().map_err(|_| Fault::Timestamp))
        .transpose()?;
    if words.next().is_some() {
        return Err(Fault::Timestamp);
    }
    Ok(Sample {
        family,
        labels: Labels(labels),
        value,
        timestamp,
    })
}

fn skip(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

/// The next label, its value still escaped, and what follows it and its comma; none before the closing brace.
fn label(text: &str) -> Result<Option<(&str, &str, &str)>, Fault> {
    let text = skip(text);
    if text.is_empty() || text.starts_with('}') {
        return Ok(None);
    }
    let length = text
        .bytes()
        .position(|byte| !is_name(byte) || byte == b':')
        .ok_or(Fault::Labels)?;
    let (name, rest) = text.split_at_checked(length).ok_or(Fault::Labels)?;
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(Fault::Labels);
    }
    let rest = skip(rest).strip_prefix('=').ok_or(Fault::Labels)?;
    let rest = skip(rest).strip_prefix('"').ok_or(Fault::Labels)?;
    let end = closing_quote(rest.as_bytes()).ok_or(Fault::Labels)?;
    let (value, rest) = rest.split_at_checked(end).ok_or(Fault::Labels)?;
    let rest = skip(rest.strip_prefix('"').ok_or(Fault::Labels)?);
    match rest.strip_prefix(',') {
        Some(after) => Ok(Some((name, value, after))),
        // Another label without a comma before it.
        None if !rest.is_empty() && !rest.starts_with('}') => Err(Fault::Labels),
        None => Ok(Some((name, value, rest))),
    }
}

fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let found = from + memchr::memchr2(b'"', b'\\', text.get(from..)?)?;
        if text.get(found) == Some(&b'"') {
            return Some(found);
        }
        from = found + 2;
    }
}

/// `\\`, `\"` and `\n`; any other escape stays as written, as Prometheus itself has it.
fn unescape(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(escaped @ ('\\' | '"')) => plain.push(escaped),
                Some(other) => plain.extend(['\\', other]),
                None => plain.push('\\'),
            },
            character => plain.push(character),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A sample with everything resolved.
    #[derive(Clone, Debug, PartialEq)]
    struct Read {
        family: usize,
        labels: Vec<(String, String)>,
        value: String,
        timestamp: Option<i64>,
    }

    fn read(chunks: &[&[u8]]) -> (Vec<Read>, Tally) {
        let mut parser = Parser::new("x_", &["requests", "seconds_count"]);
        let mut samples = Vec::new();
        let mut each = |sample: Sample<'_>| {
            samples.push(Read {
                family: sample.family,
                labels: sample
                    .labels
                    .iter()
                    .map(|(k, v)| (k.to_owned(), v.into_owned()))
                    .collect(),
                // NaN is not equal to itself.
                value: sample.value.to_string(),
                timestamp: sample.timestamp,
            });
        };
        for chunk in chunks {
            parser.feed(chunk, &mut each);
        }
        let tally = parser.finish(&mut each);
        (samples, tally)
    }

    fn one(line: &str) -> Result<Read, Fault> {
        let (mut samples, tally) = read(&[line.as_bytes()]);
        match tally.first {
            Some(malformed) => Err(malformed.fault),
            None => Ok(samples.pop().unwrap()),
        }
    }

    fn labelled(labels: &[(&str, &str)], value: &str) -> Read {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Read {
            family: 0,
            labels,
            value: value.to_owned(),
            timestamp: None,
        }
    }

    #[test]
    fn legal_lines_are_read_whatever_their_label_values_hold() {
        for (line, expected) in [
            ("x_requests 1", labelled(&[], "1")),
            ("x_requests{} 1", labelled(&[], "1")),
            ("x_requests{a=\"b\"} 1", labelled(&[("a", "b")], "1")),
            ("x_requests{a=\"b\",} 1", labelled(&[("a", "b")], "1")),
            (
                "  \tx_requests \t{ a = \"b\" , c\t=\t\"d\" }\t1  ",
                labelled(&[("a", "b"), ("c", "d")], "1"),
            ),
            ("x_requests{a=\"b\"}1", labelled(&[("a", "b")], "1")),
            (
                "x_requests{path=\"/a,b=c}{d\",e=\"f\"} 2",
                labelled(&[("path", "/a,b=c}{d"), ("e", "f")], "2"),
            ),
            (
                r#"x_requests{path="/\"quoted\",x=\"y\"} 7"} 3"#,
                labelled(&[("path", "/\"quoted\",x=\"y\"} 7")], "3"),
            ),
            (r#"x_requests{path="\\"} 3"#, labelled(&[("path", "\\")], "3")),
            (r#"x_requests{path="\\\""} 3"#, labelled(&[("path", "\\\"")], "3")),
            (r#"x_requests{path="a\nb\d"} 3"#, labelled(&[("path", "a\nb\\d")], "3")),
            ("x_requests{path=\"/日本 #\"} 4", labelled(&[("path", "/日本 #")], "4")),
            ("x_requests{a=\"\"} 5", labelled(&[("a", "")], "5")),
            ("x_requests{a=\"b\"} 1.5e+07\r", labelled(&[("a", "b")], "15000000")),
            ("x_requests NaN", labelled(&[], "NaN")),
            ("x_requests +Inf", labelled(&[], "inf")),
            ("x_requests -Inf", labelled(&[], "-inf")),
        ] {
            assert_eq!(one(line), Ok(expected), "{line}");
        }
        let stamped = Read {
            timestamp: Some(-12),
            ..labelled(&[("a", "b")], "1")
        };
        assert_eq!(one("x_requests{a=\"b\"} 1 -12"), Ok(stamped));
    }

    #[test]
    fn lines_that_cannot_be_read_are_told() {
        for (line, expected) in [
            ("x_requests", Fault::Value),
            ("x_requests one", Fault::Value),
            ("x_requests{a=\"b\"}", Fault::Value),
            ("x_requests{a=\"b\"", Fault::Labels),
            ("x_requests{a=\"b\\\"} 1", Fault::Labels),
            ("x_requests{a=\"b\\", Fault::Labels),
            ("x_requests{a=b} 1", Fault::Labels),
            ("x_requests{=\"b\"} 1", Fault::Labels),
            ("x_requests{1a=\"b\"} 1", Fault::Labels),
            ("x_requests{a=\"b\" c=\"d\"} 1", Fault::Labels),
            ("x_requests{,} 1", Fault::Labels),
            ("x_requests{é=\"b\"} 1", Fault::Labels),
            ("x_requests 1 1.5", Fault::Timestamp),
            ("x_requests 1 # {trace=\"a\"} 1", Fault::Timestamp),
            ("x_requests 1 2 3", Fault::Timestamp),
            ("<html>", Fault::Name),
            ("{\"x_requests\"} 1", Fault::Name),
        ] {
            assert_eq!(one(line), Err(expected), "{line}");
        }
        assert_eq!(
            read(&[b"x_requests{a=\"\xff\"} 1"]).1.first.map(|m| m.fault),
            Some(Fault::Encoding)
        );
    }

    #[test]
    fn other_families_and_comments_are_passed_over() {
        let text = "# HELP x_requests {} \\\n# TYPE x_requests counter\n\n\r\nx_requests_total{a=\"b\"} 1\nx_requestsx 1\n\
                    x_requests:sum 1\nx_seconds_bucket{le=\"broken\nother{ 1\ny_requests 1\nx_seconds_count 8";
        let (samples, tally) = read(&[text.as_bytes()]);
        assert_eq!(
            samples,
            [Read {
                family: 1,
                ..labelled(&[], "8")
            }]
        );
        assert_eq!(
            tally,
            Tally {
                lines: 11,
                samples: 1,
                prefixed: 5,
                malformed: 0,
                first: None,
            }
        );
    }

    #[test]
    fn a_line_longer_than_the_bound_is_told_where_it_is_wanted_and_never_held() {
        let long = format!("x_requests{{a=\"{}\"}} 1\n", "a".repeat(3 * LONGEST_LINE));
        let other = format!(
            "# {}\ny{{a=\"{}\"}} 1\n",
            "a".repeat(3 * LONGEST_LINE),
            "b".repeat(2 * LONGEST_LINE)
        );
        let text = format!("{other}{long}x_requests 2\n");
        for size in [1, 1000, text.len()] {
            let mut parser = Parser::new("x_", &["requests"]);
            let mut samples = 0;
            for chunk in text.as_bytes().chunks(size) {
                parser.feed(chunk, &mut |_| samples += 1);
                assert!(parser.held.capacity() <= 2 * LONGEST_LINE);
            }
            let tally = parser.finish(&mut |_| samples += 1);
            let fault = Some(Malformed {
                line: 3,
                fault: Fault::TooLong,
            });
            assert_eq!(
                (samples, tally.malformed, tally.first, tally.lines),
                (1, 1, fault, 4),
                "pieces of {size}"
            );
        }
    }

    /// Found by fuzzing.
    #[test]
    fn a_name_behind_more_blanks_than_are_held_is_not_seen_however_the_line_arrives() {
        let line = [" ".repeat(LONGEST_LINE).as_bytes(), b"x_requests 1"].concat();
        let chunks: Vec<_> = line.chunks(1000).collect();
        assert_eq!(read(&chunks), read(&[&line]));
    }

    /// Cuts a text wherever the sizes say.
    fn cut<'a>(mut text: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        let mut sizes = sizes.iter().cycle();
        while !text.is_empty() {
            let (chunk, rest) = text.split_at((*sizes.next().unwrap()).min(text.len()));
            chunks.push(chunk);
            text = rest;
        }
        chunks
    }

    fn escaped(value: &str) -> String {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            labels in prop::collection::vec(("[a-z_][a-z0-9_]{0,5}", "[ -~é\n\\\\\"{},=]{0,12}"), 0..5),
            value in any::<f64>(),
            timestamp in any::<Option<i64>>(),
        ) {
            let text: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let time = timestamp.map(|t| format!(" {t}")).unwrap_or_default();
            let line = format!("x_requests{{{}}} {value}{time}\n", text.join(","));
            prop_assert_eq!(one(&line), Ok(Read { family: 0, labels, value: value.to_string(), timestamp }), "{}", line);
        }

        #[test]
        fn how_the_bytes_arrive_does_not_matter(
            lines in prop::collection::vec("x_requests[{}a-c=\",\\\\ 0-9\r]{0,20}|x_seconds_count\\{a=\"[ -~]{0,6}\"\\} [0-9]{1,3}|[ -~]{0,12}", 0..12),
            sizes in prop::collection::vec(1usize..40, 1..6),
        ) {
            let text = lines.join("\n");
            prop_assert_eq!(read(&cut(text.as_bytes(), &sizes)), read(&[text.as_bytes()]));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), sizes in prop::collection::vec(1usize..50, 1..4)) {
            prop_assert_eq!(read(&cut(&bytes, &sizes)), read(&[&bytes]));
        }

        #[test]
        fn bytes_after_a_wanted_name_do_no_harm(bytes in prop::collection::vec(prop::sample::select(b"{}\"\\=, \tab1.\r\xc3".to_vec()), 0..40)) {
            let text: Vec<u8> = [b"x_requests".as_slice(), &bytes].concat();
            let (samples, tally) = read(&[&text]);
            prop_assert!(samples.len() as u64 == tally.samples);
        }
    }
}
