//! The API server as a client sees it.

use super::*;
use crate::rehearse::{json::text, world::runtime};
use futures::TryStreamExt;
use intercept::EventFate;
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::ConfigMap, networking::v1::Ingress};
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
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}}),
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
        let nameless = api.patch("web", &params, &overlay(json!({"image": "web:v2"}))).await;
        assert_eq!(code(nameless).0, 500, "what the real server did not foresee");
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
fn who_takes_off_the_last_finalizer_hears_the_old_version_and_watches_hear_the_finalizer() {
    with_server(|server| async move {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client());
        let mut object = config_map("a");
        object.metadata.finalizers = Some(vec!["x/y".into()]);
        api.create(&PostParams::default(), &object).await.unwrap();
        let more = Patch::Merge(json!({"metadata": {"finalizers": ["x/y", "x/z"]}}));
        let left = api.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
        assert_eq!(
            code(api.patch("a", &PatchParams::default(), &more).await),
            (422, "Invalid".into()),
            "nothing new may hold what is being deleted"
        );
        let none = Patch::Merge(json!({"metadata": {"finalizers": []}}));
        let last = api.patch("a", &PatchParams::default(), &none).await.unwrap();
        assert_eq!(last.resource_version(), left.resource_version());
        assert!(last.finalizers().is_empty());
        let history = server.history(&Key::new("", "configmaps", "default", "a"));
        let gone = history.last().unwrap();
        assert_eq!(gone.change, store::ChangeKind::Deleted);
        assert_eq!(gone.object.pointer("/metadata/finalizers"), Some(&json!(["x/y"])));
        assert_ne!(last.resource_version(), Some(gone.resource_version.to_string()));
    });
}

#[test]
fn a_lease_is_replaced_at_its_version_and_made_anew_where_it_is_gone() {
    with_server(|server| async move {
        let api: Api<Lease> = Api::default_namespaced(server.client());
        let lease = |version: Option<String>, uid: Option<String>| -> Lease {
            let metadata = json!({"name": "l", "resourceVersion": version, "uid": uid});
            serde_json::from_value(json!({"metadata": metadata, "spec": {"holderIdentity": "a"}})).unwrap()
        };
        let params = PostParams::default();
        let made = api.replace("l", &params, &lease(None, None)).await.unwrap();
        assert_eq!(
            code(api.replace("l", &params, &lease(None, None)).await),
            (422, "Invalid".into()),
            "which version is replaced has to be said"
        );
        api.delete("l", &DeleteParams::default()).await.unwrap();
        let late = lease(made.resource_version(), made.uid());
        assert_eq!(code(api.replace("l", &params, &late).await), (409, "Conflict".into()));
        let again = api.replace("l", &params, &lease(made.resource_version(), None)).await;
        assert_ne!(again.unwrap().uid(), made.uid());
    });
}

#[test]
fn a_custom_resource_is_held_to_its_definition() {
    with_server(|server| async move {
        let properties = json!({
            "spec": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": "integer", "maximum": 10},
                "b": {"type": "string", "default": "x", "enum": ["x", "y"]},
                "c": {"type": "string", "nullable": true},
                "d": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            }},
            "status": {"type": "object", "properties": {"phase": {"type": "string", "maxLength": 3}}},
        });
        server.define(
            &json!({"spec": {"group": "canary-operator.dev", "names": {"plural": "canaryreleases"}, "versions": [
            {"schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": properties}}}]}}),
        );
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("canary-operator.dev", "v1alpha1", "CanaryRelease"),
            "canaryreleases",
        );
        let api: Api<DynamicObject> = Api::default_namespaced_with(server.client(), &resource);
        let object = |spec: Value| -> DynamicObject {
            serde_json::from_value(json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "r"}, "spec": spec})).unwrap()
        };
        let post = PostParams::default();
        for (spec, why) in [
            (json!({}), "spec.a: Required value"),
            (json!({"a": "1"}), "spec.a in body must be of type integer"),
            (json!({"a": 11}), "spec.a in body should be less than or equal to 10"),
            (json!({"a": 1, "b": "z"}), "supported values: \"x\", \"y\""),
        ] {
            let refusal = api.create(&post, &object(spec)).await.unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
        let given = json!({"a": 1, "b": null, "c": null, "d": {"any": "thing"}, "e": 1});
        let made = api.create(&post, &object(given)).await.unwrap();
        assert_eq!(
            made.data["spec"],
            json!({"a": 1, "b": "x", "c": null, "d": {"any": "thing"}})
        );
        let params = PatchParams::default().validation_strict();
        let misspelt = Patch::Merge(json!({"spec": {"e": 1}}));
        assert_eq!(code(api.patch("r", &params, &misspelt).await).0, 422);
        let long = Patch::Merge(json!({"status": {"phase": "long"}}));
        let refusal = api.patch_status("r", &PatchParams::default(), &long).await;
        assert_eq!(code(refusal), (422, "Invalid".into()), "a status is held to it too");
    });
}

#[test]
fn a_list_comes_in_pages_that_are_all_of_one_age() {
    with_server(|server| async move {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client());
        for name in ["a", "b", "c"] {
            api.create(&PostParams::default(), &config_map(name)).await.unwrap();
        }
        let first = api.list(&ListParams::default().limit(2)).await.unwrap();
        assert_eq!(first.metadata.remaining_item_count, Some(1));
        api.delete("c", &DeleteParams::default()).await.unwrap();
        let token = first.metadata.continue_.unwrap();
        let next = ListParams::default().limit(2).continue_token(&token);
        let second = api.list(&next).await.unwrap();
        let names: Vec<_> = second.iter().map(ResourceExt::name_any).collect();
        assert_eq!((names, second.metadata.continue_), (vec!["c".to_owned()], None));
        server.with(|s| s.compact(s.version()));
        assert_eq!(code(api.list(&next).await), (410, "Expired".into()));
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
