//! Verdicts in words, for whoever is on call.

use super::super::{Millis, Side};
use crate::api::Duration as Written;
use std::{fmt, time::Duration};

/// `1,204`
pub(super) struct Grouped(pub u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let head = digits.len() % 3;
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && index % 3 == head {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A number with so many decimals that it does not read like `limit` where it is not, and no zeros at its end.
pub(super) fn number(value: f64, limit: f64) -> String {
    let with = |decimals: usize| {
        let text = format!("{value:.decimals$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    };
    let reads_like = |text: &str| text.parse::<f64>().is_ok_and(|read| read == limit) && value != limit;
    (2..=9)
        .map(with)
        .find(|text| !reads_like(text))
        .unwrap_or_else(|| with(9))
}

/// A share as `97.12%`.
pub(super) fn percent(share: f64, limit: f64) -> String {
    format!("{}%", number(share * 100.0, limit * 100.0))
}

/// `1,204 requests, 30s`, and what nginx answered without asking version 2.
pub(super) fn sample(canary: &Side, length: Duration) -> String {
    let requests = canary.judged().values().sum();
    let of_nginx = canary.of_nginx();
    let more = match of_nginx {
        0 => String::new(),
        more => format!("; nginx itself answered {} more", Grouped(more)),
    };
    format!(
        "{} request{}, {}{more}",
        Grouped(requests),
        plural(requests),
        seconds(length)
    )
}

/// `s`, unless there is one.
pub(super) fn plural(number: u64) -> &'static str {
    if number == 1 { "" } else { "s" }
}

/// A length in whole seconds.
pub(super) fn seconds(length: Duration) -> Written {
    Written::of(Duration::from_secs_f64(length.as_secs_f64().round()))
}

/// `failed`, or `took longer than 250ms`.
pub(super) fn fault(edge: Option<Duration>) -> String {
    edge.map_or_else(
        || "failed".to_owned(),
        |edge| format!("took longer than {}", Millis(edge)),
    )
}

/// Evidence as a number to compare with its limit.
pub(super) fn evidence(log: f64) -> String {
    match log.exp() {
        odds if odds >= 1e6 => "more than 1,000,000".to_owned(),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Of 10 to a million.
        odds if odds >= 10.0 => Grouped(odds as u64).to_string(),
        odds => number(odds, 10.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = |number| Grouped(number).to_string();
        assert_eq!([shown(0), shown(999), shown(1_204)], ["0", "999", "1,204"]);
        assert_eq!(
            [shown(12_345), shown(123_456), shown(1_234_567)],
            ["12,345", "123,456", "1,234,567"]
        );
    }

    #[test]
    fn a_number_never_reads_like_a_limit_that_it_is_not() {
        assert_eq!(percent(0.971_234, 0.99), "97.12%");
        assert_eq!(percent(0.989_996, 0.99), "98.9996%");
        assert_eq!(percent(0.99, 0.99), "99%");
        assert_eq!(percent(1.0, 0.99), "100%");
        assert_eq!(number(1234.5, 0.0), "1234.5");
    }

    #[test]
    fn evidence_is_told_as_odds() {
        assert_eq!(evidence(0.0), "1");
        assert_eq!(evidence(210f64.ln() + 1e-9), "210");
        assert_eq!(evidence(800.0), "more than 1,000,000");
        assert_eq!(evidence(f64::NEG_INFINITY), "0");
    }
}
