//! What keeps a release from starting, in the words that people read.

use super::world::*;
use crate::{
    api::Phase,
    observe::{Autoscaler, Budget, Class},
    release::{Kind, Level, preflight, questions},
    routing::IngressNginx,
};
use serde_json::{Value, json};
use std::time::Duration;

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

/// The warnings of a release that can start.
fn warnings(world: &World) -> Vec<String> {
    preflight(&world.seen(), &IngressNginx::default()).unwrap().warnings
}

fn annotated(name: &str, value: &str) -> Value {
    json!({format!("nginx.ingress.kubernetes.io/{name}"): value})
}

/// Somebody else's Ingress on the host of `shop-ingress`.
fn other_on_the_same_host(name: &str, annotations: Value) -> Value {
    let mut ingress = ingress(name, "other");
    ingress["metadata"]["annotations"] = annotations;
    ingress["spec"]["rules"][0]["host"] = json!("shop-ingress.example");
    ingress
}

fn autoscaler(deployment: &str, min: i32) -> Autoscaler {
    Autoscaler {
        name: "scaler".to_owned(),
        deployment: deployment.to_owned(),
        min,
        max: 10,
    }
}

fn budget(name: &str, selector: Value) -> Budget {
    Budget {
        name: name.to_owned(),
        selector: serde_json::from_value(selector).unwrap(),
    }
}

fn rule(world: World, change: impl FnOnce(&mut Value)) -> World {
    world.edit(Kind::Ingress, "shop-ingress", |i| change(&mut i["spec"]["rules"][0]))
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
                .with(ingress("shop-ingress", long))
                .ready(long, 4),
        ),
        ("another release was there first", {
            let mut world = world();
            world.rivals = vec!["checkout".to_owned()];
            world
        }),
        ("another release splits the Service's traffic", {
            let mut world = world();
            world.busy.insert("shop".to_owned(), "checkout".to_owned());
            world
        }),
        ("version 1 has no ready endpoint", world().stable_ready(0)),
        (
            "somebody else's canary is on the same path",
            world().with(other_on_the_same_host("theirs", annotated("canary", "true"))),
        ),
        (
            "somebody else's canary takes what no host does",
            rule(world(), |rule| drop(rule.as_object_mut().unwrap().remove("host"))).with({
                let mut theirs = ingress("theirs", "other");
                theirs["metadata"]["annotations"] = annotated("canary", "1");
                theirs["spec"] = json!({"defaultBackend": {"service": {"name": "other", "port": {"number": 80}}}});
                theirs
            }),
        ),
        (
            "somebody's canary is none to nginx",
            world().with(other_on_the_same_host("theirs", annotated("canary", "yes"))),
        ),
        (
            "an Ingress leads to the canary's Service",
            world().with(ingress("theirs", "shop-v2")),
        ),
        (
            "version 1 is a default backend",
            world().edit(Kind::Ingress, "shop-ingress", |i| {
                i["spec"]["defaultBackend"] = json!({"service": {"name": "shop", "port": {"number": 80}}});
            }),
        ),
        (
            "the IngressClass does not exist",
            world().survey(|s| drop(s.classes.insert("nginx".to_owned(), Class::Missing))),
        ),
        (
            "the IngressClass is another controller's",
            world().survey(|s| {
                drop(
                    s.classes
                        .insert("nginx".to_owned(), Class::Of("haproxy.org/ingress".to_owned())),
                )
            }),
        ),
        (
            "the class of the annotation is not served",
            world().edit(Kind::Ingress, "shop-ingress", |i| {
                i["spec"].as_object_mut().unwrap().remove("ingressClassName");
                i["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "internal"});
            }),
        ),
        (
            "the Ingress has no class",
            world().edit(Kind::Ingress, "shop-ingress", |i| {
                i["spec"].as_object_mut().unwrap().remove("ingressClassName");
            }),
        ),
        (
            "an autoscaler counts the canary's pods",
            world().survey(|s| s.autoscalers.push(autoscaler("shop-v2", 1))),
        ),
        (
            "an autoscaler may take version 1 away",
            world().survey(|s| s.autoscalers.push(autoscaler("shop", 0))),
        ),
        (
            "the canary Ingress would be refused",
            world().survey(|s| {
                let why = "admission webhook \"policy.example\" denied the request: no canaries on Fridays";
                s.refused.push(("shop-ingress-v2".to_owned(), why.to_owned()));
            }),
        ),
    ]
}

/// What somebody should know of each world.
fn cautions() -> Vec<(&'static str, World)> {
    let annotate = |annotations: Value| {
        world().edit(Kind::Ingress, "shop-ingress", |i| {
            i["metadata"]["annotations"] = annotations
        })
    };
    vec![
        (
            "another Ingress shares the Service, and may",
            world()
                .with(ingress("web", "shop"))
                .spec(json!({"target": {"ingresses": ["shop-ingress"]}, "traffic": {"allowSharedService": true}})),
        ),
        ("sessions stick", annotate(annotated("affinity", "cookie"))),
        (
            "requests are limited",
            annotate(
                json!({"nginx.ingress.kubernetes.io/limit-rpm": "175", "nginx.ingress.kubernetes.io/limit-connections": "5"}),
            ),
        ),
        (
            "the host is a wildcard",
            rule(world(), |rule| rule["host"] = json!("*.example.com")),
        ),
        (
            "there is no host",
            rule(world().spec(json!({"traffic": {"allowSharedService": true}})), |rule| {
                drop(rule.as_object_mut().unwrap().remove("host"))
            })
            .edit(Kind::Ingress, "shop-ingress", |i| {
                i["spec"]["defaultBackend"] = json!({"service": {"name": "shop", "port": {"number": 80}}})
            }),
        ),
        (
            "an autoscaler sets version 1's replicas",
            world().survey(|s| s.autoscalers.push(autoscaler("shop", 2))),
        ),
        (
            "a disruption budget does not hold for version 2",
            world().survey(|s| s.budgets.push(budget("shop", json!({"matchLabels": {"app": "shop"}})))),
        ),
        (
            "the IngressClass may not be read",
            world().survey(|s| drop(s.classes.insert("nginx".to_owned(), Class::Unreadable))),
        ),
        (
            "a webhook allows no trial",
            world().survey(|s| {
                let why = "admission webhook \"a.example\" does not support dry run";
                s.untried.push(("shop-ingress-v2".to_owned(), why.to_owned()));
            }),
        ),
    ]
}

#[test]
fn every_warning_says_what_follows_and_what_to_do() {
    let told: String = cautions()
        .iter()
        .map(|(what, world)| format!("{what}\n  {}\n", warnings(world).join("\n  ")))
        .collect();
    insta::assert_snapshot!(told);
}

#[test]
fn a_release_with_a_warning_starts_tells_it_once_and_keeps_it_in_its_condition() {
    for (what, world) in cautions() {
        let told = warnings(&world);
        assert!(!told.is_empty(), "{what}");
        let decision = world.decide();
        let events: Vec<_> = decision
            .notes
            .iter()
            .filter(|n| n.reason == "PreflightWarning")
            .collect();
        assert_eq!(
            (events.len(), events[0].level, &events[0].message),
            (1, Level::Warning, &told.join("; ")),
            "{what}"
        );
        // What was asked before the start is known no more.
        let mut world = world.rounds(1);
        world.survey = None;
        let passed = |world: &World| {
            let conditions = world.decide().status.conditions;
            let passed = conditions.into_iter().find(|c| c.type_ == "PreflightPassed").unwrap();
            (passed.status, passed.reason, passed.message)
        };
        let expected = ("True".to_owned(), "FitsWithWarnings".to_owned(), told.join("; "));
        assert_eq!(passed(&world), expected, "{what}");
        for _ in 0..6 {
            world = world.canary_ready(4).later(70).rounds(1);
            assert_eq!(
                world
                    .decide()
                    .notes
                    .iter()
                    .filter(|n| n.reason == "PreflightWarning")
                    .count(),
                0
            );
            assert_eq!(passed(&world), expected, "{what}");
        }
    }
}

#[test]
fn warnings_leave_room_in_the_status_for_what_the_plan_can_find() {
    let many = (0..30).fold(world(), |world, n| {
        world.with(ingress(&format!("{}-{n}", "long".repeat(60)), "shop"))
    });
    let many = many.spec(json!({"target": {"ingresses": ["shop-ingress"]}, "traffic": {"allowSharedService": true}}));
    let told = warnings(&many);
    assert_eq!((told.len() + 1, told[0].chars().count()), (10, 500));
}

#[test]
fn what_cannot_be_told_from_what_is_watched_is_looked_at_again_every_minute_while_it_stalls() {
    for (what, world) in mistakes() {
        let asked = questions(&world.seen(), &IngressNginx::default()).is_some();
        let again = world.decide().again;
        assert_eq!(again == Duration::from_secs(60), asked, "{what}: {again:?}");
        assert!(again >= Duration::from_secs(60), "{what}: {again:?}");
    }
}

#[test]
fn the_api_server_is_asked_only_before_a_start() {
    let asked = |world: &World| questions(&world.seen(), &IngressNginx::default());
    let questions = asked(&world()).unwrap();
    assert_eq!(questions.classes.iter().collect::<Vec<_>>(), ["nginx"]);
    assert_eq!(questions.trials.len(), 1);
    insta::assert_yaml_snapshot!(questions.trials[0].1);
    assert_eq!(asked(&world().begun()), None, "under way");
    assert_eq!(asked(&world().rolled_back()), None, "over");
    assert_eq!(asked(&world().deleted()), None, "deleted");
    assert_eq!(asked(&world().stable_ready(0)), None, "stalled on what is watched");
    assert!(asked(&world().rolled_back().spec(json!({"canary": {"image": "shop:v3"}}))).is_some());
    let left = world().routed().spec(json!({"canary": {"image": "shop:v3"}}));
    let mut forgot = left;
    forgot.release.status = None;
    assert_eq!(asked(&forgot).unwrap().trials, [], "its own Ingress goes first");
}

#[test]
fn a_round_that_was_not_told_the_answers_writes_nothing() {
    let mut world = world();
    world.survey = None;
    let decision = world.decide();
    assert_eq!(
        (decision.status.phase, decision.writes.len()),
        (Some(Phase::Stalled), 0)
    );
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
        (
            "a canary on another path",
            world().with({
                let mut theirs = other_on_the_same_host("theirs", annotated("canary", "true"));
                theirs["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/api");
                theirs
            }),
        ),
        (
            "a canary on the same path, exactly",
            world().with({
                let mut theirs = other_on_the_same_host("theirs", annotated("canary", "true"));
                theirs["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = json!("Exact");
                theirs
            }),
        ),
        (
            "another Ingress at another port of the Service",
            world()
                .with({
                    let mut web = ingress("web", "shop");
                    web["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"] =
                        json!({"name": "admin"});
                    web
                })
                .spec(json!({"target": {"ingresses": ["shop-ingress"]}})),
        ),
        (
            "a class by annotation",
            world().edit(Kind::Ingress, "shop-ingress", |i| {
                i["spec"].as_object_mut().unwrap().remove("ingressClassName");
                i["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "nginx"});
            }),
        ),
        (
            "an autoscaler and a budget of something else",
            world().survey(|s| {
                s.autoscalers.push(autoscaler("other", 0));
                s.budgets
                    .push(budget("other", json!({"matchLabels": {"app": "other"}})));
            }),
        ),
        (
            "budgets for both versions",
            world().survey(|s| {
                s.budgets.push(budget("v1", json!({"matchLabels": {"app": "shop"}})));
                s.budgets.push(budget("v2", json!({"matchLabels": {"app": "shop-v2"}})));
            }),
        ),
        (
            "a budget for every pod",
            world().survey(|s| s.budgets.push(budget("all", json!({})))),
        ),
    ] {
        assert_eq!(findings(&world), [""; 0], "{what}");
        assert_eq!(warnings(&world), [""; 0], "{what}");
    }
}
