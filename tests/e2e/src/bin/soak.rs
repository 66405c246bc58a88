//! Releases for hours, several at once, while what they run on breaks: no request fails that should not, nothing is broken by
//! the audit log, and the operator's memory does not grow.
//!
//! `soak [HOURS]`; `SEED` plays the same dice again, though not the same cluster. Exits with 1 where anything was found.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Debug,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use canary_e2e::{
    app::App,
    audit::Log,
    cluster::{Cluster, Found},
    control_plane::ControlPlane,
    controllers,
    load::{Answer, Load, Tally},
    namespace::Namespace,
    operator::Operator,
    process::until,
    release::{COMMAND, RESOURCE, asked, asked_until, nothing_of_the_canary_left},
};
use jiff::Timestamp;
use serde_json::json;

/// Releases beside each other.
const WORKERS: u64 = 3;
/// Requests a second to each.
const RATE: u32 = 20;
/// From a release's application until its end: each of a dozen faults meanwhile may add a minute, in which ingress-nginx may not
/// have heard of what was written, or nobody counts requests. The longest of 92 took 13 minutes.
const LONGEST: Duration = Duration::from_secs(1200);
/// How long what is broken on purpose may keep a caller from being answered.
const PATIENCE: Duration = Duration::from_secs(400);
/// How long something may stay while nothing is broken. Where the API server fails them again and again, the watches of the garbage
/// collector, of the kubelet and of the controllers wait up to a minute before they try again; the garbage collector looks for new
/// kinds every half minute, one thing goes after the other, and pods have half a minute to end.
const CALM: Duration = Duration::from_secs(300);
/// Requests are sent for so long at most: there is more than one wait, each with all the patience there is.
const LOADED: Duration = Duration::from_secs(3600);
/// From one fault to the next at least, and what may be added.
const PAUSE: (u64, u64) = (15, 30);
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_secs(10);
/// The share of the time in which operators are killed too. In the rest the same processes go on, so that they can be weighed.
const STORM: f64 = 0.35;
/// Of that rest, what a process is given to reach its size.
const WARM_UP: f64 = 0.2;
/// By how much the median of a process's last quarter may exceed that of its first.
const GROWTH: f64 = 1.10;
/// Fewer samples of a process say nothing.
const SAMPLES: usize = 12;
/// Before and after the API server learns that the ingress controller is gone, and back: there is one, so requests fail.
const EXCUSED: Duration = Duration::from_secs(20);

/// Numbers that look random, and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What becomes of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Story {
    Promoted,
    Failing,
    Aborted,
    Deleted,
    Edited,
    Paused,
}

const STORIES: [Story; 7] = [
    Story::Promoted,
    Story::Promoted,
    Story::Failing,
    Story::Aborted,
    Story::Deleted,
    Story::Edited,
    Story::Paused,
];

/// Whether things may be broken. A fault every half minute can keep watches that wait between two tries from whatever they wait
/// for, as long as that goes on: what was not collected then is no finding, nor what could not be asked for (soak). What stays
/// though nothing is broken is.
#[derive(Default)]
struct Peace(RwLock<()>);

impl Peace {
    /// Breaks something once nobody needs peace.
    fn break_with<T>(&self, act: impl FnOnce() -> T) -> T {
        let _broken = self.0.write().unwrap_or_else(PoisonError::into_inner);
        act()
    }

    /// Waits for something, first while things are broken, then while nothing is.
    fn unless_it_stays(
        &self,
        (patience, calm): (Duration, Duration),
        mut act: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if within(patience, &mut act).is_ok() {
            return Ok(());
        }
        let _calm = self.0.read().unwrap_or_else(PoisonError::into_inner);
        within(calm, act).context("nothing was broken meanwhile")
    }
}

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    OperatorKilled,
    OperatorsPodDeleted,
    ApiServerStalled,
    ApiServerKilled,
    Compacted,
    OperatorCutOff,
    ControllerKilled,
}

/// An ingress controller that dies often is kept waiting by the kubelet, up to five minutes: it is killed seldom.
const FAULTS: [Fault; 9] = [
    Fault::ApiServerStalled,
    Fault::ApiServerStalled,
    Fault::ApiServerKilled,
    Fault::ApiServerKilled,
    Fault::Compacted,
    Fault::Compacted,
    Fault::OperatorCutOff,
    Fault::OperatorCutOff,
    Fault::ControllerKilled,
];

#[derive(Default)]
struct Report {
    /// How long each release took.
    releases: BTreeMap<Story, Vec<Duration>>,
    faults: BTreeMap<Fault, u64>,
    /// When there was no ingress controller, for it was killed. One that is back before anybody notices is in no EndpointSlice.
    killed: Vec<(Timestamp, Timestamp)>,
    /// Where releases were played.
    namespaces: BTreeSet<String>,
    requests: u64,
    excused: u64,
    /// Resident MiB of each process of the operator.
    memory: BTreeMap<String, Vec<(Duration, f64)>>,
    findings: Vec<String>,
}

struct Soak {
    cluster: &'static Cluster,
    operator: &'static Operator,
    control_plane: ControlPlane,
    report: Mutex<Report>,
    peace: Peace,
    over: AtomicBool,
    begun: Instant,
    since: Timestamp,
    lasts: Duration,
}

fn main() -> Result<()> {
    let hours: f64 = match env::args().nth(1) {
        Some(hours) => hours
            .parse()
            .with_context(|| format!("{hours} is no number of hours"))?,
        None => 2.0,
    };
    let seed = match env::var("SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("SEED {seed} is no number"))?,
        Err(_) => Timestamp::now().as_millisecond().unsigned_abs(),
    };
    let Found::Cluster(cluster) = Cluster::find()? else {
        bail!("there is no cluster")
    };
    let soak = Soak {
        cluster,
        operator: Operator::installed(cluster)?,
        control_plane: ControlPlane::of(cluster).context("the cluster's node is out of reach")?,
        report: Mutex::default(),
        peace: Peace::default(),
        over: AtomicBool::new(false),
        begun: Instant::now(),
        since: Timestamp::now(),
        lasts: Duration::from_secs_f64(hours * 3600.0),
    };
    println!("{hours} h with seed {seed}");
    thread::scope(|scope| {
        let soak = &soak;
        for worker in 0..WORKERS {
            scope.spawn(move || {
                soak.work(
                    worker,
                    &mut Dice(seed ^ (worker + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                )
            });
        }
        scope.spawn(move || soak.weigh());
        soak.meddle(&mut Dice(seed | 1));
        soak.over.store(true, Ordering::SeqCst);
    });
    soak.conclude()
}

impl Soak {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> Duration {
        self.lasts.saturating_sub(self.begun.elapsed())
    }

    fn find(&self, what: &dyn Debug, error: &anyhow::Error) {
        let finding = format!("{} {what:?}: {error:#}", Timestamp::now());
        println!("FOUND: {finding}");
        self.report().findings.push(finding);
    }

    /// Releases one after the other.
    fn work(&self, worker: u64, dice: &mut Dice) {
        while !self.left().is_zero() && !self.over.load(Ordering::SeqCst) {
            let (story, begun) = (dice.one_of(&STORIES), Instant::now());
            match self.play(worker, story) {
                Ok(()) => self.report().releases.entry(story).or_default().push(begun.elapsed()),
                Err(error) => self.find(&(worker, story), &error),
            }
        }
    }

    /// One release in a namespace of its own.
    fn play(&self, worker: u64, story: Story) -> Result<()> {
        let scenario = format!("soak-{worker}");
        let namespace = patiently(|| Namespace::create(self.cluster, &scenario))?;
        self.report().namespaces.insert(namespace.name().to_owned());
        let host = format!("{}.test", namespace.name());
        let app = App::new("shop", &host);
        patiently(|| app.deploy(&namespace))?;
        let load = Load::start(self.cluster, &host, RATE, LOADED)?;
        let steps = json!([{"weight": 20, "hold": "5s"}, {"weight": 50, "hold": "5s"}]);
        let mut release = app.release_of_v3(json!({"steps": steps}));
        if story == Story::Failing {
            release["spec"]["canary"] = app.version_three(&[("ERROR_RATE", "0.2")]);
            release["spec"]["steps"] = json!([{"weight": 50, "hold": "1m"}]);
        }
        patiently(|| namespace.apply(std::slice::from_ref(&release)))?;

        asked_until(&namespace, "shop", "it has a weight", LONGEST, |moment| {
            ["20", "50"].contains(&&*moment.status.weight) || moment.status.phase == "RolledBack"
        })?;
        match story {
            Story::Promoted | Story::Failing => {}
            Story::Aborted => {
                let revision = asked_until(&namespace, "shop", "it is seen", PATIENCE, |_| true)?
                    .status
                    .revision;
                let abort = format!("{COMMAND}=abort/{revision}");
                patiently(|| namespace.ask(&["annotate", RESOURCE, "shop", "--overwrite", &abort]))?;
            }
            Story::Edited => {
                release["spec"]["canary"] = app.version_three(&[("EDITED", "yes")]);
                patiently(|| namespace.apply(std::slice::from_ref(&release)))?;
            }
            Story::Paused => {
                for paused in [true, false] {
                    release["spec"]["paused"] = paused.into();
                    patiently(|| namespace.apply(std::slice::from_ref(&release)))?;
                    asked_until(&namespace, "shop", "the pause is known", PATIENCE, |moment| {
                        moment.status.observed_generation >= moment.generation
                    })?;
                }
            }
            Story::Deleted => {
                patiently(|| namespace.ask(&["delete", RESOURCE, "shop", "--ignore-not-found", "--wait=false"]))?;
            }
        }
        let expected = match story {
            Story::Promoted | Story::Edited | Story::Paused => Some("Promoted"),
            Story::Failing | Story::Aborted => Some("RolledBack"),
            Story::Deleted => None,
        };
        if let Some(expected) = expected {
            let ended = asked_until(&namespace, "shop", "it has ended", LONGEST, |moment| {
                let current = moment.status.observed_generation >= moment.generation;
                current && ["Promoted", "RolledBack", "Stalled"].contains(&&*moment.status.phase)
            })?;
            // Who aborts too late has released.
            let late = story == Story::Aborted && ended.status.phase == "Promoted";
            ensure!(
                ended.status.phase == expected || late,
                "it ended otherwise: {}",
                ended.line()
            );
        } else {
            until("it is gone", LONGEST, || {
                self.control_plane.until_ready()?;
                Ok(match asked(&namespace, "shop")? {
                    None => Ok(()),
                    Some(moment) => Err(moment.line()),
                })
            })?;
        }
        self.peace
            .unless_it_stays((PATIENCE, CALM), || nothing_of_the_canary_left(&namespace))?;
        self.count(story, &load.stop()?)?;
        patiently(|| namespace.delete_and_wait())
    }

    /// An error where a request failed that had no reason to.
    fn count(&self, story: Story, answers: &[Answer]) -> Result<()> {
        // Its own failures are what it is rolled back for.
        let own = |answer: &&Answer| story == Story::Failing && answer.version.as_deref() == Some("v3");
        let others: Vec<_> = answers.iter().filter(|answer| !own(answer)).collect();
        let (failed, total) = (others.iter().any(|answer| answer.failed()), others.len() as u64);
        let outages = if failed { self.outages()? } else { Vec::new() };
        let excused = |answer: &&Answer| {
            let near = |(from, to): &(Timestamp, Timestamp)| {
                let to = to.checked_add(EXCUSED).unwrap_or(*to);
                (*from - EXCUSED..to).contains(&answer.sent)
            };
            answer.failed() && outages.iter().any(near)
        };
        let (excused, others): (Vec<_>, Vec<_>) = others.into_iter().partition(excused);
        {
            let mut report = self.report();
            report.requests += total;
            report.excused += excused.len() as u64;
        }
        let tally = Tally::of(others);
        // Of a machine that builds beside this, or restarts its API server, a slow answer says nothing.
        ensure!(tally.failed == 0, "of {tally}, some failed: {:?}", tally.examples);
        Ok(())
    }

    /// When there was no ingress controller. ingress-nginx dies by itself as well: version 1.11 panics where a Service was deleted
    /// while it could not watch (`store.go`, `cache.DeletedFinalStateUnknown`).
    fn outages(&self) -> Result<Vec<(Timestamp, Timestamp)>> {
        let log = Log::of(self.cluster)?.context("the audit log is out of reach")?;
        let outages = log.outages("ingress-nginx", "ingress-nginx-controller").into_iter();
        let killed = self.report().killed.clone();
        let mut all: Vec<_> = outages.filter(|(_, to)| *to >= self.since).chain(killed).collect();
        all.sort();
        all.dedup_by(|later, earlier| {
            let same = later.0 <= earlier.1;
            if same {
                earlier.1 = earlier.1.max(later.1);
            }
            same
        });
        Ok(all)
    }

    /// Breaks one thing after the other.
    fn meddle(&self, dice: &mut Dice) {
        while !self.left().is_zero() {
            thread::sleep(Duration::from_secs(PAUSE.0 + dice.below(PAUSE.1)).min(self.left()));
            let storm = self.begun.elapsed() < self.lasts.mul_f64(STORM);
            let mut faults = FAULTS.to_vec();
            if storm {
                faults.extend([Fault::OperatorKilled; 4]);
                faults.extend([Fault::OperatorsPodDeleted; 2]);
            }
            let fault = dice.one_of(&faults);
            println!("{} {fault:?}", Timestamp::now());
            match self.peace.break_with(|| self.breaks(fault, dice)) {
                Ok(()) => *self.report().faults.entry(fault).or_default() += 1,
                Err(error) => self.find(&fault, &error),
            }
        }
    }

    fn breaks(&self, fault: Fault, dice: &mut Dice) -> Result<()> {
        let begun = Timestamp::now();
        match fault {
            Fault::OperatorKilled => self.operator.kill_process(PATIENCE).map(drop),
            Fault::OperatorsPodDeleted => self.operator.delete_pod_by_force(PATIENCE),
            Fault::ApiServerStalled => self.control_plane.stall_for(Duration::from_secs(3 + dice.below(20))),
            Fault::ApiServerKilled => self.control_plane.kill_api_server(),
            Fault::Compacted => {
                self.control_plane.compact()?;
                self.control_plane.kill_api_server()
            }
            Fault::OperatorCutOff => {
                let _cut = self.control_plane.cut_the_operator_off()?;
                // Not a wait for something: the time itself is the fault.
                thread::sleep(Duration::from_secs(5 + dice.below(25)));
                Ok(())
            }
            Fault::ControllerKilled => {
                // One that has just died by itself cannot be killed.
                let killed = controllers::kill(self.cluster).map(drop);
                killed.or_else(|error| match self.outages()?.iter().any(|(_, to)| *to >= begun) {
                    true => Ok(()),
                    false => Err(error),
                })?;
                self.report().killed.push((begun, Timestamp::now()));
                Ok(())
            }
        }
    }

    /// Looks at the operator's memory.
    fn weigh(&self) {
        while !self.over.load(Ordering::SeqCst) {
            // A stalled API server tells no pods: there is a next time.
            if let Ok(processes) = self.operator.memory() {
                let at = self.begun.elapsed();
                let mut report = self.report();
                for (process, mib) in processes {
                    report.memory.entry(process).or_default().push((at, mib));
                }
            }
            thread::sleep(SAMPLE);
        }
    }

    fn conclude(self) -> Result<()> {
        let outages = self.outages()?.len();
        let namespaces = self.report().namespaces.clone();
        let log = Log::of(self.cluster)?.context("the audit log is out of reach")?;
        let judged = log.among(|namespace| namespaces.contains(namespace)).judged();
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.findings.extend(judged.broken);
        println!("\nreleases               count   median s   longest s");
        for (story, times) in &mut report.releases {
            times.sort();
            let (median, longest) = (times[times.len() / 2].as_secs(), times[times.len() - 1].as_secs());
            println!(
                "  {:<18} {:>7} {median:>10} {longest:>11}",
                format!("{story:?}"),
                times.len()
            );
        }
        println!("faults                 count");
        for (fault, count) in &report.faults {
            println!(
                "  {:<18} {count:>7}",
                format!("{fault:?}").chars().take(18).collect::<String>()
            );
        }
        println!(
            "requests {}, of which {} failed while there was no ingress controller: {} times",
            report.requests, report.excused, outages
        );
        println!("by the audit log: {:?}", judged.looked);
        println!("memory of the operator, MiB                    samples    first     last");
        // Who is still there at the end has gone through all of the calm.
        let calm = self.lasts.mul_f64(STORM + (1.0 - STORM) * WARM_UP);
        let mut weighed = 0;
        for (process, samples) in &report.memory {
            let samples: Vec<_> = samples
                .iter()
                .filter(|(at, _)| *at >= calm)
                .map(|(_, mib)| *mib)
                .collect();
            if samples.len() < SAMPLES {
                continue;
            }
            weighed += 1;
            let quarter = samples.len() / 4;
            let (first, last) = (median(&samples[..quarter]), median(&samples[samples.len() - quarter..]));
            println!("  {process:<44} {:>7} {first:>8.1} {last:>8.1}", samples.len());
            if last > first * GROWTH {
                report
                    .findings
                    .push(format!("memory of {process} grows from {first:.1} to {last:.1} MiB"));
            }
        }
        if weighed == 0 {
            report
                .findings
                .push("no process lived long enough to be weighed".to_owned());
        }
        if report.releases.is_empty() {
            report.findings.push("no release has ended".to_owned());
        }
        ensure!(
            report.findings.is_empty(),
            "{} findings:\n{}",
            report.findings.len(),
            report.findings.join("\n")
        );
        Ok(())
    }
}

/// Tries again while what is broken on purpose keeps it from being done.
fn patiently<T>(act: impl FnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, act)
}

fn within<T>(patience: Duration, mut act: impl FnMut() -> Result<T>) -> Result<T> {
    until("it is done", patience, || {
        Ok(act().map_err(|error| format!("{error:#}")))
    })
}

fn median(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: (Duration, Duration) = (Duration::ZERO, Duration::ZERO);

    #[test]
    fn what_goes_once_nothing_is_broken_any_more_is_no_finding() {
        let peace = Peace::default();
        let collected = || {
            // Who is in peace keeps everybody from breaking anything.
            ensure!(peace.0.try_write().is_err(), "the API server was killed again");
            Ok(())
        };
        assert!(peace.unless_it_stays(AT_ONCE, collected).is_ok());
        assert!(peace.break_with(|| peace.0.try_read().is_err()));
    }

    #[test]
    fn what_stays_though_nothing_is_broken_is_a_finding() {
        let error = Peace::default()
            .unless_it_stays(AT_ONCE, || bail!("pod/shop-canary"))
            .unwrap_err();
        assert!(
            format!("{error:#}").starts_with("nothing was broken meanwhile: ")
                && format!("{error:#}").ends_with("pod/shop-canary"),
            "{error:#}"
        );
    }
}
