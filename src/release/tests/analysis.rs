//! What follows from the verdicts on version 2.

use super::world::*;
use crate::{
    api::{CheckStatus, Phase, Stage, Verdict},
    release::{Kind, Op},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;

/// The first step at 10 %, whose time is over.
fn at_its_end(world: World) -> World {
    world.at_first_step().later(66)
}

/// As many rounds as it takes to have the pods for the next step, and its weight.
fn goes_on(world: World) -> World {
    world.rounds(1).canary_ready(2).rounds(1)
}

fn says(check: &mut CheckStatus, verdict: Verdict, message: &str) {
    check.verdict = Some(verdict);
    check.message = Some(format!("{} {message}", check.name));
}

fn no_data(check: &mut CheckStatus) {
    says(
        check,
        Verdict::NoData,
        "has no data: version 2 answered 0 requests in 1m, and a verdict takes 1",
    );
}

fn error(check: &mut CheckStatus) {
    says(
        check,
        Verdict::Error,
        "cannot be judged: ingress-nginx/one: no connection",
    );
    check.error_since = Some(MicroTime("2026-01-05T10:00:30Z".parse().unwrap()));
}

fn breached_once(check: &mut CheckStatus) {
    says(check, Verdict::Breach, "97.12% < 99% (1,204 requests, 30s)");
    check.breaches = 1;
}

fn breached_twice(check: &mut CheckStatus) {
    breached_once(check);
    check.breaches = 2;
}

fn step(world: &World) -> u32 {
    world.rollout().step
}

fn message(world: &World) -> String {
    world.release.status.as_ref().unwrap().message.clone().unwrap()
}

#[test]
fn the_weight_rises_when_every_check_has_passed_a_window_of_the_step() {
    let world = goes_on(at_its_end(world()));
    assert_eq!(step(&world), 2);
}

#[test]
fn missing_data_is_never_a_pass_and_says_what_is_missing() {
    let held = at_its_end(world()).checks(no_data).round();
    assert_eq!((held.phase(), step(&held)), (Phase::Holding, 1));
    let still = held.later(86_400).round();
    assert_eq!(
        (still.phase(), step(&still)),
        (Phase::Holding, 1),
        "it waits for requests, whatever that takes"
    );
    let back = still
        .when("requests come")
        .checks(|_| ())
        .round()
        .canary_ready(2)
        .round();
    assert_eq!(step(&back), 2);
    insta::assert_snapshot!(back.story);
}

#[test]
fn a_query_is_waited_for_from_the_first_step_on() {
    let check = json!({"name": "orders", "prometheus": {"query": "sum(orders)", "min": 1}});
    let world = world().spec(json!({"analysis": {"checks": [check]}}));
    let held = at_its_end(world.checks(no_data)).rounds(1);
    assert_eq!((held.phase(), step(&held)), (Phase::Holding, 1));
}

#[test]
fn whoever_says_so_goes_on_without_data() {
    let world = world().spec(json!({"analysis": {"noData": "pass"}}));
    let world = goes_on(at_its_end(world).checks(no_data));
    assert_eq!(step(&world), 2);
}

#[test]
fn a_verdict_that_is_not_of_this_step_or_not_of_now_is_none() {
    let not_yet = [
        |check: &mut CheckStatus| check.step = 0,
        |check: &mut CheckStatus| check.at = Some(Time("2026-01-05T10:00:11Z".parse().unwrap())),
        |check: &mut CheckStatus| check.verdict = None,
    ];
    for verdict in not_yet {
        let world = at_its_end(world()).checks(verdict).rounds(1);
        assert_eq!(
            (world.phase(), step(&world)),
            (Phase::Progressing, 1),
            "a moment is not worth a word"
        );
        let world = world.later(60).rounds(1);
        assert_eq!((world.phase(), step(&world)), (Phase::Holding, 1));
        assert!(
            message(&world).contains("check errors has not judged this step yet"),
            "{}",
            message(&world)
        );
    }
    let world = at_its_end(world()).unjudged().later(60).rounds(1);
    assert_eq!(
        (world.phase(), step(&world)),
        (Phase::Holding, 1),
        "nobody judges at all"
    );
}

#[test]
fn a_source_that_gives_no_answer_holds_the_weight_and_calls_a_person_after_a_while() {
    let held = at_its_end(world()).checks(error).round();
    assert_eq!((held.phase(), step(&held)), (Phase::Holding, 1));
    let late = held.later(600).round();
    assert_eq!((late.phase(), late.rollout().stage), (Phase::Stalled, Stage::Stepping));
    let back = late
        .when("the controllers answer again")
        .checks(|_| ())
        .round()
        .canary_ready(2)
        .round();
    assert_eq!(step(&back), 2);
    insta::assert_snapshot!(back.story);
}

#[test]
fn whoever_says_so_rolls_back_where_the_source_gives_no_answer() {
    let deadline = json!({"analysis": {"errorDeadline": {"after": "5m", "action": "rollback"}}});
    let world = world().spec(deadline).at_first_step().checks(error).later(60).rounds(1);
    assert_eq!(world.rollout().stage, Stage::Stepping);
    let world = world.later(300).rounds(1);
    assert_eq!(
        (world.rollout().stage, world.rollout().reason.as_deref()),
        (Stage::RollingBack, Some("AnalysisError"))
    );
}

#[test]
fn one_breach_holds_the_weight_and_as_many_as_the_limit_roll_back() {
    let bound = json!({"analysis": {"checks": [{"name": "success", "successRate": {"min": 99}}]}});
    let held = at_its_end(world().spec(bound)).checks(breached_once).round();
    assert_eq!((held.phase(), step(&held)), (Phase::Holding, 1));
    let back = held.later(30).checks(breached_twice).round();
    assert_eq!(back.rollout().reason.as_deref(), Some("SuccessRate"));
    insta::assert_snapshot!(back.story);
}

#[test]
fn data_that_is_missing_counts_like_a_breach_where_that_is_asked_for() {
    let world = world()
        .spec(json!({"analysis": {"noData": "fail"}}))
        .at_first_step()
        .later(40);
    let world = world
        .checks(|check| {
            no_data(check);
            check.breaches = 2;
        })
        .rounds(1);
    assert_eq!(world.rollout().reason.as_deref(), Some("NoData"));
}

#[test]
fn proof_of_harm_takes_the_traffic_away_in_the_very_same_round() {
    let mut world = world().at_first_step().later(3).checks(breached_once);
    world.judged.harm = Some("errors".to_owned());
    let decision = world.decide();
    assert!(
        matches!(&decision.writes[..], [first] if first.kind == Kind::Ingress && matches!(first.op, Op::Delete { .. }))
    );
    let world = world.round();
    assert_eq!(world.rollout().reason.as_deref(), Some("ErrorRegression"));
    insta::assert_snapshot!(world.story);
}

#[test]
fn harm_that_shows_only_while_version_2_carries_everything_is_rolled_back_too() {
    let mut world = world().promoting().later(3).checks(breached_once);
    world.judged.harm = Some("errors".to_owned());
    let world = world.rounds(1);
    assert_eq!(world.rollout().stage, Stage::RollingBack);
}

#[test]
fn weight_0_needs_no_requests_to_go_on() {
    let world = world()
        .steps(&[("0", "1m"), ("10", "1m")])
        .routed()
        .later(66)
        .unjudged();
    let world = world.rounds(1);
    assert_eq!(step(&world), 2);
}

#[test]
fn pods_alone_are_watched_where_no_check_is_asked_for() {
    let world = world().spec(json!({"analysis": {"checks": []}}));
    let world = goes_on(at_its_end(world).unjudged());
    assert_eq!(step(&world), 2);
}

#[test]
fn a_promotion_by_command_waits_for_no_verdict() {
    let world = world().at_first_step().checks(no_data).later(10).command("promote", "");
    let world = world.canary_ready(4).rounds(3);
    assert_eq!(world.rollout().stage, Stage::Promoting);
}

#[test]
fn what_is_shown_while_pods_for_everything_are_waited_for_counts() {
    let waiting = at_its_end(world())
        .rounds(1)
        .canary_ready(2)
        .rounds(1)
        .later(66)
        .rounds(1);
    assert_eq!(waiting.rollout().stage, Stage::Promoting);
    let mut harmed = waiting.clone().checks(breached_once);
    harmed.judged.harm = Some("errors".to_owned());
    assert_eq!(harmed.rounds(1).rollout().stage, Stage::RollingBack);
    let late = waiting.later(300).canary_ready(4);
    for doubtful in [late.clone().checks(no_data), late.clone().unjudged()] {
        let held = doubtful.rounds(1);
        assert_eq!(held.split("shop-ingress-v2").unwrap().weight.to_string(), "50");
        assert_eq!(held.phase(), Phase::Holding, "{}", message(&held));
        assert!(message(&held).contains("promotion waits"), "{}", message(&held));
    }
    let passed = late.rounds(1);
    assert_eq!(passed.split("shop-ingress-v2").unwrap().weight.to_string(), "100");
}

#[test]
fn version_1_is_not_replaced_while_it_serves_on_verdicts_that_have_grown_old() {
    let spec = json!({"promotion": {"shiftTraffic": "Never"}});
    let entered = world().spec(spec).at_last_step().later(66).rounds(1);
    assert_eq!(entered.rollout().stage, Stage::Promoting);
    let replaces = |world: World| world.decide().writes.iter().any(|write| write.name == "shop");
    assert!(replaces(entered.clone()));
    assert!(!replaces(entered.later(300).unjudged()));
}

#[test]
fn a_step_ends_early_where_harm_is_ruled_out_and_that_is_asked_for() {
    let mut asked = world()
        .spec(json!({"analysis": {"earlyAdvance": true}}))
        .at_first_step()
        .later(36);
    let waits = asked.clone().rounds(1);
    assert_eq!(step(&waits), 1);
    asked.judged.harmless = true;
    assert_eq!(step(&goes_on(asked)), 2);
    let mut unasked = world().at_first_step().later(36);
    unasked.judged.harmless = true;
    assert_eq!(step(&goes_on(unasked)), 1);
}

#[test]
fn trouble_is_told_while_the_step_still_has_time() {
    let world = world().at_first_step().later(40).checks(breached_once).rounds(1);
    assert_eq!(world.phase(), Phase::Progressing);
    insta::assert_snapshot!(message(&world));
}

#[test]
fn what_the_plan_can_find_is_told_before_version_2_gets_requests() {
    let mut world = world()
        .steps(&[("10", "5m"), ("50", "5m")])
        .routed()
        .counted(10, 100, 0);
    world.judged.all = world.judged.live.take();
    world.may_play = false;
    let busy = world.clone().later(6).round();
    assert_eq!(
        (step(&busy), &busy.rollout().power),
        (1, &None),
        "the weight does not wait for it"
    );
    world.may_play = true;
    let world = world.later(6).round();
    insta::assert_snapshot!(world.rollout().power.as_deref().unwrap());
    assert_eq!(
        world.rollout().warnings.last(),
        world.rollout().power.as_ref(),
        "it misses most doublings"
    );
}

#[test]
fn requests_that_nginx_answered_itself_are_told_at_the_end() {
    let world = world()
        .finishing()
        .remember(|rollout| rollout.of_nginx = 177)
        .stable_ready(4)
        .stable_rolled_out();
    let world = world.rounds(1).later(6).rounds(1).later(6).rounds(3);
    assert_eq!(world.phase(), Phase::Promoted, "{}", message(&world));
    insta::assert_snapshot!(message(&world));
}

#[test]
fn an_approval_is_asked_for_at_once_and_lets_nothing_go_on_that_has_not_passed() {
    let approval = json!({"steps": [{"weight": 10, "approval": true}, {"weight": 50, "hold": "1m"}]});
    let asked = world()
        .spec(approval)
        .at_first_step()
        .later(6)
        .checks(no_data)
        .rounds(1);
    assert_eq!(asked.phase(), Phase::Paused);
    insta::assert_snapshot!(message(&asked));
    let approved = asked.later(10).command("approve", "/1").rounds(1);
    assert_eq!((approved.phase(), step(&approved)), (Phase::Holding, 1));
    assert_eq!(step(&goes_on(approved.later(10).checks(|_| ()))), 2);
}
