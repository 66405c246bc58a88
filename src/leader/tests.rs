//! Elections among replicas on a simulated API server, in virtual time.

use super::*;
use crate::{
    cluster::{ApiMetrics, Clock, Fence, Metered, NotLeading, Term, Wrap},
    rehearse::{
        ApiServer, Key,
        clock::VirtualClock,
        json::text,
        server::{
            error::{failure, forbidden},
            intercept::{After, Before, Interceptor, NoFaults, Outcome},
            routes::Call,
        },
        world::runtime,
    },
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{Api, api::PostParams, client::ClientBuilder};
use serde_json::json;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

/// A clock that is wrong.
struct Off(VirtualClock, SignedDuration);

impl Clock for Off {
    fn now(&self) -> Timestamp {
        self.0.now().saturating_add(self.1).unwrap()
    }
}

struct Replica {
    term: Term,
    stands: watch::Receiver<Standing>,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(server: &ApiServer, name: &str, timing: Timing, off: SignedDuration) -> Self {
        let term = Term::none();
        let metrics = ApiMetrics::register(&prometheus::Registry::new()).unwrap();
        let client = ClientBuilder::new(server.named(name), "default")
            .with_layer(&Wrap(Metered { metrics }))
            .build();
        let (standing, stands) = watch::channel(Standing::Unknown(String::new()));
        let (end, ended) = oneshot::channel::<()>();
        let elector = Elector {
            leases: Api::default_namespaced(client),
            name: "operator".to_owned(),
            identity: name.to_owned(),
            timing,
            clock: Arc::new(Off(server.clock(), off)),
            term: term.clone(),
            standing,
        };
        let task = tokio::spawn(async move {
            let ended = futures::FutureExt::shared(async move { drop(ended.await) });
            elector.run(ended.clone(), || ended.clone()).await;
        });
        Self {
            term,
            stands,
            end: Some(end),
            task,
        }
    }

    fn leads(&self) -> bool {
        self.term.end_of_writes().is_ok()
    }

    /// As kill -9 does.
    fn kill(&self) {
        self.task.abort();
        self.term.end();
    }

    /// As SIGTERM does.
    fn stop(&mut self) {
        drop(self.end.take());
    }

    async fn until(&mut self, standing: Standing) {
        let came = timeout(60 * SECOND, self.stands.wait_for(|now| *now == standing))
            .await
            .is_ok();
        assert!(came, "{standing:?} never came: {:?}", *self.stands.borrow());
    }
}

fn replica(server: &ApiServer, name: &str) -> Replica {
    Replica::start(server, name, Timing::default(), SignedDuration::ZERO)
}

async fn leader_and_follower(server: &ApiServer) -> (Replica, Replica) {
    let mut first = replica(server, "a");
    first.until(Standing::Leading).await;
    let mut second = replica(server, "b");
    second.until(Standing::Following("a".to_owned())).await;
    (first, second)
}

fn with_server<F: Future<Output = ()>>(body: impl FnOnce(ApiServer) -> F) {
    runtime()
        .unwrap()
        .block_on(async { body(ApiServer::new(VirtualClock::new(), 1)).await });
}

fn lease() -> Key {
    Key::new("coordination.k8s.io", "leases", "default", "operator")
}

#[test]
fn one_leads_and_the_other_follows_it() {
    with_server(|server| async move {
        let (first, second) = leader_and_follower(&server).await;
        sleep(600 * SECOND).await;
        assert!(first.leads() && !second.leads());
        let lease = server.get(&lease()).unwrap();
        assert_eq!(text(&lease, "/spec/holderIdentity"), "a");
        assert_eq!(lease["spec"]["leaseTransitions"], 1);
        let followers = server
            .records()
            .into_iter()
            .filter(|r| &*r.client == "b" && r.verb != "watch");
        assert_eq!(followers.count(), 1, "who follows lists once, and is told of the rest");
    });
}

#[test]
fn a_leader_that_ends_makes_way_at_once() {
    with_server(|server| async move {
        let (mut first, mut second) = leader_and_follower(&server).await;
        sleep(30 * SECOND).await;
        let ended = Instant::now();
        first.stop();
        second.until(Standing::Leading).await;
        assert!(ended.elapsed() <= SECOND, "{:?}", ended.elapsed());
        assert!(!first.leads() && first.task.is_finished());
    });
}

#[test]
fn a_leader_that_is_killed_is_followed_within_20_seconds_and_not_before_its_term_is_over() {
    for late in 0..20 {
        with_server(|server| async move {
            let (first, mut second) = leader_and_follower(&server).await;
            sleep(30 * SECOND + late * SECOND / 4).await;
            let end = first.term.end_of_writes().unwrap().unwrap();
            let killed = Instant::now();
            first.kill();
            second.until(Standing::Leading).await;
            assert!(killed.elapsed() <= 18 * SECOND, "{:?}", killed.elapsed());
            assert!(Instant::now() > end);
        });
    }
}

/// Fails what touches the Lease, from one client.
struct Cut(&'static str);

impl Interceptor for Cut {
    fn before(&self, call: &Call) -> Before {
        match &*call.client == self.0 {
            true => Before::Hang,
            false => Before::Pass,
        }
    }
}

#[test]
fn a_leader_that_is_cut_off_writes_no_more_before_another_does() {
    with_server(|server| async move {
        let (mut first, mut second) = leader_and_follower(&server).await;
        let cut = Instant::now();
        server.intercept(Cut("a"));
        while first.leads() {
            assert!(!second.leads());
            sleep(SECOND / 10).await;
        }
        assert!(cut.elapsed() <= 12 * SECOND + SECOND / 10, "{:?}", cut.elapsed());
        second.until(Standing::Leading).await;
        server.intercept(NoFaults);
        first.until(Standing::Following("b".to_owned())).await;
    });
}

struct Denied;

impl Interceptor for Denied {
    fn before(&self, call: &Call) -> Before {
        Before::Answer(forbidden(&call.key(), "no role allows it"))
    }
}

#[test]
fn who_may_not_see_the_lease_says_so_and_does_not_lead() {
    with_server(|server| async move {
        server.intercept(Denied);
        let mut alone = replica(&server, "a");
        let told = timeout(
            60 * SECOND,
            alone
                .stands
                .wait_for(|s| matches!(s, Standing::Unknown(why) if !why.is_empty())),
        )
        .await;
        let told = told.unwrap().unwrap().clone();
        let Standing::Unknown(why) = told else { panic!() };
        assert!(why.contains("may this ServiceAccount list and watch it?"), "{why}");
        assert!(!alone.leads());
        server.intercept(NoFaults);
        alone.until(Standing::Leading).await;
    });
}

#[test]
fn nothing_is_written_outside_of_a_term_and_what_is_under_way_is_given_up_at_its_end() {
    with_server(|server| async move {
        let term = Term::none();
        let client = ClientBuilder::new(server.named("operator"), "default")
            .with_layer(&Wrap(Fence { term: term.clone() }))
            .build();
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        let refused = |error: kube::Error| match error {
            kube::Error::Service(error) => error.is::<NotLeading>(),
            _ => false,
        };
        assert!(refused(maps.create(&PostParams::default(), &map).await.unwrap_err()));
        assert!(maps.get_opt("a").await.unwrap().is_none(), "reading is free");
        assert!(server.records().iter().all(|r| r.verb == "get"));

        term.last_until(Instant::now() + 3 * SECOND);
        maps.create(&PostParams::default(), &map).await.unwrap();
        server.intercept(Cut("operator"));
        let sent = Instant::now();
        maps.delete("a", &Default::default()).await.unwrap_err();
        assert_eq!(sent.elapsed().as_secs(), 3);
        assert!(refused(maps.delete("a", &Default::default()).await.unwrap_err()));
    });
}

/// Delays, errors before and after the fact and lost answers, at random.
struct Trouble(Mutex<fastrand::Rng>);

impl Interceptor for Trouble {
    fn before(&self, _: &Call) -> Before {
        let mut rng = self.0.lock().unwrap();
        match rng.u8(0..20) {
            0 => Before::Answer(failure(500, "InternalError", "etcd leader changed")),
            1 => Before::Hang,
            2 => Before::InFlight(Duration::from_millis(rng.u64(0..12_000))),
            3..6 => Before::Delay(Duration::from_millis(rng.u64(0..3_000))),
            _ => Before::Pass,
        }
    }

    fn after(&self, _: &Call, _: Outcome<'_>) -> After {
        let mut rng = self.0.lock().unwrap();
        match rng.u8(0..20) {
            0 => After::Answer(failure(500, "InternalError", "the answer was lost")),
            1 => After::Hang,
            _ => After::Pass,
        }
    }
}

#[derive(Default)]
struct Seen {
    two_leaders: usize,
    hand_overs: usize,
    leaderless: usize,
}

/// Three replicas for ten minutes, killed and ended at random.
fn elections(seeds: std::ops::Range<u64>, timing: Timing) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        runtime().unwrap().block_on(async {
            fastrand::seed(seed);
            let mut rng = fastrand::Rng::with_seed(seed);
            let server = ApiServer::new(VirtualClock::new(), seed);
            server.intercept(Trouble(Mutex::new(fastrand::Rng::with_seed(seed + 1))));
            let start = |rng: &mut fastrand::Rng, name: String| {
                Replica::start(&server, &name, timing, SignedDuration::from_secs(rng.i64(-3600..3600)))
            };
            let mut replicas: Vec<_> = (0..3).map(|n| start(&mut rng, format!("{n}"))).collect();
            let (mut last, mut born, mut calm) = (None, 3, 0);
            for _ in 0..2400 {
                sleep(SECOND / 4).await;
                let leaders: Vec<_> = (0..3).filter(|n| replicas[*n].leads()).collect();
                seen.two_leaders += usize::from(leaders.len() > 1);
                calm = if leaders.is_empty() { calm + 1 } else { 0 };
                seen.leaderless = seen.leaderless.max(calm);
                if let [leader] = leaders[..] {
                    seen.hand_overs += usize::from(last.replace(leader).is_some_and(|last| last != leader));
                }
                if rng.u32(0..200) == 0 {
                    let place = leaders.first().copied().unwrap_or(0);
                    let victim = &mut replicas[place];
                    if rng.bool() {
                        victim.kill();
                    } else {
                        victim.stop();
                        let _ = timeout(30 * SECOND, &mut victim.task).await;
                    }
                    *victim = start(&mut rng, format!("{born}"));
                    born += 1;
                }
            }
        });
    }
    seen
}

#[test]
fn there_are_never_two_leaders_whatever_becomes_of_requests_processes_and_clocks() {
    let seen = elections(0..100, Timing::default());
    println!(
        "{} hand-overs, {} s without a leader at most",
        seen.hand_overs,
        seen.leaderless / 4
    );
    assert_eq!(seen.two_leaders, 0);
    assert!(seen.hand_overs > 300, "{}", seen.hand_overs);
    assert!(seen.leaderless < 4 * 120, "{} s", seen.leaderless / 4);
}

#[test]
fn two_leaders_are_found_where_a_lease_is_shorter_than_the_term_that_it_gives() {
    let broken = Timing {
        lease: 2 * SECOND,
        ..Timing::default()
    };
    assert!(elections(0..5, broken).two_leaders > 0);
}

#[test]
fn a_lease_that_somebody_deletes_is_not_taken_before_its_leader_has_noticed() {
    with_server(|server| async move {
        let (first, second) = leader_and_follower(&server).await;
        for _ in 0..100 {
            sleep(SECOND * 7 / 3).await;
            server.delete(&lease(), &Default::default()).unwrap();
            for _ in 0..200 {
                sleep(SECOND / 10).await;
                assert!(!(first.leads() && second.leads()));
            }
            assert!(first.leads() || second.leads());
        }
    });
}

#[test]
fn a_lease_of_somebody_who_vanished_before_we_came_is_waited_for() {
    with_server(|server| async move {
        let old: Lease = serde_json::from_value(json!({"metadata": {"name": "operator"}, "spec": {
            "holderIdentity": "gone", "leaseDurationSeconds": 15, "renewTime": "2020-01-01T00:00:00.000000Z", "leaseTransitions": 4}}))
        .unwrap();
        let leases: Api<Lease> = Api::default_namespaced(server.client());
        leases.create(&PostParams::default(), &old).await.unwrap();
        let began = Instant::now();
        let mut next = replica(&server, "a");
        next.until(Standing::Leading).await;
        // Its clock may be years behind: only silence proves anything.
        assert!((17..=19).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert_eq!(server.get(&lease()).unwrap()["spec"]["leaseTransitions"], 5);
    });
}
