//! The log of a real release whose operator died after every write, less what nobody reads; and the same log with one thing
//! in it that must not be.

use jiff::SignedDuration;
use serde_json::json;

use super::*;

const SAMPLE: &str = include_str!("sample.jsonl");
const CANARY: &str = "shop-canary";
const RELEASE: &str = "shop";
const WEIGHT: &str = "nginx.ingress.kubernetes.io/canary-weight";

fn sample() -> Vec<Entry> {
    SAMPLE.lines().filter_map(|line| Entry::parse(line).unwrap()).collect()
}

/// The rule that is broken once the log was changed so, and no other.
#[track_caller]
fn breaks(rule: &str, change: impl FnOnce(&mut Vec<Entry>)) {
    let mut entries = sample();
    if rule != "S8" {
        // As of one operator that never dies: else each write that is put elsewhere would be of one that is dead by then.
        entries.retain(|entry| entry.resource != "leases" || entry.verb != "delete");
        for entry in entries.iter_mut().filter(|entry| entry.is_operators) {
            entry.process = "one".to_owned();
        }
    }
    change(&mut entries);
    entries.sort_by_key(|entry| entry.at);
    let broken = rules::judge(&entries).broken;
    let others: Vec<_> = broken
        .iter()
        .filter(|line| !line.starts_with(&format!("{rule}:")))
        .collect();
    assert!(!broken.is_empty() && others.is_empty(), "{broken:#?}");
}

/// Where the operator's writes of this kind are.
fn writes(entries: &[Entry], verb: &str, resource: &str, name: &str) -> Vec<usize> {
    let is_it =
        |entry: &Entry| entry.is_operators && (&*entry.verb, &*entry.resource, &*entry.name) == (verb, resource, name);
    (0..entries.len()).filter(|at| is_it(&entries[*at])).collect()
}

fn write<'a>(entries: &'a mut [Entry], verb: &str, resource: &str, name: &str, number: usize) -> &'a mut Entry {
    let at = writes(entries, verb, resource, name)[number];
    &mut entries[at]
}

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// A person's or the operator's further write, after that one.
fn after(entries: &mut Vec<Entry>, entry: &Entry, by: SignedDuration, change: impl FnOnce(&mut Entry)) {
    let mut another = entry.clone();
    another.at += by;
    change(&mut another);
    entries.push(another);
}

#[test]
fn nothing_is_broken_by_a_release_whose_operator_died_after_every_write() {
    let judged = rules::judge(&sample());
    assert_eq!(judged.broken, Vec::<String>::new());
    assert!(
        judged.looked["canary Ingresses"] == 5 && judged.looked["stable Deployments"] == 1,
        "{judged:?}"
    );
    assert!(judged.all_well(&["statuses"]).is_ok() && judged.all_well(&["pods"]).is_err());
}

#[test]
fn a_weight_that_rises_too_soon_is_found() {
    breaks("S1", |log| write(log, "patch", "ingresses", CANARY, 1).at -= seconds(1));
}

#[test]
fn a_weight_that_rises_from_one_that_was_never_recorded_is_found() {
    breaks("S1", |log| {
        let first_weight = writes(log, "patch", "ingresses", CANARY)[0];
        let statuses = writes(log, "update", "canaryreleases", RELEASE);
        let second_weight = writes(log, "patch", "ingresses", CANARY)[1];
        let between = |at: &usize| (first_weight..second_weight).contains(at);
        for at in statuses.into_iter().rev().filter(between) {
            log.remove(at);
        }
    });
}

/// Seen where an API server was stalled while a step was due.
#[test]
fn a_weight_that_was_answered_with_504_was_written_where_the_status_tells_it() {
    let fails = |entry: &mut Entry| {
        (entry.done, entry.in_doubt) = (false, true);
        entry.response = json!({"kind": "Status", "code": 504});
    };
    let mut log = sample();
    fails(write(&mut log, "patch", "ingresses", CANARY, 1));
    assert_eq!(rules::judge(&log).broken, Vec::<String>::new());
    breaks("S1", |log| {
        let refused = write(log, "patch", "ingresses", CANARY, 1);
        fails(refused);
        refused.in_doubt = false;
    });
}

#[test]
fn a_weight_that_comes_back_after_it_was_taken_away_is_found() {
    breaks("S1", |log| {
        let there = write(log, "patch", "ingresses", CANARY, 0).clone();
        let taken = write(log, "delete", "ingresses", CANARY, 0).clone();
        after(log, &there, seconds(1), |entry| {
            (entry.verb, entry.request, entry.response) = (taken.verb, taken.request, taken.response);
        });
        after(log, &there, seconds(2), |entry| entry.verb = "create".to_owned());
    });
}

#[test]
fn a_weight_that_rises_while_the_release_is_rolled_back_is_found() {
    breaks("S1", |log| {
        let statuses = writes(log, "update", "canaryreleases", RELEASE);
        let weight = writes(log, "patch", "ingresses", CANARY)[1];
        let last = statuses.into_iter().rfind(|at| *at < weight).unwrap();
        log[last].response["status"]["phase"] = json!("RollingBack");
    });
}

#[test]
fn two_canaries_of_one_route_are_found() {
    breaks("S3", |log| {
        let ours = write(log, "patch", "ingresses", CANARY, 0).clone();
        let person = log.iter().find(|entry| entry.is_persons).unwrap().clone();
        after(log, &ours, -seconds(1), |entry| {
            (entry.is_operators, entry.is_persons) = (person.is_operators, person.is_persons);
            entry.name = "another".to_owned();
            entry.response["metadata"]["name"] = json!("another");
            entry.response["metadata"]["labels"]["canary-operator.dev/release"] = json!("another");
        });
    });
}

#[test]
fn a_weight_for_a_service_without_endpoints_is_found() {
    breaks("S4", |log| {
        for entry in log.iter_mut().filter(|entry| entry.resource == "endpointslices") {
            for endpoint in entry.response["endpoints"].as_array_mut().into_iter().flatten() {
                endpoint["conditions"]["ready"] = json!(false);
            }
        }
    });
}

#[test]
fn pods_that_go_before_or_too_soon_after_their_ingress_are_found() {
    breaks("S5", |log| {
        let ingress = write(log, "delete", "ingresses", CANARY, 0).at;
        write(log, "delete", "deployments", CANARY, 0).at = ingress - seconds(1);
    });
    breaks("S5", |log| {
        let ingress = write(log, "delete", "ingresses", CANARY, 0).at;
        write(log, "delete", "deployments", CANARY, 0).at = ingress + seconds(3);
    });
}

#[test]
fn a_stable_deployment_that_is_replaced_while_it_serves_is_found() {
    breaks("S6", |log| {
        write(log, "patch", "ingresses", CANARY, 2).response["metadata"]["annotations"][WEIGHT] = json!("50");
    });
    breaks("S6", |log| {
        write(log, "patch", "deployments", "shop", 0).at -= seconds(3)
    });
}

#[test]
fn requests_that_return_to_pods_that_are_not_there_are_found() {
    breaks("S6", |log| {
        let replaced = write(log, "patch", "deployments", "shop", 0).at;
        let reports =
            |entry: &&mut Entry| entry.at > replaced && entry.resource == "deployments" && entry.name == "shop";
        for entry in log.iter_mut().filter(reports) {
            entry.response["status"]["availableReplicas"] = json!(0);
        }
    });
}

#[test]
fn a_weight_of_no_step_is_found() {
    breaks("S7", |log| {
        // The last, so that nothing rises from it.
        for weight in [0, 1] {
            let weight = write(log, "patch", "ingresses", CANARY, weight);
            let annotations = &mut weight.response["metadata"]["annotations"];
            annotations["nginx.ingress.kubernetes.io/canary-weight-total"] = json!("101");
        }
        for status in writes(log, "update", "canaryreleases", RELEASE) {
            let told = &mut log[status].response["status"]["weight"];
            let exact = told
                .as_str()
                .and_then(|weight| weight.parse::<f64>().ok())
                .unwrap_or(0.0)
                * 100.0
                / 101.0;
            if exact < 90.0 {
                *told = json!(exact.to_string());
            }
        }
    });
}

#[test]
fn a_process_that_writes_while_another_leads_or_without_having_led_is_found() {
    breaks("S8", |log| {
        let first = write(log, "patch", "canaryreleases", RELEASE, 0).process.clone();
        write(log, "patch", "ingresses", CANARY, 0).process = first;
    });
    breaks("S8", |log| {
        write(log, "patch", "ingresses", CANARY, 0).process = "stranger".to_owned()
    });
}

#[test]
fn writes_that_name_no_version_are_found() {
    breaks("S9", |log| {
        write(log, "patch", "ingresses", CANARY, 0).request["metadata"]["resourceVersion"] = json!(null);
    });
    breaks("S9", |log| {
        write(log, "delete", "ingresses", CANARY, 0).request["preconditions"]["resourceVersion"] = json!(null);
    });
    breaks("S9", |log| {
        write(log, "delete", "services", CANARY, 0).request = json!(null)
    });
}

#[test]
fn a_release_that_ends_and_leaves_its_ingress_is_found() {
    breaks("S10", |log| {
        let last = *writes(log, "update", "canaryreleases", RELEASE).last().unwrap();
        let left = write(log, "patch", "ingresses", CANARY, 0).response.clone();
        let (at, service) = (log[last].at, write(log, "delete", "services", CANARY, 0).clone());
        log.push(Entry {
            at: at - SignedDuration::from_millis(1),
            verb: "create".to_owned(),
            resource: "ingresses".to_owned(),
            name: CANARY.to_owned(),
            is_operators: false,
            response: {
                let mut left = left;
                left["metadata"]["annotations"][WEIGHT] = json!("0");
                left
            },
            ..service
        });
    });
}

#[test]
fn a_weight_that_rises_while_the_release_is_paused_is_found() {
    breaks("S11", |log| {
        let created = log
            .iter()
            .find(|entry| entry.resource == "canaryreleases")
            .unwrap()
            .clone();
        let weight = write(log, "patch", "ingresses", CANARY, 1).at;
        for entry in log
            .iter_mut()
            .filter(|entry| entry.resource == "canaryreleases" && entry.at > weight - seconds(9))
        {
            entry.response["spec"]["paused"] = json!(true);
        }
        let by = weight.duration_since(created.at) - seconds(9);
        // The status is what it was; only the spec is another.
        let before = write(log, "update", "canaryreleases", RELEASE, 1).response.clone();
        after(log, &created, by, |entry| {
            entry.verb = "patch".to_owned();
            entry.response = before;
            entry.response["spec"]["paused"] = json!(true);
        });
    });
}

#[test]
fn what_is_somebody_elses_is_not_to_be_written() {
    breaks("S12", |log| {
        let canary = write(log, "patch", "ingresses", CANARY, 0).clone();
        after(log, &canary, SignedDuration::from_millis(1), |entry| {
            entry.name = "shop".to_owned();
            entry.response["metadata"]["name"] = json!("shop");
            entry.response["metadata"]["labels"] = json!({});
            entry.response["metadata"]["annotations"] = json!({});
        });
    });
    breaks("S12", |log| {
        write(log, "patch", "deployments", "shop", 0).request["spec"]["replicas"] = json!(1)
    });
}

#[test]
fn a_status_that_says_nothing_new_and_a_write_after_the_end_are_found() {
    breaks("L3", |log| {
        let status = write(log, "update", "canaryreleases", RELEASE, 3).clone();
        after(log, &status, SignedDuration::from_millis(1), |_| {});
    });
    breaks("L3", |log| {
        let last = *writes(log, "update", "canaryreleases", RELEASE).last().unwrap();
        let last = log[last].clone();
        after(log, &last, seconds(20), |entry| {
            entry.response["status"]["weight"] = json!("0")
        });
    });
}

#[test]
fn a_service_without_endpoints_is_known_for_as_long_as_it_has_none() {
    let log = Log { entries: sample() };
    let outages = log.outages("shop-1", "shop-canary");
    // Before its pod was ready, and after that was gone.
    assert_eq!(outages.len(), 2, "{outages:?}");
    assert!(
        outages[0].1 < outages[1].0 && outages[1].1 == Timestamp::MAX,
        "{outages:?}"
    );
}

#[test]
fn a_line_about_reading_or_about_a_trial_is_left_out() {
    let line = SAMPLE.lines().next().unwrap();
    assert!(Entry::parse(line).unwrap().is_some());
    assert!(
        Entry::parse(&line.replace("RequestResponse", "Metadata"))
            .unwrap()
            .is_none()
    );
    let trial = line.replace(r#""requestURI":""#, r#""requestURI":"/a?dryRun=All"#);
    assert!(Entry::parse(&trial).unwrap().is_none());
    assert!(Entry::parse(r#"{"level":"RequestResponse"}"#).is_err());
}
