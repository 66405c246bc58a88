//! Clients that ingress-nginx pins to version 2 by a cookie. Weight and header have no power over them: only that the
//! canary Ingress goes brings them back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    load::{Request, Tally, sent_between},
    process::{output, until},
    release::Release,
    scene::{Outcome, Scene, play},
};
use jiff::Timestamp;
use serde_json::json;

use crate::common::{SETTLE, nothing_of_the_canary_left, splits, warned, watch_ingresses};

const HOLD: Duration = Duration::from_secs(600);
const COOKIE: &str = "route";

#[test]
fn clients_pinned_by_a_cookie_leave_version_two_when_the_release_is_aborted() -> Outcome {
    play("pinned-abort", |scene| {
        pinned(scene, |release| {
            let moment = release.latest()?.context("the release was not seen")?;
            release.command(&format!("abort/{}", moment.status.revision))
        })
    })
}

#[test]
fn clients_pinned_by_a_cookie_leave_version_two_when_the_release_is_deleted() -> Outcome {
    play("pinned-delete", |scene| {
        pinned(scene, |release| release.delete(Duration::from_secs(90)))
    })
}

/// A client is pinned to version 2, `back` ends the release, and the client is back within the settle time.
fn pinned(scene: &Scene, back: impl FnOnce(&Release<'_>) -> Result<()>) -> Result<()> {
    let namespace = &scene.namespace;
    let host = scene.host();
    let app = App::new("shop", &host)
        .with_replicas(2)
        .with_env("ON_TERM", "exit")
        .with_annotation("nginx.ingress.kubernetes.io/affinity", "cookie")
        .with_annotation("nginx.ingress.kubernetes.io/session-cookie-name", COOKIE);
    app.deploy(namespace)?;
    let ingresses = watch_ingresses(namespace)?;
    let object = app.release_of_v3(json!({"steps": [{"weight": 50, "hold": format!("{}s", HOLD.as_secs())}]}));
    let release = Release::apply(namespace, &object)?;
    let live = release.until_live("50", HOLD, Duration::from_secs(90))?;

    warned(&release, "Ingress shop has session affinity")?;
    let cookie = cookie_of_version_two(scene, &Request::to(&host))?;
    let load = scene.load(Request::to(&host).cookie(&cookie), 50, Duration::from_secs(300))?;
    load.until_answers(200, Duration::from_secs(30))?;
    let asked = Timestamp::now();
    back(&release)?;
    let gone = ingresses.until("the canary Ingress is gone", Duration::from_secs(60), |seen| {
        seen.iter()
            .find(|seen| seen.gone && seen.name() == "shop-canary")
            .map(|seen| seen.at)
    })?;
    nothing_of_the_canary_left(namespace)?;
    let settled = gone + SETTLE;
    load.until(
        "200 answers after the settle time",
        Duration::from_secs(60),
        |answers| sent_between(answers, settled, Timestamp::MAX).count() >= 200,
    )?;
    let answers = load.stop()?;
    Tally::of(&answers).all_well("of the pinned client")?;
    let before = Tally::of(sent_between(&answers, live.at, asked));
    ensure!(before.total >= 200, "the client got only {before} before");
    splits(&before, "v3", 100, "while the client was pinned")?;
    let last = answers
        .iter()
        .rfind(|answer| answer.version.as_deref() == Some("v3"))
        .context("no answer of version 2")?;
    ensure!(
        last.sent <= settled,
        "the last answer of version 2 was to a request sent at {}, {} s after the canary Ingress was gone",
        last.sent,
        last.sent.duration_since(gone).as_secs_f64()
    );
    Ok(())
}

/// The cookie that a client gets whom version 2 answered.
fn cookie_of_version_two(scene: &Scene, request: &Request) -> Result<String> {
    let url = request.url(scene.cluster);
    // At 50 % every second client gets one.
    until("version 2 answers and pins", Duration::from_secs(60), || {
        let mut curl = scene
            .cluster
            .beside("curl", &["--silent", "--include", "--max-time", "5", &url]);
        for line in request.header_lines() {
            curl.args(["--header", &line]);
        }
        let head = output(&mut curl)?;
        let set = head.lines().find_map(|line| line.strip_prefix("Set-Cookie: "));
        let pair = set.and_then(|cookie| cookie.split(';').next()).map(str::trim);
        Ok(match pair {
            Some(pair) if head.contains("X-Version: v3") && pair.starts_with(COOKIE) => Ok(pair.to_owned()),
            _ => Err(head),
        })
    })
}
