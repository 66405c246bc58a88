//! Two replicas, of which one leads: it is killed, cut off and overtaken around every write.

use crate::{
    faults::Kill,
    lab::{LEASE, Lab, is_write, is_written, lab_of_two},
    properties,
    scenario::{NAMESPACE, Run, Scenario},
    sweep::on_threads,
};
use canary_operator::rehearse::{
    ApiServer, Key,
    json::text,
    server::{
        intercept::{After, Before, EventFate, Interceptor, NoFaults, Outcome, Record},
        routes::Call,
        store::Version,
    },
};
use jiff::{SignedDuration, Timestamp};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What becomes of the leader at one of its writes, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It is killed.
    Killed(Kill),
    /// From this write on nothing of it gets through for a while; the write itself arrives after so many seconds, when the
    /// other replica may have gone on.
    CutOff(usize, u64),
}

/// How long a leader is cut off: long enough for the other one to take over, and to have to follow it afterwards.
const CUT: Duration = Duration::from_secs(60);
/// How long a term lasts after the renewal that it began with was sent.
const TERM: SignedDuration = SignedDuration::from_secs(12);

struct Taker {
    lost: Lost,
    server: ApiServer,
    state: Mutex<State>,
    fired: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    writes: usize,
    /// Who is cut off, and since when the world is how old.
    victim: Option<(Arc<str>, Duration)>,
}

impl Taker {
    fn is_cut_off(&self, client: &Arc<str>) -> bool {
        let state = self.state.lock().unwrap();
        let now = self.server.clock().elapsed();
        (state.victim.as_ref()).is_some_and(|(victim, since)| victim == client && now < *since + CUT)
    }

    fn fire(&self) -> bool {
        !self.fired.swap(true, Ordering::SeqCst)
    }
}

impl Interceptor for Taker {
    fn before(&self, call: &Call) -> Before {
        if self.is_cut_off(&call.client) {
            return Before::Hang;
        }
        if !is_write(call) {
            return Before::Pass;
        }
        let mut state = self.state.lock().unwrap();
        state.writes += 1;
        match self.lost {
            Lost::Killed(Kill::Before(at)) if at == state.writes && self.fire() => Before::Crash,
            Lost::CutOff(at, seconds) if at == state.writes && self.fire() => {
                state.victim = Some((call.client.clone(), self.server.clock().elapsed()));
                Before::InFlight(Duration::from_secs(seconds))
            }
            _ => Before::Pass,
        }
    }

    fn after(&self, call: &Call, _: Outcome<'_>) -> After {
        let writes = self.state.lock().unwrap().writes;
        match self.lost {
            Lost::Killed(Kill::After(at)) if is_write(call) && at == writes && self.fire() => After::Crash,
            _ => After::Pass,
        }
    }

    fn event(&self, watch: &Call, _: &Version) -> EventFate {
        if self.is_cut_off(&watch.client) {
            EventFate::Delay(CUT)
        } else {
            EventFate::Deliver
        }
    }
}

fn play(scenario: Scenario, lost: Option<Lost>) -> Run {
    let fired = Arc::new(AtomicBool::new(false));
    let run = lab_of_two(1, async |lab| {
        scenario.prepare(lab).await;
        if let Some(lost) = lost {
            lab.world.server.intercept(Taker {
                lost,
                server: lab.world.server.clone(),
                state: Mutex::default(),
                fired: fired.clone(),
            });
        }
        lab.start(scenario);
        let story = async {
            let over = |lab: &Lab| scenario.over(lab);
            lab.until(&format!("{scenario:?} {lost:?} over"), over).await;
            // What is still under way may arrive now.
            lab.pass(2 * CUT.as_secs()).await;
            lab.until(&format!("{scenario:?} {lost:?} over"), over).await;
            lab.world.server.intercept(NoFaults);
        };
        tokio::select! {
            biased;
            () = scenario.people(lab) => {}
            () = story => {}
        }
    });
    Run {
        killed: fired.load(Ordering::SeqCst),
        ..run
    }
}

/// S8: each write is sent within a term of who sends it, by the Lease as it was stored.
pub fn written_without_leading(run: &Run) -> Vec<String> {
    let lease = Key::new("coordination.k8s.io", "leases", NAMESPACE, LEASE);
    let terms: Vec<(Timestamp, String)> = run
        .log
        .iter()
        .filter(|version| version.key == lease)
        .map(|version| {
            let holder = text(&version.object, "/spec/holderIdentity");
            (version.at, holder.split('_').next().unwrap_or_default().to_owned())
        })
        .collect();
    let leads = |record: &&Record| {
        let last = terms.iter().rev().find(|(at, _)| *at <= record.at);
        last.is_some_and(|(at, holder)| **holder == *record.client && record.at.duration_since(*at) <= TERM)
    };
    let writes = run
        .records
        .iter()
        .filter(|r| r.is_write() && r.resource.plural != "leases");
    let unled = writes.filter(|record| !leads(record));
    unled
        .map(|r| {
            format!(
                "S8 at {}: {} writes {} {} without leading",
                r.at, r.client, r.resource, r.name
            )
        })
        .collect()
}

fn broken(run: &Run) -> Vec<String> {
    let mut broken = properties::broken(run);
    broken.extend(written_without_leading(run));
    broken
}

#[test]
fn one_of_two_replicas_releases_as_one_alone_does() {
    let run = play(Scenario::Good, None);
    assert_eq!(broken(&run), Vec::<String>::new(), "{}", run.trace());
    assert_eq!(run.outcome().as_deref(), Some("Promoted"));
    let writers: std::collections::BTreeSet<_> = (run.records.iter())
        .filter(|r| r.is_write() && r.resource.plural != "leases")
        .map(|r| r.client.clone())
        .collect();
    assert_eq!(writers.len(), 1, "{writers:?}");
}

/// F14, and F1 and F2 where another replica takes over.
#[test]
fn a_leader_may_be_killed_or_cut_off_at_any_write_and_overtake_itself() {
    let scenarios = [
        Scenario::Good,
        Scenario::CrashMidway,
        Scenario::Superseded,
        Scenario::Deleted,
    ];
    for scenario in scenarios {
        let calm = play(scenario, None);
        assert_eq!(broken(&calm), Vec::<String>::new(), "{scenario:?}");
        let writes = calm.records.iter().filter(|record| is_written(record));
        let jobs: Vec<Lost> = (1..=writes.count())
            .flat_map(|at| {
                [
                    Lost::Killed(Kill::Before(at)),
                    Lost::Killed(Kill::After(at)),
                    // Before the other may lead, just after it does, and long after.
                    Lost::CutOff(at, 5),
                    Lost::CutOff(at, 18),
                    Lost::CutOff(at, 45),
                ]
            })
            .collect();
        let found = on_threads(&jobs, |lost| {
            let run = play(scenario, Some(*lost));
            let mut broken = broken(&run);
            if !run.killed {
                broken.push("a fault that never fires proves nothing".to_owned());
            }
            let end = |run: &Run| (run.outcome(), run.stable_image(), run.history());
            if end(&run) != end(&calm) {
                broken.push(format!(
                    "ends as {:?} instead of {:?}: {}",
                    end(&run),
                    end(&calm),
                    run.message()
                ));
            }
            broken
                .into_iter()
                .map(|line| format!("{scenario:?} {lost:?}: {line}"))
                .collect()
        });
        println!("{scenario:?}: {} releases with a lost leader", jobs.len());
        assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
    }
}
