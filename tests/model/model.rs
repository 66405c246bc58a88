//! What can happen, and what must hold whatever does.

use crate::{
    cluster::{self, CANARY, Cluster, Deployment, Health, Nginx, SHOP, Side, Tracked, bit, patched, weight},
    objects::{Object, age, ago, normal, now, older, older_ingress, without_recorded_since},
    planner::{Decided, Judgement, Mind, NEWEST, Planner, Step},
};
use canary_operator::{
    api::{ANNOTATION_COMMAND, FINALIZER, Stage, Weight},
    rehearse::{
        json::{int, items, set, text},
        server::patch::PatchKind,
    },
    release::{Kind, Op, Write},
};
use serde_json::{Value, json};
use stateright::{Model, Property};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// How old a pass may be, in ticks: two windows and a quarter of a minute.
const FRESH: u8 = 2;

/// Somebody edits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// `kubectl delete canaryrelease`
    Delete,
    /// Another version is to be released.
    NewImage,
    /// The version before is to be released after all.
    OldImage,
    Pause,
    Resume,
    Abort,
    /// The stable Deployment gets two pods, or one.
    Scale(usize),
    /// The stable Deployment gets another image past the operator.
    Hotfix,
    /// The canary Ingress is deleted.
    Prune,
    /// The canary Ingress leads nobody to version 2 any more.
    Unweigh,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The operator looks, and decides.
    Round(Judgement),
    /// It does the next thing that it decided.
    Act,
    /// That was done, and the operator is told that it was not.
    ActUnheard,
    /// It starts anew, before the next thing.
    Crash,
    /// The watches show everything.
    CatchUp,
    /// The Deployment controller looks.
    Controller(Side),
    PodReady(Side),
    PodUnready,
    PodFails,
    /// Endpoints are published.
    Endpoints,
    NginxSyncs,
    /// The garbage collector removes what its owner left.
    Collect(Kind),
    Tick,
    User(Edit),
}

/// What the operator is at.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub enum Operator {
    Idle,
    Acting {
        decided: Arc<Decided>,
        next: usize,
        /// Objects that were written since they were looked at.
        moved: u8,
        /// Ticks since the look.
        age: u8,
        /// Of these, ticks until the last write.
        written: u8,
    },
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    pub cluster: Cluster,
    pub operator: Operator,
    /// How many ticks ago the judge passed the weight in force; it said nothing else since.
    pub passed: Option<u8>,
    /// Whether the judge has proof of harm, which it goes on saying until it starts anew.
    pub harmed: bool,
    /// Whether traffic was taken away for harm.
    pub condemned: bool,
    /// The largest weight of this release so far: somebody else's change may be put right up to that.
    pub peak: u8,
    /// Edits that are left to the users.
    pub edits: u8,
    /// Properties that do not hold.
    pub broken: u16,
}

macro_rules! laws {
    ($($name:ident = $bit:literal, $told:literal;)*) => {
        $(const $name: u16 = 1 << $bit;)*
        fn laws() -> Vec<Property<Release>> {
            vec![$(Property::always($told, |_, state: &State| state.broken & $name == 0)),*]
        }
    };
}

laws! {
    S1 = 0, "S1: a weight rises only on a fresh pass";
    S2 = 1, "S2: a weight never rises on missing data, on harm or after it";
    S4 = 2, "S4: requests go to version 2 only while it has ready endpoints, and version 1 always has one";
    S5 = 3, "S5: pods go only after nginx knows that no request goes there";
    S6 = 4, "S6: version 1 is replaced, has its requests back, and only then version 2 goes";
    S7 = 5, "S7: a weight is of a step, 0 or 100";
    S9 = 6, "S9: no write to an object that is not the one that was looked at";
    S10 = 7, "S10: whatever is made is guarded, and the guard goes last";
    S11 = 8, "S11: no weight rises while the release is paused";
}

/// Named like the others, and checked by running on from each state: see [`Release::ends`].
const ENDS: &str = "L1: once nothing goes wrong any more, the release ends and leaves nothing behind";

/// How large the world is, and what may go wrong.
#[derive(Clone, Debug)]
pub struct Size {
    pub replicas: usize,
    pub steps: Value,
    /// Edits that may happen, and how many of them in one run.
    pub edits: Vec<Edit>,
    pub most_edits: u8,
    pub judgements: Vec<Judgement>,
    /// Whether caches show somebody else's writes late.
    pub lag: bool,
    /// Whether the answer to a write may get lost.
    pub unheard: bool,
    /// Whether version 2's pods may stop to be ready.
    pub flap: bool,
    /// Whether version 2's pods may crash.
    pub crash_loop: bool,
    /// Whether time passes between a decision and its writes.
    pub slow: bool,
}

/// One release of one Deployment.
pub struct Release {
    pub size: Size,
    pub mind: Mind,
    ending: Mutex<HashMap<u64, bool>>,
    aged: Mutex<HashMap<Object, Object>>,
}

impl Release {
    pub fn new(size: Size, planner: Planner) -> Self {
        Self {
            size,
            mind: Mind::new(planner),
            ending: Mutex::default(),
            aged: Mutex::default(),
        }
    }

    fn older(&self, release: &Object) -> Object {
        let mut known = self.aged.lock().unwrap();
        known.entry(release.clone()).or_insert_with(|| older(release)).clone()
    }

    /// Whether the judge has anything to say.
    fn judged(&self, state: &State) -> bool {
        let release = &state.cluster.release;
        let shown = release.shown().as_ref();
        shown.is_some_and(|shown| self.mind.read(shown, release.is_stale()).judged)
    }

    /// Whether pods only ever get better.
    fn is_sound(&self) -> bool {
        !self.size.flap && !self.size.crash_loop
    }
}

/// Whether a deletion was asked for.
fn deleting(release: &Object) -> bool {
    release.value().pointer("/metadata/deletionTimestamp").is_some()
}

/// How many ticks ago the judge passed the step in force, as the status has it.
fn recorded_pass(release: &Object) -> Option<u8> {
    let check = items(release.value(), "/status/checks").first()?;
    let of_step = check.get("step") == release.value().pointer("/status/rollout/step");
    let passed = of_step && text(check, "/verdict") == "Pass";
    u8::try_from(age(text(check, "/at")))
        .ok()
        .filter(|age| passed && *age <= FRESH)
}

fn guarded(release: &Object) -> bool {
    items(release.value(), "/metadata/finalizers")
        .iter()
        .any(|finalizer| finalizer == FINALIZER)
}

impl Model for Release {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            cluster: Cluster {
                release: Tracked::of(Some(cluster::release(&self.size.steps))),
                stable: Tracked::of(Some(cluster::stable(self.size.replicas))),
                canary: Tracked::of(None),
                service: Tracked::of(None),
                ingress: Tracked::of(None),
                endpoints: [self.size.replicas, 0],
                nginx: Nginx::default(),
            },
            operator: Operator::Idle,
            passed: None,
            harmed: false,
            condemned: false,
            peak: 0,
            edits: self.size.most_edits,
            broken: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken != 0 {
            return;
        }
        let cluster = &state.cluster;
        let touched = match &state.operator {
            Operator::Idle => {
                let judged = self.judged(state);
                if !(state.harmed && judged) {
                    actions.push(Action::Round(Judgement::Silent));
                }
                let harm = |judgement: &&Judgement| !state.harmed || **judgement == Judgement::Harm;
                if judged {
                    let says = self.size.judgements.iter().filter(harm);
                    actions.extend(says.map(|judgement| Action::Round(*judgement)));
                }
                actions.push(Action::Endpoints);
                actions.push(Action::NginxSyncs);
                if cluster.is_stale() {
                    actions.push(Action::CatchUp);
                }
                for kind in [Kind::Ingress, Kind::Deployment, Kind::Service] {
                    actions.push(Action::Collect(kind));
                }
                u8::MAX
            }
            // What others do meanwhile matters where it is in the way of what is left to do.
            Operator::Acting { decided, next, .. } => {
                actions.push(Action::Act);
                actions.push(Action::Crash);
                let left = &decided.steps[*next..];
                let of_release = !matches!(left.first(), Some(Step::Write(write)) if write.kind != Kind::CanaryRelease);
                if self.size.unheard && !of_release {
                    actions.push(Action::ActUnheard);
                }
                let left = decided.steps[*next..].iter();
                left.map(|step| match step {
                    Step::Write(write) => bit(write.kind, &write.name),
                    _ => bit(Kind::CanaryRelease, SHOP),
                })
                .fold(0, std::ops::BitOr::bitor)
            }
        };
        for side in [Side::Stable, Side::Canary] {
            let name = if side == Side::Stable { SHOP } else { CANARY };
            if touched & bit(Kind::Deployment, name) != 0 {
                actions.push(Action::Controller(side));
                actions.push(Action::PodReady(side));
            }
        }
        if touched & bit(Kind::Deployment, CANARY) != 0 {
            if self.size.flap {
                actions.push(Action::PodUnready);
            }
            if self.size.crash_loop {
                actions.push(Action::PodFails);
            }
        }
        // Every call has a deadline.
        let may_pass = match &state.operator {
            Operator::Idle => true,
            Operator::Acting { age, .. } => self.size.slow && *age == 0,
        };
        if may_pass {
            actions.push(Action::Tick);
        }
        if state.edits > 0 {
            actions.extend(self.size.edits.iter().map(|edit| Action::User(*edit)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let next = self.follow(last, action)?;
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = laws();
        properties.push(Property::always(ENDS, |model: &Self, state| model.ends(state)));
        properties.push(Property::sometimes("a release is promoted", |_, state: &State| {
            state.ended() == Some("Promoted")
        }));
        properties.push(Property::sometimes("a release is rolled back", |_, state: &State| {
            state.ended() == Some("RolledBack")
        }));
        properties.push(Property::sometimes("a release is deleted", |_, state: &State| {
            state.cluster.release.now.is_none()
        }));
        properties
    }
}

impl State {
    /// How the release ended, where it did and nothing is left to do.
    fn ended(&self) -> Option<&str> {
        let release = self.cluster.release.now.as_ref()?.value();
        (text(release, "/status/rollout/stage") == "Ended").then(|| text(release, "/status/rollout/outcome"))
    }
}

impl State {
    /// A line about it.
    pub fn told(&self) -> String {
        let cluster = &self.cluster;
        let release = |release: &Option<Object>| {
            release.as_ref().map_or("release gone".to_owned(), |release| {
                let value = release.value();
                let rollout = value.pointer("/status/rollout").cloned().unwrap_or_default();
                let mut told: Vec<_> = ["stage", "step", "outcome", "exposed", "capacity", "interruptedFor"]
                    .iter()
                    .filter_map(|field| Some(format!("{field} {}", rollout.get(field)?)))
                    .collect();
                for since in [
                    "waitingSince",
                    "weightSince",
                    "interruptedSince",
                    "drainedSince",
                    "stableSince",
                ] {
                    told.extend(
                        rollout
                            .get(since)
                            .map(|at| format!("{since} {}", age(at.as_str().unwrap()))),
                    );
                }
                for check in items(value, "/status/checks") {
                    told.push(format!("{} {}", text(check, "/verdict"), age(text(check, "/at"))));
                }
                told.push(format!("finalizers {}", items(value, "/metadata/finalizers").len()));
                told.push(format!(
                    "{} {}",
                    text(value, "/status/phase"),
                    text(value, "/status/conditions/0/reason")
                ));
                for said in [
                    "/metadata/deletionTimestamp",
                    "/metadata/annotations",
                    "/spec/paused",
                    "/spec/canary/image",
                ] {
                    told.extend(value.pointer(said).map(|value| format!("{said} {value}")));
                }
                told.join(", ")
            })
        };
        let pods = |deployment: &Option<Deployment>| {
            deployment.as_ref().map_or("-".to_owned(), |d| {
                let pods: Vec<_> = d
                    .pods
                    .iter()
                    .map(|pod| format!("v{} {:?}", pod.version, pod.health))
                    .collect();
                let observed = if d.observed { "" } else { ", not observed" };
                format!("{} x v{}{observed} [{}]", d.replicas(), d.version(), pods.join(", "))
            })
        };
        let mut told = format!(
            "stable {}; canary {}; service {}; ingress {:?}; endpoints {:?}; nginx {}{}; {}",
            pods(&cluster.stable.now),
            pods(&cluster.canary.now),
            if cluster.service.now.is_some() { "there" } else { "-" },
            cluster.ingress.now.as_ref().map(|ingress| weight(Some(ingress))),
            cluster.endpoints,
            cluster.nginx.weight,
            if cluster.nginx.gone { ", pods gone" } else { "" },
            release(&cluster.release.now),
        );
        if let Some(seen) = &cluster.release.seen {
            told += &format!(" (seen: {})", release(seen));
        }
        for (name, seen) in [("stable", &cluster.stable.seen), ("canary", &cluster.canary.seen)] {
            told += &seen
                .as_ref()
                .map_or(String::new(), |seen| format!(" ({name} seen: {})", pods(seen)));
        }
        if let Operator::Acting {
            decided,
            next,
            moved,
            age,
            ..
        } = &self.operator
        {
            told += &format!("\n     acting (moved {moved:b}, {age} ago):");
            for step in &decided.steps[*next..] {
                told += &match step {
                    Step::Write(write) => format!(" [{:?} {} {}]", write.kind, write.name, op(&write.op)),
                    Step::Status => format!(" [Status: {}]", text(&decided.status, "/message")),
                    other => format!(" [{other:?}]"),
                };
            }
        }
        told
    }
}

fn op(op: &Op) -> String {
    match op {
        Op::Create(_) => "create".to_owned(),
        Op::Delete { .. } => "delete".to_owned(),
        Op::Merge { patch, .. } | Op::StrategicMerge { patch, .. } => patch.to_string(),
    }
}

// === What happens

impl Release {
    fn follow(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let cluster = &mut next.cluster;
        // A release that costs nothing watches nothing: it begins with a fresh look.
        let lags = self.size.lag;
        match action {
            Action::Round(judgement) => self.round(&mut next, judgement)?,
            Action::Act => self.act(&mut next, true),
            Action::ActUnheard => self.act(&mut next, false),
            Action::Crash => {
                next.operator = Operator::Idle;
                // What the judge said last is lost with the operator, unless that was written down.
                next.harmed = false;
                next.passed = next.passed.or_else(|| recorded_pass(cluster.release.now.as_ref()?));
                cluster.catch_up();
            }
            Action::CatchUp => cluster.catch_up(),
            Action::Controller(side) => {
                let synced = cluster.synced(side)?;
                cluster.nginx.gone |= cluster.takes_away(side, &synced);
                cluster.set_deployment(side, Some(synced), lags);
                next.move_deployment(side);
            }
            Action::PodReady(side) => next.turn(side, Health::Starting, Health::Ready, lags)?,
            Action::PodUnready => next.turn(Side::Canary, Health::Ready, Health::Starting, lags)?,
            Action::PodFails => next.turn(Side::Canary, Health::Starting, Health::Failing, lags)?,
            Action::Endpoints => cluster.publish(),
            Action::NginxSyncs => cluster.nginx_syncs(),
            Action::Collect(kind) => {
                if cluster.release.now.is_some() {
                    return None;
                }
                if kind != Kind::Ingress && cluster.nginx.weight > 0 {
                    next.broken |= S5;
                }
                match kind {
                    Kind::Ingress => cluster.ingress = Tracked::of(None),
                    Kind::Service => cluster.service = Tracked::of(None),
                    _ => cluster.canary = Tracked::of(None),
                }
            }
            Action::Tick => self.tick(&mut next),
            Action::User(edit) => {
                self.edit(&mut next, edit)?;
                next.edits -= 1;
            }
        }
        if next.cluster.canary.now.is_none() {
            (next.peak, next.condemned) = (0, false);
        }
        if next.operator == Operator::Idle && !self.judged(&next) {
            next.harmed = false;
        }
        if self.rests(&next) {
            next.cluster.catch_up();
        }
        next.forget();
        if self.is_sound() {
            let canary = next.cluster.canary.now.as_ref().map_or(0, Deployment::ready);
            let stable = next.cluster.stable.now.as_ref().map_or(0, Deployment::ready);
            if stable == 0 || (next.cluster.nginx.weight > 0 && canary == 0) {
                next.broken |= S4;
            }
        }
        Some(next)
    }

    fn rests(&self, state: &State) -> bool {
        let release = state.cluster.release.now.as_ref();
        state.operator == Operator::Idle && release.is_none_or(|release| self.mind.read(release, false).at_rest)
    }

    fn round(&self, next: &mut State, judgement: Judgement) -> Option<()> {
        let decided = self.mind.look(&next.cluster, judgement)?;
        match judgement {
            Judgement::Silent => {}
            Judgement::Pass => next.passed = Some(0),
            Judgement::NoData | Judgement::Harm => next.passed = None,
        }
        next.harmed = judgement == Judgement::Harm;
        if decided.steps.is_empty() {
            return Some(());
        }
        let at_once = decided.steps.len() == 1 && !matches!(decided.steps[0], Step::Write(_));
        next.operator = Operator::Acting {
            decided,
            next: 0,
            moved: 0,
            age: 0,
            written: 0,
        };
        if at_once {
            self.act(next, true);
        }
        Some(())
    }

    /// The next thing that was decided; `heard`, if the answer arrives.
    fn act(&self, state: &mut State, heard: bool) {
        let Operator::Acting {
            decided,
            next,
            moved,
            age,
            mut written,
        } = state.operator.clone()
        else {
            return;
        };
        let done = match &decided.steps[next] {
            Step::Write(write) => {
                written = age;
                self.write(state, &decided, write, moved, heard)
            }
            step => self.report(state, &decided, step, moved, (age, written), heard),
        };
        if done.is_none() {
            // What was not written down the judge says again.
            state.passed = state
                .passed
                .or_else(|| recorded_pass(state.cluster.release.now.as_ref()?));
        }
        let last = next + 1 == decided.steps.len();
        state.operator = match done {
            Some(moves) if heard && !last => Operator::Acting {
                decided,
                next: next + 1,
                moved: moved | moves,
                age,
                written,
            },
            _ => Operator::Idle,
        };
    }

    fn tick(&self, next: &mut State) {
        let cluster = &mut next.cluster;
        cluster.publish();
        cluster.nginx_syncs();
        for release in [Some(&mut cluster.release.now), cluster.release.seen.as_mut()] {
            if let Some(Some(release)) = release {
                *release = self.older(release);
            }
        }
        for ingress in [Some(&mut cluster.ingress.now), cluster.ingress.seen.as_mut()] {
            if let Some(Some(ingress)) = ingress {
                *ingress = older_ingress(ingress);
            }
        }
        if cluster.release.seen.as_ref() == Some(&cluster.release.now) {
            cluster.release.catch_up();
        }
        // Where a rise is decided already, it does not matter that it is written later.
        let acts = next.operator != Operator::Idle;
        let fresh = next.passed.filter(|age| *age < FRESH || acts);
        next.passed = fresh.map(|age| (age + 1).min(FRESH));
        if let Operator::Acting { age, .. } = &mut next.operator {
            *age += 1;
        }
    }

    fn edit(&self, next: &mut State, edit: Edit) -> Option<()> {
        let lags = self.size.lag;
        if let Edit::Prune | Edit::Unweigh = edit {
            // Between a look and its write nobody could keep what is written from being wrong.
            if next.operator != Operator::Idle {
                return None;
            }
            let ingress = next.cluster.ingress.now.clone()?;
            let none = json!({"metadata": {"annotations": {"nginx.ingress.kubernetes.io/canary-weight": "0"}}});
            let left = (edit == Edit::Unweigh).then(|| patched(&ingress, PatchKind::Merge, &none));
            next.cluster.ingress.changed(left, lags);
            return Some(());
        }
        if let Edit::Scale(_) | Edit::Hotfix = edit {
            let stable = next.cluster.stable.now.as_ref()?;
            let patch = match edit {
                Edit::Scale(replicas) => json!({"spec": {"replicas": replicas}}),
                _ => json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "shop:v9"}]}}}}),
            };
            let object = patched(&stable.object, PatchKind::Strategic, &patch);
            if object == stable.object {
                return None;
            }
            let edited = Deployment {
                object,
                observed: false,
                pods: stable.pods.clone(),
            };
            next.cluster.set_deployment(Side::Stable, Some(edited), lags);
            next.move_deployment(Side::Stable);
            return Some(());
        }
        let release = next.cluster.release.now.clone()?;
        let mut value = release.value().clone();
        match edit {
            Edit::Delete if deleting(&release) => return None,
            Edit::Delete if !guarded(&release) => {
                next.cluster.set_release(None, lags);
                next.moved(bit(Kind::CanaryRelease, SHOP));
                return Some(());
            }
            Edit::Delete => set(&mut value, "/metadata/deletionTimestamp", json!(now().to_string())),
            Edit::NewImage => set(&mut value, "/spec/canary/image", json!("shop:v3")),
            Edit::OldImage => set(&mut value, "/spec/canary/image", json!("shop:v2")),
            Edit::Pause => set(&mut value, "/spec/paused", json!(true)),
            Edit::Resume => set(&mut value, "/spec/paused", json!(false)),
            Edit::Abort => {
                let revision = text(&value, "/status/revision").to_owned();
                let under_way = ["Preparing", "Stepping", "Promoting", "Finishing"];
                if !under_way.contains(&text(&value, "/status/rollout/stage")) {
                    return None;
                }
                let at = format!("/metadata/annotations/{}", ANNOTATION_COMMAND.replace('/', "~1"));
                set(&mut value, &at, json!(format!("abort/{revision}")));
            }
            Edit::Scale(_) | Edit::Hotfix | Edit::Prune | Edit::Unweigh => return None,
        }
        if value == *release.value() {
            return None;
        }
        if value["spec"] != release.value()["spec"] {
            set(&mut value, "/metadata/generation", json!(2));
        }
        next.cluster.set_release(Some(normal(value)), lags);
        next.moved(bit(Kind::CanaryRelease, SHOP));
        Some(())
    }
}

impl State {
    /// Drops what makes no difference any more.
    fn forget(&mut self) {
        let release = &self.cluster.release;
        if let (Some(now), None) = (&release.now, &release.seen) {
            for ingress in [Some(&mut self.cluster.ingress.now), self.cluster.ingress.seen.as_mut()] {
                if let Some(Some(ingress)) = ingress {
                    *ingress = without_recorded_since(ingress, now);
                }
            }
        }
    }

    /// An object was written that the round in flight may be about to write.
    fn moved(&mut self, bits: u8) {
        if let Operator::Acting { moved, .. } = &mut self.operator {
            *moved |= bits;
        }
    }

    fn move_deployment(&mut self, side: Side) {
        let name = if side == Side::Stable { SHOP } else { CANARY };
        self.moved(bit(Kind::Deployment, name));
    }

    fn turn(&mut self, side: Side, from: Health, to: Health, lags: bool) -> Option<()> {
        let turned = self.cluster.turned(side, from, to)?;
        self.cluster.set_deployment(side, Some(turned), lags);
        self.move_deployment(side);
        Some(())
    }
}

// === What the operator writes

/// What was decided on is what is there.
fn fits(named: &str, moved: bool) -> bool {
    named.is_empty() || (named == NEWEST && !moved)
}

/// Puts what a write left in place of what was there; the cache shows it at once where the answer is heard.
fn store<T: Clone + PartialEq>(tracked: &mut Tracked<T>, now: T, heard: bool) {
    let before = std::mem::replace(&mut tracked.now, now);
    tracked.seen = (!heard && before != tracked.now).then_some(before);
}

impl Release {
    /// One write; tells which object it moved, or nothing where it was refused.
    fn write(&self, state: &mut State, decided: &Decided, write: &Write, moved: u8, heard: bool) -> Option<u8> {
        let before = state.clone();
        let this = bit(write.kind, &write.name);
        let side = if write.name == SHOP { Side::Stable } else { Side::Canary };
        let named = match &write.op {
            Op::Merge { version, .. } | Op::StrategicMerge { version, .. } => Some(version),
            Op::Delete { version, .. } => version.as_ref(),
            Op::Create(_) => None,
        };
        let cluster = &mut state.cluster;
        let there = match write.kind {
            Kind::CanaryRelease => cluster.release.now.is_some(),
            Kind::Deployment => cluster.deployment(side).is_some(),
            Kind::Service => cluster.service.now.is_some(),
            Kind::Ingress => cluster.ingress.now.is_some(),
        };
        let deletes = matches!(write.op, Op::Delete { .. });
        let creates = matches!(write.op, Op::Create(_));
        let possible = there != creates || deletes;
        let blind = moved & this != 0;
        if !possible || (there && named.is_some_and(|named| !fits(named, blind))) {
            // Read again, so that the next round knows.
            match write.kind {
                Kind::CanaryRelease => {}
                Kind::Deployment if side == Side::Stable => cluster.stable.catch_up(),
                Kind::Deployment => cluster.canary.catch_up(),
                Kind::Service => cluster.service.catch_up(),
                Kind::Ingress => cluster.ingress.catch_up(),
            }
            return None;
        }
        if there && named.is_some_and(String::is_empty) && (blind || cluster.stale()[this.trailing_zeros() as usize]) {
            state.broken |= S9;
        }
        let change = |object: &Object| match &write.op {
            Op::Create(_) | Op::Delete { .. } => object.clone(),
            Op::Merge { patch, .. } => patched(object, PatchKind::Merge, patch),
            Op::StrategicMerge { patch, .. } => patched(object, PatchKind::Strategic, patch),
        };
        let made = |object: &Value, generation: bool| {
            let mut object = object.clone();
            set(&mut object, "/metadata/namespace", json!("default"));
            set(&mut object, "/metadata/uid", json!(format!("uid-{}", write.name)));
            if generation {
                set(&mut object, "/metadata/generation", json!(1));
            }
            Object::new(object)
        };
        let stored = |old: &Option<Object>| match &write.op {
            Op::Create(object) => Some(made(object, false)),
            Op::Delete { .. } => None,
            _ => old.as_ref().map(change),
        };
        match write.kind {
            Kind::CanaryRelease => {
                let now = cluster
                    .release
                    .now
                    .as_ref()
                    .map(|old| normal(change(old).value().clone()));
                store(&mut cluster.release, now, heard);
            }
            Kind::Service => {
                let now = stored(&cluster.service.now);
                store(&mut cluster.service, now, heard);
            }
            Kind::Ingress => {
                let now = stored(&cluster.ingress.now);
                store(&mut cluster.ingress, now, heard);
                if weight(before.cluster.ingress.now.as_ref()) != weight(cluster.ingress.now.as_ref()) {
                    state.passed = None;
                }
            }
            Kind::Deployment => {
                let old = cluster.deployment(side).cloned();
                let now = match (&write.op, old) {
                    (Op::Create(object), _) => Some(Deployment::new(made(object, true))),
                    (Op::Delete { .. }, _) | (_, None) => None,
                    (_, Some(old)) => {
                        let object = change(&old.object);
                        let same = object.value()["spec"] == old.object.value()["spec"];
                        Some(Deployment {
                            observed: old.observed && same,
                            object,
                            pods: old.pods,
                        })
                    }
                };
                let tracked = match side {
                    Side::Stable => &mut cluster.stable,
                    Side::Canary => &mut cluster.canary,
                };
                store(tracked, now, heard);
            }
        }
        self.check(&before, state, decided, write);
        // The release is written at the version that the write before left.
        Some(if write.kind == Kind::CanaryRelease { 0 } else { this })
    }

    /// What follows the writes: the status, the finalizer, the command's annotation.
    fn report(
        &self,
        state: &mut State,
        decided: &Decided,
        step: &Step,
        moved: u8,
        (age, written): (u8, u8),
        heard: bool,
    ) -> Option<u8> {
        let old = state.cluster.release.now.clone()?;
        if !decided.current || moved & bit(Kind::CanaryRelease, SHOP) != 0 {
            return None;
        }
        let mut value = old.value().clone();
        match step {
            Step::Write(_) => return None,
            Step::Status => {
                value["status"] = match written {
                    0 => decided.status.clone(),
                    late => {
                        let mut decision = decided.decision.clone();
                        decision.carried_out(now(), ago(-i32::from(late)));
                        serde_json::to_value(decision.status).unwrap()
                    }
                };
                // What was decided some ticks ago is of that time.
                let mut then = normal(value);
                for _ in 0..age {
                    then = self.older(&then);
                }
                value = then.value().clone();
                value["metadata"] = old.value()["metadata"].clone();
                // The status is of the generation that was looked at, which is the newest here.
                set(&mut value, "/metadata/generation", json!(1));
            }
            Step::ReleaseFinalizer => {
                if let Some(metadata) = value["metadata"].as_object_mut() {
                    metadata.remove("finalizers");
                }
                let (cluster, leads) = (&state.cluster, state.cluster.nginx.weight > 0);
                let left = match deleting(&old) {
                    // The rest is the garbage collector's.
                    true => cluster.ingress.now.is_some(),
                    false => cluster.has_canary(),
                };
                if left || leads {
                    state.broken |= S10;
                }
            }
            Step::RemoveCommand => {
                if let Some(metadata) = value["metadata"].as_object_mut() {
                    metadata.remove("annotations");
                }
            }
        }
        let gone = deleting(&old) && items(&value, "/metadata/finalizers").is_empty();
        store(&mut state.cluster.release, (!gone).then(|| normal(value)), heard);
        Some(0)
    }
}

// === What must hold after a write

fn pods_of(percent: u8, replicas: usize) -> usize {
    let pods = Weight::percent(percent.into()).pods_of(i32::try_from(replicas).unwrap());
    usize::try_from(pods).unwrap()
}

impl Release {
    fn check(&self, before: &State, after: &mut State, decided: &Decided, write: &Write) {
        let weights = [before, after].map(|state| weight(state.cluster.ingress.now.as_ref()));
        let rollout = decided.decision.status.rollout.as_ref();
        let was = &before.cluster;
        let mut broken = 0;
        match write.kind {
            Kind::Ingress => {
                let [old, new] = weights;
                if new > old {
                    let [stable, canary] = decided.ready;
                    let capacity = rollout.map_or(1, |rollout| usize::try_from(rollout.capacity).unwrap());
                    if stable == 0 || canary < pods_of(new, capacity) {
                        broken |= S4;
                    }
                    if decided.paused {
                        broken |= S11;
                    }
                    let rises = before.peak > 0 && new > before.peak;
                    if rises && before.passed.is_none() {
                        broken |= S1;
                    }
                    if (rises && decided.judgement == Judgement::NoData)
                        || decided.judgement == Judgement::Harm
                        || before.condemned
                    {
                        broken |= S2;
                    }
                    after.peak = before.peak.max(new);
                }
                after.condemned |= new < old && decided.judgement == Judgement::Harm;
                let promotes = rollout.is_some_and(|r| matches!(r.stage, Stage::Promoting | Stage::Finishing));
                if !(self.weights().contains(&new) || (new == 100 && promotes)) {
                    broken |= S7;
                }
                if old == 100 && new < 100 && !self.may_leave(before, decided) {
                    broken |= S6;
                }
            }
            Kind::Deployment if write.name == CANARY => {
                let leads = was.nginx.weight.max(weights[0]);
                let left = after.cluster.canary.now.as_ref().map_or(0, Deployment::replicas);
                let had = was.canary.now.as_ref().map_or(0, Deployment::replicas);
                if leads > 0 && left < had && left < pods_of(leads, decided.replicas) {
                    broken |= S5;
                }
            }
            Kind::Service if after.cluster.service.now.is_none() && was.nginx.weight > 0 => broken |= S5,
            Kind::Deployment if matches!(write.op, Op::StrategicMerge { .. }) => {
                let unshifted = rollout.is_some_and(|rollout| rollout.unshifted.is_some());
                let carried = was.nginx.weight == 100 && weights[0] == 100;
                // Without all pods, the last step's verdicts are what version 1 is replaced on.
                let proven = weights[0] == 100 || before.passed.is_some();
                let answers = was.canary.now.as_ref().map_or(0, Deployment::ready) > 0 || !self.is_sound();
                if !(unshifted || carried && answers) {
                    broken |= S6;
                }
                if !proven {
                    broken |= S1;
                }
            }
            _ => {}
        }
        let guard = was.release.now.as_ref().is_some_and(guarded);
        if matches!(write.op, Op::Create(_)) && !guard {
            broken |= S10;
        }
        after.broken |= broken;
    }

    /// Percents that the spec names, and none.
    fn weights(&self) -> Vec<u8> {
        let steps = self.size.steps.as_array().into_iter().flatten();
        let named = steps.filter_map(|step| u8::try_from(int(step, "/weight")?).ok());
        named.chain([0]).collect()
    }

    /// Whether requests may return to version 1: it has rolled out and nginx knows that, or version 2 answers nobody, or a
    /// deletion has waited for as long as it may.
    fn may_leave(&self, before: &State, decided: &Decided) -> bool {
        let hopeless = decided.failing || decided.ready[1] == 0;
        let release = before.cluster.release.now.as_ref();
        let asked = release.map_or("", |release| text(release.value(), "/metadata/deletionTimestamp"));
        let overdue = !asked.is_empty() && asked <= ago(4).to_string().as_str();
        let rollout = decided.decision.status.rollout.as_ref();
        let promoted = rollout.is_some_and(|rollout| rollout.stage == Stage::Finishing);
        let known = !(promoted && before.cluster.nginx.gone);
        let back = decided.rolled_out && decided.ready[0] > 0 && known;
        hopeless || overdue || back
    }
}

// === What must come

impl Release {
    /// Whether the release ends from here, in a fixed order of things in which nothing goes wrong: the cluster does what it
    /// has to before time passes, the judge passes, and who paused the release resumes it.
    ///
    /// Stateright's own `eventually` takes a cycle for a path that was seen before; following one fair run from every state
    /// there is does not depend on which paths were.
    pub fn ends(&self, from: &State) -> bool {
        if from.broken != 0 {
            return true;
        }
        let mut known = self.ending.lock().unwrap();
        let mut path = Vec::new();
        let mut state = from.clone();
        let ends = loop {
            let key = crate::objects::digest(&state);
            if let Some(known) = known.get(&key) {
                break *known;
            }
            // Where it does not end it comes back to where it was.
            if path.contains(&key) {
                break false;
            }
            path.push(key);
            match self.calm(&state) {
                Some(next) => state = next,
                None => break self.is_over(&state),
            }
        };
        known.extend(path.into_iter().map(|key| (key, ends)));
        ends
    }

    /// The next thing that happens while nothing goes wrong; nothing where the release has ended.
    pub fn calm(&self, state: &State) -> Option<State> {
        self.calm_action(state).map(|(_, next)| next)
    }

    pub fn calm_action(&self, state: &State) -> Option<(Action, State)> {
        if self.is_over(state) {
            return None;
        }
        let release = state.cluster.release.now.as_ref();
        let paused = release.is_some_and(|r| !deleting(r) && r.value().pointer("/spec/paused") == Some(&json!(true)));
        let judged = self.judged(state);
        let acting = state.operator != Operator::Idle;
        let looks = match (judged, state.harmed) {
            (true, true) => Judgement::Harm,
            (true, false) => Judgement::Pass,
            (false, _) => Judgement::Silent,
        };
        let order = [
            (acting, Action::Act),
            (true, Action::CatchUp),
            (paused, Action::User(Edit::Resume)),
            (true, Action::Controller(Side::Stable)),
            (true, Action::Controller(Side::Canary)),
            (true, Action::PodReady(Side::Stable)),
            (true, Action::PodReady(Side::Canary)),
            (true, Action::Collect(Kind::Ingress)),
            (true, Action::Collect(Kind::Deployment)),
            (true, Action::Collect(Kind::Service)),
            (true, Action::Endpoints),
            (true, Action::Round(looks)),
            (true, Action::Tick),
        ];
        order.into_iter().filter(|(may, _)| *may).find_map(|(_, action)| {
            // Edits are not counted here.
            let mut from = state.clone();
            from.edits = from.edits.max(1);
            let mut next = self.follow(&from, action)?;
            next.edits = state.edits;
            next.broken = 0;
            (next != *state).then_some((action, next))
        })
    }

    /// Whether the release is over: gone or at rest, nothing of it left, and version 1's Deployment whole.
    pub fn is_over(&self, state: &State) -> bool {
        let cluster = &state.cluster;
        let whole = cluster.stable.now.as_ref().is_some_and(Deployment::rolled_out);
        let release = cluster.release.now.as_ref();
        let waits = release.is_some_and(|r| r.value().pointer("/spec/paused") == Some(&json!(true)) && !deleting(r));
        let ended = release.is_none() || (state.ended().is_some() && self.rests(state));
        ended && !waits && whole && !cluster.has_canary() && cluster.nginx.weight == 0 && !cluster.is_stale()
    }
}
