//! The same against a real API server, in namespaces that are made for it and deleted.

use crate::{
    fake::Requests,
    idle::{self, Cost},
    operator::Operator,
};
use canary_operator::api::CanaryRelease;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResourceExt, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    runtime::wait::{await_condition, conditions},
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path, time::Duration};

/// As many as a test cluster takes without being slow itself.
const RELEASES: [usize; 3] = [1, 100, 1_000];
/// As long as it takes until the operator has looked at each of them again.
const WATCHED: Duration = Duration::from_secs(310);
/// Requests of the bench at once.
const AT_ONCE: usize = 16;
/// What its namespaces have in common.
const LABEL: &str = "canary-operator.dev/bench";

/// What idle releases cost there. The cluster is the one of the kubeconfig.
pub async fn idle(dir: &Path, played: &[serde_json::Value]) -> Vec<Cost> {
    let client = Client::try_default().await.unwrap();
    let made = define(&client).await;
    let mut costs = Vec::new();
    let mut there = 0;
    for releases in RELEASES {
        fill(&client, played, there, releases).await;
        there = releases;
        costs.push(cost(dir, releases).await);
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for namespace in namespaces.list(&ListParams::default().labels(LABEL)).await.unwrap() {
        namespaces
            .delete(&namespace.name_any(), &DeleteParams::default())
            .await
            .unwrap();
    }
    if made {
        let definitions: Api<CustomResourceDefinition> = Api::all(client);
        definitions
            .delete(CanaryRelease::crd_name(), &DeleteParams::default())
            .await
            .unwrap();
    }
    costs
}

/// Whether the resource was not there and had to be made.
async fn define(client: &Client) -> bool {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = CanaryRelease::crd_name();
    if definitions.get_opt(name).await.unwrap().is_some() {
        return false;
    }
    definitions
        .create(&PostParams::default(), &CanaryRelease::crd())
        .await
        .unwrap();
    await_condition(definitions, name, conditions::is_crd_established())
        .await
        .unwrap();
    true
}

/// From so many releases that are over to so many.
async fn fill(client: &Client, played: &[serde_json::Value], from: usize, to: usize) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for number in from.div_ceil(idle::RELEASES)..to.div_ceil(idle::RELEASES) {
        let namespace = json!({"metadata": {"name": namespace(number), "labels": {LABEL: ""}}});
        let namespace = serde_json::from_value(namespace).unwrap();
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    }
    let releases: Vec<CanaryRelease> = idle::copies(played, to)
        .filter(|object| object["kind"] == "CanaryRelease")
        .skip(from)
        .map(|object| serde_json::from_value(object).unwrap())
        .collect();
    let stored = stream::iter(releases.into_iter().zip(from..)).map(async |(mut release, number)| {
        let api: Api<CanaryRelease> = Api::namespaced(client.clone(), &namespace(number / idle::RELEASES));
        let status = release.status.take();
        release.metadata = kube::api::ObjectMeta {
            name: release.metadata.name,
            annotations: release.metadata.annotations,
            ..Default::default()
        };
        let mut stored = api.create(&PostParams::default(), &release).await?;
        stored.status = status;
        api.replace_status(&stored.name_any(), &PostParams::default(), &stored)
            .await
    });
    stored
        .buffer_unordered(AT_ONCE)
        .try_for_each(async |_| Ok(()))
        .await
        .unwrap();
}

fn namespace(number: usize) -> String {
    format!("canary-bench-{number:03}")
}

async fn cost(dir: &Path, releases: usize) -> Cost {
    // The operator gets what this process goes by.
    let kubeconfig = std::env::var("KUBECONFIG").unwrap_or_else(|_| {
        let home = std::env::var("HOME").unwrap();
        format!("{home}/.kube/config")
    });
    let arguments = [
        "--lease-namespace",
        &namespace(0),
        "--lease-name",
        &format!("bench-{releases}"),
    ];
    let mut operator = Operator::start(dir, &format!("real-{releases}"), Path::new(&kubeconfig), &arguments);
    let settled = operator.settled().await;
    let (before, asked) = (operator.usage(), asked(&operator));
    tokio::time::sleep(WATCHED).await;
    let usage = operator.usage();
    let mut requests = Requests::default();
    for ((verb, resource), count) in self::asked(&operator) {
        let earlier = asked.get(&(verb.clone(), resource.clone())).copied().unwrap_or(0);
        if count > earlier {
            requests.add(&verb, &resource, count - earlier);
        }
    }
    Cost {
        releases,
        settled,
        minutes: (usage.at - before.at).as_secs_f64() / 60.0,
        requests,
        cpu: usage.cpu_a_minute(&before),
        usage,
    }
}

/// What the operator says that it has asked, by verb and resource.
fn asked(operator: &Operator) -> BTreeMap<(String, String), usize> {
    let mut asked = BTreeMap::new();
    for (series, count) in operator.metrics() {
        let Some(labels) = series.strip_prefix("canary_operator_api_requests_total{") else {
            continue;
        };
        let label = |name: &str| {
            let rest = labels.split(&format!("{name}=\"")).nth(1).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        *asked.entry((label("verb"), label("resource"))).or_default() += count as usize;
    }
    asked
}
