//! What several scenarios ask.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use canary_e2e::{
    load::{Load, Request, Tally, burst},
    release::{Event, Release},
    scene::Scene,
};
use jiff::Timestamp;

pub use canary_e2e::{
    load::splits,
    release::{nothing_of_the_canary_left, watch_ingresses, weight_stood_still, weights},
};

/// An error where no event about the release warns with these words.
pub fn warned(release: &Release<'_>, words: &str) -> Result<()> {
    let events = release.events()?;
    let warns = |event: &&Event| event.reason == "PreflightWarning" && event.note.contains(words);
    ensure!(
        events.iter().any(|event| warns(&event)),
        "no event warns that {words}: {events:?}"
    );
    Ok(())
}

/// How many answers to each request a share is counted in.
const EACH: usize = 200;
/// How many requests a second are sent for that, all together.
const PER_SECOND: u32 = 200;

/// What a request is about, the request, and the share of its answers, in percent, that come from the canary.
pub type Share<'a> = (&'a str, Request, u32);

/// Sends all of these requests at the same time; an error for every share that cannot be what is said by chance.
/// How long the answers take is left to the scenarios with constant traffic.
pub fn shares(scene: &Scene, canary: &str, cases: &[Share<'_>], during: &str) -> Result<()> {
    let requests: Vec<_> = cases.iter().map(|(_, request, _)| request.clone()).collect();
    let answers = {
        let _alone = burst();
        Load::exactly_each(scene.cluster, &requests, PER_SECOND, EACH)?
    };
    let mut faults = Vec::new();
    for ((what, request, percent), answers) in cases.iter().zip(&answers) {
        let tally = Tally::of(answers);
        let during = format!("{during}, {what} ({request})");
        if tally.failed > 0 {
            faults.push(format!("{during}, of {tally}, some failed: {:?}", tally.examples));
        } else if let Err(error) = splits(&tally, canary, *percent, &during) {
            faults.push(error.to_string());
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// How long ingress-nginx may take to act on a change.
pub const SETTLE: Duration = Duration::from_secs(6);

/// Waits until ingress-nginx has had its time since `change`; there is nothing to be asked about it.
pub fn settle(change: Timestamp) {
    let left = (change + SETTLE).duration_since(Timestamp::now());
    thread::sleep(Duration::try_from(left).unwrap_or_default());
}

/// Whether the number `number` stands in `text`, not as a part of another one.
pub fn mentions(text: &str, number: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .any(|word| word.trim_end_matches('.') == number)
}
