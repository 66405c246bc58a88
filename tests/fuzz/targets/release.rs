//! A CanaryRelease as somebody may have stored it, and two pod templates: the schedule, the calendar, the command and what of
//! one template differs from the other are told or refused.

#![no_main]

use canary_operator::{
    api::CanaryRelease,
    release::{at_rest, check_windows, commanded, gate, intent, schedule, schedule_hash},
    render::differences,
};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &str| {
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return;
    };
    if let (Some(from), Some(to)) = (value.pointer("/from"), value.pointer("/to")) {
        let _ = differences(from, to);
    }
    let Ok(release) = serde_json::from_value::<CanaryRelease>(value) else {
        return;
    };
    let _ = (intent(&release.spec), schedule_hash(&release.spec), commanded(&release));
    if let Ok(schedule) = schedule(&release.spec) {
        for number in 0..=schedule.len() + 1 {
            let _ = (schedule.weight(number), schedule.step(number));
        }
    }
    let understood = check_windows(&release.spec).is_ok();
    for now in [Timestamp::MIN, Timestamp::UNIX_EPOCH, "2026-03-29T00:59:59Z".parse().expect("a time"), Timestamp::MAX] {
        assert_eq!(gate(&release.spec, now).is_ok(), understood);
        let _ = at_rest(&release, now);
    }
});
