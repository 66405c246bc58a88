//! How a rolling update moves replicas from old ReplicaSets to the new one: pure arithmetic.

use super::super::json::int;
use serde_json::Value;

/// One ReplicaSet as the arithmetic sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// `spec.replicas`.
    pub replicas: i64,
    /// Pods that exist, ending ones included.
    pub pods: i64,
    /// Pods that count as available.
    pub available: i64,
    /// Whether this set carries the Deployment's present template.
    pub is_new: bool,
}

/// How many pods a Deployment may have, and must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// `spec.replicas`.
    pub desired: i64,
    /// Pods allowed above `desired`.
    pub surge: i64,
    /// Pods allowed to be missing.
    pub unavailable: i64,
    /// Old pods go before new ones come.
    pub recreate: bool,
}

impl Bounds {
    /// The bounds of a Deployment. Percentages round up for the surge and down for what may be missing.
    pub fn of(deployment: &Value) -> Self {
        let desired = int(deployment, "/spec/replicas").unwrap_or(1);
        let at = |field: &str| deployment.pointer(&format!("/spec/strategy/rollingUpdate/{field}"));
        let surge = absolute(at("maxSurge"), desired, true);
        let unavailable = absolute(at("maxUnavailable"), desired, false);
        let recreate = super::super::json::text(deployment, "/spec/strategy/type") == "Recreate";
        // Both zero would never move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self {
            desired,
            surge,
            unavailable: unavailable.min(desired),
            recreate,
        }
    }
}

fn absolute(value: Option<&Value>, of: i64, up: bool) -> i64 {
    match value {
        Some(Value::Number(n)) => n.as_i64().unwrap_or(0),
        Some(Value::String(s)) => {
            let percent: i64 = s.trim_end_matches('%').parse().unwrap_or(0);
            (percent * of + if up { 99 } else { 0 }) / 100
        }
        _ => absolute(Some(&Value::String("25%".into())), of, up),
    }
}

/// The replicas each set should have next.
pub fn next(bounds: Bounds, sets: &[Set]) -> Vec<i64> {
    let mut out: Vec<i64> = sets.iter().map(|s| s.replicas).collect();
    if bounds.recreate {
        let old_pods: i64 = sets.iter().filter(|s| !s.is_new).map(|s| s.pods).sum();
        for (slot, set) in out.iter_mut().zip(sets) {
            *slot = match (set.is_new, old_pods) {
                (true, 0) => bounds.desired,
                (true, _) => set.replicas.min(bounds.desired),
                (false, _) => 0,
            };
        }
        return out;
    }
    let total: i64 = out.iter().sum();
    let room = (bounds.desired + bounds.surge - total).max(0);
    let mut new_unavailable = 0;
    for (slot, set) in out.iter_mut().zip(sets).filter(|(_, s)| s.is_new) {
        *slot = if set.replicas > bounds.desired {
            bounds.desired
        } else {
            set.replicas + room.min(bounds.desired - set.replicas)
        };
        new_unavailable += (*slot - set.available).max(0);
    }
    // Old pods may go as long as enough stay; those that do not serve go first.
    let total: i64 = out.iter().sum();
    let mut spare = (total - (bounds.desired - bounds.unavailable) - new_unavailable).max(0);
    for (slot, set) in out.iter_mut().zip(sets).filter(|(_, s)| !s.is_new) {
        let unhealthy = (*slot - set.available).max(0).min(spare);
        *slot -= unhealthy;
        spare -= unhealthy;
    }
    let available: i64 = sets.iter().map(|s| s.available).sum();
    let mut spare = (available - (bounds.desired - bounds.unavailable)).clamp(0, spare);
    for (slot, _) in out.iter_mut().zip(sets).filter(|(_, s)| !s.is_new) {
        let gone = (*slot).min(spare);
        *slot -= gone;
        spare -= gone;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages_round_up_for_the_surge_and_down_for_what_may_be_missing() {
        let of = |replicas: i64| Bounds::of(&json!({"spec": {"replicas": replicas}}));
        assert_eq!((of(10).surge, of(10).unavailable), (3, 2));
        assert_eq!((of(1).surge, of(1).unavailable), (1, 0));
        let none = Bounds::of(
            &json!({"spec": {"replicas": 3, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}}),
        );
        assert_eq!(none.unavailable, 1);
    }

    #[test]
    fn a_rolling_update_never_leaves_its_bounds_and_ends() {
        for desired in 1..=12 {
            let bounds = Bounds::of(&json!({"spec": {"replicas": desired}}));
            let set = |replicas, is_new| Set {
                replicas,
                pods: replicas,
                available: replicas,
                is_new,
            };
            let mut sets = vec![set(desired, false), set(0, true)];
            let mut rounds = 0;
            while sets[1].available < desired || sets[0].replicas > 0 {
                let replicas = next(bounds, &sets);
                assert!(replicas.iter().sum::<i64>() <= desired + bounds.surge);
                for (set, replicas) in sets.iter_mut().zip(replicas) {
                    // Pods that go are gone at once; those that come are available one round later.
                    set.available = set.replicas.min(replicas);
                    set.replicas = replicas;
                }
                assert!(
                    sets.iter().map(|s| s.available).sum::<i64>() >= desired - bounds.unavailable,
                    "{desired}: {sets:?}"
                );
                rounds += 1;
                assert!(rounds < 50);
            }
        }
    }

    #[test]
    fn recreate_waits_until_the_last_old_pod_is_gone() {
        let bounds = Bounds {
            desired: 2,
            surge: 1,
            unavailable: 0,
            recreate: true,
        };
        let old = Set {
            replicas: 0,
            pods: 1,
            available: 0,
            is_new: false,
        };
        let new = Set {
            replicas: 0,
            pods: 0,
            available: 0,
            is_new: true,
        };
        assert_eq!(next(bounds, &[old, new]), [0, 0]);
        assert_eq!(next(bounds, &[Set { pods: 0, ..old }, new]), [0, 2]);
    }
}
