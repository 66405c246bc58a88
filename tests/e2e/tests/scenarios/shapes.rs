//! Stable Ingresses of every shape that users have: the canary gets its share on every rule that leads to the Service,
//! and on no other.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::{App, ingress, path, rule},
    load::{Request, Tally},
    namespace::Namespace,
    release::Release,
    scene::{Outcome, Scene, play},
    watch::{Seen, Watch},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::{nothing_of_the_canary_left, settle, shares, warned, watch_ingresses};

const HOLD: Duration = Duration::from_secs(600);
const TO_BE_LIVE: Duration = Duration::from_secs(90);
const WEIGHT: u32 = 30;
const NGINX: &str = "nginx.ingress.kubernetes.io";

/// A release of the app with the weight 30 for long, once that is live.
fn at_thirty<'a>(scene: &'a Scene, app: &App, spec: Value) -> Result<Release<'a>> {
    let mut whole = json!({"steps": [{"weight": WEIGHT, "hold": format!("{}s", HOLD.as_secs())}]});
    if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
        whole.extend(spec);
    }
    let release = Release::apply(&scene.namespace, &app.release_of_v3(whole))?;
    release.until_live(&WEIGHT.to_string(), HOLD, TO_BE_LIVE)?;
    Ok(release)
}

/// A backend with the port by its name.
fn by_port_name(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"name": "http"}}})
}

/// The canary Ingress has these rules and no other part of a spec, except for these.
fn has_rules(namespace: &Namespace, name: &str, rules: Value, rest: Value) -> Result<()> {
    let spec = namespace.get(&["ingress", name])?["spec"].clone();
    let mut expected = rest;
    expected["rules"] = rules;
    ensure!(
        spec == expected,
        "the canary Ingress {name} has the spec\n{spec}\ninstead of\n{expected}"
    );
    Ok(())
}

#[test]
fn several_ingresses_and_hosts_get_a_canary_ingress_each_and_another_service_none() -> Outcome {
    play("several-ingresses", |scene| {
        let host = |name: &str| format!("{name}.{}", scene.host());
        let (one, two, three) = (host("one"), host("two"), host("three"));
        let app = App::new("shop", &one).behind(
            vec![
                ingress(
                    "shop",
                    json!([
                        rule(&one, json!([path("/", "shop")])),
                        rule(&two, json!([path("/", "shop")]))
                    ]),
                ),
                ingress(
                    "shop-admin",
                    json!([rule(&three, json!([path("/", "shop"), path("/other", "other")]))]),
                ),
                ingress("other", json!([rule(&host("four"), json!([path("/", "other")]))])),
            ],
            [&one, &two, &three].map(|host| Request::to(host)).to_vec(),
        );
        // The same pods by another Service: no part of the release.
        let mut other = app.service.clone();
        other["metadata"]["name"] = "other".into();
        scene.namespace.apply(&[other])?;
        app.deploy(&scene.namespace)?;

        let target = json!({"deployment": "shop", "service": "shop"});
        at_thirty(scene, &app, json!({"target": target}))?;
        let class = json!({"ingressClassName": "nginx"});
        let whole = |host: &str| rule(host, json!([path("/", "shop-canary")]));
        has_rules(
            &scene.namespace,
            "shop-canary",
            json!([whole(&one), whole(&two)]),
            class.clone(),
        )?;
        has_rules(&scene.namespace, "shop-admin-canary", json!([whole(&three)]), class)?;
        let names = scene.namespace.names("ingresses", "")?;
        ensure!(names.len() == 5, "the Ingresses are {names:?}");
        shares(
            scene,
            "v3",
            &[
                ("the first Ingress", Request::to(&one), WEIGHT),
                ("its second host", Request::to(&two), WEIGHT),
                ("the second Ingress", Request::to(&three), WEIGHT),
                ("another Service's path", Request::to(&three).path("/other"), 0),
                ("another Service's Ingress", Request::to(&host("four")), 0),
            ],
            "with several Ingresses",
        )
    })
}

#[test]
fn paths_of_every_type_and_ports_by_name_and_number_get_their_share() -> Outcome {
    play("paths", |scene| {
        let host = scene.host();
        let of_type = |path: &str, path_type: &str, backend: Value| json!({"path": path, "pathType": path_type, "backend": backend});
        let by_number = |service: &str| json!({"service": {"name": service, "port": {"number": 80}}});
        let paths = |service: &str| {
            json!([
                of_type("/exact", "Exact", by_number(service)),
                of_type("/prefix", "Prefix", by_port_name(service)),
                of_type("/specific", "ImplementationSpecific", by_number(service)),
                of_type("/specific/named", "ImplementationSpecific", by_port_name(service)),
            ])
        };
        let at = |path: &str| Request::to(&host).path(path);
        let requests = ["/exact", "/prefix/below", "/specific/below", "/specific/named"].map(at);
        let app = App::new("shop", &host).behind(
            vec![ingress("shop", json!([rule(&host, paths("shop"))]))],
            requests.to_vec(),
        );
        app.deploy(&scene.namespace)?;
        at_thirty(scene, &app, json!({}))?;
        has_rules(
            &scene.namespace,
            "shop-canary",
            json!([rule(&host, paths("shop-canary"))]),
            json!({"ingressClassName": "nginx"}),
        )?;
        let cases = requests.map(|request| ("a path", request, WEIGHT));
        shares(scene, "v3", &cases, "with several paths")
    })
}

#[test]
fn a_class_told_by_the_old_annotation_is_told_so_again() -> Outcome {
    play("old-class", |scene| {
        const CLASS: &str = "kubernetes.io/ingress.class";
        let host = scene.host();
        let mut app = App::new("shop", &host).with_annotation(CLASS, "nginx");
        if let Some(spec) = app.ingresses[0]["spec"].as_object_mut() {
            spec.remove("ingressClassName");
        }
        app.deploy(&scene.namespace)?;
        at_thirty(scene, &app, json!({}))?;
        let rules = json!([rule(&host, json!([path("/", "shop-canary")]))]);
        has_rules(&scene.namespace, "shop-canary", rules, json!({}))?;
        let canary = scene.namespace.get(&["ingress", "shop-canary"])?;
        ensure!(
            canary["metadata"]["annotations"][CLASS] == "nginx",
            "the canary Ingress has the annotations {}",
            canary["metadata"]["annotations"]
        );
        shares(
            scene,
            "v3",
            &[("all requests", Request::to(&host), WEIGHT)],
            "with the old annotation",
        )
    })
}

#[test]
fn every_host_below_a_wildcard_gets_its_share() -> Outcome {
    play("wildcard", |scene| {
        let below = |name: &str| Request::to(&format!("{name}.{}", scene.host()));
        let app = App::new("shop", &format!("*.{}", scene.host()));
        let app = App {
            answers_at: vec![below("any")],
            ..app
        };
        app.deploy(&scene.namespace)?;
        let release = at_thirty(scene, &app, json!({}))?;
        warned(&release, "ingress-nginx by default counts no requests of")?;
        let cases = [
            ("one host", below("one"), WEIGHT),
            ("another host", below("two"), WEIGHT),
        ];
        shares(scene, "v3", &cases, "with a wildcard")
    })
}

/// ingress-nginx has one catch-all for the whole cluster, and a canary of its default backend reaches every rule
/// without a host: only one scenario at a time may touch it.
static CATCH_ALL: Mutex<()> = Mutex::new(());

/// Releases an app behind the catch-all, and takes it away from there before another may come.
fn behind_the_catch_all(scene: &Scene, app: &App, spec: Value, cases: &[(&str, Request, u32)]) -> Result<()> {
    let _alone = CATCH_ALL.lock().unwrap_or_else(PoisonError::into_inner);
    app.deploy(&scene.namespace)?;
    let release = at_thirty(scene, app, spec)?;
    warned(&release, "ingress-nginx by default counts no requests of")?;
    shares(scene, "v3", cases, "behind the catch-all")?;
    release.delete(Duration::from_secs(60))?;
    nothing_of_the_canary_left(&scene.namespace)?;
    scene.namespace.ask(&["delete", "ingress", "--all"])?;
    settle(Timestamp::now());
    Ok(())
}

#[test]
fn a_rule_without_a_host_gets_its_share() -> Outcome {
    play("no-host", |scene| {
        let below = format!("/{}", scene.namespace.name());
        let rules = json!([{"http": {"paths": [path(&below, "shop")]}}]);
        let request = Request::to("nobody-has-this-host.test").path(&below);
        let app = App::new("shop", "").behind(vec![ingress("shop", rules)], vec![request.clone()]);
        behind_the_catch_all(scene, &app, json!({}), &[("a host that nobody has", request, WEIGHT)])
    })
}

#[test]
fn an_ingress_with_nothing_but_a_default_backend_gets_its_share() -> Outcome {
    play("default-backend", |scene| {
        let mut alone = ingress("shop", json!([]));
        alone["spec"] = json!({"ingressClassName": "nginx", "defaultBackend": by_port_name("shop")});
        let request = Request::to("nobody-has-this-host.test").path("/whatever");
        let app = App::new("shop", "").behind(vec![alone], vec![request.clone()]);
        let knowingly = json!({"traffic": {"allowSharedService": true}});
        behind_the_catch_all(scene, &app, knowingly, &[("a host that nobody has", request, WEIGHT)])
    })
}

#[test]
fn nothing_else_of_an_elaborate_ingress_is_on_the_canary_ingress() -> Outcome {
    play("elaborate", |scene| {
        let namespace = &scene.namespace;
        let host = scene.host();
        let nginx = |name: &str| format!("{NGINX}/{name}");
        let mut app = App::new("shop", &host)
            .with_annotation(&nginx("affinity"), "cookie")
            .with_annotation(&nginx("session-cookie-name"), "route")
            .with_annotation(&nginx("rewrite-target"), "/")
            .with_annotation(&nginx("auth-type"), "basic")
            .with_annotation(&nginx("auth-secret"), "users")
            .with_annotation(&nginx("ssl-redirect"), "false")
            .with_annotation(&nginx("custom-headers"), "")
            .with_annotation(&nginx("proxy-body-size"), "3m")
            .with_annotation(&nginx("configuration-snippet"), "more_set_headers \"X-Snippet: yes\";")
            .with_annotation(&nginx("load-balance"), "round_robin")
            .with_annotation("cert-manager.io/cluster-issuer", "letsencrypt")
            .with_annotation("external-dns.alpha.kubernetes.io/hostname", &host)
            .with_annotation("example.com/team", "shop");
        app.ingresses[0]["metadata"]["labels"] = json!({"team": "shop"});
        let spec = &mut app.ingresses[0]["spec"];
        spec["tls"] = json!([{"hosts": [host], "secretName": "shop-tls"}]);
        // A rule without paths: the controller would crash on one of a canary.
        spec["rules"] = json!([{"host": format!("bare.{host}")}, rule(&host, json!([path("/", "shop")]))]);
        let user = Request::to(&host).header("Authorization", "Basic dXNlcjpwYXNzd29yZA==");
        app.answers_at = vec![user.clone()];
        namespace.apply(&[json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "users"},
            "stringData": {"auth": "user:{PLAIN}password\n"},
        })])?;
        app.deploy(namespace)?;
        let restarts = restarts_of_the_controller(scene)?;

        let release = at_thirty(scene, &app, json!({}))?;
        warned(&release, "Ingress shop has session affinity")?;
        let rules = json!([rule(&host, json!([path("/", "shop-canary")]))]);
        has_rules(namespace, "shop-canary", rules, json!({"ingressClassName": "nginx"}))?;
        let metadata = namespace.get(&["ingress", "shop-canary"])?["metadata"].clone();
        let annotations = metadata["annotations"].as_object().context("no annotations")?;
        let ours = |key: &&String| key.starts_with("canary-operator.dev/");
        let others: Vec<_> = annotations.keys().filter(|key| !ours(key)).collect();
        let expected = ["canary", "canary-weight", "load-balance"].map(nginx);
        ensure!(
            others == expected.iter().collect::<Vec<_>>(),
            "the canary Ingress has the annotations {others:?} instead of {expected:?}"
        );
        ensure!(
            metadata["labels"]["team"].is_null(),
            "the canary Ingress has the labels {}",
            metadata["labels"]
        );
        // A request without the cookie is not pinned.
        shares(
            scene,
            "v3",
            &[("a user", user, WEIGHT)],
            "with much else on the Ingress",
        )?;
        let stranger = canary_e2e::load::Load::exactly(scene.cluster, &host, 100, 100)?;
        ensure!(
            stranger.iter().all(|answer| answer.code == 401),
            "without the password, not all were turned away: {:?}",
            Tally::of(&stranger).codes
        );
        release.delete(Duration::from_secs(60))?;
        let after = restarts_of_the_controller(scene)?;
        ensure!(
            after == restarts,
            "the ingress controller was restarted: {restarts} before, {after} now"
        );
        Ok(())
    })
}

fn restarts_of_the_controller(scene: &Scene) -> Result<String> {
    scene.cluster.ask(&[
        "get",
        "pods",
        "--all-namespaces",
        "--selector=app.kubernetes.io/name=ingress-nginx,app.kubernetes.io/component=controller",
        "--output=jsonpath={range .items[*]}{.metadata.name}:{.status.containerStatuses[0].restartCount} {end}",
    ])
}

#[test]
fn a_stable_ingress_that_changes_while_the_release_runs_is_followed() -> Outcome {
    play("changing-ingress", |scene| {
        let namespace = &scene.namespace;
        let host = |name: &str| format!("{name}.{}", scene.host());
        let (first, second) = (host("first"), host("second"));
        let app = App::new("shop", &first);
        app.deploy(namespace)?;
        let ingresses = watch_ingresses(namespace)?;
        let _release = at_thirty(scene, &app, json!({}))?;
        let load = scene.load(&first, 50, Duration::from_secs(300))?;

        // Another host, and another path that replaces the old one.
        let wider = |service: &str| {
            json!([
                rule(&first, json!([path("/", service)])),
                rule(&second, json!([path("/below", service)])),
            ])
        };
        namespace.apply(&[ingress("shop", wider("shop"))])?;
        settle(followed(&ingresses, &wider("shop-canary"))?);
        shares(
            scene,
            "v3",
            &[
                ("the old host", Request::to(&first), WEIGHT),
                ("the new host", Request::to(&second).path("/below"), WEIGHT),
            ],
            "after a host was added",
        )?;
        Tally::of(&load.stop()?).all_well("while a host was added")?;

        let narrower = |service: &str| json!([rule(&second, json!([path("/elsewhere", service)]))]);
        namespace.apply(&[ingress("shop", narrower("shop"))])?;
        settle(followed(&ingresses, &narrower("shop-canary"))?);
        let moved = Request::to(&second).path("/elsewhere");
        shares(
            scene,
            "v3",
            &[("the new path", moved, WEIGHT)],
            "after the rules were replaced",
        )
    })
}

/// When the canary Ingress was seen with these rules.
fn followed(ingresses: &Watch, rules: &Value) -> Result<Timestamp> {
    let followed = |seen: &&Seen| seen.name() == "shop-canary" && seen.object["spec"]["rules"] == *rules;
    ingresses.until("the canary Ingress follows", Duration::from_secs(30), |seen| {
        seen.iter().find(followed).map(|seen| seen.at)
    })
}
