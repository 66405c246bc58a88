//! The simulated API server against the recorded answers of a real one.

// clippy.toml's leave for tests reaches #[test] functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod runner;

use canary_operator::{
    api::CanaryRelease,
    rehearse::{
        ApiServer, Key,
        actors::{deployment, garbage},
        clock::VirtualClock,
        server::error::{Cause, invalid},
        world,
    },
};
use http_body_util::BodyExt;
use kube::{CustomResourceExt, client::Body, core::cel::Validator};
use runner::{Answers, Recording, Reply, Request, Script, Server, differences};
use serde_json::{Value, json};
use std::{io::Write, time::Duration};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// The simulation. Its time passes only while somebody waits.
struct Simulated {
    runtime: Runtime,
    server: ApiServer,
}

impl Simulated {
    fn new() -> Self {
        let runtime = world::runtime().unwrap();
        let server = runtime.block_on(async {
            let server = ApiServer::new(VirtualClock::new(), 1);
            let definition = serde_json::to_value(CanaryRelease::crd()).unwrap();
            let schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
            server.define(&definition);
            // The simulation has the schema of the definition, and leaves the rules in it to whoever wants them.
            let rules = Validator::new();
            server.admit(move |key, new, old| obey(&rules, &schema, key, new, old));
            tokio::spawn(garbage::run(server.clone()));
            tokio::spawn(deployment::run(server.clone()));
            server
        });
        // As on any cluster that has lived for a while, the first versions are forgotten.
        for object in [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
            // One that every namespace has.
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": NAMESPACE}}),
        ] {
            server.create(object).unwrap();
        }
        server.with(|store| store.compact(store.version()));
        Self { runtime, server }
    }
}

const NAMESPACE: &str = "conformance-of-the-simulation";
const GROUP: &str = "canary-operator.dev";

/// The rules of the definition, by kube's own evaluation of them.
fn obey(
    rules: &Validator,
    schema: &Value,
    key: &Key,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Box<kube::core::Status>> {
    if key.resource.plural != "canaryreleases" {
        return Ok(());
    }
    // To the server, a null is nothing to be asked for by a rule.
    let (mut new, mut old) = (new.clone(), old.cloned());
    without_nulls(&mut new);
    old.iter_mut().for_each(without_nulls);
    rules
        .validate_with_defaults(schema, &new, old.as_ref())
        .map_err(|errors| {
            let cause = |path: &str, why: &str| {
                let field = if path.is_empty() { "<nil>" } else { path };
                Cause::value(field, &json!(type_at(schema, path)), why)
            };
            let causes = errors.iter().map(|e| cause(&e.field_path, &e.message));
            invalid(key, &causes.collect::<Vec<_>>())
        })
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// The type that a schema has at a path such as `spec.steps[0].hold`; the server quotes it instead of the value.
fn type_at<'a>(schema: &'a Value, path: &str) -> &'a str {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    let at = parts.fold(schema, |schema, part| match part.strip_suffix(']') {
        Some(_) => &schema["items"],
        None => &schema["properties"][part],
    });
    at["type"].as_str().unwrap_or_default()
}

impl Server for Simulated {
    fn send(&mut self, request: &Request) -> Result<Reply, String> {
        let body = request.body.clone().unwrap_or_default().into_bytes();
        let request = http::Request::builder()
            .method(&*request.verb)
            .uri(&request.path)
            .header("content-type", request.content_type)
            .header("accept", &request.accept)
            .body(Body::from(body))
            .map_err(|e| e.to_string())?;
        self.runtime.block_on(async {
            let answer = self.server.clone().oneshot(request).await.map_err(|e| e.to_string())?;
            let code = answer.status().as_u16();
            let body = answer.into_body().collect().await.map_err(|e| e.to_string())?;
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            Ok(Reply { code, body })
        })
    }

    fn pause(&mut self) {
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
    }
}

#[test]
fn the_simulated_api_server_answers_as_the_real_one_did() {
    let script = Script::read().unwrap();
    let recording = Recording::parse(include_str!("recording.json")).unwrap();
    let answers = script.play(&mut Simulated::new(), NAMESPACE, GROUP).unwrap();
    let faults = script.differences(&recording.answers, &answers);
    assert!(
        faults.is_empty(),
        "{} differences from {}:\n\n{}",
        faults.len(),
        recording.server,
        faults.join("\n\n")
    );
    // Past the test harness, which swallows what a passing test prints.
    writeln!(
        std::io::stderr(),
        "conformance: {} requests, {} known differences",
        answers.len(),
        script.known()
    )
    .unwrap();
}

fn step(known: Value) -> Script {
    serde_json::from_value(json!({"names": {}, "steps": [{"does": "a", "send": "GET /", "known": known}]})).unwrap()
}

fn answered(body: Value) -> Answers {
    vec![("a".into(), json!({"code": 200, "body": body}))]
}

#[test]
fn a_difference_that_is_not_listed_is_told() {
    let (real, fake) = (
        answered(json!({"x": 1, "y": [1, 2]})),
        answered(json!({"y": [1, 3], "z": 1})),
    );
    let faults = step(json!([])).differences(&real, &fake);
    let told: Vec<_> = faults.iter().map(|f| f.lines().next().unwrap()).collect();
    assert_eq!(told, ["a: /body/x", "a: /body/y/1", "a: /body/z"]);
    assert!(step(json!([])).differences(&real, &real).is_empty());
}

#[test]
fn a_difference_that_is_listed_is_put_up_with_only_as_it_is_listed() {
    let known = json!([{"at": "/body/x", "fake": 2, "why": "it is so"}]);
    let real = answered(json!({"x": 1}));
    let told = |fake: Value| step(known.clone()).differences(&real, &answered(fake));
    assert!(told(json!({"x": 2})).is_empty());
    assert!(told(json!({"x": 3}))[0].contains("is another one"));
    assert!(told(json!({"x": 1}))[0].contains("no difference any more"));
    assert_eq!(
        told(json!({"x": 2, "y": 1})),
        ["a: /body/y\n  expected  nothing\n  answered  1"]
    );
}

#[test]
fn a_step_without_a_recording_and_a_recording_without_a_step_are_told() {
    let (one, other) = (answered(json!({})), vec![("b".into(), json!({}))]);
    assert_eq!(
        differences(&one, &other),
        ["a: recorded, and not a step of the script", "b: not recorded"]
    );
}
