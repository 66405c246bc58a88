//! The exercise "70/30" played live on the cluster, with a picture of the release counted from real answers.

mod picture;
mod screen;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use canary_e2e::{
    app::App,
    cluster::{Cluster, Found},
    exercise::{HOST, RELEASE, RELEASE_MENDED, manifest},
    load::{Load, Tally, sent_between},
    namespace::Namespace,
    operator::Operator,
    release::{Event, Moment, RESOURCE, Release, event_args, live_at},
    stats::binomial_bounds,
    watch::Watch,
};
use jiff::Timestamp;

use crate::{
    picture::{Picture, addition, pods},
    screen::{Line, Screen, Style},
};

const NAMESPACE: &str = "canary-demo";
/// Of the releases' only step.
const HOLD: Duration = Duration::from_secs(40);
const PER_SECOND: u32 = 40;
/// Longer than the demonstration can last.
const LONGEST: Duration = Duration::from_secs(900);
/// The bar counts the answers to requests of this long.
const LATELY: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            // Asked twice: whoever asks does not want to wait for the cleaning up. The cursor was hidden.
            print!("\x1b[?25h");
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        eprintln!("demo: Ctrl-C cannot be caught: {error}");
        return ExitCode::FAILURE;
    }
    match demonstrate(&stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stop.load(Ordering::SeqCst) => ExitCode::from(130),
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(stop: &AtomicBool) -> Result<()> {
    let cluster = match Cluster::find()? {
        Found::Cluster(cluster) => cluster,
        Found::Nothing(reason) => bail!("there is no cluster to play on: {reason}"),
    };
    println!("Installing the operator by helm …");
    let operator = Operator::installed(cluster)?;
    println!("Making version 1 in the namespace {NAMESPACE}: a Deployment, a Service and an Ingress …");
    let namespace = Namespace::named(cluster, NAMESPACE)?;
    let played = play(&namespace, stop);
    if stop.load(Ordering::SeqCst) {
        println!("\nStopped. Removing the namespace {NAMESPACE} …");
        namespace.delete_and_wait()?;
    } else if let Err(error) = &played {
        let log = operator.log(15).unwrap_or_default();
        eprintln!("\nThe operator's log ends with:\n{log}");
        return Err(anyhow!(
            "{error:#}. To look into it: {} -n {NAMESPACE} get all,ingress,{RESOURCE},events",
            cluster.kubectl_by_hand()
        ));
    }
    played
}

/// What is watched while the story goes on.
struct Stage<'a> {
    screen: Screen,
    stop: &'a AtomicBool,
    begin: Instant,
    now: String,
    load: Load,
    pods: Watch,
    events: Watch,
    release: Option<Release<'a>>,
    /// How many changes of events were told already.
    told: usize,
    /// What the line for a screen without a picture said last.
    said: String,
}

fn play(namespace: &Namespace, stop: &AtomicBool) -> Result<()> {
    // The exercise's rate limit would answer 503 to this many requests from one client.
    App::of_the_exercise(HOST)?.without_rate_limit().deploy(namespace)?;
    let event_args = event_args("challenge-app");
    let mut stage = Stage {
        screen: Screen::new(),
        stop,
        begin: Instant::now(),
        now: String::new(),
        load: Load::start(namespace.cluster(), HOST, PER_SECOND, LONGEST)?,
        pods: Watch::start(namespace, &["pods"])?,
        events: Watch::start(namespace, &event_args.each_ref().map(String::as_str))?,
        release: None,
        told: 0,
        said: String::new(),
    };
    stage.before(namespace)?;
    stage.crash(namespace)?;
    stage.mend()?;
    stage.split()?;
    stage.promote()?;
    stage.epilogue(namespace)
}

impl<'a> Stage<'a> {
    fn before(&mut self, namespace: &Namespace) -> Result<()> {
        self.tell(&format!(
            "Users send {PER_SECOND} requests a second to {HOST}, through the real ingress-nginx. Version 1 answers."
        ));
        self.now("version 1 answers everything");
        self.until("version 1 has answered for 3 s", Duration::from_secs(30), |stage| {
            Ok(stage.tally().from("v1") >= 3 * PER_SECOND)
        })?;
        ensure!(
            self.tally().failed == 0,
            "version 1 alone does not answer well: {}",
            self.tally()
        );
        self.tell("Somebody wants version 2 out, 30 % of the requests first:");
        self.screen.log(&Line::new(
            Style::Dim,
            format!("    $ kubectl -n {} apply -f release.yaml", namespace.name()),
        ));
        for line in yaml(RELEASE) {
            self.screen.log(&Line::new(Style::Plain, format!("    {line}")));
        }
        Ok(())
    }

    fn crash(&mut self, namespace: &'a Namespace) -> Result<()> {
        self.now("the operator starts version 2 beside version 1, and sends it nothing before it is ready");
        self.release = Some(Release::apply(namespace, &manifest(RELEASE)?)?);
        let rolled_back = self.until_phase("RolledBack", Duration::from_secs(60))?;
        let tally = self.tally();
        ensure!(
            tally.from("v2") == 0 && tally.failed == 0,
            "the crash of version 2 was felt: {tally}"
        );
        let reason = "ModuleNotFoundError: No module named 'flask_limiter'";
        ensure!(
            rolled_back.status.message.contains(reason),
            "the release does not say why: {}",
            rolled_back.line()
        );
        self.tell(&format!(
            "Version 2 crashes, and the release says why. Not one of {} requests met it.",
            tally.total
        ));
        Ok(())
    }

    fn mend(&mut self) -> Result<()> {
        self.tell("The image needs another command. An edit of the same object:");
        let (old, new) = (yaml(RELEASE), yaml(RELEASE_MENDED));
        let edit = addition(&old, &new).context("release-mended.yaml is not release.yaml with an addition")?;
        for (added, line) in edit {
            let (sign, style) = if added { ('+', Style::V2) } else { (' ', Style::Plain) };
            self.screen.log(&Line::new(style, format!("  {sign} {line}")));
        }
        self.now("the operator starts the mended version 2");
        self.release()?.apply_again(&manifest(RELEASE_MENDED)?)
    }

    fn split(&mut self) -> Result<()> {
        let written = self.until_moment("the weight 30 is in force", Duration::from_secs(90), |moment| {
            live_at(moment, "30", HOLD).is_some()
        })?;
        let live = live_at(&written, "30", HOLD).context("the weight 30 is not in force")?;
        self.now("the weight 30 is written; nginx takes a few seconds to have it everywhere, and they do not count");
        self.until("the weight 30 is live", Duration::from_secs(60), |_| {
            Ok(Timestamp::now() >= live)
        })?;
        self.tell("30 % is live. Counting from here.");
        self.now("version 2 gets 30 % of the requests, and the operator watches it");
        let promoting = self.until_phase("Promoting", Duration::from_secs(90))?;
        // Requests under way when the weight was about to change are left out.
        let counted = self
            .load
            .look(|answers| Tally::of(sent_between(answers, live, promoting.at - Duration::from_secs(1))));
        let (low, high) = binomial_bounds(counted.total, 0.3);
        let hits = counted.from("v2");
        ensure!(
            (low..=high).contains(&hits),
            "at weight 30, version 2 gave {hits} of {counted}; chance allows {low} to {high}"
        );
        let percent = f64::from(hits) * 100.0 / f64::from(counted.total);
        self.tell(&format!(
            "Of {} requests, {hits} were answered by version 2: {percent:.1} %.",
            counted.total
        ));
        Ok(())
    }

    fn promote(&mut self) -> Result<()> {
        self.now("version 2 takes version 1's place: traffic first, then the Deployment, then the canary goes");
        let promoted = self.until_phase("Promoted", Duration::from_secs(180))?;
        self.now("version 2 answers everything, from the Deployment that version 1 ran in");
        self.until(
            "version 2 has answered alone for 3 s",
            Duration::from_secs(60),
            |stage| {
                stage.load.still_runs()?;
                let after = stage
                    .load
                    .look(|answers| Tally::of(sent_between(answers, promoted.at, Timestamp::MAX)));
                ensure!(
                    after.from("v1") == 0,
                    "version 1 still answers after the promotion: {after}"
                );
                Ok(after.from("v2") >= 3 * PER_SECOND)
            },
        )?;
        let tally = self.tally();
        tally.all_well("of the whole release")?;
        self.tell(&format!(
            "Promoted. Of {} requests in all, none failed and none took longer than a second.",
            tally.total
        ));
        Ok(())
    }

    fn epilogue(mut self, namespace: &Namespace) -> Result<()> {
        self.screen.leave();
        let history = namespace.ask(&[
            "get",
            RESOURCE,
            "challenge-app",
            "-o=jsonpath={range .status.history[*]}{.startedAt}{\"  \"}{.outcome}{\"  \"}{.reason}{\"\\n\"}{end}",
        ])?;
        let columns = namespace.ask(&["get", RESOURCE])?;
        let cluster = namespace.cluster();
        let kubectl = format!("{} -n {}", cluster.kubectl_by_hand(), namespace.name());
        println!("\n{columns}\nIts history, newest first:\n{history}");
        println!("What to try next:");
        println!("  {kubectl} get canaryreleases -o wide");
        println!("  {kubectl} describe canaryrelease challenge-app      # conditions, history, events");
        println!("  {kubectl} edit canaryrelease challenge-app          # image …:v3, or several steps");
        println!(
            "  {kubectl} delete canaryrelease challenge-app        # in the middle of a step: traffic goes back first"
        );
        match cluster.stop_by_hand() {
            Some(down) => println!("To stop the cluster:\n  {down}"),
            None => println!(
                "To clear up:\n  {} delete namespace {}",
                cluster.kubectl_by_hand(),
                namespace.name()
            ),
        }
        Ok(())
    }

    fn release(&self) -> Result<&Release<'a>> {
        self.release.as_ref().context("the release was not applied yet")
    }

    fn tally(&self) -> Tally {
        self.load.look(|answers| Tally::of(answers))
    }

    /// Tells the audience something.
    fn tell(&mut self, text: &str) {
        self.screen.log(&Line::empty());
        self.screen.log(&Line::new(Style::Bold, text));
    }

    /// Says in the picture what happens now.
    fn now(&mut self, text: &str) {
        text.clone_into(&mut self.now);
        if !self.screen.is_live() {
            self.screen.log(&Line::new(Style::Plain, format!("now: {text}")));
        }
    }

    fn until_phase(&mut self, phase: &str, within: Duration) -> Result<Moment> {
        self.until_moment(&format!("the phase is {phase}"), within, |moment| {
            moment.status.phase == phase
        })
    }

    /// Keeps the picture alive until there is a moment of the release for which `wanted` holds.
    fn until_moment(&mut self, what: &str, within: Duration, wanted: impl Fn(&Moment) -> bool) -> Result<Moment> {
        let mut found = None;
        self.until(what, within, |stage| {
            found = stage.release()?.poll(what, &wanted)?;
            Ok(found.is_some())
        })?;
        found.context("nothing was found")
    }

    /// Keeps the picture alive until `done`.
    fn until(&mut self, what: &str, within: Duration, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            ensure!(!self.stop.load(Ordering::SeqCst), "stopped");
            let finished = done(self)?;
            self.show()?;
            if finished {
                return Ok(());
            }
            if Instant::now() > deadline {
                let last = self
                    .release
                    .as_ref()
                    .and_then(|release| release.latest().ok().flatten());
                let last = last.map_or_else(|| "there is no release".to_owned(), |moment| moment.line());
                bail!("waited {} s in vain until {what}: {last}", within.as_secs());
            }
            thread::sleep(TICK);
        }
    }

    fn show(&mut self) -> Result<()> {
        let events: Vec<_> = self.events.look(|seen| {
            seen[self.told..]
                .iter()
                .map(|change| Event::of(&change.object))
                .collect()
        });
        self.told += events.len();
        for Event { reason, note, .. } in events {
            self.screen.log(
                &Line::new(Style::Dim, "  operator: ")
                    .and(Style::V2, reason)
                    .and(Style::Plain, format!("  {note}")),
            );
        }
        let release = match &self.release {
            Some(release) => release.latest()?,
            None => None,
        };
        let since = Timestamp::now() - LATELY;
        let (lately, all) = self.load.look(|answers| {
            let lately = answers
                .iter()
                .rev()
                .take_while(|answer| answer.sent >= since - LATELY)
                .filter(|answer| answer.sent >= since);
            (Tally::of(lately), Tally::of(answers))
        });
        if self.screen.is_live() {
            let pods = self.pods.look(pods);
            let seconds = self.begin.elapsed().as_secs();
            let picture = Picture {
                now: &self.now,
                seconds,
                release: release.as_ref(),
                lately: &lately,
                all: &all,
                pods: &pods,
            };
            let width = self.screen.width();
            self.screen.draw(picture.lines(width));
        } else if let Some(line) = release.map(|moment| moment.line())
            && line != self.said
        {
            let counts = format!("  [last 10 s: v1 {}, v2 {}]", lately.from("v1"), lately.from("v2"));
            self.screen
                .log(&Line::new(Style::Plain, format!("release: {line}{counts}")));
            self.said = line;
        }
        Ok(())
    }
}

/// The lines of a manifest, without its comments.
fn yaml(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}
