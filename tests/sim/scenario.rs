//! One release from beginning to end.

use crate::{
    faults::{Kill, Killer},
    lab::{Lab, lab_of, stable},
};
use canary_operator::{
    api::ANNOTATION_COMMAND,
    rehearse::{
        Key,
        actors::behaviour::Behaviour,
        json::{int, items, text},
        server::{intercept::Record, store::Version},
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub const NAMESPACE: &str = "default";
pub const HOST: &str = "shop.example";
pub const SETTLE: Duration = Duration::from_secs(6);
/// How long the kubelet takes to start a killed operator again.
pub const RESTART: Duration = Duration::from_secs(2);
pub const LIMIT: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Three steps, promoted.
    Good,
    /// Five steps, for counting.
    FiveSteps,
    /// Steps below one percent.
    Fractions,
    /// Version 2 crashes at its start.
    CrashLoop,
    /// Version 2 crashes after half a minute.
    CrashMidway,
    /// The release is deleted at its second step.
    Deleted,
    /// The image is changed at the second step.
    Superseded,
    /// Only testers, by header and by cookie, then half of the requests too; a fixed number of pods.
    Testers,
    /// A person approves each step as soon as asked.
    Approval,
    /// A GitOps tool gives the stable Deployment version 2, with an annotation besides, some seconds after it is asked for.
    AwaitStable,
    /// The stable Deployment is replaced while it serves.
    NeverShift,
    /// A quota refuses the pods that were to carry everything during promotion.
    Quota,
    /// Version 2 never gets ready in the stable Deployment.
    NeverRollsOut,
    /// Aborted by command at the second step.
    Aborted,
    /// Promoted by command before its pods are ready.
    PromotedEarly,
    /// Crashed, kept to look at, mended and tried again by command.
    Retried,
    /// Crashed midway and kept for some minutes.
    Kept,
}

/// What was seen of a release.
pub struct Run {
    pub scenario: Scenario,
    pub seed: u64,
    pub kill: Option<Kill>,
    pub killed: bool,
    pub log: Vec<Arc<Version>>,
    pub records: Vec<Record>,
    /// Requests that a pod of version 2 answered.
    pub canary_answers: usize,
    /// The same of testers.
    pub tester_answers: usize,
    /// Requests that were answered with an error or met an address that answers nothing, and when.
    pub failed: Vec<(Timestamp, u16)>,
    /// Requests that nobody answered, not even after nginx had asked the other pods.
    pub lost: Vec<(Timestamp, u16)>,
    pub ended_at: Option<Timestamp>,
    pub release: Option<Arc<Value>>,
    pub stable: Option<Arc<Value>>,
}

pub fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "shop"}}, "template": {"metadata": {"labels": {"app": "shop"}}, "spec": {
            "containers": [{"name": "frontend", "image": "shop:v1", "ports": [{"containerPort": 8080}]}]}}}})
}

pub fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop-service"}, "spec": {
        "selector": {"app": "shop"}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

pub fn ingress() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "shop-ingress"}, "spec": {
        "ingressClassName": "nginx", "rules": [{"host": HOST, "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "shop-service", "port": {"number": 80}}}}]}}]}})
}

impl Scenario {
    pub fn weights(self) -> Vec<Value> {
        match self {
            Self::FiveSteps => [10, 20, 30, 40, 50].map(Value::from).to_vec(),
            Self::Fractions => vec![json!("0.01"), json!("0.5"), json!(5)],
            Self::Testers => [0, 50].map(Value::from).to_vec(),
            Self::Approval => [10, 50].map(Value::from).to_vec(),
            Self::AwaitStable | Self::NeverShift | Self::NeverRollsOut => vec![json!(50)],
            _ => [10, 25, 50].map(Value::from).to_vec(),
        }
    }

    pub fn release(self) -> Value {
        let steps: Vec<_> = self
            .weights()
            .into_iter()
            .map(|weight| json!({"weight": weight, "hold": "20s"}))
            .collect();
        let mut release = json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "shop"}, "spec": {
            "target": {"deployment": "shop"}, "canary": {"image": "shop:v2", "suffix": "-v2"}, "steps": steps, "progressDeadline": "5m"}});
        json_patch::merge(&mut release, &json!({"spec": self.besides()}));
        release
    }

    /// What its spec says beside the usual.
    fn besides(self) -> Value {
        match self {
            Self::Testers => json!({"canary": {"replicas": 2},
                "traffic": {"header": {"name": "X-Canary", "value": "yes"}, "cookie": "canary"}}),
            Self::Approval => {
                json!({"steps": [{"weight": 10, "hold": "20s", "approval": true}, {"weight": 50, "approval": true}]})
            }
            Self::AwaitStable => json!({"promotion": {"mode": "AwaitStable"}}),
            Self::NeverShift => json!({"promotion": {"shiftTraffic": "Never"}}),
            Self::NeverRollsOut => json!({"progressDeadline": "1m"}),
            Self::Retried => json!({"rollback": {"keepFor": "10m"}}),
            Self::Kept => json!({"rollback": {"keepFor": "3m"}}),
            _ => json!({}),
        }
    }

    pub fn behaviour(self) -> Behaviour {
        match self {
            Self::CrashLoop | Self::Retried => {
                Behaviour::crash_loop("Traceback\nModuleNotFoundError: No module named 'flask_limiter'\n")
            }
            Self::CrashMidway | Self::Kept => Behaviour::crash_after(Duration::from_secs(40), "out of luck\n"),
            _ => Behaviour::healthy(),
        }
    }

    /// How it ends, and with what in the stable Deployment.
    pub fn end(self) -> (Option<&'static str>, &'static str) {
        match self {
            Self::Deleted => (None, "shop:v1"),
            Self::CrashLoop | Self::CrashMidway | Self::NeverRollsOut | Self::Kept => (Some("RolledBack"), "shop:v1"),
            Self::Aborted => (Some("Aborted"), "shop:v1"),
            Self::Superseded => (Some("Promoted"), "shop:v3"),
            _ => (Some("Promoted"), "shop:v2"),
        }
    }

    /// Whether the stable Deployment's pods are replaced while they serve, so that requests may be slow.
    pub fn is_replaced_while_it_serves(self) -> bool {
        matches!(self, Self::NeverShift | Self::Quota)
    }

    /// Whether version 2 fails while it answers requests: only nginx's own picture counts then.
    pub fn fails_requests(self) -> bool {
        matches!(self, Self::CrashMidway | Self::Kept)
    }

    /// What the world is like before the release.
    pub async fn prepare(self, lab: &Lab) {
        lab.world.image_behaves("shop:v2", self.behaviour());
        match self {
            Self::Quota => {
                lab.edit(&stable(), |d| d["spec"]["replicas"] = json!(4));
                lab.pass(30).await;
                let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "7"}}});
                lab.world.apply(quota).unwrap();
            }
            Self::NeverRollsOut => lab.world.kubelet(|kubelet| {
                kubelet.behaviours.rule(|pod| {
                    (text(pod, "/metadata/labels/app") == "shop" && text(pod, "/spec/containers/0/image") == "shop:v2")
                        .then_some(Behaviour::NeverReady)
                });
            }),
            _ => {}
        }
    }

    /// What people and their tools do meanwhile; never ends.
    pub async fn people(self, lab: &Lab) {
        let act = || lab.acted.set(lab.acted.get() + 1);
        match self {
            Self::Deleted => {
                lab.whenever(|lab| lab.status("step") == "2/3").await;
                let _ = lab.world.server.delete(&release_key(), &Default::default());
            }
            Self::Superseded => {
                lab.whenever(|lab| lab.status("step") == "2/3").await;
                lab.edit(&release_key(), |release| {
                    release["spec"]["canary"]["image"] = json!("shop:v3")
                });
            }
            Self::Aborted => {
                lab.whenever(|lab| lab.status("step") == "2/3").await;
                lab.command("abort", "");
            }
            Self::PromotedEarly => {
                lab.whenever(|lab| lab.status("phase") == "Pending" && lab.status("rollout/stage") == "Preparing")
                    .await;
                lab.command("promote", "");
            }
            Self::Retried => {
                lab.whenever(|lab| lab.status("phase") == "RolledBack").await;
                lab.world.image_behaves("shop:v2", Behaviour::healthy());
                lab.pass(5).await;
                lab.command("retry", "");
            }
            Self::Approval => loop {
                let asked = |lab: &Lab| {
                    let message = lab.status("message");
                    let command = message.split_once(ANNOTATION_COMMAND).map(|(_, rest)| rest.to_owned());
                    command.filter(|_| lab.reason() == "AwaitingApproval")
                };
                lab.whenever(|lab| asked(lab).is_some()).await;
                let command = asked(lab).unwrap();
                lab.annotate(command.trim_start_matches('='));
                act();
                // Once for each time that it is asked for: were it lost, the release would wait for ever.
                lab.whenever(|lab| asked(lab).is_none_or(|now| now != command)).await;
            },
            Self::AwaitStable => loop {
                let wanted = |lab: &Lab| {
                    let there = lab.world.server.get(&stable()).unwrap_or_default();
                    let image = lab.status("canaryImage");
                    (lab.reason() == "AwaitingStable"
                        && text(&there, "/spec/template/spec/containers/0/image") != image)
                        .then_some(image)
                };
                lab.whenever(|lab| wanted(lab).is_some()).await;
                lab.pass(7).await;
                if let Some(image) = wanted(lab) {
                    lab.edit(&stable(), |d| {
                        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
                        d["spec"]["template"]["metadata"]["annotations"] = json!({"example.com/commit": image});
                    });
                }
                act();
            },
            _ => {}
        }
        act();
        std::future::pending::<()>().await;
    }

    /// The end: promoted or rolled back with nothing left to guard, to answer or to remove, or gone.
    pub fn over(self, lab: &Lab) -> bool {
        let release = lab.release();
        let acts = usize::from(matches!(self, Self::Superseded | Self::Retried));
        release.is_null()
            || (lab.acted.get() >= acts
                && int(&release, "/status/observedGeneration") == int(&release, "/metadata/generation")
                && text(&release, "/status/rollout/stage") == "Ended"
                && text(&release, "/status/phase") != "Pending"
                && release.pointer("/status/rollout/keptUntil").is_none()
                && release.pointer("/status/command").is_none()
                && text(&release, "/metadata/annotations/canary-operator.dev~1command").is_empty()
                && items(&release, "/metadata/finalizers").is_empty())
    }
}

pub fn release_key() -> Key {
    Key::release(NAMESPACE, "shop")
}

pub fn play(scenario: Scenario, seed: u64, kill: Option<Kill>) -> Run {
    let fired = Arc::new(AtomicBool::new(false));
    let run = lab_of(seed, async |lab| {
        scenario.prepare(lab).await;
        if let Some(kill) = kill {
            let fired = fired.clone();
            lab.world.server.intercept(Killer {
                kill,
                writes: 0.into(),
                fired,
            });
        }
        lab.start(scenario);
        let story = async {
            lab.until(&format!("{scenario:?} {kill:?} over"), |lab| scenario.over(lab))
                .await;
            lab.ended_at.set(Some(lab.world.now()));
            // Quiet after the end is part of the end.
            lab.pass(120).await;
        };
        tokio::select! {
            biased;
            () = scenario.people(lab) => {}
            () = story => {}
        }
    });
    Run {
        kill,
        killed: fired.load(Ordering::SeqCst),
        ..run
    }
}

impl Run {
    pub fn outcome(&self) -> Option<String> {
        self.release
            .as_ref()
            .map(|release| text(release, "/status/rollout/outcome").to_owned())
    }

    pub fn message(&self) -> String {
        self.release
            .as_ref()
            .map(|release| text(release, "/status/message").to_owned())
            .unwrap_or_default()
    }

    /// What was told in events for this reason.
    pub fn events(&self, reason: &str) -> Vec<String> {
        let events = self.log.iter().filter(|v| v.key.resource.plural == "events");
        let told = events.filter(|v| text(&v.object, "/reason") == reason);
        told.map(|v| text(&v.object, "/note").to_owned()).collect()
    }

    pub fn history(&self) -> Vec<String> {
        let release = self.release.clone().unwrap_or_default();
        items(&release, "/status/history")
            .iter()
            .map(|entry| text(entry, "/outcome").to_owned())
            .collect()
    }

    /// The commands that were carried out, release by release, newest first.
    pub fn commands(&self) -> Vec<String> {
        let release = self.release.clone().unwrap_or_default();
        let entries = items(&release, "/status/history").iter();
        let commands = entries.flat_map(|entry| items(entry, "/commands"));
        commands.map(|command| text(command, "/command").to_owned()).collect()
    }

    pub fn stable_image(&self) -> String {
        self.stable
            .as_ref()
            .map(|stable| text(stable, "/spec/template/spec/containers/0/image").to_owned())
            .unwrap_or_default()
    }

    /// Weights that the canary Ingress carried, in order, without repeats.
    pub fn weights(&self) -> Vec<String> {
        let mut weights: Vec<String> = Vec::new();
        for version in self.log.iter().filter(|v| crate::properties::is_canary_ingress(v)) {
            let weight = crate::properties::weight(&version.object).to_string();
            if weights.last() != Some(&weight) {
                weights.push(weight);
            }
        }
        weights
    }

    /// Every request of the operator, one a line.
    pub fn trace(&self) -> String {
        let line = |r: &Record| {
            format!(
                "{} {} {}{} {} -> {} {}",
                r.at,
                r.verb,
                r.resource,
                r.subresource,
                r.name,
                r.code,
                if r.verb == "watch" || r.verb == "list" {
                    Value::Null
                } else {
                    (*r.body).clone()
                }
            )
        };
        self.records.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
