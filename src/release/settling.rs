//! From when on every controller knows what was written.

use crate::{api::Rollout, cluster::Outages};
use jiff::Timestamp;
use std::time::Duration;

/// How long what is written takes to be known by everybody.
#[derive(Clone, Debug)]
pub struct Settling {
    /// Where nothing keeps anybody from hearing.
    pub time: Duration,
    /// When the API server was out of reach.
    pub outages: Outages,
}

impl Settling {
    /// When what was written then is known.
    #[must_use]
    pub fn end(&self, written: Timestamp) -> Timestamp {
        self.outages.delay(self.undisturbed(written))
    }

    /// When it would be known if the API server had been there all the time.
    #[must_use]
    pub fn undisturbed(&self, written: Timestamp) -> Timestamp {
        written.checked_add(self.time).unwrap_or(Timestamp::MAX)
    }

    /// When the weight in force is live; none while there is none.
    #[must_use]
    pub fn live(&self, rollout: &Rollout) -> Option<Timestamp> {
        rollout.weight_since.as_ref().map(|since| self.end(since.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Outage;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Of what is written in second 100, with outages from one second to another.
    fn end(outages: &[(i64, i64)]) -> Timestamp {
        let outages = outages.iter().map(|(since, until)| Outage {
            since: at(*since),
            until: at(*until),
        });
        Settling {
            time: Duration::from_secs(6),
            outages: outages.collect(),
        }
        .end(at(100))
    }

    #[test]
    fn what_is_written_is_known_after_the_settle_time() {
        assert_eq!(end(&[]), at(106));
    }

    #[test]
    fn what_nobody_may_have_heard_of_is_known_when_every_watch_is_back() {
        assert_eq!(end(&[(103, 110)]), at(170));
        assert_eq!(end(&[(90, 95)]), at(155), "watches were on their way back");
        assert_eq!(end(&[(20, 45)]), at(106), "they all were back");
    }

    #[test]
    fn what_was_known_before_an_outage_stays_known() {
        assert_eq!(end(&[(106, 110)]), at(106));
    }

    #[test]
    fn what_was_late_once_is_not_known_any_sooner_for_a_later_outage() {
        assert_eq!(end(&[(103, 110), (200, 230)]), at(170));
        assert_eq!(
            end(&[(20, 45), (103, 110), (165, 166)]),
            at(226),
            "it had not been heard of yet"
        );
    }
}
