//! The stack that `make up` leaves running: a process of its own holds it, and a file says where it is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::guard::own_executable;
use crate::progress::{Progress, print};
use crate::stack::{Options, Stack};

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const CHECK: Duration = Duration::from_secs(2);
/// The line by which a supervisor says that its stack is up.
const READY: &str = "ready";

/// What is known of the stack that is up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Up {
    /// The supervisor.
    pub pid: i32,
    /// When that process began, in the kernel's ticks: a number that is used again is not it.
    begun: String,
    /// What `make -s env` exports.
    pub exports: BTreeMap<String, String>,
    /// The functions' environment variables.
    pub variables: BTreeMap<String, String>,
    /// The template's outputs.
    pub outputs: BTreeMap<String, String>,
}

/// The directory of the checkout's stack.
pub fn directory(root: &Path) -> PathBuf {
    root.join(".local/stack")
}

impl Up {
    /// The stack that is up in a checkout.
    ///
    /// # Errors
    /// When what is written about it cannot be read.
    pub fn find(root: &Path) -> Result<Option<Self>> {
        let path = directory(root).join("stack.json");
        if !path.is_file() {
            return Ok(None);
        }
        let up: Up =
            serde_json::from_str(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        Ok(Some(up).filter(|up| beginning(up.pid).is_some_and(|begun| begun == up.begun)))
    }

    /// The stack that is up in a checkout.
    ///
    /// # Errors
    /// When none is.
    pub fn expect(root: &Path) -> Result<Self> {
        Up::find(root)?.context("no stack is up in this checkout: run `make up`")
    }

    /// One of the template's outputs.
    ///
    /// # Errors
    /// When the template has none of that name.
    pub fn output(&self, name: &str) -> Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| format!("the template has no output {name}"))
    }
}

/// Starts a supervisor and waits until its stack is up. It lives on when we end, and ends when we are interrupted before.
///
/// # Errors
/// When a stack is up already, or this one does not come up.
pub fn up(root: &Path, json: bool) -> Result<Up> {
    if let Some(up) = Up::find(root)? {
        bail!("a stack is up already (process {}): `make status` shows it, `make down` ends it", up.pid);
    }
    let directory = directory(root);
    std::fs::create_dir_all(&directory)?;
    let log = root.join(".local/supervisor.log");
    let mut command = Command::new(own_executable()?);
    if json {
        command.arg("--json");
    }
    let mut supervisor = command
        .arg("supervise")
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .process_group(0)
        .spawn()?;
    let lines = BufReader::new(supervisor.stdout.take().context("no output")?).lines();
    for line in lines {
        let line = line?;
        if line == READY {
            // From now on it does without us.
            supervisor.stdin.take().context("no input")?.write_all(b"go on\n")?;
            return Up::expect(root);
        }
        print(&line);
    }
    let status = supervisor.wait()?;
    bail!("the stack did not come up ({status}): {}", std::fs::read_to_string(&log)?.trim())
}

/// What `tenantry supervise` does: boots the stack, says so, and holds it until it is told to end.
///
/// # Errors
/// When the stack does not come up, or a part of it ends by itself.
pub async fn supervise(root: &Path, json: bool) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let directory = directory(root);
    let progress = if json { Progress::Json } else { Progress::Plain };
    let options =
        Options { root: root.to_owned(), directory: Some(directory.clone()), progress, tap: None, parameters: &[] };
    let mut taken_over = taken_over();
    let mut stack = tokio::select! {
        stack = Stack::boot(options) => stack?,
        // Whoever started us has gone before the stack was up.
        _ = &mut taken_over => bail!("given up before the stack was up"),
        _ = terminate.recv() => bail!("ended before the stack was up"),
        _ = interrupt.recv() => bail!("ended before the stack was up"),
    };
    let pid = i32::try_from(std::process::id())?;
    let up = Up {
        pid,
        begun: beginning(pid).context("this process is not in /proc")?,
        exports: stack.exports().into_iter().collect(),
        variables: stack.function_variables().into_iter().collect(),
        outputs: stack.outputs().clone().into_iter().collect(),
    };
    let file = directory.join("stack.json");
    write_privately(&file, &serde_json::to_vec_pretty(&up)?)?;
    print(READY);
    let ended = async {
        if taken_over.await.is_err() {
            bail!("given up before the stack was taken over");
        }
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = tokio::time::sleep(CHECK) => stack.check()?,
            }
        }
    }
    .await;
    let _ = std::fs::remove_file(&file);
    stack.shutdown().await?;
    ended
}

/// Resolves when whoever started us says that it goes on without them, and fails when they end before.
fn taken_over() -> oneshot::Receiver<()> {
    let (told, taken_over) = oneshot::channel();
    std::thread::spawn(move || {
        if std::io::stdin().read_exact(&mut [0]).is_ok() {
            let _ = told.send(());
        }
    });
    taken_over
}

/// Ends the stack that is up, and waits until it has ended.
///
/// # Errors
/// When it does not end.
pub fn down(root: &Path) -> Result<bool> {
    let Some(up) = Up::find(root)? else { return Ok(false) };
    kill(Pid::from_raw(up.pid), Signal::SIGTERM)?;
    let begun = Instant::now();
    while beginning(up.pid).is_some_and(|now| now == up.begun) {
        ensure!(begun.elapsed() < PATIENCE, "process {} has not ended after {PATIENCE:?}", up.pid);
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// When a process that lives began. One that has ended and is not yet waited for does not live.
fn beginning(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, in parentheses: the state, and as the twentieth field the beginning.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    fields.nth(18).filter(|_| state != "Z").map(str::to_owned)
}

fn write_privately(path: &Path, text: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_beginning() {
        let own = i32::try_from(std::process::id()).expect("a process id");
        assert_eq!(beginning(own), beginning(own));
        assert!(beginning(own).is_some_and(|begun| begun.parse::<u64>().is_ok_and(|ticks| ticks > 0)));
        assert_eq!(beginning(i32::MAX), None);
    }
}
