//! One look at everything that concerns a release.

use super::{Observed, Workload, endpoints, failure, last_line, survey::survey, views::View};
use crate::{
    analysis::Judged,
    api::{CanaryRelease, LABEL_RELEASE, LABEL_REVISION, PromotionMode, Rollout, Stage},
    cluster::{CallError, Outages, bounded},
    release::{intent, questions},
    render::{owned_by, promotion_patch},
    routing::Routing,
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, LogParams, Patch, PatchParams, ValidationDirective},
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// Lines of a failed container's log that are asked for; the last that says something is told.
const LOG_LINES: i64 = 20;

/// What other releases of the namespace do, as far as it stands in the way of this one.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// See [`Observed::rivals`].
    pub rivals: Vec<String>,
    /// See [`Observed::busy`].
    pub busy: BTreeMap<String, String>,
}

/// Reads what one round needs: from the watches, and from the API server what no watch shows.
///
/// # Errors
/// What the API server says to a call that this round cannot go without.
pub async fn observe(
    client: &Client,
    release: Arc<CanaryRelease>,
    view: &View,
    routing: &dyn Routing,
    others: Others,
) -> Result<Observed, CallError> {
    let uid = release.uid().unwrap_or_default();
    let now = Instant::now();
    let deployments = view.deployments();
    let target = release.target();
    let stable = deployments
        .iter()
        .find(|d| d.name_any() == target)
        .and_then(|d| read(d));
    let own_deployments = deployments
        .iter()
        .filter(|d| owned_by(d.meta(), &uid))
        .filter_map(|d| read(d))
        .collect();
    let mut seen = Observed {
        may_play: true,
        stable,
        services: view.services(),
        ingresses: view.ingresses(),
        own_deployments,
        deployment_names: deployments.iter().map(|d| d.name_any()).collect(),
        ready: endpoints::ready(view.slices().iter().map(AsRef::as_ref)),
        failure: None,
        merged: None,
        servers: Vec::new(),
        judged: Judged::default(),
        drained_since: None,
        led_since: Timestamp::MIN,
        outages: Outages::default(),
        rivals: others.rivals,
        busy: others.busy,
        survey: None,
        release,
    };
    if let Some(found) = failed_pod(&seen.release, &deployments, &view.pods()) {
        let log = log_line(client, &seen.release, &found).await;
        seen.failure = Some((found, log));
    }
    if needs_merge(&seen) {
        seen.merged = match view.merged(&seen.release.name_any(), &question(&seen), now) {
            Some(known) => Some(known),
            None => merge(client, &seen).await?.inspect(|answer| {
                view.remember_merged(&seen.release.name_any(), question(&seen), now, answer.clone());
            }),
        };
    }
    if let Some(questions) = questions(&seen, routing) {
        let (name, text) = (seen.release.name_any(), questions.text());
        let known = view.survey(&name, &text, now);
        seen.survey = Some(match known {
            Some(known) => known,
            None => {
                let namespace = seen.release.namespace().unwrap_or_default();
                let answer = survey(client, &namespace, &questions).await?;
                view.remember_survey(&name, text, now, answer.clone());
                answer
            }
        });
    }
    Ok(seen)
}

fn read(object: &DynamicObject) -> Option<Workload> {
    Workload::read(object)
        .inspect_err(|error| tracing::warn!(deployment = object.name_any(), %error, "Deployment cannot be read"))
        .ok()
}

/// A failing pod of the current revision; its predecessors' dying pods do not count.
fn failed_pod(
    release: &CanaryRelease,
    deployments: &[Arc<DynamicObject>],
    pods: &[Arc<Pod>],
) -> Option<super::Failure> {
    let status = release.status.as_ref()?;
    let rollout = status
        .rollout
        .as_ref()
        .filter(|r| !matches!(r.stage, Stage::Ended | Stage::RollingBack))?;
    if rollout.intent != intent(&release.spec) {
        return None;
    }
    let name = release.name_any();
    let mut canaries = deployments.iter().filter(|d| d.name_any() == rollout.canary.deployment);
    let made = canaries.find_map(|d| d.creation_timestamp());
    // What a retry releases has the revision of what failed, whose pods outlive their Deployment until they are collected.
    let older = |pod: &Pod| matches!((pod.creation_timestamp(), &made), (Some(pod), Some(made)) if pod < *made);
    let mine = |pod: &&Arc<Pod>| {
        pod.labels().get(LABEL_RELEASE) == Some(&name)
            && pod.labels().get(LABEL_REVISION) == status.revision.as_ref()
            && pod.metadata.deletion_timestamp.is_none()
            && !older(pod)
    };
    pods.iter().filter(mine).find_map(|pod| failure(pod))
}

/// The way back waits for the log, so not for long.
const LOG_DEADLINE: Duration = Duration::from_secs(2);

/// The last line of the failed container's log; told where it can be had, never worth failing a round for.
async fn log_line(client: &Client, release: &CanaryRelease, found: &super::Failure) -> Option<String> {
    if !found.ran {
        return None;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &release.namespace().unwrap_or_default());
    let params = LogParams {
        container: Some(found.container.clone()),
        previous: true,
        tail_lines: Some(LOG_LINES),
        limit_bytes: Some(16 * 1024),
        ..Default::default()
    };
    let why = match timeout(LOG_DEADLINE, bounded(pods.logs(&found.pod, &params))).await {
        Ok(Ok(log)) => return last_line(&log),
        Ok(Err(error)) => error.to_string(),
        Err(late) => late.to_string(),
    };
    tracing::warn!(pod = found.pod, why, "log of the failed container cannot be read");
    None
}

/// Whether this round makes version 2's Deployment, or asks whether the stable one became it: the API server does the merge.
fn needs_merge(seen: &Observed) -> bool {
    let release = &seen.release;
    let rollout = release.rollout();
    let revision = release.status.as_ref().and_then(|s| s.revision.as_ref());
    let differs = |known: &String| seen.stable.as_ref().is_some_and(|stable| stable.revision() != *known);
    let making = match rollout {
        None => !release.spec.paused,
        Some(rollout) if rollout.stage == Stage::Ended => {
            !release.spec.paused && rollout.intent != intent(&release.spec)
        }
        // Whether what somebody else gave the stable Deployment is version 2.
        Some(rollout) if rollout.stage == Stage::Promoting => {
            release.spec.promotion.mode == PromotionMode::AwaitStable && differs(&rollout.stable_revision)
        }
        Some(rollout) if rollout.stage == Stage::Finishing => {
            let promoted = rollout.promoted_revision.as_ref().or(revision);
            rollout.intent == intent(&release.spec)
                && differs(&rollout.stable_revision)
                && promoted.is_some_and(differs)
        }
        Some(rollout) => rollout.stage == Stage::Preparing && lacks_something(seen, rollout),
    };
    making && release.metadata.deletion_timestamp.is_none()
}

/// Whether version 2's Deployment or Service is to be made again.
fn lacks_something(seen: &Observed, rollout: &Rollout) -> bool {
    let mut own = seen.own_deployments.iter();
    let deployment = own.any(|own| own.name == rollout.canary.deployment && !own.deleting);
    let service = seen.services.iter().any(|s| s.name_any() == rollout.canary.service);
    !(deployment && service)
}

/// What a merge depends on: asked again only when this changes, or after a while, for a policy may have changed.
fn question(seen: &Observed) -> String {
    let stable = seen.stable.as_ref();
    let (uid, generation) = stable.map(|s| (s.uid.as_str(), s.generation)).unwrap_or_default();
    format!("{uid} {generation} {}", intent(&seen.release.spec))
}

/// What the stable Deployment would become: the API server merges and validates, nothing is stored.
async fn merge(client: &Client, seen: &Observed) -> Result<Option<Result<Value, String>>, CallError> {
    let Some(stable) = &seen.stable else { return Ok(None) };
    let spec = &seen.release.spec;
    // Which container is preflight's to say; without one there is nothing to ask yet.
    let names = stable.container_names();
    let Some(container) = spec.canary.container.as_ref().or(names.first()) else {
        return Ok(None);
    };
    let resource = ApiResource::erase::<Deployment>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &seen.release.namespace().unwrap_or_default(), &resource);
    let mut patch = promotion_patch(&spec.canary, container);
    if let Some(patch) = patch.as_object_mut() {
        patch.insert(
            "metadata".to_owned(),
            serde_json::json!({"resourceVersion": stable.version}),
        );
    }
    let params = PatchParams {
        dry_run: true,
        field_validation: Some(ValidationDirective::Strict),
        ..Default::default()
    };
    match bounded(api.patch(&stable.name, &params, &Patch::Strategic(patch))).await {
        Ok(merged) => Ok(Some(Ok(merged.data))),
        Err(error) => match error.refusal() {
            Some(message) => Ok(Some(Err(message))),
            None => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_an_earlier_deployment_of_the_same_revision_left_does_not_fail_the_retry() {
        let mut release = json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "shop"},
            "spec": {"target": {"deployment": "shop"}, "canary": {"image": "shop:v2"}, "steps": [{"weight": 10, "hold": "1m"}]},
            "status": {"revision": "abc", "rollout": {"intent": "", "stage": "Preparing", "schedule": "",
                "startedAt": "2026-01-05T10:00:00.000000Z", "waitingSince": "2026-01-05T10:00:00.000000Z",
                "stableRevision": "", "service": "shop", "ingresses": [],
                "canary": {"deployment": "shop-v2", "service": "shop-v2"}}}});
        let spec = serde_json::from_value(release["spec"].clone()).unwrap();
        release["status"]["rollout"]["intent"] = json!(intent(&spec));
        let release: CanaryRelease = serde_json::from_value(release).unwrap();
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "shop-v2", "creationTimestamp": "2026-01-05T10:00:00Z"}});
        let deployments = [Arc::new(serde_json::from_value(deployment).unwrap())];
        let pod = |created: &str| {
            let pod = json!({"metadata": {"name": "shop-v2-1", "creationTimestamp": created,
                    "labels": {LABEL_RELEASE: "shop", LABEL_REVISION: "abc"}},
                "status": {"containerStatuses": [{"name": "web", "ready": false, "restartCount": 1, "image": "", "imageID": "",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
            [Arc::new(serde_json::from_value(pod).unwrap())]
        };
        assert_eq!(failed_pod(&release, &deployments, &pod("2026-01-05T09:59:59Z")), None);
        assert!(failed_pod(&release, &deployments, &pod("2026-01-05T10:00:00Z")).is_some());
    }
}
