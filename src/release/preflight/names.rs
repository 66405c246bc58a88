//! Names that the canary's objects need.

use super::Finding;
use crate::{observe::Observed, render::owned_by};
use k8s_openapi::api::networking::v1::Ingress;
use kube::{Resource, ResourceExt};
use std::sync::Arc;

/// Objects that have a name which the canary needs, and belong to somebody else.
pub(super) fn taken(seen: &Observed, service: &str, ingresses: &[Arc<Ingress>]) -> Vec<Finding> {
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
