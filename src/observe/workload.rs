//! A Deployment as the decisions need it; the pod template stays JSON, so that fields newer than this build survive.

use crate::api::ANNOTATION_STABLE_TEMPLATE;
use k8s_openapi::{api::apps::v1::DeploymentStatus, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{ResourceExt, api::DynamicObject};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A Deployment as last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Being deleted.
    pub deleting: bool,
    /// `spec.replicas`, 1 where unset.
    pub replicas: i32,
    /// `spec.selector`.
    pub selector: LabelSelector,
    /// `spec.template`, untouched.
    pub template: Value,
    /// A pod template kept in an annotation; see [`ANNOTATION_STABLE_TEMPLATE`].
    pub kept_template: Option<Value>,
    /// `spec.strategy.type`, `RollingUpdate` where unset.
    pub strategy: String,
    /// `spec.paused`.
    pub paused: bool,
    /// `status`.
    pub status: DeploymentStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    spec: Spec,
    #[serde(default)]
    status: DeploymentStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    replicas: Option<i32>,
    #[serde(default)]
    selector: LabelSelector,
    #[serde(default)]
    template: Value,
    #[serde(default)]
    strategy: Option<Strategy>,
    #[serde(default)]
    paused: bool,
}

#[derive(Deserialize)]
struct Strategy {
    #[serde(rename = "type")]
    type_: Option<String>,
}

impl Workload {
    /// Reads a Deployment as the API server sent it.
    ///
    /// # Errors
    /// Where a field that decisions rest on has another shape than Kubernetes gives it.
    pub fn read(object: &DynamicObject) -> Result<Self, serde_json::Error> {
        let data = Data::deserialize(&object.data)?;
        Ok(Self {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            version: object.resource_version().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            replicas: data.spec.replicas.unwrap_or(1),
            selector: data.spec.selector,
            template: data.spec.template,
            kept_template: object
                .annotations()
                .get(ANNOTATION_STABLE_TEMPLATE)
                .and_then(|text| serde_json::from_str(text).ok()),
            strategy: data
                .spec
                .strategy
                .and_then(|s| s.type_)
                .unwrap_or_else(|| "RollingUpdate".to_owned()),
            paused: data.spec.paused,
            status: data.status,
        })
    }

    /// Labels of the pods that the template makes.
    #[must_use]
    pub fn pod_labels(&self) -> BTreeMap<String, String> {
        pod_labels(&self.template)
    }

    /// Names of the containers in the template.
    #[must_use]
    pub fn container_names(&self) -> Vec<String> {
        containers(&self.template)
            .filter_map(|c| Some(c.get("name")?.as_str()?.to_owned()))
            .collect()
    }

    /// Image of the named container, or of the first.
    #[must_use]
    pub fn image(&self, container: Option<&str>) -> Option<String> {
        image(&self.template, container)
    }

    /// Hash of the pod template.
    #[must_use]
    pub fn revision(&self) -> String {
        revision(&self.template)
    }

    /// Whether every pod is of the newest template and available, and no older one is left.
    #[must_use]
    pub fn rolled_out(&self) -> bool {
        let count = |n: Option<i32>| n.unwrap_or(0);
        let status = &self.status;
        count(status.updated_replicas) == self.replicas
            && count(status.replicas) == self.replicas
            && count(status.available_replicas) == self.replicas
            && status.observed_generation.unwrap_or(0) >= self.generation
    }

    /// Why the Deployment cannot make its pods, such as an exceeded quota.
    #[must_use]
    pub fn replica_failure(&self) -> Option<String> {
        let conditions = self.status.conditions.as_deref().unwrap_or_default();
        let failure = conditions
            .iter()
            .find(|c| c.type_.as_deref() == Some("ReplicaFailure") && c.status.as_deref() == Some("True"))?;
        Some(failure.message.clone().unwrap_or_default())
    }
}

/// Labels in a pod template.
#[must_use]
pub fn pod_labels(template: &Value) -> BTreeMap<String, String> {
    let labels = template.pointer("/metadata/labels").and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}

fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    template
        .pointer("/spec/containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Image of the named container in a pod template, or of the first.
#[must_use]
pub fn image(template: &Value, container: Option<&str>) -> Option<String> {
    let named = |c: &&Value| container.is_none_or(|name| c.get("name").and_then(Value::as_str) == Some(name));
    Some(containers(template).find(named)?.get("image")?.as_str()?.to_owned())
}

/// Ten hexadecimal digits that stand for a JSON value whatever the order of its keys.
#[must_use]
pub fn revision(value: &Value) -> String {
    let mut hash = Sha256::new();
    feed(value, &mut hash);
    hash.finalize()
        .iter()
        .take(5)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn feed(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().filter(|(_, v)| !v.is_null()).collect();
            hash.update([b'{']);
            for (key, value) in sorted {
                hash.update(Value::from(key.as_str()).to_string());
                feed(value, hash);
            }
            hash.update([b'}']);
        }
        Value::Array(items) => {
            hash.update([b'[']);
            items.iter().for_each(|item| feed(item, hash));
            hash.update([b']']);
        }
        scalar => {
            hash.update(scalar.to_string());
            hash.update([b',']);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_revision_ignores_order_and_nulls_and_nothing_else() {
        let one = json!({"a": 1, "b": {"c": [1, 2], "d": null}});
        let same: Value = serde_json::from_str(r#"{"b": {"c": [1, 2]}, "a": 1}"#).unwrap();
        assert_eq!(revision(&one), revision(&same));
        for other in [
            json!({"a": 1, "b": {"c": [2, 1]}}),
            json!({"a": "1", "b": {"c": [1, 2]}}),
            json!({"a": 1, "b": {"c": [12]}}),
        ] {
            assert_ne!(revision(&one), revision(&other), "{other}");
        }
    }

    fn deployment(spec: Value, status: Value) -> Workload {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "generation": 3}, "spec": spec, "status": status});
        Workload::read(&serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_rollout_is_over_when_only_new_available_pods_are_left_and_the_status_is_of_this_generation() {
        let spec = json!({"replicas": 2, "selector": {}, "template": {}});
        let status = |seen, replicas, updated, available| json!({"observedGeneration": seen, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": available});
        assert!(deployment(spec.clone(), status(3, 2, 2, 2)).rolled_out());
        for unfinished in [
            status(2, 2, 2, 2),
            status(3, 3, 2, 2),
            status(3, 2, 1, 2),
            status(3, 2, 2, 1),
            json!({}),
        ] {
            assert!(
                !deployment(spec.clone(), unfinished.clone()).rolled_out(),
                "{unfinished}"
            );
        }
    }
}
