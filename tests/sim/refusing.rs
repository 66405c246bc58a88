//! The operator may not do what it needs to.

use crate::{
    lab::{Lab, canary, canary_ingress, is_operator, lab},
    properties,
    scenario::{Scenario, release_key},
};
use canary_operator::rehearse::{
    ApiServer,
    actors::behaviour::Answers,
    server::{
        error,
        intercept::{Before, EventFate, Interceptor, NoFaults},
        routes::Call,
        store::Version,
    },
};

/// Requests of the operator that no role allows.
pub struct Forbidden(pub fn(&Call) -> bool);

impl Interceptor for Forbidden {
    fn before(&self, call: &Call) -> Before {
        if is_operator(&call.client) && (self.0)(call) {
            return Before::Answer(error::forbidden(&call.key(), "no role allows it"));
        }
        Before::Pass
    }
}

const STATUS: Forbidden = Forbidden(|call| call.subresource == "status");
const INGRESSES: Forbidden = Forbidden(|call| call.verb == "patch" && call.resource.plural == "ingresses");
const SERVICES: Forbidden = Forbidden(|call| call.verb == "create" && call.resource.plural == "services");

/// A release at its second step, whose status can be written no more.
async fn cannot_tell_its_second_step(lab: &Lab) {
    lab.start(Scenario::Good);
    lab.step("2/3").await;
    lab.pass(10).await;
    lab.world.server.intercept(STATUS);
}

/// A sweep saw the canary Ingress deleted and made anew without end, and without a pause.
#[test]
fn a_bad_version_2_that_was_taken_away_does_not_come_back_while_no_status_can_be_written() {
    let run = lab(async |lab| {
        cannot_tell_its_second_step(lab).await;
        lab.world.image_answers("shop:v2", Answers::failing(0.2));
        lab.until("taken away", |lab| lab.weight().is_none()).await;
        let before = lab.requests();
        lab.pass(60).await;
        assert_eq!(lab.weight(), None);
        let asked = lab.requests() - before;
        assert!(asked <= 60, "{asked} requests in a minute");
        lab.world.server.intercept(NoFaults);
        lab.ended().await;
    });
    properties::sound(&run);
    properties::stays_away(&run);
    assert_eq!(run.outcome().as_deref(), Some("RolledBack"), "{}", run.message());
}

#[test]
fn a_weight_that_somebody_raises_is_lowered_though_no_status_can_be_written() {
    let run = lab(async |lab| {
        cannot_tell_its_second_step(lab).await;
        // The next step is due, and is the last that is taken.
        lab.until("the next step", |lab| lab.weight().as_deref() == Some("50"))
            .await;
        lab.pass(30).await;
        lab.edit(&canary_ingress(), |ingress| {
            ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-weight"] = "90".into();
        });
        lab.pass(10).await;
        assert_eq!(lab.weight().as_deref(), Some("25"), "what the status tells is in force");
        lab.world.server.intercept(NoFaults);
        lab.ended().await;
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

#[test]
fn a_release_is_deleted_without_a_lost_request_though_no_status_can_be_written() {
    let run = lab(async |lab| {
        cannot_tell_its_second_step(lab).await;
        lab.delete(&release_key());
        lab.until("taken away", |lab| lab.weight().is_none()).await;
        lab.until("gone", |lab| lab.release().is_null()).await;
    });
    properties::sound(&run);
}

/// A sweep saw version 2 given the pods for a promotion that the status did not tell of, and a quota's answer to that taken for
/// a step that cannot be.
#[test]
fn no_step_is_taken_while_no_status_can_be_written() {
    let run = lab(async |lab| {
        cannot_tell_its_second_step(lab).await;
        lab.pass(600).await;
        // One step was due before it was known.
        assert_eq!(lab.weight().as_deref(), Some("50"));
        lab.world.server.intercept(NoFaults);
        lab.ended().await;
    });
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

/// A sweep saw the new Deployment taken for the one that was kept, and made and removed without end.
#[test]
fn what_is_made_for_another_try_is_not_taken_for_what_was_kept() {
    let run = lab(async |lab| {
        lab.world.image_behaves("shop:v2", Scenario::Retried.behaviour());
        lab.start(Scenario::Retried);
        lab.until("kept", |lab| lab.status("phase") == "RolledBack").await;
        lab.world.image_behaves("shop:v2", Scenario::Good.behaviour());
        lab.pass(5).await;
        lab.world.server.intercept(SERVICES);
        lab.command("retry", "");
        lab.until("refused", |lab| lab.reason() == "Forbidden").await;
        let made = lab.world.server.get(&canary());
        let before = lab.requests();
        lab.pass(60).await;
        let uid = |object: &serde_json::Value| object["metadata"]["uid"].clone();
        let now = lab.world.server.get(&canary());
        assert_eq!(made.as_deref().map(uid), now.as_deref().map(uid));
        let asked = lab.requests() - before;
        assert!(asked <= 60, "{asked} requests in a minute");
        lab.world.server.intercept(NoFaults);
        lab.until("promoted", |lab| lab.status("phase") == "Promoted").await;
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

/// What is refused for a few seconds is not told as a missing right, and what stays refused is.
fn is_told_when_it_goes_on(refuse: &dyn Fn(&ApiServer)) {
    for in_passing in [true, false] {
        let run = lab(async |lab| {
            lab.start(Scenario::Good);
            lab.step("1/3").await;
            refuse(&lab.world.server);
            let refused = |lab: &Lab| lab.world.server.records().iter().any(|record| record.code == 403);
            lab.until("refused", refused).await;
            lab.pass(3).await;
            assert_ne!(lab.reason(), "Forbidden");
            if in_passing {
                lab.world.server.intercept(NoFaults);
                for _ in 0..30 {
                    lab.pass(1).await;
                    assert_ne!(lab.reason(), "Forbidden");
                }
            } else {
                lab.until("told", |lab| lab.reason() == "Forbidden").await;
                lab.world.server.intercept(NoFaults);
            }
            lab.ended().await;
        });
        properties::sound(&run);
        assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
    }
}

/// A soak test had a release told `Stalled` by an API server that had just started.
#[test]
fn a_write_that_is_refused_in_passing_is_not_told_and_one_that_stays_refused_is() {
    is_told_when_it_goes_on(&|server| server.intercept(INGRESSES));
}

/// Watches of endpoints end, and no role allows another.
struct Unwatchable;

impl Interceptor for Unwatchable {
    fn before(&self, call: &Call) -> Before {
        Forbidden(|call| call.verb == "watch" && call.resource.plural == "endpointslices").before(call)
    }

    fn event(&self, watch: &Call, version: &Version) -> EventFate {
        match is_operator(&watch.client) && version.key.resource.plural == "endpointslices" {
            true => EventFate::Cut,
            false => EventFate::Deliver,
        }
    }
}

/// A soak test had a release told `Stalled` by an API server that had just started.
#[test]
fn a_watch_that_is_refused_in_passing_is_not_told_and_one_that_stays_refused_is() {
    is_told_when_it_goes_on(&|server| server.intercept(Unwatchable));
}
