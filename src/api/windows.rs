//! When a release may go on: windows and freezes, as people write them.

use jiff::civil::{Date, DateTime, Time};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// A time of the day as a regular expression, 24:00 left out.
const CLOCK: &str = "([01][0-9]|2[0-3]):[0-5][0-9]";

/// A date of the years 2000 to 2099 that exists, as a regular expression: the API server has no other way to tell that
/// 30 February is none with a sentence of ours.
const DATE: &str = "(20[0-9]{2}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|20([02468][048]|[13579][26])-02-29)";

/// CEL for what is no time of the day, or no moment. Its own rule says so: another rule that stumbled over it would only
/// add noise.
fn misshapen_clock(field: &str) -> String {
    format!("!{field}.matches('^{CLOCK}$')")
}

fn misshapen_moment(field: &str) -> String {
    format!("!{field}.matches('^{DATE}(T{CLOCK})?$')")
}

/// Hours of the week in which a release may go on.
///
/// A window begins when its clock first shows `from` or later, and ends when it shows nothing before `to` any more. Where
/// clocks are put forward, a window from or to a time that is left out therefore begins or ends with the change; where
/// they are put back, it begins at the first of the two and ends at the second, or, with the very time that they are put
/// back to, at the first.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.from) == has(self.to)").message("set from and to, or neither of them for whole days"),
    validation = Rule::new("!has(self.from) || self.from != '24:00'").message("from is a time from 00:00 to 23:59: only to may be 24:00, the end of the day"),
    validation = Rule::new(format!("!has(self.from) || !has(self.to) || self.from != self.to || {}", misshapen_clock("self.from"))).message("from and to are the same time: leave both out for whole days"),
)]
pub struct Window {
    /// Days on which the window begins. Every day when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 7))]
    #[x_kube(
        validation = Rule::new("self.all(day, self.exists_one(other, other == day))").message("name each day once"),
        merge_strategy = ListMerge::Atomic,
    )]
    pub days: Option<Vec<Day>>,
    /// When the window begins, such as `09:00`. The whole day when both `from` and `to` are omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ClockTime>,
    /// When the window ends, such as `17:00`, or `24:00` for the end of the day. Earlier than `from`: on the next day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ClockTime>,
    /// Name of the time zone in the IANA database whose days and times these are, such as `Europe/Madrid`.
    #[serde(default)]
    pub time_zone: TimeZoneName,
}

/// A time in which no release goes on, whatever the windows are.
///
/// It begins and ends as a window does where clocks are changed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    // As texts: a date alone is the beginning of the same date with a time, and differs from it only at midnight.
    validation = Rule::new(format!("self.from < self.to && self.to != self.from + 'T00:00' || {} || {}", misshapen_moment("self.from"), misshapen_moment("self.to")))
        .message("a freeze ends after it begins; a date alone is the midnight with which it begins, so that a freeze of one day ends with the next date"),
)]
pub struct Freeze {
    /// When the freeze begins, such as `2026-12-23T18:00`; a date alone is the midnight with which it begins.
    pub from: CivilTime,
    /// When the freeze ends, such as `2027-01-02T08:00`; a date alone is the midnight with which it begins.
    pub to: CivilTime,
    /// Name of the time zone in the IANA database whose dates and times these are, such as `Europe/Madrid`.
    #[serde(default)]
    pub time_zone: TimeZoneName,
    /// Why, for the people who read what the release waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub reason: Option<String>,
}

/// A day of the week.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
#[allow(missing_docs)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    /// The day of the week of a date.
    #[must_use]
    pub fn of(date: Date) -> Self {
        use jiff::civil::Weekday;
        match date.weekday() {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// What is wrong with a time of the day, a date or the name of a time zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// Not hours and minutes.
    #[error("{0:?} is not a time of the day: write hours and minutes with two digits each, such as 09:00, up to 24:00")]
    Clock(String),
    /// Not a date, or a date and a time.
    #[error(
        "{0:?} is not a date of this century: write it as 2026-12-23, or with a time as 2026-12-23T18:00, without seconds or offset"
    )]
    Civil(String),
    /// Nothing that a time zone could be called.
    #[error("{0:?} is not a time zone: write its name in the IANA database, such as Europe/Madrid or UTC")]
    Zone(String),
}

/// A number of exactly so many digits.
fn digits(text: &str, count: usize) -> Option<u16> {
    let whole = text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    whole.then(|| text.parse().ok()).flatten()
}

/// A time of the day to the minute, `00:00` to `24:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClockTime(u16);

impl ClockTime {
    /// The beginning of the day.
    pub const MIDNIGHT: Self = Self(0);
    /// The end of the day.
    pub const END_OF_DAY: Self = Self(24 * 60);

    /// This time of `date`, which the end of the day has on the next; nothing after the last date there is.
    #[must_use]
    pub fn on(self, date: Date) -> Option<DateTime> {
        if self == Self::END_OF_DAY {
            return Some(date.tomorrow().ok()?.to_datetime(Time::midnight()));
        }
        let part = |minutes: u16| i8::try_from(minutes).ok();
        let time = Time::new(part(self.0 / 60)?, part(self.0 % 60)?, 0, 0).ok()?;
        Some(date.to_datetime(time))
    }
}

impl fmt::Display for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl FromStr for ClockTime {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Self, CalendarError> {
        let parts = text
            .split_once(':')
            .and_then(|(hours, minutes)| Some((digits(hours, 2)?, digits(minutes, 2)?)));
        match parts {
            Some((hours @ 0..24, minutes @ 0..60)) => Ok(Self(hours * 60 + minutes)),
            Some((24, 0)) => Ok(Self::END_OF_DAY),
            _ => Err(CalendarError::Clock(text.to_owned())),
        }
    }
}

/// A moment as a calendar and a clock on the wall show it, in the years 2000 to 2099: `2026-12-23T18:00`, or
/// `2026-12-23` for the midnight with which that date begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilTime {
    date: Date,
    time: Option<ClockTime>,
}

impl CivilTime {
    /// The same moment for arithmetic; nothing after the last date there is.
    #[must_use]
    pub fn get(self) -> Option<DateTime> {
        self.time.unwrap_or(ClockTime::MIDNIGHT).on(self.date)
    }
}

impl fmt::Display for CivilTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.date)?;
        self.time.map_or(Ok(()), |time| write!(f, "T{time}"))
    }
}

impl FromStr for CivilTime {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Self, CalendarError> {
        let malformed = || CalendarError::Civil(text.to_owned());
        let (date, time) = text
            .split_once('T')
            .map_or((text, None), |(date, time)| (date, Some(time)));
        let time = match time.map(str::parse) {
            None => None,
            Some(Ok(time)) if time < ClockTime::END_OF_DAY => Some(time),
            Some(_) => return Err(malformed()),
        };
        let part = |text: Option<&str>, count| text.and_then(|text| digits(text, count));
        let mut parts = date.split('-');
        let year = part(parts.next(), 4).filter(|year| (2000..2100).contains(year));
        let (month, day) = (part(parts.next(), 2), part(parts.next(), 2));
        let date = match (year, month, day, parts.next()) {
            (Some(year), Some(month), Some(day), None) => {
                let small = |part: u16| i8::try_from(part).map_err(|_| malformed());
                let year = i16::try_from(year).map_err(|_| malformed())?;
                Date::new(year, small(month)?, small(day)?).map_err(|_| malformed())?
            }
            _ => return Err(malformed()),
        };
        Ok(Self { date, time })
    }
}

/// What a time zone could be called. Whether there is such a zone is asked when the release is looked at, from the
/// database in the operator: the API server's may be older, or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeZoneName(String);

impl TimeZoneName {
    const LONGEST: usize = 64;

    /// The name as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TimeZoneName {
    fn default() -> Self {
        Self("UTC".to_owned())
    }
}

impl fmt::Display for TimeZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TimeZoneName {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Self, CalendarError> {
        let part = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'_'))
        };
        if text.len() > Self::LONGEST
            || !text.starts_with(|c: char| c.is_ascii_alphabetic())
            || !text.split('/').all(part)
        {
            return Err(CalendarError::Zone(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A type that is written as text, with the rule and the sentence that the API server has for it.
macro_rules! written_as_text {
    ($type:ident, $longest:expr, $rule:expr, $sentence:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "maxLength": $longest,
                    "x-kubernetes-validations": [{"rule": $rule, "message": $sentence}],
                })
            }
        }
    };
}

// Longer than any good text, so that a bad one gets to read the sentence.
written_as_text!(
    ClockTime,
    32,
    format!("self.matches('^({CLOCK}|24:00)$')"),
    "a time of the day is hours and minutes with two digits each, such as 09:00, up to 24:00"
);
written_as_text!(
    CivilTime,
    32,
    format!("self.matches('^{DATE}(T{CLOCK})?$')"),
    "a date of this century is written as 2026-12-23, or with a time as 2026-12-23T18:00, without seconds or offset"
);
written_as_text!(
    TimeZoneName,
    TimeZoneName::LONGEST,
    "self.matches('^[a-zA-Z][-+_a-zA-Z0-9]*(/[-+_a-zA-Z0-9]+)*$')",
    "a time zone is written as its name in the IANA database, such as Europe/Madrid or UTC"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn what_people_write_is_kept_as_they_wrote_it() {
        for text in ["00:00", "09:05", "23:59", "24:00"] {
            assert_eq!(text.parse::<ClockTime>().unwrap().to_string(), text);
        }
        for text in ["2026-12-23T18:00", "2026-12-23", "2028-02-29", "2000-02-29T00:00"] {
            assert_eq!(text.parse::<CivilTime>().unwrap().to_string(), text);
        }
        for text in ["UTC", "Europe/Madrid", "America/Argentina/Buenos_Aires", "Etc/GMT+5"] {
            assert_eq!(text.parse::<TimeZoneName>().unwrap().to_string(), text);
        }
        let window =
            json!({"days": ["Mon", "Thu"], "from": "22:00", "to": "02:30", "timeZone": "America/Port-au-Prince"});
        let freeze = json!({"from": "2026-12-23T18:00", "to": "2027-01-02", "timeZone": "UTC", "reason": "Christmas"});
        let back: (Window, Freeze) = serde_json::from_value(json!([window, freeze])).unwrap();
        assert_eq!(serde_json::to_value(back).unwrap(), json!([window, freeze]));
    }

    #[test]
    fn what_is_left_out_is_left_out_but_for_the_time_zone() {
        let window: Window = serde_json::from_value(json!({})).unwrap();
        assert_eq!(serde_json::to_value(window).unwrap(), json!({"timeZone": "UTC"}));
    }

    #[test]
    fn what_is_no_time_date_or_zone_is_refused_with_the_text_in_question() {
        fn refused<T: FromStr<Err = CalendarError>>(texts: &[&str]) {
            for text in texts {
                let error = text.parse::<T>().err().unwrap_or_else(|| panic!("{text} is taken"));
                assert!(error.to_string().starts_with(&format!("{text:?} is not a")), "{error}");
            }
        }
        refused::<ClockTime>(&[
            "",
            "9:00",
            "09:0",
            "0900",
            "24:01",
            "25:00",
            "09:60",
            "-1:00",
            "09:00:00",
            "9am",
            "+9:00",
            "09h00",
            "٠٩:٠٠",
        ]);
        refused::<CivilTime>(&[
            "",
            "2026-02-29",
            "2100-02-28",
            "1999-12-31",
            "2026-13-01",
            "2026-00-10",
            "2026-04-31",
            "26-12-23",
            "2026-12-23T24:00",
            "2026-12-23T18",
            "2026-12-23T18:00:00",
            "2026-12-23T18:00Z",
            "2026-12-23 18:00",
            "2026-12-23-01",
            "23.12.2026",
            "T18:00",
            "Christmas",
        ]);
        refused::<TimeZoneName>(&[
            "",
            "Europe/",
            "/Madrid",
            "Europe//Madrid",
            "+01:00",
            "Europe/Madrid ",
            "5",
            "Ü",
        ]);
        refused::<TimeZoneName>(&[&"a".repeat(65)]);
    }

    /// What a rule of this file's schemas says, evaluated without CEL.
    fn taken_by_the_rule<T: JsonSchema>(text: &str) -> bool {
        let schema = serde_json::to_value(T::json_schema(&mut SchemaGenerator::default())).unwrap();
        let rule = schema["x-kubernetes-validations"][0]["rule"].as_str().unwrap();
        let pattern = rule.strip_prefix("self.matches('").unwrap().strip_suffix("')").unwrap();
        let short = text.len() <= usize::try_from(schema["maxLength"].as_u64().unwrap()).unwrap();
        short && regex::Regex::new(pattern).unwrap().is_match(text)
    }

    #[test]
    fn the_rule_for_dates_knows_the_calendar() {
        for (year, month) in (1999..=2101).flat_map(|year| (0..=13).map(move |month| (year, month))) {
            for day in 0..=32 {
                let text = format!("{year:04}-{month:02}-{day:02}");
                assert_eq!(text.parse::<CivilTime>().is_ok(), dates().is_match(&text), "{text}");
            }
        }
        fn dates() -> &'static regex::Regex {
            static DATES: std::sync::LazyLock<regex::Regex> =
                std::sync::LazyLock::new(|| regex::Regex::new(&format!("^{DATE}$")).unwrap());
            &DATES
        }
    }

    proptest! {
        #[test]
        fn the_operator_takes_what_the_api_server_takes(
            clock in "[0-2]{0,2}[0-9]?:?[0-9]{1,3}",
            civil in "(20|19)?[0-9]{2}-[01]?[0-9]-[0-3][0-9](T[0-2][0-9]:[0-6][0-9])?",
            zone in "[a-zA-Z0-9/_+-]{0,12}",
        ) {
            prop_assert_eq!(clock.parse::<ClockTime>().is_ok(), taken_by_the_rule::<ClockTime>(&clock));
            prop_assert_eq!(civil.parse::<CivilTime>().is_ok(), taken_by_the_rule::<CivilTime>(&civil));
            prop_assert_eq!(zone.parse::<TimeZoneName>().is_ok(), taken_by_the_rule::<TimeZoneName>(&zone));
        }

        #[test]
        fn any_text_is_decoded_or_refused_without_a_panic(text in ".{0,40}|[0-9T:-]{0,20}") {
            let text = Value::from(text);
            let _ = serde_json::from_value::<ClockTime>(text.clone());
            let _ = serde_json::from_value::<CivilTime>(text.clone());
            let _ = serde_json::from_value::<TimeZoneName>(text.clone());
            let _ = serde_json::from_value::<Day>(text);
        }
    }
}
