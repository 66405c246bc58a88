//! What a judge says of what is counted, look by look.

use super::*;
use crate::{
    analysis::{Edge, Exposed, Status},
    api::{Analysis, Step},
};
use serde_json::{Value, json};

fn at(second: u64) -> Timestamp {
    "2026-01-05T10:00:00Z".parse::<Timestamp>().unwrap() + Duration::from_secs(second)
}

/// Controllers that are asked once a second, and a judge of what they count. The weight is live from second 0 on.
struct Trial {
    rules: Rules,
    in_force: InForce,
    judge: Judge,
    counts: Counts,
    second: u64,
    answers: BTreeMap<String, Answer>,
    silent: bool,
}

fn trial(analysis: Value) -> Trial {
    let analysis: Analysis = serde_json::from_value(analysis).unwrap();
    let step: Step = serde_json::from_value(json!({"weight": 10, "hold": "5m"})).unwrap();
    let rules = Rules::of(Some(&analysis), Some(&step));
    Trial {
        rules,
        in_force: InForce {
            step: 1,
            weight: "10".parse().unwrap(),
            live: at(0),
            chosen: None,
            denied: false,
        },
        judge: Judge::resume(&[]),
        counts: Counts {
            since: at(0),
            began: at(0),
            at: at(0),
            complete: true,
            missing: Vec::new(),
            exposed: Exposed::Requests,
            stable: Side::default(),
            canary: Side::default(),
            elsewhere: 0,
            met: None,
        },
        second: 0,
        answers: BTreeMap::new(),
        silent: false,
    }
}

/// A check that bounds nothing else than success.
fn success(min: f64) -> Value {
    json!({"interval": "30s", "checks": [{"name": "success", "successRate": {"min": min}}]})
}

fn comparison() -> Value {
    json!({"interval": "30s", "checks": [{"name": "errors", "errorRegression": {}}]})
}

/// Requests of one version in a second: answered well, and failed.
#[derive(Clone, Copy, Default)]
struct Rate(u64, u64);

fn answered(side: &mut Side, Rate(well, failed): Rate) {
    for (code, count) in [(200, well), (500, failed)] {
        *side.requests.entry(Status::Code(code)).or_default() += count;
        *side.answered.entry(Status::Code(code)).or_default() += count;
    }
}

impl Trial {
    fn look(&mut self) -> Judged {
        let look = Look {
            now: at(self.second),
            rules: &self.rules,
            in_force: Some(&self.in_force),
            counts: Some(&self.counts),
            lag: Duration::ZERO,
            uncounted: None,
            answers: &self.answers,
        };
        self.judge.look(&look)
    }

    /// So many seconds in which both versions get requests; what is found at their end.
    fn seconds(&mut self, seconds: u64, stable: Rate, canary: Rate) -> Judged {
        let mut judged = self.look();
        for _ in 0..seconds {
            self.second += 1;
            answered(&mut self.counts.stable, stable);
            answered(&mut self.counts.canary, canary);
            if !self.silent {
                (self.counts.began, self.counts.at) = (at(self.second), at(self.second));
            }
            judged = self.look();
        }
        judged
    }

    /// The operator dies, and another goes on with what is recorded; it counts from now on.
    fn restarts(&mut self, judged: &Judged) {
        let recorded = serde_json::to_string(&judged.checks).unwrap();
        let recorded: Vec<CheckStatus> = serde_json::from_str(&recorded).unwrap();
        self.judge = Judge::resume(&recorded);
        (self.counts.stable, self.counts.canary) = Default::default();
    }
}

fn verdict(judged: &Judged) -> Option<Verdict> {
    judged.checks[0].verdict
}

fn message(judged: &Judged) -> &str {
    judged.checks[0].message.as_deref().unwrap_or_default()
}

const WELL: Rate = Rate(45, 0);

#[test]
fn a_window_ends_in_a_verdict_with_value_limit_and_sample_size() {
    let mut trial = trial(success(99.0));
    let before = trial.seconds(29, WELL, Rate(39, 1));
    assert_eq!(verdict(&before), None, "{}", message(&before));
    let judged = trial.seconds(1, WELL, Rate(39, 1));
    assert_eq!(verdict(&judged), Some(Verdict::Breach));
    assert_eq!(message(&judged), "success 97.5% < 99% (1,200 requests, 30s)");
    assert_eq!((judged.checks[0].breaches, judged.checks[0].requests), (1, Some(1200)));
    let judged = trial.seconds(30, WELL, Rate(5, 0));
    assert_eq!(message(&judged), "success 100% >= 99% (150 requests, 30s)");
    assert_eq!((verdict(&judged), judged.checks[0].breaches), (Some(Verdict::Pass), 0));
}

#[test]
fn a_window_goes_on_until_it_has_requests_enough() {
    let mut trial = trial(success(99.0));
    let judged = trial.seconds(30, WELL, Rate(1, 0));
    assert_eq!(verdict(&judged), Some(Verdict::NoData));
    assert_eq!(
        message(&judged),
        "success has no data: version 2 answered 30 requests in 30s, and a verdict takes 100"
    );
    let judged = trial.seconds(69, WELL, Rate(1, 0));
    assert_eq!(verdict(&judged), Some(Verdict::NoData));
    let judged = trial.seconds(1, WELL, Rate(1, 0));
    assert_eq!(message(&judged), "success 100% >= 99% (100 requests, 1m40s)");
}

#[test]
fn no_request_at_all_is_no_pass() {
    let mut trial = trial(comparison());
    let judged = trial.seconds(300, WELL, Rate(0, 0));
    assert_eq!(verdict(&judged), Some(Verdict::NoData), "{}", message(&judged));
}

#[test]
fn what_came_before_the_weight_was_live_is_in_no_window() {
    let mut trial = trial(success(99.0));
    trial.in_force.live = at(20);
    trial.seconds(19, WELL, Rate(0, 40));
    let judged = trial.seconds(31, WELL, Rate(40, 0));
    assert_eq!(message(&judged), "success 100% >= 99% (1,200 requests, 30s)");
}

#[test]
fn requests_during_the_warm_up_are_left_out() {
    let mut trial = trial(json!({"interval": "30s", "warmUp": "20s",
        "checks": [{"name": "success", "successRate": {"min": 99}}, {"name": "errors", "errorRegression": {}}]}));
    let judged = trial.seconds(19, WELL, Rate(0, 5));
    assert_eq!((judged.harm, judged.checks[1].evidence.len()), (None, 0));
    let judged = trial.seconds(31, WELL, Rate(5, 0));
    assert_eq!(message(&judged), "success 100% >= 99% (150 requests, 30s)");
}

#[test]
fn another_step_begins_another_window() {
    let mut trial = trial(success(99.0));
    trial.seconds(25, WELL, Rate(0, 40));
    (trial.in_force.step, trial.in_force.live) = (2, at(25));
    let judged = trial.seconds(30, WELL, Rate(40, 0));
    assert_eq!(
        (message(&judged), judged.checks[0].step),
        ("success 100% >= 99% (1,200 requests, 30s)", 2)
    );
}

#[test]
fn what_nginx_answers_itself_counts_for_neither_version_and_is_told() {
    let mut trial = trial(success(99.0));
    trial.seconds(29, WELL, Rate(10, 0));
    *trial.counts.canary.requests.entry(Status::Code(503)).or_default() += 177;
    let judged = trial.seconds(1, WELL, Rate(10, 0));
    assert_eq!(
        message(&judged),
        "success 100% >= 99% (300 requests, 30s; nginx itself answered 177 more)"
    );
    assert_eq!(judged.all.unwrap().canary.of_nginx(), 177);
}

#[test]
fn counts_that_do_not_come_are_an_error_and_the_window_ends_when_they_come_again() {
    let mut trial = trial(success(99.0));
    trial.seconds(20, WELL, Rate(10, 0));
    (trial.counts.complete, trial.counts.missing) = (false, vec!["ingress-nginx/one: no connection".to_owned()]);
    let judged = trial.seconds(19, WELL, Rate(10, 0));
    assert_eq!(verdict(&judged), None);
    let judged = trial.seconds(1, WELL, Rate(10, 0));
    assert_eq!(verdict(&judged), Some(Verdict::Error));
    assert_eq!(
        message(&judged),
        "success cannot be judged: ingress-nginx/one: no connection"
    );
    let since = judged.checks[0].error_since.clone();
    let judged = trial.seconds(30, WELL, Rate(10, 0));
    assert_eq!((&judged.checks[0].error_since, since.is_some()), (&since, true));
    trial.counts.complete = true;
    let judged = trial.seconds(1, WELL, Rate(10, 0));
    assert_eq!(message(&judged), "success 100% >= 99% (700 requests, 1m10s)");
    assert_eq!(judged.checks[0].error_since, None);
}

#[test]
fn a_message_keeps_to_the_bound_of_the_status_however_many_controllers_are_silent() {
    let mut trial = trial(success(99.0));
    trial.seconds(20, WELL, Rate(10, 0));
    trial.counts.complete = false;
    trial.counts.missing = vec!["ingress-nginx/ü: no connection".to_owned(); 100];
    let judged = trial.seconds(20, WELL, Rate(10, 0));
    assert_eq!(message(&judged).chars().count(), 1024);
}

#[test]
fn controllers_that_nobody_asks_are_an_error() {
    let mut trial = trial(success(99.0));
    trial.seconds(20, WELL, Rate(10, 0));
    trial.silent = true;
    let judged = trial.seconds(20, WELL, Rate(10, 0));
    assert_eq!(verdict(&judged), Some(Verdict::Error), "{}", message(&judged));
}

#[test]
fn controllers_without_metrics_are_an_error_that_says_how_to_switch_them_on() {
    let mut trial = trial(comparison());
    trial.counts.exposed = Exposed::Nothing;
    let judged = trial.seconds(30, Rate(0, 0), Rate(0, 0));
    assert_eq!(verdict(&judged), Some(Verdict::Error));
    assert!(
        message(&judged).contains("controller.metrics.enabled"),
        "{}",
        message(&judged)
    );
}

#[test]
fn a_version_2_that_fails_is_found_within_seconds() {
    let mut trial = trial(comparison());
    let found = (1..30).find(|_| trial.seconds(1, WELL, Rate(4, 1)).harm.is_some());
    assert!(found.unwrap() <= 5, "{found:?}");
    let judged = trial.look();
    assert_eq!(
        (judged.harm.as_deref(), verdict(&judged)),
        (Some("errors"), Some(Verdict::Breach))
    );
    insta::assert_snapshot!(message(&judged));
}

#[test]
fn clients_that_give_up_are_failures_in_a_comparison_and_not_by_a_bound_unless_they_are_asked_for() {
    let given_up = |check: Value| {
        let mut trial = trial(json!({"interval": "30s", "failureLimit": 1, "checks": [check]}));
        trial.look();
        for (side, code) in [(&mut trial.counts.stable, 200), (&mut trial.counts.canary, 499)] {
            side.requests.insert(Status::Code(code), 200);
            side.answered.insert(Status::Code(code), 200);
        }
        verdict(&trial.seconds(30, WELL, Rate(5, 0)))
    };
    let asked = json!({"min": 99, "failures": ["5xx", "499"]});
    assert_eq!(
        given_up(json!({"name": "errors", "errorRegression": {}})),
        Some(Verdict::Breach)
    );
    assert_eq!(
        given_up(json!({"name": "errors", "errorRegression": {"failures": ["5xx"]}})),
        Some(Verdict::Pass)
    );
    assert_eq!(
        given_up(json!({"name": "success", "successRate": {"min": 99}})),
        Some(Verdict::Pass)
    );
    assert_eq!(
        given_up(json!({"name": "success", "successRate": asked})),
        Some(Verdict::Breach)
    );
}

#[test]
fn failures_are_weighed_while_a_raised_weight_still_spreads() {
    let mut trial = trial(comparison());
    trial.in_force.live = at(60);
    let judged = trial.seconds(10, WELL, Rate(4, 1));
    assert!(judged.harm.is_some());
}

#[test]
fn an_incident_that_both_versions_share_says_nothing_about_version_2() {
    let mut trial = trial(comparison());
    trial.seconds(60, WELL, Rate(5, 0));
    let judged = trial.seconds(60, Rate(18, 27), Rate(2, 3));
    assert_eq!((&judged.harm, verdict(&judged)), (&None, Some(Verdict::Pass)));
    let judged = trial.look();
    insta::assert_snapshot!(message(&judged));
}

#[test]
fn evidence_outlives_an_operator_and_the_window_starts_over() {
    let mut trial = trial(comparison());
    let mut judged = trial.seconds(2, WELL, Rate(4, 1));
    let before = judged.checks[0].evidence[0].log_harm();
    assert!(before > 2.0 && judged.harm.is_none(), "{before}");
    trial.restarts(&judged);
    judged = trial.look();
    assert!((judged.checks[0].evidence[0].log_harm() - before).abs() < 1e-6);
    judged = trial.seconds(2, WELL, Rate(4, 1));
    assert!(judged.harm.is_some());
}

#[test]
fn a_window_that_an_operator_did_not_see_the_beginning_of_is_judged_from_when_it_is_back() {
    let mut trial = trial(success(99.0));
    let judged = trial.seconds(20, WELL, Rate(0, 40));
    trial.restarts(&judged);
    let judged = trial.seconds(29, WELL, Rate(40, 0));
    assert_eq!(verdict(&judged), None);
    let judged = trial.seconds(1, WELL, Rate(40, 0));
    assert_eq!(message(&judged), "success 100% >= 99% (1,200 requests, 30s)");
}

#[test]
fn a_check_that_asks_for_something_else_starts_anew_and_the_others_go_on() {
    let both = |min: f64| json!({"checks": [{"name": "success", "successRate": {"min": min}}, {"name": "errors", "errorRegression": {}}]});
    let mut trial = trial(both(99.0));
    let judged = trial.seconds(31, WELL, Rate(38, 0));
    assert_eq!(judged.checks[0].verdict, Some(Verdict::Pass));
    let evidence = judged.checks[1].evidence.clone();
    let analysis: Analysis = serde_json::from_value(both(98.0)).unwrap();
    trial.rules = Rules::of(Some(&analysis), None);
    let judged = trial.look();
    assert_eq!(
        (judged.checks[0].verdict, &judged.checks[1].evidence),
        (None, &evidence)
    );
}

#[test]
fn several_comparisons_share_one_chance_of_being_wrong() {
    let alone = |checks: Value| {
        let mut trial = trial(json!({"interval": "30s", "checks": checks}));
        (1..60)
            .find(|_| trial.seconds(1, WELL, Rate(9, 1)).harm.is_some())
            .unwrap()
    };
    let errors = json!({"name": "errors", "errorRegression": {}});
    let one = alone(json!([errors]));
    let never = json!({"name": "tolerant", "errorRegression": {"ignoreBelow": 10}});
    let two = alone(json!([errors, never]));
    assert!(one <= two && two < one + 10, "{one} and {two}");
}

#[test]
fn testers_and_pinned_clients_are_judged_by_a_bound_that_says_why() {
    let mut trial = trial(comparison());
    trial.in_force.chosen = Some("testers choose version 2 themselves (spec.traffic)");
    let judged = trial.seconds(30, WELL, Rate(4, 1));
    assert_eq!(
        (judged.harm.as_deref(), verdict(&judged)),
        (None, Some(Verdict::Breach))
    );
    insta::assert_snapshot!(message(&judged));
    let judged = trial.seconds(30, Rate(45, 5), Rate(5, 0));
    assert_eq!(verdict(&judged), Some(Verdict::Pass));
}

fn timed(side: &mut Side, requests: u64, within: &[(u64, u64)]) {
    answered(side, Rate(requests, 0));
    for (millis, count) in within {
        *side
            .within
            .entry(Edge::from(Duration::from_millis(*millis)))
            .or_default() += count;
    }
}

#[test]
fn a_slow_version_2_breaks_a_latency_bound() {
    let mut trial =
        trial(json!({"interval": "30s", "checks": [{"name": "fast", "latency": {"quantile": 0.99, "max": "500ms"}}]}));
    trial.seconds(1, WELL, Rate(0, 0));
    timed(&mut trial.counts.canary, 200, &[(250, 180), (500, 190), (1000, 200)]);
    let judged = trial.seconds(29, WELL, Rate(0, 0));
    assert_eq!(
        (verdict(&judged), message(&judged)),
        (Some(Verdict::Breach), "fast p99 900ms > 500ms (200 requests, 30s)")
    );
}

#[test]
fn a_bound_beyond_the_last_bucket_cannot_be_judged() {
    let mut trial =
        trial(json!({"interval": "30s", "checks": [{"name": "fast", "latency": {"quantile": 0.9, "max": "30s"}}]}));
    trial.seconds(1, WELL, Rate(0, 0));
    timed(&mut trial.counts.canary, 200, &[(1000, 20), (10_000, 30)]);
    let judged = trial.seconds(29, WELL, Rate(0, 0));
    assert_eq!(verdict(&judged), Some(Verdict::Error), "{}", message(&judged));
}

#[test]
fn a_version_2_that_is_slow_more_often_is_found_by_comparison() {
    let mut trial = trial(json!({"interval": "30s", "checks": [{"name": "slow", "latencyRegression": {}}]}));
    trial.look();
    let mut harm = None;
    for _ in 0..10 {
        timed(
            &mut trial.counts.stable,
            45,
            &[(100, 45), (250, 45), (500, 45), (1000, 45), (2500, 45)],
        );
        timed(
            &mut trial.counts.canary,
            5,
            &[(100, 3), (250, 3), (500, 5), (1000, 5), (2500, 5)],
        );
        harm = harm.or(trial.seconds(1, Rate(0, 0), Rate(0, 0)).harm);
    }
    assert_eq!(harm.as_deref(), Some("slow"));
    insta::assert_snapshot!(message(&trial.look()));
}

#[test]
fn a_time_that_no_bucket_ends_at_is_told_with_those_that_do() {
    let mut trial =
        trial(json!({"interval": "30s", "checks": [{"name": "slow", "latencyRegression": {"above": ["300ms"]}}]}));
    trial.look();
    timed(&mut trial.counts.canary, 50, &[(250, 10), (500, 20)]);
    let judged = trial.seconds(30, Rate(0, 0), Rate(0, 0));
    assert_eq!(verdict(&judged), Some(Verdict::Error));
    insta::assert_snapshot!(message(&judged));
}

fn queries() -> Trial {
    trial(
        json!({"interval": "30s", "checks": [{"name": "orders", "prometheus": {"query": "orders", "min": 10, "max": 20}}]}),
    )
}

#[test]
fn a_query_is_judged_by_its_bounds_once_all_of_what_it_looks_back_to_is_of_this_weight() {
    let mut trial = queries();
    let mut answer = |second, result| {
        trial
            .answers
            .insert("orders".to_owned(), Answer { at: at(second), result });
        trial.second = second;
        let judged = trial.look();
        (verdict(&judged), message(&judged).to_owned(), judged.checks[0].breaches)
    };
    assert_eq!(answer(29, Ok(Some(1.0))).0, None);
    assert_eq!(
        answer(30, Ok(Some(9.5))),
        (Some(Verdict::Breach), "orders 9.5 < 10".to_owned(), 1)
    );
    assert_eq!(
        answer(60, Ok(Some(20.5))),
        (Some(Verdict::Breach), "orders 20.5 > 20".to_owned(), 2)
    );
    assert_eq!(answer(90, Ok(None)).0, Some(Verdict::NoData));
    assert_eq!(answer(120, Err("HTTP status 503".to_owned())).0, Some(Verdict::Error));
    assert_eq!(
        answer(150, Ok(Some(15.0))),
        (Some(Verdict::Pass), "orders 15 within 10 to 20".to_owned(), 0)
    );
}

#[test]
fn an_answer_is_judged_once() {
    let mut trial = queries();
    trial.answers.insert(
        "orders".to_owned(),
        Answer {
            at: at(30),
            result: Ok(Some(1.0)),
        },
    );
    let judged = trial.seconds(35, WELL, WELL);
    assert_eq!(judged.checks[0].breaches, 1);
    let judged = trial.seconds(60, WELL, WELL);
    assert_eq!(
        (verdict(&judged), judged.checks[0].breaches),
        (Some(Verdict::Error), 1),
        "none has come since"
    );
}

#[test]
fn at_weight_0_there_is_nothing_to_compare() {
    let mut trial = trial(comparison());
    trial.in_force.weight = Weight::ZERO;
    let judged = trial.seconds(60, WELL, Rate(0, 5));
    assert_eq!((verdict(&judged), judged.harm), (None, None));
}

#[test]
fn requests_are_counted_closely_after_a_raise_and_before_a_verdict_and_seldom_between() {
    let mut trial = trial(success(99.0));
    let pace = |trial: &mut Trial, second| {
        trial.second = second;
        trial.look();
        let look = Look {
            now: at(second),
            rules: &trial.rules,
            in_force: Some(&trial.in_force),
            counts: None,
            lag: Duration::ZERO,
            uncounted: None,
            answers: &BTreeMap::new(),
        };
        trial.judge.pace(&look)
    };
    trial.seconds(31, WELL, Rate(40, 0));
    assert_eq!(
        [pace(&mut trial, 20), pace(&mut trial, 40), pace(&mut trial, 57)],
        [OFTEN, SELDOM, OFTEN]
    );
}

#[test]
fn who_starts_over_gives_the_controllers_time_to_answer_before_it_tells_an_error() {
    let mut trial = trial(success(99.0));
    let judged = trial.seconds(45, WELL, WELL);
    trial.restarts(&judged);
    trial.silent = true;
    trial.counts.complete = false;
    let judged = trial.seconds(9, WELL, WELL);
    assert_eq!(verdict(&judged), Some(Verdict::Pass));
    let judged = trial.seconds(1, WELL, WELL);
    assert_eq!(verdict(&judged), Some(Verdict::Error));
}
