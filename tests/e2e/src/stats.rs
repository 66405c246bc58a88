//! How far a count may stray from its expectation by chance alone.

/// Chance, per assertion, that a correct split is called wrong: one in 100,000, both sides together.
pub const FALSE_ALARM: f64 = 1e-5;

/// The smallest and largest counts of `n` answers that are still believable where each answer is a hit with
/// probability `share`: below the smallest, and above the largest, lies at most half of [`FALSE_ALARM`] each.
///
/// Exact tails, summed from the binomial distribution; the normal approximation is off by several answers at the
/// exercise's 99 requests.
#[must_use]
pub fn binomial_bounds(n: u32, share: f64) -> (u32, u32) {
    assert!(
        (0.0..=1.0).contains(&share),
        "a share lies between 0 and 1, not at {share}"
    );
    let low = first_beyond(n, share);
    (low, n - first_beyond(n, 1.0 - share))
}

/// The smallest count whose lower tail, itself included, exceeds half of [`FALSE_ALARM`].
fn first_beyond(n: u32, share: f64) -> u32 {
    let mut tail = 0.0;
    for hits in 0..=n {
        tail += probability(hits, n, share);
        if tail > FALSE_ALARM / 2.0 {
            return hits;
        }
    }
    n
}

/// Probability of exactly `hits` hits among `n`.
fn probability(hits: u32, n: u32, share: f64) -> f64 {
    let (hits, n) = (f64::from(hits), f64::from(n));
    // 0 · ln 0 is 0 here: a factor to the power of nothing.
    let power = |base: f64, exponent: f64| if exponent == 0.0 { 0.0 } else { exponent * base.ln() };
    let choose = ln_factorial(n) - ln_factorial(hits) - ln_factorial(n - hits);
    (choose + power(share, hits) + power(1.0 - share, n - hits)).exp()
}

/// Natural logarithm of `n!`: Lanczos' approximation of the gamma function (g = 7, nine terms), good to 1e-13.
fn ln_factorial(n: f64) -> f64 {
    const FIRST: f64 = 0.999_999_999_999_809_9;
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let series = (1..)
        .zip(TERMS)
        .fold(FIRST, |sum, (i, term)| sum + term / (n + f64::from(i)));
    let t = n + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (n + 0.5) * t.ln() - t + series.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorials_are_right() {
        let mut exact = 0.0;
        for n in 0..200 {
            if n > 0 {
                exact += f64::from(n).ln();
            }
            assert!((ln_factorial(f64::from(n)) - exact).abs() < 1e-10, "{n}");
        }
    }

    #[test]
    fn probabilities_add_up_to_one() {
        for (n, share) in [(1, 0.5), (99, 0.3), (2_000, 0.3), (5_000, 0.0001), (10, 0.0), (10, 1.0)] {
            let sum: f64 = (0..=n).map(|hits| probability(hits, n, share)).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{n} {share} {sum}");
        }
    }

    #[test]
    fn the_bounds_are_the_tightest_with_the_stated_tails() {
        for (n, share) in [(99, 0.3), (2_000, 0.3), (2_000, 0.5), (300, 0.1), (40, 0.7)] {
            let (low, high) = binomial_bounds(n, share);
            let below = |end: u32| (0..end).map(|hits| probability(hits, n, share)).sum::<f64>();
            let above = |start: u32| (start..=n).map(|hits| probability(hits, n, share)).sum::<f64>();
            assert!(
                below(low) <= FALSE_ALARM / 2.0 && below(low + 1) > FALSE_ALARM / 2.0,
                "{n} {share}: low {low}"
            );
            assert!(
                above(high + 1) <= FALSE_ALARM / 2.0 && above(high) > FALSE_ALARM / 2.0,
                "{n} {share}: high {high}"
            );
        }
    }

    #[test]
    fn the_exercise_has_these_bounds() {
        assert_eq!(binomial_bounds(99, 0.3), (11, 51));
        assert_eq!(binomial_bounds(2_000, 0.3), (511, 692));
    }

    #[test]
    fn one_in_ten_thousand_is_told_from_none_and_from_one_in_a_thousand() {
        let (low, high) = binomial_bounds(150_000, 0.0001);
        assert_eq!((low, high), (2, 35));
        assert!(binomial_bounds(150_000, 0.001).0 > high);
    }

    #[test]
    fn certain_outcomes_leave_no_room() {
        assert_eq!(binomial_bounds(50, 0.0), (0, 0));
        assert_eq!(binomial_bounds(50, 1.0), (50, 50));
    }

    #[test]
    fn a_correct_split_is_hardly_ever_called_wrong_and_a_wrong_one_is() {
        // xorshift64*, seeded: the same draws every time.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
        };
        let (low, high) = binomial_bounds(2_000, 0.3);
        let mut outside = |share: f64| {
            (0..200)
                .filter(|_| {
                    let hits = (0..2_000).filter(|_| draw() < share).count() as u32;
                    hits < low || hits > high
                })
                .count()
        };
        assert_eq!(outside(0.3), 0);
        assert!(outside(0.45) == 200 && outside(0.15) == 200);
    }
}
