//! The figures measured on the real thing, and its traps.

mod counting;

use super::*;
use crate::rehearse::{
    Key,
    actors::behaviour::Behaviour,
    json::set,
    server::store::DeleteOptions,
    world::tests::{deployment, in_world, service},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const N: u32 = 20_000;

fn ingress(name: &str, second: u32, host: &str, path: &str, path_type: &str, service: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"), "annotations": {}},
        "spec": {"ingressClassName": "nginx", "rules": [{"host": host, "http": {"paths": [
            {"path": path, "pathType": path_type, "backend": {"service": {"name": service, "port": {"number": 80}}}}]}}]}})
}

fn canary(mut ingress: Value, annotations: &[(&str, &str)]) -> Value {
    for (name, value) in [("canary", "true")].iter().chain(annotations) {
        set(
            &mut ingress,
            &format!("/metadata/annotations/nginx.ingress.kubernetes.io~1{name}"),
            json!(value),
        );
    }
    ingress
}

fn compiled(ingresses: Vec<Value>) -> Model {
    with_endpoints(ingresses, &["v1", "v2", "v3"])
}

fn with_endpoints(ingresses: Vec<Value>, alive: &[&str]) -> Model {
    let arcs = |list: Vec<Value>| list.into_iter().map(Arc::new).collect::<Vec<_>>();
    let classes = arcs(vec![
        json!({"metadata": {"name": "nginx"}, "spec": {"controller": model::CONTROLLER}}),
    ]);
    let services = ["v1", "v2", "v3"].map(
        |n| json!({"metadata": {"name": n, "namespace": "default"}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
    );
    let slices = alive.iter().map(|n| {
        json!({"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": n}}, "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"name": format!("{n}-pod")}}]})
    });
    Model::compile(
        &arcs(ingresses),
        &classes,
        &arcs(services.to_vec()),
        &arcs(slices.collect()),
    )
}

fn stable() -> Value {
    ingress("main", 1, "a.test", "/", "Prefix", "v1")
}

fn alternative(annotations: &[(&str, &str)]) -> Value {
    canary(ingress("canary", 5, "a.test", "/", "Prefix", "v2"), annotations)
}

fn measured(model: &Model, request: &SimRequest) -> f64 {
    let mut rng = fastrand::Rng::with_seed(42);
    let plan = model.plan(request).unwrap();
    let hits = (0..N).filter(|_| plan.toss(&mut rng)).count();
    f64::from(u32::try_from(hits).unwrap()) * 100.0 / f64::from(N)
}

fn plain() -> SimRequest {
    SimRequest::to("a.test", "/x")
}

#[test]
fn weights_give_the_measured_shares() {
    for (weight, total, expected) in [
        ("0", "", 0.0),
        ("30", "", 30.0),
        ("100", "", 100.0),
        ("150", "100", 100.0),
        ("-5", "", 0.0),
        ("0", "0", 0.0),
        ("50", "0", 50.0),
        ("5", "10", 5.0),
        ("1000", "1000", 100.0),
        ("100", "200", 50.0),
        ("1", "10000", 0.01),
        ("30%", "", 0.0),
        ("500", "x", 100.0),
        ("+30", "", 30.0),
        ("030", "", 30.0),
    ] {
        let model = compiled(vec![
            stable(),
            alternative(&[("canary-weight", weight), ("canary-weight-total", total)]),
        ]);
        let share = measured(&model, &plain());
        // Four standard deviations.
        let tolerance = 4.0 * (expected * (100.0 - expected) / f64::from(N)).sqrt() + 1e-9;
        assert!(
            (share - expected).abs() <= tolerance,
            "{weight}/{total}: {share} instead of {expected}"
        );
        assert!((model.share("a.test", "/").canary() * 100.0 - expected).abs() < 1e-6);
    }
}

#[test]
fn headers_and_cookies_decide_as_measured() {
    let near = |share: f64, expected: f64| assert!((share - expected).abs() < 1.5, "{share} instead of {expected}");
    let by = [
        ("canary-weight", "30"),
        ("canary-by-header", "X-Canary"),
        ("canary-by-cookie", "c"),
    ];
    let model = compiled(vec![stable(), alternative(&by)]);
    for (value, expected) in [("always", 100.0), ("never", 0.0), ("other", 30.0), ("Always", 30.0)] {
        near(measured(&model, &plain().header("x-canary", value)), expected);
    }
    near(measured(&model, &plain()), 30.0);
    for (value, expected) in [("always", 100.0), ("never", 0.0), ("other", 30.0)] {
        near(measured(&model, &plain().cookie("c", value)), expected);
    }
    near(
        measured(&model, &plain().header("X-Canary", "never").cookie("c", "always")),
        0.0,
    );
    near(
        measured(&model, &plain().header("X-Canary", "always").cookie("c", "never")),
        100.0,
    );
    near(measured(&model, &plain().header("X_Canary", "always")), 30.0);
    let valued = compiled(vec![
        stable(),
        alternative(&[
            ("canary-weight", "30"),
            ("canary-by-header", "X_Canary"),
            ("canary-by-header-value", "blue"),
            ("canary-by-header-pattern", "^x"),
        ]),
    ]);
    for (value, expected) in [("blue", 100.0), ("never", 30.0), ("always", 30.0), ("x", 30.0)] {
        near(measured(&valued, &plain().header("X-Canary", value)), expected);
    }
    let pattern = compiled(vec![
        stable(),
        alternative(&[
            ("canary-weight", "0"),
            ("canary-by-header", "X-Canary"),
            ("canary-by-header-pattern", "^bl(ue|ack)"),
        ]),
    ]);
    for (value, expected) in [("blue1", 100.0), ("red", 0.0), ("always", 0.0)] {
        near(measured(&pattern, &plain().header("X-Canary", value)), expected);
    }
    let broken = compiled(vec![
        stable(),
        alternative(&[
            ("canary-weight", "100"),
            ("canary-by-header", "X-Canary"),
            ("canary-by-header-pattern", "(("),
            ("canary-by-cookie", "c"),
        ]),
    ]);
    near(
        measured(&broken, &plain().header("X-Canary", "a").cookie("c", "always")),
        0.0,
    );
    near(measured(&broken, &plain()), 100.0);
}

#[test]
fn a_session_pinned_by_cookie_beats_weight_and_header() {
    let mut main = stable();
    set(
        &mut main,
        "/metadata/annotations/nginx.ingress.kubernetes.io~1affinity",
        json!("cookie"),
    );
    let model = compiled(vec![
        main.clone(),
        alternative(&[("canary-weight", "0"), ("canary-by-header", "X-Canary")]),
    ]);
    assert!(
        (measured(
            &model,
            &plain()
                .cookie("INGRESSCOOKIE", "default-v2-80")
                .header("X-Canary", "never")
        ) - 100.0)
            .abs()
            < 1e-9
    );
    assert!(
        measured(
            &model,
            &plain()
                .cookie("INGRESSCOOKIE", "default-v1-80")
                .header("X-Canary", "always")
        )
        .abs()
            < 1e-9
    );
    let gone = compiled(vec![main]);
    assert!(measured(&gone, &plain().cookie("INGRESSCOOKIE", "default-v2-80")).abs() < 1e-9);
}

#[test]
fn endpoints_that_are_missing_fail_open_for_the_canary_and_closed_for_the_stable() {
    let all = || vec![stable(), alternative(&[("canary-weight", "100")])];
    assert_eq!(
        with_endpoints(all(), &["v1"]).share("a.test", "/"),
        Split::Shares {
            stable: 1.0,
            canary: 0.0
        }
    );
    assert_eq!(with_endpoints(all(), &["v2"]).share("a.test", "/"), Split::Status(503));
}

#[test]
fn one_path_that_does_not_match_drops_the_whole_canary() {
    let weight = [("canary-weight", "100")];
    let exact = canary(ingress("canary", 5, "a.test", "/", "Exact", "v2"), &weight);
    assert!(compiled(vec![stable(), exact]).share("a.test", "/").canary() < 0.5);
    let mut two = alternative(&weight);
    let paths = two.pointer_mut("/spec/rules/0/http/paths").unwrap();
    let mut other = paths[0].clone();
    set(&mut other, "/path", json!("/other"));
    paths.as_array_mut().unwrap().push(other);
    assert!(compiled(vec![stable(), two]).share("a.test", "/").canary() < 0.5);
    let implementation = canary(
        ingress("canary", 5, "a.test", "/", "ImplementationSpecific", "v2"),
        &weight,
    );
    assert!(compiled(vec![stable(), implementation]).share("a.test", "/").canary() > 0.5);
    let unknown_host = canary(ingress("canary", 5, "b.test", "/", "Prefix", "v2"), &weight);
    let model = compiled(vec![stable(), unknown_host]);
    assert_eq!(model.share("b.test", "/"), Split::Status(404));
}

#[test]
fn a_canary_reaches_every_host_that_shares_the_stable_service() {
    let other = ingress("other", 2, "b.test", "/", "Prefix", "v1");
    let model = compiled(vec![stable(), other, alternative(&[("canary-weight", "100")])]);
    assert!(model.share("b.test", "/").canary() > 0.5);
}

#[test]
fn a_normal_ingress_on_the_canary_service_breaks_by_age() {
    let weight = [("canary-weight", "100")];
    let older = ingress("direct", 2, "direct.test", "/", "Prefix", "v2");
    let model = compiled(vec![stable(), older, alternative(&weight)]);
    assert!(model.share("a.test", "/").canary() < 0.5, "the canary has no policy");
    let younger = ingress("direct", 9, "direct.test", "/", "Prefix", "v2");
    let model = compiled(vec![stable(), younger, alternative(&weight)]);
    assert_eq!(
        model.share("direct.test", "/"),
        Split::Status(404),
        "the normal Ingress has no location"
    );
}

#[test]
fn of_two_canaries_only_the_oldest_counts_and_ties_go_by_name_descending() {
    let first = canary(
        ingress("b", 5, "a.test", "/", "Prefix", "v2"),
        &[("canary-weight", "10")],
    );
    let second = canary(
        ingress("a", 5, "a.test", "/", "Prefix", "v3"),
        &[("canary-weight", "90")],
    );
    assert!((compiled(vec![stable(), second, first]).share("a.test", "/").canary() - 0.1).abs() < 1e-9);
}

#[test]
fn another_class_or_a_canary_flag_that_is_no_boolean_is_not_a_canary() {
    let mut foreign = alternative(&[("canary-weight", "100")]);
    set(&mut foreign, "/spec/ingressClassName", json!("other"));
    assert!(compiled(vec![stable(), foreign]).share("a.test", "/").canary() < 0.5);
    let typo = canary(alternative(&[("canary-weight", "100")]), &[("canary", "yes")]);
    assert_eq!(
        compiled(vec![stable(), typo]).share("a.test", "/"),
        Split::Shares {
            stable: 1.0,
            canary: 0.0
        }
    );
}

#[test]
fn a_change_of_weight_is_live_within_four_and_a_half_seconds_and_dead_pods_answer_502() {
    in_world(1, |world| async move {
        world.kubelet(|s| s.behaviours.image("app:v2", Behaviour::healthy()));
        for (name, image) in [("v1", "app:v1"), ("v2", "app:v2")] {
            world.apply(deployment(name, image, 2)).unwrap();
            world.apply(service(name, name)).unwrap();
        }
        let mut main = stable();
        let mut second = alternative(&[("canary-weight", "0")]);
        for i in [&mut main, &mut second] {
            crate::rehearse::json::remove(i, "/metadata/creationTimestamp");
            world.apply(i.clone()).unwrap();
        }
        let live = |share: f64| {
            move |w: &crate::rehearse::World| {
                w.nginx.share("a.test", "/")
                    == Split::Shares {
                        stable: 1.0 - share,
                        canary: share,
                    }
            }
        };
        world.run_until(Duration::from_secs(20), live(0.0)).await.unwrap();
        world.pass(Duration::from_secs(20)).await;
        for weight in [10_u32, 30, 60, 100] {
            let at = "/metadata/annotations/nginx.ingress.kubernetes.io~1canary-weight";
            world.server.edit(&Key::ingress("default", "canary"), |i| {
                set(i, at, json!(weight.to_string()))
            });
            let took = world
                .run_until(Duration::from_secs(10), live(f64::from(weight) / 100.0))
                .await
                .unwrap();
            assert!(took <= Duration::from_millis(5400), "{took:?}");
        }
        let canaried = |w: &crate::rehearse::World| w.nginx.request(&plain()).outcome;
        assert!(matches!(canaried(&world), Outcome::Canary { .. }));
        // Pods that vanish while nginx still lists them.
        world.kubelet(|s| s.termination = Duration::ZERO);
        world
            .server
            .delete(&Key::deployment("default", "v2"), &DeleteOptions::default())
            .unwrap();
        world
            .run_until(Duration::from_secs(10), |w| canaried(w) == Outcome::Status(502))
            .await
            .unwrap();
        world
            .run_until(Duration::from_secs(10), |w| {
                matches!(canaried(w), Outcome::Stable { .. })
            })
            .await
            .unwrap();
        world
            .server
            .delete(&Key::ingress("default", "canary"), &DeleteOptions::default())
            .unwrap();
        world
            .run_until(Duration::from_secs(10), |w| {
                !w.nginx.model().upstreams.contains_key("default-v2-80")
            })
            .await
            .unwrap();
    });
}
