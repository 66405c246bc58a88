//! The log of a real release whose operator died after every write, less what nobody reads; and the same log with one thing
//! in it that must not be.

use jiff::SignedDuration;
use serde_json::json;

use super::*;

const SAMPLE: &str = include_str!("sample.jsonl");
const CANARY: &str = "shop-canary";
const RELEASE: &str = "shop";
const WEIGHT: &str = "nginx.ingress.kubernetes.io/canary-weight";

/// What becomes of a write.
type Change = fn(&mut Entry);

fn sample() -> Vec<Entry> {
    SAMPLE.lines().filter_map(|line| Entry::parse(line).unwrap()).collect()
}

/// The rule that is broken once the log was changed so, and no other.
#[track_caller]
fn breaks(rule: &str, change: impl FnOnce(&mut Vec<Entry>)) {
    let mut entries = sample();
    if rule != "S8" {
        never_dies(&mut entries);
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

/// As of one operator that never dies: else each write that is put elsewhere would be of one that is dead by then.
fn never_dies(entries: &mut Vec<Entry>) {
    entries.retain(|entry| entry.resource != "leases" || entry.verb != "delete");
    for entry in entries.iter_mut().filter(|entry| entry.is_operators) {
        entry.process = "one".to_owned();
    }
}

/// What is broken once the log of an operator that never dies was changed so.
fn broken(change: impl FnOnce(&mut Vec<Entry>)) -> Vec<String> {
    let mut entries = sample();
    never_dies(&mut entries);
    change(&mut entries);
    entries.sort_by_key(|entry| entry.at);
    rules::judge(&entries).broken
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
    (another.at, another.received) = (another.at + by, another.received + by);
    change(&mut another);
    entries.push(another);
}

/// It was answered so instead.
fn answers(entry: &mut Entry, code: u16) {
    (entry.done, entry.in_doubt) = ((200..300).contains(&code), code >= 500);
    entry.found = found(&entry.verb, code);
    entry.response = json!({"kind": "Status", "code": code});
}

/// The API server was killed before it answered: the log has no body and no answer.
fn is_never_answered(entry: &mut Entry) {
    (entry.done, entry.in_doubt, entry.answered, entry.found) = (false, true, false, None);
    (entry.request, entry.response) = (json!(null), json!(null));
}

/// Nothing is told of the end.
fn ends_untold(entries: &mut Vec<Entry>) {
    entries.retain(|entry| text(&entry.response, "/status/rollout/stage") != "Ended");
}

/// The deletion of the canary Ingress.
fn deletion(entries: &mut [Entry]) -> &mut Entry {
    write(entries, "delete", "ingresses", CANARY, 0)
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
    // The last is that of all requests, before version 1's Deployment is replaced.
    for step in [1, 2] {
        let broken = broken(|log| answers(write(log, "patch", "ingresses", CANARY, step), 504));
        assert_eq!(broken, Vec::<String>::new(), "step {step}");
    }
    // Told once, and before the failure was.
    let broken = broken(|log| {
        let tells_50 = |entry: &Entry| text(&entry.response, "/status/weight") == "50";
        let again = log.iter().rposition(tells_50).unwrap();
        log.remove(again);
        let told = log.iter().find(|entry| tells_50(entry)).unwrap().at;
        let step = write(log, "patch", "ingresses", CANARY, 1);
        answers(step, 504);
        step.at = told + SignedDuration::from_millis(1);
    });
    assert_eq!(broken, Vec::<String>::new());
    // Told never.
    breaks("S1", |log| {
        let step = write(log, "patch", "ingresses", CANARY, 1);
        step.at -= seconds(1);
        let step = step.clone();
        after(log, &step, -seconds(1), |entry| answers(entry, 504));
    });
    breaks("S1", |log| answers(write(log, "patch", "ingresses", CANARY, 1), 409));
}

#[test]
fn a_weight_that_was_never_answered_was_written_where_the_status_tells_it() {
    for step in [0, 1, 2] {
        let broken = broken(|log| is_never_answered(write(log, "patch", "ingresses", CANARY, step)));
        assert_eq!(broken, Vec::<String>::new(), "step {step}");
    }
    // It is told a moment later.
    let broken = broken(|log| {
        let step = write(log, "patch", "ingresses", CANARY, 1);
        is_never_answered(step);
        let (at, told) = (step.at, write(log, "update", "canaryreleases", RELEASE, 3).clone());
        assert_eq!(text(&told.response, "/status/weight"), "20");
        let by = at.duration_since(told.at) + SignedDuration::from_millis(1);
        after(log, &told, by, |entry| entry.response["status"]["message"] = json!("…"));
    });
    assert_eq!(broken, Vec::<String>::new());
    // But the next is not to come too soon.
    breaks("S1", |log| {
        let step = write(log, "patch", "ingresses", CANARY, 0);
        step.at += seconds(1);
        is_never_answered(step);
    });
}

#[test]
fn a_deletion_that_was_answered_with_a_failure_or_never_may_have_been_done() {
    let failures: [Change; 4] = [
        |entry| answers(entry, 504),
        |entry| answers(entry, 500),
        |entry| (entry.request, ()) = (json!(null), answers(entry, 504)),
        is_never_answered,
    ];
    for fails in failures {
        let mut log = sample();
        fails(deletion(&mut log));
        assert_eq!(rules::judge(&log).broken, Vec::<String>::new());
    }
}

#[test]
fn pods_that_go_too_soon_after_a_deletion_that_may_have_been_done_are_found() {
    for by in [-1, 3] {
        breaks("S5", |log| {
            answers(deletion(log), 504);
            let ingress = deletion(log).at;
            write(log, "delete", "deployments", CANARY, 0).at = ingress + seconds(by);
        });
    }
}

#[test]
fn pods_whose_ingress_nobody_or_nothing_took_away_are_found() {
    breaks("S5", |log| {
        let deletion = writes(log, "delete", "ingresses", CANARY)[0];
        log.remove(deletion);
        ends_untold(log);
    });
    for refusal in [401, 403, 409, 422, 429] {
        breaks("S5", |log| {
            answers(deletion(log), refusal);
            ends_untold(log);
        });
    }
    // In doubt, but it named another object, or somebody's finalizer holds this one.
    let stays: [fn(&mut Value); 2] = [
        |object| object["metadata"]["uid"] = json!("another"),
        |object| object["metadata"]["finalizers"] = json!(["somebody/else"]),
    ];
    for stays in stays {
        breaks("S5", |log| {
            stays(&mut write(log, "patch", "ingresses", CANARY, 2).response);
            answers(deletion(log), 504);
            ends_untold(log);
        });
    }
}

/// The log of a release whose Ingress's deletion is in doubt, with something that is answered after the pods have gone.
fn answered_after_the_pods(log: &mut Vec<Entry>, change: impl FnOnce(&mut Entry)) {
    let (doubted, there) = (
        deletion(log).clone(),
        write(log, "patch", "ingresses", CANARY, 2).clone(),
    );
    answers(deletion(log), 504);
    let by = write(log, "delete", "services", CANARY, 0)
        .at
        .duration_since(doubted.at);
    after(log, &doubted, by + SignedDuration::from_millis(1), |entry| {
        entry.response = there.response;
        change(entry);
    });
}

#[test]
fn an_ingress_that_is_there_after_its_deletion_was_in_doubt_led_to_pods_that_are_gone() {
    // Deleted now, or not even that; written otherwise, read, made in vain.
    let answers_of_one_that_is_there: [Change; 5] = [
        |entry| answers(entry, 200),
        |entry| answers(entry, 409),
        |entry| (entry.verb, entry.is_operators) = ("update".to_owned(), false),
        |entry| (entry.verb, entry.done, entry.found) = ("get".to_owned(), true, Some(true)),
        |entry| {
            entry.verb = "create".to_owned();
            answers(entry, 409);
        },
    ];
    for is_there in answers_of_one_that_is_there {
        breaks("S5", |log| {
            answered_after_the_pods(log, is_there);
            ends_untold(log);
        });
    }
    // And at the end.
    breaks("S10", |log| {
        answered_after_the_pods(log, |entry| {
            entry.at += seconds(9);
            entry.received += seconds(9);
            answers(entry, 409);
        });
        for kind in ["deployments", "services"] {
            let deletion = writes(log, "delete", kind, CANARY)[0];
            log.remove(deletion);
        }
    });
}

#[test]
fn an_ingress_that_is_not_there_after_its_deletion_was_in_doubt_led_to_nothing() {
    let answers_of_one_that_is_gone: [Change; 5] = [
        |entry| answers(entry, 404),
        |entry| (entry.verb, entry.done, entry.found) = ("get".to_owned(), false, Some(false)),
        |entry| {
            let made = entry.response.clone();
            entry.verb = "create".to_owned();
            answers(entry, 201);
            entry.response = made;
            entry.response["metadata"]["annotations"][WEIGHT] = json!("0");
        },
        |entry| {
            entry.verb = "create".to_owned();
            answers(entry, 504);
        },
        |entry| entry.response["metadata"]["uid"] = json!("another"),
    ];
    for is_gone in answers_of_one_that_is_gone {
        let broken = broken(|log| {
            let uid = deletion(log).request["preconditions"]["uid"].clone();
            write(log, "patch", "ingresses", CANARY, 2).response["metadata"]["uid"] = uid;
            answered_after_the_pods(log, is_gone);
            // One that is there later is another.
            let last = log.last().unwrap().clone();
            after(log, &last, seconds(1), |entry| {
                (entry.verb, entry.done, entry.found) = ("get".to_owned(), true, Some(true));
            });
            ends_untold(log);
        });
        assert_eq!(broken, Vec::<String>::new());
    }
}

#[test]
fn an_answer_that_tells_nothing_of_an_ingress_leaves_its_deletion_in_doubt() {
    for nothing in [403, 504] {
        let broken = broken(|log| answered_after_the_pods(log, |entry| answers(entry, nothing)));
        assert_eq!(broken, Vec::<String>::new());
        breaks("S5", |log| {
            answered_after_the_pods(log, |entry| answers(entry, nothing));
            let last = log.last().unwrap().clone();
            after(log, &last, seconds(9), |entry| answers(entry, 409));
            ends_untold(log);
        });
    }
}

/// A step is taken after somebody tried to delete the Ingress, which did not happen.
#[test]
fn a_weight_that_rises_after_a_deletion_in_doubt_is_judged_by_what_it_was_before() {
    let is_doubted = |log: &mut Vec<Entry>| {
        let deletion = deletion(log).clone();
        let step = write(log, "patch", "ingresses", CANARY, 0).at;
        let by = step.duration_since(deletion.at) + seconds(1);
        after(log, &deletion, by, |entry| answers(entry, 504));
    };
    assert_eq!(broken(is_doubted), Vec::<String>::new());
    breaks("S1", |log| {
        write(log, "patch", "ingresses", CANARY, 1).at -= seconds(1);
        is_doubted(log);
    });
}

#[test]
fn a_stable_deployment_may_be_replaced_while_the_ingress_that_carries_all_is_in_doubt() {
    let is_doubted = |log: &mut Vec<Entry>| {
        let deletion = deletion(log).clone();
        let replaced = write(log, "patch", "deployments", "shop", 0).at;
        let by = replaced.duration_since(deletion.at) - SignedDuration::from_millis(1);
        after(log, &deletion, by, |entry| answers(entry, 504));
    };
    assert_eq!(broken(is_doubted), Vec::<String>::new());
    breaks("S6", |log| {
        write(log, "patch", "ingresses", CANARY, 2).response["metadata"]["annotations"][WEIGHT] = json!("50");
        is_doubted(log);
    });
}

#[test]
fn pods_that_the_share_does_not_need_may_go_while_the_ingress_is_in_doubt() {
    let shrinks = |log: &mut Vec<Entry>, to: u64| {
        let pods = log.iter_mut().filter(|entry| entry.resource == "deployments");
        for entry in pods.filter(|entry| entry.name == CANARY && entry.verb != "delete") {
            entry.response["spec"]["replicas"] = json!(2);
        }
        answered_after_the_pods(log, |entry| answers(entry, 409));
        let there = log.pop().unwrap();
        let pods = write(log, "create", "deployments", CANARY, 0).response.clone();
        for kind in ["deployments", "services"] {
            let deletion = writes(log, "delete", kind, CANARY)[0];
            log.remove(deletion);
        }
        ends_untold(log);
        let doubted = deletion(log).clone();
        after(log, &doubted, seconds(1), |entry| {
            (entry.verb, entry.resource) = ("patch".to_owned(), "deployments".to_owned());
            (entry.done, entry.in_doubt) = (true, false);
            entry.request = json!({"metadata": {"resourceVersion": "1"}});
            entry.response = pods;
            entry.response["spec"]["replicas"] = json!(to);
        });
        log.push(there);
    };
    assert_eq!(broken(|log| shrinks(log, 1)), Vec::<String>::new());
    breaks("S5", |log| shrinks(log, 0));
}

#[test]
fn pods_that_go_too_soon_after_the_last_of_two_ingresses_are_found() {
    breaks("S5", |log| {
        let others: Vec<_> = log
            .iter()
            .filter(|entry| entry.is_operators && entry.resource == "ingresses")
            .cloned()
            .collect();
        for entry in others {
            after(log, &entry, SignedDuration::from_millis(1), |entry| {
                entry.name = "another".to_owned();
                if entry.verb != "delete" {
                    entry.response["metadata"]["name"] = json!("another");
                }
            });
        }
        // This came before that of the other one, and is answered after it.
        let ingress = deletion(log);
        answers(ingress, 504);
        let done = ingress.at;
        (ingress.received, ingress.at) = (done - seconds(1), done + seconds(1));
        write(log, "delete", "deployments", CANARY, 0).at = done + SignedDuration::from_millis(5500);
    });
}

/// Where what an API server did before it was stalled is answered after that.
#[test]
fn what_was_under_way_beside_a_deletion_in_doubt_does_not_show_that_it_was_not_done() {
    let beside: [(Change, SignedDuration); 2] = [
        // It came before.
        (|entry| answers(entry, 504), -seconds(4)),
        // The API server that never answered was alive yet.
        (is_never_answered, seconds(1)),
    ];
    for (fails, came) in beside {
        let broken = broken(|log| {
            let doubted = deletion(log).at;
            answered_after_the_pods(log, |entry| {
                answers(entry, 409);
                entry.received = doubted + came;
            });
            fails(deletion(log));
        });
        assert_eq!(broken, Vec::<String>::new());
    }
    // It came between two deletions that are in doubt.
    let broken = broken(|log| {
        let doubted = deletion(log).clone();
        answered_after_the_pods(log, |entry| {
            answers(entry, 409);
            entry.received = doubted.at + seconds(1);
        });
        after(log, &doubted, seconds(2), |entry| answers(entry, 504));
    });
    assert_eq!(broken, Vec::<String>::new());
}

/// An API server that was stalled answers late; nobody waits for that.
#[test]
fn a_deletion_that_may_have_been_done_may_have_been_done_when_it_came() {
    let broken = broken(|log| {
        answers(deletion(log), 504);
        deletion(log).at += seconds(5);
    });
    assert_eq!(broken, Vec::<String>::new());
}

/// Where the API server was killed before it had told that it deleted it, and does not log what comes.
#[test]
fn an_ingress_that_is_not_found_where_it_is_to_be_deleted_has_gone() {
    let mut log = sample();
    answers(deletion(&mut log), 404);
    assert_eq!(rules::judge(&log).broken, Vec::<String>::new());
    breaks("S5", |log| {
        answers(deletion(log), 404);
        let ingress = deletion(log).at;
        write(log, "delete", "deployments", CANARY, 0).at = ingress + seconds(3);
    });
}

#[test]
fn pods_may_go_after_somebody_else_took_their_ingress_away() {
    let is_persons = |entry: &mut Entry| (entry.is_operators, entry.is_persons) = (false, true);
    assert_eq!(broken(|log| is_persons(deletion(log))), Vec::<String>::new());
    // It is made good where version 2 has to carry everything.
    let broken = broken(|log| {
        let (there, taken) = (
            write(log, "patch", "ingresses", CANARY, 2).clone(),
            deletion(log).clone(),
        );
        let by = there.at.duration_since(taken.at);
        after(log, &taken, by + SignedDuration::from_millis(1), is_persons);
        after(log, &there, SignedDuration::from_millis(2), |entry| {
            entry.verb = "create".to_owned();
        });
    });
    assert_eq!(broken, Vec::<String>::new());
    breaks("S5", |log| {
        let ingress = deletion(log).at;
        is_persons(deletion(log));
        write(log, "delete", "deployments", CANARY, 0).at = ingress + seconds(3);
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

/// Seen where an API server had just started, and did not know yet what the operator is granted.
#[test]
fn a_write_that_was_refused_before_its_body_was_read_is_not_asked_for_its_version() {
    let mut log = sample();
    let status = write(&mut log, "update", "canaryreleases", RELEASE, 3).clone();
    for (refusal, by) in [401, 403, 429, 503].into_iter().zip(1..) {
        after(&mut log, &status, SignedDuration::from_millis(by), |entry| {
            answers(entry, refusal);
            entry.request = json!(null);
        });
    }
    log.sort_by_key(|entry| entry.at);
    let judged = rules::judge(&log);
    assert_eq!(judged.broken, Vec::<String>::new());
    assert_eq!(judged.looked["writes"], rules::judge(&sample()).looked["writes"] + 4);
    // Where it was read, it is known what was tried.
    breaks("S9", |log| {
        after(log, &status, SignedDuration::from_millis(1), |entry| {
            answers(entry, 409);
            entry.request["metadata"]["resourceVersion"] = json!(null);
        });
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

#[test]
fn a_request_is_known_by_its_answer_or_where_it_never_had_one_by_its_coming() {
    let line = SAMPLE
        .lines()
        .find(|line| line.contains(r#""verb":"delete""#) && line.contains("ingresses"))
        .unwrap();
    let of = |stage: &str, id: &str| {
        let stage = format!(r#""auditID":"{id}","stage":"{stage}""#);
        let line = line.replace(r#""stage":"ResponseComplete""#, &stage);
        Entry::parse(&line).unwrap()
    };
    assert!(of("ResponseStarted", "1").is_none());
    let told = ["RequestReceived", "ResponseComplete"].map(|stage| of(stage, "1").unwrap());
    let lost = [of("RequestReceived", "2").unwrap(), of("Panic", "3").unwrap()];
    let entries = once_each(told.into_iter().chain(lost).collect());
    let known: Vec<_> = entries
        .iter()
        .map(|entry| (&*entry.id, entry.answered, entry.done, entry.in_doubt))
        .collect();
    assert_eq!(
        known,
        [
            ("1", true, true, false),
            ("2", false, false, true),
            ("3", true, false, true)
        ]
    );
}

#[test]
fn an_ingress_that_is_read_by_its_name_is_there_or_not() {
    let read = |query: &str, code: u16| {
        let line = format!(
            r#"{{"level":"Metadata","auditID":"1","stage":"ResponseComplete","requestURI":"/apis/networking.k8s.io/v1/namespaces/shop-1/ingresses/shop-canary{query}","verb":"get","user":{{"username":"admin"}},"objectRef":{{"resource":"ingresses","namespace":"shop-1","name":"shop-canary"}},"responseStatus":{{"code":{code}}},"requestReceivedTimestamp":"2026-11-22T20:31:40.000000Z","stageTimestamp":"2026-11-22T20:31:41.000000Z"}}"#
        );
        Entry::parse(&line).unwrap()
    };
    let found = |code: u16| read("", code).unwrap().found;
    assert_eq!(
        [found(200), found(404), found(403), found(504)],
        [Some(true), Some(false), None, None]
    );
    let there = read("", 200).unwrap();
    assert_eq!(there.at.duration_since(there.received), seconds(1));
    // From a cache.
    assert!(read("?resourceVersion=0", 200).is_none());
    // It is no write.
    let mut log = sample();
    let count = |log: Vec<Entry>| Log { entries: log }.of_operators().count();
    let before = count(log.clone());
    log.push(Entry {
        is_operators: true,
        ..there
    });
    assert_eq!(count(log), before);
}

#[test]
fn half_a_line_of_an_api_server_that_was_killed_costs_nothing_else() {
    let line = SAMPLE.lines().next().unwrap();
    let whole = format!(r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1",{}"#, &line[1..]);
    let folder = std::env::temp_dir().join(format!("audit-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let read = |text: String| {
        fs::write(folder.join("audit.log"), text).unwrap();
        Log::read(&folder.join("audit.log")).map(|log| log.entries.len())
    };
    let half = &whole[..whole.len() / 2];
    assert_eq!(read(format!("{half}{whole}\n{half}")).unwrap(), 1);
    assert!(read(format!("{half}\n{whole}\n")).is_err(), "nobody explains this one");
    fs::remove_dir_all(&folder).unwrap();
}
