//! One scenario: a namespace of its own, and everything worth knowing written down where it fails.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, anyhow};

use crate::{
    cluster::{Cluster, repository},
    load::Load,
    namespace::Namespace,
    operator::Operator,
    process::attempt,
};

/// What a scenario has to play with.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub cluster: &'static Cluster,
    /// The operator, shared with the scenarios that run at the same time.
    pub operator: &'static Operator,
    /// The scenario's own namespace.
    pub namespace: Namespace,
}

/// Plays a scenario on the cluster with the operator installed. Where there is no cluster, says so and passes,
/// or fails where `CI=true`.
///
/// `name` becomes part of the namespace's name. Afterwards the namespace is deleted; after a failure it is kept,
/// with all logs in `target/e2e-logs/NAME`.
pub fn play(name: &str, body: impl FnOnce(&Scene) -> Result<()>) -> Result<()> {
    let Some(cluster) = Cluster::for_test(name)? else { return Ok(()) };
    let operator = Operator::installed(cluster)?;
    let scene = Scene { cluster, operator, namespace: Namespace::create(cluster, name)? };
    match catch_unwind(AssertUnwindSafe(|| body(&scene))) {
        Ok(Ok(())) => scene.namespace.delete(),
        Ok(Err(error)) => Err(anyhow!("{error:#}\n\n{}", scene.write_down(name))),
        Err(panic) => {
            eprintln!("{}", scene.write_down(name));
            resume_unwind(panic)
        }
    }
}

impl Scene {
    /// A host name that no other scenario uses.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{}.test", self.namespace.name())
    }

    /// Constant traffic to `host`, for at most `most`.
    pub fn load(&self, host: &str, per_second: u32, most: Duration) -> Result<Load> {
        Load::start(self.cluster, host, per_second, most)
    }

    /// Everything that helps to find the fault: the gist as text, the rest into a folder.
    fn write_down(&self, name: &str) -> String {
        let folder = logs_folder().join(name);
        let mut gist = format!("The namespace {} is kept.", self.namespace.name());
        let looks: [(&str, &[&str]); 5] = [
            (
                "the releases",
                &[
                    "get",
                    "canaryreleases.canary-operator.dev",
                    "-o=jsonpath={range .items[*]}{.metadata.name}{\": \"}{.status}{\"\\n\"}{end}",
                ],
            ),
            ("what there is", &["get", "deployments,replicasets,pods,services,endpointslices,ingresses", "-o=wide"]),
            (
                "weights",
                &[
                    "get",
                    "ingresses",
                    "-o=jsonpath={range .items[*]}{.metadata.name}{\": \"}{.metadata.annotations}{\"\\n\"}{end}",
                ],
            ),
            (
                "events",
                &[
                    "get",
                    "events.events.k8s.io",
                    "-o=custom-columns=AT:.metadata.creationTimestamp,ABOUT:.regarding.kind,NAME:.regarding.name,REASON:.reason,NOTE:.note",
                    "--sort-by=.metadata.creationTimestamp",
                ],
            ),
            ("pods' logs", &["logs", "--selector=!no-pod-has-this", "--all-containers", "--prefix", "--tail=50"]),
        ];
        let mut sections: Vec<(String, String)> = Vec::new();
        for (title, args) in looks {
            let text = match attempt(&mut self.namespace.kubectl(args), "") {
                Ok(ended) => format!("{}{}", ended.stdout, ended.stderr),
                Err(error) => format!("{error:#}"),
            };
            sections.push((title.to_owned(), text));
        }
        let log = self.operator.log(60).unwrap_or_else(|error| format!("{error:#}"));
        sections.push(("the operator's log".to_owned(), log));
        for (title, text) in &sections {
            gist.push_str(&format!("\n\n--- {title} ---\n{}", text.trim_end()));
        }
        let written = fs::create_dir_all(&folder)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(fs::write(folder.join("gist.txt"), &gist)?))
            .and_then(|()| self.cluster.collect_logs(&folder));
        match written {
            Ok(()) => gist.push_str(&format!("\n\nAll logs are in {}.", folder.display())),
            Err(error) => gist.push_str(&format!("\n\nThe logs could not be kept: {error:#}")),
        }
        gist
    }
}

fn logs_folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("e2e-logs")
}
