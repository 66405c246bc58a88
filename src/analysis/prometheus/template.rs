//! A release's own PromQL, with placeholders: checked when it is written, not when it is first asked.

use crate::analysis::Interest;
use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{Expr, lexer, parse, value::ValueType},
    util::{ExprVisitor, walk_expr},
};
use std::{collections::BTreeSet, fmt, time::Duration};

/// Bytes of a query at most.
pub const LONGEST_QUERY: usize = 4096;
/// Words of a query at most. The parser takes its tree down by recursion: between 1,000 and 2,000 nested `sum(` overflow
/// 2 MiB of stack (measured, debug build), and three words nest once.
pub const MOST_WORDS: usize = 1000;

/// A checked query with placeholders: what it is to be filled in with makes it neither invalid nor another kind of result.
///
/// ```
/// use canary_operator::analysis::prometheus::Template;
/// assert!(Template::parse(r#"sum(rate(orders{namespace="{{ namespace }}"}[{{ interval }}]))"#).is_ok());
/// let wrong = Template::parse("sum(rate(orders[5m])").unwrap_err();
/// assert_eq!(wrong.to_string(), "the query ends too early, at line 1, column 21");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Placeholder(Placeholder),
}

/// What a query may leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{{ namespace }}`: of the release.
    Namespace,
    /// `{{ ingress }}`: names of version 1's Ingresses, as a regular expression.
    Ingress,
    /// `{{ service }}`: name of version 1's Service.
    Service,
    /// `{{ canary }}`: values of ingress-nginx's label `canary` for version 2, as a regular expression.
    Canary,
    /// `{{ interval }}`: from one time that it is asked to the next, as a PromQL duration.
    Interval,
}

impl Placeholder {
    const ALL: [Self; 5] = [
        Self::Namespace,
        Self::Ingress,
        Self::Service,
        Self::Canary,
        Self::Interval,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Ingress => "ingress",
            Self::Service => "service",
            Self::Canary => "canary",
            Self::Interval => "interval",
        }
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{{ {} }}}}", self.name())
    }
}

/// A place in a query, in characters from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    line: usize,
    column: usize,
}

impl Place {
    fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// What is wrong with a query: a sentence for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Blanks and comments at most.
    #[error("the query is empty")]
    Empty,
    /// More than [`LONGEST_QUERY`].
    #[error("the query has {0} bytes; {LONGEST_QUERY} are the most: record a part of it with a rule of Prometheus")]
    TooLong(usize),
    /// More than [`MOST_WORDS`].
    #[error("the query has {0} words; {MOST_WORDS} are the most: record a part of it with a rule of Prometheus")]
    TooManyWords(usize),
    /// Something else between double braces.
    #[error("{place}: {{{{ {name} }}}} is not known; there are {}", list(known))]
    Unknown {
        /// Where it begins.
        place: Place,
        /// What was between the braces.
        name: String,
        /// What may be.
        known: [Placeholder; 5],
    },
    /// Double braces that nothing closes.
    #[error("{0}: nothing closes these {{{{")]
    Unclosed(Place),
    /// A name where PromQL has no place for one.
    #[error("{place}: {placeholder} belongs between quotes, in a label matcher")]
    Unquoted {
        /// Where it begins.
        place: Place,
        /// Which.
        placeholder: Placeholder,
    },
    /// A list of names where one alone would do.
    #[error("{matcher}: {placeholder} may be several names joined with |, so match it with =~ or !~")]
    OneOfSeveral {
        /// As written.
        matcher: String,
        /// Which.
        placeholder: Placeholder,
    },
    /// Where a range, a resolution or an offset belongs.
    #[error("{place}: {word} is no length of time; one is written like 5m or 1h30m, or {{{{ interval }}}}")]
    Length {
        /// Where it begins.
        place: Place,
        /// As written.
        word: String,
    },
    /// Not PromQL.
    #[error("{place}: not PromQL from {near:?} on")]
    Syntax {
        /// Where it begins.
        place: Place,
        /// The first word that does not belong there.
        near: String,
    },
    /// The beginning of a query.
    #[error("the query ends too early, at {0}")]
    Unfinished(Place),
    /// PromQL that means nothing, such as a rate of an instant vector.
    #[error("the query means nothing to Prometheus: {0}")]
    Meaning(String),
    /// A result that is not a number.
    #[error("the query returns {0}; a check takes a number: a scalar, or an instant vector of one element")]
    Kind(&'static str),
}

fn list(known: &[Placeholder; 5]) -> String {
    known.map(|placeholder| placeholder.to_string()).join(", ")
}

impl Template {
    /// Checks a query.
    ///
    /// # Errors
    /// A sentence that names the mistake, and where it is as far as the parser can tell.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > LONGEST_QUERY {
            return Err(TemplateError::TooLong(text.len()));
        }
        let scan = Scan::of(text)?;
        match scan.ends.len() {
            0 => return Err(TemplateError::Empty),
            words if words > MOST_WORDS => return Err(TemplateError::TooManyWords(words)),
            _ => {}
        }
        let expression = match read(&scan.filled()) {
            Ok(expression) => expression,
            Err(Unreadable::Meaning(why)) => return Err(TemplateError::Meaning(why)),
            Err(Unreadable::Syntax) => return Err(misplaced(text, &scan.ends)),
        };
        match expression.value_type() {
            ValueType::Scalar | ValueType::Vector => {}
            ValueType::String => return Err(TemplateError::Kind("a string")),
            ValueType::Matrix => return Err(TemplateError::Kind("a range vector")),
        }
        walk_expr(&mut Matchers, &expression)?;
        Ok(Self { pieces: scan.pieces })
    }

    /// The query for a release. Several Ingresses, or several values of the label `canary`, are joined with `|`.
    #[must_use]
    pub fn render(&self, interest: &Interest, interval: Duration) -> String {
        fill(&self.pieces, |placeholder| match placeholder {
            Placeholder::Namespace => interest.namespace.clone(),
            Placeholder::Ingress => any_of(&interest.ingresses),
            Placeholder::Service => interest.service.clone(),
            Placeholder::Canary => any_of(&interest.canaries),
            Placeholder::Interval => duration(interval),
        })
    }
}

/// A length of time as PromQL has it: whole units, no fractions.
pub(super) fn duration(length: Duration) -> String {
    match length.subsec_millis() {
        0 => format!("{}s", length.as_secs()),
        _ => format!("{}ms", length.as_millis()),
    }
}

/// A regular expression for any of these names, whichever quotes it is between: `[.]`, for a backslash would be one more
/// escape between `"` and none between backticks.
pub(super) fn any_of(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        // The label is never this (measured); nothing at all would match where the label is missing, which is version 1.
        return "-".to_owned();
    }
    let escaped = |name: &String| {
        let escaped = name.chars().map(|c| match c {
            '.' => "[.]".to_owned(),
            c if c.is_alphanumeric() || matches!(c, '-' | '_') => c.to_string(),
            // In no name of Kubernetes.
            _ => ".".to_owned(),
        });
        escaped.collect::<String>()
    };
    names.iter().map(escaped).collect::<Vec<_>>().join("|")
}

fn fill(pieces: &[Piece], value: impl Fn(Placeholder) -> String) -> String {
    let pieces = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Placeholder(placeholder) => value(*placeholder),
    });
    pieces.collect()
}

/// As [`any_of`] writes a name with a dot, so that it is found again in the parsed query.
const INGRESS: &str = "an-ingress[.]of-the-release";
const CANARY: &str = "a-canary[.]of-the-release";

fn sample(placeholder: Placeholder) -> String {
    let sample = match placeholder {
        Placeholder::Namespace => "namespace",
        Placeholder::Service => "service",
        Placeholder::Ingress => INGRESS,
        Placeholder::Canary => CANARY,
        Placeholder::Interval => "1m",
    };
    sample.to_owned()
}

/// A query taken apart as far as placeholders and messages need it: into texts and placeholders, and into words.
#[derive(Debug, Default)]
struct Scan {
    pieces: Vec<Piece>,
    /// Where each word ends: a prefix that ends there cuts none in two.
    ends: Vec<usize>,
    /// What closes the brackets that are still open, the innermost last.
    open: Vec<char>,
}

impl Scan {
    fn of(text: &str) -> Result<Self, TemplateError> {
        let mut scan = Self::default();
        let mut rest = text;
        // Whether a length of time may be next.
        let mut measures = false;
        while let Some(next) = rest.chars().next() {
            let offset = text.len() - rest.len();
            measures &= next.is_whitespace() || next == '#' || is_word(next) || matches!(next, '+' | '-');
            if rest.starts_with("{{") {
                let (placeholder, length) = placeholder(text, offset)?;
                if placeholder != Placeholder::Interval {
                    let place = Place::of(text, offset);
                    return Err(TemplateError::Unquoted { place, placeholder });
                }
                scan.pieces.push(Piece::Placeholder(placeholder));
                rest = after(rest, length);
                scan.ends.push(text.len() - rest.len());
                continue;
            }
            let length = match next {
                '#' => rest.find('\n').unwrap_or(rest.len()),
                '"' | '\'' | '`' => {
                    let length = scan.string(text, offset, next)?;
                    rest = after(rest, length);
                    scan.ends.push(text.len() - rest.len());
                    continue;
                }
                c if is_word(c) => {
                    let length = length_while(rest, is_word);
                    let word = rest.get(..length).unwrap_or(rest);
                    if measures && !word.split(':').all(may_be_a_length) {
                        let place = Place::of(text, offset);
                        let word = word.chars().take(40).collect();
                        return Err(TemplateError::Length { place, word });
                    }
                    measures = word.eq_ignore_ascii_case("offset") || (measures && word.ends_with(':'));
                    length
                }
                c if is_comparison(c) => length_while(rest, is_comparison),
                c => {
                    match c {
                        '(' => scan.open.push(')'),
                        '[' => {
                            measures = true;
                            scan.open.push(']');
                        }
                        '{' => scan.open.push('}'),
                        ')' | ']' | '}' => drop(scan.open.pop()),
                        _ => {}
                    }
                    c.len_utf8()
                }
            };
            scan.text(rest.get(..length).unwrap_or(rest));
            rest = after(rest, length);
            if next != '#' && !next.is_whitespace() {
                scan.ends.push(text.len() - rest.len());
            }
        }
        Ok(scan)
    }

    /// A string with the placeholders in it; its length with both quotes.
    fn string(&mut self, text: &str, offset: usize, quote: char) -> Result<usize, TemplateError> {
        let whole = after(text, offset);
        let mut rest = after(whole, quote.len_utf8());
        self.text(quote.encode_utf8(&mut [0; 4]));
        while let Some(next) = rest.chars().next() {
            if rest.starts_with("{{") {
                let (placeholder, length) = placeholder(text, text.len() - rest.len())?;
                self.pieces.push(Piece::Placeholder(placeholder));
                rest = after(rest, length);
                continue;
            }
            let escaped = next == '\\' && quote != '`';
            let length = rest.chars().take(1 + usize::from(escaped)).map(char::len_utf8).sum();
            self.text(rest.get(..length).unwrap_or(rest));
            rest = after(rest, length);
            if next == quote {
                break;
            }
        }
        Ok(whole.len() - rest.len())
    }

    fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    fn filled(&self) -> String {
        fill(&self.pieces, sample)
    }
}

fn after(text: &str, length: usize) -> &str {
    text.get(length..).unwrap_or_default()
}

fn length_while(text: &str, belongs: fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | ':' | '.')
}

fn is_comparison(c: char) -> bool {
    matches!(c, '=' | '!' | '~' | '<' | '>')
}

/// Whether this is a length of time, or the parser's to refuse: it panics at a number of seconds that no `Duration` has, such
/// as 1e30 or NaN (fuzzing).
fn may_be_a_length(word: &str) -> bool {
    const UNITS: [&str; 7] = ["y", "w", "d", "h", "m", "s", "ms"];
    if ["inf", "nan"].iter().any(|number| word.eq_ignore_ascii_case(number)) {
        return false;
    }
    let is_digit = |c: char| c.is_ascii_digit();
    if word.chars().all(|c| is_digit(c) || c == '.') {
        return word.split('.').next().is_none_or(|whole| whole.len() <= 15);
    }
    let mut rest = word;
    while rest.starts_with(is_digit) {
        rest = rest.trim_start_matches(is_digit);
        let unit = length_while(rest, char::is_alphabetic);
        if !rest.get(..unit).is_some_and(|unit| UNITS.contains(&unit)) {
            return false;
        }
        rest = after(rest, unit);
    }
    // The rest is the parser's to refuse.
    !rest.starts_with('.')
}

/// The placeholder that begins there, and its length.
fn placeholder(text: &str, offset: usize) -> Result<(Placeholder, usize), TemplateError> {
    let rest = after(text, offset);
    let inside = after(rest, 2);
    let place = Place::of(text, offset);
    let end = inside.find("}}").ok_or(TemplateError::Unclosed(place))?;
    let name = inside.get(..end).unwrap_or_default().trim();
    let known = Placeholder::ALL;
    let found = known.into_iter().find(|placeholder| placeholder.name() == name);
    match found {
        Some(placeholder) => Ok((placeholder, end + 4)),
        None => Err(TemplateError::Unknown {
            place,
            name: name.chars().take(40).collect(),
            known,
        }),
    }
}

enum Unreadable {
    Syntax,
    Meaning(String),
}

fn read(query: &str) -> Result<Expr, Unreadable> {
    if lexer(query).is_err() {
        return Err(Unreadable::Syntax);
    }
    parse(query).map_err(|why| match why.as_str() {
        // All that the parser says of a syntax error.
        "invalid promql query" => Unreadable::Syntax,
        _ => Unreadable::Meaning(why),
    })
}

/// Where a query stops to be PromQL, which the parser does not tell: after its longest beginning that can be completed.
fn misplaced(text: &str, ends: &[usize]) -> TemplateError {
    let good = ends.partition_point(|end| can_go_on(text.get(..*end).unwrap_or_default()));
    let end = |words: usize| words.checked_sub(1).and_then(|index| ends.get(index).copied());
    let rest = after(text, end(good).unwrap_or(0));
    let word = rest.trim_start();
    let place = Place::of(text, text.len() - word.len());
    match end(good + 1) {
        Some(end) => TemplateError::Syntax {
            place,
            near: text
                .get(text.len() - word.len()..end)
                .unwrap_or(word)
                .chars()
                .take(40)
                .collect(),
        },
        None => TemplateError::Unfinished(Place::of(text, text.trim_end().len())),
    }
}

/// Whether something can follow that makes it a query: an operand, a matcher, a duration, what an aggregation takes; the
/// brackets are closed, and what they were opened for may want an operand.
fn can_go_on(beginning: &str) -> bool {
    const NEXT: [&str; 11] = [
        "", " a", " 1", " 1m", " a=\"b\"", "=\"b\"", "\"b\"", "(a)", "()", "(a) (a)", "(a) a",
    ];
    const LAST: [&str; 3] = ["", " (a)", " a"];
    let Ok(scan) = Scan::of(beginning) else {
        return false;
    };
    let filled = scan.filled();
    let mut closing = scan.open.iter().rev();
    let first = closing.next().map(char::to_string).unwrap_or_default();
    let others: String = closing.collect();
    let reads = |query: String| !matches!(read(&query), Err(Unreadable::Syntax));
    NEXT.iter().any(|next| {
        LAST.iter()
            .any(|last| reads(format!("{filled}{next}{first}{last}{others}")))
    })
}

/// Finds lists of names that are matched as one name.
struct Matchers;

impl ExprVisitor for Matchers {
    type Error = TemplateError;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, TemplateError> {
        let selector = match expression {
            Expr::VectorSelector(selector) => selector,
            Expr::MatrixSelector(range) => &range.vs,
            _ => return Ok(true),
        };
        let alternatives = selector.matchers.or_matchers.iter().flatten();
        let exact = |matcher: &&Matcher| matches!(matcher.op, MatchOp::Equal | MatchOp::NotEqual);
        for matcher in selector.matchers.matchers.iter().chain(alternatives).filter(exact) {
            for (sample, placeholder) in [(INGRESS, Placeholder::Ingress), (CANARY, Placeholder::Canary)] {
                if matcher.value.contains(sample) {
                    let matcher = matcher.to_string().replace(sample, &placeholder.to_string());
                    return Err(TemplateError::OneOfSeveral { matcher, placeholder });
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn interest(ingresses: &[&str], canaries: &[&str]) -> Interest {
        Interest {
            namespace: "shop".to_owned(),
            ingresses: set(ingresses),
            service: "web".to_owned(),
            canaries: set(canaries),
            latency: false,
        }
    }

    const GOOD: [&str; 20] = [
        "1",
        "up",
        "scalar(up) > bool 0.5",
        r#"1 - sum(rate(requests{namespace="{{ namespace }}",ingress=~"{{ingress}}",canary=~"{{  canary }}",status=~"5.."}[{{ interval }}]))"#,
        "sum by (le, a) (rate(x_bucket[5m])) / on (le) group_left (b) sum without (c) (y)",
        "histogram_quantile(0.95, sum by (le) (rate(x_bucket{a!~\"b|c\", d!='e',}[{{ interval }}])))",
        "max_over_time(rate(x[5m])[1h:30s] offset -5m)",
        "(sum(x) or vector(0)) - (sum(x offset {{ interval }}) or vector(0))",
        "sum(x) by (a,b) > 3 and ignoring(c) -y ^ 2",
        "# what it is\nsum(x) # {{ ignored }}\n  / 2\n",
        "topk(1, x) unless on() y",
        "x{a=`b\"c`} @ start() + y @ 1609746000 + z @ end()",
        "quantile(0.5, {__name__=~\"a.*\"})",
        "absent(x{a=\"{{ service }}-suffix\"})",
        "count_values(\"version\", build_info) == 2",
        r#"label_replace(x, "a", "$1", "b", "(.*)\"")"#,
        "time() - timestamp(x)",
        "-x",
        "x % y * 1e3 + 0x1f / Inf",
        r#"sum({__name__="a", "b"="c"})"#,
    ];

    #[test]
    fn scalars_and_instant_vectors_are_accepted() {
        for query in GOOD {
            assert_eq!(Template::parse(query).map(drop), Ok(()), "{query}");
        }
    }

    /// So that the place of a mistake is where it is, and not before it.
    #[test]
    fn every_beginning_of_a_query_can_go_on() {
        for query in GOOD {
            for end in Scan::of(query).unwrap().ends {
                assert!(can_go_on(&query[..end]), "{}", &query[..end]);
            }
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (query, expected) in [
            ("", "the query is empty"),
            (" \n# nothing\n", "the query is empty"),
            ("sum(rate(x[5m])", "the query ends too early, at line 1, column 16"),
            ("sum(rate(x[5m]\n", "the query ends too early, at line 1, column 15"),
            ("sum(x) / ", "the query ends too early, at line 1, column 9"),
            ("x{a=\"b}", "line 1, column 5: not PromQL from \"\\\"b}\" on"),
            ("sum(rate(x[5m])))", "line 1, column 17: not PromQL from \")\" on"),
            ("sum(x)\n  / sum y (z)", "line 2, column 9: not PromQL from \"y\" on"),
            (
                "x{a==\"b\"}",
                "the query means nothing to Prometheus: unexpected '=' in label matching, expected string",
            ),
            (
                "x{a=b}",
                "the query means nothing to Prometheus: unexpected identifier 'b' in label matching, expected string",
            ),
            ("x[m]", "line 1, column 3: not PromQL from \"m\" on"),
            (
                "rate(x[1e30])",
                "line 1, column 8: 1e30 is no length of time; one is written like 5m or 1h30m, or {{ interval }}",
            ),
            (
                "max_over_time(x[5m: # finer\n 99999999999999999999])",
                "line 2, column 2: 99999999999999999999 is no length of time; one is written like 5m or 1h30m, or {{ interval }}",
            ),
            (
                "x OFFSET -NaN",
                "line 1, column 11: NaN is no length of time; one is written like 5m or 1h30m, or {{ interval }}",
            ),
            (
                "x offset 1e+30",
                "line 1, column 10: 1e is no length of time; one is written like 5m or 1h30m, or {{ interval }}",
            ),
            (
                "rate(x[0xffffffffffffffffff])",
                "line 1, column 8: 0xffffffffffffffffff is no length of time; one is written like 5m or 1h30m, or {{ interval }}",
            ),
            ("größe > 1", "line 1, column 1: not PromQL from \"größe\" on"),
            ("x / größe", "line 1, column 5: not PromQL from \"größe\" on"),
            ("SELECT 1", "line 1, column 8: not PromQL from \"1\" on"),
            (
                "rate(x)",
                "the query means nothing to Prometheus: expected type matrix in call to function 'rate', got vector",
            ),
            (
                "average(x)",
                "the query means nothing to Prometheus: unknown function with name 'average'",
            ),
            (
                "x{a=~\"(\"}",
                "the query means nothing to Prometheus: illegal regex for (",
            ),
            (
                "x[5m]",
                "the query returns a range vector; a check takes a number: a scalar, or an instant vector of one element",
            ),
            (
                "\"x\"",
                "the query returns a string; a check takes a number: a scalar, or an instant vector of one element",
            ),
            (
                "sum(x{\n  namespace=\"{{ release }}\"})",
                "line 2, column 14: {{ release }} is not known; there are {{ namespace }}, {{ ingress }}, {{ service }}, \
                 {{ canary }}, {{ interval }}",
            ),
            ("x{a=\"{{ namespace }\"}", "line 1, column 6: nothing closes these {{"),
            (
                "x{a={{ namespace }}}",
                "line 1, column 5: {{ namespace }} belongs between quotes, in a label matcher",
            ),
            (
                "x_{{ service }}_y",
                "line 1, column 3: {{ service }} belongs between quotes, in a label matcher",
            ),
            (
                "rate(x{ingress=\"{{ ingress }}\"}[5m])",
                "ingress=\"{{ ingress }}\": {{ ingress }} may be several names joined with |, so match it with =~ or !~",
            ),
            (
                "x{canary!='{{canary}}'}",
                "canary!=\"{{ canary }}\": {{ canary }} may be several names joined with |, so match it with =~ or !~",
            ),
        ] {
            let told = Template::parse(query).map(drop).map_err(|error| error.to_string());
            assert_eq!(told, Err(expected.to_owned()), "{query}");
        }
        let long = "x ".repeat(LONGEST_QUERY);
        assert_eq!(Template::parse(&long), Err(TemplateError::TooLong(long.len())));
    }

    #[test]
    fn a_number_of_seconds_is_a_length_of_time_and_any_number_is_one_elsewhere() {
        for query in [
            "rate(x[300])",
            "x offset -5m > 1e30",
            "sum(x offset 1.5) / 0x1f",
            "max_over_time(x[1h30m:90])",
            "x{offset=\"1\"} + NaN",
        ] {
            assert_eq!(Template::parse(query).map(drop), Ok(()), "{query}");
        }
    }

    #[test]
    fn placeholders_are_filled_in_whatever_quotes_they_are_between() {
        let query =
            "a{n='{{namespace}}',i=~\"{{ ingress }}\",j!~`x|{{ ingress }}`,c=~\"|{{ canary }}\"}[{{ interval }}]";
        let query = format!("sum(rate({query})) # {{{{ namespace }}}}");
        let template = Template::parse(&query).unwrap();
        let two = interest(&["web", "web.admin"], &["shop-web-canary-80", "shop-web-canary-http"]);
        assert_eq!(
            template.render(&two, Duration::from_secs(90)),
            "sum(rate(a{n='shop',i=~\"web|web[.]admin\",j!~`x|web|web[.]admin`,\
             c=~\"|shop-web-canary-80|shop-web-canary-http\"}[90s])) # {{ namespace }}"
        );
        assert_eq!(
            Template::parse("x{c=~\"{{ canary }}\"} offset {{ interval }}")
                .unwrap()
                .render(&interest(&[], &[]), Duration::from_millis(1500)),
            "x{c=~\"-\"} offset 1500ms"
        );
    }

    /// A test's thread has 2 MiB, a quarter of what the operator's has.
    #[test]
    fn the_deepest_nesting_fits_the_stack() {
        for (part, per_part) in [
            ("-", 1),
            ("(", 1),
            ("sum(", 2),
            ("x+", 2),
            ("x{a=~\"b\"} or ", 7),
            ("1^", 2),
            ("abs(-", 3),
        ] {
            let opened = part.repeat(MOST_WORDS / per_part - 1) + "1";
            assert_ne!(Template::parse(&opened), Err(TemplateError::Empty));
        }
        let nested = "sum(".repeat(MOST_WORDS / 3) + "x" + &")".repeat(MOST_WORDS / 3);
        assert_eq!(Template::parse(&nested).map(drop), Ok(()));
        assert_eq!(Template::parse(&("-".repeat(MOST_WORDS - 1) + "1")).map(drop), Ok(()));
        assert_eq!(
            Template::parse(&"-".repeat(1001)),
            Err(TemplateError::TooManyWords(1001))
        );
    }

    /// Words that queries are made of, right and wrong.
    fn words() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "sum",
            "rate",
            "x",
            "y_total",
            "(",
            ")",
            "{",
            "}",
            "[",
            "]",
            "5m",
            "1",
            ",",
            "=",
            "=~",
            "!=",
            "\"b\"",
            "'c'",
            "`d`",
            "by",
            "on",
            "ignoring",
            "group_left",
            "offset",
            "@",
            "start()",
            "-",
            "+",
            "/",
            "^",
            "and",
            "or",
            "unless",
            "bool",
            ">",
            "== ",
            ":",
            "{{ namespace }}",
            "\"{{ ingress }}\"",
            "{{ interval }}",
            "{{",
            "}}",
            "\"",
            "\\",
            "#",
            "\n",
            " ",
            "le",
            "é",
            "histogram_quantile",
            "0.9",
            "1e",
            "0x",
            "Inf",
            "NaN",
            "label_replace",
            "count_values",
            "\u{0}",
        ]);
        prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_text_makes_the_check_panic(text in any::<String>()) {
            let _ = Template::parse(&text);
        }

        #[test]
        fn no_words_make_the_check_panic_and_what_it_accepts_stays_a_query(text in words()) {
            if let Ok(template) = Template::parse(&text) {
                let rendered = template.render(&interest(&["a.b", "c"], &["d-e-80"]), Duration::from_secs(30));
                prop_assert!(parse(&rendered).is_ok(), "{rendered}");
            }
        }
    }
}
