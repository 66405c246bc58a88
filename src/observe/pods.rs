//! Why a pod does not run.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

/// Waiting reasons that a person must mend: restarting does not.
const HOPELESS: [&str; 7] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// A container that ends so often by itself, and runs in between, is not well: the kubelet's back-off, which tells of a
/// crash loop, is forgotten after ten minutes.
const RESTARTS: i32 = 3;
/// The reason of such a container.
pub const RESTARTING: &str = "Restarting";

/// A container that does not run, or not for long, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The kubelet's reason, such as `CrashLoopBackOff`.
    pub reason: String,
    /// The kubelet's message.
    pub message: String,
    /// Exit code of the last run, where there was one.
    pub exit_code: Option<i32>,
    /// Whether the container ran at all, so that it has a log.
    pub ran: bool,
}

/// The first container, init containers before others, that fails in a way that waiting does not mend.
#[must_use]
pub fn failure(pod: &Pod) -> Option<Failure> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let main = status.container_statuses.as_deref().unwrap_or_default();
    let failed = init.iter().chain(main).find_map(|container| failed(pod, container));
    // What an init container does before it succeeds is nobody's request.
    failed.or_else(|| main.iter().find_map(|container| restarting(pod, container)))
}

fn restarting(pod: &Pod, container: &ContainerStatus) -> Option<Failure> {
    let last = container.last_state.as_ref()?.terminated.as_ref()?;
    (container.restart_count >= RESTARTS).then(|| Failure {
        pod: pod.name_any(),
        container: container.name.clone(),
        reason: RESTARTING.to_owned(),
        message: format!(
            "it has restarted {} times, last because of {}",
            container.restart_count,
            last.reason.as_deref().unwrap_or("an unknown reason")
        ),
        exit_code: Some(last.exit_code),
        ran: true,
    })
}

fn failed(pod: &Pod, container: &ContainerStatus) -> Option<Failure> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| HOPELESS.contains(reason))?;
    let last = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    Some(Failure {
        pod: pod.name_any(),
        container: container.name.clone(),
        reason: reason.to_owned(),
        message: waiting.message.clone().unwrap_or_default(),
        exit_code: last.map(|end| end.exit_code),
        ran: last.is_some(),
    })
}

/// The last line of a log that says something.
#[must_use]
pub fn last_line(log: &str) -> Option<String> {
    const LONGEST: usize = 300;
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1"}, "status": status})).unwrap()
    }

    #[test]
    fn a_crash_loop_is_told_with_its_exit_code() {
        let seen = failure(&pod(
            json!({"containerStatuses": [{"name": "app", "ready": false, "restartCount": 1, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
        ))
        .unwrap();
        assert_eq!(
            (seen.reason.as_str(), seen.exit_code, seen.ran),
            ("CrashLoopBackOff", Some(1), true)
        );
    }

    #[test]
    fn an_init_container_is_named_before_the_containers_that_wait_for_it() {
        let waiting = |name, reason| json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"waiting": {"reason": reason}}});
        let seen = failure(&pod(
            json!({"initContainerStatuses": [waiting("migrate", "CrashLoopBackOff")],
            "containerStatuses": [waiting("app", "PodInitializing")]}),
        ));
        assert_eq!(seen.unwrap().container, "migrate");
    }

    #[test]
    fn a_container_that_keeps_ending_is_told_though_it_runs_again() {
        let restarted = |times: i32| {
            failure(&pod(
                json!({"containerStatuses": [{"name": "app", "ready": true, "restartCount": times, "image": "", "imageID": "",
                "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
            ))
        };
        assert_eq!(restarted(2), None);
        let seen = restarted(3).unwrap();
        assert_eq!((seen.reason.as_str(), seen.exit_code), ("Restarting", Some(137)));
        assert_eq!(seen.message, "it has restarted 3 times, last because of OOMKilled");
    }

    #[test]
    fn an_init_container_may_try_until_it_succeeds() {
        let status = json!({"initContainerStatuses": [{"name": "migrate", "ready": false, "restartCount": 5, "image": "", "imageID": "",
            "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]});
        assert_eq!(failure(&pod(status)), None);
    }

    #[test]
    fn what_may_mend_itself_is_not_a_failure() {
        for reason in ["ContainerCreating", "PodInitializing", "ErrImagePull"] {
            let status = json!({"containerStatuses": [{"name": "app", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {"waiting": {"reason": reason}}}]});
            assert_eq!(failure(&pod(status)), None);
        }
    }

    #[test]
    fn the_last_line_that_says_something_is_kept_without_control_characters() {
        assert_eq!(
            last_line("Traceback\n  File x\nModuleNotFoundError: No module named 'y'\n\n").unwrap(),
            "ModuleNotFoundError: No module named 'y'"
        );
        assert_eq!(last_line("\u{1b}[31mred").unwrap(), "[31mred");
        assert_eq!(last_line("\n \n"), None);
    }
}
