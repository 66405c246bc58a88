//! What ingress-nginx counts of each kind of answer. Verdicts rest on it, so another version of the controller must not
//! change it unnoticed. No release is involved: the canary is made by hand.

use std::time::Duration;

use anyhow::{Result, ensure};
use canary_e2e::{
    app::{App, ingress, path, rule},
    controllers::{counted, reloads},
    exercise::image,
    load::Request,
    process::{attempt, until},
    scene::{Outcome, Scene, play},
};
use serde_json::json;

const NGINX: &str = "nginx.ingress.kubernetes.io";
/// How often each kind of request is sent.
const EACH: u64 = 2;

/// A kind of request, what `curl` sends, the status in `requests`, and whether the histogram of the application's times has it.
type Kind = (&'static str, &'static [&'static str], &'static str, bool);

const HANGS: &str = "X-Fault: hang";
const CLOSES: &str = "X-Fault: close";
const KINDS: &[Kind] = &[
    ("answered", &[], "200", true),
    ("answered with an error", &["--header", "X-Fault: 500"], "500", true),
    (
        "given up by the client",
        &["--header", HANGS, "--max-time", "0.3"],
        "499",
        true,
    ),
    (
        "given up by the client at the second try",
        &["--header", HANGS, "--max-time", "1.3"],
        "499",
        false,
    ),
    (
        "not answered in time, in three tries",
        &["--header", HANGS],
        "504",
        false,
    ),
    (
        "not answered in time, in one try",
        &["--header", HANGS, "--data", "a"],
        "504",
        true,
    ),
    ("cut off, in three tries", &["--header", CLOSES], "502", false),
    ("cut off, in one try", &["--header", CLOSES, "--data", "a"], "502", true),
    (
        "answered at the second try",
        &["--header", "X-Fault: close-once"],
        "200",
        false,
    ),
    ("turned away by nginx", &[], "403", false),
];

#[test]
fn the_controllers_count_each_kind_of_answer_as_verdicts_take_them() -> Outcome {
    play("counted", |scene| {
        let host = scene.host();
        let nginx = |name: &str| format!("{NGINX}/{name}");
        // The path that nginx turns everybody away from leads to the same Service, and so to its canary.
        let mut shut = ingress("shut", json!([rule(&host, json!([path("/shut", "shop")]))]));
        shut["metadata"]["annotations"] = json!({nginx("whitelist-source-range"): "192.0.2.1/32"});
        let mut app = App::new("shop", &host).with_annotation(&nginx("proxy-read-timeout"), "1");
        app.ingresses.push(shut);
        app.deploy(&scene.namespace)?;
        let mut canary = App::new("shop-canary", &host)
            .with_annotation(&nginx("canary"), "true")
            .with_annotation(&nginx("canary-weight"), "100");
        canary.deployment["spec"]["template"]["spec"]["containers"][0]["image"] = image("v3").into();
        canary.deploy(&scene.namespace)?;
        // The request that found it there is counted up to a second later, and must not be taken for one of those below.
        until("the first request is counted", Duration::from_secs(10), || {
            let counted = counted(scene.cluster, scene.namespace.name(), &label(scene))?;
            Ok(if counted.is_empty() {
                Err("nothing is counted".to_owned())
            } else {
                Ok(())
            })
        })?;

        let mut faults = Vec::new();
        for kind in KINDS {
            if let Err(error) = is_counted_between_reloads(scene, kind) {
                faults.push(format!("{}: {error:#}", kind.0));
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    })
}

/// The controllers' label of the canary.
fn label(scene: &Scene) -> String {
    format!("{}-shop-canary-80", scene.namespace.name())
}

/// The Ingresses of an earlier scenario may still be on their way out, and nginx is reloaded for it: of requests that hung in
/// a worker that it ended, nothing is said.
fn is_counted_between_reloads(scene: &Scene, kind: &Kind) -> Result<()> {
    loop {
        let before = reloads(scene.cluster)?;
        let result = is_counted(scene, kind);
        if reloads(scene.cluster)? == before {
            return result;
        }
    }
}

fn is_counted(scene: &Scene, (_, args, status, answered): &Kind) -> Result<()> {
    let count = |family: &str| {
        let counted = counted(scene.cluster, scene.namespace.name(), &label(scene))?;
        anyhow::Ok(
            counted
                .get(&(family.to_owned(), (*status).to_owned()))
                .copied()
                .unwrap_or_default(),
        )
    };
    let path = if *status == "403" { "/shut" } else { "/" };
    let request = Request::to(&scene.host()).path(path);
    let (requests, times) = (count("requests")?, count("response_duration_seconds_count")?);
    for _ in 0..EACH {
        let mut curl = scene.cluster.beside("curl", &["--silent", "--output", "/dev/null"]);
        for line in request.header_lines() {
            curl.args(["--header", &line]);
        }
        // A client that gives up fails.
        attempt(curl.args(*args).arg(request.url(scene.cluster)), "")?;
    }
    until("the requests are counted", Duration::from_secs(10), || {
        let more = count("requests")? - requests;
        Ok(if more >= EACH {
            Ok(())
        } else {
            Err(format!("{more} more with the status {status}"))
        })
    })?;
    let (more, expected) = (
        count("response_duration_seconds_count")? - times,
        if *answered { EACH } else { 0 },
    );
    ensure!(
        more == expected,
        "of {EACH} with the status {status} the application's times have {more}, not {expected}"
    );
    Ok(())
}
