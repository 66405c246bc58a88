//! The API server stalls, dies, forgets, or is out of the operator's reach, in the middle of a release. Requests do not go
//! through it: nobody is to notice.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    audit::{Entry, Log},
    control_plane::ControlPlane,
    load::{Load, Tally, sent_between, splits},
    process::until,
    release::{COMMAND, RESOURCE, asked_until, nothing_of_the_canary_left},
    scene::{Outcome, Scene, play},
    trial::tell,
};
use jiff::Timestamp;
use serde_json::{Value, json};

const RATE: u32 = 50;
const LONGEST: Duration = Duration::from_secs(900);
const PATIENCE: Duration = Duration::from_secs(120);

/// Longer than the leader's term, and than the hold that ends meanwhile.
const STALL: Duration = Duration::from_secs(20);
/// Far longer than a term and every deadline of a call.
const UNREACHABLE: Duration = Duration::from_secs(120);

/// How a release ends that weathers everything.
const PROMOTED: &str = "Promoted";

/// A release of version 3 under way, watched without the API server's help.
struct Under<'a> {
    scene: &'a Scene,
    control_plane: ControlPlane,
    load: Load,
}

/// Plays a release with these steps through `faults`; it has to end so, with every request answered well, and with nothing
/// broken by the audit log.
fn weathers(name: &str, steps: Value, end: &str, faults: impl FnOnce(&Under<'_>) -> Result<()>) -> Outcome {
    play(name, |scene| {
        let Some(control_plane) = ControlPlane::of(scene.cluster) else {
            return tell(&format!("LEFT OUT: {name}: the node is out of reach"));
        };
        nothing_is_going(scene)?;
        let host = scene.host();
        let app = App::new("shop", &host).with_replicas(2);
        app.deploy(&scene.namespace)?;
        let under = Under {
            scene,
            control_plane,
            load: scene.load(&host, RATE, LONGEST)?,
        };
        scene.namespace.apply(&[app.release_of_v3(json!({"steps": steps}))])?;
        faults(&under)?;
        let ended = asked_until(
            &scene.namespace,
            "shop",
            "the release has ended",
            PATIENCE * 2,
            |moment| ["Promoted", "RolledBack", "Stalled"].contains(&&*moment.status.phase),
        )?;
        let entry = ended.status.history.first().context("status.history is empty")?;
        ensure!(
            entry.outcome == end && ended.status.history.len() == 1,
            "it ended as {:?}",
            ended.status.history
        );
        nothing_of_the_canary_left(&scene.namespace)?;
        Tally::of(&under.load.stop()?).all_well("from before the release until after its end")?;
        let log = Log::of(scene.cluster)?.context("the audit log is out of reach")?;
        let looked: &[&str] = match end {
            PROMOTED => &[
                "canary Ingresses",
                "canary Deployments and Services",
                "stable Deployments",
                "statuses",
            ],
            _ => &["canary Ingresses", "canary Deployments and Services", "statuses"],
        };
        log.within(scene.namespace.name()).judged().all_well(looked)?;
        // Whoever comes next finds the operator as it should be.
        scene.operator.until_ready(PATIENCE, |_| true)?;
        Ok(())
    })
}

/// ingress-nginx 1.11 panics where a Service goes while the API server is away (`store.go`, `cache.DeletedFinalStateUnknown`): no
/// earlier scenario may still be clearing up.
fn nothing_is_going(scene: &Scene) -> Result<()> {
    until("no namespace is about to go", PATIENCE, || {
        let namespaces = scene.cluster.ask(&["get", "namespaces", "--output=json"])?;
        let namespaces: Value = serde_json::from_str(&namespaces)?;
        let all = namespaces["items"].as_array().into_iter().flatten();
        let going = all
            .filter(|namespace| namespace["status"]["phase"] == "Terminating")
            .count();
        Ok(if going == 0 {
            Ok(())
        } else {
            Err(format!("{going} are"))
        })
    })
}

impl Under<'_> {
    /// Waits until this weight is recorded.
    fn until_weight(&self, weight: &str) -> Result<()> {
        let what = format!("the weight {weight} is in force");
        asked_until(&self.scene.namespace, "shop", &what, PATIENCE, |moment| {
            moment.status.weight == weight
        })?;
        Ok(())
    }

    /// Waits until nginx sends version 3 requests.
    fn until_met(&self) -> Result<()> {
        self.load.until("version 3 is met", PATIENCE, |answers| {
            answers.iter().any(|answer| answer.version.as_deref() == Some("v3"))
        })
    }

    /// An error where version 3's share was another one between these times.
    fn shared(&self, percent: u32, (from, to): (Timestamp, Timestamp), during: &str) -> Result<()> {
        self.load.look(|answers| {
            let tally = Tally::of(sent_between(answers, from, to));
            tally.all_well(during)?;
            splits(&tally, "v3", percent, during)
        })
    }

    /// What operators wrote here between these times.
    fn written(&self, (from, to): (Timestamp, Timestamp)) -> Result<Vec<Entry>> {
        let log = Log::of(self.scene.cluster)?.context("the audit log is out of reach")?;
        let log = log.within(self.scene.namespace.name());
        Ok(log
            .of_operators()
            .filter(|entry| (from..to).contains(&entry.at))
            .cloned()
            .collect())
    }

    /// How often the leader has listed releases anew since it started.
    fn lists(&self) -> Result<u64> {
        let requests = self.scene.operator.requests()?;
        let lists = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get("verb").is_some_and(|verb| verb == "list")
                && labels
                    .get("resource")
                    .is_some_and(|resource| resource == "canaryreleases")
                && labels.get("code").is_some_and(|code| code == "200")
        };
        Ok(requests.sum(lists))
    }
}

#[test]
fn an_api_server_that_stalls_then_dies_and_has_forgotten_keeps_no_release_from_its_end() -> Outcome {
    let steps = json!([{"weight": 20, "hold": "6s"}, {"weight": 50, "hold": "6s"}]);
    weathers("api-server", steps, PROMOTED, |under| {
        under.until_weight("20")?;
        under.until_met()?;
        let from = Timestamp::now();
        under.control_plane.stall_for(STALL)?;
        under.shared(20, (from, Timestamp::now()), "while the API server was stalled")?;
        under.until_weight("50")?;

        let leader = under.scene.operator.until_ready(PATIENCE, |_| true)?;
        let lists = under.lists()?;
        under.control_plane.compact()?;
        under.control_plane.kill_api_server()?;
        // Where a watch could have gone on from where it was, nothing would be listed.
        until("the operator is told 410, and lists releases anew", PATIENCE, || {
            Ok(match under.lists()? {
                more if more > lists => Ok(()),
                same => Err(format!("{same} lists by now")),
            })
        })?;
        let again = under.scene.operator.until_ready(PATIENCE, |_| true)?;
        ensure!(
            again == leader,
            "{again:?} leads instead of {leader:?}, and has to list anyway"
        );
        Ok(())
    })
}

/// The operator is back at once, and ingress-nginx, whose watches wait longer and longer before they try again, later: a soak
/// test had requests led to pods that were gone.
#[test]
fn version_2_that_is_taken_away_right_after_the_api_server_died_keeps_its_pods_until_everybody_knows() -> Outcome {
    let steps = json!([{"weight": 50, "hold": "10m"}]);
    weathers("taken-away", steps, "Aborted", |under| {
        under.until_weight("50")?;
        under.until_met()?;
        // Their waits have grown by then to more than the settle time.
        for _ in 0..3 {
            under.control_plane.kill_api_server()?;
        }
        let revision = asked_until(&under.scene.namespace, "shop", "it is seen", PATIENCE, |_| true)?
            .status
            .revision;
        let abort = format!("{COMMAND}=abort/{revision}");
        until("it is aborted", PATIENCE, || {
            let asked = (under.scene.namespace).ask(&["annotate", RESOURCE, "shop", "--overwrite", &abort]);
            Ok(asked.map(drop).map_err(|error| format!("{error:#}")))
        })
    })
}

#[test]
#[ignore = "four minutes: make e2e-long"]
fn an_operator_that_does_not_reach_the_api_server_for_two_minutes_leaves_the_weight_and_goes_on_afterwards() -> Outcome
{
    let steps = json!([{"weight": 20, "hold": "10s"}, {"weight": 50, "hold": "10s"}]);
    weathers("unreachable", steps, PROMOTED, |under| {
        under.until_weight("20")?;
        under.until_met()?;
        let from = Timestamp::now();
        {
            let _cut = under.control_plane.cut_the_operator_off()?;
            // Not a wait for something: the time itself is the fault.
            thread::sleep(UNREACHABLE);
        }
        let back = Timestamp::now();
        under.shared(20, (from, back), "while the operator did not reach the API server")?;
        // What was under way when it was cut off may have arrived.
        let written = under.written((from + Duration::from_secs(2), back))?;
        ensure!(written.is_empty(), "it was cut off and wrote {written:?}");
        under.until_weight("50")?;
        tell(&format!(
            "cut off for {UNREACHABLE:?}, it went on {:?} later",
            Timestamp::now().duration_since(back)
        ))
    })
}

#[test]
#[ignore = "four minutes: make e2e-long"]
fn an_api_server_that_answers_nobody_for_two_minutes_keeps_no_release_from_its_end() -> Outcome {
    let steps = json!([{"weight": 20, "hold": "10s"}, {"weight": 50, "hold": "10s"}]);
    weathers("stalled", steps, PROMOTED, |under| {
        under.until_weight("20")?;
        under.until_met()?;
        let from = Timestamp::now();
        under.control_plane.stall_for(UNREACHABLE)?;
        under.shared(20, (from, Timestamp::now()), "while the API server answered nobody")
    })
}
