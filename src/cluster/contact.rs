//! Whether the API server is in reach. When it was not, others who watch it were cut off too, and hear again in their own time.

use super::{
    Clock,
    around::{Answer, Around},
};
use http::{Request, StatusCode};
use jiff::Timestamp;
use kube::client::Body;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// After an outage every watch of others works again within this time. client-go waits before it tries again, up to 30 s and as
/// much again by chance, and takes 45 s to notice a connection that is gone without a word. An operator that was back after a
/// second took pods away that ingress-nginx, which was not, still led requests to (soak).
const RECONNECT: Duration = Duration::from_secs(60);

/// Who gives a request up sooner had other reasons than to be without an answer.
const UNANSWERED: Duration = Duration::from_secs(4);

/// The API server was out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When the first request was sent that was not answered.
    pub since: Timestamp,
    /// When one was answered again; now, while none is.
    pub until: Timestamp,
}

impl Outage {
    /// By when everybody else hears again of what is written.
    #[must_use]
    pub fn heard_by(&self) -> Timestamp {
        self.until.checked_add(RECONNECT).unwrap_or(Timestamp::MAX)
    }
}

/// So many outages are remembered: what was written before an earlier one counts as heard of without it.
const REMEMBERED: usize = 16;

/// The last outages, oldest first. One that follows before every watch is back belongs to the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outages(Vec<Outage>);

impl Outages {
    /// When everybody hears of what would have been heard of by then. An outage that began after that is of no concern to it.
    #[must_use]
    pub fn delay(&self, heard: Timestamp) -> Timestamp {
        let late = |heard: Timestamp, outage: &Outage| match outage.since < heard {
            true => heard.max(outage.heard_by()),
            false => heard,
        };
        self.0.iter().fold(heard, late)
    }

    /// The one after which somebody may not hear at once of what is written at `at`.
    #[must_use]
    pub fn unheard(&self, at: Timestamp) -> Option<Outage> {
        self.last().filter(|outage| outage.heard_by() > at)
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<Outage> {
        self.0.last().copied()
    }

    /// A request that was sent at `sent` has not been answered until now.
    fn add(&mut self, sent: Timestamp, now: Timestamp) {
        match self.0.last_mut().filter(|last| sent < last.heard_by()) {
            Some(last) => {
                *last = Outage {
                    since: last.since.min(sent),
                    until: now,
                }
            }
            None => {
                self.0.push(Outage {
                    since: sent,
                    until: now,
                });
                let surplus = self.0.len().saturating_sub(REMEMBERED);
                self.0.drain(..surplus);
            }
        }
    }

    fn lasts_until(&mut self, now: Timestamp) {
        if let Some(last) = self.0.last_mut() {
            last.until = now;
        }
    }
}

impl FromIterator<Outage> for Outages {
    fn from_iter<I: IntoIterator<Item = Outage>>(outages: I) -> Self {
        Self(outages.into_iter().collect())
    }
}

/// What is known of that, whoever of this process asked. Clones share it.
#[derive(Clone)]
pub struct Contact {
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<Known>>,
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}

#[derive(Debug, Default)]
struct Known {
    /// When the latest of those requests was sent that were answered.
    answered: Option<Timestamp>,
    outages: Outages,
    /// Whether the last one lasts.
    lasts: bool,
}

impl Contact {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            known: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last outages. One that lasts ends now.
    #[must_use]
    pub fn outages(&self) -> Outages {
        let known = self.lock();
        let mut outages = known.outages.clone();
        if known.lasts {
            outages.lasts_until(self.clock.now());
        }
        outages
    }

    /// A request that was sent then was answered.
    fn answered(&self, sent: Timestamp) {
        let mut known = self.lock();
        known.answered = known.answered.max(Some(sent));
        if std::mem::take(&mut known.lasts) {
            known.outages.lasts_until(self.clock.now());
        }
    }

    /// A request that was sent then was not. Where one that was sent later was, something else kept that one: an admission webhook
    /// that hangs for one release is no outage for all.
    fn unanswered(&self, sent: Timestamp) {
        let mut known = self.lock();
        if known.answered.is_some_and(|later| later > sent) {
            return;
        }
        known.outages.add(sent, self.clock.now());
        known.lasts = true;
    }
}

/// A request until it is answered.
struct Sent {
    contact: Contact,
    at: Timestamp,
    waits: Instant,
    answered: bool,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.answered && self.waits.elapsed() >= UNANSWERED {
            self.contact.unanswered(self.at);
        }
    }
}

/// Whether it is a load balancer's word for an API server that is not there.
fn is_absent(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)
}

impl Around for Contact {
    fn around<B: 'static>(&self, request: Request<Body>, send: impl FnOnce(Request<Body>) -> Answer<B>) -> Answer<B> {
        let mut sent = Sent {
            contact: self.clone(),
            at: self.clock.now(),
            waits: Instant::now(),
            answered: false,
        };
        let answer = send(request);
        Box::pin(async move {
            let answer = answer.await;
            sent.answered = true;
            match &answer {
                Ok(response) if !is_absent(response.status()) => sent.contact.answered(sent.at),
                _ => sent.contact.unanswered(sent.at),
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use tokio::time::{advance, timeout};

    const SECOND: Duration = Duration::from_secs(1);

    /// Of the runtime, which begins at the epoch.
    struct Virtual(Instant);

    impl Clock for Virtual {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH + self.0.elapsed()
        }
    }

    fn contact() -> Contact {
        Contact::new(Arc::new(Virtual(Instant::now())))
    }

    /// Asks, and is answered so after a second, or not at all.
    async fn ask(contact: &Contact, answer: Option<u16>) {
        let request = Request::new(Body::empty());
        let send = |_| -> Answer<()> {
            Box::pin(async move {
                tokio::time::sleep(SECOND).await;
                let status = answer.ok_or("connection refused")?;
                Ok(Response::builder().status(status).body(())?)
            })
        };
        drop(contact.around(request, send).await);
    }

    async fn give_up_after(contact: &Contact, length: Duration) {
        let send = |_| -> Answer<()> { Box::pin(std::future::pending()) };
        let asked = contact.around(Request::new(Body::empty()), send);
        assert!(timeout(length, asked).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_from_the_first_request_that_fails_to_the_next_answer() {
        let contact = contact();
        ask(&contact, Some(200)).await;
        assert_eq!(contact.outages().last(), None);
        let since = contact.clock.now();
        ask(&contact, None).await;
        advance(3 * SECOND).await;
        let until = contact.clock.now();
        assert_eq!(contact.outages().last(), Some(Outage { since, until }), "it lasts");
        ask(&contact, Some(503)).await;
        ask(&contact, Some(403)).await;
        let until = contact.clock.now();
        advance(100 * SECOND).await;
        ask(&contact, Some(500)).await;
        assert_eq!(contact.outages().last(), Some(Outage { since, until }), "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_follows_before_every_watch_is_back_belongs_to_the_one_before() {
        let contact = contact();
        let first = contact.clock.now();
        ask(&contact, None).await;
        ask(&contact, Some(200)).await;
        advance(RECONNECT - SECOND).await;
        ask(&contact, None).await;
        assert_eq!(contact.outages().last().map(|outage| outage.since), Some(first));
        ask(&contact, Some(200)).await;
        advance(RECONNECT).await;
        let another = contact.clock.now();
        ask(&contact, None).await;
        let known = contact.outages();
        assert_eq!(known.last().map(|outage| outage.since), Some(another));
        let before_the_first = Timestamp::UNIX_EPOCH + SECOND / 2;
        assert_eq!(
            known.delay(before_the_first),
            Timestamp::UNIX_EPOCH + 63 * SECOND + RECONNECT,
            "what was written before the first is known no sooner for the second"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn outages_of_long_ago_are_forgotten() {
        let contact = contact();
        for _ in 0..2 * REMEMBERED {
            ask(&contact, None).await;
            ask(&contact, Some(200)).await;
            advance(RECONNECT).await;
        }
        assert_eq!(contact.outages().0.len(), REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_while_later_ones_are_answered_is_no_outage() {
        let contact = contact();
        let others = async {
            advance(SECOND).await;
            ask(&contact, Some(200)).await;
        };
        tokio::join!(give_up_after(&contact, 10 * SECOND), others);
        assert_eq!(contact.outages().last(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_has_met_an_outage_and_who_no_longer_needs_to_know_has_not() {
        let contact = contact();
        give_up_after(&contact, SECOND).await;
        assert_eq!(contact.outages().last(), None);
        let since = contact.clock.now();
        give_up_after(&contact, 10 * SECOND).await;
        assert_eq!(contact.outages().last().map(|outage| outage.since), Some(since));
    }
}
