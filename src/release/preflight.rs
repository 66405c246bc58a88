//! Whether a release can start: everything that must be there, and nothing that would be hurt.

use crate::{
    observe::Observed,
    render::{matches, owned_by},
    routing::{Routing, backends, leads_to},
};
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Resource, ResourceExt};
use std::{collections::BTreeMap, sync::Arc};

/// Something that keeps a release from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// CamelCase word for condition and event.
    pub reason: &'static str,
    /// Names the objects, what is wrong and the remedy.
    pub message: String,
}

impl Finding {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What a release stands on, found and fitting.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Version 1's Service.
    pub service: Arc<Service>,
    /// Version 1's Ingresses that lead to it.
    pub ingresses: Vec<Arc<Ingress>>,
    /// The container that gets version 2's image.
    pub container: String,
    /// Every selector that must not match version 2's pods, with the name of its object.
    pub selectors: Vec<(String, LabelSelector)>,
}

/// Finds what the release stands on, or everything that is wrong at once.
///
/// # Errors
/// Findings, each with the remedy.
pub fn preflight(seen: &Observed, routing: &dyn Routing) -> Result<Ground, Vec<Finding>> {
    let spec = &seen.release.spec;
    let Some(stable) = &seen.stable else {
        let message = format!(
            "Deployment {} does not exist: create it, or correct spec.target.deployment",
            spec.target.deployment
        );
        return Err(vec![Finding::new("TargetNotFound", message)]);
    };
    let mut findings = Vec::new();
    if let Some(rival) = seen.rivals.first() {
        let message = format!(
            "CanaryRelease {rival} already releases Deployment {}: delete one of the two",
            stable.name
        );
        findings.push(Finding::new("TargetTaken", message));
    }
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
    let container = container(spec, stable).map_err(|finding| findings.push(finding)).ok();
    let service = service(seen, routing, &stable.pod_labels())
        .map_err(|finding| findings.push(finding))
        .ok();
    let ingresses = service
        .as_ref()
        .map(|service| ingresses(seen, routing, &service.name_any()));
    let ingresses = ingresses.and_then(|found| found.map_err(|finding| findings.push(finding)).ok());
    if let (Some(service), Some(ingresses)) = (&service, &ingresses) {
        findings.extend(taken_names(seen, &service.name_any(), ingresses));
    }
    match (container, service, ingresses) {
        (Some(container), Some(service), Some(ingresses)) if findings.is_empty() => {
            let selectors = selectors(seen, stable);
            Ok(Ground {
                service,
                ingresses,
                container,
                selectors,
            })
        }
        _ => Err(findings),
    }
}

/// The container that gets the image: the named one, or the only one.
fn container(spec: &crate::api::CanaryReleaseSpec, stable: &crate::observe::Workload) -> Result<String, Finding> {
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
fn service(seen: &Observed, routing: &dyn Routing, pods: &BTreeMap<String, String>) -> Result<Arc<Service>, Finding> {
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

/// The named Ingresses, or all that lead to the Service. Naming only some of them is refused: the controller
/// canaries the Service, so the others would be canaried unasked.
fn ingresses(seen: &Observed, routing: &dyn Routing, service: &str) -> Result<Vec<Arc<Ingress>>, Finding> {
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
            _ => Ok(leading),
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
    match leading.iter().find(|i| !named.contains(&i.name_any())) {
        Some(other) => Err(Finding::new(
            "ServiceShared",
            format!(
                "Ingress {} leads to Service {service} too and ingress-nginx would send its requests to version 2 as well: add it to spec.target.ingresses, or give it a Service of its own",
                other.name_any()
            ),
        )),
        None => Ok(leading),
    }
}

/// Objects that have a name which the canary needs, and belong to somebody else.
fn taken_names(seen: &Observed, service: &str, ingresses: &[Arc<Ingress>]) -> Vec<Finding> {
    let spec = &seen.release.spec;
    let uid = seen.release.uid().unwrap_or_default();
    let suffix = &spec.canary.suffix;
    let mut taken = Vec::new();
    let name = format!("{}{suffix}", spec.target.deployment);
    if seen.deployment_names.contains(&name) && !seen.own_deployments.iter().any(|own| own.name == name) {
        taken.push(format!("Deployment {name}"));
    }
    let name = format!("{service}{suffix}");
    if seen
        .services
        .iter()
        .any(|s| s.name_any() == name && !owned_by(s.meta(), &uid))
    {
        taken.push(format!("Service {name}"));
    }
    for stable in ingresses {
        let name = format!("{}{suffix}", stable.name_any());
        if seen
            .ingresses
            .iter()
            .any(|i| i.name_any() == name && !owned_by(i.meta(), &uid))
        {
            taken.push(format!("Ingress {name}"));
        }
    }
    let mut findings: Vec<_> = taken
        .into_iter()
        .map(|object| {
            Finding::new(
                "NameTaken",
                format!("{object} exists and is not this release's: delete it, or choose another spec.canary.suffix"),
            )
        })
        .collect();
    let service = format!("{service}{suffix}");
    if service.len() > 63 {
        let message = format!(
            "the canary's Service would be named {service}, longer than the 63 characters that a Service may have: choose a shorter spec.canary.suffix"
        );
        findings.push(Finding::new("NameTooLong", message));
    }
    findings
}

/// Whatever selects version 1's pods would select version 2's, were their labels the same: the Deployment, and every
/// Service, for a Service that is not routed by an Ingress would send version 2 requests that no weight governs.
fn selectors(seen: &Observed, stable: &crate::observe::Workload) -> Vec<(String, LabelSelector)> {
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
