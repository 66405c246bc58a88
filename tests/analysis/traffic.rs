//! Requests as two controllers of ingress-nginx split and count them.

use canary_operator::analysis::counts::{Answer, Family, Reading, Round, Scrape, Version};
use canary_operator::analysis::{Exposed, Status, Tally};
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use rand_distr::{Distribution, Normal, Poisson};
use std::collections::BTreeSet;

/// What happens to both versions alike, or to those who count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    Steady,
    /// Requests come and go, and how many fail wanders.
    Drift,
    /// A fifth of all requests fails for three minutes.
    Incident,
    /// The weight is raised every minute, and each time a tenth of all requests fails while the controllers take it over.
    Weights,
    /// Controllers restart, some in a new pod.
    Resets,
    /// The operator restarts: only what it wrote into the status is left.
    Operator,
}

/// How many requests come, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub per_second: f64,
    /// Version 1's.
    pub error_rate: f64,
    /// Version 2's as a multiple of that.
    pub ratio: f64,
    pub event: Event,
}

/// Seconds that an incident lasts.
const INCIDENT: u32 = 180;
/// How often something restarts, per second.
const RESTARTS: f64 = 1.0 / 90.0;

/// Good and failed requests, to version 1 and to version 2.
type Requests = [[u64; 2]; 2];

struct Controller {
    name: u32,
    started: u32,
    /// Of the requests, the part that comes to it.
    part: f64,
    share: f64,
    /// The share that it will have, and when.
    next: (u32, f64),
    down_until: u32,
    counted: Requests,
}

/// One release's requests, second by second.
pub struct World {
    pub traffic: Traffic,
    rng: Xoshiro256PlusPlus,
    controllers: Vec<Controller>,
    made: u32,
    raised: u32,
    incident: u32,
    /// ln of how much more than usual fails, and until when that is so.
    drift: (f64, u32),
    /// All requests, whoever counted them.
    pub stable: Tally,
    pub canary: Tally,
}

pub fn at(second: u32) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(second.into())
}

impl World {
    pub fn new(traffic: Traffic, length: u32, seed: u64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let controller = |(name, part)| Controller {
            name,
            started: 0,
            part,
            share: 0.0,
            next: (0, 0.0),
            down_until: 0,
            counted: [[100_000, 1_000], [10_000, 100]],
        };
        Self {
            traffic,
            incident: rng.random_range(0..=length.saturating_sub(INCIDENT)),
            rng,
            controllers: [(0, 0.7), (1, 0.3)].map(controller).into(),
            made: 2,
            raised: 0,
            drift: (0.0, 0),
            stable: Tally::default(),
            canary: Tally::default(),
        }
    }

    /// A weight is written: each controller takes it over in its own time.
    pub fn raise(&mut self, now: u32, share: f64) {
        self.raised = now;
        for controller in &mut self.controllers {
            controller.next = (now + self.rng.random_range(1..=5), share);
        }
    }

    /// Whether something happens in so many seconds that happens every now and then.
    pub fn happens(&mut self, seconds: u32) -> bool {
        self.rng.random_bool((RESTARTS * f64::from(seconds)).min(1.0))
    }

    pub fn chance(&mut self, of: f64) -> bool {
        self.rng.random_bool(of)
    }

    /// Share of version 1's requests that fail, and how many more come than usual.
    fn mood(&mut self, now: u32) -> (f64, f64) {
        let usual = self.traffic.error_rate;
        match self.traffic.event {
            Event::Steady | Event::Resets | Event::Operator => (usual, 1.0),
            Event::Incident if (self.incident..self.incident + INCIDENT).contains(&now) => (0.2, 1.0),
            Event::Incident => (usual, 1.0),
            // It starts after the first controller has the new weight, and ends after the last.
            Event::Weights if (self.raised + 3..self.raised + 8).contains(&now) => (0.1, 1.0),
            Event::Weights => (usual, 1.0),
            Event::Drift => {
                if now >= self.drift.1 {
                    let step = Normal::new(0.0, 0.4).unwrap().sample(&mut self.rng);
                    self.drift = ((self.drift.0 + step).clamp(-1.6, 2.3), now + 10);
                }
                (usual * self.drift.0.exp(), 1.0 + 0.7 * (f64::from(now) / 95.0).sin())
            }
        }
    }

    /// Requests come until `now + seconds`.
    pub fn pass(&mut self, now: u32, seconds: u32) {
        let (risk, more) = self.mood(now);
        if self.traffic.event == Event::Resets && self.happens(seconds) {
            self.restart(now);
        }
        let all = self.traffic.per_second * more * f64::from(seconds);
        let alone = self.controllers.iter().any(|controller| controller.down_until > now);
        for controller in &mut self.controllers {
            if controller.next.0 <= now {
                controller.share = controller.next.1;
            }
            if controller.down_until > now {
                continue;
            }
            let mean = all * if alone { 1.0 } else { controller.part };
            let rng = &mut self.rng;
            let mut side = |mean: f64, risk: f64| {
                [1.0 - risk, risk].map(|part| Poisson::new(mean * part).map_or(0, |poisson| poisson.sample(rng) as u64))
            };
            let risk2 = (risk * self.traffic.ratio).min(1.0);
            let came = [
                side(mean * (1.0 - controller.share), risk),
                side(mean * controller.share, risk2),
            ];
            for (counted, came) in controller.counted.iter_mut().zip(came) {
                counted[0] += came[0];
                counted[1] += came[1];
            }
            for (tally, [good, failed]) in [&mut self.stable, &mut self.canary].into_iter().zip(came) {
                tally.requests += good + failed;
                tally.failed += failed;
            }
        }
    }

    /// One of the controllers starts over, in its pod or in another, and is away for a few seconds. What it had not told is lost.
    fn restart(&mut self, now: u32) {
        if self.controllers.iter().any(|controller| controller.down_until > now) {
            return;
        }
        let (which, moves) = (self.rng.random_range(0..2), self.rng.random_bool(0.5));
        let controller = &mut self.controllers[which];
        controller.counted = Requests::default();
        controller.down_until = now + self.rng.random_range(2..8);
        // It begins with what is written.
        controller.next.0 = now;
        if moves {
            (controller.name, controller.started) = (self.made, now + 1);
            self.made += 1;
        }
    }

    /// What the controllers say.
    pub fn round(&self, now: u32) -> Round {
        let (up, down): (Vec<_>, Vec<_>) = self.controllers.iter().partition(|c| c.down_until <= now);
        Round {
            began: at(now),
            ended: at(now),
            answers: up.into_iter().map(Controller::answer).collect(),
            unready: down.into_iter().map(Controller::uid).collect::<BTreeSet<_>>(),
            unlisted: None,
        }
    }
}

impl Controller {
    fn uid(&self) -> String {
        format!("controller-{}", self.name)
    }

    fn answer(&self) -> Answer {
        let mut readings = Vec::with_capacity(8);
        for (version, counted) in [Version::Stable, Version::Canary].into_iter().zip(self.counted) {
            for (code, value) in [200, 500].into_iter().zip(counted) {
                // A series begins with its first request.
                for family in [Family::Requests, Family::Answered].into_iter().filter(|_| value > 0) {
                    readings.push(Reading {
                        series: 2 * (u64::from(code) + 1_000 * version as u64) + u64::from(family == Family::Answered),
                        family,
                        version,
                        status: Status::Code(code),
                        value,
                    });
                }
            }
        }
        Answer {
            uid: self.uid(),
            started: Some(at(self.started)),
            scrape: Ok(Scrape {
                readings,
                exposed: Exposed::Requests,
            }),
        }
    }
}
