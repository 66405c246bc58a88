//! Releases are judged by the requests that the simulated controllers count, as every release is unless it says otherwise.

use crate::{
    lab::{Lab, is_operator, lab, lab_of},
    properties,
    scenario::{Run, SETTLE, Scenario},
};
use canary_operator::{
    analysis::ScrapeError,
    rehearse::{
        actors::behaviour::Answers,
        json::text,
        nginx::Scrapes,
        server::{
            intercept::{After, Interceptor, Outcome},
            routes::Call,
        },
    },
};
use serde_json::json;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Version 2 answers a fifth of its requests with 500.
fn broken(lab: &Lab) {
    lab.world.image_answers("shop:v2", Answers::failing(0.2));
}

/// How many seconds version 2 had requests, until its first rollback.
fn exposed_for(run: &Run) -> i64 {
    let ingresses: Vec<_> = run.log.iter().filter(|v| properties::is_canary_ingress(v)).collect();
    let weight =
        |version: &canary_operator::rehearse::server::store::Version| properties::weight(&version.object).fraction();
    let raised = ingresses.iter().find(|version| weight(version) > 0.0).unwrap();
    let last = ingresses.last().unwrap();
    last.at.duration_since(raised.at).as_secs()
}

#[test]
fn a_version_2_that_fails_a_fifth_of_its_requests_is_rolled_back_at_its_first_step() {
    for seed in 1..=5 {
        let run = lab_of(seed, async |lab| {
            broken(lab);
            lab.start(Scenario::Good);
            lab.ended().await;
            lab.pass(60).await;
            assert_eq!(lab.status("rollout/reason"), "ErrorRegression");
        });
        properties::sound(&run);
        assert_eq!(
            (run.outcome().as_deref(), run.stable_image().as_str()),
            (Some("RolledBack"), "shop:v1")
        );
        let told = run.message();
        assert!(told.contains("to version 2 failed, 0 of "), "{told}");
        // Five failures are proof enough (the table of how many it takes), at one in a second.
        assert!(exposed_for(&run) <= 30, "seed {seed}: {} s: {told}", exposed_for(&run));
        assert!(!run.weights().contains(&"25".to_owned()), "{:?}", run.weights());
    }
}

#[test]
fn a_version_2_that_fails_as_often_as_version_1_is_promoted() {
    for seed in 1..=5 {
        let run = lab_of(seed, async |lab| {
            broken(lab);
            lab.world.image_answers("shop:v1", Answers::failing(0.2));
            lab.start(Scenario::Good);
            lab.ended().await;
            lab.pass(60).await;
        });
        properties::sound(&run);
        assert_eq!(
            run.outcome().as_deref(),
            Some("Promoted"),
            "seed {seed}: {}",
            run.message()
        );
    }
}

#[test]
fn a_version_2_that_is_slow_is_rolled_back_where_that_is_asked_for_and_promoted_where_not() {
    for asked in [true, false] {
        let run = lab(async |lab| {
            lab.world
                .image_answers("shop:v2", Answers::slow(Duration::from_millis(300)));
            lab.start_with(|release| {
                if asked {
                    release["spec"]["analysis"] = json!({"checks": [{"name": "speed", "latencyRegression": {}}]});
                }
            });
            lab.ended().await;
            lab.pass(60).await;
        });
        properties::sound(&run);
        let expected = if asked { "RolledBack" } else { "Promoted" };
        assert_eq!(run.outcome().as_deref(), Some(expected), "{}", run.message());
    }
}

#[test]
fn without_requests_the_weight_stays_and_goes_on_when_they_come() {
    let run = lab(async |lab| {
        lab.silent();
        lab.start(Scenario::Good);
        lab.until("waits for requests", |lab| lab.reason() == "NoData").await;
        let message = lab.status("message");
        assert!(message.contains("10%"), "{message}");
        lab.pass(1800).await;
        assert_eq!((lab.reason().as_str(), lab.weight().as_deref()), ("NoData", Some("10")));
        lab.busy();
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

#[test]
fn metrics_that_cannot_be_had_hold_the_weight_and_do_nothing_else() {
    for scrapes in [
        Scrapes::Fail(ScrapeError::Connect("Connection refused".to_owned())),
        Scrapes::Hang,
        Scrapes::Say("<html>\n".to_owned()),
        Scrapes::Say("go_goroutines 96\n".to_owned()),
    ] {
        let run = lab(async |lab| {
            lab.start(Scenario::Good);
            lab.step("2/3").await;
            lab.world.nginx.scrapes(scrapes.clone());
            lab.until("held", |lab| lab.reason() == "AnalysisError").await;
            for _ in 0..6 {
                lab.pass(300).await;
                assert_eq!(
                    (lab.weight().as_deref(), lab.status("rollout/stage").as_str()),
                    (Some("25"), "Stepping")
                );
            }
            let release = lab.release();
            let condition = canary_operator::rehearse::json::condition(&release, "Analysed").unwrap();
            assert_eq!(text(condition, "/status"), "Unknown", "{condition}");
            assert!(text(condition, "/message").contains("ingress-nginx"), "{condition}");
            lab.world.nginx.scrapes(Scrapes::Answer);
            lab.ended().await;
            lab.pass(60).await;
        });
        properties::sound(&run);
        assert_eq!(
            run.outcome().as_deref(),
            Some("Promoted"),
            "{scrapes:?}: {}",
            run.message()
        );
    }
}

/// Plays a good and a bad version 2 with something that happens so many seconds after the first weight was written; what it
/// is must change no end.
fn changes_no_verdict(seconds: &[u64], happens: impl AsyncFn(&Lab)) {
    for seconds in seconds {
        for bad in [false, true] {
            let run = lab(async |lab| {
                if bad {
                    broken(lab);
                }
                lab.start(Scenario::Good);
                lab.until("at its first weight", |lab| lab.weight().as_deref() == Some("10"))
                    .await;
                lab.pass(*seconds).await;
                happens(lab).await;
                lab.ended().await;
                lab.pass(60).await;
            });
            properties::sound(&run);
            let expected = if bad {
                ("RolledBack", "ErrorRegression")
            } else {
                ("Promoted", "")
            };
            let release = run.release.as_ref().unwrap();
            let end = (
                text(release, "/status/rollout/outcome"),
                text(release, "/status/rollout/reason"),
            );
            assert_eq!(end.0, expected.0, "{seconds} s: {}", run.message());
            assert!(!bad || end.1 == expected.1, "{seconds} s: {}", run.message());
            let breaches = run.events("CheckBreached");
            assert!(bad || breaches.is_empty(), "{seconds} s: {breaches:?}");
        }
    }
}

#[test]
fn a_controller_that_starts_over_in_the_midst_of_a_window_changes_no_verdict() {
    let settle = SETTLE.as_secs();
    changes_no_verdict(&[1, settle, settle + 1, settle + 3, settle + 12], async |lab| {
        lab.world.nginx.start_over()
    });
}

#[test]
fn an_operator_killed_in_the_midst_of_a_window_changes_no_verdict() {
    let settle = SETTLE.as_secs();
    changes_no_verdict(&[1, settle, settle + 1, settle + 3, settle + 12], async |lab| {
        lab.operator(false);
        lab.pass(5).await;
        lab.operator(true);
    });
}

#[test]
fn an_operator_that_is_killed_again_and_again_still_finds_a_bad_version_2() {
    let run = lab(async |lab| {
        broken(lab);
        lab.start(Scenario::Good);
        lab.until("at its first weight", |lab| lab.weight().as_deref() == Some("10"))
            .await;
        for _ in 0..60 {
            if lab.status("rollout/stage") != "Stepping" {
                break;
            }
            lab.pass(7).await;
            lab.operator(false);
            lab.pass(1).await;
            lab.operator(true);
        }
        assert_eq!(lab.weight(), None, "{}", lab.status("message"));
        lab.ended().await;
    });
    assert_eq!(run.outcome().as_deref(), Some("RolledBack"), "{}", run.message());
}

/// Dies once the first deletion of the canary Ingress is done.
#[derive(Default)]
struct DiesTakingItAway(AtomicBool);

impl Interceptor for DiesTakingItAway {
    fn after(&self, call: &Call, _: Outcome<'_>) -> After {
        let takes = is_operator(&call.client) && call.verb == "delete" && call.resource.plural == "ingresses";
        if takes && !self.0.swap(true, Ordering::SeqCst) {
            return After::Crash;
        }
        After::Pass
    }
}

/// Found on a real cluster (`tests/alone/every_write.rs` of the end-to-end tests). The verdict is in the status only after the
/// write that it led to, so who starts anew finds an Ingress missing that the status wants there.
#[test]
fn an_operator_that_dies_when_it_has_taken_a_bad_version_2_away_does_not_bring_it_back() {
    let run = lab(async |lab| {
        broken(lab);
        lab.world.server.intercept(DiesTakingItAway::default());
        lab.start(Scenario::Good);
        lab.ended().await;
        lab.pass(60).await;
    });
    properties::sound(&run);
    properties::stays_away(&run);
    assert_eq!(run.outcome().as_deref(), Some("RolledBack"), "{}", run.message());
}

#[test]
fn what_nginx_itself_refuses_says_nothing_about_version_2() {
    let run = lab(async |lab| {
        // Of fifty requests a second ten may pass, after the first minutes.
        lab.edit(
            &canary_operator::rehearse::Key::ingress(crate::scenario::NAMESPACE, "shop-ingress"),
            |ingress| {
                ingress["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/limit-rps": "10"});
            },
        );
        lab.pass(60).await;
        lab.start(Scenario::Good);
        lab.ended().await;
        lab.pass(60).await;
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}
