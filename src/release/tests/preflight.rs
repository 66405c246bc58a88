//! What keeps a release from starting, in the words that people read.

use super::world::*;
use crate::{
    api::Phase,
    release::{Kind, preflight},
    routing::IngressNginx,
};
use serde_json::json;

/// The findings as `Reason: message`.
fn findings(world: &World) -> Vec<String> {
    match preflight(&world.seen(), &IngressNginx::default()) {
        Ok(_) => Vec::new(),
        Err(findings) => findings
            .iter()
            .map(|f| format!("{}: {}", f.reason, f.message))
            .collect(),
    }
}

fn two_containers(world: World) -> World {
    world.stable(|d| {
        let containers = d["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
        containers.push(json!({"name": "proxy", "image": "proxy:1"}));
    })
}

/// What is wrong with each world.
fn mistakes() -> Vec<(&'static str, World)> {
    let long = "a-service-with-a-name-of-exactly-sixty-one-characters-and-more";
    vec![
        (
            "the Deployment does not exist",
            world().without(Kind::Deployment, "shop"),
        ),
        ("it has no pods", world().stable(|d| d["spec"]["replicas"] = json!(0))),
        ("it is paused", world().stable(|d| d["spec"]["paused"] = json!(true))),
        (
            "it recreates its pods",
            world().stable(|d| d["spec"]["strategy"] = json!({"type": "Recreate"})),
        ),
        (
            "the named container does not exist",
            two_containers(world()).spec(json!({"canary": {"container": "app"}})),
        ),
        ("several containers and none named", two_containers(world())),
        (
            "the named Service does not exist",
            world().spec(json!({"target": {"service": "web"}})),
        ),
        ("no Service selects the pods", world().without(Kind::Service, "shop")),
        (
            "the named Service selects other pods",
            world()
                .with(service("web", json!({"app": "web"})))
                .spec(json!({"target": {"service": "web"}})),
        ),
        (
            "the named Service selects nothing",
            world()
                .with(service("web", json!({})))
                .spec(json!({"target": {"service": "web"}})),
        ),
        (
            "Ingresses lead to two Services",
            world()
                .with(service("web", json!({"app": "shop"})))
                .with(ingress("web", "web")),
        ),
        (
            "no Ingress leads to the Service",
            world().without(Kind::Ingress, "shop-ingress"),
        ),
        (
            "no Ingress leads to the named Service",
            world()
                .spec(json!({"target": {"service": "shop"}}))
                .without(Kind::Ingress, "shop-ingress"),
        ),
        (
            "only a foreign canary leads to the Service",
            world().edit(Kind::Ingress, "shop-ingress", |i| {
                i["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/canary": "true"});
            }),
        ),
        (
            "the named Ingress does not exist",
            world().spec(json!({"target": {"ingresses": ["web"]}})),
        ),
        (
            "the named Ingress leads elsewhere",
            world()
                .with(ingress("web", "web"))
                .spec(json!({"target": {"ingresses": ["web"]}})),
        ),
        (
            "another Ingress leads to the Service too",
            world()
                .with(ingress("web", "shop"))
                .spec(json!({"target": {"ingresses": ["shop-ingress"]}})),
        ),
        (
            "the canary's Deployment name is taken",
            world().with(deployment("shop-v2", "other:1", 1)),
        ),
        (
            "the canary's Service name is taken",
            world().with(service("shop-v2", json!({"app": "other"}))),
        ),
        (
            "the canary's Ingress name is taken",
            world().with(ingress("shop-ingress-v2", "other")),
        ),
        (
            "the canary's Service name would be too long",
            world()
                .without(Kind::Service, "shop")
                .without(Kind::Ingress, "shop-ingress")
                .with(service(long, json!({"app": "shop"})))
                .with(ingress("shop-ingress", long)),
        ),
        ("another release was there first", {
            let mut world = world();
            world.rivals = vec!["checkout".to_owned()];
            world
        }),
    ]
}

#[test]
fn every_finding_names_the_object_and_the_remedy() {
    let told: String = mistakes()
        .iter()
        .map(|(what, world)| format!("{what}\n  {}\n", findings(world).join("\n  ")))
        .collect();
    insta::assert_snapshot!(told);
}

#[test]
fn every_mistake_is_exactly_one_finding_and_a_release_with_one_writes_nothing() {
    for (what, world) in mistakes() {
        assert_eq!(findings(&world).len(), 1, "{what}: {:?}", findings(&world));
        let decision = world.decide();
        assert_eq!(
            (decision.status.phase, decision.writes.len()),
            (Some(Phase::Stalled), 0),
            "{what}"
        );
        let passed = decision
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == "PreflightPassed")
            .unwrap();
        assert_eq!(passed.status, "False", "{what}");
    }
}

#[test]
fn what_is_found_only_when_the_objects_are_made_is_told_the_same_way() {
    let mut refused = world();
    refused.merge_refused =
        Some("spec.template.spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\"".to_owned());
    let any = json!([{"key": "app", "operator": "Exists"}]);
    let overlapping = world().stable(|d| d["spec"]["selector"] = json!({"matchExpressions": any}));
    let told: Vec<_> = [refused, overlapping]
        .iter()
        .map(|world| {
            let decision = world.decide();
            assert_eq!(decision.status.phase, Some(Phase::Stalled));
            format!("{}: {}", decision.notes[0].reason, decision.status.message.unwrap())
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_selector_that_cannot_be_escaped_leaves_no_object_behind() {
    let any = json!([{"key": "app", "operator": "Exists"}]);
    let world = world().stable(|d| d["spec"]["selector"] = json!({"matchExpressions": any}));
    assert_eq!(world.rounds(1).owned(), [""; 0]);
}

#[test]
fn several_findings_are_told_together() {
    let world = two_containers(world())
        .stable(|d| {
            d["spec"]["paused"] = json!(true);
            d["spec"]["strategy"] = json!({"type": "Recreate"});
        })
        .without(Kind::Service, "shop");
    let decision = world.decide();
    assert_eq!(decision.notes.len(), 1);
    insta::assert_snapshot!(decision.status.message.unwrap());
}

#[test]
fn what_is_in_order_is_not_found_wanting() {
    let named = json!({"target": {"service": "shop", "ingresses": ["shop-ingress"]}});
    for (what, world) in [
        ("the short form", world()),
        ("everything named", world().spec(named)),
        (
            "a second Service without an Ingress",
            world().with(service("metrics", json!({"app": "shop"}))),
        ),
        (
            "one of two containers named",
            two_containers(world()).spec(json!({"canary": {"container": "proxy"}})),
        ),
        (
            "a template for two containers",
            two_containers(world()).spec(json!({"canary": {"image": null, "template": {}}})),
        ),
        ("two Ingresses, both meant", world().with(ingress("web", "shop"))),
        ("an Ingress of somebody else", world().with(ingress("web", "web"))),
        ("what this release made already", world().begun()),
    ] {
        assert_eq!(findings(&world), [""; 0], "{what}");
    }
}
