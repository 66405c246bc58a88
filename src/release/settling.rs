//! From when on every controller knows what was written.

use crate::cluster::Outage;
use jiff::Timestamp;
use std::time::Duration;

/// How long what is written takes to be known by everybody.
#[derive(Clone, Copy, Debug)]
pub struct Settling {
    /// Where nothing keeps anybody from hearing.
    pub time: Duration,
    /// When the API server was last out of reach.
    pub outage: Option<Outage>,
}

impl Settling {
    /// When what was written then is known. An outage that began after that is of no concern to it.
    #[must_use]
    pub fn end(&self, written: Timestamp) -> Timestamp {
        let end = written.checked_add(self.time).unwrap_or(Timestamp::MAX);
        match &self.outage {
            Some(outage) if outage.since < end => end.max(outage.heard_by()),
            _ => end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Of what is written in second 100.
    fn end(outage: Option<(i64, i64)>) -> Timestamp {
        let outage = outage.map(|(since, until)| Outage {
            since: at(since),
            until: at(until),
        });
        let time = Duration::from_secs(6);
        Settling { time, outage }.end(at(100))
    }

    #[test]
    fn what_is_written_is_known_after_the_settle_time() {
        assert_eq!(end(None), at(106));
    }

    #[test]
    fn what_nobody_may_have_heard_of_is_known_when_every_watch_is_back() {
        assert_eq!(end(Some((103, 110))), at(170));
        assert_eq!(end(Some((90, 95))), at(155), "watches were on their way back");
        assert_eq!(end(Some((20, 45))), at(106), "they all were back");
    }

    #[test]
    fn what_was_known_before_an_outage_stays_known() {
        assert_eq!(end(Some((106, 110))), at(106));
    }
}
