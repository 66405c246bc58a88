//! Judges every release that the test cluster has seen, by its API server's audit log. Exits with 1 where a rule was broken.

use anyhow::{Result, bail};
use canary_e2e::{
    audit::Log,
    cluster::{Cluster, Found},
};

fn main() -> Result<()> {
    let Found::Cluster(cluster) = Cluster::find()? else {
        bail!("there is no cluster")
    };
    let Some(log) = Log::of(cluster)? else {
        bail!("this cluster's audit log is out of reach")
    };
    let judged = log.judged();
    let looked: Vec<_> = judged
        .looked
        .iter()
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    println!("looked at {}", looked.join(", "));
    judged.all_well(&[
        "canary Ingresses",
        "canary Deployments and Services",
        "stable Deployments",
        "statuses",
    ])
}
