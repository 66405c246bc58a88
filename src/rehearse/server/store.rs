//! What the API server stores: every object, and every version that any object ever had.

use super::super::{
    clock::VirtualClock,
    json::{default, int, is_ending, items, remove, set, text},
};
pub use super::change::{ChangeKind, DeleteOptions, Version, WriteOptions};
use super::{
    defaults,
    error::{self, ApiError, Cause},
    patch::{self, PatchKind},
    resource::{Key, Resource},
    schema::Definition,
    validation,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A rule of one's own about what may be stored: `(key, new, old)`.
pub type Admission = Box<dyn Fn(&Key, &Value, Option<&Value>) -> Result<(), ApiError> + Send + Sync>;

/// Objects, their log, and the one version counter.
pub struct Store {
    clock: VirtualClock,
    version: u64,
    uids: u64,
    rng: fastrand::Rng,
    objects: BTreeMap<Key, Arc<Value>>,
    log: Vec<Arc<Version>>,
    compacted: u64,
    admissions: Vec<Admission>,
    definitions: BTreeMap<Resource, Definition>,
}

impl Store {
    /// An empty store.
    pub fn new(clock: VirtualClock, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self {
            clock,
            version: 1,
            uids: 0,
            rng,
            objects: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            admissions: Vec::new(),
            definitions: BTreeMap::new(),
        }
    }

    /// The version counter.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every change so far, oldest first.
    pub fn log(&self) -> &[Arc<Version>] {
        &self.log
    }

    /// The changes after version `from`, oldest first.
    pub fn since(&self, from: u64) -> &[Arc<Version>] {
        let at = self.log.partition_point(|v| v.resource_version <= from);
        self.log.get(at..).unwrap_or_default()
    }

    /// Forgets, for watches, what lies before `version`: they get 410 Expired.
    pub fn compact(&mut self, version: u64) {
        self.compacted = version;
    }

    /// The oldest version from which a watch may start.
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Adds a rule about what may be stored.
    pub fn admit(&mut self, rule: Admission) {
        self.admissions.push(rule);
    }

    /// From now on objects of this CustomResourceDefinition are held to its schema.
    pub fn define(&mut self, definition: &Value) {
        self.definitions.extend(Definition::of(definition));
    }

    /// What is known about a custom resource.
    pub fn definition(&self, resource: &Resource) -> Option<&Definition> {
        self.definitions.get(resource)
    }

    /// The object, if it exists.
    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(key).cloned()
    }

    /// All objects of a resource, in one namespace ("" for all), by namespace and name.
    pub fn list(&self, resource: &Resource, namespace: &str) -> Vec<(Key, Arc<Value>)> {
        let from = Key {
            resource: resource.clone(),
            namespace: namespace.into(),
            name: String::new(),
        };
        let of = self
            .objects
            .range(from..)
            .take_while(|(k, _)| k.resource == *resource && (namespace.is_empty() || k.namespace == namespace));
        of.map(|(k, o)| (k.clone(), o.clone())).collect()
    }

    /// Every object there is.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    /// The objects of a resource as they were at a past version.
    pub fn list_at(&self, resource: &Resource, namespace: &str, version: u64) -> Vec<(Key, Arc<Value>)> {
        let mut then = BTreeMap::new();
        for v in self.log.iter().take_while(|v| v.resource_version <= version) {
            if v.key.resource != *resource || !(namespace.is_empty() || v.key.namespace == namespace) {
                continue;
            }
            match v.change {
                ChangeKind::Deleted => then.remove(&v.key),
                _ => then.insert(v.key.clone(), v.object.clone()),
            };
        }
        then.into_iter().collect()
    }

    /// Five characters as `generateName` appends them.
    pub fn suffix(&mut self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5)
            .filter_map(|_| ALPHABET.get(self.rng.usize(..ALPHABET.len())))
            .map(|b| char::from(*b))
            .collect()
    }

    /// POST.
    pub fn create(
        &mut self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let generate = text(&object, "/metadata/generateName").to_string();
        if text(&object, "/metadata/name").is_empty() && !generate.is_empty() {
            let name = format!("{generate}{}", self.suffix());
            set(&mut object, "/metadata/name", json!(name));
        }
        let name = text(&object, "/metadata/name").to_string();
        let key = Key {
            resource: resource.clone(),
            namespace: namespace.into(),
            name,
        };
        self.decode(resource, &mut object, options)
            .map_err(|why| undecodable(&object, resource, &why))?;
        let given = text(&object, "/metadata/namespace");
        if !given.is_empty() && given != namespace {
            return Err(error::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let home = self.objects.get(&Key::new("", "namespaces", "", namespace));
        if home.is_some_and(|n| is_ending(n)) {
            return Err(error::forbidden(
                &key,
                &format!("unable to create new content in namespace {namespace} because it is being terminated"),
            ));
        }
        let there = self.objects.get(&key).cloned();
        if there.is_none() {
            self.quota(&key)?;
        }
        if !namespace.is_empty() {
            set(&mut object, "/metadata/namespace", json!(namespace));
        }
        remove(&mut object, "/metadata/deletionTimestamp");
        remove(&mut object, "/metadata/deletionGracePeriodSeconds");
        defaults::initial_status(resource, &mut object);
        self.defaulted(resource, &mut object);
        if *resource == Resource::new("", "services") && text(&object, "/spec/type") != "ExternalName" {
            let n = self.uids + 1;
            default(
                &mut object,
                "/spec/clusterIP",
                json!(format!("10.96.{}.{}", n / 250 % 250, n % 250 + 1)),
            );
            let address = object.pointer("/spec/clusterIP").cloned();
            default(&mut object, "/spec/clusterIPs", json!([address]));
        }
        self.uids += 1;
        set(
            &mut object,
            "/metadata/uid",
            json!(format!("00000000-0000-4000-8000-{:012x}", self.uids)),
        );
        set(&mut object, "/metadata/creationTimestamp", json!(self.clock.stamp()));
        remove(&mut object, "/metadata/generation");
        if resource.has_generation() {
            set(&mut object, "/metadata/generation", json!(1));
        }
        self.admitted(&key, &object, None, options)?;
        if !text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(error::unforeseen(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if let Some(old) = there {
            return Err(error::already_exists(&key, is_ending(&old)));
        }
        if options.dry_run {
            return Ok(Arc::new(object));
        }
        Ok(self.append(ChangeKind::Added, key, object, None))
    }

    /// Stores an object as it is, status and uid and all, as a backup is restored; only its version is new.
    pub fn restore(&mut self, object: Value) -> Arc<Value> {
        let key = Key::of(&object);
        let previous = self.get(&key);
        let change = match previous {
            None => ChangeKind::Added,
            Some(_) => ChangeKind::Modified,
        };
        self.append(change, key, object, previous)
    }

    /// Reads an object as its kind, or says why it cannot be read.
    fn decode(&self, resource: &Resource, object: &mut Value, options: WriteOptions) -> Result<(), String> {
        if let Some(definition) = self.definitions.get(resource) {
            let mut unknown = definition.prune(object);
            unknown.extend(validation::decode_metadata(object)?);
            if options.strict {
                validation::refuse_unknown(&unknown)?;
            }
        } else {
            validation::decode(resource, object, options.strict)?;
        }
        validation::tidy(object);
        Ok(())
    }

    fn defaulted(&self, resource: &Resource, object: &mut Value) {
        if let Some(definition) = self.definitions.get(resource) {
            definition.fill(object);
        }
        defaults::fill(resource, object);
    }

    /// PUT. Answers whether the object is new as well: a Lease that is not there is created.
    pub fn replace(
        &mut self,
        key: &Key,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<(Arc<Value>, bool), ApiError> {
        self.decode(&key.resource, &mut object, options)
            .map_err(|why| undecodable(&object, &key.resource, &why))?;
        let version = text(&object, "/metadata/resourceVersion");
        if !version.is_empty() && version.parse::<u64>().is_err() {
            let why = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
            return Err(error::unforeseen(&why));
        }
        let uid = text(&object, "/metadata/uid").to_owned();
        let Some(old) = self.get(key) else {
            if key.resource != Resource::new("coordination.k8s.io", "leases") {
                return Err(error::not_found(key));
            }
            if !uid.is_empty() {
                return Err(error::another(key, &uid, ""));
            }
            remove(&mut object, "/metadata/resourceVersion");
            let made = self.create(&key.resource, &key.namespace, object, options)?;
            return Ok((made, true));
        };
        if version.is_empty() && !key.resource.updates_unconditionally() {
            return Err(error::unversioned(key));
        }
        if !uid.is_empty() && uid != text(&old, "/metadata/uid") {
            return Err(error::another(key, &uid, text(&old, "/metadata/uid")));
        }
        let deletion = old.pointer("/metadata/deletionTimestamp").cloned();
        replace_member(&mut object, "/metadata/deletionTimestamp", deletion);
        Ok((self.update(key, &old, object, options)?, false))
    }

    /// PATCH. Answers whether the object is new as well: server-side apply creates what is not there.
    pub fn patch(
        &mut self,
        key: &Key,
        kind: PatchKind,
        body: &Value,
        options: WriteOptions,
    ) -> Result<(Arc<Value>, bool), ApiError> {
        let Some(old) = self.get(key) else {
            if kind == PatchKind::Apply && !options.status {
                let mut object = body.clone();
                set(&mut object, "/metadata/name", json!(key.name));
                let made = self.create(&key.resource, &key.namespace, object, options)?;
                return Ok((made, true));
            }
            return Err(error::not_found(key));
        };
        let mut new = (*old).clone();
        patch::apply(kind, &mut new, body)?;
        let made = new.clone();
        self.decode(&key.resource, &mut new, options)
            .map_err(|why| error::invalid_patch(&patch::quoted(kind, body, &made), &why))?;
        let name = text(&new, "/metadata/name");
        if name != key.name {
            return Err(error::misnamed(name, &key.name));
        }
        Ok((self.update(key, &old, new, options)?, false))
    }

    /// What PUT and PATCH share: concurrency, isolation of status, immutable metadata, generation, finalizers.
    fn update(
        &mut self,
        key: &Key,
        old: &Arc<Value>,
        mut new: Value,
        options: WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let named = text(&new, "/metadata/resourceVersion");
        if !named.is_empty() && named != text(old, "/metadata/resourceVersion") {
            return Err(error::conflict(key));
        }
        for field in ["uid", "deletionTimestamp"] {
            let given = text(&new, &format!("/metadata/{field}"));
            if !given.is_empty() && given != text(old, &format!("/metadata/{field}")) {
                let cause = Cause::value(&format!("metadata.{field}"), &json!(given), "field is immutable");
                return Err(error::invalid(key, &[cause]));
            }
        }
        let status = new.get("status").cloned();
        if options.status {
            new = (**old).clone();
            replace_member(&mut new, "/status", status);
        } else if key.resource.has_status() {
            replace_member(&mut new, "/status", old.get("status").cloned());
        }
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            let at = format!("/metadata/{field}");
            replace_member(&mut new, &at, old.pointer(&at).cloned());
        }
        for field in ["apiVersion", "kind"] {
            let at = format!("/{field}");
            replace_member(&mut new, &at, old.pointer(&at).cloned());
        }
        self.defaulted(&key.resource, &mut new);
        self.admitted(key, &new, Some(old), options)?;
        if options.dry_run {
            bump_generation(key, old, &mut new);
            return Ok(Arc::new(new));
        }
        Ok(self.commit(key, old, new))
    }

    /// Stores a changed object; nothing happens when nothing changed, and an object that only waited for finalizers goes.
    fn commit(&mut self, key: &Key, old: &Arc<Value>, mut new: Value) -> Arc<Value> {
        set(
            &mut new,
            "/metadata/resourceVersion",
            json!(text(old, "/metadata/resourceVersion")),
        );
        if new == **old {
            return old.clone();
        }
        bump_generation(key, old, &mut new);
        // A pod with a grace period left waits for its kubelet even without finalizers.
        let graceful = int(&new, "/metadata/deletionGracePeriodSeconds").is_some_and(|s| s > 0);
        let leaving = is_ending(&new) && !graceful;
        if leaving && items(&new, "/metadata/finalizers").is_empty() {
            self.objects.remove(key);
            // Watches are told the object as it was stored last; the writer is answered what would have been stored, under
            // the version that it had.
            self.append(ChangeKind::Deleted, key.clone(), (**old).clone(), Some(old.clone()));
            return Arc::new(new);
        }
        self.append(ChangeKind::Modified, key.clone(), new, Some(old.clone()))
    }

    /// Changes an object as somebody inside the cluster would: at once, status and all. None when it does not exist.
    pub fn edit(&mut self, key: &Key, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
        let old = self.get(key)?;
        let mut new = (*old).clone();
        change(&mut new);
        Some(self.commit(key, &old, new))
    }

    /// DELETE. Answers the object as it was left, and whether it is gone.
    pub fn delete(&mut self, key: &Key, options: &DeleteOptions) -> Result<(Arc<Value>, bool), ApiError> {
        let old = self.get(key).ok_or_else(|| error::not_found(key))?;
        for (field, at, wanted) in [
            ("UID", "/metadata/uid", &options.uid),
            (
                "ResourceVersion",
                "/metadata/resourceVersion",
                &options.resource_version,
            ),
        ] {
            if let Some(wanted) = wanted.as_deref().filter(|w| *w != text(&old, at)) {
                return Err(error::precondition(key, field, wanted, text(&old, at)));
            }
        }
        if options.dry_run {
            return Ok((old, true));
        }
        let mut new = (*old).clone();
        let finalizer = match options.propagation.as_deref() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer.filter(|f| !items(&old, "/metadata/finalizers").iter().any(|x| x == f)) {
            let mut list = items(&old, "/metadata/finalizers").to_vec();
            list.push(json!(finalizer));
            set(&mut new, "/metadata/finalizers", Value::Array(list));
        }
        let grace = self.grace(key, &old, options);
        if items(&new, "/metadata/finalizers").is_empty() && grace == 0 {
            self.objects.remove(key);
            return Ok((self.append(ChangeKind::Deleted, key.clone(), new, Some(old)), true));
        }
        let until = self
            .clock
            .now()
            .saturating_add(jiff::SignedDuration::from_secs(grace))
            .unwrap_or(Timestamp::MAX);
        if !is_ending(&old) {
            set(
                &mut new,
                "/metadata/deletionTimestamp",
                json!(super::super::clock::stamp(until)),
            );
            set(&mut new, "/metadata/deletionGracePeriodSeconds", json!(grace));
            if let Some(generation) = int(&new, "/metadata/generation") {
                set(&mut new, "/metadata/generation", json!(generation + 1));
            }
        }
        if new == *old {
            return Ok((old, false));
        }
        Ok((self.append(ChangeKind::Modified, key.clone(), new, Some(old)), false))
    }

    /// Seconds a pod that a node runs may take to end; zero for everything else.
    fn grace(&self, key: &Key, pod: &Value, options: &DeleteOptions) -> i64 {
        if key.resource != Resource::new("", "pods") || text(pod, "/spec/nodeName").is_empty() {
            return 0;
        }
        options
            .grace_period
            .or_else(|| int(pod, "/spec/terminationGracePeriodSeconds"))
            .unwrap_or(30)
            .max(0)
    }

    /// Removes an object outright, as a kubelet does with a pod that has ended.
    pub fn purge(&mut self, key: &Key) {
        if let Some(old) = self.objects.remove(key) {
            self.append(ChangeKind::Deleted, key.clone(), (*old).clone(), Some(old));
        }
    }

    fn append(&mut self, change: ChangeKind, key: Key, mut object: Value, previous: Option<Arc<Value>>) -> Arc<Value> {
        self.version += 1;
        set(
            &mut object,
            "/metadata/resourceVersion",
            json!(self.version.to_string()),
        );
        let object = Arc::new(object);
        if change != ChangeKind::Deleted {
            self.objects.insert(key.clone(), object.clone());
        }
        let at = self.clock.now();
        self.log.push(Arc::new(Version {
            resource_version: self.version,
            at,
            change,
            key,
            object: object.clone(),
            previous,
        }));
        object
    }

    fn admitted(&self, key: &Key, new: &Value, old: Option<&Value>, options: WriteOptions) -> Result<(), ApiError> {
        validation::check(key, new, old)?;
        let definition = self.definitions.get(&key.resource);
        let causes = definition.map(|d| d.check(new, options.status)).unwrap_or_default();
        if !causes.is_empty() {
            return Err(error::invalid(key, &causes));
        }
        self.admissions.iter().try_for_each(|rule| rule(key, new, old))
    }

    /// ResourceQuotas count pods, which is how a quota shows itself to a Deployment.
    fn quota(&self, key: &Key) -> Result<(), ApiError> {
        if key.resource != Resource::new("", "pods") {
            return Ok(());
        }
        for (quota, object) in self.list(&Resource::new("", "resourcequotas"), &key.namespace) {
            let hard = object.pointer("/spec/hard/pods");
            let Some(limit) = hard.and_then(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok())) else {
                continue;
            };
            let used = self.list(&key.resource, &key.namespace).len() as u64;
            if used >= limit {
                let why = format!(
                    "exceeded quota: {}, requested: pods=1, used: pods={used}, limited: pods={limit}",
                    quota.name
                );
                return Err(error::forbidden(key, &why));
            }
        }
        Ok(())
    }
}

fn undecodable(object: &Value, resource: &Resource, why: &str) -> ApiError {
    let version = text(object, "/apiVersion");
    let version = version.rsplit_once('/').map_or(version, |(_, version)| version);
    let kind = resource.kind().unwrap_or(&resource.plural);
    let why = format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}");
    error::bad_request(&why)
}

fn replace_member(object: &mut Value, at: &str, with: Option<Value>) {
    match with {
        Some(value) => set(object, at, value),
        None => {
            remove(object, at);
        }
    }
}

/// The generation counts changes of everything but metadata and status; for Deployments, of annotations too.
fn bump_generation(key: &Key, old: &Value, new: &mut Value) {
    if !key.resource.has_generation() {
        return;
    }
    let spec = |v: &Value| {
        let mut rest = v.clone();
        for field in ["metadata", "status"] {
            remove(&mut rest, &format!("/{field}"));
        }
        rest
    };
    // The Deployment controller writes its revision together with the status, which does not count.
    let annotations = |v: &Value| {
        let mut map = super::super::json::map(v, "/metadata/annotations")
            .cloned()
            .unwrap_or_default();
        map.remove("deployment.kubernetes.io/revision");
        map
    };
    let annotated = key.resource == Resource::new("apps", "deployments") && annotations(old) != annotations(new);
    if annotated || spec(old) != spec(new) {
        let generation = int(old, "/metadata/generation").unwrap_or(0);
        set(new, "/metadata/generation", json!(generation + 1));
    }
}
