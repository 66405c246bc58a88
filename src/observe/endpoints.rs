//! Ready endpoints of a Service.

use crate::cluster::{CallError, bounded};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::collections::{BTreeMap, BTreeSet};

/// Label by which an EndpointSlice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Asks the API server for the ready endpoints of these Services.
///
/// # Errors
/// What the API server says.
pub async fn ask_ready(
    client: &Client,
    namespace: &str,
    services: &[String],
) -> Result<BTreeMap<String, usize>, CallError> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let of_these = format!("{SERVICE_NAME} in ({})", services.join(","));
    let slices = bounded(api.list(&ListParams::default().labels(&of_these))).await?;
    let mut found = ready(&slices.items);
    for service in services {
        found.entry(service.clone()).or_default();
    }
    Ok(found)
}

/// Number of ready endpoints by Service. A pod with several addresses (dual-stack) counts once.
#[must_use]
pub fn ready<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> BTreeMap<String, usize> {
    let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for slice in slices {
        let Some(service) = slice.labels().get(SERVICE_NAME) else {
            continue;
        };
        let known = pods.entry(service.clone()).or_default();
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            let pod = endpoint.target_ref.as_ref().and_then(|r| r.name.clone());
            if let Some(id) = pod.or_else(|| endpoint.addresses.first().cloned())
                && ready
                && !terminating
            {
                known.insert(id);
            }
        }
    }
    pods.into_iter().map(|(service, pods)| (service, pods.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_ready_endpoints_that_stay_count_and_each_pod_once() {
        let slice = |name: &str, endpoints: serde_json::Value| -> EndpointSlice {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "endpoints": endpoints})).unwrap()
        };
        let slices = [
            slice(
                "a",
                json!([
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"name": "web-1"}},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "targetRef": {"name": "web-2"}},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "terminating": true}, "targetRef": {"name": "web-3"}},
                ]),
            ),
            slice(
                "b",
                json!([{"addresses": ["fd00::1"], "conditions": {"ready": true}, "targetRef": {"name": "web-1"}}]),
            ),
        ];
        assert_eq!(ready(&slices), BTreeMap::from([("web".to_owned(), 1)]));
    }
}
