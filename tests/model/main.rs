//! Every state that a small cluster can get into with the planner in it, and what must hold in each.

// clippy.toml's leave for tests reaches #[test] functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cluster;
mod model;
mod objects;
mod planner;

use model::{Edit, Release, Size};
use planner::{Judgement, Planner};
use serde_json::json;
use stateright::{Checker, HasDiscoveries, Model};
use std::{collections::BTreeSet, time::Instant};

/// One pod, one step, nobody who interferes: watches that lag, pods that crash, calls that take their time, and an operator
/// that dies between any two of them.
fn small() -> Size {
    Size {
        replicas: 1,
        steps: json!([{"weight": 50, "hold": "30s"}]),
        edits: Vec::new(),
        most_edits: 0,
        judgements: vec![Judgement::Pass, Judgement::NoData, Judgement::Harm],
        lag: true,
        unheard: false,
        flap: false,
        crash_loop: true,
        slow: true,
    }
}

/// Explores everything; what does not hold, with the way to the first.
fn explore(name: &str, size: Size, planner: Planner) -> BTreeSet<&'static str> {
    let begun = Instant::now();
    let checker = Release::new(size, planner).checker().threads(1);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{name}: {} states, {} transitions, depth {}, {} looks of the planner, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.model().mind.looks(),
        begun.elapsed().as_secs_f64()
    );
    let mut broken = BTreeSet::new();
    let mut found = BTreeSet::new();
    for (property, path) in checker.discoveries() {
        if !checker.model().property(property).expectation.discovery_is_failure() {
            found.insert(property);
            continue;
        }
        if planner == Planner::Real {
            println!("{property}");
            for (state, action) in path.into_vec() {
                println!("  {}", state.told());
                if let Some(action) = action {
                    println!("{action:?}");
                }
            }
        }
        broken.insert(property);
    }
    // What never happened was not looked at.
    assert!(!broken.is_empty() || found.len() >= 2, "{name}: only {found:?}");
    broken
}

/// What a mistaken planner breaks, by the first words: S5, L1.
fn mistakes(planner: Planner) -> Vec<&'static str> {
    let size = Size {
        edits: vec![Edit::Hotfix],
        most_edits: 1,
        lag: false,
        slow: false,
        ..small()
    };
    let broken = explore(&format!("{planner:?}"), size, planner);
    broken
        .iter()
        .filter_map(|property| property.split(':').next())
        .collect()
}

fn holds(name: &str, size: Size) {
    assert_eq!(explore(name, size, Planner::Real), BTreeSet::new());
}

#[test]
fn nothing_goes_wrong_while_nobody_interferes() {
    holds("alone", small());
}

#[test]
fn nothing_goes_wrong_whatever_somebody_asks_for_meanwhile() {
    let size = Size {
        edits: vec![Edit::Delete, Edit::NewImage, Edit::Pause, Edit::Abort, Edit::Hotfix],
        most_edits: 1,
        judgements: vec![Judgement::Pass, Judgement::Harm],
        lag: false,
        slow: false,
        ..small()
    };
    holds("edits", size);
}

/// Minutes; `MODEL=all` asks for them.
#[test]
fn nothing_goes_wrong_in_a_larger_world() {
    if std::env::var("MODEL").as_deref() != Ok("all") {
        return;
    }
    let two = Size {
        replicas: 2,
        slow: false,
        ..small()
    };
    let flap = Size {
        flap: true,
        slow: false,
        ..small()
    };
    let scale = Size {
        edits: vec![Edit::Scale(1), Edit::Scale(2), Edit::Hotfix],
        most_edits: 1,
        slow: false,
        ..small()
    };
    let late = Size {
        edits: vec![Edit::Delete, Edit::Pause],
        most_edits: 1,
        slow: false,
        ..small()
    };
    holds("two pods", two);
    holds("flapping pods", flap);
    holds("late deletion or pause", late);
    holds("scaling", scale);
}

/// Somebody deletes or changes the canary Ingress, and the operator dies after it put it right.
fn meddled() -> Size {
    Size {
        edits: vec![Edit::Prune, Edit::Unweigh],
        most_edits: 2,
        judgements: vec![Judgement::Pass],
        lag: false,
        crash_loop: false,
        slow: false,
        ..small()
    }
}

#[test]
fn nothing_goes_wrong_where_a_canary_ingress_is_gone_or_back_and_nobody_recorded_why() {
    let back = Size {
        edits: vec![Edit::NewImage, Edit::OldImage],
        most_edits: 2,
        judgements: vec![Judgement::Pass, Judgement::Harm],
        lag: false,
        slow: false,
        ..small()
    };
    holds("another version and back", back);
    holds("somebody deletes or changes the canary Ingress", meddled());
}

#[test]
fn a_planner_that_does_not_know_when_an_ingress_was_put_right_is_found_out() {
    let broken = explore("Dateless", meddled(), Planner::Dateless);
    assert!(broken.iter().any(|property| property.starts_with("S6")), "{broken:?}");
}

#[test]
fn a_planner_that_puts_right_what_its_predecessor_took_away_is_found_out() {
    let size = Size { slow: false, ..small() };
    let broken = explore("Unaware", size, Planner::Unaware);
    assert!(broken.iter().any(|property| property.starts_with("S2")), "{broken:?}");
}

#[test]
fn a_planner_that_does_not_wait_for_nginx_is_found_out() {
    let broken = mistakes(Planner::Hasty);
    assert!(
        broken.iter().any(|property| ["S4", "S5", "S6"].contains(property)),
        "{broken:?}"
    );
}

#[test]
fn a_planner_that_makes_objects_before_it_guards_them_is_found_out() {
    assert_eq!(mistakes(Planner::Backwards), ["S10"]);
}

#[test]
fn a_planner_that_names_no_versions_is_found_out() {
    assert_eq!(mistakes(Planner::Unversioned), ["S9"]);
}

#[test]
fn a_planner_that_takes_missing_data_for_a_pass_is_found_out() {
    let broken = mistakes(Planner::Trusting);
    assert!(broken.contains(&"S2"), "{broken:?}");
}

#[test]
fn a_planner_that_sees_pods_where_there_are_none_is_found_out() {
    assert_eq!(mistakes(Planner::Blind), ["S4"]);
}

#[test]
fn a_planner_that_keeps_its_finalizer_is_found_out() {
    assert_eq!(mistakes(Planner::Clinging), ["L1"]);
}

#[test]
fn a_planner_that_forgets_when_it_took_the_traffic_away_is_found_out() {
    assert_eq!(mistakes(Planner::Forgetful), ["L1"]);
}
