//! The API server as a client sees it.

use super::*;
use crate::rehearse::{json::text, world::runtime};
use futures::TryStreamExt;
use intercept::EventFate;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap, networking::v1::Ingress};
use kube::{
    Api, ResourceExt,
    api::{
        DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy, WatchEvent,
        WatchParams,
    },
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt, reflector, watcher},
};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

fn with_server<F: Future<Output = ()>>(body: impl FnOnce(ApiServer) -> F) {
    runtime()
        .unwrap()
        .block_on(async { body(ApiServer::new(VirtualClock::new(), 1)).await });
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"a": "1"}})).unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> (u16, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other}"),
    }
}

fn web() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "web:v1", "env": [{"name": "A", "value": "1"}]}]}}}})
}

#[test]
fn create_get_update_delete_answer_with_the_real_codes() {
    with_server(|server| async move {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client());
        assert_eq!(code(api.get("a").await), (404, "NotFound".into()));
        let made = api.create(&PostParams::default(), &config_map("a")).await.unwrap();
        assert!(made.uid().is_some() && made.resource_version().is_some());
        assert_eq!(made.creation_timestamp().unwrap().0.to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(
            code(api.create(&PostParams::default(), &config_map("a")).await),
            (409, "AlreadyExists".into())
        );
        let mut changed = made.clone();
        changed.data.as_mut().unwrap().insert("b".into(), "2".into());
        let second = api.replace("a", &PostParams::default(), &changed).await.unwrap();
        assert_ne!(second.resource_version(), made.resource_version());
        assert_eq!(
            code(api.replace("a", &PostParams::default(), &changed).await),
            (409, "Conflict".into())
        );
        let same = api.replace("a", &PostParams::default(), &second).await.unwrap();
        assert_eq!(
            same.resource_version(),
            second.resource_version(),
            "a write that changes nothing is no version"
        );
        let stale = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: made.resource_version(),
                uid: None,
            }),
            ..Default::default()
        };
        assert_eq!(code(api.delete("a", &stale).await), (409, "Conflict".into()));
        let other = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some("other".into()),
                resource_version: None,
            }),
            ..Default::default()
        };
        assert_eq!(code(api.delete("a", &other).await), (409, "Conflict".into()));
        let right = DeleteParams {
            preconditions: Some(Preconditions {
                uid: made.uid(),
                resource_version: second.resource_version(),
            }),
            ..Default::default()
        };
        assert!(api.delete("a", &right).await.unwrap().is_right());
        assert_eq!(server.history(&Key::new("", "configmaps", "default", "a")).len(), 3);
        let verbs: Vec<_> = server.records().iter().map(|r| (r.verb, r.code)).collect();
        assert_eq!(verbs.first(), Some(&("get", 404)));
        assert_eq!(verbs.last(), Some(&("delete", 200)));
    });
}

#[test]
fn a_patch_that_names_another_resource_version_conflicts() {
    with_server(|server| async move {
        server
            .create(
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {}}),
            )
            .unwrap();
        let api: Api<Ingress> = Api::default_namespaced(server.client());
        let read = api.get("i").await.unwrap();
        let patch =
            Patch::Merge(json!({"metadata": {"resourceVersion": read.resource_version(), "annotations": {"w": "5"}}}));
        let written = api.patch("i", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(written.metadata.generation, Some(1));
        assert_eq!(
            code(api.patch("i", &PatchParams::default(), &patch).await),
            (409, "Conflict".into())
        );
    });
}

#[test]
fn a_strategic_dry_run_answers_and_stores_nothing_and_strict_names_unknown_fields() {
    with_server(|server| async move {
        server.create(web()).unwrap();
        let api: Api<Deployment> = Api::default_namespaced(server.client());
        let version = server.with(|s| s.version());
        let mut params = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        }
        .validation_strict();
        let overlay =
            |container: Value| Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [container]}}}}));
        let out = api
            .patch("web", &params, &overlay(json!({"name": "app", "image": "web:v2"})))
            .await
            .unwrap();
        let container = &out.spec.template.spec.as_ref().unwrap().containers[0];
        assert_eq!(container.image.as_deref(), Some("web:v2"));
        assert_eq!(container.env.as_ref().unwrap().len(), 1);
        assert_eq!(
            container.image_pull_policy.as_deref(),
            Some("IfNotPresent"),
            "defaults are filled in"
        );
        let refusal = api
            .patch("web", &params, &overlay(json!({"name": "app", "imge": "x"})))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains("unknown field \"spec.template.spec.containers[0].imge\""),
            "{refusal}"
        );
        assert_eq!(server.with(|s| s.version()), version);
        params.dry_run = false;
        let refusal = api
            .patch(
                "web",
                &params,
                &Patch::Strategic(json!({"spec": {"selector": {"matchLabels": {"app": "x"}}}})),
            )
            .await;
        assert_eq!(code(refusal), (422, "Invalid".into()));
    });
}

#[test]
fn status_and_spec_are_written_apart() {
    with_server(|server| async move {
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("canary-operator.dev", "v1alpha1", "CanaryRelease"),
            "canaryreleases",
        );
        let api: Api<DynamicObject> = Api::default_namespaced_with(server.client(), &resource);
        let object: DynamicObject = serde_json::from_value(
            json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "r"}, "spec": {"a": 1}, "status": {"x": 1}}),
        )
        .unwrap();
        let made = api.create(&PostParams::default(), &object).await.unwrap();
        assert!(
            made.data.get("status").is_none(),
            "a new object has no status, whatever is sent"
        );
        let both = json!({"spec": {"a": 2}, "status": {"phase": "Ready"}});
        let after = api
            .patch_status("r", &PatchParams::default(), &Patch::Merge(&both))
            .await
            .unwrap();
        assert_eq!(after.data, json!({"spec": {"a": 1}, "status": {"phase": "Ready"}}));
        assert_eq!(after.metadata.generation, Some(1));
        let after = api
            .patch(
                "r",
                &PatchParams::default(),
                &Patch::Merge(json!({"spec": {"a": 2}, "status": {"phase": "Gone"}})),
            )
            .await
            .unwrap();
        assert_eq!(after.data, json!({"spec": {"a": 2}, "status": {"phase": "Ready"}}));
        assert_eq!(after.metadata.generation, Some(2));
        assert_eq!(
            code(api.patch("r", &PatchParams::default(), &Patch::Strategic(both)).await).0,
            415
        );
    });
}

#[test]
fn an_object_with_finalizers_goes_when_the_last_is_taken_off() {
    with_server(|server| async move {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client());
        let mut object = config_map("a");
        object.metadata.finalizers = Some(vec!["x/y".into()]);
        api.create(&PostParams::default(), &object).await.unwrap();
        assert!(api.delete("a", &DeleteParams::default()).await.unwrap().is_left());
        assert!(api.get("a").await.unwrap().metadata.deletion_timestamp.is_some());
        assert_eq!(
            code(api.create(&PostParams::default(), &object).await),
            (409, "AlreadyExists".into())
        );
        let patch = Patch::Json::<()>(serde_json::from_value(json!([{"op": "test", "path": "/metadata/finalizers/0", "value": "x/y"}, {"op": "remove", "path": "/metadata/finalizers/0"}])).unwrap());
        api.patch("a", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(code(api.get("a").await), (404, "NotFound".into()));
        let foreground = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..Default::default()
        };
        api.create(&PostParams::default(), &config_map("b")).await.unwrap();
        assert!(
            api.delete("b", &foreground).await.unwrap().is_left(),
            "waits for the garbage collector"
        );
    });
}

#[test]
fn a_watch_replays_from_its_version_and_follows_objects_in_and_out_of_its_selector() {
    with_server(|server| async move {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client());
        let key = Key::new("", "configmaps", "default", "a");
        server
            .create(
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"app": "no"}}}),
            )
            .unwrap();
        let list = api.list(&ListParams::default().labels("app in (yes)")).await.unwrap();
        assert!(list.items.is_empty());
        for (label, value) in [("yes", 1), ("yes", 2), ("no", 3), ("yes", 4)] {
            server.edit(&key, |o| {
                *o = {
                    let mut o = o.clone();
                    set(&mut o, "/metadata/labels/app", json!(label));
                    set(&mut o, "/data/n", json!(value.to_string()));
                    o
                }
            });
        }
        server.delete(&key, &DeleteOptions::default()).unwrap();
        let from = list.metadata.resource_version.unwrap();
        let params = WatchParams::default().labels("app in (yes)").timeout(130);
        let events: Vec<_> = api.watch(&params, &from).await.unwrap().try_collect().await.unwrap();
        let seen: Vec<String> = events
            .iter()
            .map(|e| match e {
                WatchEvent::Added(o) => format!("ADDED {}", o.data.as_ref().unwrap()["n"]),
                WatchEvent::Modified(o) => format!("MODIFIED {}", o.data.as_ref().unwrap()["n"]),
                WatchEvent::Deleted(o) => format!("DELETED {}", o.data.as_ref().unwrap()["n"]),
                WatchEvent::Bookmark(_) => "BOOKMARK".into(),
                WatchEvent::Error(e) => e.message.clone(),
            })
            .collect();
        assert_eq!(
            seen,
            [
                "ADDED 1",
                "MODIFIED 2",
                "DELETED 2",
                "ADDED 4",
                "DELETED 4",
                "BOOKMARK",
                "BOOKMARK"
            ]
        );
        assert_eq!(server.clock().elapsed(), Duration::from_secs(130));
        server.with(|s| s.compact(s.version()));
        let events: Vec<_> = api.watch(&params, &from).await.unwrap().try_collect().await.unwrap();
        assert!(matches!(&events[..], [WatchEvent::Error(e)] if e.code == 410));
    });
}

#[test]
fn a_reflector_of_one_namespace_follows_under_a_paused_clock_through_cuts_and_gaps() {
    struct Cutting(AtomicU32);
    impl Interceptor for Cutting {
        fn event(&self, _: &Call, _: &Version) -> EventFate {
            match self.0.fetch_add(1, Ordering::Relaxed) % 4 {
                1 => EventFate::Cut,
                2 => EventFate::Gone,
                _ => EventFate::Deliver,
            }
        }
    }
    with_server(|server| async move {
        server.intercept(Cutting(AtomicU32::new(0)));
        let resource = ApiResource::erase::<Deployment>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(server.client(), "default", &resource);
        let writer = reflector::store::Writer::new(resource);
        let reader = writer.as_reader();
        let follow = watcher(api, watcher::Config::default())
            .default_backoff()
            .reflect(writer)
            .for_each(|_| std::future::ready(()));
        let drive = async {
            reader.wait_until_ready().await.unwrap();
            for n in 0..20 {
                let mut object = web();
                set(&mut object, "/metadata/name", json!(format!("web-{n}")));
                server.create(object.clone()).unwrap();
                set(&mut object, "/metadata/namespace", json!("other"));
                server.create(object).unwrap();
                tokio::time::sleep(Duration::from_secs(7)).await;
            }
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!(reader.state().len(), 20);
        };
        tokio::select! { biased; () = follow => panic!("the watcher ended"), () = drive => {} }
    });
}

#[test]
fn an_interceptor_can_refuse_lose_delay_and_kill() {
    struct Script;
    impl Interceptor for Script {
        fn before(&self, call: &Call) -> Before {
            match text(&call.body, "/metadata/name") {
                "refused" => Before::Answer(error::failure(429, "TooManyRequests", "slow down")),
                "late" => Before::InFlight(Duration::from_secs(5)),
                "dies-before" => Before::Crash,
                _ => Before::Pass,
            }
        }
        fn after(&self, call: &Call, _: Outcome<'_>) -> After {
            match text(&call.body, "/metadata/name") {
                "ambiguous" => After::Answer(error::failure(500, "InternalError", "lost")),
                "dies-after" => After::Crash,
                _ => After::Pass,
            }
        }
    }
    with_server(|server| async move {
        server.intercept(Script);
        let server = server.named("operator-1");
        let api: Api<ConfigMap> = Api::default_namespaced(server.client());
        let exists = |name: &str| server.get(&Key::new("", "configmaps", "default", name)).is_some();
        let post = PostParams::default();
        assert_eq!(code(api.create(&post, &config_map("refused")).await).0, 429);
        assert_eq!(code(api.create(&post, &config_map("ambiguous")).await).0, 500);
        assert!(!exists("refused") && exists("ambiguous"));
        assert!(
            tokio::time::timeout(Duration::from_secs(1), api.create(&post, &config_map("late")))
                .await
                .is_err()
        );
        assert!(!exists("late"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(exists("late"), "a request in flight arrives though its client has gone");
        for (name, stored) in [("dies-before", false), ("dies-after", true)] {
            let object = config_map(name);
            tokio::select! { biased; _ = api.create(&post, &object) => panic!("answered"), () = server.crashed("operator-1") => {} }
            assert_eq!(exists(name), stored);
        }
    });
}

#[test]
fn a_real_controller_reconciles_requeues_and_hears_of_what_it_owns() {
    use kube::runtime::{Controller, controller::Action};
    let run = || {
        runtime().unwrap().block_on(async {
            fastrand::seed(1);
            let server = ApiServer::new(VirtualClock::new(), 1);
            server
                .create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
                .unwrap();
            let owner = server.get(&Key::new("", "configmaps", "default", "a")).unwrap();
            let client = server.client();
            let trace = Arc::new(Mutex::new(Vec::new()));
            let (seen, clock) = (trace.clone(), server.clock());
            let reconcile = move |object: Arc<ConfigMap>, client: Arc<kube::Client>| {
                let (seen, clock) = (seen.clone(), clock);
                async move {
                    lock(&seen).push((clock.elapsed(), object.resource_version()));
                    let api: Api<ConfigMap> = Api::default_namespaced((*client).clone());
                    let patch = Patch::Merge(
                        json!({"metadata": {"resourceVersion": object.resource_version()}, "data": {"seen": "yes"}}),
                    );
                    api.patch("a", &PatchParams::default(), &patch).await?;
                    Ok::<_, kube::Error>(Action::requeue(Duration::from_secs(300)))
                }
            };
            let controller = Controller::new(Api::<ConfigMap>::all(client.clone()), watcher::Config::default())
                .owns(
                    Api::<Deployment>::default_namespaced(client.clone()),
                    watcher::Config::default(),
                )
                .run(
                    reconcile,
                    |_, _, _| Action::requeue(Duration::from_secs(5)),
                    Arc::new(client),
                )
                .for_each(|_| std::future::ready(()));
            let drive = async {
                tokio::time::sleep(Duration::from_secs(100)).await;
                let mut owned = web();
                set(
                    &mut owned,
                    "/metadata/ownerReferences",
                    json!([crate::rehearse::actors::deployment::owner_reference(&owner)]),
                );
                server.create(owned).unwrap();
                tokio::time::sleep(Duration::from_secs(3600)).await;
            };
            tokio::select! { biased; () = controller => panic!("the controller ended"), () = drive => {} }
            lock(&trace).clone()
        })
    };
    let trace = run();
    assert!(
        trace.iter().any(|(at, _)| at.as_secs() == 100),
        "the owned Deployment was heard of"
    );
    assert!((13..=16).contains(&trace.len()), "{trace:?}");
    assert_eq!(trace, run());
}
