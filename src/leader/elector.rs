use crate::cluster::{CallError, Clock, Term, bounded, post_params};
use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, ResourceExt,
    api::ObjectMeta,
    runtime::{WatchStreamExt, watcher, watcher::watch_object},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};

/// How long what lasts. `lease` over `renew` is what a rival's clock may run faster and what is under way may still take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A rival takes over after so long without a sign of life.
    pub lease: Duration,
    /// Who could not renew for so long, since the last renewal that worked was sent, leads no more.
    pub renew: Duration,
    /// How often it is renewed.
    pub every: Duration,
    /// How long after a renewal that failed it is tried again.
    pub retry: Duration,
}

impl Default for Timing {
    /// Twelve renewals a minute where Kubernetes' own controllers send thirty. One may take 7 s to be answered, and another leads
    /// within 20 s.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(17),
            renew: Duration::from_secs(12),
            every: Duration::from_secs(5),
            retry: Duration::from_secs(1),
        }
    }
}

/// What is known of the election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet, or why nothing can be known.
    Unknown(String),
    /// Another one leads, or led until now.
    Following(String),
    /// This one leads.
    Leading,
}

/// Has one of several processes lead.
pub struct Elector {
    /// Leases of the operator's own namespace. Its client is not fenced: renewing is what makes the term.
    pub leases: Api<Lease>,
    /// The Lease's name.
    pub name: String,
    /// Told apart from every other process, its own predecessors included.
    pub identity: String,
    /// How long what lasts.
    pub timing: Timing,
    /// For the times that people read; nothing is decided by them.
    pub clock: Arc<dyn Clock>,
    /// What the writes of this process are bound to.
    pub term: Term,
    /// Told of every change.
    pub standing: watch::Sender<Standing>,
}

/// The Lease while it is ours.
struct Held {
    lease: Lease,
    /// End of the term that it is proof of.
    until: Instant,
}

/// The Lease as last seen, and since when it is as it is, on our own clock: clocks of others prove nothing.
#[derive(Default)]
struct Seen {
    lease: Option<Lease>,
    since: Option<Instant>,
    /// Whether it was deleted while somebody held it, who may not know yet.
    deleted: bool,
}

impl Seen {
    fn take(&mut self, lease: Option<Lease>) {
        let version = |lease: &Option<Lease>| lease.as_ref().and_then(ResourceExt::resource_version);
        if self.since.is_none() || version(&self.lease) != version(&lease) {
            self.since = Some(Instant::now());
            self.deleted = lease.is_none() && self.holder().is_some();
        }
        self.lease = lease;
    }

    /// Who holds it, if anybody.
    fn holder(&self) -> Option<&str> {
        holder(self.lease.as_ref()?).filter(|holder| !holder.is_empty())
    }

    /// When it may be taken; None while nothing is known.
    fn free_at(&self, timing: Timing) -> Option<Instant> {
        let since = self.since?;
        if self.deleted {
            return Some(since + timing.lease);
        }
        if self.holder().is_none() {
            return Some(since);
        }
        let spec = self.lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let seconds = spec.and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok());
        // The holder's own word on how long it may be silent; one that says nonsense gets what we would.
        let silent = seconds
            .map_or(timing.lease, Duration::from_secs)
            .clamp(timing.lease, timing.lease * 20);
        Some(since + silent)
    }
}

impl Elector {
    /// Waits to lead, then runs `work` as long as it does, and again; `work` ends only when the process is to end, which
    /// makes the Lease free at once. Work that outlives its term is dropped.
    pub async fn run<W: Future<Output = ()>>(&self, shutdown: impl Future<Output = ()>, work: impl Fn() -> W) {
        tokio::pin!(shutdown);
        loop {
            let mut held = tokio::select! {
                biased;
                () = &mut shutdown => return,
                held = self.acquire() => held,
            };
            tracing::info!(lease = self.name, identity = self.identity, "this replica leads");
            self.standing.send_replace(Standing::Leading);
            let lost = tokio::select! {
                biased;
                why = self.keep(&mut held) => why,
                () = work() => {
                    self.term.end();
                    self.release(&held.lease).await;
                    return;
                }
            };
            self.term.end();
            tracing::warn!(
                lease = self.name,
                "this replica leads no more: {lost}; traffic stays where it is"
            );
            self.standing.send_replace(Standing::Unknown(lost));
        }
    }

    async fn acquire(&self) -> Held {
        let mut seen = Seen::default();
        let mut news: BoxStream<'_, watcher::Result<Option<Lease>>> =
            watch_object(self.leases.clone(), &self.name).default_backoff().boxed();
        loop {
            let free_at = seen.free_at(self.timing);
            tokio::select! {
                biased;
                event = news.next() => match event {
                    Some(Ok(lease)) => self.saw(&mut seen, lease),
                    Some(Err(error)) => self.cannot(&format!(
                        "the Lease {} cannot be watched: {error}; may this ServiceAccount list and watch it?", self.name
                    )),
                    // It never ends.
                    None => sleep(self.timing.retry).await,
                },
                () = until(free_at) => {
                    match self.take(seen.lease.as_ref()).await {
                        Ok(held) => return held,
                        Err(error) if error.is_conflict() => {}
                        Err(error) => self.cannot(&format!("the Lease {} cannot be taken: {error}", self.name)),
                    }
                    // Somebody was faster, or the watch is behind: what there is now counts.
                    match bounded(self.leases.get_opt(&self.name)).await {
                        Ok(lease) => self.saw(&mut seen, lease),
                        Err(error) => self.cannot(&format!("the Lease {} cannot be read: {error}", self.name)),
                    }
                    sleep(self.timing.retry).await;
                }
            }
        }
    }

    fn saw(&self, seen: &mut Seen, lease: Option<Lease>) {
        seen.take(lease);
        if let Some(holder) = seen.holder() {
            self.tell(Standing::Following(holder.to_owned()));
        }
    }

    fn cannot(&self, why: &str) {
        if self.tell(Standing::Unknown(why.to_owned())) {
            tracing::warn!("{why}; trying again");
        }
    }

    /// Whether it is news.
    fn tell(&self, standing: Standing) -> bool {
        self.standing.send_if_modified(|now| {
            let news = *now != standing;
            *now = standing;
            news
        })
    }

    /// Makes the Lease ours if it still is as it was seen.
    async fn take(&self, seen: Option<&Lease>) -> Result<Held, CallError> {
        let sent = Instant::now();
        let now = MicroTime(self.clock.now());
        let before = seen.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
            ..before
        };
        let lease = match seen {
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(spec),
                };
                bounded(self.leases.create(&post_params(), &lease)).await?
            }
            Some(seen) => {
                let lease = Lease {
                    metadata: seen.metadata.clone(),
                    spec: Some(spec),
                };
                bounded(self.leases.replace(&self.name, &post_params(), &lease)).await?
            }
        };
        let until = sent + self.timing.renew;
        self.term.last_until(until);
        Ok(Held { lease, until })
    }

    /// Renews until that fails for too long, and answers why.
    async fn keep(&self, held: &mut Held) -> String {
        let mut pause = self.timing.every;
        let mut why = "no answer".to_owned();
        loop {
            let next = (Instant::now() + pause).min(held.until);
            sleep_until(next).await;
            if Instant::now() >= held.until {
                return format!("the Lease could not be renewed for {:?}: {why}", self.timing.renew);
            }
            let sent = Instant::now();
            pause = self.timing.retry;
            match timeout_at(held.until, bounded(self.renew(&held.lease))).await {
                Ok(Ok(lease)) => {
                    held.lease = lease;
                    held.until = sent + self.timing.renew;
                    self.term.last_until(held.until);
                    pause = self.timing.every;
                }
                Ok(Err(error)) if error.is_conflict() => {
                    match timeout_at(held.until, bounded(self.leases.get_opt(&self.name))).await {
                        // A renewal whose answer was lost, or somebody's label: still ours, and no proof of when.
                        Ok(Ok(Some(lease))) if holder(&lease) == Some(&*self.identity) => {
                            held.lease = lease;
                        }
                        Ok(Ok(Some(lease))) => return format!("{} has it", holder(&lease).unwrap_or("nobody")),
                        Ok(Ok(None)) => return "the Lease was deleted".to_owned(),
                        Ok(Err(error)) => why = error.to_string(),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => {}
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> kube::Result<Lease> {
        let mut lease = lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(self.clock.now()));
        }
        self.leases.replace(&self.name, &post_params(), &lease).await
    }

    /// Lets the next one take over at once. Where that fails it takes over in its time.
    async fn release(&self, lease: &Lease) {
        let mut lease = lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(self.clock.now()));
        }
        match bounded(self.leases.replace(&self.name, &post_params(), &lease)).await {
            Ok(_) => tracing::info!(lease = self.name, "the Lease is free"),
            Err(error) => tracing::warn!(lease = self.name, %error, "the Lease is not given up; it runs out"),
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
