//! Plays the script of requests against one API server, and compares the answers with those of another.
//!
//! What differs from run to run is replaced: a resourceVersion by which of its object's versions it is, a uid by which of
//! the uids it is, a time by its precision. `managedFields` are left out: the simulation has none.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// How often an answer that something else in the cluster has to bring about is asked for.
const TRIES: usize = 300;

/// The script: `script.yaml` beside this file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Placeholders and what they stand for.
    pub names: BTreeMap<String, String>,
    /// The requests, in order.
    pub steps: Vec<Step>,
}

/// One request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it is about; the step's name in the recording.
    pub does: String,
    /// Verb and path, with placeholders such as `<ns>`.
    pub send: String,
    /// Content type of the body: merge, json, strategic or apply; a plain object unless told.
    #[serde(default, rename = "as")]
    pub content: Option<String>,
    /// The `Accept` header.
    #[serde(default)]
    pub accept: Option<String>,
    /// The body, with placeholders in its strings.
    #[serde(default)]
    pub body: Option<Value>,
    /// A body that is not JSON.
    #[serde(default)]
    pub raw: Option<String>,
    /// Strings of the answer to be remembered, by pointer.
    #[serde(default)]
    pub keep: BTreeMap<String, String>,
    /// What the answer has to be, by pointer; the request is repeated until it is. Null is for what is not there.
    #[serde(default)]
    pub until: BTreeMap<String, Value>,
    /// Parts of the answer that are nobody's business.
    #[serde(default)]
    pub ignore: Vec<Ignored>,
    /// Where the simulation answers something else.
    #[serde(default)]
    pub known: Vec<Known>,
}

/// A part of an answer that is not compared.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignored {
    /// Where.
    pub at: String,
    /// For what reason: for who reads the script.
    #[serde(rename = "why")]
    _why: String,
}

/// A difference that is known and harmless.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Where.
    pub at: String,
    /// What the simulation has there; null is for nothing.
    pub fake: Value,
    /// Why that is harmless.
    pub why: String,
}

/// A request as it is sent.
pub struct Request {
    /// The method.
    pub verb: String,
    /// Path and query.
    pub path: String,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Accept`.
    pub accept: String,
    /// The body.
    pub body: Option<String>,
}

/// What came back.
pub struct Reply {
    /// The status code.
    pub code: u16,
    /// The body; of a watch, all of it.
    pub body: String,
}

/// An API server.
pub trait Server {
    /// Sends a request and waits for all of the answer.
    fn send(&mut self, request: &Request) -> Result<Reply, String>;
    /// Gives the rest of the cluster a moment.
    fn pause(&mut self);
}

/// The answer to each step, by the step's name.
pub type Answers = Vec<(String, Value)>;

impl Script {
    /// Reads the script.
    pub fn read() -> Result<Self, String> {
        let script: Self = serde_saphyr::from_str(include_str!("script.yaml")).map_err(|e| e.to_string())?;
        let mut seen = BTreeSet::new();
        match script.steps.iter().find(|step| !seen.insert(&step.does)) {
            Some(step) => Err(format!("two steps are called {:?}", step.does)),
            None => Ok(script),
        }
    }

    /// How many differences are listed.
    pub fn known(&self) -> usize {
        self.steps.iter().map(|step| step.known.len()).sum()
    }

    /// Sends everything to `server`, in the namespace `ns`, with CanaryReleases in the API group `group`; the answers,
    /// with what differs from run to run replaced.
    pub fn play(&self, server: &mut impl Server, ns: &str, group: &str) -> Result<Answers, String> {
        let mut names = self.names.clone();
        let mut shown = Vec::new();
        for (name, value) in [("ns", ns), ("group", group)] {
            names.insert(name.into(), value.into());
            shown.push((value.to_owned(), format!("<{name}>")));
        }
        let mut answers = Vec::new();
        for step in &self.steps {
            let failed = |why: String| format!("{}: {why}", step.does);
            let answer = step.take(server, &names).map_err(failed)?;
            for (name, at) in &step.keep {
                let value = answer.pointer(at).and_then(Value::as_str);
                let value = value.ok_or_else(|| failed(format!("there is no {at} to remember in {answer}")))?;
                if at.ends_with("/name") {
                    shown.push((value.to_owned(), format!("<{name} of {}>", value.len())));
                }
                names.insert(name.clone(), value.to_owned());
            }
            answers.push(answer);
        }
        let answers = Normal::of(&answers, shown).all(answers);
        let mut named: Answers = self.steps.iter().map(|step| step.does.clone()).zip(answers).collect();
        for ((_, answer), step) in named.iter_mut().zip(&self.steps) {
            for ignored in &step.ignore {
                take_out(answer, &ignored.at);
            }
        }
        Ok(named)
    }

    /// What is wrong with the simulation's answers, each as a paragraph: differences that are not listed, and listed ones
    /// that are not there any more.
    pub fn differences(&self, real: &Answers, fake: &Answers) -> Vec<String> {
        let mut faults = Vec::new();
        let (mut real, mut fake) = (real.clone(), fake.clone());
        for step in &self.steps {
            let (Some(real), Some(fake)) = (of(&mut real, &step.does), of(&mut fake, &step.does)) else {
                continue;
            };
            for known in &step.known {
                let (truth, ours) = (take_out(real, &known.at), take_out(fake, &known.at));
                if truth == ours {
                    faults.push(format!(
                        "{}: {} is no difference any more: take it off the list ({})",
                        step.does, known.at, known.why
                    ));
                } else if ours.clone().unwrap_or_default() != known.fake {
                    faults.push(format!(
                        "{}: {}: the difference that is listed is another one\n  real    {}\n  fake    {}\n  listed  {}",
                        step.does,
                        known.at,
                        truth.unwrap_or_default(),
                        ours.unwrap_or_default(),
                        known.fake
                    ));
                }
            }
        }
        faults.extend(differences(&real, &fake));
        faults
    }
}

/// Where two runs differ, each as a paragraph.
pub fn differences(expected: &Answers, actual: &Answers) -> Vec<String> {
    let mut faults = Vec::new();
    let mut actual = actual.clone();
    for (name, expected) in expected {
        match of(&mut actual, name) {
            Some(actual) => {
                let mut at = Vec::new();
                compare(Some(expected), Some(actual), String::new(), &mut at);
                faults.extend(at.into_iter().map(|fault| format!("{name}: {fault}")));
            }
            None => faults.push(format!("{name}: recorded, and not a step of the script")),
        }
    }
    for (name, _) in actual {
        if !expected.iter().any(|(recorded, _)| *recorded == name) {
            faults.push(format!("{name}: not recorded"));
        }
    }
    faults
}

fn of<'a>(answers: &'a mut Answers, name: &str) -> Option<&'a mut Value> {
    answers.iter_mut().find(|(n, _)| n == name).map(|(_, answer)| answer)
}

fn compare(expected: Option<&Value>, actual: Option<&Value>, at: String, faults: &mut Vec<String>) {
    match (expected, actual) {
        (Some(Value::Object(expected)), Some(Value::Object(actual))) => {
            let names: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
            for name in names {
                let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                compare(expected.get(name), actual.get(name), at, faults);
            }
        }
        (Some(Value::Array(expected)), Some(Value::Array(actual))) if expected.len() == actual.len() => {
            for (n, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                compare(Some(expected), Some(actual), format!("{at}/{n}"), faults);
            }
        }
        _ if expected != actual => {
            let show = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
            faults.push(format!(
                "{at}\n  expected  {}\n  answered  {}",
                show(expected),
                show(actual)
            ));
        }
        _ => {}
    }
}

/// Removes what `at` points to, a member of an object or an item of a list, and returns it.
fn take_out(value: &mut Value, at: &str) -> Option<Value> {
    let (parent, last) = at.rsplit_once('/')?;
    let last = last.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&last),
        // The others keep their places.
        Value::Array(items) => items.get_mut(last.parse::<usize>().ok()?).map(Value::take),
        _ => None,
    }
}

impl Step {
    fn take(&self, server: &mut impl Server, names: &BTreeMap<String, String>) -> Result<Value, String> {
        let request = self.request(names)?;
        let mut last = Value::Null;
        for _ in 0..TRIES {
            let reply = server.send(&request)?;
            last = answer(&request, &reply);
            let is = |(at, wanted): (&String, &Value)| last.pointer(at).unwrap_or(&Value::Null) == wanted;
            if self.until.iter().all(is) {
                return Ok(last);
            }
            server.pause();
        }
        Err(format!(
            "waited in vain for {:?}; the last answer is {last}",
            self.until
        ))
    }

    fn request(&self, names: &BTreeMap<String, String>) -> Result<Request, String> {
        let send = expand(&self.send, names)?;
        let (verb, path) = send.split_once(' ').ok_or_else(|| format!("{send:?} has no path"))?;
        let mut body = self.body.clone();
        if let Some(body) = &mut body {
            strings(body, &mut |text| {
                *text = expand(text, names)?;
                Ok(())
            })?;
        }
        Ok(Request {
            verb: verb.to_owned(),
            path: path.to_owned(),
            content_type: match self.content.as_deref() {
                None => "application/json",
                Some("merge") => "application/merge-patch+json",
                Some("json") => "application/json-patch+json",
                Some("strategic") => "application/strategic-merge-patch+json",
                Some("apply") => "application/apply-patch+yaml",
                Some("text") => "text/plain",
                Some(other) => return Err(format!("as: {other} is not known")),
            },
            accept: expand(self.accept.as_deref().unwrap_or("application/json"), names)?,
            body: self.raw.clone().or_else(|| body.map(|body| body.to_string())),
        })
    }
}

/// The answer as one value: its code, and its body or the events of a watch.
fn answer(request: &Request, reply: &Reply) -> Value {
    let lines = || reply.body.lines().map(serde_json::from_str);
    let watching = request.path.contains("watch=true");
    match lines().collect::<Result<Vec<Value>, _>>() {
        Ok(events) if watching && reply.code == 200 => json!({"code": reply.code, "events": events}),
        _ => match serde_json::from_str::<Value>(&reply.body) {
            Ok(body) => json!({"code": reply.code, "body": body}),
            Err(_) => json!({"code": reply.code, "text": reply.body}),
        },
    }
}

/// `text` with every `<name>` replaced by what it stands for, which may have names in it too.
fn expand(text: &str, names: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let (name, after) = after.split_once('>').ok_or_else(|| format!("no > in {text:?}"))?;
        let value = names.get(name).ok_or_else(|| format!("<{name}> is not known here"))?;
        out.push_str(before);
        out.push_str(&expand(value, names)?);
        rest = after;
    }
    Ok(out + rest)
}

fn strings(value: &mut Value, change: &mut impl FnMut(&mut String) -> Result<(), String>) -> Result<(), String> {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().try_for_each(|item| strings(item, change)),
        Value::Object(map) => map.values_mut().try_for_each(|member| strings(member, change)),
        _ => Ok(()),
    }
}

/// What the answers of one run have that another run's have not.
struct Normal {
    shown: Vec<(String, String)>,
    /// The versions of each object, by its uid.
    versions: BTreeMap<String, BTreeSet<u64>>,
    /// The newest version of anything so far.
    newest: u64,
}

impl Normal {
    fn of(answers: &[Value], shown: Vec<(String, String)>) -> Self {
        let mut normal = Self {
            shown,
            versions: BTreeMap::new(),
            newest: 0,
        };
        let mut uids = Vec::new();
        answers.iter().for_each(|answer| normal.learn(answer, &mut uids));
        let uids = uids.into_iter().enumerate();
        normal
            .shown
            .extend(uids.map(|(n, uid)| (uid, format!("<uid {}>", n + 1))));
        normal
    }

    fn learn(&mut self, value: &Value, uids: &mut Vec<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.learn(item, uids)),
            Value::Object(map) => {
                if let Some(uid) = map.get("uid").and_then(Value::as_str) {
                    // What the script calls a uid stays as it is.
                    if uid.len() == 36 && !uids.iter().any(|known| known == uid) {
                        uids.push(uid.to_owned());
                    }
                    self.versions.entry(uid.to_owned()).or_default().extend(version(map));
                }
                map.values().for_each(|member| self.learn(member, uids));
            }
            _ => {}
        }
    }

    fn all(mut self, mut answers: Vec<Value>) -> Vec<Value> {
        answers.iter_mut().for_each(|answer| self.clean(answer));
        answers
    }

    fn clean(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => {
                for (raw, shown) in &self.shown {
                    *text = text.replace(raw, shown);
                }
            }
            // Go writes 1.0 as 1.
            Value::Number(number) => {
                if let Some(float) = number.as_f64().filter(|f| number.is_f64() && f.fract() == 0.0) {
                    *value = format!("{float:.0}").parse().map_or(Value::Null, Value::Number);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.clean(item)),
            Value::Object(map) => self.clean_map(map),
            _ => {}
        }
    }

    fn clean_map(&mut self, map: &mut Map<String, Value>) {
        map.remove("managedFields");
        if let Some(version) = version(map) {
            let of = map.get("uid").and_then(Value::as_str);
            let shown = match of.and_then(|uid| self.versions.get(uid)) {
                Some(versions) => format!("version {}", versions.range(..=version).count()),
                None if version >= self.newest => "<now>".to_owned(),
                None => "<past>".to_owned(),
            };
            self.newest = self.newest.max(version);
            map.insert("resourceVersion".into(), shown.into());
        }
        for (name, value) in map.iter_mut() {
            let Some(text) = value.as_str() else { continue };
            let shown = match name.as_str() {
                "creationTimestamp" | "deletionTimestamp" => shape(text),
                "continue" if !text.is_empty() => "<more>".to_owned(),
                "message" => without_versions(text),
                "clusterIP" if text.contains('.') => "<address>".to_owned(),
                _ => continue,
            };
            *value = shown.into();
        }
        if let Some(Value::Array(addresses)) = map.get_mut("clusterIPs") {
            for address in addresses
                .iter_mut()
                .filter(|a| a.as_str().is_some_and(|a| a.contains('.')))
            {
                *address = "<address>".into();
            }
        }
        if map.get("kind").is_some_and(|kind| kind == "Status") {
            in_order(map);
        }
        map.values_mut().for_each(|member| self.clean(member));
    }
}

/// The server puts several causes in any order, and repeats some; the message lists them too.
fn in_order(status: &mut Map<String, Value>) {
    let several = match status.get_mut("details").and_then(|details| details.get_mut("causes")) {
        Some(Value::Array(causes)) => {
            causes.iter_mut().for_each(|cause| {
                if let Some(Value::String(text)) = cause.get_mut("message") {
                    *text = without_objects(text);
                }
            });
            causes.sort_by_key(Value::to_string);
            causes.dedup();
            causes.len() > 1
        }
        _ => false,
    };
    if let Some(Value::String(message)) = status.get_mut("message") {
        *message = without_objects(message);
        if let Some((before, _)) = message.split_once(" is invalid: [").filter(|_| several) {
            *message = format!("{before} is invalid: [<the causes>]");
        }
    }
}

/// A message without the whole object that it quotes.
fn without_objects(message: &str) -> String {
    let quoted = message.split_once("Invalid value: \"{");
    match quoted.and_then(|(before, after)| Some((before, after.rsplit_once("}\": ")?.1))) {
        Some((before, after)) => format!("{before}Invalid value: <the object>: {after}"),
        None => message.to_owned(),
    }
}

fn version(map: &Map<String, Value>) -> Option<u64> {
    map.get("resourceVersion")?.as_str()?.parse().ok()
}

/// A time by its digits, so that its precision is compared.
fn shape(time: &str) -> String {
    time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
}

/// A message without the versions it names: after `version: ` or `resourceVersion:`, and in brackets.
fn without_versions(message: &str) -> String {
    let mut out = String::new();
    let mut rest = message;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, after) = rest.split_at(at);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (digits, after) = after.split_at(end);
        out.push_str(before);
        let names = out.ends_with("version: ") || out.ends_with("[resourceVersion:");
        out.push_str(if names || (out.ends_with('(') && after.starts_with(')')) {
            "<n>"
        } else {
            digits
        });
        rest = after;
    }
    out + rest
}

/// The recording: `recording.json` beside this file, one answer a line.
pub struct Recording {
    /// Version of the server that gave the answers.
    pub server: String,
    /// What it answered.
    pub answers: Answers,
}

impl Recording {
    /// Reads a recording.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("the recording cannot be read: {e}"))?;
        let answers = value
            .get("answers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let named = answers.into_iter().map(|mut answer| {
            let name = take_out(&mut answer, "/step").unwrap_or_default();
            (name.as_str().unwrap_or_default().to_owned(), answer)
        });
        Ok(Self {
            server: value
                .get("server")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            answers: named.collect(),
        })
    }
}
