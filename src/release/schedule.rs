//! The steps to walk, from `steps` or `ramp`.

use crate::api::{CanaryReleaseSpec, Ramp, Step, Weight};

/// At most this many steps, as in the schema.
const MOST_STEPS: usize = 101;

/// The steps of a release, numbered from 1; step 0 is weight 0 without a hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule(Vec<Step>);

impl Schedule {
    /// Number of steps.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is no step; never true of a validated one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Step `number`, counted from 1; nothing for 0 and past the end.
    #[must_use]
    pub fn step(&self, number: u32) -> Option<Step> {
        self.0.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }

    /// Weight of step `number`; that of the last step past the end, 0 for 0.
    #[must_use]
    pub fn weight(&self, number: u32) -> Weight {
        self.step(number.min(self.len()))
            .map_or(Weight::ZERO, |step| step.weight)
    }

    /// Where a release goes on whose schedule changed while `weight` was in force: the first step not below it,
    /// or the last.
    #[must_use]
    pub fn first_not_below(&self, weight: Weight) -> u32 {
        let at = self.0.iter().position(|step| step.weight >= weight);
        at.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(self.len())
    }
}

/// The steps that a spec asks for.
///
/// # Errors
/// What the schema refuses already, for objects that were stored before it did: a sentence that names the field.
pub fn schedule(spec: &CanaryReleaseSpec) -> Result<Schedule, String> {
    let steps = match (&spec.steps, &spec.ramp) {
        (Some(steps), None) => steps.clone(),
        (None, Some(ramp)) => walk(ramp)?,
        _ => return Err("set either spec.steps or spec.ramp, exactly one of them".to_owned()),
    };
    if steps.is_empty() || steps.len() > MOST_STEPS {
        return Err(format!("spec.steps has {} steps: write 1 to {MOST_STEPS}", steps.len()));
    }
    if !steps.is_sorted_by_key(|step| step.weight) {
        return Err("spec.steps: weights may not fall from one step to the next".to_owned());
    }
    Ok(Schedule(steps))
}

fn walk(ramp: &Ramp) -> Result<Vec<Step>, String> {
    if ramp.by == Weight::ZERO {
        return Err("spec.ramp.by must be more than 0".to_owned());
    }
    if ramp.from > ramp.to {
        return Err("spec.ramp.from may not exceed spec.ramp.to".to_owned());
    }
    let weights = std::iter::successors(Some(ramp.from), |at| {
        (*at < ramp.to).then(|| at.saturating_add(ramp.by).min(ramp.to))
    });
    Ok(weights
        .take(MOST_STEPS + 1)
        .map(|weight| Step {
            weight,
            hold: Some(ramp.every),
            approval: false,
            analysis: None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn weights(spec: serde_json::Value) -> Result<Vec<String>, String> {
        let mut whole = json!({"target": {"deployment": "web"}, "canary": {"image": "web:2"}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let schedule = schedule(&serde_json::from_value(whole).unwrap())?;
        Ok((1..=schedule.len()).map(|n| schedule.weight(n).to_string()).collect())
    }

    fn ramp(from: serde_json::Value, by: serde_json::Value, to: serde_json::Value) -> Result<Vec<String>, String> {
        weights(json!({"ramp": {"from": from, "by": by, "to": to, "every": "1m"}}))
    }

    #[test]
    fn a_ramp_ends_exactly_at_its_end() {
        assert_eq!(
            ramp(json!(10), json!(10), json!(50)).unwrap(),
            ["10", "20", "30", "40", "50"]
        );
        assert_eq!(ramp(json!(10), json!(30), json!(50)).unwrap(), ["10", "40", "50"]);
        assert_eq!(
            ramp(json!("0.5"), json!("0.25"), json!(1)).unwrap(),
            ["0.5", "0.75", "1"]
        );
        assert_eq!(ramp(json!(30), json!(10), json!(30)).unwrap(), ["30"]);
        assert_eq!(ramp(json!(90), json!(100), json!(100)).unwrap(), ["90", "100"]);
    }

    #[test]
    fn what_the_schema_refuses_is_refused_here_too() {
        for (spec, word) in [
            (json!({}), "exactly one"),
            (json!({"steps": []}), "0 steps"),
            (
                json!({"steps": [{"weight": 30, "hold": "1m"}, {"weight": 20, "hold": "1m"}]}),
                "fall",
            ),
            (json!({"ramp": {"from": 1, "by": 0, "to": 5, "every": "1m"}}), "ramp.by"),
            (
                json!({"ramp": {"from": 6, "by": 1, "to": 5, "every": "1m"}}),
                "ramp.from",
            ),
            (
                json!({"ramp": {"from": 0, "by": "0.0001", "to": 100, "every": "1m"}}),
                "102 steps",
            ),
        ] {
            let error = weights(spec).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_changed_schedule_goes_on_at_the_first_step_not_below_the_weight_in_force() {
        let spec = json!({"target": {"deployment": "web"}, "canary": {"image": "web:2"}, "ramp": {"from": 10, "by": 10, "to": 50, "every": "1m"}});
        let schedule = schedule(&serde_json::from_value(spec).unwrap()).unwrap();
        let at = |weight: &str| schedule.first_not_below(weight.parse().unwrap());
        assert_eq!([at("0"), at("10"), at("11"), at("50"), at("60")], [1, 1, 2, 5, 5]);
    }
}
