//! What keeps a release from starting although no watch shows it: told, nothing made, and seen to be mended.

use crate::{
    lab::{Lab, canary, canary_ingress, lab, stable},
    refusing::Forbidden,
    scenario::{NAMESPACE, Scenario},
};
use canary_operator::rehearse::{
    Key,
    json::{items, text},
    server::error,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

fn condition(lab: &Lab, kind: &str) -> [String; 3] {
    let release = lab.release();
    let conditions = items(&release, "/status/conditions");
    let found = conditions.iter().find(|c| text(c, "/type") == kind).unwrap();
    ["status", "reason", "message"].map(|field| text(found, &format!("/{field}")).to_owned())
}

fn events(lab: &Lab) -> BTreeMap<String, usize> {
    let resource = canary_operator::rehearse::Resource::new("events.k8s.io", "events");
    let mut counts = BTreeMap::new();
    for event in lab.world.server.list(&resource, NAMESPACE) {
        *counts.entry(text(&event, "/reason").to_owned()).or_insert(0) += 1;
    }
    counts
}

/// Stalled for this reason, for an hour, at a handful of requests a minute, and nothing made.
async fn stalls(lab: &Lab, reason: &str) {
    lab.until("stalled", |lab| lab.status("phase") == "Stalled").await;
    assert_eq!(condition(lab, "PreflightPassed")[..2], ["False", reason]);
    let before = lab.requests();
    lab.pass(3600).await;
    assert!(
        lab.requests() - before <= 3 * 60,
        "{} requests an hour",
        lab.requests() - before
    );
    assert_eq!(lab.status("phase"), "Stalled");
    assert_eq!(events(lab), BTreeMap::from([(reason.to_owned(), 1)]));
    let made = [canary(), canary_ingress(), Key::service(NAMESPACE, "shop-service-v2")];
    assert!(made.iter().all(|key| lab.world.server.get(key).is_none()));
    assert_eq!(items(&lab.release(), "/metadata/finalizers").len(), 0);
}

/// Goes on within about a minute of being mended, to its end.
async fn goes_on(lab: &Lab) {
    lab.pass(70).await;
    assert_ne!(lab.status("phase"), "Stalled", "{}", lab.status("message"));
    lab.ended().await;
    assert_eq!(lab.status("rollout/outcome"), "Promoted");
}

#[test]
fn a_canary_ingress_that_would_be_refused_stalls_the_release_before_anything_is_made() {
    let run = lab(async |lab| {
        let friday = Arc::new(AtomicBool::new(true));
        let refuses = friday.clone();
        lab.world.server.admit(move |key, _, _| {
            let refused = *key == canary_ingress() && refuses.load(Ordering::SeqCst);
            let why = "admission webhook \"policy.example\" denied the request: no canaries on Fridays";
            if refused { Err(error::bad_request(why)) } else { Ok(()) }
        });
        lab.start(Scenario::Good);
        stalls(lab, "IngressRefused").await;
        let message = lab.status("message");
        assert!(
            message.contains("shop-ingress-v2") && message.contains("no canaries on Fridays"),
            "{message}"
        );
        friday.store(false, Ordering::SeqCst);
        goes_on(lab).await;
    });
    assert_eq!(run.weights(), ["0", "10", "25", "50", "100"]);
}

#[test]
fn an_ingress_class_that_does_not_exist_stalls_the_release_until_it_does() {
    lab(async |lab| {
        let class = Key::new("networking.k8s.io", "ingressclasses", "", "nginx");
        let nginx = lab.world.server.get(&class).unwrap();
        lab.delete(&class);
        lab.start(Scenario::Good);
        stalls(lab, "ClassNotServed").await;
        let mut again = (*nginx).clone();
        again["metadata"] = json!({"name": "nginx"});
        lab.world.apply(again).unwrap();
        goes_on(lab).await;
    });
}

fn autoscaler(min: i32) -> Value {
    json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "scaler"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"}, "minReplicas": min, "maxReplicas": 9}})
}

#[test]
fn an_autoscaler_that_may_take_version_1_away_stalls_the_release_and_one_that_may_not_is_warned_of() {
    lab(async |lab| {
        lab.world.apply(autoscaler(0)).unwrap();
        lab.start(Scenario::Good);
        stalls(lab, "TargetScalesToZero").await;
        lab.world.apply(autoscaler(2)).unwrap();
        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "guard"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "shop"}}}});
        lab.world.apply(budget).unwrap();
        lab.step("1/3").await;
        let [status, reason, message] = condition(lab, "PreflightPassed");
        assert_eq!([status.as_str(), reason.as_str()], ["True", "FitsWithWarnings"]);
        assert!(message.contains("scaler") && message.contains("guard"), "{message}");
        lab.ended().await;
        assert_eq!(condition(lab, "PreflightPassed")[2], message, "it stays to the end");
        // The other one is of the plan: it is too short to find much.
        assert_eq!(events(lab)["PreflightWarning"], 2);
    });
}

#[test]
fn an_operator_without_a_cluster_role_warns_that_it_could_not_check_the_class() {
    lab(async |lab| {
        lab.world
            .server
            .intercept(Forbidden(|call| call.resource.plural == "ingressclasses"));
        lab.start(Scenario::Good);
        lab.ended().await;
        assert_eq!(lab.status("rollout/outcome"), "Promoted");
        let message = &condition(lab, "PreflightPassed")[2];
        assert!(message.contains("IngressClass nginx"), "{message}");
    });
}

#[test]
fn releases_of_two_deployments_behind_one_service_go_one_after_the_other() {
    lab(async |lab| {
        // Both Deployments' pods carry what the Service selects by.
        let fronted = |name: &str| {
            let text = crate::scenario::deployment().to_string().replace("shop", name);
            let mut deployment: Value = serde_json::from_str(&text).unwrap();
            deployment["spec"]["template"]["metadata"]["labels"]["tier"] = json!("front");
            lab.world.apply(deployment).unwrap();
        };
        fronted("shop");
        fronted("blog");
        lab.edit(&Key::service(NAMESPACE, "shop-service"), |s| {
            s["spec"]["selector"] = json!({"tier": "front"})
        });
        lab.pass(30).await;
        lab.start(Scenario::Good);
        lab.step("1/3").await;
        let mut second = Scenario::Good.release();
        second["metadata"]["name"] = json!("blog");
        second["spec"]["target"]["deployment"] = json!("blog");
        second["spec"]["canary"] = json!({"image": "blog:v2", "suffix": "-next"});
        lab.world.apply(second).unwrap();
        let status = |lab: &Lab, field: &str| {
            let release = lab.world.server.get(&Key::release(NAMESPACE, "blog")).unwrap();
            text(&release, &format!("/status/{field}")).to_owned()
        };
        lab.step("2/3").await;
        assert_eq!(status(lab, "phase"), "Stalled");
        assert!(status(lab, "message").contains("CanaryRelease shop splits the traffic of Service shop-service"));
        lab.until("both", |lab| {
            lab.status("phase") == "Promoted" && status(lab, "phase") == "Promoted"
        })
        .await;
        assert_eq!(
            text(
                &lab.world.server.get(&stable()).unwrap(),
                "/spec/template/spec/containers/0/image"
            ),
            "shop:v2"
        );
    });
}
