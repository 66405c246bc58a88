//! What the operator costs and how soon it acts with many releases: the real process against the simulated API server, over
//! HTTP, in real time. Fails where a bar is missed.

// clippy.toml's leave for tests does not reach benchmarks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod cluster;
mod fake;
mod idle;
mod operator;
mod progress;
mod report;

use idle::{Cost, Idle};
use progress::Progress;
use report::{machine, quantile, time};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// So many releases that are over.
const IDLE: [usize; 4] = [1, 100, 1_000, 10_000];
/// How long they are measured: as long as it takes until the operator's watches have started over.
const WATCHED: Duration = Duration::from_secs(310);

/// 100 idle releases of others, measured on a real cluster: name, requests a minute, those of the lease, seconds of CPU a
/// minute, MiB.
const PEERS: [(&str, u32, u32, f64, f64); 2] = [
    ("Flagger 1.44.0", 6_600, 0, 5.1, 70.0),
    ("Argo Rollouts 1.10.1", 0, 30, 0.21, 99.0),
];

/// Removed with all that is in it.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left of it is the system's to clean up.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A bar: what is asked for, and whether it is so.
type Bar = (String, bool);

async fn bench(dir: &Path) -> Vec<Bar> {
    println!("{}", machine());
    let played = std::thread::spawn(idle::played).join().unwrap();
    if std::env::var("CLUSTER").is_ok_and(|cluster| cluster == "current") {
        return tell_idle(&cluster::idle(dir, &played).await);
    }
    let wanted: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    let mut bars = Vec::new();
    let mut idle = Vec::new();
    if wanted("idle") || wanted("start") {
        let releases = if wanted("idle") {
            &IDLE[..]
        } else {
            &IDLE[IDLE.len() - 1..]
        };
        for releases in releases {
            idle.push(Idle::start(dir, &played, *releases).await);
        }
    }
    let began = Instant::now();
    if wanted("progress") {
        bars.extend(tell_progress(&progress::progress(dir).await));
    }
    if wanted("idle") {
        tokio::time::sleep(WATCHED.saturating_sub(began.elapsed())).await;
        let costs: Vec<_> = idle.iter().map(Idle::cost).collect();
        bars.extend(tell_idle(&costs));
    }
    // The last one has the most.
    if let Some(most) = idle.pop().filter(|_| wanted("start")) {
        drop(idle);
        bars.extend(tell_start(most.start_again(dir).await));
    }
    println!();
    bars
}

fn tell_idle(costs: &[Cost]) -> Vec<Bar> {
    println!(
        "\nidle, for {:.1} minutes, beside peers as measured on 2 cores",
        costs[0].minutes
    );
    println!(
        "{:<28} {:>9} {:>9} {:>13} {:>14} {:>9} {:>9} {:>10}",
        "", "releases", "requests", "of the lease", "watches begun", "CPU s", "MiB", "up after"
    );
    println!(
        "{:<28} {:>9} {:>9} {:>13} {:>14} {:>9} {:>9} {:>10}",
        "", "", "a minute", "a minute", "a minute", "a minute", "resident", ""
    );
    for cost in costs {
        let a_minute = |count: usize| count as f64 / cost.minutes;
        println!(
            "{:<28} {:>9} {:>9.1} {:>13.1} {:>14.1} {:>9.3} {:>9.1} {:>10}",
            "canary-operator",
            cost.releases,
            a_minute(cost.requests.others()),
            a_minute(cost.requests.lease),
            a_minute(cost.requests.watches),
            cost.cpu,
            cost.usage.resident,
            time(cost.settled),
        );
    }
    for (peer, requests, lease, cpu, resident) in PEERS {
        println!(
            "{peer:<28} {:>9} {requests:>9} {lease:>13} {:>14} {cpu:>9.3} {resident:>9.1}",
            100, ""
        );
    }
    // Of each release, between one count and the next.
    let growth =
        |cost: fn(&Cost) -> f64, from: &Cost, to: &Cost| (cost(to) - cost(from)) / (to.releases - from.releases) as f64;
    let grown: Vec<_> = costs
        .windows(2)
        .map(|pair| {
            let memory = growth(|cost| cost.usage.resident * 1024.0, &pair[0], &pair[1]);
            let cpu = growth(|cost| cost.cpu * 1e6, &pair[0], &pair[1]);
            println!(
                "from {:>6} to {:>6} releases each one more takes {memory:>6.1} KiB and {cpu:>6.1} µs of CPU a minute",
                pair[0].releases, pair[1].releases
            );
            memory
        })
        .collect();
    let mut bars = vec![(
        "idle: no request but watches and the lease".to_owned(),
        costs.iter().all(|cost| cost.requests.others() == 0),
    )];
    for cost in costs {
        let Cost {
            releases, cpu, usage, ..
        } = cost;
        let resident = usage.resident;
        if *releases == 100 {
            bars.push((format!("100 idle in 30 MiB: {resident:.1}"), resident <= 30.0));
            bars.push((format!("100 idle take 0.05 s of CPU a minute: {cpu:.3}"), *cpu <= 0.05));
        }
        if *releases == 10_000 {
            bars.push((format!("10,000 idle in 200 MiB: {resident:.1}"), resident <= 200.0));
        }
    }
    if let [.., before, last] = grown.as_slice() {
        // What the allocator rounds up to is within a tenth.
        let held = *last <= before * 1.1;
        bars.push((
            format!("memory grows linearly or better: {before:.1} KiB of each, then {last:.1}"),
            held,
        ));
    }
    bars
}

fn tell_start((start, cpu): (Duration, f64)) -> Vec<Bar> {
    vec![(
        format!(
            "10,000 releases and a new one: its first decision is written within 10 s of the start: {}, {cpu:.1} s of CPU",
            time(start)
        ),
        start <= Duration::from_secs(10),
    )]
}

fn tell_progress(progress: &Progress) -> Vec<Bar> {
    let a_minute = |count: usize| count as f64 / progress.minutes;
    println!(
        "\n{} releases progress at once, {} requests a second each, for {:.1} minutes",
        progress::RELEASES,
        progress::TRAFFIC,
        progress.minutes
    );
    println!(
        "{:.0} requests a minute ({:.1} of a release), watches and lease apart; {:.2} CPU s a minute; {:.1} MiB resident, {:.1} at its peak",
        a_minute(progress.requests.others()),
        a_minute(progress.requests.others()) / progress::RELEASES as f64,
        progress.cpu,
        progress.usage.resident,
        progress.usage.peak,
    );
    for (what, count) in &progress.requests.others {
        println!("  {:>7.0} {what}", a_minute(*count));
    }
    println!(
        "{:.0} rounds a minute of {:.2} ms; the controller's metrics are {:.1} MB",
        progress.rounds.0,
        progress.rounds.1,
        progress.exposition as f64 / 1e6
    );
    let of = |times: &[Duration]| {
        let [median, most, max] = [0.5, 0.99, 1.0].map(|share| time(quantile(times, share)));
        format!("median {median}, p99 {most}, at most {max}, of {}", times.len())
    };
    println!("steps late by: {}", of(&progress.late));
    println!(
        "from proof to the deletion of the canary Ingress: {}\n",
        of(&progress.reactions)
    );
    let (late, slowest) = (quantile(&progress.late, 0.99), quantile(&progress.reactions, 1.0));
    vec![
        (
            format!("99 of 100 steps at most 250 ms late: {}", time(late)),
            late <= Duration::from_millis(250),
        ),
        (
            format!(
                "a breach takes the canary Ingress away within 1 s of the sample: {}",
                time(slowest)
            ),
            slowest <= Duration::from_secs(1),
        ),
    ]
}

fn main() -> ExitCode {
    let dir = Directory(std::env::temp_dir().join(format!("canary-scale-{}", std::process::id())));
    std::fs::create_dir(&dir.0).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bars = runtime.block_on(bench(&dir.0));
    for (bar, held) in &bars {
        println!("{} {bar}", if *held { "held  " } else { "MISSED" });
    }
    ExitCode::from(u8::from(bars.iter().any(|(_, held)| !held)))
}
