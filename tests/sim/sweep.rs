//! Every kind of fault at every write and every few events, one at a time (reliability.md, §3).

use crate::{
    lab::{Lab, canary, canary_ingress, is_operator, is_write, is_written, lab_with, stable},
    properties,
    scenario::{NAMESPACE, Run, Scenario, release_key},
};
use canary_operator::{
    controller::Settings,
    rehearse::{
        ApiServer, Key,
        json::{int, text},
        nginx::{Nginx, Watched},
        server::{
            error,
            intercept::{After, Before, EventFate, Interceptor, NoFaults, Outcome, Record},
            resource::Resource,
            routes::Call,
            store::{ChangeKind, Version},
        },
    },
    release::{Decide, decide},
};
use serde_json::json;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// F3
    Conflict,
    /// F4
    TooMany,
    /// F5
    FailBefore,
    /// F6
    FailAfter,
    /// F7
    HangBefore,
    /// F7, applied
    HangAfter,
    /// F24, once
    Denied,
    /// F24, for a minute and a half
    DeniedForLong,
    /// F21
    ClockForward,
    /// F21
    ClockBack,
    /// F8: the operator dies after the write, and starts with lists from before it
    StaleStart,
    /// F21 and F2: the operator dies after the write, and another starts whose clock is an hour ahead
    StartAhead,
    /// or an hour behind
    StartBehind,
    /// Nobody reaches the API server for a while after the write, and ingress-nginx hears of it late
    ServerAway,
    /// The same, but ingress-nginx hears of Ingresses long before it hears of endpoints
    EndpointsUnheard,
    /// ingress-nginx alone is cut off for a while after the write
    ControllersDeaf,
    /// F9
    EventMissed,
    /// F10
    EventLate,
    /// F11
    WatchCut,
    /// F12
    WatchGone,
    /// F15
    ReleaseDeleted,
    /// F16
    AnotherImage,
    /// F16
    ShorterSchedule,
    /// F17
    PausedForAWhile,
    /// F18
    StableRestarted,
    /// F18
    StableDeleted,
    /// F18
    StableScaled,
    /// F19
    CanaryIngressDeleted,
    /// F19
    CanaryIngressEdited,
    /// F19, the other objects
    CanaryServiceDeleted,
    CanaryDeploymentDeleted,
    CanaryScaledToZero,
    /// The user's own objects
    StableIngressDeleted,
    StableServiceDeleted,
}

use Fault::*;

const REQUESTS: [Fault; 13] = [
    Conflict,
    TooMany,
    FailBefore,
    FailAfter,
    HangBefore,
    HangAfter,
    Denied,
    DeniedForLong,
    ClockForward,
    ClockBack,
    StaleStart,
    StartAhead,
    StartBehind,
];
const OUTAGES: [Fault; 3] = [ServerAway, EndpointsUnheard, ControllersDeaf];
const EVENTS: [Fault; 4] = [EventMissed, EventLate, WatchCut, WatchGone];
const HANDS: [Fault; 14] = [
    PausedForAWhile,
    ReleaseDeleted,
    AnotherImage,
    ShorterSchedule,
    StableRestarted,
    StableDeleted,
    StableScaled,
    CanaryIngressDeleted,
    CanaryIngressEdited,
    CanaryServiceDeleted,
    CanaryDeploymentDeleted,
    CanaryScaledToZero,
    StableIngressDeleted,
    StableServiceDeleted,
];

impl Fault {
    /// Whether the release must end as if nothing had happened.
    fn is_weathered(self) -> bool {
        REQUESTS.contains(&self)
            || OUTAGES.contains(&self)
            || matches!(self, EventLate | WatchCut | WatchGone | StableScaled | PausedForAWhile)
    }

    fn by_hand(self, server: &ApiServer) {
        let stable_ingress = Key::ingress(NAMESPACE, "shop-ingress");
        let edit = |key: &Key, change: &dyn Fn(&mut serde_json::Value)| drop(server.edit(key, |object| change(object)));
        // What does not exist at this moment cannot be meddled with.
        let delete = |key: &Key| drop(server.delete(key, &Default::default()));
        match self {
            ReleaseDeleted => delete(&release_key()),
            PausedForAWhile => {
                let paused = |server: &ApiServer, paused: bool| {
                    server.edit(&release_key(), |r| r["spec"]["paused"] = json!(paused));
                };
                paused(server, true);
                let server = server.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(45)).await;
                    paused(&server, false);
                });
            }
            AnotherImage => edit(&release_key(), &|r| r["spec"]["canary"]["image"] = json!("shop:v3")),
            ShorterSchedule => edit(&release_key(), &|r| {
                r["spec"]["steps"] = json!([{"weight": 50, "hold": "20s"}])
            }),
            StableRestarted => edit(&stable(), &|d| {
                d["spec"]["template"]["metadata"]["annotations"] = json!({"restarted": "now"});
            }),
            StableScaled => edit(&stable(), &|d| d["spec"]["replicas"] = json!(3)),
            StableDeleted => delete(&stable()),
            CanaryIngressDeleted => delete(&canary_ingress()),
            CanaryIngressEdited => edit(&canary_ingress(), &|i| {
                i["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-weight"] = json!("50");
            }),
            CanaryServiceDeleted => delete(&Key::service(NAMESPACE, "shop-service-v2")),
            CanaryDeploymentDeleted => delete(&canary()),
            CanaryScaledToZero => edit(&canary(), &|d| d["spec"]["replicas"] = json!(0)),
            StableIngressDeleted => delete(&stable_ingress),
            StableServiceDeleted => delete(&Key::service(NAMESPACE, "shop-service")),
            _ => {}
        }
    }
}

/// The API server is out of reach for everybody.
#[derive(Clone, Copy)]
pub struct Away {
    pub length: Duration,
    /// How much longer ingress-nginx is without its Ingresses then, whose watches wait longer and longer before they try again.
    pub ingresses: Duration,
    /// And without all else.
    pub endpoints: Duration,
}

/// As late as it may be.
pub const AWAY: Away = Away {
    length: Duration::from_secs(3),
    ingresses: Duration::from_secs(55),
    endpoints: Duration::from_secs(55),
};

pub fn away(server: &ApiServer, nginx: &Nginx, away: Away) {
    let Away {
        length,
        ingresses,
        endpoints,
    } = away;
    server.go_away();
    nginx.deafen(&[Watched::Ingresses], length + ingresses);
    nginx.deafen(
        &[Watched::Classes, Watched::Services, Watched::Endpoints],
        length + endpoints,
    );
    let server = server.clone();
    tokio::spawn(async move {
        tokio::time::sleep(length).await;
        server.come_back();
    });
}

/// As long as client-go takes to notice that a connection is gone without a word.
pub const DEAF: Duration = Duration::from_secs(45);

struct Injector {
    fault: Fault,
    at: usize,
    server: ApiServer,
    seen: AtomicUsize,
    fired: Arc<AtomicBool>,
    clock_off: Arc<AtomicI64>,
    nginx: Nginx,
    /// What is refused, and until the world is how old.
    denied: Mutex<Option<(&'static str, Resource, Duration)>>,
    /// The version that lists are answered from, while it is set.
    stale: Mutex<Option<u64>>,
}

impl Injector {
    /// Whether this is the one.
    fn counts(&self) -> bool {
        let hit = self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        if hit {
            self.fired.store(true, Ordering::SeqCst);
        }
        hit
    }

    /// By an hour.
    fn set_clock(&self) {
        let ahead = matches!(self.fault, ClockForward | StartAhead);
        self.clock_off.store(if ahead { 3600 } else { -3600 }, Ordering::SeqCst);
    }
}

impl Interceptor for Injector {
    fn before(&self, call: &Call) -> Before {
        if is_operator(&call.client) {
            if let Some((verb, resource, until)) = &*self.denied.lock().unwrap()
                && (*verb, resource) == (call.verb, &call.resource)
                && self.server.clock().elapsed() < *until
            {
                return Before::Answer(error::forbidden(&call.key(), "no role allows it"));
            }
            let mut stale = self.stale.lock().unwrap();
            match (call.verb, *stale) {
                ("list", Some(version)) => return Before::At(version),
                // It has seen the past, and hears of the rest.
                ("watch", Some(_)) if call.resource.plural == "pods" => *stale = None,
                _ => {}
            }
        }
        let meant = matches!(
            self.fault,
            Conflict | TooMany | FailBefore | HangBefore | Denied | DeniedForLong | ClockForward | ClockBack
        );
        if !is_write(call) || !meant || !self.counts() {
            return Before::Pass;
        }
        match self.fault {
            Denied => Before::Answer(error::forbidden(&call.key(), "no role allows it")),
            DeniedForLong => {
                let until = self.server.clock().elapsed() + Duration::from_secs(90);
                *self.denied.lock().unwrap() = Some((call.verb, call.resource.clone(), until));
                Before::Answer(error::forbidden(&call.key(), "no role allows it"))
            }
            ClockForward | ClockBack => {
                self.set_clock();
                Before::Pass
            }
            Conflict => Before::Answer(error::conflict(&call.key())),
            TooMany => Before::Answer(error::failure(429, "TooManyRequests", "slow down")),
            FailBefore => Before::Answer(error::failure(500, "InternalError", "etcd leader changed")),
            _ => Before::Hang,
        }
    }

    fn after(&self, call: &Call, outcome: Outcome<'_>) -> After {
        if !is_write(call)
            || (!HANDS.contains(&self.fault)
                && !OUTAGES.contains(&self.fault)
                && !matches!(
                    self.fault,
                    FailAfter | HangAfter | StaleStart | StartAhead | StartBehind
                ))
        {
            return After::Pass;
        }
        if !self.counts() {
            return After::Pass;
        }
        let _ = outcome;
        match self.fault {
            FailAfter => After::Answer(error::failure(500, "InternalError", "the answer was lost")),
            HangAfter => After::Hang,
            StaleStart => {
                *self.stale.lock().unwrap() = Some(self.server.with(|store| store.version()).saturating_sub(3));
                After::Crash
            }
            StartAhead | StartBehind => {
                self.set_clock();
                After::Crash
            }
            ServerAway => {
                away(&self.server, &self.nginx, AWAY);
                After::Pass
            }
            EndpointsUnheard => {
                let ingresses = Duration::from_secs(1);
                away(&self.server, &self.nginx, Away { ingresses, ..AWAY });
                After::Pass
            }
            ControllersDeaf => {
                self.nginx.deafen(&Watched::ALL, DEAF);
                After::Pass
            }
            hand => {
                hand.by_hand(&self.server);
                After::Pass
            }
        }
    }

    fn event(&self, watch: &Call, version: &Version) -> EventFate {
        // Who never hears of a release does nothing, and nothing is wrong.
        let begins = version.key == release_key() && version.change == ChangeKind::Added;
        if begins || !is_operator(&watch.client) || !EVENTS.contains(&self.fault) || !self.counts() {
            return EventFate::Deliver;
        }
        match self.fault {
            EventMissed => EventFate::Drop,
            EventLate => EventFate::Delay(Duration::from_secs(60)),
            WatchCut => EventFate::Cut,
            _ => EventFate::Gone,
        }
    }
}

/// Over, or waiting for a person and saying so.
fn settled(scenario: Scenario, lab: &Lab) -> bool {
    let release = lab.release();
    if release.is_null() {
        return true;
    }
    let answered = int(&release, "/status/observedGeneration") == int(&release, "/metadata/generation");
    // What is forbidden is tried again and again.
    let stalled = answered && text(&release, "/status/phase") == "Stalled" && lab.reason() != "Forbidden";
    (stalled || scenario.over(lab)) && !lab.status("message").is_empty()
}

struct Played {
    run: Run,
    events: usize,
    writes: usize,
    fired: bool,
}

fn play(scenario: Scenario, fault: Option<(Fault, usize)>) -> Played {
    PLAYED.set(format!("{scenario:?} {fault:?}"));
    let fired = Arc::new(AtomicBool::new(false));
    let watched = Arc::new(AtomicUsize::new(0));
    // The plan that a release begins with takes as long to play as a sixth of all the rest, and moves no traffic: it is played
    // once for each scenario.
    let unplayed: Decide = |seen, routing, settle, now| match seen.may_play {
        true => {
            let mut seen = seen.clone();
            seen.may_play = false;
            decide(&seen, routing, settle, now)
        }
        false => decide(seen, routing, settle, now),
    };
    let change = |settings: Settings| Settings {
        decide: if fault.is_some() { unplayed } else { settings.decide },
        ..settings
    };
    let run = lab_with(change, async |lab| {
        scenario.prepare(lab).await;
        let server = lab.world.server.clone();
        match fault {
            Some((fault, at)) => lab.world.server.intercept(Injector {
                fault,
                at,
                server,
                seen: 0.into(),
                fired: fired.clone(),
                clock_off: lab.clock_off.clone(),
                nginx: lab.world.nginx.clone(),
                denied: Mutex::default(),
                stale: Mutex::default(),
            }),
            None => lab.world.server.intercept(Count(watched.clone())),
        }
        lab.start(scenario);
        let story = async {
            let settled = |lab: &Lab| settled(scenario, lab);
            lab.until(&format!("{scenario:?} {fault:?} settled"), settled).await;
            // A hand may have been at work at the very last write, and what is denied for a minute and a half is asked again a
            // minute later.
            lab.pass(180).await;
            lab.until(&format!("{scenario:?} {fault:?} settled"), settled).await;
            lab.world.server.intercept(NoFaults);
            lab.quiet();
            lab.pass(60).await;
            let before = lab.requests();
            lab.pass(3600).await;
            assert_eq!(lab.requests(), before, "{scenario:?} {fault:?} is not quiet");
        };
        tokio::select! {
            biased;
            () = scenario.people(lab) => {}
            () = story => {}
        }
    });
    let writes = run.records.iter().filter(|record| is_written(record)).count();
    Played {
        run,
        events: watched.load(Ordering::SeqCst),
        writes,
        fired: fired.load(Ordering::SeqCst),
    }
}

struct Count(Arc<AtomicUsize>);

impl Interceptor for Count {
    fn event(&self, watch: &Call, _: &Version) -> EventFate {
        if is_operator(&watch.client) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        EventFate::Deliver
    }
}

/// The number of the operator's write that replaces version 1.
fn replacing(calm: &Run) -> usize {
    let mut written = calm.records.iter().filter(|record| is_written(record));
    let replaces = |record: &Record| record.resource.plural == "deployments" && record.name == "shop";
    written.position(replaces).map_or(usize::MAX, |before| before + 1)
}

/// What is broken beyond what the fault itself breaks.
fn check(scenario: Scenario, fault: Fault, at: usize, calm: &Run, run: &Run) -> Vec<String> {
    let mut broken = properties::broken(run);
    let stalled = run
        .release
        .as_ref()
        .is_some_and(|r| text(r, "/status/phase") == "Stalled");
    let ignored = |line: &String| match fault {
        // nginx learns of replaced pods late: whoever restarts or removes version 1 pays for that.
        StableRestarted | StableDeleted | StableServiceDeleted | StableIngressDeleted => {
            line.starts_with("requests failed") || line.starts_with("S6") || (stalled && line.starts_with("S10"))
        }
        // So does whoever takes the pods from under the traffic.
        CanaryDeploymentDeleted | CanaryScaledToZero => ["S4", "S5", "requests failed"]
            .iter()
            .any(|word| line.starts_with(word)),
        // And whoever takes the traffic back while version 1's pods are replaced.
        CanaryIngressDeleted | CanaryServiceDeleted => line.starts_with("S6") || line.starts_with("requests failed"),
        CanaryIngressEdited => ["S4", "S6", "requests failed"]
            .iter()
            .any(|word| line.starts_with(word)),
        // Who is told of replaced pods late leads requests to those that are gone, where no canary carries them: as in any rollout
        // of a Deployment, which nobody else can hold.
        // The operator waits for that after an outage which it has met, and knows nothing of one that it has not.
        ServerAway | EndpointsUnheard if scenario.is_replaced_while_it_serves() => {
            at >= replacing(calm) && line.starts_with("requests failed")
        }
        ControllersDeaf if scenario.is_replaced_while_it_serves() => line.starts_with("requests failed"),
        // And who is denied for long says so.
        DeniedForLong => line.starts_with("stalled at"),
        // The last word on the stable Deployment that is never heard is told as a promotion that is stuck.
        EventMissed => stalled && line.starts_with("S10"),
        _ => false,
    };
    broken.retain(|line| !ignored(line));
    if fault.is_weathered() && (run.outcome(), run.stable_image()) != (calm.outcome(), calm.stable_image()) {
        broken.push(format!(
            "ends as {:?} with {}: {}",
            run.outcome(),
            run.stable_image(),
            run.message()
        ));
    }
    broken
        .into_iter()
        .map(|line| format!("{scenario:?} {fault:?} at {at}: {line}"))
        .collect()
}

thread_local! {
    /// What this thread plays.
    pub static PLAYED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What `play` finds in every job, on a few threads; a panic is a finding too.
pub fn on_threads<J: Sync>(jobs: &[J], play: impl Fn(&J) -> Vec<String> + Sync) -> Vec<String> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let lines = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(job)));
                    let lines =
                        lines.unwrap_or_else(|panic| vec![panic.downcast_ref::<String>().cloned().unwrap_or_default()]);
                    found.lock().unwrap().extend(lines);
                }
            });
        }
    });
    found.into_inner().unwrap()
}

/// Plays each fault at every place.
fn sweep(scenario: Scenario, faults: &[Fault], count: impl Fn(&Played) -> usize) {
    let calm = play(scenario, None);
    let upto = count(&calm);
    assert!(upto >= 8, "{upto}");
    let jobs: Vec<(Fault, usize)> = (faults.iter())
        .flat_map(|fault| (1..=upto).map(|at| (*fault, at)))
        .collect();
    let fired = Mutex::new(BTreeMap::<Fault, usize>::new());
    let found = on_threads(&jobs, |(fault, at)| {
        let played = play(scenario, Some((*fault, *at)));
        *fired.lock().unwrap().entry(*fault).or_default() += usize::from(played.fired);
        check(scenario, *fault, *at, &calm.run, &played.run)
    });
    let fired = fired.into_inner().unwrap();
    println!("{scenario:?}: {} runs, fired {fired:?}", jobs.len());
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
    assert!(
        faults.iter().all(|fault| fired.get(fault).is_some_and(|n| *n > 0)),
        "a fault that never fires proves nothing: {fired:?}"
    );
}

#[test]
fn a_good_release_weathers_a_fault_at_any_write() {
    sweep(Scenario::Good, &REQUESTS, |calm| calm.writes);
}

#[test]
fn a_crash_loop_is_rolled_back_with_a_fault_at_any_write() {
    sweep(Scenario::CrashLoop, &REQUESTS, |calm| calm.writes);
}

#[test]
fn a_good_release_weathers_an_outage_after_any_write() {
    sweep(Scenario::Good, &OUTAGES, |calm| calm.writes);
}

#[test]
fn a_crash_loop_is_rolled_back_with_an_outage_after_any_write() {
    sweep(Scenario::CrashLoop, &OUTAGES, |calm| calm.writes);
}

#[test]
fn a_good_release_weathers_lost_and_late_events() {
    sweep(Scenario::Good, &EVENTS, |calm| calm.events);
}

#[test]
fn a_crash_loop_is_rolled_back_with_lost_and_late_events() {
    sweep(Scenario::CrashLoop, &EVENTS, |calm| calm.events);
}

#[test]
fn a_good_release_comes_to_an_end_whatever_people_do_after_any_write() {
    sweep(Scenario::Good, &HANDS, |calm| calm.writes);
}

#[test]
fn a_crash_loop_comes_to_an_end_whatever_people_do_after_any_write() {
    sweep(Scenario::CrashLoop, &HANDS, |calm| calm.writes);
}

/// The rest of the scenarios.
const OTHERS: [Scenario; 8] = [
    Scenario::Testers,
    Scenario::Approval,
    Scenario::AwaitStable,
    Scenario::NeverShift,
    Scenario::Quota,
    Scenario::NeverRollsOut,
    Scenario::PromotedEarly,
    Scenario::Retried,
];

#[test]
fn testers_approvals_and_every_way_of_promotion_weather_a_fault_at_any_write() {
    for scenario in OTHERS {
        sweep(scenario, &REQUESTS, |calm| calm.writes);
    }
}

#[test]
fn testers_approvals_and_every_way_of_promotion_weather_lost_and_late_events() {
    for scenario in OTHERS {
        sweep(scenario, &EVENTS, |calm| calm.events);
    }
}

#[test]
fn testers_approvals_and_every_way_of_promotion_weather_an_outage_after_any_write() {
    for scenario in OTHERS {
        sweep(scenario, &OUTAGES, |calm| calm.writes);
    }
}
