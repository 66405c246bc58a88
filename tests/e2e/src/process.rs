//! Child processes: run to the end, or run beside the test and surely stopped.

use std::{
    io::{Read, Write},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How a command ended that was allowed to fail.
#[derive(Debug)]
pub struct Ended {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs `command` with `input` on its standard input, and tells how it ended.
pub fn attempt(command: &mut Command, input: &str) -> Result<Ended> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    // Written from a thread of its own: a child that writes before it has read everything would otherwise wait for
    // us while we wait for it. That it reads nothing at all (broken pipe) shows in how it ends.
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| anyhow!("{shown} has no standard input"))?;
    let input = input.to_owned();
    let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {shown}"))?;
    drop(writer.join());
    Ok(Ended {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs `command` with `input` on its standard input; what it wrote, or what it complained about as an error.
pub fn output_of_input(command: &mut Command, input: &str) -> Result<String> {
    let ended = attempt(command, input)?;
    if !ended.success {
        bail!("{} failed: {}", show(command), ended.stderr);
    }
    Ok(ended.stdout)
}

/// Runs `command`; what it wrote, or what it complained about as an error.
pub fn output(command: &mut Command) -> Result<String> {
    output_of_input(command, "")
}

/// The command as one would type it.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A process beside the test, with its descendants in a process group of its own. Dropping it ends them all.
///
/// The group matters: entering a cluster's namespaces leaves a parent outside and the real command inside, and
/// ending the parent alone would leave the command running.
#[derive(Debug)]
pub struct Background {
    child: Child,
    shown: String,
}

impl Background {
    /// Starts `command` with its standard output to be read by the caller.
    pub fn start(command: &mut Command) -> Result<(Self, ChildStdout)> {
        Self::start_with(command, Stdio::null())
    }

    /// The same with standard input from elsewhere, for a pipeline.
    pub fn start_with(command: &mut Command, stdin: Stdio) -> Result<(Self, ChildStdout)> {
        use std::os::unix::process::CommandExt as _;

        let shown = show(command);
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| anyhow!("{shown} has no standard output"))?;
        Ok((Self { child, shown }, stdout))
    }

    /// Writes `text` to the piped standard input, and closes it.
    pub fn feed(&mut self, text: &str) -> Result<()> {
        let mut stdin = self
            .child
            .stdin
            .take()
            .ok_or_else(|| anyhow!("{} has no standard input", self.shown))?;
        stdin
            .write_all(text.as_bytes())
            .with_context(|| format!("{} does not read", self.shown))
    }

    /// What the process complains about, to be read by the caller; a second call gets nothing.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Asks all of its processes to finish, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {} s", self.shown, within.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        // Fails only where the whole group is gone already.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        drop(self.child.wait());
    }
}

/// Reads everything as text, on a thread of its own.
pub fn read_aside(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(from.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Asks `probe` until it has an answer; after `within`, an error that names `what` and ends with the last thing
/// `probe` had to say against it.
pub fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    const PAUSE: Duration = Duration::from_millis(300);
    let deadline = Instant::now() + within;
    loop {
        match probe()? {
            Ok(answer) => return Ok(answer),
            Err(why) if Instant::now() > deadline => {
                bail!("waited {} s in vain until {what}: {why}", within.as_secs());
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn input_larger_than_a_pipe_holds_comes_back_whole() {
        let large = "0123456789abcdef\n".repeat(50_000);
        assert_eq!(output_of_input(&mut Command::new("cat"), &large).unwrap(), large);
    }

    #[test]
    fn a_failed_command_is_named_with_what_it_said() {
        let error = output(&mut sh("echo no such thing >&2; exit 3"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("sh -c") && error.ends_with("failed: no such thing"),
            "{error}"
        );
    }

    #[test]
    fn dropping_a_background_process_ends_its_children_too() {
        let (process, mut stdout) = Background::start(&mut sh("sleep 1000 & sleep 1000")).unwrap();
        drop(process);
        // Both sleeps hold the pipe open; its end comes only when both are gone.
        assert_eq!(stdout.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn waiting_in_vain_says_for_what_and_what_was_seen() {
        let error = until("the tide turns", Duration::ZERO, || {
            Ok(Err::<(), _>("still ebb".to_owned()))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s in vain until the tide turns: still ebb");
    }
}
