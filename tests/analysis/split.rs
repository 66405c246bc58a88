//! Splits of requests, judged after every few of them.

use canary_operator::analysis::{SplitVerdict, judge_split};
use canary_operator::api::Weight;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use rand_distr::{Binomial, Distribution};

/// Requests of a release.
pub const MOST: u64 = 20_000;
/// Requests between two looks.
const LOOK: u64 = 20;

/// After how many requests each release's split is denied, where it is. `part`: how much of the weight comes; all when none.
pub fn play_all(weight: &str, part: Option<f64>, releases: u64) -> Vec<Option<u64>> {
    let weight: Weight = weight.parse().unwrap();
    let share = weight.fraction() * part.unwrap_or(1.0);
    crate::release::each(releases, |number| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(number);
        let look = Binomial::new(LOOK, share).unwrap();
        let mut canary = 0;
        (1..=MOST / LOOK).map(|looks| looks * LOOK).find(|all| {
            canary += look.sample(&mut rng);
            judge_split(weight, all - canary, canary, false) == SplitVerdict::Differs
        })
    })
}
