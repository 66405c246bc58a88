//! The simulated API server for the operator's process, and what it was asked.

use canary_operator::rehearse::{ApiServer, server::intercept::Record};
use jiff::Timestamp;
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tokio::net::TcpListener;

/// Serves it on a port of its own, for as long as this process lives, and writes how it is reached.
pub async fn serve(server: &ApiServer, dir: &Path, name: &str) -> PathBuf {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": address}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]});
    let path = dir.join(format!("{name}.kubeconfig"));
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let server = server.clone();
    tokio::spawn(async move { server.serve(listener).await });
    path
}

/// How many requests there were.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    pub watches: usize,
    pub lease: usize,
    /// The others, by verb and resource.
    pub others: BTreeMap<String, usize>,
}

impl Requests {
    /// Those between two moments.
    pub fn between(records: &[Record], from: Timestamp, to: Timestamp) -> Self {
        let mut requests = Self::default();
        for record in records.iter().filter(|record| record.at >= from && record.at < to) {
            let plural = &record.resource.plural;
            let resource = [plural.as_str(), &record.subresource].join("/");
            requests.add(record.verb, resource.trim_end_matches('/'), 1);
        }
        requests
    }

    pub fn add(&mut self, verb: &str, resource: &str, count: usize) {
        match (verb, resource) {
            ("watch", _) => self.watches += count,
            (_, "leases") => self.lease += count,
            _ => *self.others.entry(format!("{verb} {resource}")).or_default() += count,
        }
    }

    pub fn others(&self) -> usize {
        self.others.values().sum()
    }
}
