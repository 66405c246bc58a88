//! A decision in the making.

use super::{Decision, Finding, Kind, Level, Note, Op, Schedule, Settling, Write, analysing, proof, schedule};
use crate::{
    analysis::Met,
    api::{
        CanaryPods, CanaryReleaseStatus, FINALIZER, Outcome, Phase, Reached, Rollout, ShiftTraffic, Stage, Weight,
        conditions as types, set_condition,
    },
    observe::{Observed, Workload, revision},
    render::{Owner, owned_by},
    routing::{Route, Routing, Services, Split},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::networking::v1::Ingress,
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
};
use kube::{Resource, ResourceExt};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// An idle look-in, in case an event was lost; costs no request.
pub const IDLE: Duration = Duration::from_secs(300);

/// Longer than any wait that a spec can ask for, a hold of a year with its settle time, and short enough to be added to now.
const LONGEST_WAIT: Duration = Duration::from_secs(2 * 366 * 86_400);

/// Without a request for so long, a controller leads none there: each counts them within a second, and is asked every second.
const QUIET: Duration = Duration::from_secs(3);
/// As often it is looked whether that is so.
const LISTEN: Duration = Duration::from_secs(1);

/// For so long after the settle time it is waited for controllers that still lead requests where none should go: a request may
/// take longer, and an Ingress that nobody here knows of lead there for ever.
pub(super) const STRAY: Duration = Duration::from_secs(120);

/// It is told where it goes on for so long.
const WORTH_A_WORD: Duration = Duration::from_secs(10);

/// What is told while pods are waited for that a weight needs.
pub(super) const SCALING: &str = "ScalingCanary";

/// The version that requests have met.
type WhichVersion = fn(&Met) -> Timestamp;
pub(super) const VERSION_1: WhichVersion = |met| met.stable;
pub(super) const VERSION_2: WhichVersion = |met| met.canary;

/// Whether a stage has said all it can, or another stage goes on in the same round.
pub(super) enum Flow {
    Wait,
    Again,
}

/// `07:04:05Z`, with the date where it is not near.
pub(super) fn clock(at: Timestamp, now: Timestamp) -> String {
    // Rounded up, so that the time told is never before the time meant.
    let at = at.checked_add(Duration::from_millis(999)).unwrap_or(at);
    let near = at.duration_since(now).unsigned_abs() < Duration::from_secs(12 * 3600);
    at.strftime(if near { "%H:%M:%SZ" } else { "%a %Y-%m-%d %H:%M:%SZ" })
        .to_string()
}

/// What one stage function reads and fills.
pub(super) struct Draft<'a> {
    pub seen: &'a Observed,
    pub routing: &'a dyn Routing,
    pub settling: Settling,
    pub now: Timestamp,
    pub status: CanaryReleaseStatus,
    pub decision: Parts,
    /// Weight that this round's writes put in force; the status is only written after they succeeded.
    steered: Option<Weight>,
    phase: Phase,
    reason: &'static str,
}

/// The growing decision.
#[derive(Default)]
pub(super) struct Parts {
    pub writes: Vec<Write>,
    pub notes: Vec<Note>,
    pub release_finalizer: bool,
    pub answered: bool,
    pub again: Option<Duration>,
    pub tell_again: Option<Duration>,
    pub good_news_waits: bool,
    pub at_rest: bool,
    pub relies_on: Vec<String>,
}

impl<'a> Draft<'a> {
    pub fn new(seen: &'a Observed, routing: &'a dyn Routing, settle: Duration, now: Timestamp) -> Self {
        let mut status = seen.release.status.clone().unwrap_or_default();
        status.observed_generation = seen.release.metadata.generation;
        status.next_advance_at = None;
        let phase = status.phase.unwrap_or(Phase::Pending);
        let mut draft = Self {
            seen,
            routing,
            settling: Settling {
                time: settle,
                outages: seen.outages.clone(),
            },
            now,
            status,
            decision: Parts::default(),
            steered: None,
            phase,
            reason: "Pending",
        };
        draft.count_from_the_last_write();
        draft.count_what_lies_ahead_from_now();
        draft
    }

    /// A time that lies ahead was told by another clock, this machine's before it was set or another machine's: it would hold
    /// the release for as long.
    fn count_what_lies_ahead_from_now(&mut self) {
        let scaling = self.said(SCALING);
        let Some(rollout) = &mut self.status.rollout else {
            return;
        };
        // A step waits from its end on, which does lie ahead.
        let waiting = (rollout.stage != Stage::Stepping || scaling).then_some(&mut rollout.waiting_since);
        let times = [
            &mut rollout.weight_since,
            &mut rollout.drained_since,
            &mut rollout.stable_since,
            &mut rollout.interrupted_since,
        ];
        for time in times.into_iter().flatten().chain(waiting) {
            time.0 = time.0.min(self.now);
        }
    }

    /// An operator that died after it put a canary Ingress right had not recorded since when its weight is in force.
    fn count_from_the_last_write(&mut self) {
        let written = self.own_ingresses().filter_map(|ingress| self.routing.since(ingress));
        // Another clock's future, or somebody's, would hold the release for as long.
        let written = written.filter(|written| *written <= self.now).max();
        if let Some(rollout) = &mut self.status.rollout
            && let (Some(since), Some(written)) = (&mut rollout.weight_since, written)
            && since.0 < written
        {
            *since = MicroTime(written);
            rollout.proven = None;
        }
    }

    // === What is there

    pub fn owner(&self) -> Owner {
        Owner::of(&self.seen.release)
    }

    pub fn uid(&self) -> String {
        self.seen.release.uid().unwrap_or_default()
    }

    pub fn stage(&self) -> Option<Stage> {
        self.status.rollout.as_ref().map(|rollout| rollout.stage)
    }

    pub fn own_ingresses(&self) -> impl Iterator<Item = &'a Arc<Ingress>> + use<'a> {
        let uid = self.uid();
        self.seen
            .ingresses
            .iter()
            .filter(move |ingress| owned_by(ingress.meta(), &uid))
    }

    /// Whether anything is there that was made for this release.
    pub fn owns_any(&self) -> bool {
        let uid = self.uid();
        let mut services = self.seen.services.iter();
        !self.seen.own_deployments.is_empty()
            || self.own_ingresses().next().is_some()
            || services.any(|service| owned_by(service.meta(), &uid))
    }

    pub fn ready(&self, service: &str) -> usize {
        self.seen.ready.get(service).copied().unwrap_or(0)
    }

    /// The canary's Deployment, unless it is being deleted.
    pub fn canary(&self, rollout: &Rollout) -> Option<&'a Workload> {
        self.seen
            .own_deployments
            .iter()
            .find(|own| own.name == rollout.canary.deployment && !own.deleting)
    }

    /// The largest weight that any live canary Ingress expresses.
    pub fn live_weight(&self) -> Weight {
        self.own_ingresses()
            .map(|ingress| self.routing.split(ingress).weight)
            .max()
            .unwrap_or_default()
    }

    /// Whether any live canary Ingress leads anybody to version 2.
    pub fn exposed(&self) -> bool {
        self.own_ingresses().any(|ingress| self.routing.exposes(ingress))
    }

    /// Whether this was the reason that the last round told.
    pub fn said(&self, reason: &str) -> bool {
        let ready = self.seen.release.status.as_ref().and_then(|status| {
            let mut conditions = status.conditions.iter();
            conditions.find(|condition| condition.type_ == types::READY)
        });
        ready.is_some_and(|ready| ready.reason == reason)
    }

    /// Whether the last round held the release for this reason.
    pub fn held_for(&self, reason: &str) -> bool {
        self.status.phase == Some(Phase::Holding) && self.said(reason)
    }

    /// `app:v1 -> app:v2`, for messages.
    pub fn images(&self) -> String {
        let or = |image: &Option<String>| image.clone().unwrap_or_else(|| "?".to_owned());
        format!("{} -> {}", or(&self.status.stable_image), or(&self.status.canary_image))
    }

    /// How many pods the canary has for a weight: fixed, or its share of those that version 1 had for all requests.
    pub fn pods(&self, rollout: &Rollout, weight: Weight) -> i32 {
        let fixed = self.seen.release.spec.canary.replicas;
        fixed.unwrap_or_else(|| weight.pods_of(self.capacity(rollout)))
    }

    /// Whether so many of the canary's pods are ready, by its Service's endpoints.
    pub fn has_ready(&self, rollout: &Rollout, pods: i32) -> bool {
        usize::try_from(pods).is_ok_and(|pods| self.ready(&rollout.canary.service) >= pods)
    }

    /// Whether the canary is asked for more pods than its share of the requests needs, and has those.
    pub fn has_pods_beyond_share(&self, rollout: &Rollout) -> bool {
        let need = self.pods(rollout, self.live_weight());
        let asked = self.canary(rollout).is_some_and(|canary| canary.replicas > need);
        asked && self.has_ready(rollout, need)
    }

    /// The most pods that the canary will have.
    pub fn peak(&self, rollout: &Rollout, schedule: &Schedule) -> i32 {
        let stepping = self.pods(rollout, schedule.weight(schedule.len()));
        let shifts = self.seen.release.spec.promotion.shift_traffic != ShiftTraffic::Never;
        if shifts {
            stepping.max(self.capacity(rollout))
        } else {
            stepping
        }
    }

    /// How many pods carry all requests.
    pub fn capacity(&self, rollout: &Rollout) -> i32 {
        let stable = self.seen.stable.as_ref().map_or(1, |stable| stable.replicas);
        rollout.capacity.max(stable).max(1)
    }

    // === What to do

    pub fn write(&mut self, kind: Kind, name: &str, op: Op, why: impl Into<String>) {
        self.decision.writes.push(Write {
            kind,
            name: name.to_owned(),
            op,
            why: why.into(),
        });
    }

    pub fn note(&mut self, level: Level, reason: &str, message: impl Into<String>) {
        self.decision.notes.push(Note {
            level,
            reason: reason.to_owned(),
            message: message.into(),
        });
    }

    /// Takes the finalizer before the first object is made.
    pub fn take_finalizer(&mut self) {
        let metadata = &self.seen.release.metadata;
        if metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) {
            return;
        }
        let finalizers: Vec<_> = metadata
            .finalizers
            .iter()
            .flatten()
            .map(String::as_str)
            .chain([FINALIZER])
            .collect();
        let patch = json!({"metadata": {"finalizers": finalizers}});
        let version = metadata.resource_version.clone().unwrap_or_default();
        self.write(
            Kind::CanaryRelease,
            &self.seen.release.name_any(),
            Op::Merge { version, patch },
            "guard the traffic before objects are made",
        );
    }

    /// Scales the canary up to `pods`; never down, for pods go after their traffic.
    /// Returns whether so many are ready, by the Service's endpoints.
    pub fn scale(&mut self, rollout: &mut Rollout, pods: i32, why: &str) -> bool {
        let Some(canary) = self.canary(rollout) else {
            return false;
        };
        let ready = self.has_ready(rollout, pods);
        let asks = canary.replicas < pods;
        if asks || !(ready || self.said(SCALING)) {
            // The operator may have been away, or waited without a deadline for a person: this wait begins only now.
            rollout.waiting_since = MicroTime(self.now);
        }
        if asks {
            let patch = json!({"spec": {"replicas": pods}});
            self.write(
                Kind::Deployment,
                &canary.name,
                Op::Merge {
                    version: canary.version.clone(),
                    patch,
                },
                why,
            );
            return false;
        }
        ready
    }

    /// Takes pods away that are not to be had, where no share of the traffic needs them.
    pub fn shrink(&mut self, rollout: &Rollout, pods: i32, why: &str) {
        let Some(canary) = self.canary(rollout).filter(|canary| canary.replicas > pods) else {
            return;
        };
        // The same object may have been written in this round, before this was decided.
        self.decision
            .writes
            .retain(|write| (write.kind, &write.name) != (Kind::Deployment, &canary.name));
        let op = Op::Merge {
            version: canary.version.clone(),
            patch: json!({"spec": {"replicas": pods}}),
        };
        self.write(Kind::Deployment, &canary.name, op, why);
    }

    /// Makes every canary Ingress express `split`; returns whether that took a write.
    pub fn steer(&mut self, rollout: &mut Rollout, split: Split, why: &str) -> bool {
        let ops = self.steering(rollout, split);
        rollout.expressed = Some(self.expression(split));
        let wrote = !ops.is_empty();
        for (name, op) in ops {
            self.write(Kind::Ingress, &name, op, why);
        }
        if wrote {
            let testers = self.seen.release.spec.traffic.as_ref().is_some_and(|t| t.has_testers());
            let first = !self.exposed() && (testers || split.weight > Weight::ZERO);
            if first || split.weight == Weight::FULL {
                self.rely_on_endpoints(rollout);
            }
            self.steered = Some(split.weight);
        }
        wrote
    }

    /// From here on there is no turning back within a watch's delay: see [`Decision::relies_on`].
    pub fn rely_on_endpoints(&mut self, rollout: &Rollout) {
        self.decision.relies_on = vec![rollout.service.clone(), rollout.canary.service.clone()];
    }

    /// Stands for all that is asked of the canary Ingresses.
    pub fn expression(&self, split: Split) -> String {
        revision(&json!([split.weight, split.step, self.seen.release.spec.traffic]))
    }

    /// A canary Ingress that does not express `split`.
    pub fn strays(&self, rollout: &Rollout, split: Split) -> Option<String> {
        self.steering(rollout, split).into_iter().map(|(name, _)| name).next()
    }

    /// A canary Ingress that is not there.
    pub fn missing(&self, rollout: &Rollout) -> Option<String> {
        let suffix = rollout.suffix();
        let own: Vec<_> = self.own_ingresses().map(|ingress| ingress.name_any()).collect();
        let mut wanted = rollout.ingresses.iter().map(|stable| format!("{stable}{suffix}"));
        wanted.find(|name| !own.contains(name))
    }

    /// What it takes until every canary Ingress expresses `split`, by name.
    fn steering(&self, rollout: &Rollout, split: Split) -> Vec<(String, Op)> {
        let suffix = rollout.suffix();
        let owner = self.owner();
        let own: Vec<_> = self.own_ingresses().collect();
        let services = Services {
            stable: &rollout.service,
            canary: &rollout.canary.service,
        };
        let route = Route {
            services,
            split,
            traffic: self.seen.release.spec.traffic.as_ref(),
            since: self.now,
        };
        let stable = self.seen.ingresses.iter();
        let stable = stable.filter(|i| rollout.ingresses.contains(&i.name_any()));
        stable
            .filter_map(|stable| {
                let name = format!("{}{suffix}", stable.name_any());
                let wanted = self.routing.canary(stable, &name, &owner, route);
                let op = match own.iter().find(|live| live.name_any() == name) {
                    None => Op::Create(wanted),
                    Some(live) => Op::Merge {
                        version: live.resource_version().unwrap_or_default(),
                        patch: self.routing.correction(live, &wanted)?,
                    },
                };
                Some((name, op))
            })
            .collect()
    }

    /// Deletes everything of the canary in the order that loses no request: Ingresses, the settle time, then the pods,
    /// unless those are kept. Returns whether all is gone.
    pub fn drain(&mut self, drained_since: &mut Option<MicroTime>, exposed: bool, keep: bool, why: &str) -> bool {
        // What was to be put right in this round goes instead: written after all, it would lead requests to pods whose
        // traffic counts as gone.
        self.decision.writes.retain(|write| write.kind != Kind::Ingress);
        let live: Vec<_> = self.own_ingresses().collect();
        if !live.is_empty() {
            for ingress in live.iter().filter(|i| i.metadata.deletion_timestamp.is_none()) {
                let op = Op::Delete {
                    uid: ingress.uid().unwrap_or_default(),
                    version: ingress.resource_version(),
                };
                self.write(Kind::Ingress, &ingress.name_any(), op, why);
            }
            self.steered = Some(Weight::ZERO);
            // An operator that died after it wrote the first weight did not record that version 2 is exposed.
            let exposed = exposed || self.exposed();
            // One whose deletion somebody's finalizer holds up still leads requests there: the time counts from its end,
            // and a time that moved with every look would be a write with every look.
            let all_asked = live.iter().all(|i| i.metadata.deletion_timestamp.is_some());
            *drained_since = (exposed && !all_asked).then_some(MicroTime(self.now));
            self.look_again(self.settling.time);
            return false;
        }
        if drained_since.is_none() {
            drained_since.clone_from(&self.seen.drained_since);
        }
        if exposed || drained_since.is_some() {
            let since = drained_since.get_or_insert(MicroTime(self.now)).0;
            let rest = self.unsettled(since).max(self.unquiet(since, VERSION_2));
            if !rest.is_zero() {
                self.look_again(rest);
                return false;
            }
        }
        let uid = self.uid();
        let services: Vec<_> = self.seen.services.iter().filter(|s| owned_by(s.meta(), &uid)).collect();
        let pods_gone = keep || self.remove_deployments(why);
        for own in services.iter().filter(|s| s.metadata.deletion_timestamp.is_none()) {
            self.write(
                Kind::Service,
                &own.name_any(),
                Op::Delete {
                    uid: own.uid().unwrap_or_default(),
                    version: None,
                },
                why,
            );
        }
        services.is_empty() && pods_gone
    }

    /// Deletes version 2's Deployment; returns whether it is gone.
    pub fn remove_deployments(&mut self, why: &str) -> bool {
        for own in self.seen.own_deployments.iter().filter(|own| !own.deleting) {
            let op = Op::Delete {
                uid: own.uid.clone(),
                version: None,
            };
            self.write(Kind::Deployment, &own.name, op, why);
        }
        self.seen.own_deployments.is_empty()
    }

    // === Time

    /// What is left of `length` since `since`; zero when it is over.
    pub fn until(&self, since: Timestamp, length: Duration) -> Duration {
        // A status may say any time, and the end of time is none to be waited for.
        let end = since.checked_add(length).unwrap_or(Timestamp::MAX);
        let left = Duration::try_from(end.duration_since(self.now)).unwrap_or(Duration::ZERO);
        left.min(LONGEST_WAIT)
    }

    /// From when a wait counts that is recorded since `since`, perhaps by another clock: one that is ahead of that would end
    /// it at once, so that it counts from when this process began to lead, at the earliest; and from now at the latest.
    pub fn counted_from(&self, since: Timestamp) -> Timestamp {
        since.min(self.now).max(self.seen.led_since)
    }

    /// When what was written at `since` is known by everybody.
    fn settled_at(&self, since: Timestamp) -> Timestamp {
        self.settling.end(self.counted_from(since))
    }

    /// The same in words. An operator that has just begun to lead waits longer and tells the same: one that died after each of its
    /// writes would never get there if it had another time to write each time.
    pub fn known_at(&self, since: Timestamp) -> String {
        clock(self.settling.end(since), self.now)
    }

    /// Until when it is waited at the most for who has not heard of what was written at `since`, as in [`Self::known_at`].
    pub fn given_up_at(&self, since: Timestamp) -> String {
        let end = self.settling.end(since).checked_add(STRAY);
        clock(end.unwrap_or(Timestamp::MAX), self.now)
    }

    /// How long it takes until what was written at `since` is known by everybody; zero when it is.
    pub fn unsettled(&self, since: Timestamp) -> Duration {
        self.until(self.settled_at(since), Duration::ZERO)
    }

    /// When to look again whether requests meet a version though nobody leads them there who has heard of what was written at
    /// `since`; zero when none do, when nobody counts them, and when it was waited for long enough.
    pub fn unquiet(&self, since: Timestamp, version: WhichVersion) -> Duration {
        let Some(met) = &self.seen.judged.met else {
            return Duration::ZERO;
        };
        // Silence is what a complete look tells, not that nobody has looked since: a controller hung, a release could not be
        // recorded as one whose requests are counted each second, and a spec was edited so that counting began anew.
        let quiet = version(met).checked_add(QUIET).unwrap_or(Timestamp::MAX);
        if met.known >= quiet && met.known >= self.settled_at(since) {
            return Duration::ZERO;
        }
        LISTEN.min(self.patience(since))
    }

    /// How long it is waited on at the most for who has not heard of what was written at `since`.
    pub fn patience(&self, since: Timestamp) -> Duration {
        self.until(self.settled_at(since), STRAY)
    }

    /// Whether requests that still meet a version are worth a word, as in [`Self::unquiet`].
    pub fn has_strays(&self, since: Timestamp, version: WhichVersion) -> bool {
        self.patience(since) + WORTH_A_WORD < STRAY && !self.unquiet(since, version).is_zero()
    }

    /// Why what was written at `since` takes longer than the settle time to be known, as a clause; none where it does not.
    pub fn late(&self, since: Timestamp) -> Option<String> {
        let outage = self.settling.outages.last()?;
        let left = self.unsettled(since);
        (left > self.until(self.settling.undisturbed(self.counted_from(since)), Duration::ZERO)).then(|| {
            format!(
                "; the API server was out of reach until {}, and ingress-nginx may hear of this as late as {}",
                clock(outage.until, self.now),
                self.known_at(since)
            )
        })
    }

    /// Why version 2's pods outlive their traffic by more than the settle time, as a clause.
    pub fn pods_stay(&self, drained_since: Option<&MicroTime>) -> String {
        let Some(since) = drained_since.map(|since| since.0) else {
            return String::new();
        };
        match self.late(since) {
            Some(late) => format!("{late}: its pods stay until then"),
            None if self.has_strays(since, VERSION_2) => format!(
                "; not every ingress-nginx controller is known to have heard of this: version 2's pods stay until no request has met them for {} s, at the latest until {}",
                QUIET.as_secs(),
                self.given_up_at(since)
            ),
            None => String::new(),
        }
    }

    pub fn look_again(&mut self, after: Duration) {
        self.decision.again = Some(self.decision.again.map_or(after, |sooner| sooner.min(after)));
    }

    /// Looks again when the progress deadline of the current wait passes; tells how much of it is left.
    pub fn deadline(&mut self, rollout: &Rollout) -> Duration {
        let since = self.counted_from(rollout.waiting_since.0);
        let left = self.until(since, self.seen.release.spec.progress_deadline.get());
        // A deadline that has passed is no reason to look at once, again and again.
        if !left.is_zero() {
            self.look_again(left);
        }
        left
    }

    // === What to say

    pub fn say(&mut self, phase: Phase, reason: &'static str, message: impl Into<String>) {
        (self.phase, self.reason) = (phase, reason);
        self.status.message = Some(message.into());
    }

    /// A person is needed before this can start.
    pub fn stall(&mut self, findings: &[Finding]) {
        let reason = findings.first().map_or("Stalled", |finding| finding.reason);
        let message = findings
            .iter()
            .map(|finding| finding.message.as_str())
            .collect::<Vec<_>>()
            .join("; ");
        // Not each time that a message differs: what a webhook or a source says may name each request.
        if self.status.phase != Some(Phase::Stalled) || !self.said(reason) {
            self.note(Level::Warning, reason, message.clone());
        }
        self.say(Phase::Stalled, reason, message);
    }

    pub fn reached(&self, rollout: &mut Rollout, weight: Weight) {
        let at = Time(self.now);
        // The schema bounds the list: without a bound, CEL on its weights exceeds the API server's cost budget.
        if rollout.reached.last().is_some_and(|last| last.weight == weight) {
            return;
        }
        // The last is the weight in force.
        rollout.reached.truncate(127);
        rollout.reached.push(Reached { weight, at });
    }

    // === The end

    pub fn finish(mut self) -> Decision {
        let parts = std::mem::take(&mut self.decision);
        // Of an object that is about to be gone nobody reads anything.
        if !parts.at_rest || self.seen.release.metadata.deletion_timestamp.is_none() {
            self.describe();
        }
        Decision {
            takes_away: self.takes_away(&parts.writes),
            writes: parts.writes,
            status: self.status,
            release_finalizer: parts.release_finalizer,
            answered: parts.answered,
            notes: parts.notes,
            again: parts.again.map_or(IDLE, |again| again.min(IDLE)),
            tell_again: parts.tell_again.unwrap_or(IDLE),
            good_news_waits: parts.good_news_waits,
            watching: !parts.at_rest,
            relies_on: parts.relies_on,
        }
    }

    fn takes_away(&self, writes: &[Write]) -> bool {
        let deletes = |write: &Write| write.kind == Kind::Ingress && matches!(write.op, Op::Delete { .. });
        self.seen.release.metadata.deletion_timestamp.is_some()
            || self.stage() == Some(Stage::RollingBack)
            || self.steered.is_some_and(|weight| weight < self.live_weight())
            || writes.iter().any(deletes)
    }

    /// Fills what follows from the live objects and from where the release stands.
    fn describe(&mut self) {
        self.status.phase = Some(self.phase);
        let rollout = self.status.rollout.clone();
        if let Some(stable) = &self.seen.stable
            && rollout.as_ref().is_none_or(|r| matches!(r.stage, Stage::Preparing))
        {
            self.status.stable_image = stable.image(self.seen.release.spec.canary.container.as_deref());
        }
        let running = rollout.as_ref().filter(|r| r.stage != Stage::Ended);
        if let Some(rollout) = running {
            if let Some(canary) = self.canary(rollout) {
                let failed = self.seen.failure.clone();
                let told = self
                    .status
                    .canary_pods
                    .take()
                    .filter(|_| rollout.stage == Stage::RollingBack)
                    .map(|pods| (pods.reason, pods.log));
                let (reason, log) = failed
                    .map(|(failure, log)| (Some(failure.reason), log))
                    .or(told)
                    .unwrap_or_default();
                let ready = i32::try_from(self.ready(&rollout.canary.service)).unwrap_or(i32::MAX);
                let schedule = schedule(&self.seen.release.spec);
                let peak = schedule.map_or(canary.replicas, |schedule| self.peak(rollout, &schedule));
                self.status.canary_pods = Some(CanaryPods {
                    ready,
                    desired: canary.replicas,
                    peak: peak.max(canary.replicas),
                    reason,
                    log,
                });
            }
        } else if rollout.as_ref().is_some_and(|r| r.outcome == Some(Outcome::Promoted)) {
            self.status.canary_pods = None;
        }
        let ended_at = rollout
            .as_ref()
            .filter(|r| matches!(r.outcome, Some(Outcome::RolledBack | Outcome::Aborted)))
            .map(|_| "0".to_owned());
        self.status.weight = running
            .map(|_| self.steered.unwrap_or_else(|| self.live_weight()).to_string())
            .or(ended_at);
        self.set_conditions(rollout.as_ref());
        if rollout.is_some_and(|rollout| rollout.stage == Stage::Ended) {
            self.retire_canary();
        }
    }

    /// What was ready until the release ended is gone; why it was not is still worth reading.
    fn retire_canary(&mut self) {
        let conditions = self.status.conditions.iter_mut();
        for gone in conditions.filter(|c| c.type_ == types::CANARY_AVAILABLE && c.status == "True") {
            (gone.status, gone.reason) = ("False".to_owned(), "Removed".to_owned());
            gone.last_transition_time = Time(self.now);
        }
    }

    fn tell(&mut self, type_: &str, status: impl Into<Truth>, reason: &str, message: String) {
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.into().word().to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: self.seen.release.metadata.generation,
            last_transition_time: Time(self.now),
        };
        set_condition(&mut self.status.conditions, condition);
    }

    fn set_conditions(&mut self, rollout: Option<&Rollout>) {
        use Phase::{Promoted, RolledBack, Stalled};
        let phase = self.phase;
        let message = self.status.message.clone().unwrap_or_default();
        let reason = self.reason;
        let outcome = rollout.and_then(|r| r.outcome);
        let available = rollout.is_some_and(|r| self.seen.failure.is_none() && self.ready(&r.canary.service) > 0);
        let over = matches!(phase, Promoted | RolledBack | Stalled);
        self.tell(types::READY, phase == Promoted, reason, message.clone());
        self.tell(types::RECONCILING, !over, reason, String::new());
        // kstatus reads Stalled as "failed": a rolled-back release waits for a person too.
        let stalled = matches!(phase, Stalled | RolledBack);
        self.tell(
            types::STALLED,
            stalled,
            reason,
            if stalled { message.clone() } else { String::new() },
        );
        let blocked = phase == Stalled && rollout.is_none_or(|r| r.stage == Stage::Ended);
        let warnings = rollout.map(|r| r.warnings.as_slice()).unwrap_or_default();
        let unasked = phase == Phase::Paused && rollout.is_none_or(|r| r.stage == Stage::Ended);
        let (why, told) = match warnings {
            _ if unasked => ("NotChecked", String::new()),
            _ if blocked => (reason, message.clone()),
            [] => ("Fits", String::new()),
            some => ("FitsWithWarnings", some.join("; ")),
        };
        let passed = if unasked { Truth::Unknown } else { (!blocked).into() };
        self.tell(types::PREFLIGHT_PASSED, passed, why, told);
        let paused = phase == Phase::Paused;
        self.tell(
            types::PAUSED,
            paused,
            if paused { reason } else { "NotPaused" },
            if paused { message.clone() } else { String::new() },
        );
        if let Some(rollout) = rollout {
            let (analysed, why, told) = analysing::analysed(&self.status.checks);
            self.tell(types::ANALYSED, analysed.map_or(Truth::Unknown, Truth::from), why, told);
            let split = matches!(rollout.stage, Stage::Stepping | Stage::Promoting | Stage::Finishing);
            if split && rollout.drained_since.is_none() {
                let (live, why, told) = weight_live(rollout, self.settling.live(rollout), self.now);
                self.tell(types::WEIGHT_LIVE, live, why, told);
                let (verified, why, told) = split_verified(rollout);
                self.tell(types::TRAFFIC_SPLIT_VERIFIED, verified, why, told);
            }
            let why = self.seen.failure.as_ref().map_or(
                if available {
                    "EndpointsReady"
                } else {
                    "NoReadyEndpoints"
                },
                |(f, _)| f.reason.as_str(),
            );
            if rollout.stage != Stage::Ended {
                self.tell(types::CANARY_AVAILABLE, available, why, String::new());
            }
            if rollout.drained_since.is_some() || matches!(rollout.stage, Stage::RollingBack | Stage::Ended) {
                self.tell(types::WEIGHT_LIVE, false, "Removed", String::new());
                self.tell(types::TRAFFIC_SPLIT_VERIFIED, Truth::Unknown, "Removed", String::new());
            }
            let ended = rollout.stage == Stage::Ended;
            let result = rollout.reason.clone().unwrap_or_else(|| reason.to_owned());
            self.tell(
                types::PROMOTED,
                ended && outcome == Some(Outcome::Promoted),
                &result,
                String::new(),
            );
            self.tell(
                types::ROLLED_BACK,
                ended && outcome == Some(Outcome::RolledBack),
                &result,
                String::new(),
            );
        }
    }
}

/// Status of a condition.
#[derive(Clone, Copy, PartialEq)]
enum Truth {
    Yes,
    No,
    Unknown,
}

impl Truth {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "True",
            Self::No => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Whether every controller has had the time to learn of the weight in force, and no counted requests deny that.
fn weight_live(rollout: &Rollout, live: Option<Timestamp>, now: Timestamp) -> (bool, &'static str, String) {
    let told = |told: &Option<String>| told.clone().unwrap_or_default();
    match live {
        _ if rollout.split_differs.is_some() => (false, proof::SPLIT, told(&rollout.split_differs)),
        _ if rollout.interrupted_since.is_some() => (false, "Interrupted", String::new()),
        _ if rollout.proven.is_some() => (true, "Counted", told(&rollout.proven)),
        Some(live) if live <= now => (true, "Settled", String::new()),
        Some(_) => (false, "Settling", String::new()),
        None => (false, "NotWritten", String::new()),
    }
}

/// Whether the requests that the controllers counted divide as the weight says.
fn split_verified(rollout: &Rollout) -> (Truth, &'static str, String) {
    match (&rollout.split_differs, &rollout.proven) {
        (Some(told), _) => (Truth::No, proof::SPLIT, told.clone()),
        (None, Some(told)) => (Truth::Yes, "Agrees", told.clone()),
        (None, None) => (Truth::Unknown, "NotProven", String::new()),
    }
}
