use crate::{api::CanaryReleaseSpec, observe::revision};
use serde_json::json;

/// Hash of what makes a release this release: another target, image or overlay is another release; another schedule or
/// number of pods is not.
#[must_use]
pub fn intent(spec: &CanaryReleaseSpec) -> String {
    let canary = &spec.canary;
    revision(&json!([
        spec.target,
        canary.image,
        canary.container,
        canary.suffix,
        canary.template
    ]))
}

/// Hash of the schedule: another one is walked from the weight in force.
#[must_use]
pub fn schedule_hash(spec: &CanaryReleaseSpec) -> String {
    revision(&json!([spec.steps, spec.ramp]))
}
