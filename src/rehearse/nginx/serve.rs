//! What becomes of a request: nginx's own limits, the dice, a pod, and what the application in it says.

use super::{
    decide::Plan,
    model::{Limit, Location, Upstream},
};
use crate::rehearse::actors::behaviour::Answers;
use fastrand::Rng;
use std::{collections::BTreeMap, time::Duration};

/// How many pods nginx asks (`proxy_next_upstream_tries`).
const TRIES: usize = 3;

/// Who answered a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A pod of the stable Service.
    Stable {
        /// Which.
        pod: String,
    },
    /// A pod of the canary Service.
    Canary {
        /// Which.
        pod: String,
    },
    /// nginx itself.
    Status(u16),
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who answered.
    pub outcome: Outcome,
    /// With which status.
    pub status: u16,
    /// How many addresses answered nothing before, each a wait for the client.
    pub dead: usize,
}

/// What became of a request, as nginx logs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served<'a> {
    /// Key of the canary that the dice chose.
    pub canary: Option<&'a str>,
    /// The pod that answered.
    pub pod: Option<&'a str>,
    /// What the client got.
    pub status: u16,
    /// How long the upstream took; none where there was not exactly one.
    pub time: Option<Duration>,
    /// Addresses that answered nothing.
    pub dead: usize,
}

impl<'a> Served<'a> {
    pub fn by_nginx(status: u16) -> Self {
        Self {
            canary: None,
            pod: None,
            status,
            time: None,
            dead: 0,
        }
    }

    pub fn reply(&self) -> Reply {
        let outcome = match (self.pod.map(str::to_owned), self.canary) {
            (None, _) => Outcome::Status(self.status),
            (Some(pod), None) => Outcome::Stable { pod },
            (Some(pod), Some(_)) => Outcome::Canary { pod },
        };
        Reply {
            outcome,
            status: self.status,
            dead: self.dead,
        }
    }
}

/// An upstream with how its pods answer at one moment: none where no container runs behind the address that nginx knows.
struct Backend<'a> {
    upstream: &'a Upstream,
    answers: Vec<Option<Answers>>,
}

impl<'a> Backend<'a> {
    fn new(upstream: &'a Upstream, look: &mut impl FnMut(&str, &str) -> Option<Answers>) -> Self {
        let pods = upstream.endpoints.iter();
        Self {
            upstream,
            answers: pods.map(|endpoint| look(&upstream.namespace, &endpoint.pod)).collect(),
        }
    }

    /// Asks a pod, and where nobody answers the next ones, as `proxy_next_upstream` has it.
    fn ask(&self, rng: &mut Rng) -> Served<'a> {
        let first = rng.usize(..self.answers.len().max(1));
        let pods = self.upstream.endpoints.iter().zip(&self.answers).enumerate();
        let (chosen, others): (Vec<_>, Vec<_>) = pods.partition(|(index, _)| *index == first);
        for (dead, (_, (endpoint, answers))) in chosen.into_iter().chain(others).take(TRIES).enumerate() {
            if let Some(answers) = answers {
                let (status, time) = answers.draw(rng);
                return Served {
                    canary: None,
                    pod: Some(&endpoint.pod),
                    status,
                    time: Some(time).filter(|_| dead == 0),
                    dead,
                };
            }
        }
        Served {
            dead: self.answers.len().min(TRIES),
            ..Served::by_nginx(502)
        }
    }
}

/// Passes on requests that are alike, of one moment.
pub(super) struct Passage<'a> {
    plan: Plan<'a>,
    stable: Option<Backend<'a>>,
    canary: Option<Backend<'a>>,
}

impl<'a> Passage<'a> {
    /// `look` tells how a pod of a namespace answers.
    pub fn new(plan: Plan<'a>, mut look: impl FnMut(&str, &str) -> Option<Answers>) -> Self {
        let mut backend = |upstream| Backend::new(upstream, &mut look);
        Self {
            stable: plan.stable.map(&mut backend),
            canary: plan.canary.map(|(_, upstream, _)| backend(upstream)),
            plan,
        }
    }

    pub fn location(&self) -> &'a Location {
        self.plan.location
    }

    /// One request; `limited` says whether nginx refuses it.
    pub fn pass(&self, limited: bool, rng: &mut Rng) -> Served<'a> {
        // Without an endpoint of the stable Service nobody throws dice.
        let Some(stable) = &self.stable else {
            return Served::by_nginx(503);
        };
        let tossed = self.plan.toss(rng);
        let canary = self.plan.canary.map(|(key, ..)| key).filter(|_| tossed);
        let backend = self.canary.as_ref().filter(|_| tossed).unwrap_or(stable);
        let served = if limited {
            Served::by_nginx(503)
        } else {
            backend.ask(rng)
        };
        Served { canary, ..served }
    }
}

/// How far the only client there is has used up the limits, by namespace and name of their Ingress: leaky buckets.
#[derive(Debug, Default)]
pub(super) struct Limits(BTreeMap<(String, String), (f64, Duration)>);

impl Limits {
    /// Whether a request when the world is `now` old is one too many.
    pub fn refuse(&mut self, location: &Location, now: Duration) -> bool {
        let Some(Limit { per_minute, burst }) = location.limit else {
            return false;
        };
        let ingress = (location.namespace.clone(), location.ingress.clone());
        let Some((level, at)) = self.0.get_mut(&ingress) else {
            self.0.insert(ingress, (0.0, now));
            return false;
        };
        let leaked = now.saturating_sub(*at).as_secs_f64() * f64::from(per_minute) / 60.0;
        let filled = (*level - leaked).max(0.0) + 1.0;
        if filled > f64::from(burst) {
            return true;
        }
        (*level, *at) = (filled, now);
        false
    }
}
