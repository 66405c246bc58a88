//! Scheduler and kubelet in one: pods get a node, start, become ready, crash, end.

use super::{
    Queue,
    behaviour::{Behaviour, Behaviours, Moment, moment},
    conditions::{conditions_of, set_condition},
};
use crate::rehearse::{
    ApiServer, Key, Resource,
    clock::stamp,
    json::{is_ending, items, map, set, text},
    server::ContainerLog,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch::Receiver;

/// How pods behave and how long they take to end; may be changed while the world runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which pod does what.
    pub behaviours: Behaviours,
    /// From SIGTERM to exit, cut short by the grace period.
    pub termination: Duration,
    /// Address of the node, which pods in its network have too.
    pub node: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            behaviours: Behaviours::default(),
            termination: Duration::from_secs(2),
            node: "192.168.0.1".to_owned(),
        }
    }
}

/// What the kubelet remembers of a pod.
struct Life {
    uid: String,
    behaviour: Behaviour,
    since: Duration,
    address: String,
    ending: Option<Duration>,
}

struct Kubelet {
    server: ApiServer,
    settings: Receiver<Settings>,
    lives: BTreeMap<Key, Life>,
    addresses: u32,
}

/// Runs for ever. A changed behaviour takes effect at once.
pub async fn run(server: ApiServer, settings: Receiver<Settings>) {
    let pods = Resource::new("", "pods");
    let mut queue = Queue::new(&server, Duration::from_millis(50));
    let mut changed = settings.clone();
    let mut kubelet = Kubelet {
        server,
        settings,
        lives: BTreeMap::new(),
        addresses: 0,
    };
    loop {
        let keys = tokio::select! {
            biased;
            keys = queue.next(|v| (v.key.resource == pods).then(|| v.key.clone()).into_iter().collect()) => keys,
            Ok(()) = changed.changed() => kubelet.lives.keys().cloned().collect(),
        };
        for key in keys {
            let again = kubelet.visit(&key);
            queue.again(&key, again);
        }
    }
}

impl Kubelet {
    /// Reports on a pod; the age of the world at which to look again.
    fn visit(&mut self, key: &Key) -> Option<Duration> {
        let Some(pod) = self.server.get(key) else {
            self.lives.remove(key);
            return None;
        };
        let settings = self.settings.borrow().clone();
        let behaviour = settings.behaviours.of(&pod);
        let now = self.server.clock().elapsed();
        let uid = text(&pod, "/metadata/uid");
        if self.lives.get(key).is_none_or(|l| l.uid != uid) {
            self.addresses += 1;
            let address = format!("10.244.{}.{}", self.addresses / 250, self.addresses % 250 + 1);
            self.lives.insert(
                key.clone(),
                Life {
                    uid: uid.into(),
                    behaviour: behaviour.clone(),
                    since: now,
                    address,
                    ending: None,
                },
            );
        }
        let life = self.lives.get_mut(key)?;
        if life.behaviour != behaviour {
            life.behaviour = behaviour;
            // A running container does not start anew for being unready or well.
            let calm = matches!(life.behaviour, Behaviour::Healthy { .. } | Behaviour::NeverReady);
            life.since = if calm {
                now.saturating_sub(super::behaviour::START)
            } else {
                now
            };
        }
        if is_ending(&pod) {
            return self.end(key, &pod, settings.termination);
        }
        self.report(key, &pod)
    }

    fn end(&mut self, key: &Key, pod: &Value, termination: Duration) -> Option<Duration> {
        let now = self.server.clock().elapsed();
        let grace = crate::rehearse::json::int(pod, "/metadata/deletionGracePeriodSeconds")
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(0);
        let life = self.lives.get_mut(key)?;
        let at = *life
            .ending
            .get_or_insert(now + termination.min(Duration::from_secs(grace)));
        if now < at {
            return Some(at);
        }
        self.lives.remove(key);
        // What is left of it waits for its finalizers, like everything else.
        let kept = !items(pod, "/metadata/finalizers").is_empty();
        if kept {
            self.server
                .edit(key, |p| set(p, "/metadata/deletionGracePeriodSeconds", json!(0)));
        } else {
            self.server.with(|s| s.purge(key));
        }
        None
    }

    fn report(&mut self, key: &Key, pod: &Value) -> Option<Duration> {
        let now = self.server.clock().elapsed();
        let life = self.lives.get(key)?;
        let stamped = stamp(self.server.clock().now());
        if life.behaviour == Behaviour::Unschedulable {
            self.server.edit(key, |p| {
                let mut conditions = conditions_of(p);
                set_condition(
                    &mut conditions,
                    "PodScheduled",
                    false,
                    "Unschedulable",
                    "0/1 nodes are available: 1 Insufficient cpu.",
                    &stamped,
                );
                set(p, "/status/conditions", Value::Array(conditions));
            });
            return None;
        }
        let since = life.since;
        let clock = self.server.clock();
        let at = |age: Duration| stamp(clock.at(since + age));
        let age = now.saturating_sub(since);
        let list = if matches!(life.behaviour, Behaviour::InitCrash { .. }) {
            "/spec/initContainers"
        } else {
            "/spec/containers"
        };
        // The first container carries the behaviour; others are well, unless no image at all can be had.
        let subject = items(pod, list).first().cloned().unwrap_or_default();
        let main = moment(&life.behaviour, age, &subject, at);
        let aside = if matches!(life.behaviour, Behaviour::Crash { .. }) {
            moment(&Behaviour::healthy(), age, &Value::Null, at)
        } else {
            main.clone()
        };
        let node = self.settings.borrow().node.clone();
        let address = match pod.pointer("/spec/hostNetwork") {
            Some(Value::Bool(true)) => node.clone(),
            _ => life.address.clone(),
        };
        for (container, m) in
            named(pod, "/spec/containers").zip(std::iter::once(&main).chain(std::iter::repeat(&aside)))
        {
            let log = if main.init {
                ContainerLog::default()
            } else {
                ContainerLog {
                    current: m.log.clone(),
                    previous: m.previous_log.clone(),
                }
            };
            self.server.set_log(key, container, log);
        }
        for container in named(pod, "/spec/initContainers").take(1).filter(|_| main.init) {
            self.server.set_log(
                key,
                container,
                ContainerLog {
                    current: main.log.clone(),
                    previous: main.previous_log.clone(),
                },
            );
        }
        self.server
            .edit(key, |p| write(p, (&main, &aside), (&node, &address), &stamped));
        [main.next, aside.next]
            .into_iter()
            .flatten()
            .filter(|next| *next > age)
            .min()
            .map(|next| since + next)
    }
}

fn named<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a str> {
    items(pod, list).iter().map(|c| text(c, "/name"))
}

/// Writes spec.nodeName and the status of a pod.
fn write(pod: &mut Value, (main, aside): (&Moment, &Moment), (node, address): (&str, &str), now: &str) {
    set(pod, "/spec/nodeName", json!("node-1"));
    let waiting =
        main.init || map(&main.state, "/waiting").is_some_and(|w| w.get("reason") != Some(&json!("CrashLoopBackOff")));
    set(pod, "/status/phase", json!(if waiting { "Pending" } else { "Running" }));
    set(pod, "/status/hostIP", json!(node));
    if main.started || main.restarts > 0 || main.init {
        set(pod, "/status/podIP", json!(address));
        set(pod, "/status/podIPs", json!([{"ip": address}]));
        crate::rehearse::json::default(pod, "/status/startTime", json!(now));
    }
    let status = |c: &Value, m: &Moment| {
        json!({"name": text(c, "/name"), "image": text(c, "/image"), "imageID": "", "ready": m.ready, "started": m.started,
            "restartCount": m.restarts, "state": m.state, "lastState": if m.last.is_null() { json!({}) } else { m.last.clone() }})
    };
    let initializing = Moment {
        state: json!({"waiting": {"reason": "PodInitializing"}}),
        ..Moment::default()
    };
    let finished = Moment {
        state: json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
        ready: true,
        ..Moment::default()
    };
    let before = if main.started || main.restarts > 0 || !waiting {
        &finished
    } else {
        &initializing
    };
    let init: Vec<Value> = items(pod, "/spec/initContainers")
        .iter()
        .enumerate()
        .map(|(n, c)| {
            status(
                c,
                if !main.init {
                    before
                } else if n == 0 {
                    main
                } else {
                    &initializing
                },
            )
        })
        .collect();
    let containers: Vec<Value> = items(pod, "/spec/containers")
        .iter()
        .enumerate()
        .map(|(n, c)| {
            status(
                c,
                if main.init {
                    &initializing
                } else if n == 0 {
                    main
                } else {
                    aside
                },
            )
        })
        .collect();
    let ready = !main.init && containers.iter().all(|c| c.get("ready") == Some(&json!(true)));
    if !init.is_empty() {
        set(pod, "/status/initContainerStatuses", Value::Array(init));
    }
    set(pod, "/status/containerStatuses", Value::Array(containers));
    let mut conditions = conditions_of(pod);
    let why = if ready { "" } else { "ContainersNotReady" };
    set_condition(&mut conditions, "PodScheduled", true, "", "", now);
    set_condition(&mut conditions, "Initialized", !main.init, "", "", now);
    set_condition(&mut conditions, "ContainersReady", ready, why, "", now);
    set_condition(&mut conditions, "Ready", ready, why, "", now);
    set(pod, "/status/conditions", Value::Array(conditions));
}
