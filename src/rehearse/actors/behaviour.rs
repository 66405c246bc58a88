//! How containers behave: what a kubelet would report of them at every moment, as a pure function of their age.

use super::super::json::{items, text};
use fastrand::Rng;
use serde_json::{Value, json};
use std::{collections::BTreeMap, f64::consts::TAU, fmt, sync::Arc, time::Duration};

/// From a scheduled pod to the start of its containers: image there already, sandbox made.
pub const START: Duration = Duration::from_millis(1500);
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
/// A container that ran this long starts over with the shortest back-off.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// What the containers of a pod do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Runs, and is ready `startup` after its start.
    Healthy {
        /// From start to ready.
        startup: Duration,
    },
    /// Runs for a while, then exits, again and again.
    Crash {
        /// From start to ready, if it lives that long. Without a readiness probe a container is ready at once.
        startup: Duration,
        /// How long each run lasts.
        runs: Duration,
        /// The exit code.
        exit_code: i64,
        /// What it printed.
        log: String,
    },
    /// The image cannot be had.
    ImagePullBackOff {
        /// What the registry said.
        message: String,
    },
    /// The first init container exits with 1, again and again.
    InitCrash {
        /// What it printed.
        log: String,
    },
    /// Runs, and is never ready.
    NeverReady,
    /// No node has room.
    Unschedulable,
}

impl Behaviour {
    /// Runs and is ready after two seconds.
    pub fn healthy() -> Self {
        Self::Healthy {
            startup: Duration::from_secs(2),
        }
    }

    /// Exits half a second after each start, as with a wrong command.
    pub fn crash_loop(log: &str) -> Self {
        Self::Crash {
            startup: Duration::from_secs(2),
            runs: Duration::from_millis(500),
            exit_code: 1,
            log: log.into(),
        }
    }

    /// Is well for `runs`, then exits, and so on.
    pub fn crash_after(runs: Duration, log: &str) -> Self {
        Self::Crash {
            startup: Duration::from_secs(2),
            runs,
            exit_code: 1,
            log: log.into(),
        }
    }
}

/// How the application in an image answers requests, each for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answers {
    /// Share of requests that fail, from 0 to 1.
    pub failing: f64,
    /// Status of those; the others are 200.
    pub status: u16,
    /// Half of the answers take longer.
    pub median: Duration,
}

impl Default for Answers {
    /// Nothing fails, in 20 ms.
    fn default() -> Self {
        Self {
            failing: 0.0,
            status: 500,
            median: Duration::from_millis(20),
        }
    }
}

impl Answers {
    /// A share of the requests fails with 500.
    #[must_use]
    pub fn failing(share: f64) -> Self {
        Self {
            failing: share,
            ..Self::default()
        }
    }

    /// Half of the answers take longer than this.
    #[must_use]
    pub fn slow(median: Duration) -> Self {
        Self {
            median,
            ..Self::default()
        }
    }

    /// One answer: its status, and the time that it takes. Times are log-normal: the slowest of a hundred takes three medians.
    pub fn draw(&self, rng: &mut Rng) -> (u16, Duration) {
        const SPREAD: f64 = 0.5;
        let status = if rng.f64() < self.failing { self.status } else { 200 };
        let (radius, angle) = ((-2.0 * (1.0 - rng.f64()).ln()).sqrt(), TAU * rng.f64());
        (status, self.median.mul_f64((SPREAD * radius * angle.cos()).exp()))
    }
}

type Rule = Arc<dyn Fn(&Value) -> Option<Behaviour> + Send + Sync>;

/// Which pod behaves how: the latest rule that has an opinion decides, else [`Behaviour::healthy`].
#[derive(Clone, Default)]
pub struct Behaviours {
    rules: Vec<Rule>,
    answers: BTreeMap<String, Answers>,
}

impl fmt::Debug for Behaviours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules", self.rules.len())
    }
}

impl Behaviours {
    /// Adds a rule on whole pods.
    pub fn rule(&mut self, rule: impl Fn(&Value) -> Option<Behaviour> + Send + Sync + 'static) {
        self.rules.push(Arc::new(rule));
    }

    /// Pods with a container of this image behave so.
    pub fn image(&mut self, image: &str, behaviour: Behaviour) {
        let image = image.to_string();
        self.rule(move |pod| {
            items(pod, "/spec/containers")
                .iter()
                .any(|c| text(c, "/image") == image)
                .then(|| behaviour.clone())
        });
    }

    /// Pods with a container of this image answer so.
    pub fn answers(&mut self, image: &str, answers: Answers) {
        self.answers.insert(image.to_owned(), answers);
    }

    /// How this pod answers.
    pub fn answers_of(&self, pod: &Value) -> Answers {
        let containers = items(pod, "/spec/containers").iter();
        let mut told = containers.filter_map(|c| self.answers.get(text(c, "/image")));
        told.next().copied().unwrap_or_default()
    }

    /// How this pod behaves.
    pub fn of(&self, pod: &Value) -> Behaviour {
        self.rules
            .iter()
            .rev()
            .find_map(|rule| rule(pod))
            .unwrap_or_else(Behaviour::healthy)
    }
}

/// A container as it is at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// `state` of the container that matters.
    pub state: Value,
    /// `lastState`.
    pub last: Value,
    /// `restartCount`.
    pub restarts: u32,
    /// Whether it is started.
    pub started: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is the init container that this is about, and it has not finished.
    pub init: bool,
    /// What it printed in this run; None before its start.
    pub log: Option<String>,
    /// What it printed in the run before.
    pub previous_log: Option<String>,
    /// At which age there is something new to report.
    pub next: Option<Duration>,
}

/// The moment at `age`; `probe` says whether there is a readiness probe, `at` writes an age as a timestamp.
pub fn moment(behaviour: &Behaviour, age: Duration, container: &Value, at: impl Fn(Duration) -> String) -> Moment {
    let probe = container.get("readinessProbe").is_some();
    let image = text(container, "/image");
    let creating = Moment {
        state: json!({"waiting": {"reason": "ContainerCreating"}}),
        next: Some(START),
        ..Moment::default()
    };
    let running = |from: Duration| json!({"running": {"startedAt": at(from)}});
    match behaviour {
        Behaviour::Unschedulable => Moment::default(),
        Behaviour::ImagePullBackOff { message } => pulling(image, message, age),
        _ if age < START => creating,
        Behaviour::Healthy { startup } => {
            let ready = age >= START + *startup;
            let next = (!ready).then_some(START + *startup);
            Moment {
                state: running(START),
                started: true,
                ready,
                next,
                log: Some(String::new()),
                ..Moment::default()
            }
        }
        Behaviour::NeverReady => Moment {
            state: running(START),
            started: true,
            log: Some(String::new()),
            ..Moment::default()
        },
        Behaviour::Crash {
            startup,
            runs,
            exit_code,
            log,
        } => {
            let ready_after = if probe { *startup } else { Duration::ZERO };
            crashing(age, *runs, ready_after, *exit_code, log, text(container, "/name"), &at)
        }
        Behaviour::InitCrash { log } => {
            let runs = Duration::from_millis(500);
            Moment {
                init: true,
                ready: false,
                ..crashing(age, runs, Duration::MAX, 1, log, text(container, "/name"), &at)
            }
        }
    }
}

/// ErrImagePull and ImagePullBackOff take turns.
fn pulling(image: &str, message: &str, age: Duration) -> Moment {
    let waiting = |reason: &str, message: String| json!({"waiting": {"reason": reason, "message": message}});
    let mut attempt = Duration::from_secs(2);
    let mut pause = FIRST_BACKOFF;
    if age < attempt {
        return Moment {
            state: waiting("ContainerCreating", String::new()),
            next: Some(attempt),
            ..Moment::default()
        };
    }
    loop {
        let refused = attempt + Duration::from_secs(2);
        if age < refused {
            return Moment {
                state: waiting("ErrImagePull", message.into()),
                next: Some(refused),
                ..Moment::default()
            };
        }
        if age < attempt + pause {
            let text = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
            return Moment {
                state: waiting("ImagePullBackOff", text),
                next: Some(attempt + pause),
                ..Moment::default()
            };
        }
        attempt += pause;
        pause = (pause * 2).min(LONGEST_BACKOFF);
    }
}

/// Run, exit, run again at once, and from then on wait longer each time.
fn crashing(
    age: Duration,
    runs: Duration,
    ready_after: Duration,
    exit_code: i64,
    log: &str,
    name: &str,
    at: &impl Fn(Duration) -> String,
) -> Moment {
    let runs = runs.max(Duration::from_millis(100));
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    let ended = |from: Duration| json!({"terminated": {"exitCode": exit_code, "reason": reason, "startedAt": at(from), "finishedAt": at(from + runs)}});
    let (mut start, mut restarts) = (START, 0_u32);
    let (mut last, mut previous_log) = (json!({}), None);
    let mut pause = Duration::ZERO;
    loop {
        let end = start + runs;
        let print = Some(log.to_string());
        if age < end {
            let ready = ready_after < runs && age >= start.saturating_add(ready_after);
            let next = if !ready && ready_after < runs {
                start.saturating_add(ready_after)
            } else {
                end
            };
            let state = json!({"running": {"startedAt": at(start)}});
            let log = Some(String::new());
            return Moment {
                state,
                last,
                restarts,
                started: true,
                ready,
                init: false,
                log,
                previous_log,
                next: Some(next),
            };
        }
        // The exit itself shows for a second before the kubelet reports what it does about it.
        let shown = end + Duration::from_secs(1);
        if age < shown {
            return Moment {
                state: ended(start),
                last,
                restarts,
                log: print,
                previous_log,
                next: Some(shown),
                ..Moment::default()
            };
        }
        pause = match pause {
            _ if runs >= FORGIVEN_AFTER => FIRST_BACKOFF,
            Duration::ZERO if restarts == 0 => Duration::ZERO,
            Duration::ZERO => FIRST_BACKOFF,
            longer => (longer * 2).min(LONGEST_BACKOFF),
        };
        last = ended(start);
        let again = shown + pause;
        if age < again {
            let message = format!("back-off {}s restarting failed container={name}", pause.as_secs());
            let state = json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}});
            return Moment {
                state,
                last,
                restarts,
                log: print,
                previous_log: Some(log.into()),
                next: Some(again),
                ..Moment::default()
            };
        }
        previous_log = Some(log.into());
        restarts += 1;
        start = again;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(behaviour: &Behaviour, until: u64) -> Vec<(u128, String, u32)> {
        let (mut age, mut out) = (Duration::ZERO, Vec::new());
        loop {
            let m = moment(behaviour, age, &json!({"name": "app", "image": "x:1"}), |a| {
                format!("{a:?}")
            });
            let state = m
                .state
                .as_object()
                .and_then(|s| s.iter().next())
                .map(|(k, v)| format!("{k} {}", text(v, "/reason")))
                .unwrap_or_default();
            out.push((age.as_millis(), state.trim().to_string(), m.restarts));
            match m.next {
                Some(next) if next <= Duration::from_secs(until) => age = next,
                _ => return out,
            }
        }
    }

    #[test]
    fn a_wrong_command_is_in_crash_loop_back_off_within_nine_seconds() {
        let expected = [
            (0, "waiting ContainerCreating", 0),
            (1500, "running", 0),
            (2000, "terminated Error", 0),
            (3000, "running", 1),
            (3500, "terminated Error", 1),
            (4500, "waiting CrashLoopBackOff", 1),
            (14500, "running", 2),
            (15000, "terminated Error", 2),
            (16000, "waiting CrashLoopBackOff", 2),
            (36000, "running", 3),
        ];
        let expected: Vec<_> = expected.iter().map(|(t, s, n)| (*t, (*s).to_string(), *n)).collect();
        assert_eq!(seen(&Behaviour::crash_loop("boom"), 36), expected);
    }

    #[test]
    fn an_image_that_cannot_be_had_alternates_between_err_image_pull_and_back_off() {
        let states: Vec<String> = seen(
            &Behaviour::ImagePullBackOff {
                message: "not found".into(),
            },
            30,
        )
        .into_iter()
        .map(|(_, s, _)| s)
        .collect();
        assert_eq!(
            states,
            [
                "waiting ContainerCreating",
                "waiting ErrImagePull",
                "waiting ImagePullBackOff",
                "waiting ErrImagePull",
                "waiting ImagePullBackOff"
            ]
        );
    }

    #[test]
    fn answers_fail_and_take_as_long_as_they_are_told_to() {
        let mut rng = Rng::with_seed(1);
        let answers = Answers {
            failing: 0.2,
            ..Answers::slow(Duration::from_millis(300))
        };
        let drawn: Vec<_> = (0..10_000).map(|_| answers.draw(&mut rng)).collect();
        let count = |wanted: &dyn Fn(&(u16, Duration)) -> bool| drawn.iter().filter(|answer| wanted(answer)).count();
        let failed = count(&|(status, _)| *status == 500);
        assert!((1_840..=2_160).contains(&failed), "{failed}");
        let slow = count(&|(_, time)| *time > Duration::from_millis(300));
        assert!((4_800..=5_200).contains(&slow), "{slow}");
        let slowest = count(&|(_, time)| *time > Duration::from_millis(900));
        assert!((80..=220).contains(&slowest), "{slowest}");
    }

    #[test]
    fn a_healthy_container_is_ready_after_its_startup_and_then_nothing_changes() {
        let m = moment(&Behaviour::healthy(), Duration::from_secs(4), &json!({}), |a| {
            format!("{a:?}")
        });
        assert!(m.ready && m.next.is_none());
    }
}
