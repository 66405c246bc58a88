//! Durations as people write them for Kubernetes: `30s`, `1h30m`, `500ms`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr, time};

/// A length of time in Go's grammar without sign or units below a millisecond, whole milliseconds, at most 8,760 h.
///
/// Our own because `kube::core::Duration` panics while decoding `99999999999999999999h`, inside the watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

/// What is wrong with a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not numbers, each followed by its unit.
    #[error("{0:?} is not a duration: write numbers with units, such as 30s, 5m or 1h30m")]
    Malformed(String),
    /// Longer than a year.
    #[error("{0:?} is longer than a year (8760h)")]
    TooLong(String),
}

impl Duration {
    const LONGEST_MILLIS: u128 = 8_760 * 3_600_000;

    /// Whole seconds, at most a year.
    #[must_use]
    pub const fn seconds(seconds: u32) -> Self {
        let most = 8_760 * 3_600;
        Self(time::Duration::from_secs(if seconds > most {
            most as u64
        } else {
            seconds as u64
        }))
    }

    /// A measured length to the millisecond, at most a year.
    #[must_use]
    pub fn of(length: time::Duration) -> Self {
        let millis = u64::try_from(length.as_millis().min(Self::LONGEST_MILLIS)).unwrap_or(u64::MAX);
        Self(time::Duration::from_millis(millis))
    }

    /// The same length for arithmetic.
    #[must_use]
    pub const fn get(self) -> time::Duration {
        self.0
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let malformed = || DurationError::Malformed(text.to_owned());
        let too_long = || DurationError::TooLong(text.to_owned());
        if text == "0" {
            return Ok(Self::default());
        }
        let (mut rest, mut millis) = (text, 0u128);
        if rest.is_empty() || rest.len() > 32 {
            return Err(malformed());
        }
        while !rest.is_empty() {
            let number_ends = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(malformed)?;
            let (number, tail) = rest.split_at(number_ends);
            let unit_ends = tail
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_ends);
            let scale: u128 = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return Err(malformed()),
            };
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 || fraction.contains('.') {
                return Err(malformed());
            }
            let whole: u128 = whole.parse().map_err(|_| too_long())?;
            let fraction: u128 = format!("{fraction:0<9}").parse().map_err(|_| malformed())?;
            let part = whole
                .checked_mul(scale)
                .and_then(|w| w.checked_add(fraction * scale / 1_000_000_000));
            millis = part.and_then(|part| millis.checked_add(part)).ok_or_else(too_long)?;
            rest = tail;
        }
        match u64::try_from(millis) {
            Ok(short) if millis <= Self::LONGEST_MILLIS => Ok(Self(time::Duration::from_millis(short))),
            _ => Err(too_long()),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": "self == '0' || self.matches('^([0-9]{1,8}([.][0-9]{1,9})?(ms|s)|[0-9]{1,6}([.][0-9]{1,9})?m|[0-9]{1,4}([.][0-9]{1,9})?h)+$') && duration(self) <= duration('8760h')",
                "message": "a duration is numbers with units and no sign, such as 30s, 5m or 1h30m, and at most a year (8760h)",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis, shown) in [
            ("30s", 30_000, "30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1.5m", 90_000, "1m30s"),
            ("500ms", 500, "500ms"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("8760h", 31_536_000_000, "8760h"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(
                (duration.get().as_millis(), duration.to_string().as_str()),
                (millis, shown)
            );
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused_with_the_text_in_question() {
        for text in [
            "",
            "-5s",
            "5",
            "s",
            "1h-5m",
            "5 m",
            "1..5s",
            "1.s",
            "99999999999999999999h",
            "8761h",
            "1d",
            "1M",
        ] {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "[0-9.hms-]{0,40}|.{0,20}") {
            let _ = text.parse::<Duration>();
        }

        #[test]
        fn what_is_shown_is_read_back(millis in 0u64..31_536_000_000) {
            let duration = Duration(time::Duration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
