//! Every rule of the definition, with what it lets pass and what it refuses in which words.
//!
//! Evaluated without an API server, so that types and lengths (the schema's own part) are left to the tests on a real one.

use crate::{
    api::CanaryRelease,
    release::{check_windows, schedule},
};
use kube::{CustomResourceExt, core::cel::Validator};
use serde_json::{Value, json};
use std::sync::LazyLock;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let definition = serde_json::to_value(CanaryRelease::crd()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
});

const WEIGHT: &str = "a weight is an integer from 0 to 100, or a decimal string of up to four places such as \"0.01\"";
const DURATION: &str =
    "a duration is numbers with units and no sign, such as 30s, 5m or 1h30m, and at most a year (8760h)";
const FALLING: &str = "weights may not fall from one step to the next";
const SCHEDULE: &str = "set either steps or ramp, exactly one of them";
const SUFFIX: &str = "suffix starts with a dash, followed by lower-case letters, digits and dashes, such as -v2";
const VERSION: &str = "set canary.image, canary.template or both: without either, version 2 would be version 1";
const CONTAINER: &str = "canary.container says which container gets canary.image: set canary.image too";
const BY: &str = "ramp.by must be more than 0";
const FROM: &str = "ramp.from may not exceed ramp.to";
const LONG_RAMP: &str = "the ramp has more than 101 steps: make ramp.by larger";
const STEP: &str = "a step needs hold, or approval: true";
const HEADER: &str =
    "set traffic.header.value or traffic.header.pattern, not both: ingress-nginx would ignore the pattern";
const HEADER_NAME: &str =
    "the name of a header has letters, digits and dashes: nginx drops requests' headers with underscores";
const HEADER_VALUE: &str =
    "ingress-nginx takes only letters, digits and - . _ ~ / : in a header's value, and ignores any other";
const HEADER_PATTERN: &str = "ingress-nginx takes only letters, digits and - . _ ~ / : ^ $ [ ] ( ) { } * + ? | & = and backslashes in a pattern, and ignores any other";
const NO_PATTERN: &str = "the pattern is no regular expression (RE2 syntax)";
const CLOCK: &str = "a time of the day is hours and minutes with two digits each, such as 09:00, up to 24:00";
const HALF_WINDOW: &str = "set from and to, or neither of them for whole days";
const FROM_THE_END: &str = "from is a time from 00:00 to 23:59: only to may be 24:00, the end of the day";
const EMPTY_WINDOW: &str = "from and to are the same time: leave both out for whole days";
const DAYS: &str = "name each day once";
const ZONE: &str = "a time zone is written as its name in the IANA database, such as Europe/Madrid or UTC";
const DATE: &str =
    "a date of this century is written as 2026-12-23, or with a time as 2026-12-23T18:00, without seconds or offset";
const FREEZE: &str = "a freeze ends after it begins; a date alone is the midnight with which it begins, so that a freeze of one day ends with the next date";
const IDLE_SERVER: &str =
    "analysis.prometheus names a server that nothing is asked of: set source: prometheus, or add a check with a query";
const EARLY: &str = "earlyAdvance takes a comparison with version 1, which alone can rule out harm: add errorRegression or latencyRegression";
const INTERVAL: &str = "an interval is at least 2s: the controllers count a second or two late";
const NO_PATIENCE: &str = "errorDeadline.after is more than 0s: a single answer that does not come says nothing";
const KINDS: &str =
    "a check has exactly one of successRate, latency, errorRegression, latencyRegression and prometheus";
const UNCOUNTED: &str =
    "a query counts no requests, so minRequests says nothing: have it return nothing where there are too few";
const CHECK_NAME: &str = "the name of a check has lower-case letters, digits and dashes, such as errors-vs-v1";
const PERCENT: &str = "successRate.min is in percent, such as 99.5: with 1 or less nearly every request may fail";
const QUANTILE: &str = "a quantile lies between 0 and 1, such as 0.99";
const NO_TIME: &str = "latency.max is more than 0s";
const FALSE_ROLLBACK: &str = "falseRollback lies between 0.000001 and 0.5, such as 0.01";
const NO_BOUND: &str = "set min, max or both: without a bound nothing is checked";
const BOUNDS: &str = "min may not exceed max";
const PLACEHOLDERS: &str = "a query knows {{ namespace }}, {{ ingress }}, {{ service }}, {{ canary }} and {{ interval }}, and no other double braces";
const NAME: &str = "metadata.name may have at most 63 characters: it becomes a label value";

/// What the rules say about an object, each as `field: sentence`.
pub fn refusals(object: &Value) -> Vec<String> {
    match Validator::new().validate_with_defaults(&SCHEMA, object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .iter()
            .map(|e| format!("{}: {}", e.field_path, e.message))
            .collect(),
    }
}

/// Everything of `part` is in `whole`, where a duration or a weight may be written another way.
pub fn assert_within(part: &Value, whole: &Value, at: &str) {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            for (key, value) in part {
                let found = whole.get(key).unwrap_or_else(|| panic!("{at}: {key} is lost"));
                assert_within(value, found, &format!("{at}.{key}"));
            }
        }
        (Value::Array(part), Value::Array(whole)) => {
            assert_eq!(part.len(), whole.len(), "{at}");
            part.iter()
                .zip(whole)
                .for_each(|(part, whole)| assert_within(part, whole, at));
        }
        _ => {}
    }
}

/// A good release, with fields of its spec replaced.
fn release(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "web"},
        "spec": {"target": {"deployment": "web"}, "canary": {"image": "web:2"}, "steps": [{"weight": 30, "hold": "1m"}]}});
    for (key, value) in spec.as_object().unwrap() {
        match value {
            Value::Null => drop(object["spec"].as_object_mut().unwrap().remove(key)),
            value => object["spec"][key] = value.clone(),
        }
    }
    object
}

fn steps(weights: &[Value]) -> Value {
    let steps: Vec<_> = weights
        .iter()
        .map(|weight| json!({"weight": weight, "hold": "1m"}))
        .collect();
    release(json!({"steps": steps}))
}

fn hold(hold: &str) -> Value {
    release(json!({"steps": [{"weight": 30, "hold": hold}]}))
}

fn ramp(from: impl Into<Value>, by: impl Into<Value>, to: impl Into<Value>) -> Value {
    release(json!({"steps": null, "ramp": {"from": from.into(), "by": by.into(), "to": to.into(), "every": "1m"}}))
}

fn canary(canary: Value) -> Value {
    release(json!({"canary": canary}))
}

fn named(length: usize) -> Value {
    let mut object = release(json!({}));
    object["metadata"]["name"] = json!("n".repeat(length));
    object
}

#[track_caller]
fn accepted(object: &Value) {
    assert_eq!(refusals(object), [""; 0], "{object}");
    let decoded: CanaryRelease =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object}: {error}"));
    schedule(&decoded.spec).unwrap_or_else(|error| panic!("{object}: {error}"));
    check_windows(&decoded.spec).unwrap_or_else(|error| panic!("{object}: {error}"));
}

#[track_caller]
fn refused(object: &Value, field: &str, sentence: &str) {
    assert_eq!(refusals(object), [format!("{field}: {sentence}")], "{object}");
}

#[test]
fn a_weight_is_an_integer_or_a_decimal_string_from_0_to_100() {
    for weight in [
        json!(0),
        json!(30),
        json!(100),
        json!("0"),
        json!("30"),
        json!("0.01"),
        json!("99.9999"),
        json!("100"),
        json!("100.0"),
        json!("100.0000"),
    ] {
        accepted(&steps(&[weight]));
    }
    for weight in [
        json!(-1),
        json!(101),
        json!("abc"),
        json!("1e2"),
        json!("0.00001"),
        json!(""),
        json!("101"),
        json!("100.1"),
        json!("-1"),
        json!("+1"),
        json!(" 1"),
        json!("030"),
        json!("1."),
        json!(".5"),
        json!("30%"),
    ] {
        refused(&steps(&[weight]), "spec.steps[0].weight", WEIGHT);
    }
}

#[test]
fn weights_may_not_fall_however_they_are_written() {
    accepted(&steps(&[
        json!(5),
        json!("12.5"),
        json!(30),
        json!("30.0"),
        json!("100"),
    ]));
    accepted(&steps(&[json!("9"), json!("10")]));
    for falling in [
        [json!(30), json!(20)],
        [json!("30"), json!("20")],
        [json!(30), json!("20")],
        [json!("30.5"), json!(30)],
        [json!("0.02"), json!("0.01")],
        [json!(100), json!("9")],
    ] {
        refused(&steps(&falling), "spec.steps", FALLING);
    }
}

#[test]
fn a_weight_that_is_no_number_is_told_once_and_not_as_a_falling_one() {
    refused(
        &steps(&[json!(30), json!("abc"), json!(20)]),
        "spec.steps[1].weight",
        WEIGHT,
    );
}

#[test]
fn a_duration_has_units_no_sign_and_an_end() {
    for good in [
        "0",
        "0s",
        "30s",
        "5m",
        "1h30m",
        "1.5m",
        "500ms",
        "8760h",
        "525600m",
        "31536000s",
    ] {
        accepted(&hold(good));
        accepted(&release(json!({"progressDeadline": good})));
    }
    for bad in [
        "",
        "-5s",
        "5",
        "s",
        "1d",
        "1M",
        "5 m",
        "1h-5m",
        "8761h",
        "8760h1ms",
        "525601m",
        "99999999s",
        "9999h9999h9999h",
        "99999999999999999999h",
    ] {
        refused(&hold(bad), "spec.steps[0].hold", DURATION);
        refused(
            &release(json!({"progressDeadline": bad})),
            "spec.progressDeadline",
            DURATION,
        );
    }
}

#[test]
fn a_step_waits_for_time_or_for_a_person() {
    accepted(&release(json!({"steps": [{"weight": 30, "approval": true}]})));
    accepted(&release(
        json!({"steps": [{"weight": 30, "hold": "1m", "approval": true}]}),
    ));
    refused(&release(json!({"steps": [{"weight": 30}]})), "spec.steps[0]", STEP);
    refused(
        &release(json!({"steps": [{"weight": 30, "approval": false}]})),
        "spec.steps[0]",
        STEP,
    );
}

fn header(header: Value) -> Value {
    release(json!({"traffic": {"header": header}}))
}

#[test]
fn a_header_is_one_that_nginx_takes() {
    accepted(&header(json!({"name": "X-Canary"})));
    accepted(&header(json!({"name": "X-Canary", "value": "yes:1/2"})));
    for pattern in ["^(a|b)$", "^[a-z]+$", "a.*b", r"\d{3}", "x=1&y"] {
        accepted(&header(json!({"name": "X-Canary", "pattern": pattern})));
    }
    refused(
        &header(json!({"name": "X-Canary", "value": "a", "pattern": "b"})),
        "spec.traffic.header",
        HEADER,
    );
    for name in ["X_Canary", "X Canary", "-x", "x-", "X:Y", "Ü"] {
        refused(&header(json!({"name": name})), "spec.traffic.header.name", HEADER_NAME);
    }
    for value in ["a,b", "a b", "50%", "a;b", "\"q\"", "a=b", "ü", "a\nb"] {
        refused(
            &header(json!({"name": "X", "value": value})),
            "spec.traffic.header.value",
            HEADER_VALUE,
        );
    }
    for pattern in ["a{1,3}", "(?!a)", "a b", "a@b", "50%"] {
        let found = refusals(&header(json!({"name": "X", "pattern": pattern})));
        let sentence = format!("spec.traffic.header.pattern: {HEADER_PATTERN}");
        assert!(found.contains(&sentence), "{pattern}: {found:?}");
    }
    for pattern in ["(a", "[a", "*a"] {
        let found = refusals(&header(json!({"name": "X", "pattern": pattern})));
        let [refusal] = &found[..] else {
            panic!("{pattern}: {found:?}")
        };
        assert!(refusal.starts_with("spec.traffic.header.pattern"), "{refusal}");
    }
}

fn window(window: Value) -> Value {
    release(json!({"windows": [window]}))
}

fn hours(from: &str, to: &str) -> Value {
    window(json!({"from": from, "to": to}))
}

fn freeze(from: &str, to: &str) -> Value {
    release(json!({"freezes": [{"from": from, "to": to, "timeZone": "Europe/Madrid"}]}))
}

#[test]
fn a_window_has_days_a_beginning_and_an_end() {
    accepted(&window(json!({})));
    accepted(&window(
        json!({"days": ["Mon", "Tue", "Wed", "Thu"], "from": "09:00", "to": "17:00", "timeZone": "Europe/Madrid"}),
    ));
    accepted(&window(
        json!({"days": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]}),
    ));
    for (from, to) in [("22:00", "02:00"), ("00:00", "24:00"), ("23:59", "00:00")] {
        accepted(&hours(from, to));
    }
    refused(
        &window(json!({"days": ["Mon", "Tue", "Mon"]})),
        "spec.windows[0].days",
        DAYS,
    );
    refused(&window(json!({"from": "09:00"})), "spec.windows[0]", HALF_WINDOW);
    refused(&window(json!({"to": "17:00"})), "spec.windows[0]", HALF_WINDOW);
    refused(&hours("09:00", "09:00"), "spec.windows[0]", EMPTY_WINDOW);
    refused(&hours("00:00", "00:00"), "spec.windows[0]", EMPTY_WINDOW);
    refused(&hours("24:00", "09:00"), "spec.windows[0]", FROM_THE_END);
    refused(&hours("24:00", "24:00"), "spec.windows[0]", FROM_THE_END);
    for time in [
        "", "9:00", "0900", "09:60", "25:00", "24:01", "09:00:00", "9am", "-1:00", "09:00\n",
    ] {
        refused(&hours(time, "17:00"), "spec.windows[0].from", CLOCK);
        refused(&hours("09:00", time), "spec.windows[0].to", CLOCK);
    }
}

#[test]
fn times_that_are_equal_and_no_times_are_told_as_no_times() {
    let sentence = |field: &str| format!("spec.windows[0].{field}: {CLOCK}");
    assert_eq!(refusals(&hours("9:00", "9:00")), [sentence("from"), sentence("to")]);
}

#[test]
fn a_time_zone_looks_like_one() {
    for zone in [
        "UTC",
        "Europe/Madrid",
        "America/Argentina/Buenos_Aires",
        "Etc/GMT+5",
        "America/Port-au-Prince",
    ] {
        accepted(&window(json!({"timeZone": zone})));
    }
    for zone in [
        "",
        "+01:00",
        "Europe/",
        "Europe//Madrid",
        "Europe / Madrid",
        "Madrid, Spain",
        "5",
    ] {
        refused(&window(json!({"timeZone": zone})), "spec.windows[0].timeZone", ZONE);
        let frozen = json!({"from": "2026-12-23", "to": "2026-12-24", "timeZone": zone});
        refused(&release(json!({"freezes": [frozen]})), "spec.freezes[0].timeZone", ZONE);
    }
}

#[test]
fn a_freeze_ends_after_it_begins() {
    for (from, to) in [
        ("2026-12-23T18:00", "2027-01-02T08:00"),
        ("2026-12-23", "2026-12-24"),
        ("2026-12-23", "2026-12-23T00:01"),
        ("2026-12-23T23:59", "2026-12-24"),
        ("2028-02-29", "2099-12-31"),
    ] {
        accepted(&freeze(from, to));
    }
    accepted(&release(json!({"freezes": []})));
    for (from, to) in [
        ("2027-01-02T08:00", "2026-12-23T18:00"),
        ("2026-12-23T18:00", "2026-12-23T18:00"),
        ("2026-12-23", "2026-12-23"),
        ("2026-12-23", "2026-12-23T00:00"),
        ("2026-12-23T00:00", "2026-12-23"),
        ("2026-12-23T00:01", "2026-12-23"),
        ("2026-12-24", "2026-12-23T23:59"),
    ] {
        refused(&freeze(from, to), "spec.freezes[0]", FREEZE);
    }
    for date in [
        "",
        "2026-02-30",
        "2027-02-29",
        "2026-13-01",
        "1999-12-31",
        "2126-01-01",
        "2026-12-23T24:00",
        "2026-12-23T18:00:00",
        "2026-12-23T18:00Z",
        "2026-12-23 18:00",
        "23.12.2026",
        "zzz",
    ] {
        refused(&freeze(date, "2026-01-01"), "spec.freezes[0].from", DATE);
        refused(&freeze("2099-01-01", date), "spec.freezes[0].to", DATE);
    }
}

#[test]
fn windows_and_freezes_are_bounded_for_the_api_server_and_for_the_operator() {
    let spec = &SCHEMA["properties"]["spec"]["properties"];
    let (windows, freezes) = (&spec["windows"], &spec["freezes"]);
    assert_eq!((&windows["minItems"], &windows["maxItems"]), (&json!(1), &json!(20)));
    assert_eq!((&freezes["minItems"], &freezes["maxItems"]), (&Value::Null, &json!(50)));
    let many = |field: &str, item: Value, count| release(json!({field: vec![item; count]}));
    let date = json!({"from": "2026-12-23", "to": "2026-12-24"});
    accepted(&many("windows", json!({}), 20));
    accepted(&many("freezes", date.clone(), 50));
    for more in [
        many("windows", json!({}), 21),
        many("windows", json!({}), 0),
        many("freezes", date, 51),
    ] {
        let decoded: CanaryRelease = serde_json::from_value(more).unwrap();
        check_windows(&decoded.spec).unwrap_err();
    }
}

fn analysis(analysis: Value) -> Value {
    release(json!({"analysis": analysis}))
}

/// A check of a kind, with a name.
fn check(kind: Value) -> Value {
    let mut check = json!({"name": "a"});
    json_patch::merge(&mut check, &kind);
    analysis(json!({"checks": [check]}))
}

fn query(query: &str) -> Value {
    check(json!({"prometheus": {"query": query, "min": 1}}))
}

#[test]
fn an_analysis_may_be_left_to_the_operator_in_part_or_whole() {
    accepted(&analysis(json!({})));
    accepted(&analysis(json!({"checks": []})));
    accepted(&analysis(
        json!({"interval": "1m", "warmUp": "30s", "source": "ingressNginx", "noData": "fail", "failureLimit": 1,
            "minRequests": 50, "errorDeadline": {"after": "5m", "action": "rollback"}, "earlyAdvance": true}),
    ));
    let step = json!({"weight": 1, "hold": "1h", "analysis": {"interval": "10m", "warmUp": "1m", "noData": "pass", "failureLimit": 3, "minRequests": 5}});
    accepted(&release(json!({"steps": [step]})));
}

#[test]
fn a_window_is_no_shorter_than_what_the_controllers_are_late() {
    accepted(&analysis(json!({"interval": "2s"})));
    for short in ["0", "0s", "1s", "1999ms"] {
        refused(
            &analysis(json!({"interval": short})),
            "spec.analysis.interval",
            INTERVAL,
        );
        let step = json!({"weight": 1, "hold": "1h", "analysis": {"interval": short}});
        refused(
            &release(json!({"steps": [step]})),
            "spec.steps[0].analysis.interval",
            INTERVAL,
        );
    }
    refused(
        &analysis(json!({"interval": "-1s"})),
        "spec.analysis.interval",
        DURATION,
    );
    refused(&analysis(json!({"warmUp": "-1s"})), "spec.analysis.warmUp", DURATION);
}

#[test]
fn an_outage_of_the_source_takes_a_while_to_count() {
    accepted(&analysis(json!({"errorDeadline": {}})));
    accepted(&analysis(json!({"errorDeadline": {"after": "1s"}})));
    for after in ["0", "0s", "0.0s"] {
        let deadline = json!({"errorDeadline": {"after": after, "action": "rollback"}});
        refused(&analysis(deadline), "spec.analysis.errorDeadline.after", NO_PATIENCE);
    }
    let deadline = json!({"errorDeadline": {"after": "10"}});
    refused(&analysis(deadline), "spec.analysis.errorDeadline.after", DURATION);
}

#[test]
fn a_server_is_named_for_something() {
    let queries = json!([{"name": "orders", "prometheus": {"query": "orders", "min": 1}}]);
    accepted(&analysis(json!({"source": "prometheus"})));
    accepted(&analysis(json!({"source": "prometheus", "prometheus": "main"})));
    accepted(&analysis(json!({"prometheus": "main", "checks": queries})));
    for idle in [
        json!({"prometheus": "main"}),
        json!({"prometheus": "main", "source": "ingressNginx"}),
        json!({"prometheus": "main", "checks": []}),
        json!({"prometheus": "main", "checks": [{"name": "a", "errorRegression": {}}]}),
    ] {
        refused(&analysis(idle), "spec.analysis", IDLE_SERVER);
    }
}

#[test]
fn a_step_ends_early_by_a_comparison_alone() {
    let bound = json!({"name": "a", "successRate": {"min": 99}});
    for comparison in ["errorRegression", "latencyRegression"] {
        let checks = json!([bound, {"name": "b", (comparison): {}}]);
        accepted(&analysis(json!({"earlyAdvance": true, "checks": checks})));
    }
    accepted(&analysis(json!({"earlyAdvance": true})));
    accepted(&analysis(json!({"earlyAdvance": false, "checks": [bound]})));
    for checks in [json!([]), json!([bound])] {
        let early = json!({"earlyAdvance": true, "checks": checks});
        refused(&analysis(early), "spec.analysis", EARLY);
    }
}

#[test]
fn a_check_has_a_name_and_is_of_one_kind() {
    for kind in [
        json!({"successRate": {"min": 99}}),
        json!({"latency": {"quantile": 0.99, "max": "500ms"}}),
        json!({"errorRegression": {}}),
        json!({"latencyRegression": {}}),
        json!({"prometheus": {"query": "up", "min": 1}}),
    ] {
        accepted(&check(kind));
    }
    let named = |name: &str| check(json!({"name": name, "errorRegression": {}}));
    for name in ["a", "errors-vs-v1", "99"] {
        accepted(&named(name));
    }
    for name in ["", "A", "a b", "a_b", "-a", "a-", "a\n"] {
        refused(&named(name), "spec.analysis.checks[0].name", CHECK_NAME);
    }
    refused(&check(json!({})), "spec.analysis.checks[0]", KINDS);
    let two = json!({"errorRegression": {}, "latencyRegression": {}});
    refused(&check(two), "spec.analysis.checks[0]", KINDS);
}

#[test]
fn no_two_checks_have_one_name() {
    let checks = &SCHEMA["properties"]["spec"]["properties"]["analysis"]["properties"]["checks"];
    assert_eq!(checks["x-kubernetes-list-type"], "map");
    assert_eq!(checks["x-kubernetes-list-map-keys"], json!(["name"]));
}

#[test]
fn a_success_rate_is_in_percent_and_a_quantile_is_none() {
    let success = |min: Value| check(json!({"successRate": {"min": min}}));
    for min in [json!(99), json!(99.95), json!(100), json!(2)] {
        accepted(&success(min));
    }
    for min in [json!(0), json!(0.99), json!(0.999), json!(1)] {
        refused(&success(min), "spec.analysis.checks[0].successRate.min", PERCENT);
    }
    let quantile = |quantile: Value| check(json!({"latency": {"quantile": quantile, "max": "1s"}}));
    for good in [json!(0.5), json!(0.999)] {
        accepted(&quantile(good));
    }
    for bad in [json!(0), json!(1), json!(99), json!(-0.5)] {
        refused(&quantile(bad), "spec.analysis.checks[0].latency.quantile", QUANTILE);
    }
}

#[test]
fn a_latency_has_a_limit_that_can_be_kept() {
    let max = |max: &str| check(json!({"latency": {"quantile": 0.99, "max": max}}));
    accepted(&max("1ms"));
    for zero in ["0", "0ms"] {
        refused(&max(zero), "spec.analysis.checks[0].latency.max", NO_TIME);
    }
    refused(&max("1"), "spec.analysis.checks[0].latency.max", DURATION);
}

#[test]
fn a_false_rollback_is_possible_and_not_the_rule() {
    for comparison in ["errorRegression", "latencyRegression"] {
        let chance = |chance: Value| check(json!({(comparison): {"falseRollback": chance}}));
        for good in [json!(0.000_001), json!(0.05), json!(0.5)] {
            accepted(&chance(good));
        }
        let field = format!("spec.analysis.checks[0].{comparison}.falseRollback");
        for bad in [
            json!(0),
            json!(0.000_000_1),
            json!(0.51),
            json!(1),
            json!(5),
            json!(-0.01),
        ] {
            refused(&chance(bad), &field, FALSE_ROLLBACK);
        }
    }
}

#[test]
fn the_result_of_a_query_has_a_bound() {
    let bounds = |mut bounds: Value| {
        bounds["query"] = json!("up");
        check(json!({"prometheus": bounds}))
    };
    for good in [
        json!({"min": 0}),
        json!({"max": -1.5}),
        json!({"min": 1, "max": 1}),
        json!({"min": 0.5, "max": 1}),
    ] {
        accepted(&bounds(good));
    }
    refused(&bounds(json!({})), "spec.analysis.checks[0].prometheus", NO_BOUND);
    for wrong in [json!({"min": 2, "max": 1}), json!({"min": 1.5, "max": 1})] {
        refused(&bounds(wrong), "spec.analysis.checks[0].prometheus", BOUNDS);
    }
}

#[test]
fn a_query_counts_no_requests() {
    let counted = json!({"minRequests": 10, "prometheus": {"query": "up", "min": 1}});
    refused(&check(counted), "spec.analysis.checks[0]", UNCOUNTED);
    accepted(&check(json!({"minRequests": 10, "successRate": {"min": 99}})));
}

#[test]
fn a_placeholder_is_one_that_is_filled_in() {
    for good in [
        "up",
        "vector(1){",
        "rate(orders{}[5m])",
        r#"{__name__="up"}"#,
        r#"sum(rate(orders{namespace="{{ namespace }}",service=~"{{service}}"}[{{ interval }}]))"#,
        r#"a{ingress=~"{{ ingress }}",canary=~"{{
            canary }}"}"#,
    ] {
        accepted(&query(good));
    }
    for bad in [
        "rate(orders[{{ window }}])",
        "{{ Namespace }}",
        "{{}}",
        "{{ namespace",
        "{{ namespace }",
        "{{{ namespace }}}",
        "{{ $labels.namespace }}",
        "{{ namespace interval }}",
    ] {
        refused(&query(bad), "spec.analysis.checks[0].prometheus.query", PLACEHOLDERS);
    }
}

#[test]
fn there_is_one_schedule() {
    let both = json!({"ramp": {"from": 10, "by": 10, "to": 50, "every": "1m"}});
    refused(&release(both), "spec", SCHEDULE);
    refused(&release(json!({"steps": null})), "spec", SCHEDULE);
}

#[test]
fn a_ramp_rises_and_ends() {
    accepted(&ramp(10, 10, 50));
    accepted(&ramp("0.5", "0.25", 1));
    accepted(&ramp(50, 1, 50));
    accepted(&ramp(0, 1, 100));
    accepted(&ramp("0.3333", "0.0001", "0.3433"));
    refused(&ramp(10, 0, 50), "spec.ramp", BY);
    refused(&ramp(10, "0.0", 50), "spec.ramp", BY);
    refused(&ramp(60, 10, 50), "spec.ramp", FROM);
    refused(&ramp("9.5", 1, 9), "spec.ramp", FROM);
    refused(&ramp(0, "0.99", 100), "spec.ramp", LONG_RAMP);
    refused(&ramp("0.0001", "0.9999", 100), "spec.ramp", LONG_RAMP);
    refused(&ramp("abc", 10, 50), "spec.ramp.from", WEIGHT);
    refused(&ramp(10, "abc", 50), "spec.ramp.by", WEIGHT);
    refused(&ramp(10, 10, 101), "spec.ramp.to", WEIGHT);
    refused(
        &release(json!({"steps": null, "ramp": {"from": 1, "by": 1, "to": 2, "every": "-1m"}})),
        "spec.ramp.every",
        DURATION,
    );
}

#[test]
fn version_2_differs_from_version_1() {
    accepted(&canary(json!({"image": "web:2"})));
    accepted(&canary(json!({"template": {"spec": {}}})));
    accepted(&canary(json!({"image": "web:2", "container": "web", "template": {}})));
    refused(&canary(json!({"suffix": "-v2"})), "spec.canary", VERSION);
    refused(
        &canary(json!({"template": {}, "container": "web"})),
        "spec.canary",
        CONTAINER,
    );
}

#[test]
fn a_suffix_makes_names_that_kubernetes_accepts() {
    for suffix in ["-v2", "-2", "-a-b", "-canary"] {
        accepted(&canary(json!({"image": "web:2", "suffix": suffix})));
    }
    for suffix in ["v2", "-", "", "-V2", "-v2-", "-v_2", "-v.2", "--", "-v\n"] {
        refused(
            &canary(json!({"image": "web:2", "suffix": suffix})),
            "spec.canary.suffix",
            SUFFIX,
        );
    }
}

#[test]
fn a_name_fits_a_label() {
    accepted(&named(63));
    refused(&named(64), "", NAME);
}

#[test]
fn a_list_without_steps_is_refused_by_the_schema_and_by_the_operator() {
    let steps = &SCHEMA["properties"]["spec"]["properties"]["steps"];
    assert_eq!((&steps["minItems"], &steps["maxItems"]), (&json!(1), &json!(50)));
    let empty: CanaryRelease = serde_json::from_value(steps_of_nothing()).unwrap();
    assert_eq!(
        schedule(&empty.spec).unwrap_err(),
        "spec.steps has 0 steps: write 1 to 101"
    );
}

fn steps_of_nothing() -> Value {
    steps(&[])
}

#[test]
fn every_rule_has_a_sentence_and_a_test() {
    fn sentences(schema: &Value, found: &mut Vec<String>) {
        if let Some(rules) = schema.get("x-kubernetes-validations").and_then(Value::as_array) {
            found.extend(rules.iter().map(|rule| rule["message"].as_str().unwrap().to_owned()));
        }
        match schema {
            Value::Object(fields) => fields.values().for_each(|field| sentences(field, found)),
            Value::Array(items) => items.iter().for_each(|item| sentences(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    sentences(&SCHEMA, &mut found);
    let tested = [
        WEIGHT,
        DURATION,
        FALLING,
        SCHEDULE,
        SUFFIX,
        VERSION,
        CONTAINER,
        BY,
        FROM,
        LONG_RAMP,
        NAME,
        STEP,
        HEADER,
        HEADER_NAME,
        HEADER_VALUE,
        HEADER_PATTERN,
        NO_PATTERN,
        CLOCK,
        HALF_WINDOW,
        FROM_THE_END,
        EMPTY_WINDOW,
        DAYS,
        ZONE,
        DATE,
        FREEZE,
        IDLE_SERVER,
        EARLY,
        INTERVAL,
        NO_PATIENCE,
        KINDS,
        UNCOUNTED,
        CHECK_NAME,
        PERCENT,
        QUANTILE,
        NO_TIME,
        FALSE_ROLLBACK,
        NO_BOUND,
        BOUNDS,
        PLACEHOLDERS,
    ];
    for sentence in found {
        assert!(tested.contains(&sentence.as_str()), "no test of: {sentence}");
    }
}
