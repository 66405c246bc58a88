//! The actors together, as a user of the cluster sees them.

use super::*;
use crate::rehearse::{
    Key, Resource,
    json::{condition, int, is_true, text},
    server::store::{ChangeKind, DeleteOptions},
};

/// Runs a test's body in a world.
pub(crate) fn in_world<T, F: Future<Output = T>>(seed: u64, body: impl FnOnce(World) -> F) -> T {
    runtime().unwrap().block_on(async { body(World::new(seed)).await })
}

pub(crate) fn deployment(name: &str, image: &str, replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}}}})
}

pub(crate) fn service(name: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"from": "test"}},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
}

fn complete(world: &World, name: &str) -> bool {
    world.server.get(&Key::deployment("default", name)).is_some_and(|d| {
        condition(&d, "Progressing").is_some_and(|c| text(c, "/reason") == "NewReplicaSetAvailable")
            && int(&d, "/status/observedGeneration") == int(&d, "/metadata/generation")
            && int(&d, "/status/updatedReplicas") == int(&d, "/spec/replicas")
            && int(&d, "/status/replicas") == int(&d, "/spec/replicas")
    })
}

fn pods(world: &World) -> Vec<Arc<Value>> {
    world.server.list(&Resource::new("", "pods"), "default")
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_deployment_gets_its_pods_and_its_service_their_addresses() {
    in_world(1, |world| async move {
        world.apply(service("web", "web")).unwrap();
        world.apply(deployment("web", "web:v1", 3)).unwrap();
        let took = world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
        assert!(
            took >= Duration::from_secs(3) && took < Duration::from_secs(6),
            "{took:?}"
        );
        let d = world.server.get(&Key::deployment("default", "web")).unwrap();
        assert!(is_true(&d, "Available"));
        assert_eq!(int(&d, "/metadata/generation"), Some(1));
        world.pass(Duration::from_secs(1)).await;
        let slices = world
            .server
            .list(&Resource::new("discovery.k8s.io", "endpointslices"), "default");
        assert_eq!(text(&slices[0], "/metadata/labels/kubernetes.io~1service-name"), "web");
        assert_eq!(text(&slices[0], "/metadata/labels/from"), "test");
        assert_eq!(int(&slices[0], "/ports/0/port"), Some(8080));
        assert_eq!(
            items(&slices[0], "/endpoints")
                .iter()
                .filter(|e| e.pointer("/conditions/ready") == Some(&json!(true)))
                .count(),
            3
        );
    });
}

#[test]
fn a_rolling_update_keeps_within_surge_and_availability_all_along() {
    in_world(2, |world| async move {
        world.apply(deployment("web", "web:v1", 4)).unwrap();
        world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
        let from = world.server.with(|s| s.version());
        world.server.edit(&Key::deployment("default", "web"), |d| {
            let c = d.pointer_mut("/spec/template/spec/containers").unwrap();
            *c = json!([{"name": "app", "image": "web:v2"}]);
        });
        world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
        world.pass(Duration::from_secs(10)).await;
        assert!(
            pods(&world)
                .iter()
                .all(|p| text(p, "/spec/containers/0/image") == "web:v2")
        );
        assert_eq!(pods(&world).len(), 4);
        // At every version: at least 3 ready pods, at most 5 that are not ending.
        let log = world.server.log();
        for v in log.iter().filter(|v| v.resource_version > from) {
            let then = world
                .server
                .with(|s| s.list_at(&Resource::new("", "pods"), "default", v.resource_version));
            let alive: Vec<_> = then
                .iter()
                .filter(|(_, p)| !crate::rehearse::json::is_ending(p))
                .collect();
            assert!(alive.len() <= 5, "{}", alive.len());
            assert!(alive.iter().filter(|(_, p)| is_true(p, "Ready")).count() >= 3);
        }
    });
}

#[test]
fn a_crashing_image_shows_crash_loop_back_off_in_time_and_its_log_can_be_read() {
    in_world(3, |world| async move {
        world.image_behaves("web:bad", Behaviour::crash_loop("python: can't open file\nbye\n"));
        world.apply(deployment("web", "web:bad", 1)).unwrap();
        let took = world
            .run_until(MINUTE, |w| {
                pods(w)
                    .iter()
                    .any(|p| text(p, "/status/containerStatuses/0/state/waiting/reason") == "CrashLoopBackOff")
            })
            .await
            .unwrap();
        assert!(
            took >= Duration::from_secs(4) && took <= Duration::from_secs(9),
            "{took:?}"
        );
        let pod = pods(&world)[0].clone();
        assert_eq!(
            int(&pod, "/status/containerStatuses/0/lastState/terminated/exitCode"),
            Some(1)
        );
        assert_eq!(int(&pod, "/status/containerStatuses/0/restartCount"), Some(1));
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::default_namespaced(world.client());
        let parameters = kube::api::LogParams {
            tail_lines: Some(1),
            previous: true,
            ..Default::default()
        };
        assert_eq!(
            api.logs(text(&pod, "/metadata/name"), &parameters).await.unwrap(),
            "bye\n"
        );
    });
}

#[test]
fn a_failing_init_container_and_an_unknown_image_never_start_the_container() {
    in_world(10, |world| async move {
        world.image_behaves(
            "web:init",
            Behaviour::InitCrash {
                log: "no database\n".into(),
            },
        );
        world.image_behaves(
            "web:none",
            Behaviour::ImagePullBackOff {
                message: "not found".into(),
            },
        );
        let mut with_init = deployment("init", "web:init", 1);
        crate::rehearse::json::set(
            &mut with_init,
            "/spec/template/spec/initContainers",
            json!([{"name": "wait", "image": "busybox:1"}]),
        );
        world.apply(with_init).unwrap();
        world.apply(deployment("none", "web:none", 1)).unwrap();
        let of = |w: &World, app: &str| pods(w).into_iter().find(|p| text(p, "/metadata/labels/app") == app);
        let waits = |w: &World, app: &str, at: &str, reason: &str| {
            of(w, app).is_some_and(|p| text(&p, &format!("/status/{at}/0/state/waiting/reason")) == reason)
        };
        world
            .run_until(MINUTE, |w| {
                waits(w, "init", "initContainerStatuses", "CrashLoopBackOff")
                    && waits(w, "init", "containerStatuses", "PodInitializing")
            })
            .await
            .unwrap();
        world
            .run_until(MINUTE, |w| waits(w, "none", "containerStatuses", "ImagePullBackOff"))
            .await
            .unwrap();
        let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::default_namespaced(world.client());
        let name = |app: &str| text(&of(&world, app).unwrap(), "/metadata/name").to_string();
        let wait = kube::api::LogParams {
            container: Some("wait".into()),
            previous: true,
            ..Default::default()
        };
        assert_eq!(api.logs(&name("init"), &wait).await.unwrap(), "no database\n");
        let refusal = api
            .logs(&name("none"), &Default::default())
            .await
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("trying and failing to pull image"), "{refusal}");
        assert_eq!(text(&of(&world, "init").unwrap(), "/status/phase"), "Pending");
    });
}

#[test]
fn a_running_pod_can_be_made_unready_and_well_again_without_a_restart() {
    in_world(11, |world| async move {
        world.apply(deployment("web", "web:v1", 1)).unwrap();
        world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
        for (behaviour, ready) in [(Behaviour::NeverReady, false), (Behaviour::healthy(), true)] {
            world.image_behaves("web:v1", behaviour);
            world
                .run_until(MINUTE, |w| is_true(&pods(w)[0], "Ready") == ready)
                .await
                .unwrap();
        }
        assert_eq!(
            int(&pods(&world)[0], "/status/containerStatuses/0/restartCount"),
            Some(0)
        );
    });
}

#[test]
fn an_unready_rollout_exceeds_its_deadline_exactly_then() {
    in_world(4, |world| async move {
        world.image_behaves("web:slow", Behaviour::NeverReady);
        let mut d = deployment("web", "web:slow", 1);
        crate::rehearse::json::set(&mut d, "/spec/progressDeadlineSeconds", json!(120));
        world.apply(d).unwrap();
        let exceeded = |w: &World| {
            w.server.get(&Key::deployment("default", "web")).is_some_and(|d| {
                condition(&d, "Progressing").is_some_and(|c| text(c, "/reason") == "ProgressDeadlineExceeded")
            })
        };
        let took = world.run_until(MINUTE * 5, exceeded).await.unwrap();
        assert!(
            took >= Duration::from_secs(119) && took <= Duration::from_secs(125),
            "{took:?}"
        );
    });
}

#[test]
fn a_quota_denies_pods_and_the_deployment_says_so_until_it_is_raised() {
    in_world(5, |world| async move {
        let quota = |n: &str| json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": n}}});
        world.apply(quota("1")).unwrap();
        world.apply(deployment("web", "web:v1", 2)).unwrap();
        let failed = |w: &World| {
            w.server.get(&Key::deployment("default", "web")).is_some_and(|d| {
                condition(&d, "ReplicaFailure").is_some_and(|c| text(c, "/message").contains("exceeded quota"))
            })
        };
        world.run_until(MINUTE, failed).await.unwrap();
        world.apply(quota("5")).unwrap();
        world
            .run_until(MINUTE, |w| complete(w, "web") && !failed(w))
            .await
            .unwrap();
    });
}

#[test]
fn deleting_a_deployment_takes_its_replica_sets_and_pods_along() {
    in_world(6, |world| async move {
        world.apply(deployment("web", "web:v1", 2)).unwrap();
        world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
        assert!(
            world
                .server
                .delete(&Key::deployment("default", "web"), &DeleteOptions::default())
                .unwrap()
        );
        world.run_until(MINUTE, |w| pods(w).is_empty()).await.unwrap();
        assert!(
            world
                .server
                .list(&Resource::new("apps", "replicasets"), "default")
                .is_empty()
        );
        let last = world.server.log();
        assert_eq!(last.last().unwrap().change, ChangeKind::Deleted);
    });
}

#[test]
fn an_ending_pod_stays_serving_but_is_not_ready_for_the_service() {
    in_world(7, |world| async move {
        world.apply(service("web", "web")).unwrap();
        world.apply(deployment("web", "web:v1", 1)).unwrap();
        world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
        world.kubelet(|s| s.termination = Duration::from_secs(20));
        let pod = Key::pod("default", text(&pods(&world)[0], "/metadata/name"));
        assert!(!world.server.delete(&pod, &DeleteOptions::default()).unwrap());
        world.pass(Duration::from_secs(1)).await;
        let slice = world
            .server
            .list(&Resource::new("discovery.k8s.io", "endpointslices"), "default")[0]
            .clone();
        let ending = items(&slice, "/endpoints")
            .iter()
            .find(|e| text(e, "/targetRef/name") == pod.name)
            .unwrap();
        assert_eq!(
            ending.get("conditions"),
            Some(&json!({"ready": false, "serving": true, "terminating": true}))
        );
        world.run_until(MINUTE, |w| w.server.get(&pod).is_none()).await.unwrap();
    });
}

#[test]
fn a_steady_world_writes_nothing_for_an_hour_and_a_seed_replays_alike() {
    let trace = |seed| {
        in_world(seed, |world| async move {
            world.apply(service("web", "web")).unwrap();
            world.apply(deployment("web", "web:v1", 3)).unwrap();
            world.run_until(MINUTE, |w| complete(w, "web")).await.unwrap();
            world.pass(Duration::from_secs(5)).await;
            let before = world.server.with(|s| s.version());
            world.pass(MINUTE * 60).await;
            assert_eq!(world.server.with(|s| s.version()), before);
            world
                .server
                .log()
                .iter()
                .map(|v| format!("{} {:?} {} {}", v.at, v.change, v.key, v.object))
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(trace(8), trace(8));
    assert_ne!(trace(8), trace(9));
}
