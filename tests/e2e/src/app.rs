//! Version 1 of an application, ready to be applied: its Deployment, its Service and the Ingresses that lead there.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::{
    exercise::{self, image},
    load::Request,
    namespace::Namespace,
    process::{attempt, output, until},
};

/// Annotations of the exercise's Ingress that throttle a client.
const RATE_LIMIT: [&str; 2] = [
    "nginx.ingress.kubernetes.io/limit-rpm",
    "nginx.ingress.kubernetes.io/limit-burst-multiplier",
];

/// Version 1 of an application.
#[derive(Clone, Debug)]
pub struct App {
    /// The Deployment.
    pub deployment: Value,
    /// The Service in front of it.
    pub service: Value,
    /// The Ingresses that lead to the Service.
    pub ingresses: Vec<Value>,
    /// Where it answers once it is deployed.
    pub answers_at: Vec<Request>,
}

impl App {
    /// One pod with a readiness probe, and a Service (port 80, named `http`) and an Ingress of the same name for all of
    /// `host`.
    #[must_use]
    pub fn new(name: &str, host: &str) -> Self {
        let labels = json!({"app": name});
        let pod_name = json!({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
        let container = json!({
            "name": name,
            "image": image("v1"),
            "imagePullPolicy": "IfNotPresent",
            "ports": [{"containerPort": 8080}],
            "env": [pod_name],
        });
        let app = Self {
            deployment: json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
                },
            }),
            service: json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name},
                "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
            }),
            ingresses: vec![ingress(name, json!([rule(host, json!([path("/", name)]))]))],
            answers_at: vec![Request::to(host)],
        };
        app.with_readiness_probe()
    }

    /// Behind these Ingresses instead, by which it answers these requests.
    #[must_use]
    pub fn behind(mut self, ingresses: Vec<Value>, answers_at: Vec<Request>) -> Self {
        (self.ingresses, self.answers_at) = (ingresses, answers_at);
        self
    }

    /// With this annotation on each Ingress.
    #[must_use]
    pub fn with_annotation(mut self, key: &str, value: &str) -> Self {
        for ingress in &mut self.ingresses {
            ingress["metadata"]["annotations"][key] = value.into();
        }
        self
    }

    /// With this variable in the environment.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        if let Some(env) = self.container()["env"].as_array_mut() {
            env.push(json!({"name": name, "value": value}));
        }
        self
    }

    /// Without the annotations that let nginx answer 503 to a fast client.
    #[must_use]
    pub fn without_rate_limit(mut self) -> Self {
        for ingress in &mut self.ingresses {
            if let Some(annotations) = ingress["metadata"]["annotations"].as_object_mut() {
                annotations.retain(|key, _| !RATE_LIMIT.contains(&key.as_str()));
            }
        }
        self
    }

    /// With this many pods.
    #[must_use]
    pub fn with_replicas(mut self, replicas: u32) -> Self {
        self.deployment["spec"]["replicas"] = replicas.into();
        self
    }

    /// With a readiness probe, which the exercise lacks: without one a pod is ready before it listens, and on a busy
    /// machine nginx answers 502 for it for seconds. A busy machine does not make a pod unready again.
    #[must_use]
    pub fn with_readiness_probe(mut self) -> Self {
        self.container()["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
        self
    }

    fn container(&mut self) -> &mut Value {
        &mut self.deployment["spec"]["template"]["spec"]["containers"][0]
    }

    /// The Deployment's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.deployment["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// How many pods it has.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.deployment["spec"]["replicas"].as_u64().unwrap_or(1) as usize
    }

    /// Version 3 with these variables in its environment, on top of version 1's, as `spec.canary`.
    #[must_use]
    pub fn version_three(&self, env: &[(&str, &str)]) -> Value {
        let container = &self.deployment["spec"]["template"]["spec"]["containers"][0]["name"];
        let env: Vec<_> = env
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        json!({"image": image("v3"), "template": {"spec": {"containers": [{"name": container, "env": env}]}}})
    }

    /// A release of version 3, whose image works as it is, under the Deployment's name. `spec` tells the rest, such as
    /// the steps, and may replace what is said here.
    #[must_use]
    pub fn release_of_v3(&self, spec: Value) -> Value {
        let mut whole = json!({"target": {"deployment": self.name()}, "canary": {"image": image("v3")}});
        if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        let mut release = exercise::release(whole);
        release["metadata"]["name"] = self.name().into();
        release
    }

    /// Names of its pods that stay.
    pub fn pods(&self, namespace: &Namespace) -> Result<BTreeSet<String>> {
        let labels: &Map<String, Value> = self.deployment["spec"]["selector"]["matchLabels"]
            .as_object()
            .context("the Deployment has no selector")?;
        let terms: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        let list = namespace.get(&["pods", "--selector", &terms.join(",")])?;
        let pods = list["items"].as_array().into_iter().flatten();
        let staying = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(staying
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Applies it, and waits until every pod of version 1 listens and one of them answers each request through nginx.
    pub fn deploy(&self, namespace: &Namespace) -> Result<()> {
        self.free_the_hosts(namespace)?;
        let mut objects = vec![self.deployment.clone(), self.service.clone()];
        objects.extend(self.ingresses.iter().cloned());
        namespace.apply(&objects)?;
        let deployment = format!("deployment/{}", self.name());
        output(&mut namespace.kubectl(&["rollout", "status", &deployment, "--timeout=90s"]))?;
        let pods = self.pods(namespace)?;
        ensure!(pods.len() == self.replicas(), "{deployment} has the pods {pods:?}");
        until("every pod of version 1 listens", Duration::from_secs(60), || {
            for pod in &pods {
                let log = namespace.ask(&["logs", pod, "--tail=-1"])?;
                if !log.contains(" listens on port ") {
                    return Ok(Err(format!("{pod} wrote only: {log}")));
                }
            }
            Ok(Ok(()))
        })?;
        self.answers_at
            .iter()
            .try_for_each(|request| answers(namespace, request, &pods))
    }

    /// Two Ingresses of one host and path would fight over it, so what an earlier run left is removed, and anyone
    /// else's is an error.
    fn free_the_hosts(&self, namespace: &Namespace) -> Result<()> {
        let list: Value =
            serde_json::from_str(
                &namespace
                    .cluster()
                    .ask(&["get", "ingresses", "--all-namespaces", "-o=json"])?,
            )?;
        let ours: BTreeSet<_> = self.ingresses.iter().flat_map(hosts).collect();
        for ingress in list["items"].as_array().into_iter().flatten() {
            let other = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
            let same_host = hosts(ingress).find(|host| ours.contains(host));
            if let Some(host) = same_host
                && other != namespace.name()
                && !namespace.remove_if_ours(other)?
            {
                bail!("the host {host} is in use by an Ingress of the namespace {other}: delete that first");
            }
        }
        Ok(())
    }
}

/// Waits until one of these pods answers.
fn answers(namespace: &Namespace, request: &Request, pods: &BTreeSet<String>) -> Result<()> {
    let url = request.url(namespace.cluster());
    until(
        &format!("version 1 answers at {request}"),
        Duration::from_secs(60),
        || {
            let args = ["--silent", "--show-error", "--include", "--max-time", "5", &url];
            let mut curl = namespace.cluster().beside("curl", &args);
            for line in request.header_lines() {
                curl.args(["--header", &line]);
            }
            let ended = attempt(&mut curl, "")?;
            let pod = ended.stdout.lines().find_map(|line| line.strip_prefix("X-Pod: "));
            let ours = pod.is_some_and(|pod| pods.contains(pod.trim()));
            Ok(if ours && ended.stdout.contains(" 200 OK") {
                Ok(())
            } else {
                Err(format!("{}{}", ended.stdout, ended.stderr))
            })
        },
    )
}

/// The hosts of an Ingress.
fn hosts(ingress: &Value) -> impl Iterator<Item = &str> {
    let rules = ingress["spec"]["rules"].as_array();
    rules.into_iter().flatten().filter_map(|rule| rule["host"].as_str())
}

/// An Ingress of class `nginx` with these rules.
#[must_use]
pub fn ingress(name: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "annotations": {}},
        "spec": {"ingressClassName": "nginx", "rules": rules},
    })
}

/// A rule of an Ingress.
#[must_use]
pub fn rule(host: &str, paths: Value) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

/// A path of a rule, with everything below it, that leads to port 80 of a Service.
#[must_use]
pub fn path(path: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 80}}});
    json!({"path": path, "pathType": "Prefix", "backend": backend})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exercise::HOST;

    #[test]
    fn the_rate_limit_goes_and_the_rest_stays() {
        let exercise = App::of_the_exercise(HOST)
            .unwrap()
            .without_rate_limit()
            .with_replicas(2);
        let annotations = &exercise.ingresses[0]["metadata"]["annotations"];
        assert_eq!((annotations.as_object().unwrap().len(), exercise.replicas()), (3, 2));
    }

    #[test]
    fn a_release_names_the_app_and_takes_what_it_is_told() {
        let app = App::new("message", "message.test").with_env("ON_TERM", "exit");
        assert_eq!(
            app.deployment["spec"]["template"]["spec"]["containers"][0]["env"][1]["name"],
            "ON_TERM"
        );
        let release = app.release_of_v3(json!({"steps": [{"weight": 30, "hold": "1m"}], "canary": {"template": {}}}));
        assert_eq!(release["metadata"]["name"], "message");
        let expected = json!({"target": {"deployment": "message"}, "canary": {"template": {}}, "steps": [{"weight": 30, "hold": "1m"}]});
        assert_eq!(release["spec"], expected);
    }

    #[test]
    fn the_hosts_of_an_ingress_are_found() {
        let ingress = ingress(
            "a",
            json!([rule("a.test", json!([])), {"http": {}}, {"host": "b.test"}]),
        );
        assert_eq!(hosts(&ingress).collect::<Vec<_>>(), ["a.test", "b.test"]);
    }
}
