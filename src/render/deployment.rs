use super::Owner;
use crate::api::{ANNOTATION_STABLE_TEMPLATE, Canary, LABEL_RELEASE, LABEL_REVISION};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The strategic-merge patch that makes version 1's Deployment run version 2: the overlay, and the image of its container.
/// Sent with `dryRun` when a release starts and for good at promotion, so that what was tested is what is promoted.
#[must_use]
pub fn promotion_patch(canary: &Canary, container: &str) -> Value {
    let mut template = canary.template.clone().unwrap_or_else(|| json!({}));
    if let Some(image) = &canary.image {
        let containers = template
            .as_object_mut()
            .and_then(|t| t.entry("spec").or_insert_with(|| json!({})).as_object_mut())
            .map(|spec| spec.entry("containers").or_insert_with(|| json!([])));
        if let Some(Value::Array(containers)) = containers {
            match containers
                .iter_mut()
                .find(|c| c.get("name").and_then(Value::as_str) == Some(container))
            {
                Some(Value::Object(overlaid)) => drop(overlaid.insert("image".to_owned(), json!(image))),
                _ => containers.push(json!({"name": container, "image": image})),
            }
        }
    }
    json!({"spec": {"template": template}})
}

/// The API server takes annotations of 256 KiB altogether; a template beyond this is not kept.
const LARGEST_TEMPLATE: usize = 200 * 1024;

/// Keeps version 1's template on version 2's Deployment, for as long as the stable one may fail to roll out version 2.
pub fn keep_template(deployment: &mut Value, template: Option<&Value>) {
    let Some(text) = template
        .map(Value::to_string)
        .filter(|text| text.len() <= LARGEST_TEMPLATE)
    else {
        return;
    };
    let metadata = deployment.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        metadata.insert("annotations".to_owned(), json!({ANNOTATION_STABLE_TEMPLATE: text}));
    }
}

/// Version 2's Deployment: `merged` is what version 1's would become, as the API server answered.
/// Strategy, deadlines and everything else that is not named here stay as version 1 has them.
#[must_use]
pub fn deployment(
    merged: &Value,
    name: &str,
    owner: &Owner,
    revision: &str,
    labels: &BTreeMap<String, String>,
    replicas: i32,
) -> Value {
    let mut spec = merged
        .get("spec")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let mut pod_labels = labels.clone();
    pod_labels.insert(LABEL_RELEASE.to_owned(), owner.name.clone());
    pod_labels.insert(LABEL_REVISION.to_owned(), revision.to_owned());
    let selector = pod_selector(&spec, &pod_labels);
    if let Some(metadata) = spec
        .get_mut("template")
        .and_then(|t| t.get_mut("metadata"))
        .and_then(Value::as_object_mut)
    {
        metadata.insert("labels".to_owned(), json!(pod_labels));
    }
    spec.insert("selector".to_owned(), json!({"matchLabels": selector}));
    spec.insert("replicas".to_owned(), json!(replicas));
    spec.remove("paused");
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": owner.metadata(name), "spec": spec})
}

/// The keys that version 1's Deployment selects by, with version 2's values, and the release with its revision: the pods of
/// a release that was superseded outlive its Deployment, and are not version 3's.
fn pod_selector(spec: &Map<String, Value>, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let stable = spec
        .get("selector")
        .and_then(|s| s.get("matchLabels"))
        .and_then(Value::as_object);
    let keys = stable
        .into_iter()
        .flat_map(Map::keys)
        .map(String::as_str)
        .chain([LABEL_RELEASE, LABEL_REVISION]);
    keys.filter_map(|key| Some((key.to_owned(), labels.get(key)?.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(value: Value) -> Canary {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_image_joins_the_overlay_of_its_container() {
        let canary = canary(
            json!({"image": "app:v2", "template": {"spec": {"containers": [{"name": "frontend", "command": ["python"]}]}}}),
        );
        let expected = json!({"spec": {"template": {"spec": {"containers": [{"name": "frontend", "command": ["python"], "image": "app:v2"}]}}}});
        assert_eq!(promotion_patch(&canary, "frontend"), expected);
    }

    #[test]
    fn an_image_alone_is_an_overlay_of_one_container() {
        let expected = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "app:v2"}]}}}});
        assert_eq!(promotion_patch(&canary(json!({"image": "app:v2"})), "web"), expected);
    }

    #[test]
    fn the_canary_is_version_1_but_for_names_labels_and_count() {
        let merged = json!({"metadata": {"name": "web", "labels": {"argocd": "tracks-this"}}, "spec": {
            "replicas": 3, "paused": true, "minReadySeconds": 5, "futureField": {"kept": true},
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "tier": "front"}, "annotations": {"a": "b"}}, "spec": {"containers": [{"name": "web", "image": "app:v2"}]}}}});
        let labels = BTreeMap::from([
            ("app".to_owned(), "web-v2".to_owned()),
            ("tier".to_owned(), "front".to_owned()),
        ]);
        let owner = Owner {
            name: "web".to_owned(),
            uid: "u1".to_owned(),
        };
        insta::assert_yaml_snapshot!(deployment(&merged, "web-v2", &owner, "abc", &labels, 1));
    }
}
