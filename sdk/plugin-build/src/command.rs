//! Running other programs, with a limit on how long they may do nothing.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a program with a limit is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What a program wrote to its standard output, where it ran well.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a program whose output nobody reads, unless it fails. The limit starts again whenever `progress` answers another number.
pub(crate) fn run_quietly(
    command: &mut Command,
    limit: Duration,
    progress: impl Fn() -> u64,
) -> Result<(), String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it does not start: {error}"))?;
    let stderr = child.stderr.take();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        // What can't be read is only missing from the message.
        let _partial = stderr.map(|mut stderr| stderr.read_to_string(&mut text));
        text
    });
    let success = match wait(&mut child, limit, progress) {
        Ok(Some(success)) => success,
        Ok(None) => {
            // Its own children may hold the pipe open: the reader is left behind, and ends with them.
            let _already_dead = child.kill();
            let _reaped = child.wait();
            return Err(format!("it made no progress for {} s", limit.as_secs()));
        }
        Err(error) => return Err(format!("it can't be waited for: {error}")),
    };
    if success {
        return Ok(());
    }
    let text = reader.join().unwrap_or_default();
    Err(summary(&text))
}

/// Whether the program ran well; none where it was still running at its limit.
fn wait(child: &mut Child, limit: Duration, progress: impl Fn() -> u64) -> io::Result<Option<bool>> {
    let (mut since, mut seen) = (Instant::now(), progress());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        let now = progress();
        if now != seen {
            (since, seen) = (Instant::now(), now);
        } else if since.elapsed() > limit {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// The line that says most: the last that begins like an error, else the last.
fn summary(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error =
        lines.iter().rev().find(|line| line.starts_with("error") || line.starts_with("E:")).or(lines.last());
    error.map_or("it failed without a word".to_owned(), |line| (*line).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_is_told_by_its_error_line() {
        let failed = run_quietly(
            &mut shell("echo error: no reach >&2; echo note >&2; exit 1"),
            Duration::from_secs(9),
            || 0,
        );
        assert_eq!(failed, Err("error: no reach".to_owned()));
        assert_eq!(run_quietly(&mut shell("exit 0"), Duration::from_secs(9), || 0), Ok(()));
        let absent = run_quietly(&mut Command::new("/no/such/program"), Duration::from_secs(9), || 0);
        assert!(absent.unwrap_err().contains("does not start"));
    }

    #[test]
    fn a_program_that_does_nothing_is_ended() {
        let begun = Instant::now();
        let ended = run_quietly(&mut shell("exec sleep 60"), Duration::from_millis(100), || 0);
        assert!(ended.unwrap_err().contains("no progress"));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_gets_on_is_not_ended() {
        let ticks = AtomicU64::new(0);
        let slow = run_quietly(&mut shell("sleep 0.4"), Duration::from_millis(100), || {
            ticks.fetch_add(1, Ordering::Relaxed)
        });
        assert_eq!(slow, Ok(()));
    }
}
