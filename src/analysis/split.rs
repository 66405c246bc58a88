//! Whether requests divide as the weight says: the two-sided mixture test of a binomial share, which may be looked at after
//! every scrape for as long as one likes and still keeps its error rate (Ville's inequality).

use crate::api::Weight;
use libm::lgamma;

/// How strongly the alternatives are drawn to the weight that was asked for: as by so many requests seen before.
const CONCENTRATION: f64 = 100.0;
/// Evidence of 1,000 to 1: a right split is taken for a wrong one in at most 0.1 % of releases.
const ALARM: f64 = 6.907_755_278_982_137;
/// A weight of 0 or 100 is tested as the nearest share that one request in a million may leave.
const EDGE: f64 = 1e-6;

/// What the counted requests say about a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are as many as the weight makes likely, and enough to tell it from no canary at all or from nothing else.
    Agrees,
    /// There are too few to say anything.
    TooFew,
    /// Such a division comes about by chance less than once in a thousand releases.
    Differs,
}

/// Judges `canary` of `canary + stable` requests, all routed by chance while `weight` was in force.
/// `more_are_welcome`: testers come on top, so that only too few are a fault.
#[must_use]
pub fn judge(weight: Weight, stable: u64, canary: u64, more_are_welcome: bool) -> Verdict {
    let share = weight.fraction().clamp(EDGE, 1.0 - EDGE);
    #[allow(clippy::cast_precision_loss)] // Counts stay far below 2^52.
    let (stable, canary) = (stable as f64, canary as f64);
    let too_many = canary > share * (stable + canary);
    if log_evidence(share, stable, canary) >= ALARM && !(too_many && more_are_welcome) {
        return Verdict::Differs;
    }
    // Enough that none at all would have been an alarm; for a small weight, that all of them would, and some were seen.
    let total = stable + canary;
    let (none, all) = (log_evidence(share, total, 0.0), log_evidence(share, 0.0, total));
    let some_seen = canary > 0.0 || weight == Weight::ZERO;
    if none >= ALARM || (all >= ALARM && some_seen) {
        Verdict::Agrees
    } else {
        Verdict::TooFew
    }
}

/// Logarithm of how much likelier the counts are under some other share than under this one.
fn log_evidence(share: f64, stable: f64, canary: f64) -> f64 {
    let (a, b) = (CONCENTRATION * share, CONCENTRATION * (1.0 - share));
    log_beta(a + canary, b + stable) - log_beta(a, b) - canary * share.ln() - stable * (1.0 - share).ln()
}

fn log_beta(a: f64, b: f64) -> f64 {
    lgamma(a) + lgamma(b) - lgamma(a + b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn weight(text: &str) -> Weight {
        text.parse().unwrap()
    }

    #[test]
    fn a_split_as_asked_for_agrees_once_there_are_enough_requests() {
        assert_eq!(judge(weight("30"), 0, 0, false), Verdict::TooFew);
        assert_eq!(judge(weight("30"), 2, 1, false), Verdict::TooFew);
        assert_eq!(judge(weight("30"), 690, 310, false), Verdict::Agrees);
        assert_eq!(judge(weight("100"), 0, 500, false), Verdict::Agrees);
        assert_eq!(judge(weight("0"), 5_000, 0, false), Verdict::Agrees);
    }

    #[test]
    fn one_request_in_ten_thousand_is_proven_by_the_first() {
        assert_eq!(judge(weight("0.01"), 9_000, 0, false), Verdict::TooFew);
        assert_eq!(judge(weight("0.01"), 9_000, 1, false), Verdict::Agrees);
        assert_eq!(judge(weight("0.01"), 9_000, 90, false), Verdict::Differs);
    }

    #[test]
    fn a_weight_that_is_not_live_differs() {
        assert_eq!(judge(weight("30"), 200, 0, false), Verdict::Differs);
        assert_eq!(judge(weight("100"), 20, 480, false), Verdict::Differs);
        assert_eq!(judge(weight("0"), 900, 100, false), Verdict::Differs);
        assert_eq!(judge(weight("10"), 950, 50, false), Verdict::Differs);
    }

    #[test]
    fn testers_beyond_the_weight_are_no_fault_and_too_few_requests_are() {
        assert_eq!(judge(weight("10"), 700, 300, true), Verdict::Agrees);
        assert_eq!(judge(weight("10"), 700, 300, false), Verdict::Differs);
        assert_eq!(judge(weight("10"), 1_000, 0, true), Verdict::Differs);
    }

    /// Looks after every tenth request, up to `most`; how many requests until it differs.
    fn alarm(rng: &mut Rng, asked: Weight, real: f64, most: u64) -> Option<u64> {
        let (mut stable, mut canary) = (0, 0);
        (1..=most).find(|n| {
            if rng.f64() < real {
                canary += 1
            } else {
                stable += 1
            }
            n % 10 == 0 && judge(asked, stable, canary, false) == Verdict::Differs
        })
    }

    #[test]
    fn a_right_split_is_hardly_ever_taken_for_a_wrong_one() {
        let mut rng = Rng::with_seed(1);
        for text in ["1", "10", "50", "90"] {
            let asked = weight(text);
            let alarms = (0..400)
                .filter(|_| alarm(&mut rng, asked, asked.fraction(), 3_000).is_some())
                .count();
            // 0.4 expected at most; five by chance once in 10,000 runs, and the seed is fixed.
            assert!(alarms < 5, "{alarms} false alarms of 400 at {text}%");
        }
    }

    #[test]
    fn half_the_share_is_found_within_a_thousand_requests() {
        let mut rng = Rng::with_seed(2);
        let mut found: Vec<_> = (0..200)
            .map(|_| alarm(&mut rng, weight("10"), 0.05, 3_000).unwrap_or(3_000))
            .collect();
        found.sort_unstable();
        assert!(found[100] < 1_000, "median {}", found[100]);
    }
}
