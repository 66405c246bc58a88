//! Whether version 2 fails more often than version 1 at the same time: a test that may be looked at after every batch of
//! requests, for as long as one likes and under changing weights, and still keeps its error rate.
//!
//! Chance sends each request to either version. Of a batch's n failures, x are then version 2's by sampling without replacement,
//! which is (r/r₀)^x·((1 + ρ(r₀ − 1))/(1 + ρ(r − 1)))^n or less on average for any r where the risk ratio is r₀: at most 1.
//! It stays so where requests are of different risk, because who is sampled is negatively associated (Joag-Dev and Proschan,
//! 1983; for r₀ = 1 that is Hoeffding's Theorem 4, 1963). So the product over all batches, and its mean over several r, exceeds
//! 1/α in at most α of all releases (Ville), no matter what was decided in between. After Lindon and Malek, "Anytime-Valid
//! Inference for Multinomial Count Data" (2022).

use crate::api::Evidence;

/// The ratios that are tried, as multiples of the tolerated one.
#[rustfmt::skip]
const GRID: [f64; 17] = [
    1.0 / 50.0, 1.0 / 20.0, 1.0 / 10.0, 1.0 / 5.0, 1.0 / 3.0, 1.0 / 2.0, 1.0 / 1.5, 1.0 / 1.25,
    1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0,
];
/// Where the tolerated ratio is in the grid.
const TOLERATED: usize = 8;
/// A hypothesis is tested against so many ratios next to it: as many as there are above the tolerated one.
const ALTERNATIVES: usize = 8;
/// Of `Evidence`'s fixed-point numbers.
const UNIT: f64 = 1e-9;
/// Enough to have judged any release, and few enough that no sum overflows.
const MOST_FAILED: u64 = 1_000_000_000;
/// JSON numbers are exact up to here.
const MOST_REQUESTS: u64 = 1 << 53;

/// Requests to one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All that tell something of the version.
    pub requests: u64,
    /// Those that failed; never more than `requests`.
    pub failed: u64,
}

impl Tally {
    fn failed(self) -> u64 {
        self.failed.min(self.requests)
    }
}

/// Requests of the same time. Too few in one say little: the test compares within a batch only, and of N requests that come
/// together it uses what N − 1 are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch {
    /// To version 1.
    pub stable: Tally,
    /// To version 2.
    pub canary: Tally,
    /// 0 where all requests had the same chance to go to version 2. While a raised weight spreads over the controllers: that
    /// weight as a fraction of one, so that failures late in the batch are not taken for version 2's.
    pub least_share: f64,
}

impl Batch {
    /// Version 2's share of the requests: as counted, the smallest and the largest that any request's chance may have been.
    fn shares(&self) -> (f64, f64, f64) {
        let (stable, canary) = (as_f64(self.stable.requests), as_f64(self.canary.requests));
        let seen = if canary > 0.0 { canary / (stable + canary) } else { 0.0 };
        // With chances wᵢ a batch's factor is at most Π(1 + c·(wᵢ − ρ)) on average, c > 0 for evidence of harm, c < 0 for
        // evidence of none: at most 1 where ρ ≥ all wᵢ, or ρ ≤ all wᵢ, and moving ρ further only lowers it.
        match self.least_share.clamp(0.0, 1.0) {
            least if least > 0.0 => (seen, 0.0, seen.max(least)),
            _ => (seen, seen, seen),
        }
    }
}

impl Evidence {
    /// No evidence. `ignore_below`: the risk ratio that is tolerated, 1 for none; from 0.02 to 50, and 1 where it is no number.
    #[must_use]
    pub fn new(ignore_below: f64) -> Self {
        let tolerated = if ignore_below.is_nan() { 1.0 } else { ignore_below };
        Self {
            ignore_below: tolerated.clamp(0.02, 50.0),
            canary: 0,
            canary_failed: 0,
            stable: 0,
            stable_failed: 0,
            sums: vec![0; GRID.len()],
            least_sums: vec![0; GRID.len()],
            canary_weighed: 0,
            stable_weighed: 0,
        }
    }

    /// Whether it can have come from [`Evidence::add`]. What somebody wrote by hand is judged like no evidence.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let (canary, stable) = (self.canary_failed, self.stable_failed);
        (0.02..=50.0).contains(&self.ignore_below)
            && canary <= self.canary
            && stable <= self.stable
            && self.canary.max(self.stable) <= MOST_REQUESTS
            && canary.saturating_add(stable) <= MOST_FAILED
            && is_part(self.canary_weighed, canary)
            && is_part(self.stable_weighed, stable)
            && [&self.sums, &self.least_sums]
                .iter()
                .all(|sums| self.may_be(sums, canary + stable))
    }

    /// Whether these may be the sums over batches with so many failures: but for rounding, none falls behind the one before,
    /// and none is beyond n·ln r.
    fn may_be(&self, sums: &[i64], failed: u64) -> bool {
        let slack = 50.0 * UNIT * as_f64(failed);
        let most = |multiple: f64| as_f64(failed) * (self.ignore_below * multiple).ln();
        let ([lowest, .., highest], [low, .., high]) = (GRID, sums) else {
            return false;
        };
        sums.len() == GRID.len()
            && sums.is_sorted_by(|sum, next| float(*sum) <= float(*next) + slack)
            && float(*low) >= most(lowest).min(0.0) - slack
            && float(*high) <= most(highest).max(0.0) + slack
    }

    /// Adds requests that came since the batch before.
    pub fn add(&mut self, batch: &Batch) {
        if !self.is_sound() {
            *self = Self::new(self.ignore_below);
        }
        let canary = self.canary.saturating_add(batch.canary.requests);
        let stable = self.stable.saturating_add(batch.stable.requests);
        let canary_failed = self.canary_failed.saturating_add(batch.canary.failed());
        let stable_failed = self.stable_failed.saturating_add(batch.stable.failed());
        if canary.max(stable) > MOST_REQUESTS || canary_failed.saturating_add(stable_failed) > MOST_FAILED {
            return;
        }
        (self.canary, self.canary_failed) = (canary, canary_failed);
        (self.stable, self.stable_failed) = (stable, stable_failed);
        let (seen, least, most) = batch.shares();
        self.canary_weighed += fixed(as_f64(batch.canary.failed()) * (1.0 - seen));
        self.stable_weighed += fixed(as_f64(batch.stable.failed()) * seen);
        let failed = batch.canary.failed() + batch.stable.failed();
        if failed == 0 {
            return;
        }
        // Rounding must not make evidence, which is made of differences: each sum is rounded a little further than the one
        // before, to the side where that lowers it.
        let error = margin(failed);
        let mut tilt = 0;
        for ((ratio, sum), least_sum) in self.ratios().into_iter().zip(&mut self.sums).zip(&mut self.least_sums) {
            let term = |share: f64| fixed(as_f64(failed) * (share * (ratio - 1.0)).ln_1p());
            let with_most = term(most);
            // Mostly one share is known: a plan that is played takes half the time.
            let with_least = if least < most { term(least) } else { with_most };
            *sum = sum.saturating_add(with_most + tilt);
            *least_sum = least_sum.saturating_add(with_least - tilt);
            tilt += error;
        }
    }

    /// The ratios that are tried.
    fn ratios(&self) -> [f64; GRID.len()] {
        GRID.map(|ratio| ratio * self.ignore_below)
    }

    /// Evidence that version 2's risk is more than `ignore_below` times version 1's: natural logarithm of an e-value, which
    /// is ever ln(1/α) or more in at most a share α of the releases where it is not.
    #[must_use]
    pub fn log_harm(&self) -> f64 {
        log_above(&self.log_likelihoods(&self.sums), TOLERATED)
    }

    /// Evidence that version 2's risk is less than `ratio` times version 1's, in the same terms. A ratio that is not in the
    /// grid (such as `2.0 * ignore_below`) is judged as the next below that is; below all of them there is no evidence.
    #[must_use]
    pub fn log_no_harm(&self, ratio: f64) -> f64 {
        let ratios = self.ratios();
        let at = ratios.iter().rposition(|other| *other <= ratio * (1.0 + 1e-9));
        at.map_or(0.0, |at| log_below(&self.log_likelihoods(&self.least_sums), at))
    }

    /// How likely each ratio of the grid makes what was seen, up to a common factor: natural logarithms.
    fn log_likelihoods(&self, sums: &[i64]) -> [f64; GRID.len()] {
        let mut all = [0.0; GRID.len()];
        if self.is_sound() {
            for ((log, ratio), sum) in all.iter_mut().zip(self.ratios()).zip(sums) {
                *log = as_f64(self.canary_failed) * ratio.ln() - float(*sum);
            }
        }
        all
    }

    /// How many times version 1's risk version 2's is, by Mantel and Haenszel; infinite where only version 2 failed. None
    /// before any failure while both versions had requests.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let (canary, stable) = (float(self.canary_weighed), float(self.stable_weighed));
        (self.is_sound() && canary + stable > 0.0).then(|| canary / stable)
    }

    /// The risk ratios that are not ruled out, from and to; open where the grid ends. Either bound is ever wrong in at most
    /// a share `alpha` of the releases, to the next ratio of the grid: in between it is interpolated.
    #[must_use]
    pub fn confidence(&self, alpha: f64) -> (Option<f64>, Option<f64>) {
        let ratios = self.ratios();
        let (harm, no_harm) = (self.log_likelihoods(&self.sums), self.log_likelihoods(&self.least_sums));
        let above = ratios
            .iter()
            .enumerate()
            .map(|(at, ratio)| (*ratio, log_above(&harm, at)));
        let below = ratios
            .iter()
            .enumerate()
            .map(|(at, ratio)| (*ratio, log_below(&no_harm, at)));
        let limit = -alpha.ln();
        (last_ruled_out(above, limit), last_ruled_out(below.rev(), limit))
    }

    /// The estimate and what is not ruled out, such as `risk ratio 1.8 (1.1 to 3.2)`.
    #[must_use]
    pub fn in_words(&self, alpha: f64) -> String {
        let (from, to) = self.confidence(alpha);
        let range = match (from, to) {
            (Some(from), Some(to)) => format!("{} to {}", short(from), short(to)),
            (Some(from), None) => format!("{} to …", short(from)),
            (None, Some(to)) => format!("… to {}", short(to)),
            (None, None) if (self.canary_failed, self.stable_failed) == (0, 0) => {
                return "risk ratio unknown (no failures)".to_owned();
            }
            (None, None) => return "risk ratio unknown (too few failures)".to_owned(),
        };
        let ratio = self.ratio().unwrap_or(1.0);
        // Both are estimates of the same; one outside of the other would only puzzle.
        let ratio = ratio.max(from.unwrap_or(ratio)).min(to.unwrap_or(ratio));
        let [lowest, .., highest] = self.ratios();
        let ratio = match ratio {
            _ if ratio > highest => format!("above {}", short(highest)),
            _ if ratio < lowest => format!("below {}", short(lowest)),
            _ => short(ratio),
        };
        format!("risk ratio {ratio} ({range})")
    }
}

/// Evidence that the risk ratio is more than the one at this place of the grid.
fn log_above(log_likelihoods: &[f64; GRID.len()], place: usize) -> f64 {
    let alternatives = log_likelihoods.iter().skip(place + 1).take(ALTERNATIVES);
    log_mean_ratio(alternatives, log_likelihoods.get(place))
}

/// Evidence that it is less.
fn log_below(log_likelihoods: &[f64; GRID.len()], place: usize) -> f64 {
    let alternatives = log_likelihoods.iter().take(place).rev().take(ALTERNATIVES);
    log_mean_ratio(alternatives, log_likelihoods.get(place))
}

/// ln of the mean of exp(log − other); 0 where there is nothing to take the mean of.
fn log_mean_ratio<'a>(logs: impl Iterator<Item = &'a f64> + Clone, other: Option<&f64>) -> f64 {
    let (Some(other), Some(largest)) = (other, logs.clone().copied().reduce(f64::max)) else {
        return 0.0;
    };
    let (sum, count) = logs.fold((0.0, 0.0), |(sum, count), log| {
        (sum + (log - largest).exp(), count + 1.0)
    });
    largest - other + (sum / count).ln()
}

/// The furthest of the ratios from one end of the grid that the evidence rules out, and with it all before it; interpolated
/// to the next. The evidence need not grow towards that end: another mean is taken for each.
fn last_ruled_out(ratios: impl Iterator<Item = (f64, f64)>, limit: f64) -> Option<f64> {
    let (mut furthest, mut before) = (None, None);
    for (ratio, log) in ratios {
        if log >= limit {
            furthest = Some(ratio);
        } else if let Some((out, beyond)) = before.filter(|(_, log): &(f64, f64)| *log >= limit) {
            let out: f64 = out;
            furthest = Some(out * (ratio / out).powf((beyond - limit) / (beyond - log)));
        }
        before = Some((ratio, log));
    }
    furthest
}

/// A number to two digits, or without a fraction.
pub(super) fn short(number: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 0 to 9.
    let decimals = (1.0 - number.log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// By how many billionths the difference of two terms of a batch with so many failures may be off: one for rounding, and
/// what a float as large as theirs cannot tell.
fn margin(failed: u64) -> i64 {
    i64::try_from(1 + failed / 100_000).unwrap_or(i64::MAX)
}

/// Whether it may be the sum of so many numbers from 0 to 1, each of them rounded.
fn is_part(sum: i64, of: u64) -> bool {
    let most = as_f64(of);
    (0.0..=most * (1.0 + UNIT)).contains(&float(sum))
}

#[allow(clippy::cast_precision_loss)] // Counts stay far below 2^53.
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss)] // Exact for two million failures, and to one in 10^15 beyond.
fn float(billionths: i64) -> f64 {
    billionths as f64 * UNIT
}

/// To the nearest billionth.
#[allow(clippy::cast_possible_truncation)] // `MOST_FAILED` keeps it within.
fn fixed(number: f64) -> i64 {
    (number / UNIT).round() as i64
}

#[cfg(test)]
mod tests;
