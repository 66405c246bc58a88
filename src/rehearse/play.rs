//! Plays releases in a world of their own and prints the timeline.

use super::{
    ApiServer, Key, World,
    actors::behaviour::{Answers, Behaviour},
    json::{int, items, text},
    nginx::Nginx,
    server::{error::ApiError, patch, resource::Resource},
    world::{TimedOut, runtime},
};
use crate::{
    analysis::{Scraper, scraper},
    api::{ANNOTATION_COMMAND, CanaryRelease, Outcome, Stage},
    cluster::{Clock, Contact, Fence, Metered, Term, Wrap},
    controller::{self, Settings, Sources},
    release::{Command, Verb, commanded, decide, schedule},
    render::promotion_patch,
    routing::IngressNginx,
    telemetry::Metrics,
};
use jiff::Timestamp;
use kube::client::ClientBuilder;
use serde_json::{Value, json};
use std::{collections::BTreeSet, io::Write, sync::Arc, time::Duration};

/// A release that is not over after this much virtual time never will be.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// A schedule of more than this is watched as closely as windows end, for the sake of whoever waits for it.
const LONG: Duration = Duration::from_secs(6 * 3600);
const CLOSELY: Duration = Duration::from_secs(1);
const LOOSELY: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "default";
const HOST: &str = "rehearsal.example";

/// How the rehearsed version 2 behaves.
#[derive(Clone, Debug)]
pub struct Script {
    /// Version 2's image prints this and exits, unless the release gives it another command.
    pub crash: Option<String>,
    /// Share of its requests that version 2's image answers with 500, from 0 to 1.
    pub failing: f64,
    /// Requests a second, divided evenly among the paths of all Ingresses.
    pub traffic: u32,
    /// Seed of everything that is random in the world.
    pub seed: u64,
}

impl Default for Script {
    /// Version 2 is well, with 50 requests a second.
    fn default() -> Self {
        Self {
            crash: None,
            failing: 0.0,
            traffic: 50,
            seed: 0,
        }
    }
}

/// Why a rehearsal could not be played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The file holds no release.
    #[error("no CanaryRelease among the manifests: add one, such as manifests/examples/ramp.yaml")]
    NoRelease,
    /// The release does not decode.
    #[error("CanaryRelease {name} cannot be read: {error}")]
    Undecodable {
        /// Its name.
        name: String,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// A manifest was refused.
    #[error("the rehearsed API server refuses {object}: {error}")]
    Refused {
        /// Kind and name.
        object: String,
        /// Why.
        error: ApiError,
    },
    /// Something that is bound to happen did not.
    #[error("{what}: {error}")]
    Never {
        /// What was waited for.
        what: String,
        /// How long.
        error: TimedOut,
    },
    /// No runtime.
    #[error("the virtual clock cannot start: {0}")]
    Runtime(#[from] std::io::Error),
    /// Metrics could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl Clock for super::clock::VirtualClock {
    fn now(&self) -> Timestamp {
        super::clock::VirtualClock::now(self)
    }
}

/// Settings with which the real controller runs against a rehearsed API server, and counts what passes through `nginx`,
/// so often at most; its writes are bound to `term`, `contact` learns how it fares, and `clock` tells it the time.
///
/// # Errors
/// Never in practice: the metrics' names are constants.
pub fn settings(
    server: &ApiServer,
    nginx: &Nginx,
    settle: Duration,
    interval: Duration,
    term: &Term,
    contact: &Contact,
    clock: Arc<dyn Clock>,
) -> Result<Settings, prometheus::Error> {
    let metrics = Metrics::new()?;
    let client = ClientBuilder::new(server.clone(), NAMESPACE)
        .with_layer(&Wrap(Metered {
            metrics: metrics.api.clone(),
        }))
        .with_layer(&Wrap(contact.clone()))
        .with_layer(&Wrap(Fence { term: term.clone() }))
        .build();
    let controllers = scraper::Settings {
        interval,
        ..scraper::Settings::default()
    };
    let scraper = Scraper::new(client.clone(), clock.clone(), Arc::new(nginx.clone()), controllers);
    Ok(Settings {
        sources: Sources {
            scraper: Some(scraper),
            prometheus: None,
        },
        client,
        contact: contact.clone(),
        clock,
        routing: Arc::new(IngressNginx::default()),
        decide,
        settle,
        instance: "rehearsal".to_owned(),
        metrics,
    })
}

/// Plays every CanaryRelease of `manifests`, one after the other, and prints what happens. Objects that a release
/// needs and the manifests lack are made up. Returns how the last one ended.
///
/// # Errors
/// Where the manifests cannot be played, or a release does not come to an end.
pub fn play(manifests: Vec<Value>, script: &Script, out: &mut dyn Write) -> Result<Outcome, PlayError> {
    runtime()?.block_on(async {
        let (releases, others): (Vec<_>, Vec<_>) =
            manifests.into_iter().partition(|m| text(m, "/kind") == "CanaryRelease");
        let mut world = World::new(script.seed);
        for manifest in others {
            apply(&world, manifest)?;
        }
        let releases: Vec<_> = releases.into_iter().map(decoded).collect::<Result<_, _>>()?;
        let long = releases.iter().any(|(_, release)| length(release) > LONG);
        let interval = if long { LOOSELY } else { CLOSELY };
        world.traffic(script.traffic, interval);
        let clock = Arc::new(world.server.clock());
        let settings = settings(
            &world.server,
            &world.nginx,
            Duration::from_secs(6),
            interval,
            &Term::unlimited(),
            &Contact::new(clock.clone()),
            clock,
        )?;
        world.spawn(controller::run(settings, None, std::future::pending()));
        let mut outcome = Err(PlayError::NoRelease);
        for (manifest, release) in releases {
            outcome = Ok(one(&world, manifest, &release, script, out).await?);
        }
        outcome
    })
}

fn apply(world: &World, mut manifest: Value) -> Result<(), PlayError> {
    super::json::set(&mut manifest, "/metadata/namespace", json!(NAMESPACE));
    let object = format!("{} {}", text(&manifest, "/kind"), text(&manifest, "/metadata/name"));
    world
        .apply(manifest)
        .map(drop)
        .map_err(|error| PlayError::Refused { object, error })
}

fn decoded(manifest: Value) -> Result<(Value, CanaryRelease), PlayError> {
    let name = text(&manifest, "/metadata/name").to_owned();
    let release = serde_json::from_value(manifest.clone()).map_err(|error| PlayError::Undecodable { name, error })?;
    Ok((manifest, release))
}

/// How long the schedule holds each step, all in all.
fn length(release: &CanaryRelease) -> Duration {
    let schedule = schedule(&release.spec).ok();
    let steps = schedule
        .iter()
        .flat_map(|s| (1..=s.len()).filter_map(|step| s.step(step)));
    steps.filter_map(|step| step.hold).map(|hold| hold.get()).sum()
}

async fn one(
    world: &World,
    manifest: Value,
    release: &CanaryRelease,
    script: &Script,
    out: &mut dyn Write,
) -> Result<Outcome, PlayError> {
    let name = text(&manifest, "/metadata/name").to_owned();
    invent(world, release)?;
    if let Some(image) = &release.spec.canary.image {
        world.image_answers(image, Answers::failing(script.failing));
    }
    if let (Some(line), Some(image)) = (&script.crash, &release.spec.canary.image) {
        let (image, crash) = (image.clone(), Behaviour::crash_loop(line));
        world.kubelet(|kubelet| {
            kubelet.behaviours.rule(move |pod| {
                let ours = |c: &Value| {
                    text(c, "/image") == image && c.pointer("/command").is_none() && c.pointer("/args").is_none()
                };
                items(pod, "/spec/containers").iter().any(ours).then(|| crash.clone())
            });
        });
    }
    let stable = Key::deployment(NAMESPACE, &release.spec.target.deployment);
    let available = |w: &World| {
        w.server
            .get(&stable)
            .is_some_and(|d| int(&d, "/status/availableReplicas") == int(&d, "/spec/replicas"))
    };
    wait(
        world,
        format!("Deployment {} did not become available", stable.name),
        available,
    )
    .await?;
    // Version 1 has run for a while before anybody releases version 2.
    world.pass(Duration::from_secs(30)).await;
    let mut story = Story {
        started: world.elapsed(),
        told: Value::Null,
        events: events(world)
            .iter()
            .map(|e| text(e, "/metadata/name").to_owned())
            .collect(),
    };
    story.line(world, out, &format!("kubectl apply CanaryRelease {name}"));
    apply(world, manifest)?;
    let key = Key::release(NAMESPACE, &name);
    let generation = world.server.get(&key).and_then(|r| int(&r, "/metadata/generation"));
    wait(world, format!("CanaryRelease {name} did not come to an end"), |world| {
        story.tell(world, &key, out);
        if let Some(done) = person(world, &key) {
            story.line(world, out, &format!("  a person {done}"));
        }
        world.server.get(&key).is_none_or(|release| {
            let current = int(&release, "/status/observedGeneration") == generation;
            let over = text(&release, "/status/rollout/stage") == "Ended" && release.finalizers_are_gone();
            let stalled = text(&release, "/status/phase") == "Stalled" || reason(&release) == "Paused";
            current && (over || stalled)
        })
    })
    .await?;
    // The last event follows the last status.
    world.pass(Duration::from_secs(1)).await;
    story.tell(world, &key, out);
    let rollout = world
        .server
        .get(&key)
        .and_then(|r| serde_json::from_value::<CanaryRelease>((*r).clone()).ok());
    let rollout = rollout.and_then(|r| r.status).and_then(|s| s.rollout);
    Ok(rollout
        .filter(|r| r.stage == Stage::Ended)
        .and_then(|r| r.outcome)
        .unwrap_or(Outcome::Aborted))
}

/// Why the release waits, as a word.
fn reason(release: &Value) -> String {
    let ready = items(release, "/status/conditions")
        .iter()
        .find(|c| text(c, "/type") == "Ready");
    ready.map(|ready| text(ready, "/reason").to_owned()).unwrap_or_default()
}

/// Whoever is waited for does what is waited for, at once; says what.
fn person(world: &World, key: &Key) -> Option<String> {
    let release = world.server.get(key)?;
    let release: CanaryRelease = serde_json::from_value((*release).clone()).ok()?;
    let status = release.status.as_ref()?;
    let rollout = status.rollout.as_ref()?;
    match reason(&json!(release)).as_str() {
        "AwaitingApproval" if commanded(&release).is_none() => {
            let command = Command {
                verb: Verb::Approve(rollout.step),
                revision: status.revision.clone()?,
            };
            world.server.edit(key, |release| {
                super::json::set(
                    release,
                    "/metadata/annotations",
                    json!({ANNOTATION_COMMAND: command.to_string()}),
                );
            })?;
            Some(format!("approves step {}", rollout.step))
        }
        "AwaitingStable" => {
            let stable = Key::deployment(NAMESPACE, &rollout.deployment);
            let live = world.server.get(&stable)?;
            let container = release.spec.canary.container.clone();
            let first = || text(&live, "/spec/template/spec/containers/0/name").to_owned();
            let patch = promotion_patch(&release.spec.canary, &container.unwrap_or_else(first));
            let mut wanted = (*live).clone();
            patch::apply(patch::PatchKind::Strategic, &mut wanted, &patch).ok()?;
            if wanted == *live {
                return None;
            }
            world.server.edit(&stable, |deployment| *deployment = wanted)?;
            Some(format!("gives Deployment {} version 2", rollout.deployment))
        }
        _ => None,
    }
}

trait Finalized {
    fn finalizers_are_gone(&self) -> bool;
}

impl Finalized for Value {
    fn finalizers_are_gone(&self) -> bool {
        items(self, "/metadata/finalizers").is_empty()
    }
}

async fn wait(world: &World, what: String, condition: impl FnMut(&World) -> bool) -> Result<(), PlayError> {
    world
        .run_until(LONGEST, condition)
        .await
        .map(drop)
        .map_err(|error| PlayError::Never { what, error })
}

/// Makes up version 1 as far as the manifests do not describe it.
fn invent(world: &World, release: &CanaryRelease) -> Result<(), PlayError> {
    let target = &release.spec.target;
    let name = &target.deployment;
    if world.server.get(&Key::deployment(NAMESPACE, name)).is_some() {
        return Ok(());
    }
    let overlay = release
        .spec
        .canary
        .template
        .as_ref()
        .and_then(|t| t.pointer("/spec/containers/0/name"))
        .and_then(Value::as_str);
    let container = release.spec.canary.container.as_deref().or(overlay).unwrap_or("app");
    let service = target.service.clone().unwrap_or_else(|| name.clone());
    apply(
        world,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "containers": [{"name": container, "image": format!("{name}:v1"), "ports": [{"containerPort": 8080}]}]}}}}),
    )?;
    apply(
        world,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service}, "spec": {
        "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    )?;
    let ingresses = target.ingresses.clone().unwrap_or_else(|| vec![name.clone()]);
    for (n, ingress) in ingresses.iter().enumerate() {
        let host = if n == 0 { HOST.to_owned() } else { format!("{n}.{HOST}") };
        apply(
            world,
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": ingress}, "spec": {
            "ingressClassName": "nginx", "rules": [{"host": host, "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 80}}}}]}}]}}),
        )?;
    }
    Ok(())
}

fn events(world: &World) -> Vec<Arc<Value>> {
    let mut events = world.server.list(&Resource::new("events.k8s.io", "events"), NAMESPACE);
    events.sort_by_key(|event| {
        int(event, "/metadata/resourceVersion").or_else(|| text(event, "/metadata/resourceVersion").parse().ok())
    });
    events
}

/// What was printed already.
struct Story {
    started: Duration,
    told: Value,
    events: BTreeSet<String>,
}

impl Story {
    fn line(&self, world: &World, out: &mut dyn Write, line: &str) {
        let seconds = world.elapsed().saturating_sub(self.started).as_secs();
        // A closed pipe ends the story, not the rehearsal.
        let _ = writeln!(out, "{:>3}:{:02}  {line}", seconds / 60, seconds % 60);
    }

    /// Prints what is new: the columns of `kubectl get`, and events.
    fn tell(&mut self, world: &World, key: &Key, out: &mut dyn Write) {
        if let Some(release) = world.server.get(key) {
            let status = |name: &str| text(&release, &format!("/status/{name}")).to_owned();
            let (phase, step, weight, message) = (status("phase"), status("step"), status("weight"), status("message"));
            let row = json!([phase, step, weight, message]);
            if row != self.told && !phase.is_empty() {
                self.line(world, out, &format!("{phase:<12} {step:>5} {weight:>5}%  {message}"));
                self.told = row;
            }
        }
        for event in events(world) {
            if self.events.insert(text(&event, "/metadata/name").to_owned()) {
                self.line(
                    world,
                    out,
                    &format!("  event {}: {}", text(&event, "/reason"), text(&event, "/note")),
                );
            }
        }
    }
}
