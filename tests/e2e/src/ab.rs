//! ApacheBench: many requests as fast as they are answered, and how many of them had the feature.
//!
//! The feature asked for is a page that version 1 does not have. So what version 1 answers is 404, which `ab` counts,
//! and which its log of every answer's head tells from any other failure.

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cluster::Cluster,
    load::{Request, burst},
    process::attempt,
};

/// Connections that `ab` keeps busy. A few suffice for both cores; many would only make the others wait.
const CONNECTIONS: u32 = 4;

/// More requests than this, which take a second, wait for their turn.
const MOST_BESIDE_OTHERS: u32 = 2_000;

/// What `ab` counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Answers.
    pub total: u32,
    /// Those with the page.
    pub with_page: u32,
}

/// How many requests may be left without an answer and sent again. When nginx is configured anew, it closes connections
/// that are kept alive; a browser sends again what it had just written there, and `ab` does not.
const MOST_CUT_OFF: u32 = 20;

/// Counts `count` answers: how many of them had the page.
pub fn ab(cluster: &Cluster, request: &Request, count: u32) -> Result<Counted> {
    let _alone = (count > MOST_BESIDE_OTHERS).then(burst);
    let mut counted = Counted { total: 0, with_page: 0 };
    while counted.total < count {
        let left = count - counted.total;
        let more = read(&run(cluster, request, left)?)?;
        ensure!(more.total > 0, "of {left} requests none got an answer");
        counted.total += more.total;
        counted.with_page += more.with_page;
    }
    Ok(counted)
}

/// The log of `ab`.
fn run(cluster: &Cluster, request: &Request, count: u32) -> Result<String> {
    let (connections, count) = (CONNECTIONS.min(count).to_string(), count.to_string());
    // -l: answers differ in length, which is no failure here. -r: go on where a connection is cut off. -v 2: every
    // answer's head.
    let mut command = cluster.beside("ab", &["-q", "-k", "-l", "-r", "-v2", "-s15"]);
    command.args(["-c", &connections, "-n", &count]);
    for line in request.header_lines() {
        command.args(["-H", &line]);
    }
    command.arg(request.url(cluster));
    let ended = attempt(&mut command, "").context("ab cannot be run: install the package apache2-utils")?;
    ensure!(ended.success, "ab ended early: {}", ended.stderr);
    Ok(ended.stdout)
}

fn read(log: &str) -> Result<Counted> {
    let number = |title: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(title));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok())
    };
    let (Some(sent), Some(failed)) = (number("Complete requests:"), number("Failed requests:")) else {
        bail!("this is not what ab reports: {log}");
    };
    ensure!(failed <= MOST_CUT_OFF, "{failed} of {sent} requests got no answer");
    let with_status = |status: &str| log.lines().filter(|line| line.starts_with(status)).count() as u32;
    let (with_page, without_page) = (with_status("HTTP/1.1 200 "), with_status("HTTP/1.1 404 "));
    let total = with_page + without_page;
    ensure!(
        total + failed >= sent,
        "of {sent} requests {with_page} were answered 200 and {without_page} 404, {failed} not at all, and the rest otherwise"
    );
    // The line is there only where there was one.
    let other_than_2xx = number("Non-2xx responses:").unwrap_or_default();
    ensure!(
        other_than_2xx == without_page,
        "ab counted {other_than_2xx} answers other than 2xx, and its log has {without_page}"
    );
    Ok(Counted { total, with_page })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(statuses: &[(&str, usize)], failed: u32) -> String {
        let head = |status: &str| format!("LOG: header received:\nHTTP/1.1 {status}\r\nX-Version: v1\r\n\r\n");
        let heads: String = statuses
            .iter()
            .map(|(status, count)| head(status).repeat(*count))
            .collect();
        let total: usize = statuses.iter().map(|(_, count)| count).sum();
        let bad: usize = statuses
            .iter()
            .filter(|(status, _)| !status.starts_with('2'))
            .map(|(_, count)| count)
            .sum();
        let bad = if bad > 0 {
            format!("Non-2xx responses:      {bad}\n")
        } else {
            String::new()
        };
        format!(
            "{heads}..done\n\nComplete requests:      {total}\nFailed requests:        {failed}\n{bad}Keep-Alive requests:    {total}\n"
        )
    }

    #[test]
    fn answers_with_and_without_the_page_are_counted() {
        let counted = |statuses: &[(&str, usize)]| read(&log(statuses, 0)).unwrap();
        let some = counted(&[("200 OK", 10), ("404 Not Found", 990)]);
        assert_eq!((some.total, some.with_page), (1_000, 10));
        assert_eq!(counted(&[("200 OK", 7)]).with_page, 7);
    }

    #[test]
    fn any_other_answer_and_many_missing_ones_are_errors() {
        let error = |statuses: &[(&str, usize)], failed| read(&log(statuses, failed)).unwrap_err().to_string();
        assert!(error(&[("200 OK", 1), ("502 Bad Gateway", 1)], 0).contains("the rest otherwise"));
        assert!(error(&[("200 OK", 40)], 21).starts_with("21 of 40 requests got no answer"));
        assert!(read("apr_socket_connect(): refused").is_err());
    }
}
