//! Who reaches version 2 whatever the weight is: by a header, or by a cookie.

use std::time::Duration;

use anyhow::Result;
use canary_e2e::{
    app::App,
    load::{Load, Request, Tally},
    process::until,
    release::Release,
    scene::{Outcome, Scene, play},
};
use serde_json::{Value, json};

use crate::common::{nothing_of_the_canary_left, shares};

/// Until the schedule is changed, or the release deleted.
const HOLD: Duration = Duration::from_secs(600);
const TO_BE_LIVE: Duration = Duration::from_secs(90);
/// That of the second schedule; the first has 0.
const WEIGHT: u32 = 30;

/// What a request carries beside the host.
type Carried = fn(Request) -> Request;

/// What the request is about, what it carries, whether it is always (`Some(true)`) or never (`Some(false)`) led to
/// version 2, or by the weight alone.
type Case = (&'static str, Carried, Option<bool>);

/// Releases version 3 with this `traffic`, and counts who reaches it while the weight is 0 and while it is 30.
fn reaches(name: &str, traffic: Value, cases: &[Case], afterwards: impl FnOnce(&Stage<'_>) -> Result<()>) -> Outcome {
    play(name, |scene| {
        let host = scene.host();
        let app = App::new("shop", &host);
        app.deploy(&scene.namespace)?;
        let steps = |weight: u32| json!([{"weight": weight, "hold": format!("{}s", HOLD.as_secs())}]);
        let mut object = app.release_of_v3(json!({"traffic": traffic, "steps": steps(0)}));
        let release = Release::apply(&scene.namespace, &object)?;
        release.until_live("0", HOLD, TO_BE_LIVE)?;
        count(scene, cases, 0)?;
        object["spec"]["steps"] = steps(WEIGHT);
        release.apply_again(&object)?;
        let stage = Stage {
            scene,
            host,
            object,
            release,
        };
        stage.release.until_live(&WEIGHT.to_string(), HOLD, TO_BE_LIVE)?;
        count(scene, cases, WEIGHT)?;
        afterwards(&stage)?;
        stage.release.delete(Duration::from_secs(60))?;
        // Whatever the request carries.
        let all_stable: Vec<_> = cases
            .iter()
            .map(|(what, carried, _)| (*what, carried(Request::to(&stage.host)), 0))
            .collect();
        shares(scene, "v3", &all_stable, "after the release was deleted")?;
        nothing_of_the_canary_left(&scene.namespace)
    })
}

struct Stage<'a> {
    scene: &'a Scene,
    host: String,
    object: Value,
    release: Release<'a>,
}

/// Each of these requests is led to version 2 as often as it should be at this weight.
fn count(scene: &Scene, cases: &[Case], weight: u32) -> Result<()> {
    let cases: Vec<_> = cases
        .iter()
        .map(|(what, carried, led)| {
            let percent = led.map_or(weight, |always| if always { 100 } else { 0 });
            (*what, carried(Request::to(&scene.host())), percent)
        })
        .collect();
    shares(scene, "v3", &cases, &format!("at weight {weight}"))
}

#[test]
fn a_header_with_the_value_leads_to_version_two_and_any_other_to_the_dice() -> Outcome {
    const CASES: &[Case] = &[
        ("with the value", |r| r.header("X-Canary", "yes"), Some(true)),
        (
            "with the header in other letters",
            |r| r.header("x-canary", "yes"),
            Some(true),
        ),
        ("with the value in capitals", |r| r.header("X-Canary", "YES"), None),
        ("with always", |r| r.header("X-Canary", "always"), None),
        ("with never", |r| r.header("X-Canary", "never"), None),
        ("without the header", |r| r, None),
    ];
    const CHANGED: &[Case] = &[
        ("with the new value", |r| r.header("X-Canary", "please"), Some(true)),
        ("with the old value", |r| r.header("X-Canary", "yes"), None),
    ];
    let traffic = json!({"header": {"name": "X-Canary", "value": "yes"}});
    reaches("header-value", traffic, CASES, |stage| {
        // Another value while the release runs: neither another release nor another step.
        let mut object = stage.object.clone();
        object["spec"]["traffic"]["header"]["value"] = "please".into();
        stage.release.apply_again(&object)?;
        let request = Request::to(&stage.host).header("X-Canary", "please");
        until("the new value leads to version 2", Duration::from_secs(30), || {
            let tally = Tally::of(&Load::exactly(stage.scene.cluster, request.clone(), 50, 50)?);
            Ok(if tally.from("v3") == tally.total {
                Ok(())
            } else {
                Err(tally.to_string())
            })
        })?;
        count(stage.scene, CHANGED, WEIGHT)
    })
}

#[test]
fn a_header_that_matches_the_pattern_leads_to_version_two_and_any_other_to_the_dice() -> Outcome {
    const CASES: &[Case] = &[
        ("that matches", |r| r.header("X-Group", "beta-17"), Some(true)),
        ("that matches otherwise", |r| r.header("X-Group", "qa-0"), Some(true)),
        ("that does not match", |r| r.header("X-Group", "beta-x"), None),
        ("with too much before it", |r| r.header("X-Group", "a-beta-17"), None),
        ("without the header", |r| r, None),
    ];
    let traffic = json!({"header": {"name": "X-Group", "pattern": "^(beta|qa)-[0-9]+$"}});
    reaches("header-pattern", traffic, CASES, |_| Ok(()))
}

#[test]
fn a_header_alone_knows_always_and_never_and_beats_the_cookie() -> Outcome {
    const CASES: &[Case] = &[
        ("with always", |r| r.header("X-Canary", "always"), Some(true)),
        ("with never", |r| r.header("X-Canary", "never"), Some(false)),
        ("with another value", |r| r.header("X-Canary", "yes"), None),
        (
            "with never and the cookie always",
            |r| r.header("X-Canary", "never").cookie("tester=always"),
            Some(false),
        ),
        (
            "with always and the cookie never",
            |r| r.header("X-Canary", "always").cookie("tester=never"),
            Some(true),
        ),
        ("with the cookie always", |r| r.cookie("tester=always"), Some(true)),
        ("without either", |r| r, None),
    ];
    let traffic = json!({"header": {"name": "X-Canary"}, "cookie": "tester"});
    reaches("header-and-cookie", traffic, CASES, |_| Ok(()))
}

#[test]
fn a_cookie_knows_always_and_never() -> Outcome {
    const CASES: &[Case] = &[
        ("always", |r| r.cookie("tester=always"), Some(true)),
        (
            "always among others",
            |r| r.cookie("a=never; tester=always"),
            Some(true),
        ),
        ("never", |r| r.cookie("tester=never"), Some(false)),
        ("another value", |r| r.cookie("tester=yes"), None),
        ("another cookie", |r| r.cookie("canary=always"), None),
        ("without a cookie", |r| r, None),
    ];
    reaches("cookie", json!({"cookie": "tester"}), CASES, |_| Ok(()))
}
