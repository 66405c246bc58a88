//! A world with a running operator and steady traffic, for a test to meddle with.

use crate::scenario::{self, HOST, LIMIT, NAMESPACE, RESTART, Run, SETTLE, Scenario};
use crate::sweep::PLAYED;
use canary_operator::{
    api::ANNOTATION_COMMAND,
    cluster::{ApiMetrics, Clock, Contact, Metered, SteadyClock, Term, Wrap},
    controller::{self, Settings},
    leader::{Elector, Standing, Timing},
    rehearse::{
        ApiServer, Key, World,
        clock::VirtualClock,
        json::{items, text},
        nginx::{Outcome, Reply, SimRequest},
        play::settings,
        server::{intercept::Record, resource::Resource, routes::Call},
        world::runtime,
    },
};
use kube::client::ClientBuilder;
use serde_json::Value;
use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};
use tokio::sync::watch;

/// Real time after which virtual time is held to stand still: something loops without waiting.
const PATIENCE: Duration = Duration::from_secs(60);

/// By which one of several replicas leads.
pub const LEASE: &str = "canary-operator";
const SECOND: Duration = Duration::from_secs(1);
/// Requests a second in the background. Ten more are looked at one by one.
const CROWD: u32 = 40;

pub struct Lab {
    pub world: World,
    /// How often the people of a scenario have acted.
    pub acted: Cell<usize>,
    pub ended_at: Cell<Option<jiff::Timestamp>>,
    scenario: Cell<Scenario>,
    up: watch::Sender<bool>,
    load: Cell<Load>,
    seen: RefCell<Seen>,
    /// By how many seconds the clock of the operator's machine is wrong.
    pub clock_off: Arc<AtomicI64>,
    /// Counts on whenever virtual time has passed.
    alive: Arc<AtomicUsize>,
    /// Ends who watches that, with the lab.
    _watched: mpsc::Sender<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Steady,
    /// One request a minute.
    Hardly,
    Nothing,
}

#[derive(Default)]
struct Seen {
    canary_answers: usize,
    tester_answers: usize,
    failed: Vec<(jiff::Timestamp, u16)>,
    lost: Vec<(jiff::Timestamp, u16)>,
}

/// Version 1 serves, the operator runs; `script` does the rest. What is broken after it is for the test to ask.
pub fn lab(script: impl AsyncFnOnce(&Lab)) -> Run {
    simulate(1, |settings| settings, script)
}

/// The same with other settings of the operator.
pub fn lab_with(change: impl Fn(Settings) -> Settings, script: impl AsyncFnOnce(&Lab)) -> Run {
    simulate(1, change, script)
}

/// The same from another seed.
pub fn lab_of(seed: u64, script: impl AsyncFnOnce(&Lab)) -> Run {
    simulate(seed, |settings| settings, script)
}

/// The same with two replicas of the operator, of which one leads.
pub fn lab_of_two(seed: u64, script: impl AsyncFnOnce(&Lab)) -> Run {
    run(seed, Replicas::Two, |settings| settings, script)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Replicas {
    /// That need not be elected.
    One,
    Two,
}

/// Whether this client is a replica of the operator.
pub fn is_operator(client: &str) -> bool {
    client.starts_with("operator")
}

/// Whether the operator is about to write what belongs to a release.
pub fn is_write(call: &Call) -> bool {
    is_operator(&call.client) && call.is_write() && belongs_to_a_release(&call.resource)
}

/// Whether it has asked for such a write.
pub fn is_written(record: &Record) -> bool {
    is_operator(&record.client) && record.is_write() && belongs_to_a_release(&record.resource)
}

/// Neither an event nor the Lease.
fn belongs_to_a_release(resource: &Resource) -> bool {
    !["events", "leases"].contains(&&*resource.plural)
}

fn simulate(seed: u64, change: impl Fn(Settings) -> Settings, script: impl AsyncFnOnce(&Lab)) -> Run {
    run(seed, Replicas::One, change, script)
}

/// Ends the process where virtual time stands still, and tells what was asked last, until what it gives is dropped.
fn end_storms(server: ApiServer, alive: Arc<AtomicUsize>) -> mpsc::Sender<()> {
    let (watched, ended) = mpsc::channel();
    let test = std::thread::current().name().unwrap_or_default().to_owned() + " " + &PLAYED.with_borrow(String::clone);
    std::thread::spawn(move || {
        let mut before = usize::MAX;
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(PATIENCE) {
            let now = alive.load(Ordering::Relaxed);
            if now == before {
                eprintln!("{test}: virtual time stands still: something loops without waiting. Asked last:");
                for record in server.records().iter().rev().take(9).rev() {
                    let (verb, name, subresource) = (record.verb, &record.name, &record.subresource);
                    let (kind, body) = (&record.resource.plural, &record.body);
                    eprintln!("{verb} {kind} {name} {subresource} -> {} {body}", record.code);
                }
                std::process::abort();
            }
            before = now;
        }
    });
    watched
}

fn run(seed: u64, replicas: Replicas, change: impl Fn(Settings) -> Settings, script: impl AsyncFnOnce(&Lab)) -> Run {
    runtime().unwrap().block_on(async {
        let world = World::new(seed);
        let alive = Arc::new(AtomicUsize::new(0));
        let _watched = end_storms(world.server.clone(), alive.clone());
        for manifest in [scenario::deployment(), scenario::service(), scenario::ingress()] {
            world.apply(manifest).unwrap();
        }
        world.traffic(CROWD, SECOND);
        world.pass(Duration::from_secs(30)).await;
        let (up, mut is_up) = watch::channel(true);
        let lab = Lab {
            world,
            up,
            load: Cell::new(Load::Steady),
            acted: Cell::new(0),
            scenario: Cell::new(Scenario::Good),
            ended_at: Cell::new(None),
            seen: RefCell::default(),
            clock_off: Arc::default(),
            alive,
            _watched,
        };
        let operator = lab.world.server.named("operator");
        let settings = |server: &ApiServer, term: &Term, process: &Process| {
            let Process { clock, contact } = process;
            let settings = settings(server, &lab.world.nginx, SETTLE, SECOND, term, contact, clock.clone());
            change(settings.unwrap())
        };
        let start = || Process::start(&operator, &lab.clock_off);
        let life = async {
            if replicas == Replicas::Two {
                let names = ["operator-0", "operator-1"].map(|name| replica(lab.world.server.named(name), name, &start, &settings));
                futures::future::join_all(names).await;
            }
            loop {
                is_up.wait_for(|up| *up).await.unwrap();
                tokio::select! {
                    biased;
                    down = is_up.wait_for(|up| !*up) => drop(down),
                    () = operator.crashed("operator") => tokio::time::sleep(RESTART).await,
                    () = controller::run(settings(&operator, &Term::unlimited(), &start()), None, std::future::pending()) => panic!("the controller ended"),
                }
            }
        };
        tokio::select! {
            biased;
            () = script(&lab) => {}
            () = life => {}
            () = lab.traffic() => {}
        }
        let Lab { world, seen, .. } = &lab;
        let seen = seen.take();
        Run {
            scenario: lab.scenario.get(),
            seed,
            kill: None,
            killed: false,
            log: world.server.log(),
            records: world
                .server
                .records()
                .into_iter()
                .filter(|r| is_operator(&r.client))
                .collect(),
            canary_answers: seen.canary_answers,
            tester_answers: seen.tester_answers,
            failed: seen.failed,
            lost: seen.lost,
            ended_at: lab.ended_at.get(),
            release: world.server.get(&scenario::release_key()),
            stable: world.server.get(&Key::deployment(NAMESPACE, "shop")),
        }
    })
}

/// A clock that may be set.
struct Off(VirtualClock, Arc<AtomicI64>);

impl Clock for Off {
    fn now(&self) -> jiff::Timestamp {
        let by = jiff::SignedDuration::from_secs(self.1.load(Ordering::SeqCst));
        self.0.now().saturating_add(by).unwrap()
    }
}

/// What a process of the operator has from its start to its end.
struct Process {
    clock: Arc<dyn Clock>,
    contact: Contact,
}

impl Process {
    /// Whoever starts takes the wall clock as it is.
    fn start(server: &ApiServer, clock_off: &Arc<AtomicI64>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SteadyClock::new(Off(server.clock(), clock_off.clone())));
        let contact = Contact::new(clock.clone());
        Self { clock, contact }
    }
}

/// One of several: follows, leads, dies and comes back as another process.
async fn replica(
    server: ApiServer,
    name: &str,
    start: impl Fn() -> Process,
    settings: impl Fn(&ApiServer, &Term, &Process) -> Settings,
) {
    for life in 0.. {
        let (term, process) = (Term::none(), start());
        let metrics = ApiMetrics::register(&prometheus::Registry::new()).unwrap();
        let client = ClientBuilder::new(server.clone(), NAMESPACE)
            .with_layer(&Wrap(Metered { metrics }))
            .with_layer(&Wrap(process.contact.clone()))
            .build();
        let elector = Elector {
            leases: kube::Api::default_namespaced(client),
            name: LEASE.to_owned(),
            identity: format!("{name}_{life}"),
            timing: Timing::default(),
            clock: Arc::new(server.clock()),
            term: term.clone(),
            standing: watch::channel(Standing::Unknown(String::new())).0,
        };
        let lead = || controller::run(settings(&server, &term, &process), None, std::future::pending());
        tokio::select! {
            biased;
            () = server.crashed(name) => {}
            () = elector.run(std::future::pending(), lead) => panic!("the elector ended"),
        }
        tokio::time::sleep(RESTART).await;
    }
}

impl Lab {
    /// Requests ten times a second, and testers' where the scenario has any.
    async fn traffic(&self) {
        for number in 0_usize.. {
            let pause = if self.load.get() == Load::Steady { 100 } else { 60_000 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.alive.fetch_add(1, Ordering::Relaxed);
            if self.load.get() == Load::Nothing {
                continue;
            }
            let plain = SimRequest::to(HOST, "/");
            self.request(&plain, false);
            if self.scenario.get() == Scenario::Testers {
                let tester = if number % 2 == 0 {
                    plain.header("X-Canary", "yes")
                } else {
                    plain.cookie("canary", "always")
                };
                self.request(&tester, true);
            }
        }
    }

    fn request(&self, request: &SimRequest, tester: bool) {
        let Reply { outcome, dead, .. } = self.world.nginx.request(request);
        let mut seen = self.seen.borrow_mut();
        let now = self.world.now();
        match outcome {
            Outcome::Stable { .. } => {}
            Outcome::Canary { .. } if tester => seen.tester_answers += 1,
            Outcome::Canary { .. } => seen.canary_answers += 1,
            Outcome::Status(code) => seen.lost.push((now, code)),
        }
        match outcome {
            // An address that answers nothing costs the client a wait even where another pod answers then.
            _ if dead > 0 => seen.failed.push((now, 502)),
            Outcome::Status(code) => seen.failed.push((now, code)),
            _ => {}
        }
    }

    pub fn start(&self, scenario: Scenario) {
        self.scenario.set(scenario);
        self.world.apply(scenario.release()).unwrap();
    }

    /// Somebody commands by annotation, for the revision that is being released.
    pub fn command(&self, verb: &str, rest: &str) {
        self.annotate(&format!("{verb}/{}{rest}", self.status("revision")));
    }

    /// Does nothing where the release is gone.
    pub fn annotate(&self, text: &str) {
        self.edit(&scenario::release_key(), |release| {
            release["metadata"]["annotations"][ANNOTATION_COMMAND] = text.into();
        });
    }

    /// The reason that the release tells.
    pub fn reason(&self) -> String {
        let release = self.release();
        let found = canary_operator::rehearse::json::condition(&release, "Ready");
        found
            .map(|condition| text(condition, "/reason").to_owned())
            .unwrap_or_default()
    }

    /// Waits without an end, for what may never come.
    pub async fn whenever(&self, condition: impl Fn(&Self) -> bool) {
        let long = Duration::from_secs(30 * 24 * 3600);
        let waited = self.world.run_until(long, |_| condition(self)).await;
        assert!(waited.is_ok());
    }

    /// Starts a release that was changed first.
    pub fn start_with(&self, change: impl FnOnce(&mut Value)) {
        let mut release = Scenario::Good.release();
        change(&mut release);
        self.world.apply(release).unwrap();
    }

    pub fn operator(&self, up: bool) {
        self.up.send_replace(up);
    }

    /// Hardly any traffic from now on.
    pub fn quiet(&self) {
        self.world.traffic(0, SECOND);
        self.load.set(Load::Hardly);
    }

    /// No traffic at all from now on.
    pub fn silent(&self) {
        self.world.traffic(0, SECOND);
        self.load.set(Load::Nothing);
    }

    /// As much traffic as at the beginning again.
    pub fn busy(&self) {
        self.world.traffic(CROWD, SECOND);
        self.load.set(Load::Steady);
    }

    pub fn release(&self) -> Arc<Value> {
        self.world.server.get(&scenario::release_key()).unwrap_or_default()
    }

    pub fn status(&self, field: &str) -> String {
        let release = self.release();
        let value = release
            .pointer(&format!("/status/{field}"))
            .cloned()
            .unwrap_or_default();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    pub fn weight(&self) -> Option<String> {
        let ingress = self.world.server.get(&canary_ingress())?;
        Some(crate::properties::weight(&ingress).to_string())
    }

    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waited = self.world.run_until(LIMIT, |_| condition(self)).await;
        assert!(waited.is_ok(), "never: {what}; {:#}", self.release());
    }

    pub async fn step(&self, step: &str) {
        self.until(step, |lab| {
            lab.status("step") == step && lab.status("phase") == "Progressing"
        })
        .await;
    }

    pub async fn ended(&self) {
        self.until("over", |lab| {
            let release = lab.release();
            release.is_null()
                || (text(&release, "/status/rollout/stage") == "Ended"
                    && items(&release, "/metadata/finalizers").is_empty())
        })
        .await;
    }

    pub async fn pass(&self, seconds: u64) {
        self.world.pass(Duration::from_secs(seconds)).await;
    }

    pub fn edit(&self, key: &Key, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
        self.world.server.edit(key, change)
    }

    pub fn edit_release(&self, change: impl FnOnce(&mut Value)) {
        self.edit(&scenario::release_key(), change).unwrap();
    }

    pub fn delete(&self, key: &Key) {
        self.world.server.delete(key, &Default::default()).unwrap();
    }

    /// How many requests the operator has made, watches apart.
    pub fn requests(&self) -> usize {
        let records = self.world.server.records();
        records
            .iter()
            .filter(|r| &*r.client == "operator" && r.verb != "watch" && r.verb != "list")
            .count()
    }
}

pub fn canary_ingress() -> Key {
    Key::ingress(NAMESPACE, "shop-ingress-v2")
}

pub fn stable() -> Key {
    Key::deployment(NAMESPACE, "shop")
}

pub fn canary() -> Key {
    Key::deployment(NAMESPACE, "shop-v2")
}
