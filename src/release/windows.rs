//! Whether a release may go on now: its windows and freezes, on the clocks of their time zones.

use crate::api::{CanaryReleaseSpec, ClockTime, Day, Freeze, TimeZoneName, Window};
use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime},
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};

/// As in the schema.
const MOST_WINDOWS: usize = 20;
const MOST_FREEZES: usize = 50;

/// A window that is open began at most this many days ago: one across midnight of a day that clocks made longer, by a
/// whole day where a country changed sides of the date line.
const DAYS_BEHIND: i64 = 3;
/// Every window begins once in this many days, even where clocks leave out the hour, or the day, of a week.
const DAYS_AHEAD: i64 = 15;
/// Windows without a gap in this time have none: they are the same every week.
const ALWAYS: SignedDuration = SignedDuration::from_hours(8 * 24);

/// Whether a release may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Some window is open, or there is none, and no freeze covers this moment.
    Open {
        /// When that ends; nothing where no freeze is to come and the windows follow each other all week.
        until: Option<Timestamp>,
    },
    /// Every window is closed, or a freeze covers this moment.
    Closed {
        /// The earliest moment at which the gate is open; nothing where there is none before the end of time.
        until: Option<Timestamp>,
        /// What closes it and until when, as part of a sentence.
        why: String,
    },
}

/// Whether a release may go on at `now`. Nothing but advancing waits for it: a rollback is never kept waiting.
///
/// # Errors
/// As [`check_windows`].
pub fn gate(spec: &CanaryReleaseSpec, now: Timestamp) -> Result<Gate, String> {
    let calendar = Calendar::of(spec)?;
    let frozen = calendar.frozen(now);
    if frozen.is_none() && calendar.in_a_window(now) {
        let until = calendar.closes(now);
        return Ok(Gate::Open { until });
    }
    let until = calendar.opens(now);
    let why = match frozen {
        Some(freeze) => freeze.tell(&calendar, until),
        None => format!("outside spec.windows ({})", calendar.tell(now, until)),
    };
    Ok(Gate::Closed { until, why })
}

/// Whether windows and freezes can be understood.
///
/// # Errors
/// A time zone that does not exist, and what the schema refuses already, for objects that were stored before it did: a
/// sentence that names the field.
pub fn check_windows(spec: &CanaryReleaseSpec) -> Result<(), String> {
    Calendar::of(spec).map(drop)
}

/// From a moment to just before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    from: Timestamp,
    to: Timestamp,
}

impl Span {
    fn covers(self, at: Timestamp) -> bool {
        self.from <= at && at < self.to
    }
}

/// The clock of a time zone.
struct Clock<'a> {
    name: &'a TimeZoneName,
    zone: TimeZone,
}

impl<'a> Clock<'a> {
    /// From the database in this program, so that the machine's does not matter.
    fn of(name: &'a TimeZoneName, field: &str) -> Result<Self, String> {
        let found = TimeZoneDatabase::bundled().get(name.as_str());
        match found {
            Ok(zone) if !zone.is_unknown() => Ok(Self { name, zone }),
            _ => Err(format!(
                "{field}.timeZone: {name} is no time zone of the IANA database: write one such as Europe/Madrid"
            )),
        }
    }

    /// When this clock first shows `time` or later.
    fn first(&self, time: DateTime) -> Option<Timestamp> {
        let at = self.zone.to_ambiguous_timestamp(time);
        match at.offset() {
            AmbiguousOffset::Gap { .. } => self.change_after(at.earlier().ok()?),
            _ => at.earlier().ok(),
        }
    }

    /// From when on this clock shows nothing before `time` any more.
    fn last(&self, time: DateTime) -> Option<Timestamp> {
        let at = self.zone.to_ambiguous_timestamp(time);
        let earlier = at.earlier().ok()?;
        match at.offset() {
            AmbiguousOffset::Unambiguous { .. } => Some(earlier),
            AmbiguousOffset::Gap { .. } => self.change_after(earlier),
            // Put back to `time` itself, the clock shows nothing before it again: what ends at 02:00 ends at the first.
            AmbiguousOffset::Fold { .. } => {
                let later = at.later().ok()?;
                let put_back_to_it = self.change_after(earlier) == Some(later);
                Some(if put_back_to_it { earlier } else { later })
            }
        }
    }

    fn change_after(&self, at: Timestamp) -> Option<Timestamp> {
        self.zone.following(at).next().map(|change| change.timestamp())
    }

    fn span(&self, from: DateTime, to: DateTime) -> Option<Span> {
        let span = Span {
            from: self.first(from)?,
            to: self.last(to)?,
        };
        (span.from < span.to).then_some(span)
    }

    /// `Mon 2026-11-23 09:00 Europe/Madrid`
    fn tell(&self, at: Timestamp) -> String {
        let shown = self.zone.to_datetime(at);
        format!("{} {}", shown.strftime("%a %Y-%m-%d %H:%M"), self.name)
    }
}

/// A window that makes sense.
struct Hours<'a> {
    days: Option<&'a [Day]>,
    from: ClockTime,
    to: ClockTime,
    clock: Clock<'a>,
}

impl<'a> Hours<'a> {
    fn of(window: &'a Window, field: &str) -> Result<Self, String> {
        let (from, to) = match (window.from, window.to) {
            (None, None) => (ClockTime::MIDNIGHT, ClockTime::END_OF_DAY),
            (Some(ClockTime::END_OF_DAY), Some(_)) => {
                return Err(format!(
                    "{field}.from: write a time from 00:00 to 23:59; only to may be 24:00"
                ));
            }
            (Some(from), Some(to)) if from == to => {
                return Err(format!(
                    "{field}: from and to are the same time: leave both out for whole days"
                ));
            }
            (Some(from), Some(to)) => (from, to),
            _ => return Err(format!("{field}: set from and to, or neither of them for whole days")),
        };
        if window.days.as_ref().is_some_and(Vec::is_empty) {
            return Err(format!("{field}.days is empty: leave it out for every day"));
        }
        Ok(Self {
            days: window.days.as_deref(),
            from,
            to,
            clock: Clock::of(&window.time_zone, field)?,
        })
    }

    /// The window that begins on `date`, if any does.
    fn on(&self, date: Date) -> Option<Span> {
        if self.days.is_some_and(|days| !days.contains(&Day::of(date))) {
            return None;
        }
        let last = if self.to < self.from {
            date.tomorrow().ok()?
        } else {
            date
        };
        self.clock.span(self.from.on(date)?, self.to.on(last)?)
    }

    /// Those that are open at `at`, and those of the next two weeks.
    fn around(&self, at: Timestamp) -> impl Iterator<Item = Span> {
        let today = self.clock.zone.to_datetime(at).date();
        let dates = (-DAYS_BEHIND..=DAYS_AHEAD).filter_map(move |days| {
            let distance = SignedDuration::from_hours(24 * days);
            today.checked_add(distance).ok()
        });
        dates.filter_map(|date| self.on(date)).filter(move |span| at < span.to)
    }
}

/// A freeze that makes sense.
struct Frozen<'a> {
    span: Span,
    clock: Clock<'a>,
    reason: Option<&'a str>,
}

impl<'a> Frozen<'a> {
    /// Nothing where clocks left out the whole of it.
    fn of(freeze: &'a Freeze, field: &str) -> Result<Option<Self>, String> {
        let (Some(from), Some(to)) = (freeze.from.get(), freeze.to.get()) else {
            return Err(format!("{field}: write dates of this century"));
        };
        if to <= from {
            return Err(format!(
                "{field}: ends at {} and begins at {}: a freeze ends after it begins",
                freeze.to, freeze.from
            ));
        }
        let clock = Clock::of(&freeze.time_zone, field)?;
        Ok(clock.span(from, to).map(|span| Self {
            span,
            clock,
            reason: freeze.reason.as_deref(),
        }))
    }

    /// `frozen by spec.freezes until Sat 2027-01-02 08:00 Europe/Madrid (Christmas)`
    fn tell(&self, calendar: &Calendar<'_>, until: Option<Timestamp>) -> String {
        let mut told = format!("frozen by spec.freezes until {}", self.clock.tell(self.span.to));
        // In one line, for it becomes part of one.
        let reason = self.reason.unwrap_or_default();
        let mut words = reason
            .split(|c: char| c.is_whitespace() || c.is_control())
            .filter(|word| !word.is_empty());
        if let Some(first) = words.next() {
            let reason = words.fold(first.to_owned(), |all, word| format!("{all} {word}"));
            told += &format!(" ({reason})");
        }
        if until != Some(self.span.to) {
            told += &format!("; {}", calendar.tell(self.span.to, until));
        }
        told
    }
}

/// Windows and freezes as one.
struct Calendar<'a> {
    windows: Vec<Hours<'a>>,
    freezes: Vec<Frozen<'a>>,
}

impl<'a> Calendar<'a> {
    fn of(spec: &'a CanaryReleaseSpec) -> Result<Self, String> {
        let windows = spec.windows.as_deref();
        let freezes = spec.freezes.as_deref().unwrap_or_default();
        if let Some(count) = windows.map(<[_]>::len)
            && !(1..=MOST_WINDOWS).contains(&count)
        {
            return Err(format!("spec.windows has {count} windows: write 1 to {MOST_WINDOWS}"));
        }
        if freezes.len() > MOST_FREEZES {
            let count = freezes.len();
            return Err(format!(
                "spec.freezes has {count} freezes: write at most {MOST_FREEZES}"
            ));
        }
        let windows = windows.unwrap_or_default().iter().enumerate();
        let freezes = freezes.iter().enumerate();
        Ok(Self {
            windows: windows
                .map(|(index, window)| Hours::of(window, &format!("spec.windows[{index}]")))
                .collect::<Result<_, _>>()?,
            freezes: freezes
                .filter_map(|(index, freeze)| Frozen::of(freeze, &format!("spec.freezes[{index}]")).transpose())
                .collect::<Result<_, _>>()?,
        })
    }

    /// The freeze that covers a moment; of several the one that ends last.
    fn frozen(&self, at: Timestamp) -> Option<&Frozen<'a>> {
        let covering = self.freezes.iter().filter(|freeze| freeze.span.covers(at));
        covering.max_by_key(|freeze| freeze.span.to)
    }

    /// The first window that is open at a moment.
    fn window(&self, at: Timestamp) -> Option<&Hours<'a>> {
        let open = |window: &&Hours<'a>| window.around(at).any(|span| span.covers(at));
        self.windows.iter().find(open)
    }

    fn in_a_window(&self, at: Timestamp) -> bool {
        self.windows.is_empty() || self.window(at).is_some()
    }

    /// When the gate closes that is open at `now`.
    fn closes(&self, now: Timestamp) -> Option<Timestamp> {
        let mut spans: Vec<_> = self.windows.iter().flat_map(|window| window.around(now)).collect();
        spans.sort_unstable();
        let end = spans
            .iter()
            .fold(now, |end, span| if span.from <= end { end.max(span.to) } else { end });
        let end = (!spans.is_empty() && end.duration_since(now) < ALWAYS).then_some(end);
        let freezes = self.freezes.iter().map(|freeze| freeze.span.from);
        freezes.filter(|&from| now < from).chain(end).min()
    }

    /// The earliest moment from `now` on at which some window is open and no freeze covers it.
    fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        let mut at = now;
        // A round that does not find it begins with a freeze, which no later round meets again.
        for _ in 0..self.freezes.len() + 2 {
            while let Some(freeze) = self.frozen(at) {
                at = freeze.span.to;
            }
            if self.in_a_window(at) {
                return Some(at);
            }
            let begins = self.windows.iter().flat_map(|window| window.around(at));
            at = begins.map(|span| span.from).min()?;
        }
        None
    }

    /// `next opens Mon 2026-11-23 09:00 Europe/Madrid`, on the clock of the window that opens, or of the freeze that ends.
    fn tell(&self, from: Timestamp, until: Option<Timestamp>) -> String {
        let Some(until) = until else {
            return "never opens again".to_owned();
        };
        let ended = |freeze: &&Frozen<'a>| freeze.span.to == until;
        let window = self.window(until).map(|window| &window.clock);
        let clock = window.or_else(|| self.freezes.iter().find(ended).map(|freeze| &freeze.clock));
        let when = clock.map_or_else(|| until.to_string(), |clock| clock.tell(until));
        let delayed = self
            .windows
            .iter()
            .flat_map(|window| window.around(from))
            .any(|span| span.from < until);
        let after = if delayed { ", after spec.freezes" } else { "" };
        format!("next opens {when}{after}")
    }
}
