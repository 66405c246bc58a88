//! What a plan can find, told before it starts: the same test, on requests drawn at random.

use super::{Batch, Tally, judge::BATCH, sequential::short};
use crate::api::Evidence;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use rand_distr::{Distribution, Poisson};

/// Releases that are drawn: the probability is right to about two points.
const RUNS: u32 = 600;
/// Always the same, so that the same question has the same answer.
const SEED: u64 = 1;
/// Batches of a release, or one for each step where that is more. More would change little and take longer.
const BATCHES: f64 = 32.0;
/// Assumed of version 1 where no error was seen: who fails less would hardly notice a doubling.
const FLOOR: f64 = 0.001;
/// Found this often, a rise counts as found.
const RELIABLY: f64 = 0.8;
/// The rises that people ask for.
const RISES: [f64; 6] = [2.0, 3.0, 5.0, 10.0, 20.0, 50.0];
/// No plan has more requests of a version in a batch, and no release needs as many.
const MOST: f64 = 1e9;

/// A schedule, and how its requests are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// For each step version 2's share of the requests as a fraction of one, and how many seconds it is held.
    pub steps: Vec<(f64, f64)>,
    /// False rollbacks that are accepted, as a fraction of one.
    pub alpha: f64,
    /// Risk ratio that is tolerated, 1 for none.
    pub ignore_below: f64,
}

/// What a plan can find at the traffic that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Such as `at 5 req/s and 0.5% errors this plan finds a doubling of errors in 8% of cases, a fivefold rise in 96%`: the
    /// least rise that is not tolerated, and the least that is found reliably.
    pub words: String,
    /// How probable it is that the least rise that is not tolerated is found, as a fraction of one.
    pub least: f64,
}

/// How many requests come in a batch, on average.
struct Draw {
    batches: u32,
    stable: Requests,
    canary: Requests,
}

/// Of one version. None where none are expected.
struct Requests {
    good: Option<Poisson<f64>>,
    failed: Option<Poisson<f64>>,
}

impl Requests {
    fn new(expected: f64, risk: f64) -> Self {
        let poisson = |mean: f64| Poisson::new(mean.clamp(0.0, MOST)).ok();
        Self {
            good: poisson(expected * (1.0 - risk)),
            failed: poisson(expected * risk),
        }
    }

    fn draw(&self, rng: &mut Xoshiro256PlusPlus) -> Tally {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // Whole, not negative and not much over `MOST`.
        let mut draw = |of: &Option<Poisson<f64>>| of.map_or(0, |poisson| poisson.sample(rng) as u64);
        let (good, failed) = (draw(&self.good), draw(&self.failed));
        Tally {
            requests: good + failed,
            failed,
        }
    }
}

impl Plan {
    /// How probable it is that this plan finds a version 2 with `ratio` times version 1's risk before it ends, where
    /// `per_second` requests come and version 1 fails a share `error_rate` of them.
    #[must_use]
    pub fn power(&self, per_second: f64, error_rate: f64, ratio: f64) -> f64 {
        let (stable_risk, canary_risk) = (error_rate.clamp(0.0, 1.0), (error_rate * ratio).clamp(0.0, 1.0));
        #[allow(clippy::cast_precision_loss)] // At most 101 steps.
        let (enough, most) = (BATCH as f64, (BATCHES / self.steps.len() as f64).ceil().max(1.0));
        let draws = self.steps.iter().map(|(share, seconds)| {
            // The test uses what one fewer of a batch are worth; where traffic is low, batches are as small as they may be.
            let requests = per_second * seconds * (1.0 - 1.0 / enough);
            let batches = (requests / enough).clamp(1.0, most).floor();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 1 to `BATCHES`.
            Draw {
                batches: batches as u32,
                stable: Requests::new(requests * (1.0 - share) / batches, stable_risk),
                canary: Requests::new(requests * share / batches, canary_risk),
            }
        });
        let draws: Vec<_> = draws.collect();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let found = (0..RUNS).map(|_| u32::from(self.finds(&draws, &mut rng))).sum::<u32>();
        f64::from(found) / f64::from(RUNS)
    }

    fn finds(&self, draws: &[Draw], rng: &mut Xoshiro256PlusPlus) -> bool {
        let mut evidence = Evidence::new(self.ignore_below);
        let limit = -self.alpha.ln();
        let mut all = draws.iter().flat_map(|draw| (0..draw.batches).map(move |_| draw));
        all.any(|draw| {
            let (stable, canary) = (draw.stable.draw(rng), draw.canary.draw(rng));
            evidence.add(&Batch {
                stable,
                canary,
                least_share: 0.0,
            });
            canary.failed > 0 && evidence.log_harm() >= limit
        })
    }

    /// What this plan finds where `per_second` requests come and version 1 fails a share `error_rate` of them.
    #[must_use]
    pub fn outlook(&self, per_second: f64, error_rate: f64) -> Outlook {
        let of = |least: f64, words: String| Outlook { words, least };
        if per_second.is_nan() || per_second <= 0.0 {
            return of(0.0, "without requests this plan finds nothing".to_owned());
        }
        let (rate, known) = match error_rate.min(1.0) {
            rate if error_rate > 0.0 => (rate, format!("{}% errors", short(rate * 100.0))),
            _ => (
                FLOOR,
                format!("an assumed {}% errors (none so far)", short(FLOOR * 100.0)),
            ),
        };
        let traffic = format!("at {} req/s and {known}", short(per_second));
        let rises = self.rises(rate);
        let Some((first, rest)) = rises.split_first() else {
            return of(0.0, format!("{traffic} this plan tolerates whatever version 2 does"));
        };
        let found = |ratio: &f64| self.power(per_second, rate, *ratio);
        let least = found(first);
        let words = format!(
            "{traffic} this plan finds {} in {} of cases",
            rise(*first, rate, " of errors"),
            percent(least)
        );
        if least >= RELIABLY {
            return of(least, words);
        }
        // The first that is found reliably, or the largest.
        let mut largest = None;
        for ratio in rest {
            let often = found(ratio);
            largest = Some((ratio, often));
            if often >= RELIABLY {
                let words = format!("{words}, {} in {}", rise(*ratio, rate, ""), percent(often));
                return of(least, words);
            }
        }
        let words = match largest {
            None => words,
            Some((ratio, often)) => format!(
                "{words}, and even {} in only {}",
                rise(*ratio, rate, ""),
                percent(often)
            ),
        };
        of(least, words)
    }

    /// The rises that are not tolerated; the last is the failure of every request, where that is less than a 50-fold rise.
    fn rises(&self, error_rate: f64) -> Vec<f64> {
        let all = error_rate.recip();
        let rises = RISES.into_iter().filter(|ratio| *ratio < all).chain([all]);
        rises
            .filter(|ratio| *ratio > self.ignore_below && *ratio <= 50.0)
            .collect()
    }
}

/// `a doubling of errors`
fn rise(ratio: f64, error_rate: f64, of: &str) -> String {
    if ratio * error_rate > 1.0 - 1e-9 {
        return "the failure of every request".to_owned();
    }
    match ratio {
        2.0 => format!("a doubling{of}"),
        3.0 => format!("a threefold rise{of}"),
        5.0 => format!("a fivefold rise{of}"),
        10.0 => format!("a tenfold rise{of}"),
        _ => format!("a {}-fold rise{of}", short(ratio)),
    }
}

/// Never certainty: nothing is, and this is an estimate.
fn percent(share: f64) -> String {
    format!("{:.0}%", (share * 100.0).clamp(1.0, 99.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::Binomial;

    fn plan(steps: &[(f64, f64)]) -> Plan {
        Plan {
            steps: steps.to_vec(),
            alpha: 0.01,
            ignore_below: 1.0,
        }
    }

    /// 5, 10, 25 and 50 %, five minutes each.
    fn usual() -> Plan {
        plan(&[0.05, 0.1, 0.25, 0.5].map(|share| (share, 300.0)))
    }

    /// The share of releases that find it, with a batch for every ten seconds, and a weight that takes one to spread.
    fn simulated(plan: &Plan, per_second: f64, error_rate: f64, ratio: f64) -> f64 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
        let runs = 500;
        let mut found = 0;
        for _ in 0..runs {
            let mut draw = |n: u64, p: f64| Binomial::new(n, p.min(1.0)).unwrap().sample(&mut rng);
            let mut evidence = Evidence::new(plan.ignore_below);
            let mut look = |share: f64, first: bool| {
                let requests = (per_second * 10.0) as u64;
                let canary = draw(requests, share);
                let of = |requests: u64, failed: u64| Tally { requests, failed };
                evidence.add(&Batch {
                    stable: of(requests - canary, draw(requests - canary, error_rate)),
                    canary: of(canary, draw(canary, error_rate * ratio)),
                    least_share: if first { share } else { 0.0 },
                });
                evidence.log_harm() >= -plan.alpha.ln()
            };
            let mut steps = plan.steps.iter();
            found +=
                i32::from(steps.any(|(share, seconds)| (0..(seconds / 10.0) as u32).any(|n| look(*share, n == 0))));
        }
        f64::from(found) / f64::from(runs)
    }

    #[test]
    fn what_is_told_is_what_a_simulation_finds() {
        let short = plan(&[(0.3, 120.0), (1.0, 60.0)]);
        let ramp = plan(&[0.02, 0.1, 0.2, 0.4, 0.6, 0.8].map(|share| (share, 60.0)));
        let tolerant = Plan {
            ignore_below: 1.5,
            alpha: 0.1,
            ..usual()
        };
        let mut between = 0;
        for (plan, per_second, error_rate, ratio) in [
            (usual(), 2.0, 0.02, 3.0),
            (usual(), 5.0, 0.005, 3.0),
            (usual(), 5.0, 0.005, 10.0),
            (usual(), 50.0, 0.005, 1.5),
            (usual(), 500.0, 0.005, 1.0),
            (short.clone(), 300.0, 0.0005, 3.0),
            (short, 20.0, 0.05, 2.0),
            (ramp.clone(), 20.0, 0.02, 2.0),
            (ramp, 20.0, 0.3, 1.3),
            (tolerant.clone(), 50.0, 0.005, 2.0),
            (tolerant, 50.0, 0.002, 3.0),
        ] {
            let told = plan.power(per_second, error_rate, ratio);
            let real = simulated(&plan, per_second, error_rate, ratio);
            let what = format!("{per_second} req/s, {error_rate}·{ratio}, {:?}", plan.steps);
            assert!((told - real).abs() <= 0.1, "{told} instead of {real}: {what}");
            between += usize::from((0.1..0.9).contains(&told));
        }
        assert!(between >= 5, "only {between} are neither always nor never found");
    }

    #[test]
    fn a_larger_rise_and_more_requests_are_found_more_often() {
        let plan = usual();
        let by_ratio = RISES.map(|ratio| plan.power(5.0, 0.005, ratio));
        assert!(by_ratio.is_sorted(), "{by_ratio:?}");
        let by_rate = [1.0, 10.0, 100.0].map(|per_second| plan.power(per_second, 0.005, 2.0));
        assert!(by_rate.is_sorted(), "{by_rate:?}");
    }

    #[test]
    fn words_say_what_is_found_and_from_where_on() {
        let tolerant = Plan {
            ignore_below: 2.0,
            ..usual()
        };
        for (plan, per_second, error_rate, words) in [
            (
                usual(),
                5.0,
                0.005,
                "at 5 req/s and 0.5% errors this plan finds a doubling of errors in 8% of cases, a fivefold rise in 96%",
            ),
            (
                usual(),
                500.0,
                0.005,
                "at 500 req/s and 0.5% errors this plan finds a doubling of errors in 99% of cases",
            ),
            (
                usual(),
                50.0,
                0.0,
                "at 50 req/s and an assumed 0.1% errors (none so far) this plan finds a doubling of errors in 18% of cases, a threefold rise in 82%",
            ),
            (
                usual(),
                0.02,
                0.001,
                "at 0.02 req/s and 0.1% errors this plan finds a doubling of errors in 1% of cases, and even a 50-fold rise in only 1%",
            ),
            (
                usual(),
                3.0,
                0.7,
                "at 3 req/s and 70% errors this plan finds the failure of every request in 99% of cases",
            ),
            (usual(), 0.0, 0.1, "without requests this plan finds nothing"),
            (
                tolerant.clone(),
                50.0,
                0.005,
                "at 50 req/s and 0.5% errors this plan finds a threefold rise of errors in 60% of cases, a fivefold rise in 99%",
            ),
            (
                tolerant,
                50.0,
                0.6,
                "at 50 req/s and 60% errors this plan tolerates whatever version 2 does",
            ),
        ] {
            assert_eq!(plan.outlook(per_second, error_rate).words, words);
        }
    }

    #[test]
    fn a_rise_that_is_tolerated_is_not_what_the_outlook_is_measured_by() {
        let doubled = |ignore_below| {
            Plan {
                ignore_below,
                ..usual()
            }
            .outlook(50.0, 0.005)
            .least
        };
        assert!(doubled(1.0) > 0.8, "{}", doubled(1.0));
        let tolerant = Plan {
            ignore_below: 2.0,
            ..usual()
        };
        assert_eq!(tolerant.power(50.0, 0.005, 3.0), doubled(2.0));
    }

    #[test]
    fn nonsense_is_answered_too() {
        let numbers = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, 1e-300];
        for number in numbers {
            let plans = [
                plan(&[]),
                plan(&[(number, 60.0), (0.1, number)]),
                Plan {
                    alpha: number,
                    ignore_below: number,
                    ..usual()
                },
            ];
            for plan in plans {
                for other in numbers {
                    let power = plan.power(number, other, other);
                    assert!((0.0..=1.0).contains(&power), "{power}");
                    assert!(!plan.outlook(other, number).words.is_empty());
                }
            }
        }
    }
}
