//! The objects of the first exercise: version 1 of the application, and the releases of its version 2.
//!
//! They are the YAML files of `manifests/`, which are good for `kubectl apply` as they are; here they get a host and
//! an image of the caller's, and the few variations that the scenarios differ in.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    cluster::setting,
    namespace::Namespace,
    process::{attempt, output, until},
};

/// The exercise's own host name.
pub const HOST: &str = "edu.challenger-03";

/// `manifests/exercise-1/release.yaml`: version 2 as it comes, which crashes.
pub const RELEASE: &str = include_str!("../manifests/exercise-1/release.yaml");
/// `manifests/exercise-1/release-mended.yaml`: the same with a command that works.
pub const RELEASE_MENDED: &str = include_str!("../manifests/exercise-1/release-mended.yaml");

const DEPLOYMENT: &str = include_str!("../manifests/exercise-1/deployment.yaml");
const SERVICE: &str = include_str!("../manifests/exercise-1/service.yaml");
const INGRESS: &str = include_str!("../manifests/exercise-1/ingress.yaml");

/// The images in the manifests are tags of this.
const MANIFEST_REPOSITORY: &str = "localhost/challenge-app";
/// Annotations of the exercise's Ingress that throttle a client.
const RATE_LIMIT: [&str; 2] = [
    "nginx.ingress.kubernetes.io/limit-rpm",
    "nginx.ingress.kubernetes.io/limit-burst-multiplier",
];

/// Version 1 of the application, ready to be applied.
#[derive(Clone, Debug)]
pub struct Exercise {
    host: String,
    /// The Deployment.
    pub deployment: Value,
    /// The Service in front of it.
    pub service: Value,
    /// The Ingress that leads to the Service.
    pub ingress: Value,
}

impl Exercise {
    /// The exercise to the letter, under the host name `host`.
    pub fn new(host: &str) -> Result<Self> {
        let mut ingress = manifest(INGRESS)?;
        ingress["spec"]["rules"][0]["host"] = host.into();
        Ok(Self {
            host: host.to_owned(),
            deployment: manifest(DEPLOYMENT)?,
            service: manifest(SERVICE)?,
            ingress,
        })
    }

    /// Without the annotations that let nginx answer 503 to a fast client.
    pub fn without_rate_limit(mut self) -> Self {
        if let Some(annotations) = self.ingress["metadata"]["annotations"].as_object_mut() {
            annotations.retain(|key, _| !RATE_LIMIT.contains(&key.as_str()));
        }
        self
    }

    /// With this many pods.
    pub fn with_replicas(mut self, replicas: u32) -> Self {
        self.deployment["spec"]["replicas"] = replicas.into();
        self
    }

    /// With a readiness probe, which the exercise lacks: without one a pod is ready before it listens, and on a busy
    /// machine nginx answers 502 for it for seconds.
    pub fn with_readiness_probe(mut self) -> Self {
        self.deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
        self
    }

    /// The host name under which it answers.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Applies it, and waits until every pod of version 1 listens and version 1 answers through nginx.
    pub fn deploy(&self, namespace: &Namespace) -> Result<()> {
        self.free_the_host(namespace)?;
        namespace.apply(&[self.deployment.clone(), self.service.clone(), self.ingress.clone()])?;
        output(&mut namespace.kubectl(&["rollout", "status", "deployment/challenge-app", "--timeout=90s"]))?;
        let replicas = self.deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        until("every pod of version 1 listens", Duration::from_secs(60), || {
            let log = namespace.ask(&["logs", "--selector=app=challenge-app", "--tail=-1"])?;
            let listening = log.lines().filter(|line| line.contains(" listens on port ")).count() as u64;
            Ok(if listening >= replicas { Ok(()) } else { Err(log) })
        })?;
        let url = format!("http://{}/", namespace.cluster().ingress_address());
        let host = format!("Host: {}", self.host);
        until(
            &format!("version 1 answers for {}", self.host),
            Duration::from_secs(60),
            || {
                let args = [
                    "--silent",
                    "--show-error",
                    "--include",
                    "--max-time",
                    "5",
                    "--header",
                    &host,
                    &url,
                ];
                let ended = attempt(&mut namespace.cluster().beside("curl", &args), "")?;
                let answers = ended.stdout.contains(" 200 OK") && ended.stdout.contains("X-Version: v1");
                Ok(if answers {
                    Ok(())
                } else {
                    Err(format!("{}{}", ended.stdout, ended.stderr))
                })
            },
        )
    }

    /// Two Ingresses of one host and path would fight over it, so what an earlier run left is removed, and anyone
    /// else's is an error.
    fn free_the_host(&self, namespace: &Namespace) -> Result<()> {
        let list: Value =
            serde_json::from_str(
                &namespace
                    .cluster()
                    .ask(&["get", "ingresses", "--all-namespaces", "-o=json"])?,
            )?;
        for ingress in list["items"].as_array().into_iter().flatten() {
            let rules = ingress["spec"]["rules"].as_array();
            let other = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
            let same_host = rules
                .into_iter()
                .flatten()
                .any(|rule| rule["host"] == self.host.as_str());
            if same_host && other != namespace.name() && !namespace.remove_if_ours(other)? {
                bail!(
                    "the host {} is in use by an Ingress of the namespace {other}: delete that first",
                    self.host
                );
            }
        }
        Ok(())
    }
}

/// Reads a manifest, with images of `APP_IMAGE_REPOSITORY` in place of the test cluster's.
pub fn manifest(yaml: &str) -> Result<Value> {
    let mut object: Value = serde_saphyr::from_str(yaml).context("a manifest cannot be read")?;
    let repository = setting("APP_IMAGE_REPOSITORY", MANIFEST_REPOSITORY);
    for image in ["/spec/template/spec/containers/0/image", "/spec/canary/image"] {
        if let Some(Value::String(image)) = object.pointer_mut(image)
            && let Some(tag) = image.strip_prefix(&format!("{MANIFEST_REPOSITORY}:"))
        {
            *image = format!("{repository}:{tag}");
        }
    }
    Ok(object)
}

/// Reference of the application's image with this tag.
#[must_use]
pub fn image(tag: &str) -> String {
    format!("{}:{tag}", setting("APP_IMAGE_REPOSITORY", MANIFEST_REPOSITORY))
}

/// A release of version 3, whose image works as it is, with these steps, each a weight and a hold.
#[must_use]
pub fn release_of_v3(steps: &[(u32, &str)]) -> Value {
    let steps: Vec<_> = steps
        .iter()
        .map(|(weight, hold)| json!({"weight": weight, "hold": hold}))
        .collect();
    release(json!({
        "target": {"deployment": "challenge-app"},
        "canary": {"image": image("v3")},
        "steps": steps,
    }))
}

/// A release with this spec.
#[must_use]
pub fn release(spec: Value) -> Value {
    json!({
        "apiVersion": "canary-operator.dev/v1alpha1",
        "kind": "CanaryRelease",
        "metadata": {"name": "challenge-app"},
        "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exercise_is_to_the_letter() {
        let exercise = Exercise::new(HOST).unwrap();
        let container = &exercise.deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(exercise.deployment["spec"]["replicas"], 1);
        assert_eq!(
            exercise.deployment["spec"]["selector"]["matchLabels"],
            json!({"app": "challenge-app"})
        );
        assert_eq!(
            (&container["name"], &container["ports"][0]["containerPort"]),
            (&json!("frontend"), &json!(8080))
        );
        assert_eq!(
            container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"],
            "spec.nodeName"
        );
        assert_eq!(exercise.service["spec"]["selector"], json!({"app": "challenge-app"}));
        assert_eq!(exercise.ingress["spec"]["rules"][0]["host"], "edu.challenger-03");
        let annotations = exercise.ingress["metadata"]["annotations"].as_object().unwrap();
        let annotation = |name: &str| {
            annotations[&format!("nginx.ingress.kubernetes.io/{name}")]
                .as_str()
                .unwrap()
        };
        let names = [
            "proxy-body-size",
            "proxy-buffer-size",
            "limit-rpm",
            "limit-burst-multiplier",
            "rewrite-target",
        ];
        assert_eq!(names.map(annotation), ["3m", "5k", "175", "1", "/"]);
    }

    #[test]
    fn the_rate_limit_goes_and_the_rest_stays() {
        let exercise = Exercise::new("a.test").unwrap().without_rate_limit().with_replicas(2);
        assert_eq!(
            exercise.ingress["metadata"]["annotations"].as_object().unwrap().len(),
            3
        );
        assert_eq!(
            (exercise.host(), &exercise.deployment["spec"]["replicas"]),
            ("a.test", &json!(2))
        );
    }

    #[test]
    fn the_mended_release_differs_in_the_command_alone() {
        let mut mended = manifest(RELEASE_MENDED).unwrap();
        let template = mended["spec"]["canary"]
            .as_object_mut()
            .unwrap()
            .remove("template")
            .unwrap();
        assert_eq!(mended, manifest(RELEASE).unwrap());
        let container = json!({"name": "frontend", "command": ["python"], "args": ["app.py"]});
        assert_eq!(template, json!({"spec": {"containers": [container]}}));
    }
}
