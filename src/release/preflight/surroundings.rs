//! What the API server was asked for this start: IngressClasses, autoscalers, disruption budgets, and canary Ingresses
//! tried without being stored.

use super::{Finding, Ground, class};
use crate::{
    api::{LABEL_RELEASE, LABEL_REVISION},
    observe::{Class, Observed, Survey, pod_labels, revision},
    render::{escape, matches},
    routing::{Routing, claimed_hosts},
};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Nobody reads more, and the status has room for one besides: what the plan can find.
const MOST_WARNINGS: usize = 9;
/// The schema's bound on one.
const LONGEST_WARNING: usize = 500;

/// What keeps the release from starting.
pub(super) fn findings(seen: &Observed, routing: &dyn Routing, ground: &Ground, survey: &Survey) -> Vec<Finding> {
    let mut findings = unserved(routing, ground, survey);
    findings.extend(autoscaled(seen, survey));
    for (name, why) in &survey.refused {
        let message = format!(
            "the API server refuses the canary Ingress {name}: {why}; correct the Ingress that it is a copy of, or what refuses it"
        );
        findings.push(Finding::new("IngressRefused", message));
    }
    findings.into_iter().map(Finding::unwatched).collect()
}

/// Ingresses that no controller serves: the canary's have the same class, and would be ignored in silence.
fn unserved(routing: &dyn Routing, ground: &Ground, survey: &Survey) -> Vec<Finding> {
    let why = |ingress| match class(ingress) {
        None => routing.unserved(ingress, None),
        Some(name) => match survey.classes.get(name) {
            Some(Class::Of(controller)) => routing.unserved(ingress, Some(controller)),
            Some(Class::Missing) => Some(format!(
                "IngressClass {name} of Ingress {} does not exist, so that no controller serves it: create the class, or correct spec.ingressClassName",
                ingress.name_any()
            )),
            Some(Class::Unreadable) | None => None,
        },
    };
    let found = ground.ingresses.iter().filter_map(|ingress| why(ingress));
    found.map(|message| Finding::new("ClassNotServed", message)).collect()
}

fn autoscaled(seen: &Observed, survey: &Survey) -> Vec<Finding> {
    let spec = &seen.release.spec;
    let stable = &spec.target.deployment;
    let canary = format!("{stable}{}", spec.canary.suffix);
    let mut findings = Vec::new();
    for scaler in &survey.autoscalers {
        let name = &scaler.name;
        if scaler.deployment == canary {
            let message = format!(
                "HorizontalPodAutoscaler {name} scales Deployment {canary}, whose pods the release counts itself: delete it, or choose another spec.canary.suffix"
            );
            findings.push(Finding::new("CanaryAutoscaled", message));
        }
        if scaler.deployment == *stable && scaler.min == 0 {
            let message = format!(
                "HorizontalPodAutoscaler {name} may scale Deployment {stable} to 0 while version 2 carries the requests, and nginx answers 503 to everyone when version 1 has no ready pod: set its spec.minReplicas to 1 or more"
            );
            findings.push(Finding::new("TargetScalesToZero", message));
        }
    }
    findings
}

/// What somebody should know, within the bounds of the status.
pub(super) fn warnings(seen: &Observed, routing: &dyn Routing, ground: &Ground, survey: &Survey) -> Vec<String> {
    let mut warnings = Vec::new();
    let service = ground.service.name_any();
    for other in &ground.shared {
        let hosts = claimed_hosts(other, &service);
        warnings.push(format!(
            "Ingress {} ({}) leads to Service {service} too: ingress-nginx sends the same share of its requests to version 2 (spec.traffic.allowSharedService)",
            other.name_any(),
            hosts.join(", ")
        ));
    }
    warnings.extend(super::routes::catch_alls(&ground.ingresses, &service));
    for stable in &ground.ingresses {
        warnings.extend(routing.cautions(stable, &service));
    }
    warnings.extend(unchecked(ground, survey));
    warnings.extend(scaled_elsewhere(seen, survey));
    warnings.extend(unprotected(seen, ground, survey));
    warnings.truncate(MOST_WARNINGS);
    warnings
        .into_iter()
        .map(|text| text.chars().take(LONGEST_WARNING).collect())
        .collect()
}

/// What was to be asked and could not be.
fn unchecked(ground: &Ground, survey: &Survey) -> Vec<String> {
    let unreadable = |name: &&str| matches!(survey.classes.get(*name), Some(Class::Unreadable));
    let classes = ground.ingresses.iter().filter_map(|i| class(i)).filter(unreadable);
    let classes = classes.map(|name| format!("the operator may not read IngressClass {name}, so that it was not checked whether ingress-nginx serves it: grant it get ingressclasses (docs/install.md)"));
    let untried = survey.untried.iter().map(|(name, why)| {
        format!("the canary Ingress {name} was not tried before the start, for a webhook does not support that: {why}")
    });
    let mut told: Vec<_> = classes.chain(untried).collect();
    told.dedup();
    told
}

fn scaled_elsewhere(seen: &Observed, survey: &Survey) -> Vec<String> {
    let stable = &seen.release.spec.target.deployment;
    let scalers = survey.autoscalers.iter().filter(|s| s.deployment == *stable);
    scalers
        .map(|scaler| {
            format!(
                "HorizontalPodAutoscaler {} sets the replicas of Deployment {stable} ({} to {}): as version 2 takes requests it may scale version 1 down, and what is left takes them all at once after a rollback; set its spec.minReplicas to what all requests need",
                scaler.name, scaler.min, scaler.max
            )
        })
        .collect()
}

/// Disruption budgets of version 1 that do not hold for version 2, where no other does.
fn unprotected(seen: &Observed, ground: &Ground, survey: &Survey) -> Option<String> {
    let stable = seen.stable.as_ref()?.pod_labels();
    let canary = canary_labels(seen, ground)?;
    let selects = |labels: &BTreeMap<String, String>| {
        let labels = labels.clone();
        survey
            .budgets
            .iter()
            .find(move |budget| matches(&budget.selector, &labels))
    };
    let budget = selects(&stable)?;
    if selects(&canary).is_some() {
        return None;
    }
    let changed = stable.iter().filter_map(|(key, value)| {
        let new = canary.get(key)?;
        (new != value).then(|| format!("{key}: {new}"))
    });
    Some(format!(
        "PodDisruptionBudget {} selects version 1's pods and not version 2's ({}): draining a node may evict all of these at once, even while they carry every request during promotion; add a budget for them, or drain no node meanwhile",
        budget.name,
        changed.collect::<Vec<_>>().join(", ")
    ))
}

/// The labels of version 2's pods, where they can be told.
fn canary_labels(seen: &Observed, ground: &Ground) -> Option<BTreeMap<String, String>> {
    let merged = seen.merged.as_ref()?.as_ref().ok()?;
    let template = merged.pointer("/spec/template")?;
    let suffix = &seen.release.spec.canary.suffix;
    let mut labels = escape(&pod_labels(template), &ground.selectors, suffix).ok()?;
    labels.insert(LABEL_RELEASE.to_owned(), seen.release.name_any());
    labels.insert(LABEL_REVISION.to_owned(), revision(template));
    Some(labels)
}
