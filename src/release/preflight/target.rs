//! The Deployment, its Service and its Ingresses: that they are there, one of each meant, and in a state to be released.

use super::Finding;
use crate::{
    observe::{Observed, Workload},
    render::matches,
    routing::{Routing, backends, leads_to, ports},
};
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::ResourceExt;
use std::{collections::BTreeMap, sync::Arc};

/// What of the Deployment itself keeps it from being released, or from being promoted later.
pub(super) fn condition(stable: &Workload) -> Vec<Finding> {
    let mut findings = Vec::new();
    if stable.replicas == 0 {
        let message = format!(
            "Deployment {} has 0 replicas, so version 1 serves nothing to compare with: scale it up",
            stable.name
        );
        findings.push(Finding::new("TargetScaledToZero", message));
    }
    if stable.paused {
        findings.push(Finding::new("TargetPaused", format!("Deployment {0} is paused, so version 2 could not be promoted: run kubectl rollout resume deployment/{0}", stable.name)));
    }
    if stable.strategy == "Recreate" {
        let message = format!(
            "Deployment {} has strategy Recreate: at promotion it would have no ready pod for a while and nginx would answer 503; use RollingUpdate",
            stable.name
        );
        findings.push(Finding::new("TargetRecreates", message));
    }
    findings
}

/// The container that gets the image: the named one, or the only one.
pub(super) fn container(spec: &crate::api::CanaryReleaseSpec, stable: &Workload) -> Result<String, Finding> {
    let names = stable.container_names();
    match (&spec.canary.container, names.as_slice()) {
        (Some(wanted), names) if names.contains(wanted) => Ok(wanted.clone()),
        (Some(wanted), names) => Err(Finding::new(
            "ContainerNotFound",
            format!(
                "Deployment {} has no container {wanted}, only {}: correct spec.canary.container",
                stable.name,
                names.join(", ")
            ),
        )),
        (None, [first, others @ ..]) if others.is_empty() || spec.canary.image.is_none() => Ok(first.clone()),
        (None, names) => Err(Finding::new(
            "ContainerAmbiguous",
            format!(
                "Deployment {} has several containers ({}): say in spec.canary.container which one gets spec.canary.image",
                stable.name,
                names.join(", ")
            ),
        )),
    }
}

fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// The named Service, or the only one that selects the pods and that an Ingress leads to.
pub(super) fn service(
    seen: &Observed,
    routing: &dyn Routing,
    pods: &BTreeMap<String, String>,
) -> Result<Arc<Service>, Finding> {
    let target = &seen.release.spec.target;
    let deployment = &target.deployment;
    if let Some(name) = &target.service {
        let Some(service) = seen.services.iter().find(|s| s.name_any() == *name) else {
            return Err(Finding::new(
                "ServiceNotFound",
                format!("Service {name} does not exist: create it, or correct spec.target.service"),
            ));
        };
        if !selects(service, pods) {
            let message = format!(
                "Service {name} does not select the pods of Deployment {deployment}: correct its selector, or spec.target.service"
            );
            return Err(Finding::new("ServiceMismatch", message));
        }
        return Ok(service.clone());
    }
    let routed = |name: &str| {
        seen.ingresses
            .iter()
            .any(|i| !routing.is_canary(i) && backends(i).any(|b| leads_to(b, name)))
    };
    let selecting: Vec<_> = seen.services.iter().filter(|s| selects(s, pods)).collect();
    let found: Vec<_> = selecting.iter().filter(|s| routed(&s.name_any())).collect();
    let list = |services: &[&Arc<Service>]| services.iter().map(|s| s.name_any()).collect::<Vec<_>>().join(", ");
    match found.as_slice() {
        [service] => Ok(Arc::clone(service)),
        [] if selecting.is_empty() => Err(Finding::new(
            "ServiceNotFound",
            format!(
                "no Service selects the pods of Deployment {deployment}: create one, or name it in spec.target.service"
            ),
        )),
        [] => Err(Finding::new(
            "IngressNotFound",
            format!(
                "no Ingress leads to Service {}: create one, so that there is traffic to split",
                list(&selecting)
            ),
        )),
        several => Err(Finding::new(
            "ServiceAmbiguous",
            format!(
                "Ingresses lead to several Services of Deployment {deployment} ({}): name one in spec.target.service",
                several.iter().map(|s| s.name_any()).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
}

/// Version 1's Ingresses.
pub(super) struct Routes {
    /// Those that the release splits.
    pub released: Vec<Arc<Ingress>>,
    /// Others that lead to the same port of the Service.
    pub shared: Vec<Arc<Ingress>>,
}

/// The named Ingresses, or all that lead to the Service. Naming only some of them is refused unless it is meant: the
/// controller canaries the Service's port, so the others are canaried unasked.
pub(super) fn ingresses(seen: &Observed, routing: &dyn Routing, service: &str) -> Result<Routes, Finding> {
    let leading: Vec<_> = seen
        .ingresses
        .iter()
        .filter(|i| !routing.is_canary(i) && backends(i).any(|b| leads_to(b, service)))
        .cloned()
        .collect();
    let Some(named) = &seen.release.spec.target.ingresses else {
        return match leading.as_slice() {
            [] => Err(Finding::new(
                "IngressNotFound",
                format!("no Ingress leads to Service {service}: create one, so that there is traffic to split"),
            )),
            _ => Ok(Routes {
                released: leading,
                shared: Vec::new(),
            }),
        };
    };
    for name in named {
        if !seen.ingresses.iter().any(|i| i.name_any() == *name) {
            return Err(Finding::new(
                "IngressNotFound",
                format!("Ingress {name} does not exist: create it, or correct spec.target.ingresses"),
            ));
        }
        if !leading.iter().any(|i| i.name_any() == *name) {
            let message = format!(
                "Ingress {name} has no rule that leads to Service {service}: correct its backend, or spec.target.ingresses"
            );
            return Err(Finding::new("IngressMismatch", message));
        }
    }
    let (released, others): (Vec<_>, Vec<_>) = leading.into_iter().partition(|i| named.contains(&i.name_any()));
    // A port by name and the same port by number are two upstreams to the controller: only the same one is canaried.
    let canaried: Vec<_> = released.iter().flat_map(|i| ports(i, service)).collect();
    let shared: Vec<_> = others
        .into_iter()
        .filter(|i| ports(i, service).any(|port| canaried.contains(&port)))
        .collect();
    let traffic = seen.release.spec.traffic.as_ref();
    match shared.first() {
        Some(other) if !traffic.is_some_and(|traffic| traffic.allow_shared_service) => Err(Finding::new(
            "ServiceShared",
            format!(
                "Ingress {} leads to Service {service} too and ingress-nginx would send its requests to version 2 as well: add it to spec.target.ingresses, give it a Service of its own, or set spec.traffic.allowSharedService",
                other.name_any()
            ),
        )),
        _ => Ok(Routes { released, shared }),
    }
}

/// Whatever selects version 1's pods would select version 2's, were their labels the same: the Deployment, and every
/// Service, for a Service that is not routed by an Ingress would send version 2 requests that no weight governs.
pub(super) fn selectors(seen: &Observed, stable: &Workload) -> Vec<(String, LabelSelector)> {
    let pods = stable.pod_labels();
    let deployment = (format!("Deployment {}", stable.name), stable.selector.clone());
    let services = seen.services.iter().filter(|s| selects(s, &pods)).map(|service| {
        let wanted = service.spec.as_ref().and_then(|spec| spec.selector.clone());
        (
            format!("Service {}", service.name_any()),
            LabelSelector {
                match_labels: wanted,
                ..Default::default()
            },
        )
    });
    std::iter::once(deployment)
        .chain(services)
        .filter(|(_, selector)| matches(selector, &pods))
        .collect()
}
