//! How long version 1 or 2 takes to answer, from a histogram's buckets.

use super::{Edge, Side};
use std::{collections::BTreeMap, fmt, time::Duration};

/// A time within which a share of the requests was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantile {
    /// So long, interpolated within a bucket.
    At(Duration),
    /// Longer than the last bucket's edge: how much longer is not known.
    Above(Duration),
}

impl Quantile {
    /// Whether it is longer than `limit`, as far as that can be told.
    #[must_use]
    pub fn exceeds(self, limit: Duration) -> bool {
        match self {
            Self::At(time) => time > limit,
            Self::Above(_) => true,
        }
    }
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(time) => write!(f, "{}", Millis(*time)),
            Self::Above(edge) => write!(f, "more than {}", Millis(*edge)),
        }
    }
}

/// `250ms`, `1.5s`: three digits say all that a bucket knows.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_secs_f64() * 1000.0;
        if millis >= 1000.0 {
            write!(f, "{}s", (millis / 10.0).round() / 100.0)
        } else if millis >= 10.0 {
            write!(f, "{millis:.0}ms")
        } else {
            write!(f, "{}ms", (millis * 10.0).round() / 10.0)
        }
    }
}

impl Side {
    /// Requests that exactly one upstream answered.
    #[must_use]
    pub fn timed(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Requests that took longer than a bucket's edge; none where there is no such bucket.
    #[must_use]
    pub fn slower(&self, edge: Edge) -> Option<u64> {
        let within = self.within.get(&edge)?;
        Some(self.timed().saturating_sub(*within))
    }

    /// Within which time a share `quantile` of the requests was answered; none without requests or buckets.
    /// Linear within a bucket, as Prometheus has it.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<Quantile> {
        locate(&self.within, self.timed(), quantile)
    }
}

fn locate(within: &BTreeMap<Edge, u64>, total: u64, quantile: f64) -> Option<Quantile> {
    let last = within.keys().next_back()?;
    if total == 0 {
        return None;
    }
    #[allow(clippy::cast_precision_loss)] // Counts stay far below 2^52.
    let rank = quantile * total as f64;
    let (mut lower, mut below) = (Duration::ZERO, 0_u64);
    for (edge, count) in within {
        #[allow(clippy::cast_precision_loss)]
        let (before, here) = (below as f64, *count as f64);
        if here >= rank && here > before {
            let part = ((rank - before) / (here - before)).clamp(0.0, 1.0);
            return Some(Quantile::At(lower + edge.get().saturating_sub(lower).mul_f64(part)));
        }
        (lower, below) = (edge.get(), below.max(*count));
    }
    Some(Quantile::Above(last.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Status;
    use proptest::prelude::*;

    fn side(total: u64, within: &[(u64, u64)]) -> Side {
        let edge = |millis| Edge::from(Duration::from_millis(millis));
        Side {
            answered: BTreeMap::from([(Status::Code(200), total)]),
            within: within.iter().map(|(millis, count)| (edge(*millis), *count)).collect(),
            ..Side::default()
        }
    }

    fn shown(side: &Side, quantile: f64) -> Option<String> {
        side.quantile(quantile).map(|quantile| quantile.to_string())
    }

    #[test]
    fn a_quantile_lies_linearly_within_its_bucket() {
        let side = side(100, &[(100, 50), (250, 90), (500, 100)]);
        assert_eq!(shown(&side, 0.5).as_deref(), Some("100ms"));
        assert_eq!(shown(&side, 0.25).as_deref(), Some("50ms"));
        assert_eq!(shown(&side, 0.95).as_deref(), Some("375ms"));
        assert_eq!(shown(&side, 0.99).as_deref(), Some("475ms"));
    }

    #[test]
    fn beyond_the_last_bucket_only_that_is_known() {
        let side = side(100, &[(100, 50), (10_000, 90)]);
        assert_eq!(shown(&side, 0.95).as_deref(), Some("more than 10s"));
        assert!(side.quantile(0.95).unwrap().exceeds(Duration::from_secs(3600)));
    }

    #[test]
    fn nothing_is_known_without_requests_or_buckets() {
        assert_eq!(shown(&side(0, &[(100, 0)]), 0.5), None);
        assert_eq!(shown(&side(10, &[]), 0.5), None);
    }

    #[test]
    fn slower_requests_are_known_at_a_buckets_edge_alone() {
        let side = side(100, &[(100, 50), (250, 90)]);
        let slower = |millis| side.slower(Edge::from(Duration::from_millis(millis)));
        assert_eq!([slower(100), slower(250), slower(300)], [Some(50), Some(10), None]);
    }

    #[test]
    fn times_are_told_with_three_digits() {
        let shown = |micros| Millis(Duration::from_micros(micros)).to_string();
        assert_eq!(
            [shown(4_960), shown(12_400), shown(1_234_000)],
            ["5ms", "12ms", "1.23s"]
        );
    }

    proptest! {
        #[test]
        fn a_higher_quantile_is_never_shorter(counts in prop::collection::vec(0u64..50, 1..8), a in 0.0f64..=1.0, b in 0.0f64..=1.0) {
            let mut sum = 0;
            let within: Vec<_> = (1..).zip(&counts).map(|(n, more)| { sum += more; (n * n * 10, sum) }).collect();
            let side = side(sum + 3, &within);
            let time = |quantile| match side.quantile(quantile).unwrap() { Quantile::At(time) => time, Quantile::Above(_) => Duration::MAX };
            prop_assert!(time(a.min(b)) <= time(a.max(b)));
        }
    }
}
