//! People command, change their minds and wait, at every moment of a release.

use crate::{
    lab::{Lab, canary, canary_ingress, is_write, is_written, lab, stable},
    properties,
    refusing::Forbidden,
    scenario::{NAMESPACE, Run, Scenario, release_key},
    sweep::on_threads,
};
use canary_operator::rehearse::{
    ApiServer, Key,
    json::{items, text},
    server::{
        intercept::{After, Interceptor, NoFaults, Outcome},
        routes::Call,
    },
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// What somebody does right after one of the operator's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hand {
    Approve,
    Promote,
    Abort,
    Retry,
    /// Of a revision that is not this release's.
    Foreign,
    Gibberish,
    Paused,
    Testers,
    Longer,
    CanaryEdited,
    StableScaled,
    StableRestarted,
    StableIngressEdited,
    ForeignCanary,
}

const HANDS: [Hand; 14] = [
    Hand::Approve,
    Hand::Promote,
    Hand::Abort,
    Hand::Retry,
    Hand::Foreign,
    Hand::Gibberish,
    Hand::Paused,
    Hand::Testers,
    Hand::Longer,
    Hand::CanaryEdited,
    Hand::StableScaled,
    Hand::StableRestarted,
    Hand::StableIngressEdited,
    Hand::ForeignCanary,
];

impl Hand {
    fn works(self, server: &ApiServer) {
        let edit = |key: &Key, change: &dyn Fn(&mut Value)| drop(server.edit(key, |object| change(object)));
        let command = |text: &str| {
            let release = server.get(&release_key()).unwrap_or_default();
            let text = text.replace("REV", text_or(&release, "/status/revision", "0000000000"));
            // kubectl annotate refuses to overwrite, and so does whoever does not want to undo another's command.
            if !text_or(&release, "/metadata/annotations/canary-operator.dev~1command", "").is_empty() {
                return;
            }
            edit(&release_key(), &|r| {
                r["metadata"]["annotations"]["canary-operator.dev/command"] = json!(text);
            });
        };
        match self {
            Self::Approve => command("approve/REV/1"),
            Self::Promote => command("promote/REV"),
            Self::Abort => command("abort/REV"),
            Self::Retry => command("retry/REV"),
            Self::Foreign => command("abort/0123456789"),
            Self::Gibberish => command("go on!"),
            Self::Paused => edit(&release_key(), &|r| r["spec"]["paused"] = json!(true)),
            Self::Testers => edit(&release_key(), &|r| r["spec"]["traffic"] = json!({"cookie": "canary"})),
            Self::Longer => edit(&release_key(), &|r| {
                let step = |weight: u32| json!({"weight": weight, "hold": "10s"});
                r["spec"]["steps"] = json!([step(10), step(25), step(50)]);
            }),
            Self::CanaryEdited => edit(&canary(), &|d| {
                d["spec"]["template"]["metadata"]["annotations"] = json!({"debug": "on"});
            }),
            Self::StableScaled => edit(&stable(), &|d| d["spec"]["replicas"] = json!(4)),
            Self::StableRestarted => edit(&stable(), &|d| {
                d["spec"]["template"]["metadata"]["annotations"] = json!({"restarted": "now"});
            }),
            Self::StableIngressEdited => edit(&Key::ingress(NAMESPACE, "shop-ingress"), &|i| {
                i["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/proxy-body-size": "8m"});
            }),
            Self::ForeignCanary => {
                let mut foreign = crate::scenario::ingress();
                foreign["metadata"]["name"] = json!("somebodys");
                foreign["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/canary": "true", "nginx.ingress.kubernetes.io/canary-weight": "0"});
                drop(server.apply(foreign));
            }
        }
    }

    /// What was done is undone after a while.
    fn rests(self, lab: &Lab) {
        match self {
            Self::Paused => drop(lab.edit(&release_key(), |r| r["spec"]["paused"] = json!(false))),
            Self::ForeignCanary => drop(
                lab.world
                    .server
                    .delete(&Key::ingress(NAMESPACE, "somebodys"), &Default::default()),
            ),
            _ => {}
        }
    }

    /// Whether the release must end as if nothing had been done.
    fn is_weathered(self) -> bool {
        use Hand::*;
        matches!(
            self,
            Approve | Retry | Foreign | Gibberish | Paused | Testers | Longer | StableScaled | ForeignCanary
        )
    }
}

fn text_or<'a>(value: &'a Value, pointer: &str, or: &'a str) -> &'a str {
    Some(text(value, pointer)).filter(|t| !t.is_empty()).unwrap_or(or)
}

struct Meddler {
    hand: Hand,
    /// After which writes, counted from 1.
    at: [usize; 2],
    server: ApiServer,
    seen: AtomicUsize,
    fired: Arc<AtomicBool>,
}

impl Interceptor for Meddler {
    fn after(&self, call: &Call, _: Outcome<'_>) -> After {
        if is_write(call) && self.at.contains(&(self.seen.fetch_add(1, Ordering::SeqCst) + 1)) {
            self.hand.works(&self.server);
            self.fired.store(true, Ordering::SeqCst);
        }
        After::Pass
    }
}

fn play(scenario: Scenario, hand: Option<(Hand, [usize; 2])>) -> (Run, bool) {
    let fired = Arc::new(AtomicBool::new(false));
    let run = lab(async |lab| {
        scenario.prepare(lab).await;
        if let Some((hand, at)) = hand {
            let (server, fired) = (lab.world.server.clone(), fired.clone());
            let seen = AtomicUsize::new(0);
            lab.world.server.intercept(Meddler {
                hand,
                at,
                server,
                seen,
                fired,
            });
        }
        lab.start(scenario);
        let story = async {
            if let Some((hand, _)) = hand {
                lab.until("meddled", |lab| fired.load(Ordering::SeqCst) || scenario.over(lab))
                    .await;
                lab.pass(40).await;
                hand.rests(lab);
            }
            lab.until(&format!("{scenario:?} {hand:?} over"), |lab| scenario.over(lab))
                .await;
            lab.pass(30).await;
            lab.world.server.intercept(NoFaults);
            // Late: what is over is not changed by a command.
            let end = [lab.status("rollout"), lab.status("history"), lab.status("message")];
            lab.command("promote", "");
            lab.pass(5).await;
            lab.command("abort", "");
            lab.until("answered", |lab| scenario.over(lab)).await;
            assert_eq!(
                end,
                [lab.status("rollout"), lab.status("history"), lab.status("message")]
            );
            lab.quiet();
            lab.pass(60).await;
            let before = lab.requests();
            lab.pass(1800).await;
            assert_eq!(lab.requests(), before, "{scenario:?} {hand:?} is not quiet");
        };
        tokio::select! {
            biased;
            () = scenario.people(lab) => {}
            () = story => {}
        }
    });
    (run, fired.load(Ordering::SeqCst))
}

fn check(calm: &Run, hand: Hand, run: &Run) -> Vec<String> {
    let mut broken = properties::broken(run);
    let ignored = |line: &String| match hand {
        // Whoever restarts version 1 pays for what nginx learns late, and whoever edits version 2's Deployment too.
        Hand::StableRestarted => line.starts_with("requests failed") || line.starts_with("S6"),
        Hand::CanaryEdited => ["requests failed", "S4"].iter().any(|word| line.starts_with(word)),
        // Those weights are the other schedule's.
        Hand::Longer => line.starts_with("S7"),
        // More pods of version 1 after the weight was raised for fewer.
        Hand::StableScaled => line.starts_with("S4"),
        _ => false,
    };
    broken.retain(|line| !ignored(line));
    let end = |run: &Run| (run.outcome(), run.stable_image());
    if hand.is_weathered() && end(run) != end(calm) {
        broken.push(format!("ends as {:?}: {}", end(run), run.message()));
    }
    if hand == Hand::StableRestarted
        && run.outcome().as_deref() == Some("RolledBack")
        && run.stable_image() == "shop:v2"
    {
        broken.push(format!(
            "rolled back with version 2 in the stable Deployment: {}",
            run.message()
        ));
    }
    let commands = run.commands();
    if matches!(hand, Hand::Foreign | Hand::Gibberish) && commands != calm.commands() {
        broken.push(format!("a command that is none was carried out: {commands:?}"));
    }
    broken
}

fn sweep(scenario: Scenario) {
    let (calm, _) = play(scenario, None);
    let writes = calm.records.iter().filter(|record| is_written(record)).count();
    // Once, and again right away.
    let twice = |at: usize| [at, if at.is_multiple_of(2) { at + 1 } else { 0 }];
    let jobs: Vec<_> = (HANDS.iter())
        .flat_map(|hand| (1..=writes - 5).map(move |at| (*hand, twice(at))))
        .collect();
    let fired = AtomicUsize::new(0);
    let found = on_threads(&jobs, |(hand, at)| {
        let (run, hit) = play(scenario, Some((*hand, *at)));
        fired.fetch_add(usize::from(hit), Ordering::SeqCst);
        let broken = check(&calm, *hand, &run);
        broken
            .into_iter()
            .map(|line| format!("{scenario:?} {hand:?} at {at:?}: {line}"))
            .collect()
    });
    println!("{scenario:?}: {} runs, {} meddled with", jobs.len(), fired.into_inner());
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_command_whose_annotation_may_not_be_removed_is_told_and_writes_no_status_again_and_again() {
    let run = lab(async |lab| {
        lab.start(Scenario::Approval);
        lab.whenever(|lab| lab.reason() == "AwaitingApproval").await;
        let but_the_status =
            |call: &Call| is_write(call) && call.resource.plural == "canaryreleases" && call.subresource.is_empty();
        lab.world.server.intercept(Forbidden(but_the_status));
        lab.command("approve", "/1");
        lab.whenever(|lab| lab.reason() == "Forbidden").await;
        let statuses = |lab: &Lab| {
            let records = lab.world.server.records();
            records.iter().filter(|record| record.subresource == "status").count()
        };
        let before = statuses(lab);
        lab.pass(60).await;
        let written = statuses(lab) - before;
        assert!(written <= 30, "{written} statuses in a minute");
        lab.world.server.intercept(NoFaults);
        lab.whenever(|lab| lab.status("step") == "2/2").await;
    });
    assert!(run.trace().contains("grant the operator this right"), "{}", run.trace());
}

#[test]
fn a_release_with_approvals_survives_what_people_do_and_command_after_any_write() {
    sweep(Scenario::Approval);
}

#[test]
fn an_awaited_stable_deployment_survives_what_people_do_and_command_after_any_write() {
    sweep(Scenario::AwaitStable);
}

/// The requests of an hour in which the release waits for somebody or for a time.
async fn of_an_hour(lab: &Lab, reason: &str) -> usize {
    lab.until(reason, |lab| lab.reason() == reason).await;
    lab.pass(60).await;
    lab.quiet();
    lab.pass(60).await;
    let before = lab.requests();
    lab.pass(3600).await;
    assert_eq!(lab.reason(), reason);
    lab.requests() - before
}

#[test]
fn a_release_that_waits_for_somebody_or_for_a_time_sends_no_request() {
    let waits: [(&str, Value); 4] = [
        ("AwaitingApproval", json!({"steps": [{"weight": 10, "approval": true}]})),
        ("AwaitingStable", json!({"promotion": {"mode": "AwaitStable"}})),
        ("Paused", json!({"paused": true})),
        (
            "WindowClosed",
            json!({"windows": [{"from": "08:00", "to": "09:00", "timeZone": "UTC"}]}),
        ),
    ];
    for (reason, spec) in waits {
        let run = lab(async |lab| {
            lab.start_with(|release| {
                json_patch::merge(&mut release["spec"], &spec);
                release["spec"]["analysis"] = json!({"checks": []});
            });
            assert_eq!(of_an_hour(lab, reason).await, 0, "{reason}");
        });
        assert_eq!(run.failed, [], "{reason}");
    }
}

#[test]
fn a_release_that_is_judged_while_it_waits_tells_each_window_and_nothing_else() {
    lab(async |lab| {
        lab.start_with(|release| release["spec"]["steps"] = json!([{"weight": 10, "approval": true}]));
        let requests = of_an_hour(lab, "AwaitingApproval").await;
        assert!(requests <= 3600 / 30 + 2, "{requests} requests");
    });
}

#[test]
fn a_foreign_canary_that_goes_again_only_holds_the_release() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        Hand::ForeignCanary.works(&lab.world.server);
        lab.until("held", |lab| lab.status("phase") == "Holding").await;
        assert_eq!(lab.weight().as_deref(), Some("25"));
        Hand::ForeignCanary.rests(lab);
        lab.ended().await;
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"), "{}", run.message());
}

#[test]
fn a_canary_deployment_that_somebody_edits_is_not_promoted() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.step("2/3").await;
        Hand::CanaryEdited.works(&lab.world.server);
        lab.ended().await;
        assert_eq!(lab.status("rollout/reason"), "CanaryChanged");
    });
    assert_eq!(run.stable_image(), "shop:v1");
}

#[test]
fn an_undone_rollout_in_the_midst_of_promotion_loses_no_request() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.until("finishing", |lab| lab.status("rollout/stage") == "Finishing")
            .await;
        lab.pass(2).await;
        lab.edit(&stable(), |d| {
            d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v1")
        });
        lab.ended().await;
        assert_eq!(lab.status("rollout/reason"), "PromotionFailed");
    });
    assert_eq!((run.failed.len(), run.stable_image().as_str()), (0, "shop:v1"));
}

#[test]
fn a_canary_ingress_edited_while_version_1_is_replaced_is_put_right() {
    let run = lab(async |lab| {
        lab.start(Scenario::Good);
        lab.until("finishing", |lab| lab.status("rollout/stage") == "Finishing")
            .await;
        lab.edit(&canary_ingress(), |i| {
            i["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-weight"] = json!("50");
        });
        lab.pass(8).await;
        assert!(lab.weight().is_none_or(|weight| weight == "100"), "{:?}", lab.weight());
        lab.ended().await;
    });
    assert_eq!(run.outcome().as_deref(), Some("Promoted"));
    assert!(items(&run.release.unwrap(), "/status/history").len() == 1);
}
