//! Whether a release can start: everything that must be there, nothing that would be hurt, and what somebody should know.

mod analysis;
mod names;
mod routes;
mod surroundings;
mod target;

use crate::{
    api::{Rollout, Stage},
    observe::Observed,
    render::Owner,
    routing::{Route, Routing, Services, Split},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};

pub use analysis::server;

/// Something that keeps a release from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// CamelCase word for condition and event.
    pub reason: &'static str,
    /// Names the objects, what is wrong and the remedy.
    pub message: String,
    /// Whether it lies in what is not watched, so that nothing wakes the release when it is mended.
    pub unwatched: bool,
}

impl Finding {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            unwatched: false,
        }
    }

    pub(super) fn unwatched(mut self) -> Self {
        self.unwatched = true;
        self
    }
}

/// What a release stands on, found and fitting.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Version 1's Service.
    pub service: Arc<Service>,
    /// Version 1's Ingresses that lead to it.
    pub ingresses: Vec<Arc<Ingress>>,
    /// Ingresses that lead to it too and whose requests the controller splits as well; allowed by the release.
    pub shared: Vec<Arc<Ingress>>,
    /// The container that gets version 2's image.
    pub container: String,
    /// Every selector that must not match version 2's pods, with the name of its object.
    pub selectors: Vec<(String, LabelSelector)>,
}

/// A release that can start.
#[derive(Clone, Debug)]
pub struct Fit {
    /// What it stands on.
    pub ground: Ground,
    /// What does not stop it but somebody should know, in sentences.
    pub warnings: Vec<String>,
}

/// What the API server is to be asked before a release starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Questions {
    /// IngressClasses that version 1's Ingresses name.
    pub classes: BTreeSet<String>,
    /// Canary Ingresses to be tried, by name.
    pub trials: Vec<(String, Value)>,
}

impl Questions {
    /// The same for the same questions.
    #[must_use]
    pub fn text(&self) -> String {
        json!([self.classes, self.trials]).to_string()
    }
}

/// Whether the release can start.
///
/// # Errors
/// Findings, each with the remedy.
pub fn preflight(seen: &Observed, routing: &dyn Routing) -> Result<Fit, Vec<Finding>> {
    let ground = watched(seen, routing)?;
    let findings = analysis::findings(&seen.release.spec, &seen.servers);
    if !findings.is_empty() {
        return Err(findings);
    }
    let Some(survey) = &seen.survey else {
        let message = "the API server was not asked yet about IngressClasses, autoscalers and disruption budgets";
        return Err(vec![Finding::new("SurveyMissing", message)]);
    };
    let findings = surroundings::findings(seen, routing, &ground, survey);
    if !findings.is_empty() {
        return Err(findings);
    }
    let warnings = surroundings::warnings(seen, routing, &ground, survey);
    Ok(Fit { ground, warnings })
}

/// What to ask the API server in this round: only where a release is about to start and nothing that is watched stops it.
#[must_use]
pub fn questions(seen: &Observed, routing: &dyn Routing) -> Option<Questions> {
    let release = &seen.release;
    let rollout = release.rollout();
    let running = rollout.is_some_and(|r| r.stage != Stage::Ended || r.intent == super::intent(&release.spec));
    // A paused release does not start: what it would find is asked when it does.
    if running || release.spec.paused || release.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ground = watched(seen, routing).ok()?;
    let spec = &release.spec;
    let service = ground.service.name_any();
    let canary = canary_service(seen, &ground);
    let route = Route {
        services: Services {
            stable: &service,
            canary: &canary,
        },
        split: Split::default(),
        traffic: spec.traffic.as_ref(),
        // The same question at all times, which is asked once.
        since: Timestamp::UNIX_EPOCH,
    };
    let owner = Owner::of(release);
    let trials = ground.ingresses.iter().filter_map(|stable| {
        let name = format!("{}{}", stable.name_any(), spec.canary.suffix);
        // What an earlier release left is ours and goes first; a trial would only find that it exists.
        let there = seen.ingresses.iter().any(|i| i.name_any() == name);
        let wanted = || routing.canary(stable, &name, &owner, route);
        (!there).then(|| (name.clone(), wanted()))
    });
    Some(Questions {
        classes: ground
            .ingresses
            .iter()
            .filter_map(|i| class(i))
            .map(str::to_owned)
            .collect(),
        trials: trials.collect(),
    })
}

/// Everything that can be told from what is watched.
fn watched(seen: &Observed, routing: &dyn Routing) -> Result<Ground, Vec<Finding>> {
    let mut findings = rivals(seen);
    let ground = match ground(seen, routing) {
        Ok(ground) => ground,
        Err(more) => {
            findings.extend(more);
            return Err(findings);
        }
    };
    let service = ground.service.name_any();
    if let Some(other) = seen.busy.get(&service) {
        let message = format!(
            "CanaryRelease {other} splits the traffic of Service {service} at this time: wait for its end, or delete it"
        );
        findings.push(Finding::new("ServiceTaken", message));
    }
    // While another release has its canary here, what is in the way is that release: saying more would change with its steps.
    if findings.is_empty() {
        if seen.ready.get(&service).copied().unwrap_or(0) == 0 {
            let message = format!(
                "Service {service} has no ready endpoint, so that nginx answers 503 to everyone whatever the weight is: make the pods of Deployment {} ready",
                seen.release.spec.target.deployment
            );
            findings.push(Finding::new("TargetUnready", message));
        }
        let routes: Vec<_> = ground.ingresses.iter().chain(&ground.shared).collect();
        findings.extend(routes::foreign_canaries(seen, routing, &service, &routes));
        findings.extend(routes::references(seen, &canary_service(seen, &ground)));
        let allowed = seen
            .release
            .spec
            .traffic
            .as_ref()
            .is_some_and(|t| t.allow_shared_service);
        let catching = routes::catch_alls(&ground.ingresses, &service).filter(|_| !allowed);
        findings.extend(catching.map(|leak| {
            let remedy = "give it a rule with a host, or set spec.traffic.allowSharedService";
            Finding::new("DefaultBackendShared", format!("{leak}: {remedy}"))
        }));
    }
    if findings.is_empty() { Ok(ground) } else { Err(findings) }
}

/// What came in the way of a release that is under way: somebody else's canary on its routes, or a route of somebody else's
/// to version 2's Service.
pub(super) fn intrusion(seen: &Observed, routing: &dyn Routing, rollout: &Rollout) -> Option<Finding> {
    let routes = seen
        .ingresses
        .iter()
        .filter(|i| rollout.ingresses.contains(&i.name_any()));
    let foreign = routes::foreign_canaries(seen, routing, &rollout.service, &routes.collect::<Vec<_>>());
    let references = routes::references(seen, &rollout.canary.service);
    foreign.into_iter().chain(references).next()
}

/// Another release of the same Deployment that was there first.
fn rivals(seen: &Observed) -> Vec<Finding> {
    let deployment = &seen.release.spec.target.deployment;
    let told = seen.rivals.first().map(|rival| {
        let message = format!("CanaryRelease {rival} already releases Deployment {deployment}: delete one of the two");
        Finding::new("TargetTaken", message)
    });
    told.into_iter().collect()
}

/// Finds what the release stands on, or everything that is wrong with that at once. Needs no more than what is watched, so
/// that it can be asked at any stage.
///
/// # Errors
/// Findings, each with the remedy.
pub fn ground(seen: &Observed, routing: &dyn Routing) -> Result<Ground, Vec<Finding>> {
    let spec = &seen.release.spec;
    let Some(stable) = &seen.stable else {
        let message = format!(
            "Deployment {} does not exist: create it, or correct spec.target.deployment",
            spec.target.deployment
        );
        return Err(vec![Finding::new("TargetNotFound", message)]);
    };
    let mut findings = target::condition(stable);
    let container = target::container(spec, stable)
        .map_err(|finding| findings.push(finding))
        .ok();
    let service = target::service(seen, routing, &stable.pod_labels())
        .map_err(|finding| findings.push(finding))
        .ok();
    let routes = service
        .as_ref()
        .map(|service| target::ingresses(seen, routing, &service.name_any()));
    let routes = routes.and_then(|found| found.map_err(|finding| findings.push(finding)).ok());
    if let (Some(service), Some(routes)) = (&service, &routes) {
        findings.extend(names::taken(seen, &service.name_any(), &routes.released));
    }
    match (container, service, routes) {
        (Some(container), Some(service), Some(routes)) if findings.is_empty() => Ok(Ground {
            service,
            ingresses: routes.released,
            shared: routes.shared,
            container,
            selectors: target::selectors(seen, stable),
        }),
        _ => Err(findings),
    }
}

/// Name of version 2's Service.
fn canary_service(seen: &Observed, ground: &Ground) -> String {
    format!("{}{}", ground.service.name_any(), seen.release.spec.canary.suffix)
}

/// The IngressClass that an Ingress names.
fn class(ingress: &Ingress) -> Option<&str> {
    ingress.spec.as_ref()?.ingress_class_name.as_deref()
}

/// Whether an Ingress is this release's own.
fn own(seen: &Observed, ingress: &Ingress) -> bool {
    crate::render::owned_by(ingress.meta(), &seen.release.uid().unwrap_or_default())
}
