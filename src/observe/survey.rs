//! What a release that is about to start has to know beyond what is watched: asked for once, and remembered for a while.

use crate::{
    cluster::{CallError, bounded},
    release::Questions,
};
use k8s_openapi::{
    api::{
        autoscaling::v2::HorizontalPodAutoscaler,
        networking::v1::{Ingress, IngressClass},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
};
use std::collections::BTreeMap;

/// What the API server answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The IngressClasses that version 1's Ingresses name.
    pub classes: BTreeMap<String, Class>,
    /// Autoscalers of the namespace's Deployments.
    pub autoscalers: Vec<Autoscaler>,
    /// Disruption budgets of the namespace.
    pub budgets: Vec<Budget>,
    /// Canary Ingresses that would be refused, and why.
    pub refused: Vec<(String, String)>,
    /// Canary Ingresses that could not be tried, and why.
    pub untried: Vec<(String, String)>,
}

/// An IngressClass that an Ingress names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// `spec.controller`.
    Of(String),
    /// It does not exist.
    Missing,
    /// The operator may not read it: without a cluster administrator it has no rights outside its namespaces.
    Unreadable,
}

/// A HorizontalPodAutoscaler of a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autoscaler {
    /// `metadata.name`.
    pub name: String,
    /// The Deployment that it scales.
    pub deployment: String,
    /// `spec.minReplicas`, 1 where unset.
    pub min: i32,
    /// `spec.maxReplicas`.
    pub max: i32,
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// `metadata.name`.
    pub name: String,
    /// Which pods it protects.
    pub selector: LabelSelector,
}

/// Asks the API server everything that `questions` wants answered.
///
/// # Errors
/// What it says to a question that it did not answer.
pub(super) async fn survey(client: &Client, namespace: &str, questions: &Questions) -> Result<Survey, CallError> {
    let mut survey = Survey::default();
    let classes: Api<IngressClass> = Api::all(client.clone());
    for name in &questions.classes {
        survey.classes.insert(name.clone(), class(&classes, name).await?);
    }
    let all = ListParams::default();
    let scalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), namespace);
    survey.autoscalers = bounded(scalers.list(&all))
        .await?
        .into_iter()
        .filter_map(autoscaler)
        .collect();
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    survey.budgets = bounded(budgets.list(&all))
        .await?
        .into_iter()
        .filter_map(budget)
        .collect();
    let resource = ApiResource::erase::<Ingress>(&());
    let ingresses: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let params = PostParams {
        dry_run: true,
        ..Default::default()
    };
    for (name, wanted) in &questions.trials {
        let object: DynamicObject = serde_json::from_value(wanted.clone()).map_err(kube::Error::SerdeError)?;
        if let Err(error) = bounded(ingresses.create(&params, &object)).await {
            match verdict(&error) {
                Some(Verdict::Refused(why)) => survey.refused.push((name.clone(), why)),
                Some(Verdict::Untried(why)) => survey.untried.push((name.clone(), why)),
                None => return Err(error),
            }
        }
    }
    Ok(survey)
}

async fn class(api: &Api<IngressClass>, name: &str) -> Result<Class, CallError> {
    match bounded(api.get_opt(name)).await {
        Ok(None) => Ok(Class::Missing),
        Ok(Some(class)) => Ok(Class::Of(
            class.spec.and_then(|spec| spec.controller).unwrap_or_default(),
        )),
        Err(error) if error.is_forbidden() => Ok(Class::Unreadable),
        Err(error) => Err(error),
    }
}

fn autoscaler(scaler: HorizontalPodAutoscaler) -> Option<Autoscaler> {
    let name = scaler.name_any();
    let spec = scaler.spec;
    let target = spec.scale_target_ref;
    let of_apps = target.api_version.is_none_or(|version| version.starts_with("apps/"));
    (of_apps && target.kind == "Deployment").then_some(Autoscaler {
        name,
        deployment: target.name,
        min: spec.min_replicas.unwrap_or(1),
        max: spec.max_replicas,
    })
}

/// A budget without a selector protects nothing; an empty one protects every pod.
fn budget(budget: PodDisruptionBudget) -> Option<Budget> {
    let name = budget.name_any();
    let selector = budget.spec?.selector?;
    Some(Budget { name, selector })
}

enum Verdict {
    Refused(String),
    Untried(String),
}

/// What an error says about the tried object; nothing where it says something about the API server or the moment.
fn verdict(error: &CallError) -> Option<Verdict> {
    let CallError::Kube(kube::Error::Api(status)) = error else {
        return None;
    };
    let why = status.message.clone();
    match status.code {
        // The API server does not call a webhook with side effects for a trial, and refuses the trial instead.
        400 if why.contains("does not support dry run") => Some(Verdict::Untried(why)),
        // Policies and quotas answer 403. A webhook that cannot be reached is as good as one that refuses.
        400 | 403 | 413 | 422 => Some(Verdict::Refused(why)),
        500 if why.contains("webhook") => Some(Verdict::Refused(why)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn said(code: u16, message: &str) -> &'static str {
        let status = Status::failure(message, "").with_code(code).boxed();
        match verdict(&CallError::Kube(kube::Error::Api(status))) {
            Some(Verdict::Refused(_)) => "refused",
            Some(Verdict::Untried(_)) => "untried",
            None => "ask again",
        }
    }

    #[test]
    fn a_trial_is_refused_by_webhooks_policies_and_quotas_and_not_by_a_bad_moment() {
        for (code, message, expected) in [
            (
                400,
                "admission webhook \"validate.nginx.ingress.kubernetes.io\" denied the request: host \"a\" and path \"/\" is already defined",
                "refused",
            ),
            (403, "exceeded quota: ingresses", "refused"),
            (422, "Ingress.networking.k8s.io \"a\" is invalid", "refused"),
            (
                500,
                "Internal error occurred: failed calling webhook \"validate.nginx.ingress.kubernetes.io\": connection refused",
                "refused",
            ),
            (
                400,
                "admission webhook \"a.example\" does not support dry run",
                "untried",
            ),
            (409, "ingresses.networking.k8s.io \"a\" already exists", "ask again"),
            (429, "too many requests", "ask again"),
            (500, "etcdserver: leader changed", "ask again"),
            (503, "the server is currently unable to handle the request", "ask again"),
        ] {
            assert_eq!(said(code, message), expected, "{code} {message}");
        }
    }
}
