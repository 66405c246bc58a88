use crate::{
    api::CanaryReleaseSpec,
    release::{Gate, check_windows, gate},
};
use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime},
    tz::TimeZoneDatabase,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A spec with these windows and freezes; null for none.
fn spec(windows: Value, freezes: Value) -> CanaryReleaseSpec {
    let spec = json!({"target": {"deployment": "web"}, "canary": {"image": "web:2"}, "steps": [{"weight": 30, "hold": "1m"}], "windows": windows, "freezes": freezes});
    serde_json::from_value(spec).unwrap_or_else(|error| panic!("{windows} {freezes}: {error}"))
}

/// How the gate goes on from `from` to `to`: when it opens and closes, beginning with how it is.
fn course(spec: &CanaryReleaseSpec, from: &str, to: &str) -> Vec<String> {
    let (mut now, end) = (at(from), at(to));
    let mut told = Vec::new();
    while now < end {
        let (word, until) = match gate(spec, now).unwrap() {
            Gate::Open { until } => ("open", until),
            Gate::Closed { until, .. } => ("closed", until),
        };
        told.push(format!("{now} {word}"));
        now = until.unwrap_or(end);
    }
    told
}

fn why(windows: Value, freezes: Value, now: &str) -> String {
    match gate(&spec(windows, freezes), at(now)).unwrap() {
        Gate::Closed { why, .. } => why,
        open => panic!("{open:?}"),
    }
}

/// Name, windows, freezes, from, to, what happens.
type Case = (
    &'static str,
    Value,
    Value,
    &'static str,
    &'static str,
    &'static [&'static str],
);

fn check(cases: &[Case]) {
    for (name, windows, freezes, from, to, expected) in cases {
        let found = course(&spec(windows.clone(), freezes.clone()), from, to);
        assert_eq!(found, *expected, "{name}");
    }
}

#[test]
fn windows_open_and_close_on_the_clock_of_their_zone() {
    let week = ("2026-11-23T00:00Z", "2026-11-30T00:00Z");
    check(&[
        (
            "no windows",
            Value::Null,
            Value::Null,
            week.0,
            week.1,
            &["2026-11-23T00:00:00Z open"],
        ),
        (
            "the design's example",
            json!([{"days": ["Mon", "Tue", "Wed", "Thu"], "from": "09:00", "to": "17:00", "timeZone": "Europe/Madrid"}]),
            Value::Null,
            "2026-11-25T00:00Z",
            "2026-12-01T00:00Z",
            &[
                "2026-11-25T00:00:00Z closed",
                "2026-11-25T08:00:00Z open",
                "2026-11-25T16:00:00Z closed",
                "2026-11-26T08:00:00Z open",
                "2026-11-26T16:00:00Z closed",
                "2026-11-30T08:00:00Z open",
                "2026-11-30T16:00:00Z closed",
            ],
        ),
        (
            "whole days follow each other",
            json!([{"days": ["Sat", "Sun"]}]),
            Value::Null,
            week.0,
            "2026-12-01T00:00Z",
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-28T00:00:00Z open",
                "2026-11-30T00:00:00Z closed",
            ],
        ),
        (
            "to the end of the day",
            json!([{"days": ["Tue"], "from": "18:00", "to": "24:00"}]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-24T18:00:00Z open",
                "2026-11-25T00:00:00Z closed",
            ],
        ),
        (
            "across midnight and the end of the week: the day is the one on which it begins",
            json!([{"days": ["Sun"], "from": "22:00", "to": "02:00"}]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z open",
                "2026-11-23T02:00:00Z closed",
                "2026-11-29T22:00:00Z open",
            ],
        ),
        (
            "to midnight is to the end of the day",
            json!([{"days": ["Wed"], "from": "22:00", "to": "00:00"}]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-25T22:00:00Z open",
                "2026-11-26T00:00:00Z closed",
            ],
        ),
        (
            "overlapping ones are one",
            json!([
                {"days": ["Mon"], "from": "13:00", "to": "18:00"},
                {"days": ["Mon"], "from": "09:00", "to": "14:00"},
                {"days": ["Mon"], "from": "10:00", "to": "11:00"},
            ]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-23T09:00:00Z open",
                "2026-11-23T18:00:00Z closed",
            ],
        ),
        (
            "of two zones, one after the other",
            json!([
                {"days": ["Mon"], "from": "09:00", "to": "17:00", "timeZone": "America/New_York"},
                {"days": ["Mon"], "from": "09:00", "to": "15:00", "timeZone": "Europe/Madrid"},
            ]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-23T08:00:00Z open",
                "2026-11-23T22:00:00Z closed",
            ],
        ),
        (
            "every hour of the week",
            json!([{"from": "08:00", "to": "20:00"}, {"from": "20:00", "to": "08:00"}]),
            Value::Null,
            week.0,
            week.1,
            &["2026-11-23T00:00:00Z open"],
        ),
        (
            "half an hour beside the hour",
            json!([{"days": ["Mon"], "from": "09:00", "to": "10:00", "timeZone": "Asia/Kolkata"}]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-23T03:30:00Z open",
                "2026-11-23T04:30:00Z closed",
            ],
        ),
        (
            "three quarters beside the hour, where the day began the day before in UTC",
            json!([{"days": ["Tue"], "from": "00:00", "to": "06:00", "timeZone": "Asia/Kathmandu"}]),
            Value::Null,
            week.0,
            week.1,
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-23T18:15:00Z open",
                "2026-11-24T00:15:00Z closed",
            ],
        ),
    ]);
}

#[test]
fn where_clocks_are_changed_a_window_begins_at_the_first_chance_and_ends_at_the_last() {
    let night = |from, to, zone| json!([{"from": from, "to": to, "timeZone": zone}]);
    let [madrid, new_york] = ["Europe/Madrid", "America/New_York"];
    check(&[
        (
            "from an hour that Madrid leaves out",
            night("02:30", "05:00", madrid),
            Value::Null,
            "2026-03-29T00:00Z",
            "2026-03-29T12:00Z",
            &[
                "2026-03-29T00:00:00Z closed",
                "2026-03-29T01:00:00Z open",
                "2026-03-29T03:00:00Z closed",
            ],
        ),
        (
            "to an hour that Madrid leaves out",
            night("01:30", "02:30", madrid),
            Value::Null,
            "2026-03-29T00:00Z",
            "2026-03-29T12:00Z",
            &[
                "2026-03-29T00:00:00Z closed",
                "2026-03-29T00:30:00Z open",
                "2026-03-29T01:00:00Z closed",
            ],
        ),
        (
            "within the hour that Madrid leaves out: not on that day",
            night("02:10", "02:50", madrid),
            Value::Null,
            "2026-03-29T00:00Z",
            "2026-03-30T12:00Z",
            &[
                "2026-03-29T00:00:00Z closed",
                "2026-03-30T00:10:00Z open",
                "2026-03-30T00:50:00Z closed",
            ],
        ),
        (
            "from an hour that Madrid has twice",
            night("02:30", "05:00", madrid),
            Value::Null,
            "2026-10-25T00:00Z",
            "2026-10-25T12:00Z",
            &[
                "2026-10-25T00:00:00Z closed",
                "2026-10-25T00:30:00Z open",
                "2026-10-25T04:00:00Z closed",
            ],
        ),
        (
            "to an hour that Madrid has twice",
            night("01:00", "02:30", madrid),
            Value::Null,
            "2026-10-25T00:00Z",
            "2026-10-25T12:00Z",
            &["2026-10-25T00:00:00Z open", "2026-10-25T01:30:00Z closed"],
        ),
        (
            "to the time that Madrid puts its clocks back to",
            night("00:00", "02:00", madrid),
            Value::Null,
            "2026-10-24T12:00Z",
            "2026-10-25T12:00Z",
            &[
                "2026-10-24T12:00:00Z closed",
                "2026-10-24T22:00:00Z open",
                "2026-10-25T00:00:00Z closed",
            ],
        ),
        (
            "a day whose end comes twice",
            json!([{"days": ["Sat"], "timeZone": "Atlantic/Azores"}]),
            Value::Null,
            "2026-10-23T12:00Z",
            "2026-10-25T12:00Z",
            &[
                "2026-10-23T12:00:00Z closed",
                "2026-10-24T00:00:00Z open",
                "2026-10-25T00:00:00Z closed",
            ],
        ),
        (
            "within the hour that Madrid has twice: in both, and between them",
            night("02:10", "02:50", madrid),
            Value::Null,
            "2026-10-25T00:00Z",
            "2026-10-25T12:00Z",
            &[
                "2026-10-25T00:00:00Z closed",
                "2026-10-25T00:10:00Z open",
                "2026-10-25T01:50:00Z closed",
            ],
        ),
        (
            "from an hour that New York leaves out",
            night("02:30", "05:00", new_york),
            Value::Null,
            "2026-03-08T05:00Z",
            "2026-03-08T18:00Z",
            &[
                "2026-03-08T05:00:00Z closed",
                "2026-03-08T07:00:00Z open",
                "2026-03-08T09:00:00Z closed",
            ],
        ),
        (
            "across the hour that New York has twice",
            night("00:30", "03:00", new_york),
            Value::Null,
            "2026-11-01T04:00Z",
            "2026-11-01T18:00Z",
            &[
                "2026-11-01T04:00:00Z closed",
                "2026-11-01T04:30:00Z open",
                "2026-11-01T08:00:00Z closed",
            ],
        ),
        (
            "half an hour that Lord Howe leaves out",
            night("02:15", "03:00", "Australia/Lord_Howe"),
            Value::Null,
            "2026-10-03T15:00Z",
            "2026-10-03T18:00Z",
            &[
                "2026-10-03T15:00:00Z closed",
                "2026-10-03T15:30:00Z open",
                "2026-10-03T16:00:00Z closed",
            ],
        ),
        (
            "a day that begins at one o'clock",
            json!([{"days": ["Fri"], "timeZone": "Africa/Cairo"}]),
            Value::Null,
            "2026-04-23T12:00Z",
            "2026-04-25T12:00Z",
            &[
                "2026-04-23T12:00:00Z closed",
                "2026-04-23T22:00:00Z open",
                "2026-04-24T21:00:00Z closed",
            ],
        ),
        (
            "a Friday that Samoa left out",
            json!([{"days": ["Fri"], "from": "09:00", "to": "17:00", "timeZone": "Pacific/Apia"}]),
            Value::Null,
            "2011-12-24T12:00Z",
            "2012-01-06T12:00Z",
            &[
                "2011-12-24T12:00:00Z closed",
                "2012-01-05T19:00:00Z open",
                "2012-01-06T03:00:00Z closed",
            ],
        ),
        (
            "a freeze from an hour that is left out to one that is there twice",
            Value::Null,
            json!([{"from": "2026-03-29T02:30", "to": "2026-10-25T02:30", "timeZone": madrid}]),
            "2026-03-01T00:00Z",
            "2026-11-01T00:00Z",
            &[
                "2026-03-01T00:00:00Z open",
                "2026-03-29T01:00:00Z closed",
                "2026-10-25T01:30:00Z open",
            ],
        ),
    ]);
}

#[test]
fn a_freeze_closes_whatever_the_windows_are() {
    let working = json!([{"days": ["Mon", "Tue", "Wed", "Thu", "Fri"], "from": "09:00", "to": "17:00"}]);
    check(&[
        (
            "without windows, dates alone",
            Value::Null,
            json!([{"from": "2026-12-24", "to": "2026-12-27", "timeZone": "Europe/Madrid"}]),
            "2026-12-20T00:00Z",
            "2027-01-01T00:00Z",
            &[
                "2026-12-20T00:00:00Z open",
                "2026-12-23T23:00:00Z closed",
                "2026-12-26T23:00:00Z open",
            ],
        ),
        (
            "within a window",
            working.clone(),
            json!([{"from": "2026-11-23T11:00", "to": "2026-11-23T13:00"}]),
            "2026-11-23T00:00Z",
            "2026-11-24T00:00Z",
            &[
                "2026-11-23T00:00:00Z closed",
                "2026-11-23T09:00:00Z open",
                "2026-11-23T11:00:00Z closed",
                "2026-11-23T13:00:00Z open",
                "2026-11-23T17:00:00Z closed",
            ],
        ),
        (
            "over several windows, ending in one",
            working.clone(),
            json!([{"from": "2026-11-23T16:00", "to": "2026-11-26T10:00"}]),
            "2026-11-23T12:00Z",
            "2026-11-27T00:00Z",
            &[
                "2026-11-23T12:00:00Z open",
                "2026-11-23T16:00:00Z closed",
                "2026-11-26T10:00:00Z open",
                "2026-11-26T17:00:00Z closed",
            ],
        ),
        (
            "overlapping and back to back",
            working,
            json!([
                {"from": "2026-11-25", "to": "2026-11-26T12:00"},
                {"from": "2026-11-23T12:00", "to": "2026-11-25T10:00"},
                {"from": "2026-11-26T12:00", "to": "2026-11-27T12:00"},
            ]),
            "2026-11-23T12:00Z",
            "2026-11-27T17:00Z",
            &["2026-11-23T12:00:00Z closed", "2026-11-27T12:00:00Z open"],
        ),
        (
            "far ahead of windows that are always open",
            json!([{}]),
            json!([{"from": "2027-06-01", "to": "2027-06-02"}]),
            "2026-11-23T12:00Z",
            "2028-01-01T00:00Z",
            &[
                "2026-11-23T12:00:00Z open",
                "2027-06-01T00:00:00Z closed",
                "2027-06-02T00:00:00Z open",
            ],
        ),
    ]);
}

#[test]
fn the_person_on_call_reads_what_closes_it_and_when_it_opens() {
    let madrid =
        || json!([{"days": ["Mon", "Tue", "Wed", "Thu"], "from": "09:00", "to": "17:00", "timeZone": "Europe/Madrid"}]);
    let christmas = |reason: Value| json!([{"from": "2026-12-23T18:00", "to": "2027-01-02T08:00", "timeZone": "Europe/Madrid", "reason": reason}]);
    assert_eq!(
        why(madrid(), Value::Null, "2026-11-20T12:00Z"),
        "outside spec.windows (next opens Mon 2026-11-23 09:00 Europe/Madrid)"
    );
    assert_eq!(
        why(madrid(), christmas(Value::Null), "2026-12-23T16:30Z"),
        "outside spec.windows (next opens Mon 2027-01-04 09:00 Europe/Madrid, after spec.freezes)"
    );
    assert_eq!(
        why(Value::Null, christmas(json!("Christmas")), "2026-12-25T00:00Z"),
        "frozen by spec.freezes until Sat 2027-01-02 08:00 Europe/Madrid (Christmas)"
    );
    assert_eq!(
        why(
            Value::Null,
            christmas(json!(" two\nlines\u{1b} \n")),
            "2026-12-25T00:00Z"
        ),
        "frozen by spec.freezes until Sat 2027-01-02 08:00 Europe/Madrid (two lines)"
    );
    assert_eq!(
        why(madrid(), christmas(json!("Christmas")), "2026-12-25T00:00Z"),
        "frozen by spec.freezes until Sat 2027-01-02 08:00 Europe/Madrid (Christmas); next opens Mon 2027-01-04 09:00 Europe/Madrid"
    );
    let twice = json!([{"from": "2026-12-24", "to": "2026-12-26"}, {"from": "2026-12-26", "to": "2026-12-28T10:00"}]);
    assert_eq!(
        why(madrid(), twice, "2026-12-25T00:00Z"),
        "frozen by spec.freezes until Sat 2026-12-26 00:00 UTC; next opens Mon 2026-12-28 11:00 Europe/Madrid, after spec.freezes"
    );
    let last = Timestamp::MAX - SignedDuration::from_secs(1);
    let never = gate(&spec(json!([{"from": "01:00", "to": "02:00"}]), Value::Null), last).unwrap();
    let why = "outside spec.windows (never opens again)".to_owned();
    assert_eq!(never, Gate::Closed { until: None, why });
}

#[test]
fn what_cannot_be_understood_is_told_with_the_field() {
    let freeze = |from, to| json!([{"from": from, "to": to}]);
    for (windows, freezes, expected) in [
        (
            json!([{}, {"timeZone": "Europe/Madird"}]),
            Value::Null,
            "spec.windows[1].timeZone: Europe/Madird is no time zone of the IANA database: write one such as Europe/Madrid",
        ),
        (
            Value::Null,
            json!([{"from": "2026-12-23", "to": "2026-12-24", "timeZone": "CEST"}]),
            "spec.freezes[0].timeZone: CEST is no time zone of the IANA database: write one such as Europe/Madrid",
        ),
        (
            json!([{"timeZone": "Etc/Unknown"}]),
            Value::Null,
            "spec.windows[0].timeZone: Etc/Unknown is no time zone of the IANA database: write one such as Europe/Madrid",
        ),
        (json!([]), Value::Null, "spec.windows has 0 windows: write 1 to 20"),
        (
            json!([{"days": []}]),
            Value::Null,
            "spec.windows[0].days is empty: leave it out for every day",
        ),
        (
            json!([{"from": "09:00"}]),
            Value::Null,
            "spec.windows[0]: set from and to, or neither of them for whole days",
        ),
        (
            json!([{"from": "09:00", "to": "09:00"}]),
            Value::Null,
            "spec.windows[0]: from and to are the same time: leave both out for whole days",
        ),
        (
            json!([{"from": "24:00", "to": "09:00"}]),
            Value::Null,
            "spec.windows[0].from: write a time from 00:00 to 23:59; only to may be 24:00",
        ),
        (
            Value::Null,
            freeze("2026-12-23", "2026-12-23T00:00"),
            "spec.freezes[0]: ends at 2026-12-23T00:00 and begins at 2026-12-23: a freeze ends after it begins",
        ),
        (
            Value::Null,
            json!(vec![json!({"from": "2026-12-23", "to": "2026-12-24"}); 51]),
            "spec.freezes has 51 freezes: write at most 50",
        ),
    ] {
        let spec = spec(windows, freezes);
        assert_eq!(check_windows(&spec).unwrap_err(), expected);
        assert_eq!(gate(&spec, Timestamp::UNIX_EPOCH).unwrap_err(), expected);
    }
}

/// Zones with a change of clocks, and some days before it.
const CHANGES: &[(&str, &str)] = &[
    ("Europe/Madrid", "2026-03-23"),
    ("Europe/Madrid", "2026-10-19"),
    ("America/New_York", "2026-03-02"),
    ("America/New_York", "2026-10-26"),
    ("Australia/Lord_Howe", "2026-03-30"),
    ("Australia/Lord_Howe", "2026-09-28"),
    ("America/Santiago", "2026-03-30"),
    ("America/Santiago", "2026-08-31"),
    ("Africa/Cairo", "2026-04-20"),
    ("Africa/Cairo", "2026-10-26"),
    ("Atlantic/Azores", "2026-10-19"),
    ("Pacific/Chatham", "2026-03-30"),
    ("Pacific/Apia", "2011-12-24"),
    ("Asia/Kathmandu", "2026-11-23"),
    ("UTC", "2026-11-23"),
];

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

fn time() -> impl Strategy<Value = u16> {
    // Most of them at night, when clocks are changed.
    prop_oneof![3 => 0..240u16, 1 => 0..1440u16, 1 => Just(1440u16), 1 => Just(0u16)]
}

fn shown(minutes: u16) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

fn window(zone: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Value> {
    let days = proptest::option::of(proptest::sample::subsequence(DAYS.to_vec(), 1..=7));
    let hours = proptest::option::of((time().prop_map(|from| from % 1440), time()));
    (days, hours, zone).prop_map(|(days, hours, zone)| {
        let mut window = json!({"days": days, "timeZone": zone});
        if let Some((from, to)) = hours.filter(|(from, to)| from != to) {
            window["from"] = shown(from).into();
            window["to"] = shown(to).into();
        }
        window
    })
}

/// A freeze of up to five days that begins within the days around.
fn freeze(zone: &'static str, start: &'static str) -> impl Strategy<Value = Value> {
    let start: Date = start.parse().unwrap();
    let long = prop_oneof![1..300i64, 1..(5 * 1440i64)];
    (-2 * 1440..14 * 1440i64, long).prop_map(move |(from, long)| {
        let at = |minutes| start.to_datetime(jiff::civil::Time::midnight()) + SignedDuration::from_mins(minutes);
        let text = |time: DateTime| time.strftime("%Y-%m-%dT%H:%M").to_string();
        json!({"from": text(at(from)), "to": text(at(from + long)), "timeZone": zone})
    })
}

/// Windows and freezes around a change of clocks.
fn scene() -> impl Strategy<Value = (&'static str, Value, Value)> {
    proptest::sample::select(CHANGES).prop_flat_map(|(zone, start)| {
        let zones =
            prop_oneof![4 => Just(zone), 1 => proptest::sample::select(vec!["UTC", "Asia/Tokyo", "America/New_York"])];
        let windows = proptest::option::weighted(0.9, proptest::collection::vec(window(zones), 1..4));
        let freezes = proptest::collection::vec(freeze(zone, start), 0..4);
        (
            Just(start),
            windows.prop_map(|w| json!(w)),
            freezes.prop_map(|f| json!(f)),
        )
    })
}

/// What a clock shows minute by minute, the latest that it has shown so far, and the earliest that it is yet to show.
struct Readings {
    latest: Vec<DateTime>,
    earliest: Vec<DateTime>,
}

impl Readings {
    fn of(zone: &str, from: Timestamp, minutes: usize) -> Self {
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let mut latest: Vec<_> = (0..minutes)
            .map(|minute| zone.to_datetime(from + MINUTE * i32::try_from(minute).unwrap()))
            .collect();
        let mut earliest = latest.clone();
        for at in 1..minutes {
            latest[at] = latest[at].max(latest[at - 1]);
            let back = minutes - 1 - at;
            earliest[back] = earliest[back].min(earliest[back + 1]);
        }
        Self { latest, earliest }
    }

    /// Whether at that minute the clock has shown `from` and will still show something before `to`.
    fn within(&self, minute: usize, from: DateTime, to: DateTime) -> bool {
        self.latest[minute] >= from && self.earliest[minute] < to
    }
}

/// Text of a time on a date; 24:00 is of the next.
fn moment(date: Date, time: &str) -> DateTime {
    let minutes = time
        .split(':')
        .fold(0, |all, part| all * 60 + part.parse::<i64>().unwrap());
    date.to_datetime(jiff::civil::Time::midnight()) + SignedDuration::from_mins(minutes)
}

/// Which minutes from the midnight that begins `start` in UTC are open, each looked at by itself.
fn minute_by_minute(start: Date, days: usize, windows: &Value, freezes: &Value) -> Vec<bool> {
    let margin = 5;
    let begin = start.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
    let first = begin - SignedDuration::from_hours(24 * i64::try_from(margin).unwrap());
    let readings = |of: &Value| Readings::of(of["timeZone"].as_str().unwrap(), first, (days + 2 * margin) * 1440);
    let mut spans = Vec::new();
    for window in windows.as_array().into_iter().flatten() {
        let readings = readings(window);
        let mut open = vec![false; days * 1440];
        let (from, to) = (window["from"].as_str(), window["to"].as_str());
        let (from, to) = (from.unwrap_or("00:00"), to.unwrap_or("24:00"));
        for distance in 0..days + 2 * margin {
            let date = start + SignedDuration::from_hours(24 * (distance as i64 - margin as i64));
            let day = date.strftime("%a").to_string();
            if window["days"]
                .as_array()
                .is_some_and(|days| !days.contains(&json!(day)))
            {
                continue;
            }
            let last = if to < from { date.tomorrow().unwrap() } else { date };
            let (from, to) = (moment(date, from), moment(last, to));
            for (minute, open) in open.iter_mut().enumerate() {
                *open |= readings.within(minute + margin * 1440, from, to);
            }
        }
        spans.push(open);
    }
    let frozen: Vec<_> = freezes
        .as_array()
        .into_iter()
        .flatten()
        .map(|freeze| {
            let text = |field: &str| freeze[field].as_str().unwrap().parse::<DateTime>().unwrap();
            (readings(freeze), text("from"), text("to"))
        })
        .collect();
    let within = |minute: usize| {
        frozen
            .iter()
            .any(|(readings, from, to)| readings.within(minute + margin * 1440, *from, *to))
    };
    (0..days * 1440)
        .map(|minute| (windows.is_null() || spans.iter().any(|open| open[minute])) && !within(minute))
        .collect()
}

fn is_open(spec: &CanaryReleaseSpec, now: Timestamp) -> bool {
    matches!(gate(spec, now).unwrap(), Gate::Open { .. })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_gate_agrees_with_looking_at_every_minute_by_itself((start, windows, freezes) in scene(), seconds in 0..60i64) {
        let start: Date = start.parse().unwrap();
        let spec = spec(windows.clone(), freezes.clone());
        let begin = start.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
        let expected = minute_by_minute(start, 14, &windows, &freezes);
        let end = begin + MINUTE * i32::try_from(expected.len()).unwrap();
        let mut now = begin;
        while now < end {
            let (open, until) = match gate(&spec, now).unwrap() {
                Gate::Open { until } => (true, until),
                Gate::Closed { until, .. } => (false, until),
            };
            let until = until.unwrap_or(end).min(end);
            prop_assert!(now < until, "at {} until {}", now, until);
            while now < until {
                let minute = usize::try_from(now.duration_since(begin).as_mins()).unwrap();
                prop_assert_eq!(expected[minute], open, "at {}", now);
                // Now and then from within, not from where it changes.
                if minute % 97 == 0 {
                    prop_assert_eq!(is_open(&spec, now + SignedDuration::from_secs(seconds)), open, "at {}", now);
                }
                now += MINUTE;
            }
        }
    }

    #[test]
    fn a_closed_gate_opens_when_it_says_and_not_before((start, windows, freezes) in scene(), minute in 0..(14 * 1440)) {
        let spec = spec(windows, freezes);
        let start: Date = start.parse().unwrap();
        let now = start.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp() + MINUTE * minute;
        if let Gate::Closed { until, .. } = gate(&spec, now).unwrap() {
            let until = until.unwrap();
            prop_assert!(now < until && is_open(&spec, until));
            prop_assert!(!is_open(&spec, until - SignedDuration::from_nanos(1)));
        }
    }

    #[test]
    fn any_windows_at_any_time_are_answered(
        windows in proptest::option::of(proptest::collection::vec(
            (
                proptest::option::of(proptest::collection::vec(proptest::sample::select(&DAYS[..]), 0..9)),
                proptest::option::of(time()),
                proptest::option::of(time()),
                proptest::sample::select(vec!["UTC", "Europe/Madrid", "Pacific/Apia", "America/New_York", "Nowhere", "Etc/GMT-14"]),
            ),
            0..22,
        )),
        freezes in proptest::collection::vec((2000..2100i16, 1..13i8, 1..29i8, 0..400i64, ".{0,5}"), 0..52),
        second in Timestamp::MIN.as_second()..=Timestamp::MAX.as_second(),
    ) {
        let windows = windows.map(|windows| {
            let window = |(days, from, to, zone): (_, Option<_>, Option<_>, _)|
                json!({"days": days, "from": from.map(shown), "to": to.map(shown), "timeZone": zone});
            windows.into_iter().map(window).collect::<Vec<_>>()
        });
        let freezes: Vec<_> = freezes
            .into_iter()
            .map(|(year, month, day, long, reason)| {
                let from = Date::new(year, month, day).unwrap();
                let to = (from + SignedDuration::from_hours(24 * long)).min(Date::new(2099, 12, 31).unwrap());
                json!({"from": from.to_string(), "to": to.to_string(), "timeZone": "Asia/Tokyo", "reason": reason})
            })
            .collect();
        let spec = spec(json!(windows), json!(freezes));
        for now in [second, 1_800_000_000, Timestamp::MIN.as_second(), Timestamp::MAX.as_second()] {
            let now = Timestamp::from_second(now).unwrap();
            prop_assert_eq!(gate(&spec, now).err(), check_windows(&spec).err());
        }
    }
}

#[test]
fn as_many_windows_and_freezes_as_there_may_be_are_answered_soon() {
    let window = |minute: usize| json!({"days": ["Mon"], "from": shown(minute as u16), "to": shown(minute as u16 + 1), "timeZone": "Europe/Madrid"});
    let windows: Vec<_> = (0..20).map(|n| window(n * 60)).collect();
    // Each ends after the week's windows, so that each has to be gone past by itself.
    let freezes: Vec<_> = (0..50)
        .map(|week| {
            let from: Date = "2026-11-22".parse().unwrap();
            let from = from + SignedDuration::from_hours(24 * 7 * week);
            json!({"from": from.to_string(), "to": format!("{}", from + SignedDuration::from_hours(48))})
        })
        .collect();
    let spec = spec(json!(windows), json!(freezes));
    let before = std::time::Instant::now();
    let Gate::Closed { until, .. } = gate(&spec, at("2026-11-22T12:00Z")).unwrap() else {
        panic!("open")
    };
    assert_eq!(until, Some(at("2027-11-07T23:00Z")));
    // 20 ms were measured without optimisation; the rest is for a busy machine.
    assert!(before.elapsed() < std::time::Duration::from_secs(5));
}
