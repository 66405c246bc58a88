//! What the picture shows, from what was seen.

use std::collections::BTreeMap;

use canary_e2e::{
    load::{SLOW, Tally},
    release::Moment,
    watch::Seen,
};
use serde_json::Value;

use crate::screen::{Line, Style, wrap};

/// Everything that is shown.
pub struct Picture<'a> {
    /// What happens now, for people.
    pub now: &'a str,
    /// Seconds since the beginning.
    pub seconds: u64,
    /// The release as last seen.
    pub release: Option<&'a Moment>,
    /// The answers of the last seconds.
    pub lately: &'a Tally,
    /// All answers.
    pub all: &'a Tally,
    /// The pods.
    pub pods: &'a [Pod],
}

/// A pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Tag of its image.
    pub version: String,
    /// In one word or two.
    pub state: String,
    /// Whether that is as it should be.
    pub well: bool,
}

impl Picture<'_> {
    /// The picture, for lines of `width` characters.
    pub fn lines(&self, width: usize) -> Vec<Line> {
        let clock = format!("{}:{:02}", self.seconds / 60, self.seconds % 60);
        let mut lines = vec![
            Line::new(Style::Dim, "─".repeat(width)),
            Line::new(Style::Dim, format!("{clock}  ")).and(Style::Bold, self.now),
        ];
        lines.push(Line::empty());
        match self.release {
            None => lines.push(Line::new(Style::Dim, "      no release yet")),
            Some(moment) => {
                let status = &moment.status;
                let style = if matches!(status.phase.as_str(), "RolledBack" | "RollingBack" | "Stalled") {
                    Style::Bad
                } else {
                    Style::V2
                };
                lines.push(
                    Line::new(Style::Dim, "phase ")
                        .and(style, format!("{:<12}", status.phase))
                        .and(Style::Dim, " step ")
                        .and(Style::Bold, format!("{:<5}", status.step))
                        .and(Style::Dim, " weight ")
                        .and(
                            Style::Bold,
                            if status.weight.is_empty() {
                                String::new()
                            } else {
                                format!("{} %", status.weight)
                            },
                        ),
                );
                let message = wrap(&status.message, width.saturating_sub(6).max(20));
                lines.extend(
                    message
                        .into_iter()
                        .take(3)
                        .map(|text| Line::new(Style::Plain, format!("      {text}"))),
                );
            }
        }
        lines.push(Line::empty());
        lines.push(split(self.lately, "last 10 s", width));
        lines.push(totals(self.all));
        lines.push(Line::empty());
        for pod in self.pods.iter().take(5) {
            let version = if pod.version == "v1" { Style::V1 } else { Style::V2 };
            lines.push(
                Line::new(Style::Dim, "pod   ")
                    .and(version, format!("{:<4}", pod.version))
                    .and(Style::Plain, format!("{:<36} ", pod.name))
                    .and(if pod.well { Style::Plain } else { Style::Bad }, pod.state.clone()),
            );
        }
        lines
    }
}

/// The versions' shares of these answers as a bar.
fn split(tally: &Tally, title: &str, width: usize) -> Line {
    let (v1, v2) = (tally.from("v1"), tally.from("v2"));
    let line = Line::new(Style::Dim, format!("{title:<12}"));
    if v1 + v2 == 0 {
        return line.and(Style::Dim, "no answers");
    }
    let cells = width.saturating_sub(46).clamp(10, 60);
    let of_v2 = cells_of(v2, v1 + v2, cells);
    let percent = f64::from(v2) * 100.0 / f64::from(v1 + v2);
    line.and(Style::V1, format!("v1 {v1:>5} "))
        .and(Style::V1, "█".repeat(cells - of_v2))
        .and(Style::V2, "▒".repeat(of_v2))
        .and(Style::V2, format!(" {v2:>5} v2"))
        .and(Style::Bold, format!("  {percent:.1} %"))
}

/// How many of `cells` show `part` of `whole`: none only for nothing, all only for everything.
fn cells_of(part: u32, whole: u32, cells: usize) -> usize {
    let exact = f64::from(part) / f64::from(whole) * cells as f64;
    match exact.round() as usize {
        0 if part > 0 => 1,
        all if all == cells && part < whole => cells - 1,
        some => some,
    }
}

fn totals(all: &Tally) -> Line {
    let alarm = |count: u32| if count == 0 { Style::Plain } else { Style::Bad };
    Line::new(Style::Dim, format!("{:<12}", "all"))
        .and(Style::V1, format!("v1 {:>5}", all.from("v1")))
        .and(Style::Plain, "   ")
        .and(Style::V2, format!("v2 {:>5}", all.from("v2")))
        .and(alarm(all.failed), format!("   failed {}", all.failed))
        .and(
            alarm(all.slow),
            format!("   slower than {} s {}", SLOW.as_secs(), all.slow),
        )
}

/// The pods that exist, from everything a watch of pods saw.
pub fn pods(seen: &[Seen]) -> Vec<Pod> {
    let mut latest = BTreeMap::new();
    for change in seen {
        if change.gone {
            latest.remove(change.name());
        } else {
            latest.insert(change.name().to_owned(), &change.object);
        }
    }
    latest.into_iter().map(|(name, object)| pod(name, object)).collect()
}

fn pod(name: String, object: &Value) -> Pod {
    let image = object["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    let version = image.rsplit_once(':').map_or(image, |(_, tag)| tag).to_owned();
    let container = &object["status"]["containerStatuses"][0];
    let state = &container["state"];
    let not_running = state["waiting"]["reason"]
        .as_str()
        .or(state["terminated"]["reason"].as_str());
    let ready = container["ready"] == true;
    let (state, well) = match not_running {
        _ if !object["metadata"]["deletionTimestamp"].is_null() => ("ending", true),
        Some(reason @ ("ContainerCreating" | "PodInitializing")) => (reason, true),
        Some(reason) => (reason, false),
        None if ready => ("ready", true),
        None => (object["status"]["phase"].as_str().unwrap_or("Pending"), true),
    };
    let restarts = container["restartCount"].as_u64().unwrap_or_default();
    let state = if restarts > 0 {
        format!("{state}, started {} times", restarts + 1)
    } else {
        state.to_owned()
    };
    Pod {
        name,
        version,
        state,
        well,
    }
}

/// What must be added to the lines of `old` to get `new`, each line with `+` or a blank in front: the addition with
/// two lines around it. None where more than an addition in one place makes the difference.
pub fn addition<'a>(old: &[&'a str], new: &[&'a str]) -> Option<Vec<(bool, &'a str)>> {
    const AROUND: usize = 2;
    let same_start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let same_end = old.len() - same_start;
    if new.len() < old.len() || old[same_start..] != new[new.len() - same_end..] {
        return None;
    }
    let added = same_start..new.len() - same_end;
    let shown = added.start.saturating_sub(AROUND)..(added.end + AROUND).min(new.len());
    Some(shown.map(|number| (added.contains(&number), new[number])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use canary_e2e::exercise::{RELEASE, RELEASE_MENDED};
    use serde_json::json;

    #[test]
    fn a_small_share_is_seen_and_a_large_one_leaves_room() {
        assert_eq!(
            [
                cells_of(0, 400, 40),
                cells_of(1, 400, 40),
                cells_of(120, 400, 40),
                cells_of(399, 400, 40),
                cells_of(400, 400, 40)
            ],
            [0, 1, 12, 39, 40]
        );
    }

    #[test]
    fn pods_are_shown_as_they_were_last_seen() {
        let seen = |name: &str, gone: bool, container: Value| Seen {
            at: jiff::Timestamp::UNIX_EPOCH,
            gone,
            object: json!({"metadata": {"name": name}, "spec": {"containers": [{"image": "localhost/app:v2"}]},
                "status": {"phase": "Running", "containerStatuses": [container]}}),
        };
        let crash = json!({"restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let ready = json!({"ready": true, "state": {"running": {}}});
        let pods = pods(&[
            seen("a", false, ready.clone()),
            seen("b", false, ready.clone()),
            seen("c", false, ready.clone()),
            seen("a", true, ready),
            seen("b", false, crash),
        ]);
        let shown: Vec<_> = pods
            .iter()
            .map(|pod| (&*pod.name, &*pod.version, &*pod.state, pod.well))
            .collect();
        assert_eq!(
            shown,
            [
                ("b", "v2", "CrashLoopBackOff, started 3 times", false),
                ("c", "v2", "ready", true)
            ]
        );
    }

    #[test]
    fn the_users_edit_is_an_addition() {
        let text = |yaml: &'static str| yaml.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>();
        let shown = addition(&text(RELEASE), &text(RELEASE_MENDED)).unwrap();
        let added: Vec<_> = shown
            .iter()
            .filter(|(added, _)| *added)
            .map(|(_, line)| line.trim())
            .collect();
        assert_eq!(
            added,
            [
                "template:",
                "spec:",
                "containers:",
                "- name: frontend",
                "command: [python]",
                "args: [app.py]"
            ]
        );
        assert_eq!(shown.len(), added.len() + 4);
        assert_eq!(addition(&["a", "b"], &["a", "c"]), None);
    }

    #[test]
    fn no_line_of_the_picture_depends_on_there_being_a_release() {
        let tally = Tally::default();
        let picture = Picture {
            now: "x",
            seconds: 65,
            release: None,
            lately: &tally,
            all: &tally,
            pods: &[],
        };
        assert!(picture.lines(80).len() >= 6 && picture.lines(5).len() >= 6);
    }
}
