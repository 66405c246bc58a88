//! Shares of the traffic, exact to one request in a million.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// A share of the requests in percent, 0 to 100 with up to four decimal places.
///
/// Written as an integer (`30`) or as a decimal string (`"0.01"`); a YAML float is refused, because
/// `0.1` has no exact binary form. Held in units of 1/10,000 percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

/// What is wrong with a weight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Not digits with an optional fraction of one to four digits.
    #[error(
        "{0:?} is not a weight: write an integer from 0 to 100, or a decimal string of up to four places such as \"0.01\""
    )]
    Malformed(String),
    /// More than one hundred percent.
    #[error("weight {0} is over 100")]
    TooLarge(String),
}

impl Weight {
    /// No requests.
    pub const ZERO: Self = Self(0);
    /// Every request.
    pub const FULL: Self = Self(Self::SCALE * 100);
    const SCALE: u32 = 10_000;

    /// A whole percentage; anything over 100 is 100.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        if percent >= 100 {
            Self::FULL
        } else {
            Self(percent * Self::SCALE)
        }
    }

    /// `(weight, total)` with the smallest total of 100, 1,000, … 1,000,000 that expresses this share exactly.
    #[must_use]
    pub fn ratio(self) -> (u32, u32) {
        let (mut weight, mut total) = (self.0, Self::FULL.0);
        while total > 100 && weight % 10 == 0 {
            (weight, total) = (weight / 10, total / 10);
        }
        (weight, total)
    }

    /// The share that `weight` of `total` requests is, rounded down; a total of 0 is no share.
    #[must_use]
    pub fn from_ratio(weight: u32, total: u32) -> Self {
        let units = u64::from(weight) * u64::from(Self::FULL.0) / u64::from(total).max(1);
        Self(u32::try_from(units).map_or(Self::FULL.0, |units| units.min(Self::FULL.0)))
    }

    /// As a fraction of one.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::FULL.0)
    }

    /// How many of `replicas` pods this share of the traffic needs, rounded up and at least one.
    #[must_use]
    pub fn pods_of(self, replicas: i32) -> i32 {
        let replicas = u64::from(replicas.max(0).unsigned_abs());
        let pods = (replicas * u64::from(self.0)).div_ceil(u64::from(Self::FULL.0));
        i32::try_from(pods).unwrap_or(i32::MAX).max(1)
    }

    /// The sum of two shares, at most everything.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0).min(Self::FULL.0))
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / Self::SCALE, self.0 % Self::SCALE);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{fraction:04}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let malformed = || WeightError::Malformed(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |part: &str, most: usize| (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole, 3) || !digits(fraction, 4) {
            return Err(malformed());
        }
        let whole: u32 = whole.parse().map_err(|_| malformed())?;
        let fraction: u32 = format!("{fraction:0<4}").parse().map_err(|_| malformed())?;
        match whole * Self::SCALE + fraction {
            units if units <= Self::FULL.0 => Ok(Self(units)),
            _ => Err(WeightError::TooLarge(text.to_owned())),
        }
    }
}

impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(Self::SCALE) {
            serializer.serialize_u32(self.0 / Self::SCALE)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Weight;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer from 0 to 100 or a decimal string such as \"0.01\"")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Weight, E> {
                value.to_string().parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Weight, E> {
                value.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Weight, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Weight {
    fn schema_name() -> Cow<'static, str> {
        "Weight".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 8,
            "x-kubernetes-validations": [{
                "rule": "string(self).matches('^(100([.]0{1,4})?|[0-9]{1,2}([.][0-9]{1,4})?)$')",
                "message": "a weight is an integer from 0 to 100, or a decimal string of up to four places such as \"0.01\"",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weight(text: &str) -> Weight {
        text.parse().unwrap()
    }

    #[test]
    fn the_smallest_total_that_is_exact_is_chosen() {
        assert_eq!(weight("30").ratio(), (30, 100));
        assert_eq!(weight("0.01").ratio(), (1, 10_000));
        assert_eq!(weight("12.5").ratio(), (125, 1_000));
        assert_eq!(weight("0.0001").ratio(), (1, 1_000_000));
        assert_eq!(weight("100").ratio(), (100, 100));
        assert_eq!(weight("0").ratio(), (0, 100));
    }

    #[test]
    fn pods_follow_the_share_rounded_up() {
        let pods = |w, replicas| weight(w).pods_of(replicas);
        assert_eq!(
            [
                pods("0", 4),
                pods("0.01", 4),
                pods("25", 4),
                pods("26", 4),
                pods("100", 4)
            ],
            [1, 1, 1, 2, 4]
        );
    }

    #[test]
    fn what_is_not_a_weight_is_refused_with_the_text_in_question() {
        for text in [
            "", "-1", "+1", "1.", ".5", "1.23456", "1e2", " 1", "30%", "0030", "NaN", "100.0001", "101",
        ] {
            let error = text.parse::<Weight>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(
            serde_json::from_str::<Weight>("0.5").is_err(),
            "a float has no exact form"
        );
        assert!(serde_json::from_str::<Weight>("-3").is_err());
    }

    proptest! {
        #[test]
        fn text_and_json_come_back_as_they_went(units in 0u32..=1_000_000) {
            let weight = Weight(units);
            prop_assert_eq!(weight.to_string().parse::<Weight>().unwrap(), weight);
            let json = serde_json::to_string(&weight).unwrap();
            prop_assert_eq!(serde_json::from_str::<Weight>(&json).unwrap(), weight);
            let (part, total) = weight.ratio();
            prop_assert_eq!(Weight::from_ratio(part, total), weight);
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in ".{0,12}") {
            let _ = text.parse::<Weight>();
        }
    }
}
