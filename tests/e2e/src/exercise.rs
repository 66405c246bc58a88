//! The objects of the first exercise: version 1 of the application, and the releases of its version 2.
//!
//! They are the YAML files of `manifests/`, which are good for `kubectl apply` as they are; here they get a host and
//! an image of the caller's, and the few variations that the scenarios differ in.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{app::App, cluster::setting, load::Request};

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
impl App {
    /// The exercise to the letter, under the host name `host`.
    pub fn of_the_exercise(host: &str) -> Result<Self> {
        let mut ingress = manifest(INGRESS)?;
        ingress["spec"]["rules"][0]["host"] = host.into();
        Ok(Self {
            deployment: manifest(DEPLOYMENT)?,
            service: manifest(SERVICE)?,
            ingresses: vec![ingress],
            answers_at: vec![Request::to(host)],
        })
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
        let exercise = App::of_the_exercise(HOST).unwrap();
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
        assert_eq!(exercise.ingresses[0]["spec"]["rules"][0]["host"], "edu.challenger-03");
        let annotations = exercise.ingresses[0]["metadata"]["annotations"].as_object().unwrap();
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
