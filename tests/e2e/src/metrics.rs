//! Reading the operator's own metrics.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

/// One sample of the Prometheus text format.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of an exposition in the Prometheus text format; comments are skipped.
pub fn parse(text: &str) -> Result<Vec<Sample>> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| sample(line).ok_or_else(|| anyhow!("this is not a sample of a metric: {line}")))
        .collect()
}

fn sample(line: &str) -> Option<Sample> {
    let name_ends = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_ends);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The text up to the closing quote with its escapes resolved, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

/// Counter values by label set, for differences between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts(BTreeMap<BTreeMap<String, String>, f64>);

impl Counts {
    /// The counter `name` among `samples`.
    #[must_use]
    pub fn of(name: &str, samples: &[Sample]) -> Self {
        Self(
            samples
                .iter()
                .filter(|s| s.name == name)
                .map(|s| (s.labels.clone(), s.value))
                .collect(),
        )
    }

    /// What was counted since `before`; a label set that was not there counted nothing until then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = self
            .0
            .iter()
            .map(|(labels, now)| (labels.clone(), now - before.0.get(labels).unwrap_or(&0.0)));
        Self(grown.filter(|(_, more)| *more != 0.0).collect())
    }

    /// Sum over the label sets for which `which` holds.
    pub fn sum(&self, which: impl Fn(&BTreeMap<String, String>) -> bool) -> u64 {
        self.0
            .iter()
            .filter(|(labels, _)| which(labels))
            .map(|(_, count)| *count as u64)
            .sum()
    }

    /// Sum over everything.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sum(|_| true)
    }

    /// Lines of `VERB resource code count`, the largest count first.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by(|a, b| b.1.total_cmp(a.1));
        let row = |(labels, count): &(&BTreeMap<String, String>, &f64)| {
            format!(
                "{count:>6}  {}",
                labels.values().map(String::as_str).collect::<Vec<_>>().join(" ")
            )
        };
        rows.iter().map(row).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "canary_operator_api_requests_total";

    #[test]
    fn samples_are_read_with_escapes_timestamps_and_without_labels() {
        let text =
            "# HELP a b\n# TYPE a counter\na{verb=\"GET\",path=\"a\\\"b\\\\c}\",} 3 1700000000\nb 1.5e3\n\nc{} +Inf\n";
        let samples = parse(text).unwrap();
        assert_eq!(samples[0].labels["path"], "a\"b\\c}");
        assert_eq!((samples[0].value, samples[1].value), (3.0, 1_500.0));
        assert!(samples[2].labels.is_empty() && samples[2].value.is_infinite());
    }

    #[test]
    fn nonsense_is_refused_and_shown() {
        for line in ["a", "a{b=\"c} 1", "a{b} 1", "a one", "{"] {
            assert!(parse(line).unwrap_err().to_string().ends_with(line));
        }
    }

    #[test]
    fn differences_count_a_new_label_set_from_nothing() {
        let before = Counts::of(NAME, &parse(&format!("{NAME}{{verb=\"GET\"}} 4\nother 9")).unwrap());
        let after = Counts::of(
            NAME,
            &parse(&format!("{NAME}{{verb=\"GET\"}} 6\n{NAME}{{verb=\"PATCH\"}} 3")).unwrap(),
        );
        let more = after.since(&before);
        assert_eq!((more.total(), more.sum(|labels| labels["verb"] == "PATCH")), (5, 3));
        assert_eq!(after.since(&after).total(), 0);
        assert_eq!(more.table(), "     3  PATCH\n     2  GET");
    }
}
