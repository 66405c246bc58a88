//! Mistakes: refused when they are applied, or told by a `Stalled` condition.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    exercise::release_of_v3,
    namespace::Namespace,
    release::{LABEL, Moment, RESOURCE, Release},
    scene::{Outcome, play},
};
use serde_json::{Value, json};

/// A mistake, what to change in a good release to make it, and what the refusal says.
type Mistake = (&'static str, fn(&mut Value), &'static [&'static str]);

const WEIGHT: &str = "a weight is an integer from 0 to 100, or a decimal string of up to four places such as \"0.01\"";
const DURATION: &str = "a duration is numbers with units and no sign, such as 30s, 5m or 1h30m";
const ONE_SCHEDULE: &str = "set either steps or ramp, exactly one of them";

const MISTAKES: &[Mistake] = &[
    (
        "weights falling",
        |r| steps(r, json!([step("30"), step("20")])),
        &["spec.steps", "weights may not fall from one step to the next"],
    ),
    (
        "decimal weights falling",
        |r| steps(r, json!([step("0.02"), step("0.01")])),
        &["spec.steps", "weights may not fall"],
    ),
    (
        "a weight over 100",
        |r| steps(r, json!([{"weight": 101, "hold": "1m"}])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a decimal weight over 100",
        |r| steps(r, json!([step("100.1")])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a negative weight",
        |r| steps(r, json!([{"weight": -1, "hold": "1m"}])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a word as a weight",
        |r| steps(r, json!([step("thirty")])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a percent sign",
        |r| steps(r, json!([step("30%")])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a weight as a float",
        |r| steps(r, json!([{"weight": 0.5, "hold": "1m"}])),
        &["spec.steps[0].weight", "integer"],
    ),
    (
        "a negative hold",
        |r| steps(r, json!([{"weight": 30, "hold": "-5s"}])),
        &["spec.steps[0].hold", DURATION],
    ),
    (
        "a hold without a unit",
        |r| steps(r, json!([{"weight": 30, "hold": "5"}])),
        &["spec.steps[0].hold", DURATION],
    ),
    (
        "a step that waits for nothing",
        |r| steps(r, json!([{"weight": 30}])),
        &["spec.steps[0]", "a step needs hold, or approval: true"],
    ),
    (
        "no steps in the list",
        |r| steps(r, json!([])),
        &["spec.steps", "should have at least 1 items"],
    ),
    (
        "both steps and ramp",
        |r| r["spec"]["ramp"] = ramp("10", "10", "50"),
        &[ONE_SCHEDULE],
    ),
    ("neither steps nor ramp", |r| remove(r, "steps"), &[ONE_SCHEDULE]),
    (
        "a ramp that stands still",
        |r| only_ramp(r, ramp("10", "0", "50")),
        &["spec.ramp", "ramp.by must be more than 0"],
    ),
    (
        "a ramp downwards",
        |r| only_ramp(r, ramp("50", "10", "10")),
        &["spec.ramp", "ramp.from may not exceed ramp.to"],
    ),
    (
        "no version 2",
        |r| r["spec"]["canary"] = json!({}),
        &["spec.canary", "set canary.image, canary.template or both"],
    ),
    (
        "a container without an image",
        |r| r["spec"]["canary"] = json!({"container": "frontend", "template": {}}),
        &["spec.canary", "set canary.image too"],
    ),
    (
        "a suffix without a dash",
        |r| r["spec"]["canary"]["suffix"] = "v2".into(),
        &["spec.canary.suffix", "suffix starts with a dash"],
    ),
    ("no target", |r| remove(r, "target"), &["spec.target", "Required value"]),
    (
        "a misspelt field",
        |r| r["spec"]["stepz"] = json!([]),
        &["unknown field \"spec.stepz\""],
    ),
    (
        "a name that is too long for a label",
        |r| r["metadata"]["name"] = "a".repeat(64).into(),
        &["metadata.name may have at most 63 characters"],
    ),
];

const TOO_SHORT: &str = "should be at least 1 chars long";
const BOOLEAN: &str = "must be of type boolean";
const TIME_OF_DAY: &str = "a time of the day is hours and minutes with two digits each, such as 09:00";
const TIME_ZONE: &str = "a time zone is written as its name in the IANA database";
const DATE: &str = "a date of this century is written as 2026-12-23, or with a time as 2026-12-23T18:00";
const HEADER_NAME: &str = "the name of a header has letters, digits and dashes";
const HEADER_VALUE: &str = "ingress-nginx takes only letters, digits and - . _ ~ / : in a header's value";
const HEADER_PATTERN: &str = "ingress-nginx takes only letters, digits and - . _ ~ / : ^ $ [ ]";
const AT_LEAST_ONE: &str = "should be greater than or equal to 1";
const CHECK_NAME: &str = "the name of a check has lower-case letters, digits and dashes, such as errors-vs-v1";
const STATUS: &str = "should match";
const FALSE_ROLLBACK: &str = "falseRollback lies between 0.000001 and 0.5, such as 0.01";
const MIN_REQUESTS_OF_QUERY: &str = "a query counts no requests, so minRequests says nothing";
const QUANTILE: &str = "a quantile lies between 0 and 1, such as 0.99";

/// A field (`[]` stands for the first element of a list), a wrong value and what the refusal says.
type WrongField = (&'static str, fn() -> Value, &'static str);

const FIELDS: &[WrongField] = &[
    ("target.deployment", || json!(""), TOO_SHORT),
    ("target.deployment", || json!(5), "must be of type string"),
    ("target.service", || json!("s".repeat(64)), "may not be more than 63"),
    ("target.ingresses[]", || json!(""), TOO_SHORT),
    ("target.ingresses", || json!([]), "should have at least 1 items"),
    ("canary.container", || json!(""), TOO_SHORT),
    ("canary.image", || json!(""), TOO_SHORT),
    ("canary.replicas", || json!(0), "should be greater than or equal to 1"),
    (
        "canary.replicas",
        || json!(1_001),
        "should be less than or equal to 1000",
    ),
    (
        "canary.suffix",
        || json!("-V2"),
        "suffix starts with a dash, followed by lower-case letters",
    ),
    ("canary.template", || json!("v2"), "must be of type object"),
    ("traffic.header.name", || json!("X_Canary"), HEADER_NAME),
    ("traffic.header.name", || json!("X Canary"), HEADER_NAME),
    ("traffic.header.name", || json!(""), TOO_SHORT),
    ("traffic.header.value", || json!("oh yes"), HEADER_VALUE),
    ("traffic.header.value", || json!("a,b"), HEADER_VALUE),
    ("traffic.header.value", || json!(true), "must be of type string"),
    ("traffic.header.pattern", || json!("^a{1,3}$"), HEADER_PATTERN),
    (
        "traffic.header.pattern",
        || json!("^(a"),
        "the pattern is no regular expression",
    ),
    (
        "traffic.header.pattern",
        || json!("^a$"),
        "set traffic.header.value or traffic.header.pattern, not both",
    ),
    ("traffic.header", || json!({}), "Required value"),
    ("traffic.cookie", || json!("a=b"), "should match"),
    ("traffic.cookie", || json!(""), TOO_SHORT),
    ("traffic.allowSharedService", || json!("yes"), BOOLEAN),
    ("steps[].weight", || json!("30%"), WEIGHT),
    ("steps[].hold", || json!("soon"), DURATION),
    ("steps[].hold", || json!("9000h"), "at most a year (8760h)"),
    ("steps[].approval", || json!("yes"), BOOLEAN),
    (
        "steps[]",
        || json!({"weight": 30, "approval": false}),
        "a step needs hold, or approval: true",
    ),
    ("ramp.from", || json!(-1), WEIGHT),
    ("ramp.by", || json!("a bit"), WEIGHT),
    ("ramp.by", || json!("0.0001"), "the ramp has more than 101 steps"),
    ("ramp.to", || json!(101), WEIGHT),
    ("ramp.every", || json!("daily"), DURATION),
    (
        "promotion.mode",
        || json!("Recreate"),
        "Unsupported value: \"Recreate\": supported values: \"UpdateStable\", \"AwaitStable\"",
    ),
    (
        "promotion.shiftTraffic",
        || json!(true),
        "supported values: \"Auto\", \"Always\", \"Never\"",
    ),
    ("rollback.keepFor", || json!("1 day"), DURATION),
    ("rollback", || json!({}), "Required value"),
    ("progressDeadline", || json!("0.5"), DURATION),
    ("paused", || json!("false"), BOOLEAN),
    ("windows[].days[]", || json!("Someday"), "Unsupported value"),
    ("windows[].days", || json!(["Mon", "Mon"]), "name each day once"),
    ("windows[].from", || json!("9:00"), TIME_OF_DAY),
    ("windows[].from", || json!("24:00"), "only to may be 24:00"),
    ("windows[].to", || json!("25:00"), TIME_OF_DAY),
    ("windows[].timeZone", || json!("+02:00"), TIME_ZONE),
    (
        "windows[]",
        || json!({"from": "09:00"}),
        "set from and to, or neither of them for whole days",
    ),
    ("freezes[].from", || json!("2026-02-30"), DATE),
    ("freezes[].from", || json!("23.12.2026"), DATE),
    ("freezes[].to", || json!("2027-01-02T08:00:00Z"), DATE),
    ("freezes[].timeZone", || json!("Central Europe"), TIME_ZONE),
    (
        "freezes[].reason",
        || json!("x".repeat(201)),
        "may not be more than 200",
    ),
    ("analysis.interval", || json!("1s"), "an interval is at least 2s"),
    ("analysis.interval", || json!("often"), DURATION),
    ("analysis.warmUp", || json!("-1s"), DURATION),
    (
        "analysis.source",
        || json!("Prometheus"),
        "supported values: \"ingressNginx\", \"prometheus\"",
    ),
    ("analysis.prometheus", || json!(""), TOO_SHORT),
    (
        "analysis.noData",
        || json!("ignore"),
        "supported values: \"hold\", \"pass\", \"fail\"",
    ),
    ("analysis.failureLimit", || json!(0), AT_LEAST_ONE),
    ("analysis.minRequests", || json!(0), AT_LEAST_ONE),
    ("analysis.errorDeadline.after", || json!("10"), DURATION),
    (
        "analysis.errorDeadline.after",
        || json!("0s"),
        "errorDeadline.after is more than 0s",
    ),
    (
        "analysis.errorDeadline.action",
        || json!("promote"),
        "supported values: \"hold\", \"rollback\"",
    ),
    ("analysis.earlyAdvance", || json!("yes"), BOOLEAN),
    (
        "analysis.checks",
        || json!([{"name": "success", "successRate": {"min": 99}}]),
        "earlyAdvance takes a comparison with version 1",
    ),
    (
        "analysis.checks",
        || json!([{"name": "errors", "errorRegression": {}}, {"name": "errors", "latencyRegression": {}}]),
        "Duplicate value",
    ),
    ("analysis.checks[].name", || json!("P 99"), CHECK_NAME),
    ("analysis.checks[].minRequests", || json!(0), AT_LEAST_ONE),
    (
        "analysis.checks[]",
        || json!({"name": "nothing"}),
        "a check has exactly one of successRate, latency, errorRegression, latencyRegression and prometheus",
    ),
    (
        "analysis.checks[]",
        || json!({"name": "both", "successRate": {"min": 99}, "errorRegression": {}}),
        "a check has exactly one of",
    ),
    (
        "analysis.checks[].successRate.min",
        || json!(101),
        "less than or equal to 100",
    ),
    (
        "analysis.checks[].successRate.min",
        || json!(0.99),
        "successRate.min is in percent, such as 99.5",
    ),
    ("analysis.checks[].successRate.failures[]", || json!("5XX"), STATUS),
    ("analysis.checks[].latency.quantile", || json!(99), QUANTILE),
    ("analysis.checks[].latency.quantile", || json!(1), QUANTILE),
    ("analysis.checks[].latency.quantile", || json!(0), QUANTILE),
    (
        "analysis.checks[].latency.max",
        || json!("0s"),
        "latency.max is more than 0s",
    ),
    ("analysis.checks[].latency.max", || json!("500"), DURATION),
    (
        "analysis.checks[].errorRegression.falseRollback",
        || json!(1),
        FALSE_ROLLBACK,
    ),
    (
        "analysis.checks[].errorRegression.ignoreBelow",
        || json!(0.5),
        "greater than or equal to 1",
    ),
    ("analysis.checks[].errorRegression.failures[]", || json!("600"), STATUS),
    (
        "analysis.checks[].latencyRegression.above[]",
        || json!("slow"),
        DURATION,
    ),
    (
        "analysis.checks[].latencyRegression.falseRollback",
        || json!(0),
        FALSE_ROLLBACK,
    ),
    (
        "analysis.checks[].latencyRegression.ignoreBelow",
        || json!(11),
        "less than or equal to 10",
    ),
    (
        "analysis.checks[]",
        || json!({"name": "orders", "minRequests": 5, "prometheus": {"query": "orders", "min": 1}}),
        MIN_REQUESTS_OF_QUERY,
    ),
    ("analysis.checks[].prometheus.query", || json!(""), TOO_SHORT),
    (
        "analysis.checks[].prometheus.query",
        || json!("rate(orders[{{ window }}])"),
        "a query knows {{ namespace }}, {{ ingress }}",
    ),
    ("analysis.checks[].prometheus.server", || json!(""), TOO_SHORT),
    (
        "analysis.checks[].prometheus.min",
        || json!("1"),
        "must be of type number",
    ),
    (
        "analysis.checks[].prometheus.min",
        || json!(11),
        "min may not exceed max",
    ),
    (
        "analysis.checks[].prometheus.max",
        || json!(true),
        "must be of type number",
    ),
    (
        "analysis.checks[].prometheus",
        || json!({"query": "up"}),
        "set min, max or both: without a bound nothing is checked",
    ),
    (
        "steps[].analysis.interval",
        || json!("1s"),
        "an interval is at least 2s",
    ),
    ("steps[].analysis.warmUp", || json!("long"), DURATION),
    ("steps[].analysis.noData", || json!("ignore"), "supported values"),
    (
        "steps[].analysis.failureLimit",
        || json!(101),
        "less than or equal to 100",
    ),
    ("steps[].analysis.minRequests", || json!(-1), AT_LEAST_ONE),
];

/// The kinds of checks, of which a check is one.
fn kind_of_check(kind: &str) -> Value {
    match kind {
        "latency" => json!({"quantile": 0.99, "max": "500ms"}),
        "errorRegression" => json!({"falseRollback": 0.01, "ignoreBelow": 1.5, "failures": ["5xx", "499"]}),
        "latencyRegression" => json!({"above": ["250ms"], "falseRollback": 0.01, "ignoreBelow": 1.5}),
        "prometheus" => json!({"query": "up", "server": "main", "min": 1, "max": 10}),
        _ => json!({"min": 99.5, "failures": ["5xx"]}),
    }
}

/// A good release that has every field but those which exclude that of this path.
fn whole_release(path: &str) -> Value {
    let mut release = release_of_v3(&[(30, "1m")]);
    let spec = &mut release["spec"];
    spec["target"] =
        json!({"deployment": "challenge-app", "service": "app-service", "ingresses": ["challenge-app-ingress"]});
    spec["canary"] =
        json!({"container": "frontend", "image": "app:v3", "replicas": 2, "suffix": "-v2", "template": {}});
    spec["traffic"] =
        json!({"header": {"name": "X-Canary", "value": "yes"}, "cookie": "canary", "allowSharedService": true});
    let analysis = json!({"interval": "10s", "warmUp": "2s", "noData": "pass", "failureLimit": 1, "minRequests": 5});
    spec["steps"] = json!([{"weight": 30, "hold": "1m", "approval": true, "analysis": analysis}]);
    spec["promotion"] = json!({"mode": "UpdateStable", "shiftTraffic": "Auto"});
    spec["rollback"] = json!({"keepFor": "1h"});
    spec["progressDeadline"] = "10m".into();
    spec["paused"] = true.into();
    spec["windows"] = json!([{"days": ["Mon"], "from": "09:00", "to": "17:00", "timeZone": "Europe/Madrid"}]);
    spec["freezes"] = json!([{"from": "2026-12-23", "to": "2027-01-02", "timeZone": "UTC", "reason": "holidays"}]);
    let mut check = json!({"name": "a-check"});
    let kind = path
        .strip_prefix("analysis.checks[].")
        .and_then(|rest| rest.split('.').next());
    let kind = kind
        .filter(|field| !["name", "minRequests"].contains(field))
        .unwrap_or("successRate");
    check[kind] = kind_of_check(kind);
    if kind != "prometheus" {
        check["minRequests"] = 50.into();
    }
    // Without a comparison no step ends early.
    let comparison = json!({"name": "errors", "errorRegression": {}});
    spec["analysis"] = json!({
        "interval": "30s",
        "warmUp": "5s",
        "source": "prometheus",
        "prometheus": "main",
        "noData": "hold",
        "failureLimit": 3,
        "minRequests": 20,
        "errorDeadline": {"after": "5m", "action": "hold"},
        "earlyAdvance": true,
        "checks": [check, comparison],
    });
    if path.starts_with("ramp") {
        only_ramp(&mut release, ramp("10", "10", "50"));
    }
    release
}

/// The release with this value in the field.
fn with_field(path: &str, value: Value) -> Result<Value> {
    let mut release = whole_release(path);
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let pointer = |path: &str| format!("/{path}").replace('.', "/").replace("[]", "/0");
    // A list's element is there already; a field may be new.
    let place = if field.ends_with("[]") {
        release["spec"].pointer_mut(&pointer(path))
    } else {
        let parent = match parent {
            "" => Some(&mut release["spec"]),
            parent => release["spec"].pointer_mut(&pointer(parent)),
        };
        parent.map(|parent| &mut parent[field])
    };
    *place.with_context(|| format!("the good release has no {path}"))? = value;
    Ok(release)
}

/// The paths of everything that a schema lets one write and that has no fields of its own.
fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, schema) in properties {
            let below = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            leaves(schema, &below, found);
        }
    } else if schema["type"] == "array" {
        leaves(&schema["items"], &format!("{path}[]"), found);
    } else {
        found.push(path.to_owned());
    }
}

#[test]
fn every_field_refuses_a_wrong_value_with_a_sentence() -> Outcome {
    play("bad-fields", |scene| {
        let definition: Value = serde_json::from_str(&scene.cluster.ask(&[
            "get",
            "customresourcedefinition",
            RESOURCE,
            "--output=json",
        ])?)?;
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut fields = Vec::new();
        leaves(schema, "", &mut fields);
        ensure!(fields.len() > 20, "the definition has only the fields {fields:?}");
        let untried: Vec<_> = fields
            .iter()
            .filter(|field| !FIELDS.iter().any(|(path, ..)| path == field))
            .collect();
        ensure!(untried.is_empty(), "no wrong value is known for {untried:?}");

        let mut good: Vec<_> = FIELDS.iter().map(|(path, ..)| whole_release(path)).collect();
        good.sort_by_key(Value::to_string);
        good.dedup();
        for (number, release) in good.iter_mut().enumerate() {
            release["metadata"]["name"] = format!("good-{number}").into();
        }
        scene.namespace.apply(&good)?;
        let mut faults = Vec::new();
        for (path, wrong, sentence) in FIELDS {
            let (wrong, field) = (wrong(), format!("spec.{}", path.replace("[]", "[0]")));
            // A rule about several fields is told of what holds them.
            let parent = field.rsplit_once('.').map_or("spec", |(parent, _)| parent);
            let names_it = |refusal: &str| refusal.contains(&field) || refusal.contains(&format!("{parent}: "));
            let mut release = with_field(path, wrong.clone())?;
            release["metadata"]["name"] = "mistaken".into();
            match scene.namespace.apply_in_vain(&release)? {
                None => faults.push(format!("{path}: {wrong} was accepted")),
                Some(refusal) if refusal.contains(sentence) && names_it(&refusal) => {}
                Some(refusal) => faults.push(format!(
                    "{path}: {wrong}: {field:?} or {sentence:?} is not in: {refusal}"
                )),
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    })
}

fn step(weight: &str) -> Value {
    json!({"weight": weight, "hold": "1m"})
}

fn steps(release: &mut Value, steps: Value) {
    release["spec"]["steps"] = steps;
}

fn ramp(from: &str, by: &str, to: &str) -> Value {
    json!({"from": from, "by": by, "to": to, "every": "1m"})
}

fn remove(release: &mut Value, field: &str) {
    if let Some(spec) = release["spec"].as_object_mut() {
        spec.remove(field);
    }
}

fn only_ramp(release: &mut Value, ramp: Value) {
    remove(release, "steps");
    release["spec"]["ramp"] = ramp;
}

#[test]
fn mistakes_are_refused_when_applied_with_a_sentence() -> Outcome {
    play("bad-input", |scene| {
        // Otherwise a cluster that refuses everything would pass.
        scene
            .namespace
            .apply(&[release_of_v3(&[(30, "1m"), (30, "0"), (60, "1h30m")])])?;
        let mut faults = Vec::new();
        for (mistake, make, sentences) in MISTAKES {
            let mut release = release_of_v3(&[(30, "1m")]);
            release["metadata"]["name"] = "mistaken".into();
            make(&mut release);
            match scene.namespace.apply_in_vain(&release)? {
                None => faults.push(format!("{mistake}: was accepted")),
                Some(refusal) => {
                    let missing: Vec<_> = sentences
                        .iter()
                        .filter(|sentence| !refusal.contains(**sentence))
                        .collect();
                    if !missing.is_empty() {
                        faults.push(format!("{mistake}: {missing:?} is not in: {refusal}"));
                    }
                }
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    })
}

const TO_STALL: Duration = Duration::from_secs(30);
const TO_GO_ON: Duration = Duration::from_secs(60);

#[test]
fn an_unknown_target_stalls_and_its_coming_mends_it() -> Outcome {
    play("unknown-target", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(&scene.host())?;
        let release = Release::apply(namespace, &release_of_v3(&[(30, "10m")]))?;
        stalls(namespace, &release, &["challenge-app", "Deployment"])?;
        exercise.deploy(namespace)?;
        goes_on(&release)
    })
}

#[test]
fn two_services_that_match_stall_it_and_naming_one_mends_it() -> Outcome {
    play("two-services", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(&scene.host())?;
        exercise.deploy(namespace)?;
        let (mut service, mut ingress) = (exercise.service.clone(), exercise.ingresses[0].clone());
        service["metadata"]["name"] = "second-service".into();
        ingress["metadata"]["name"] = "second-ingress".into();
        ingress["spec"]["rules"][0]["host"] = format!("second.{}", scene.host()).into();
        ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = "second-service".into();
        namespace.apply(&[service, ingress])?;

        let mut object = release_of_v3(&[(30, "10m")]);
        let release = Release::apply(namespace, &object)?;
        stalls(
            namespace,
            &release,
            &["app-service", "second-service", "spec.target.service"],
        )?;
        object["spec"]["target"]["service"] = "app-service".into();
        release.apply_again(&object)?;
        goes_on(&release)
    })
}

#[test]
fn a_missing_ingress_stalls_it_and_its_coming_mends_it() -> Outcome {
    play("no-ingress", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(&scene.host())?;
        exercise.deploy(namespace)?;
        namespace.ask(&["delete", "ingress", "challenge-app-ingress"])?;
        let release = Release::apply(namespace, &release_of_v3(&[(30, "10m")]))?;
        stalls(namespace, &release, &["app-service", "Ingress"])?;
        namespace.apply(std::slice::from_ref(&exercise.ingresses[0]))?;
        goes_on(&release)
    })
}

#[test]
fn a_server_and_a_query_that_cannot_be_asked_stall_it_and_others_mend_it() -> Outcome {
    play("unasked", |scene| {
        let namespace = &scene.namespace;
        App::new("shop", &scene.host()).deploy(namespace)?;
        let with = |server: &str, query: &str| {
            let mut object = release_of_v3(&[(30, "10m")]);
            object["spec"]["target"] = json!({"deployment": "shop"});
            let check = json!({"name": "orders", "prometheus": {"query": query, "min": 1}});
            object["spec"]["analysis"] = json!({"prometheus": server, "checks": [check]});
            object
        };
        let release = Release::apply(namespace, &with("unheard-of", "up"))?;
        stalls(
            namespace,
            &release,
            &["spec.analysis.prometheus", "unheard-of", "steady"],
        )?;
        release.apply_again(&with("steady", "sum(rate(orders[5m])"))?;
        stalls(
            namespace,
            &release,
            &["spec.analysis.checks[orders].prometheus.query", "line 1"],
        )?;
        release.apply_again(&with("steady", "sum(rate(orders[5m]))"))?;
        goes_on(&release)
    })
}

/// The condition `Stalled` names these things, and nothing of a canary was made.
fn stalls(namespace: &Namespace, release: &Release<'_>, names: &[&str]) -> Result<()> {
    let stalled = release.until("Stalled is True", TO_STALL, |moment| {
        moment.status.holds("Stalled").is_some()
    })?;
    let condition = stalled.status.holds("Stalled").context("Stalled")?;
    for name in names {
        ensure!(
            condition.message.contains(name),
            "the condition Stalled does not say {name}: {condition:?}"
        );
        ensure!(
            stalled.status.message.contains(name),
            "status.message does not say {name}: {}",
            stalled.line()
        );
    }
    ensure!(
        stalled.status.phase == "Stalled",
        "the phase is not Stalled: {}",
        stalled.line()
    );
    let made = namespace.names("deployments,services,ingresses", LABEL)?;
    ensure!(made.is_empty(), "a stalled release made {made:?}");
    Ok(())
}

/// The release goes on by itself now that the mistake is mended.
fn goes_on(release: &Release<'_>) -> Result<()> {
    let past_the_stall = |moment: &Moment| moment.status.holds("Stalled").is_none() && !moment.status.weight.is_empty();
    release.until_even_from_stalled("the release goes on", TO_GO_ON, past_the_stall)?;
    Ok(())
}

#[test]
fn every_field_of_the_good_release_can_be_replaced() -> Result<()> {
    for (path, wrong, _) in FIELDS {
        let good = whole_release(path);
        ensure!(with_field(path, wrong())? != good, "{path} changes nothing");
    }
    let mut found = Vec::new();
    let schema = json!({"properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"properties": {"c": {"type": "object"}}}}}});
    leaves(&schema, "", &mut found);
    ensure!(found == ["a", "b[].c"], "the leaves are {found:?}");
    Ok(())
}

#[test]
fn every_mistake_is_one() -> Result<()> {
    let good = release_of_v3(&[(30, "1m")]);
    for (mistake, make, _) in MISTAKES {
        let mut release = good.clone();
        make(&mut release);
        ensure!(release != good, "{mistake} changes nothing");
    }
    Ok(())
}
