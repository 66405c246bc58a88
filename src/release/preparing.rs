//! Version 2's Deployment and Service are made and waited for; no request goes there yet.

use super::{
    Finding, Ground, Kind, Level, Op, Write,
    draft::{Draft, Flow},
    ending, hash,
    preflight::{Fit, ground, preflight},
    schedule,
};
use crate::{
    api::{CanaryObjects, CanaryReleaseStatus, Commanded, Outcome, Phase, Rollout, Stage, Weight},
    observe::{Workload, image, pod_labels, revision},
    render::{self, owned_by},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Resource, ResourceExt};
use serde_json::Value;
use std::time::Duration;

/// Why a release ends that has nothing to release.
pub(super) const ALREADY_RUNNING: &str = "AlreadyRunning";

/// How often a release that stalls on what is not watched is looked at.
const UNWATCHED: Duration = Duration::from_secs(60);

/// Starts a release: preflight, then version 2's Deployment and Service.
pub(super) fn begin(draft: &mut Draft<'_>, intent: String) -> Flow {
    let spec = &draft.seen.release.spec;
    let schedule = match schedule::schedule(spec) {
        Ok(schedule) => schedule,
        Err(message) => return stalled(draft, &[Finding::new("InvalidSpec", message)]),
    };
    if let Err(message) = super::check_windows(spec) {
        return stalled(draft, &[Finding::new("InvalidSpec", message)]);
    }
    let Fit { ground, warnings } = match preflight(draft.seen, draft.routing) {
        Ok(fit) => fit,
        Err(findings) => return stalled(draft, &findings),
    };
    let Some(stable) = &draft.seen.stable else {
        return Flow::Wait;
    };
    let merged = match &draft.seen.merged {
        Some(Ok(merged)) => merged,
        Some(Err(message)) => {
            let finding = Finding::new("TemplateRefused", refused(message)).unwatched();
            return stalled(draft, &[finding]);
        }
        None => {
            return stalled(
                draft,
                &[Finding::new(
                    "TemplateUnknown",
                    "the API server was not asked yet what version 2's pod template is",
                )],
            );
        }
    };
    let template = merged.pointer("/spec/template").cloned().unwrap_or_default();
    let revision = revision(&template);
    let suffix = &spec.canary.suffix;
    let now = MicroTime(draft.now);
    let mut rollout = Rollout {
        intent,
        stage: Stage::Preparing,
        schedule: hash::schedule_hash(spec),
        step: u32::from(schedule.weight(1) == Weight::ZERO),
        started_at: now.clone(),
        waiting_since: now,
        weight_since: None,
        proven: None,
        split_differs: None,
        expressed: None,
        interrupted_since: None,
        interrupted_for: None,
        approved: None,
        skip_steps: false,
        commands: retried(draft),
        drained_since: None,
        replaced: false,
        stable_since: None,
        capacity: stable.replicas,
        autoscaled: draft
            .seen
            .survey
            .iter()
            .flat_map(|survey| &survey.autoscalers)
            .any(|a| a.deployment == stable.name),
        unshifted: None,
        promoted_revision: None,
        power: None,
        of_nginx: 0,
        kept_until: None,
        deployment: stable.name.clone(),
        stable_revision: stable.revision(),
        service: ground.service.name_any(),
        ingresses: ground.ingresses.iter().map(|i| i.name_any()).collect(),
        canary: CanaryObjects {
            deployment: format!("{}{suffix}", stable.name),
            service: format!("{}{suffix}", ground.service.name_any()),
            template: None,
        },
        exposed: false,
        warnings: Vec::new(),
        reached: Vec::new(),
        outcome: None,
        reason: None,
        detail: None,
    };
    // Told once the release starts: one that does not is that of the version before.
    let tell = |status: &mut CanaryReleaseStatus, step: Option<String>| {
        status.step = step;
        status.canary_image = image(&template, Some(&ground.container));
        status.stable_image = stable.image(Some(&ground.container));
        status.canary_pods = None;
        status.revision = Some(revision.clone());
    };
    if revision == stable.revision() && draft.seen.own_deployments.is_empty() && draft.own_ingresses().next().is_none()
    {
        let message = format!(
            "Deployment {} already runs this version: there is nothing to release",
            stable.name
        );
        (rollout.stage, rollout.outcome) = (Stage::Ended, Some(Outcome::Promoted));
        (rollout.reason, rollout.detail) = (Some(ALREADY_RUNNING.to_owned()), Some(message.clone()));
        draft.status.rollout = Some(rollout);
        tell(&mut draft.status, None);
        draft.say(Phase::Promoted, ALREADY_RUNNING, message);
        draft.decision.release_finalizer = true;
        return Flow::Wait;
    }
    // What is ours may have been made for a spec, or beside a version 1, that changed before it was recorded. What was kept
    // was kept for people to change, and its pods are those that failed.
    let kept = draft
        .status
        .rollout
        .as_ref()
        .is_some_and(|ended| ended.kept_until.is_some());
    let beside = |own: &Workload| own.kept_template.as_ref().is_none_or(|kept| *kept == stable.template);
    let mine = |own: &Workload| {
        own.name == rollout.canary.deployment
            && pod_labels(&own.template).get(crate::api::LABEL_REVISION) == Some(&revision)
            && beside(own)
            && !kept
    };
    let stale = |own: &Workload| own.deleting || !mine(own);
    if draft.own_ingresses().next().is_some() || draft.seen.own_deployments.iter().any(stale) {
        let mut since = None;
        draft.drain(&mut since, false, false, "an earlier release left this");
        let removes = |write: &Write| write.kind == Kind::Deployment;
        if draft.decision.writes.iter().any(removes)
            && let Some(ended) = &mut draft.status.rollout
        {
            // What is made from here on is not what was kept, also while a refusal keeps its making from being recorded: a sweep
            // saw it made and removed without end.
            ended.kept_until = None;
        }
        draft.say(
            Phase::Pending,
            "CleaningUp",
            "removing what an earlier release left before this one starts",
        );
        return Flow::Wait;
    }
    draft.take_finalizer();
    if let Err(finding) = make(draft, &mut rollout, &ground, merged, &revision, schedule.weight(1)) {
        // Nothing is made, so there is nothing to guard: a finalizer would only outlive the operator.
        draft.decision.writes.clear();
        return stalled(draft, &[finding]);
    }
    tell(&mut draft.status, Some(format!("0/{}", schedule.len())));
    draft.status.checks.clear();
    draft.status.verdicts = None;
    let images = draft.images();
    let peak = draft.peak(&rollout, &schedule);
    draft.note(
        Level::Normal,
        "ReleaseStarted",
        format!(
            "{images}: waiting for version 2's pods, up to {peak} beside version 1's {}; {} up to {}% to follow",
            stable.replicas,
            counted(schedule.len(), "step"),
            schedule.weight(schedule.len())
        ),
    );
    if !warnings.is_empty() {
        draft.note(Level::Warning, "PreflightWarning", warnings.join("; "));
    }
    rollout.warnings = warnings;
    draft.say(
        Phase::Pending,
        "CanaryStarting",
        format!(
            "waiting for the pods of Deployment {} to be ready; no request goes there yet",
            rollout.canary.deployment
        ),
    );
    draft.deadline(&rollout);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

fn refused(message: &str) -> String {
    format!(
        "the API server refuses Deployment with spec.canary.template and image merged in: {message}; correct spec.canary"
    )
}

fn stalled(draft: &mut Draft<'_>, findings: &[Finding]) -> Flow {
    if findings.iter().any(|finding| finding.unwatched) {
        draft.look_again(UNWATCHED);
    }
    draft.stall(findings);
    Flow::Wait
}

/// The command to try again, which is of this release rather than of the one that ended.
fn retried(draft: &Draft<'_>) -> Vec<Commanded> {
    // Retrying clears the intent, as superseding does: another version is not what was to be tried again.
    let again = |ended: &&Rollout| ended.intent.is_empty() && ended.outcome != Some(Outcome::Superseded);
    let ended = draft.status.rollout.as_ref().filter(again);
    let last = ended.and_then(|ended| ended.commands.last());
    last.filter(|last| last.command.starts_with("retry/"))
        .cloned()
        .into_iter()
        .collect()
}

/// `1 step`, `5 steps`.
fn counted(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Makes what is missing of version 2's Deployment and Service.
fn make(
    draft: &mut Draft<'_>,
    rollout: &mut Rollout,
    ground: &Ground,
    merged: &Value,
    revision: &str,
    first: Weight,
) -> Result<(), Finding> {
    let owner = draft.owner();
    let suffix = &draft.seen.release.spec.canary.suffix;
    let template = merged.pointer("/spec/template").cloned().unwrap_or_default();
    let labels = render::escape(&pod_labels(&template), &ground.selectors, suffix)
        .map_err(|error| Finding::new("SelectorOverlap", error.to_string()))?;
    let pods = draft.pods(rollout, first);
    let mut deployment = render::deployment(merged, &rollout.canary.deployment, &owner, revision, &labels, pods);
    render::keep_template(
        &mut deployment,
        draft.seen.stable.as_ref().map(|stable| &stable.template),
    );
    let selector = deployment
        .pointer("/spec/selector/matchLabels")
        .and_then(Value::as_object);
    let selector = selector
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect();
    let service = render::service(&ground.service, &rollout.canary.service, &owner, &selector);
    let named = |own: &Workload| own.name == rollout.canary.deployment;
    if !draft.seen.own_deployments.iter().any(named) {
        rollout.canary.template = deployment.pointer("/spec/template").map(crate::observe::revision);
        draft.write(
            Kind::Deployment,
            &rollout.canary.deployment,
            Op::Create(deployment),
            "version 2's pods",
        );
    }
    if !draft
        .seen
        .services
        .iter()
        .any(|s| s.name_any() == rollout.canary.service)
    {
        draft.write(
            Kind::Service,
            &rollout.canary.service,
            Op::Create(service),
            "version 2's Service, for endpoints of its own",
        );
    }
    Ok(())
}

/// Waits for version 2's pods and endpoints; no request goes there yet.
pub(super) fn preparing(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    // A Deployment whose spec was never changed is as the API server and its webhooks made it.
    if let Some(canary) = draft.canary(&rollout).filter(|canary| canary.generation <= 1) {
        rollout.canary.template = Some(canary.revision());
    }
    if let Some(flow) = ending::found_wanting(draft, &rollout) {
        return flow;
    }
    let service_there = draft
        .seen
        .services
        .iter()
        .any(|s| s.name_any() == rollout.canary.service && owned_by(s.meta(), &draft.uid()));
    if draft.canary(&rollout).is_none() || !service_there {
        if draft.deadline(&rollout).is_zero() {
            let message = format!(
                "Deployment {} or Service {} was deleted by somebody else, and not ready within {} (spec.progressDeadline)",
                rollout.canary.deployment, rollout.canary.service, draft.seen.release.spec.progress_deadline
            );
            return ending::turn_back(draft, rollout, Outcome::RolledBack, "CanaryDeleted", message);
        }
        return remake(draft, rollout);
    }
    let wanted = draft.canary(&rollout).map_or(1, |canary| canary.replicas);
    let ready = draft.ready(&rollout.canary.service);
    let name = rollout.canary.deployment.clone();
    if !draft.has_ready(&rollout, wanted) {
        let waiting = format!("waiting for the pods of Deployment {name} to be ready; no request goes there yet");
        let late = format!("only {ready} of {wanted} pods of Deployment {name} were ready");
        return ending::wait_for_progress(draft, rollout, (Phase::Pending, "CanaryStarting", waiting), late);
    }
    rollout.stage = Stage::Stepping;
    rollout.waiting_since = MicroTime(draft.now);
    draft.status.rollout = Some(rollout);
    Flow::Again
}

/// Somebody deleted what was made, or the operator died between the writes.
fn remake(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    let ground = match ground(draft.seen, draft.routing) {
        Ok(ground) => ground,
        Err(findings) => return stalled(draft, &findings),
    };
    let merged = match &draft.seen.merged {
        Some(Ok(merged)) => merged,
        Some(Err(why)) => {
            let message = refused(why);
            return ending::turn_back(draft, rollout, Outcome::RolledBack, "TemplateRefused", message);
        }
        // Asked in the round that finds something missing.
        None => return Flow::Wait,
    };
    let now = revision(merged.pointer("/spec/template").unwrap_or(&Value::Null));
    if draft.status.revision.as_ref() != Some(&now) {
        return ending::turn_back(
            draft,
            rollout,
            Outcome::RolledBack,
            "StableChanged",
            ending::stable_changed(draft),
        );
    }
    let first = schedule::schedule(&draft.seen.release.spec).map_or(Weight::ZERO, |s| s.weight(1));
    if let Err(finding) = make(draft, &mut rollout, &ground, merged, &now, first) {
        return stalled(draft, &[finding]);
    }
    draft.status.rollout = Some(rollout);
    Flow::Wait
}
