//! The words of a spec: weights, durations, clock times, days of freezes. Whatever is written, it is understood or refused, and
//! what is understood is written again as something that means the same.

#![no_main]

use canary_operator::api::{CivilTime, ClockTime, Duration, TimeZoneName, Weight};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::fmt::Debug;

fn means_the_same<T: DeserializeOwned + Serialize + PartialEq + Debug>(written: &Value) {
    let Ok(understood) = serde_json::from_value::<T>(written.clone()) else {
        return;
    };
    let again = serde_json::to_value(&understood).expect("what was read can be written");
    let twice: T = serde_json::from_value(again.clone()).unwrap_or_else(|error| panic!("{again} is not understood: {error}"));
    assert_eq!(twice, understood, "{written} is written as {again}");
}

fuzz_target!(|text: &str| {
    let number = serde_json::from_str::<Value>(text).ok().filter(Value::is_number);
    for written in [Some(Value::String(text.to_owned())), number].into_iter().flatten() {
        means_the_same::<Weight>(&written);
        means_the_same::<Duration>(&written);
        means_the_same::<ClockTime>(&written);
        means_the_same::<CivilTime>(&written);
        means_the_same::<TimeZoneName>(&written);
    }
});
