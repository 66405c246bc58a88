//! Users, other controllers and the cluster do what they should not, at the worst moment.

use crate::{
    lab::{canary, canary_ingress, lab, lab_with, stable},
    properties,
    scenario::{NAMESPACE, Scenario, release_key},
};
use canary_operator::{
    rehearse::{
        Key,
        actors::behaviour::Behaviour,
        json::text,
        server::{
            error::{Cause, invalid},
            intercept::{After, Before, EventFate, Interceptor, Outcome},
            routes::Call,
            store::Version,
        },
    },
    release::decide,
};
use kube::ResourceExt;
use serde_json::json;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

#[test]
fn a_stable_deployment_that_never_rolls_out_gets_its_template_back_and_no_request_is_lost() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.until("replaced", |lab| {
            lab.world
                .server
                .get(&stable())
                .is_some_and(|d| text(&d, "/spec/template/spec/containers/0/image") == "shop:v2")
        })
        .await;
        lab.world.kubelet(|kubelet| {
            kubelet.behaviours.rule(|pod| {
                (text(pod, "/metadata/labels/app") == "shop" && text(pod, "/spec/containers/0/image") == "shop:v2")
                    .then_some(Behaviour::NeverReady)
            });
        });
        lab.until("taken back", |lab| lab.status("phase") == "RollingBack")
            .await;
        lab.ended().await;
        let message = lab.status("message");
        assert!(message.contains("did not roll out version 2 within 5m"), "{message}");
        assert_eq!(lab.status("rollout/reason"), "PromotionFailed");
        let stable = lab.world.server.get(&stable()).unwrap();
        assert_eq!(text(&stable, "/spec/template/spec/containers/0/image"), "shop:v1");
        let before = lab.requests();
        lab.pass(3600).await;
        assert_eq!(lab.requests() - before, 0);
    });
    assert_eq!(run.failed, []);
}

#[test]
fn a_schedule_that_gets_shorter_midway_is_not_taken_for_its_end() {
    let run = lab(async |lab| {
        lab.start_with(|release| {
            let step = |weight: u32| json!({"weight": weight, "hold": "20s"});
            release["spec"]["steps"] = json!([step(5), step(10), step(25)]);
        });
        lab.step("3/3").await;
        lab.edit_release(|release| release["spec"]["steps"] = json!([{"weight": 50, "hold": "20s"}]));
        lab.ended().await;
    });
    assert_eq!(run.weights(), ["0", "5", "10", "25", "50", "100"]);
    let at = |weight: &str| {
        let mut log = run.log.iter().filter(|v| properties::is_canary_ingress(v));
        log.find(|v| properties::weight(&v.object).to_string() == weight)
            .unwrap()
            .at
    };
    assert!(
        at("100").duration_since(at("50")).as_secs() >= 26,
        "the new step's hold is kept"
    );
}

#[test]
fn a_step_noted_by_somebody_else_on_the_canary_ingress_promotes_nothing() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("1/3").await;
        lab.edit(&canary_ingress(), |ingress| {
            ingress["metadata"]["annotations"]["canary-operator.dev/step"] = json!("99");
        });
        lab.pass(2).await;
        assert_eq!(
            (lab.weight().as_deref(), lab.status("step").as_str()),
            (Some("10"), "1/3")
        );
    });
}

#[test]
fn a_version_that_is_taken_back_and_asked_for_again_is_released() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.edit_release(|release| release["spec"]["canary"]["image"] = json!("shop:v3"));
        lab.until("superseding", |lab| lab.status("phase") == "RollingBack")
            .await;
        lab.edit_release(|release| release["spec"]["canary"]["image"] = json!("shop:v2"));
        lab.until("promoted", |lab| lab.status("phase") == "Promoted").await;
    });
    assert_eq!(run.stable_image(), "shop:v2");
    assert_eq!(run.history(), ["Promoted", "Superseded"]);
}

#[test]
fn a_canary_ingress_whose_deletion_somebody_holds_up_is_waited_for_quietly() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.edit(&canary_ingress(), |ingress| {
            ingress["metadata"]["finalizers"] = json!(["example.com/dns"])
        });
        lab.pass(1).await;
        lab.edit_release(|release| release["spec"]["canary"]["image"] = json!("shop:v3"));
        lab.until("superseding", |lab| lab.status("phase") == "RollingBack")
            .await;
        lab.pass(10).await;
        let before = lab.requests();
        lab.pass(600).await;
        assert!(lab.requests() - before <= 2, "{} requests", lab.requests() - before);
        lab.edit(&canary_ingress(), |ingress| {
            ingress["metadata"]["finalizers"] = json!([])
        });
        if lab.world.server.get(&canary_ingress()).is_some() {
            lab.delete(&canary_ingress());
        }
        lab.until("promoted", |lab| lab.status("phase") == "Promoted").await;
    });
}

#[test]
fn a_release_deleted_while_the_operator_was_away_still_loses_its_traffic_before_its_pods() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("3/3").await;
        lab.operator(false);
        lab.delete(&release_key());
        lab.pass(600).await;
        lab.operator(true);
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
}

#[test]
fn an_operator_away_for_longer_than_the_deadline_goes_on_as_if_nothing_had_happened() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("3/3").await;
        lab.operator(false);
        lab.pass(900).await;
        lab.operator(true);
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

#[test]
fn a_canary_with_a_share_of_the_pods_survives_an_absence_before_it_grows() {
    let run = lab(async |lab| {
        lab.edit(&stable(), |d| d["spec"]["replicas"] = json!(4));
        lab.pass(30).await;
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.operator(false);
        lab.pass(900).await;
        lab.operator(true);
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

/// Late or lost events of one resource.
struct Events {
    resource: &'static str,
    name: &'static str,
    fate: EventFate,
}

impl Interceptor for Events {
    fn event(&self, watch: &Call, version: &Version) -> EventFate {
        if &*watch.client == "operator" && version.key.resource.plural == self.resource && version.key.name == self.name
        {
            return self.fate;
        }
        EventFate::Deliver
    }
}

#[test]
fn a_watch_that_lags_a_minute_behind_costs_neither_requests_nor_pods_under_traffic() {
    let run = lab(async |lab| {
        lab.world.server.intercept(Events {
            resource: "ingresses",
            name: "shop-ingress-v2",
            fate: EventFate::Delay(Duration::from_secs(60)),
        });
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        let requests = lab.requests();
        assert!(requests < 30, "{requests} requests");
        lab.delete(&release_key());
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
}

#[test]
fn a_foreign_ingress_with_the_canarys_name_holds_the_release_and_is_told() {
    lab(async |lab| {
        lab.world.image_behaves(
            "shop:v2",
            Behaviour::Healthy {
                startup: Duration::from_secs(20),
            },
        );
        lab.start(Scenario::Good);
        lab.pass(10).await;
        let mut foreign = crate::scenario::ingress();
        foreign["metadata"]["name"] = json!("shop-ingress-v2");
        lab.world.apply(foreign).unwrap();
        lab.pass(40).await;
        assert!(
            lab.status("message").contains("Ingress shop-ingress-v2"),
            "{}",
            lab.status("message")
        );
        assert!(lab.requests() < 30, "{} requests", lab.requests());
        lab.ended().await;
        assert_eq!(lab.status("rollout/outcome"), "RolledBack");
        assert!(
            lab.world.server.get(&canary_ingress()).is_some(),
            "what is not ours stays"
        );
    });
}

#[test]
fn a_canary_ingress_deleted_before_it_was_seen_stays_away() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        lab.world.server.intercept(Events {
            resource: "ingresses",
            name: "shop-ingress-v2",
            fate: EventFate::Delay(Duration::from_secs(1)),
        });
        lab.until("made", |lab| lab.weight().is_some()).await;
        lab.delete(&canary_ingress());
        lab.pass(1).await;
        lab.world
            .server
            .intercept(canary_operator::rehearse::server::intercept::NoFaults);
        lab.pass(120).await;
        assert!(lab.requests() < 50, "{} requests", lab.requests());
        lab.ended().await;
        assert_eq!(lab.status("rollout/outcome"), "RolledBack");
        assert_eq!(lab.status("rollout/reason"), "CanaryIngressGone");
    });
}

#[test]
fn a_canary_ingress_whose_deletion_no_watch_ever_shows_is_found_gone_at_the_next_step() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        // Requests would tell.
        lab.edit_release(|r| r["spec"]["analysis"] = json!({"checks": []}));
        lab.step("1/3").await;
        lab.quiet();
        lab.world.server.intercept(Events {
            resource: "ingresses",
            name: "shop-ingress-v2",
            fate: EventFate::Drop,
        });
        lab.delete(&canary_ingress());
        lab.ended().await;
        assert_eq!(lab.status("rollout/reason"), "CanaryIngressGone");
        assert!(lab.requests() < 50, "{} requests", lab.requests());
    });
}

#[test]
fn a_webhook_that_keeps_changing_the_canary_ingress_causes_no_storm() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("1/3").await;
        // Somebody's controller puts its annotation back whenever it is taken away.
        let key = canary_ingress();
        let annotate = |lab: &crate::lab::Lab| {
            if let Some(ingress) = lab.world.server.get(&key)
                && ingress
                    .pointer("/metadata/annotations/nginx.ingress.kubernetes.io~1ssl-redirect")
                    .is_none()
            {
                lab.edit(&key, |i| {
                    i["metadata"]["annotations"]["nginx.ingress.kubernetes.io/ssl-redirect"] = json!("true")
                });
            }
        };
        let before = lab.requests();
        for _ in 0..600 {
            annotate(lab);
            lab.world.pass(Duration::from_millis(100)).await;
        }
        assert!(
            lab.requests() - before < 60,
            "{} requests in a minute",
            lab.requests() - before
        );
    });
}

#[test]
fn two_releases_of_one_deployment_go_one_after_the_other() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        let mut second = Scenario::Good.release();
        second["metadata"]["name"] = json!("z-late");
        second["spec"]["canary"]["suffix"] = json!("-late");
        second["spec"]["canary"]["image"] = json!("shop:v3");
        lab.world.apply(second).unwrap();
        let late = Key::release(NAMESPACE, "z-late");
        let phase = |lab: &crate::lab::Lab| {
            lab.world
                .server
                .get(&late)
                .map(|r| text(&r, "/status/phase").to_owned())
                .unwrap_or_default()
        };
        lab.step("2/3").await;
        assert_eq!(
            phase(lab),
            "Stalled",
            "{:#}",
            lab.world.server.get(&late).unwrap_or_default()
        );
        lab.until("both", |lab| {
            lab.status("phase") == "Promoted" && phase(lab) == "Promoted"
        })
        .await;
    });
}

#[test]
fn a_release_made_anew_under_its_old_name_starts_from_the_beginning() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.delete(&release_key());
        lab.until("gone", |lab| lab.release().is_null()).await;
        lab.start(Scenario::Good);
        lab.ended().await;
        lab.pass(60).await;
    });
    assert_eq!(
        run.outcome().as_deref(),
        Some("Promoted"),
        "{}\n{}",
        run.message(),
        run.trace()
    );
    properties::sound(&run);
}

#[test]
fn an_object_that_cannot_be_read_and_one_that_makes_a_round_panic_keep_nobody_waiting() {
    let change = |mut settings: canary_operator::controller::Settings| {
        settings.decide = |seen, routing, settle, now| {
            assert_ne!(seen.release.name_any(), "bad", "a bug");
            decide(seen, routing, settle, now)
        };
        settings
    };
    let run = lab_with(change, async |lab| {
        // A second app, whose release panics.
        for mut manifest in [
            crate::scenario::deployment(),
            crate::scenario::service(),
            crate::scenario::ingress(),
            Scenario::Good.release(),
        ] {
            let text = manifest.to_string().replace("shop", "bad");
            manifest = serde_json::from_str(&text).unwrap();
            lab.world.apply(manifest).unwrap();
        }
        let mut unreadable = Scenario::Good.release();
        unreadable["metadata"]["name"] = json!("unreadable");
        lab.world.apply(unreadable).unwrap();
        lab.edit(&Key::release(NAMESPACE, "unreadable"), |r| {
            r["spec"]["canary"]["replicas"] = json!("many")
        });
        lab.start(Scenario::Good);
        lab.pass(120).await;
        lab.ended().await;
        let bad = lab.world.server.get(&Key::release(NAMESPACE, "bad")).unwrap();
        assert_eq!(text(&bad, "/status/phase"), "Stalled", "{bad:#}");
        assert!(text(&bad, "/status/message").contains("bug in the operator"), "{bad:#}");
        let unreadable = lab.world.server.get(&Key::release(NAMESPACE, "unreadable")).unwrap();
        assert_eq!(text(&unreadable, "/status/phase"), "Stalled");
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"));
    assert!(run.failed.is_empty());
}

#[test]
fn another_target_while_the_stable_deployment_is_replaced_waits_for_its_end() {
    let run = lab(async |lab| {
        let mut other = crate::scenario::deployment();
        other["metadata"]["name"] = json!("other");
        other["spec"]["selector"]["matchLabels"]["app"] = json!("other");
        other["spec"]["template"]["metadata"]["labels"]["app"] = json!("other");
        lab.world.apply(other).unwrap();
        lab.start(Scenario::Good);
        lab.until("finishing", |lab| lab.status("rollout/stage") == "Finishing")
            .await;
        lab.edit_release(|release| release["spec"]["target"]["deployment"] = json!("other"));
        lab.until("first ended", |lab| !lab.release()["status"]["history"].is_null())
            .await;
        lab.pass(60).await;
    });
    assert_eq!(run.history(), ["Promoted"], "{}", run.message());
    properties::sound(&run);
}

/// One kind of request answered by an error for good.
struct Refuse {
    verb: &'static str,
    resource: &'static str,
    code: u16,
    times: AtomicUsize,
}

impl Interceptor for Refuse {
    fn before(&self, call: &Call) -> Before {
        if &*call.client == "operator"
            && call.verb == self.verb
            && call.resource.plural == self.resource
            && self
                .times
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
        {
            return Before::Answer(canary_operator::rehearse::server::error::failure(
                self.code,
                "Forbidden",
                "refused by the test",
            ));
        }
        Before::Pass
    }

    fn after(&self, _: &Call, _: Outcome<'_>) -> After {
        After::Pass
    }
}

#[test]
fn a_watch_refused_for_a_moment_does_not_stall_the_release_for_good() {
    for code in [403, 410] {
        let run = lab(async |lab| {
            lab.start(Scenario::Good);
            lab.step("1/3").await;
            lab.world.server.intercept(CutOnce::new(Refuse {
                verb: "watch",
                resource: "ingresses",
                code,
                times: 3.into(),
            }));
            lab.edit(&Key::ingress(NAMESPACE, "shop-ingress"), |i| {
                i["metadata"]["annotations"] = json!({"a": "b"})
            });
            lab.until("promoted", |lab| lab.status("phase") == "Promoted").await;
        });
        assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{code}");
    }
}

struct CutOnce {
    then: Refuse,
    cut: AtomicUsize,
}

impl CutOnce {
    fn new(then: Refuse) -> Self {
        Self { then, cut: 1.into() }
    }
}

impl Interceptor for CutOnce {
    fn before(&self, call: &Call) -> Before {
        self.then.before(call)
    }

    fn event(&self, watch: &Call, version: &Version) -> EventFate {
        if &*watch.client == "operator"
            && version.key.resource.plural == "ingresses"
            && self
                .cut
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
        {
            return EventFate::Cut;
        }
        EventFate::Deliver
    }
}

#[test]
fn a_canary_deployment_that_somebody_prunes_again_and_again_is_given_up() {
    lab(async |lab| {
        lab.world.image_behaves(
            "shop:v2",
            Behaviour::Healthy {
                startup: Duration::from_secs(20),
            },
        );
        lab.start(Scenario::Good);
        for _ in 0..400 {
            lab.pass(1).await;
            if lab.world.server.get(&canary()).is_some() {
                lab.delete(&canary());
            }
        }
        lab.ended().await;
        assert_eq!(lab.status("rollout/outcome"), "RolledBack");
    });
}

#[test]
fn testers_only_and_then_everything_loses_no_request() {
    let run = lab(async |lab| {
        lab.start_with(|release| release["spec"]["steps"] = json!([{"weight": 0, "hold": "20s"}]));
        lab.ended().await;
        lab.pass(60).await;
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"));
    properties::sound(&run);
}

#[test]
fn a_stable_ingress_that_no_longer_leads_to_the_service_ends_the_release_with_a_sentence() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.edit(&Key::ingress(NAMESPACE, "shop-ingress"), |i| {
            i["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = json!("elsewhere");
        });
        lab.pass(30).await;
        assert_eq!(lab.status("phase"), "Holding");
        assert!(
            lab.status("message").contains("Ingress shop-ingress"),
            "{}",
            lab.status("message")
        );
        lab.ended().await;
        assert_eq!(lab.status("rollout/outcome"), "RolledBack");
    });
}

#[test]
fn a_refused_template_in_a_busy_namespace_is_not_asked_about_at_every_event() {
    lab(async |lab| {
        lab.world.server.admit(|key, new, _| {
            if key.name == "shop" && text(new, "/spec/template/spec/containers/0/image") == "shop:v2" {
                let cause = Cause::value("spec.template", &json!("shop:v2"), "no such thing");
                return Err(invalid(key, &[cause]));
            }
            Ok(())
        });
        lab.start(Scenario::Good);
        lab.pass(10).await;
        assert_eq!(lab.status("phase"), "Stalled", "{}", lab.status("message"));
        let before = lab.requests();
        for number in 0..100 {
            lab.edit(&Key::service(NAMESPACE, "shop-service"), |s| {
                s["metadata"]["annotations"] = json!({"n": number.to_string()})
            });
            lab.pass(3).await;
        }
        assert!(
            lab.requests() - before < 20,
            "{} requests in five minutes",
            lab.requests() - before
        );
    });
}

#[test]
fn a_stable_deployment_that_somebody_changes_midway_ends_the_release() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.edit(&stable(), |d| {
            d["spec"]["template"]["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/restartedAt": "now"});
        });
        lab.ended().await;
        assert_eq!(lab.status("rollout/reason"), "StableChanged");
        assert!(
            lab.status("message").contains("Deployment shop"),
            "{}",
            lab.status("message")
        );
    });
    assert_eq!(
        (run.outcome().as_deref(), run.stable_image().as_str()),
        (Some("RolledBack"), "shop:v1")
    );
}

#[test]
fn pods_that_are_not_ready_hold_the_weight_and_the_interrupted_step_starts_over() {
    for (app, reason) in [("shop-v2", "CanaryUnavailable"), ("shop", "StableUnavailable")] {
        lab(async |lab| {
            lab.start(Scenario::Good);
            lab.step("1/3").await;
            lab.pass(15).await;
            let behave = |behaviour: Behaviour| {
                lab.world.kubelet(|kubelet| {
                    kubelet
                        .behaviours
                        .rule(move |pod| (text(pod, "/metadata/labels/app") == app).then(|| behaviour.clone()));
                });
            };
            behave(Behaviour::NeverReady);
            lab.until("held", |lab| lab.status("phase") == "Holding").await;
            assert_eq!(condition_reason(lab, "Ready"), reason);
            assert!(
                lab.status("message").contains("has no ready endpoint"),
                "{}",
                lab.status("message")
            );
            lab.pass(60).await;
            assert_eq!(lab.weight().as_deref(), Some("10"), "{app}: the weight stays");
            behave(Behaviour::healthy());
            lab.until("goes on", |lab| lab.status("phase") == "Progressing").await;
            lab.pass(15).await;
            assert_eq!(lab.weight().as_deref(), Some("10"), "{app}: the hold starts over");
            lab.ended().await;
            assert_eq!(lab.status("rollout/outcome"), "Promoted");
        });
    }
}

fn condition_reason(lab: &crate::lab::Lab, kind: &str) -> String {
    let release = lab.release();
    let found = canary_operator::rehearse::json::condition(&release, kind);
    found
        .map(|condition| text(condition, "/reason").to_owned())
        .unwrap_or_default()
}

#[test]
fn pods_that_are_never_ready_again_are_rolled_back_at_the_deadline() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.world.image_behaves("shop:v2", Behaviour::NeverReady);
        lab.ended().await;
        assert_eq!(lab.status("rollout/reason"), "CanaryUnavailable");
    });
    assert_eq!(run.outcome().as_deref(), Some("RolledBack"));
    assert!(run.failed.is_empty());
}

#[test]
fn a_canary_ingress_deleted_together_with_the_release_is_given_the_settle_time_too() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        lab.delete(&canary_ingress());
        lab.delete(&release_key());
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
}

#[test]
fn conflicts_without_end_are_met_with_patience() {
    lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("1/3").await;
        lab.world.server.intercept(Refuse {
            verb: "patch",
            resource: "ingresses",
            code: 409,
            times: usize::MAX.into(),
        });
        let before = lab.requests();
        lab.pass(600).await;
        assert!(
            lab.requests() - before < 60,
            "{} requests in ten minutes",
            lab.requests() - before
        );
        lab.world
            .server
            .intercept(canary_operator::rehearse::server::intercept::NoFaults);
        lab.ended().await;
        assert_eq!(lab.status("rollout/outcome"), "Promoted");
    });
}

#[test]
fn a_watch_of_releases_that_lags_costs_no_request() {
    let run = lab(async |lab| {
        lab.world.server.intercept(Events {
            resource: "canaryreleases",
            name: "shop",
            fate: EventFate::Delay(Duration::from_secs(3)),
        });
        lab.start(Scenario::Good);
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
    let refused: Vec<_> = run.records.iter().filter(|r| r.code == 409).collect();
    assert!(refused.is_empty(), "{} conflicts", refused.len());
}

#[test]
fn an_api_server_that_cannot_be_reached_for_two_minutes_only_costs_time() {
    struct Unreachable;
    impl Interceptor for Unreachable {
        fn before(&self, call: &Call) -> Before {
            if &*call.client == "operator" {
                Before::Hang
            } else {
                Before::Pass
            }
        }
        fn event(&self, watch: &Call, _: &Version) -> EventFate {
            if &*watch.client == "operator" {
                EventFate::Cut
            } else {
                EventFate::Deliver
            }
        }
    }
    for step in ["1/3", "3/3"] {
        let run = lab(async |lab| {
            lab.start(Scenario::Good);
            lab.step(step).await;
            lab.world.server.intercept(Unreachable);
            let before = lab.requests();
            lab.pass(120).await;
            assert!(lab.requests() - before < 30, "{} requests", lab.requests() - before);
            lab.world
                .server
                .intercept(canary_operator::rehearse::server::intercept::NoFaults);
            lab.ended().await;
            lab.pass(60).await;
        });
        properties::sound(&run);
        assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
    }
}
