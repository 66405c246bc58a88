//! Two replicas, of which one leads.

use std::time::{Duration, Instant};

use anyhow::ensure;
use canary_e2e::{
    scene::{Outcome, play},
    trial::tell,
};

/// From the kill until another replica leads.
const KILLED: Duration = Duration::from_secs(20);
/// From the request to end until another replica leads: the kubelet's way to the signal included.
const ENDED: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn another_replica_leads_at_once_when_the_leader_ends_and_within_20_seconds_when_it_is_killed() -> Outcome {
    play("leading", |scene| {
        let operator = scene.operator;
        let first = operator.until_ready(PATIENCE, |_| true)?;
        let (leaders, followers): (Vec<_>, Vec<_>) = (operator.readiness()?.into_iter())
            .partition(|(pod, answer)| *pod == first.name && answer.trim() == "leader");
        ensure!(
            leaders.len() == 1
                && followers.len() == 1
                && followers
                    .iter()
                    .all(|(_, answer)| answer.trim() == format!("follower; {} leads", first.identity)),
            "/readyz answers {leaders:?} at the leader {} and {followers:?} elsewhere",
            first.identity
        );

        let begun = Instant::now();
        let second = operator.delete_pod(PATIENCE)?;
        let ended = begun.elapsed();

        let begun = Instant::now();
        let reached_it = operator.kill_process(PATIENCE)?;
        let killed = begun.elapsed();
        ensure!(
            reached_it || scene.cluster.on_node("true", &[]).is_none(),
            "the operator's process was not killed"
        );
        let third = operator.until_ready(PATIENCE, |_| true)?;
        ensure!(
            third.identity != second.identity || !reached_it,
            "{} leads though it was killed",
            third.identity
        );
        tell(&format!(
            "another replica leads {:.1} s after the leader was asked to end, and {:.1} s after it was killed",
            ended.as_secs_f64(),
            killed.as_secs_f64()
        ))?;
        ensure!(ended <= ENDED, "it took {ended:?} after a graceful end");
        ensure!(killed <= KILLED, "it took {killed:?} after a kill");
        Ok(())
    })
}
