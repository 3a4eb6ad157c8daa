//! Child processes that end when the stack does, however it ends.
//!
//! Each is started by `tenantry guard`, which waits for its standard input to end: the stack holds the other end of that
//! pipe, so even a stack that was killed takes its children along. A guard ends its child's whole process group, Lambdas of
//! the emulator included.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, User};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How long a child may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(20);
/// Longer than any server takes to come up that is waited for here.
const PATIENCE: Duration = Duration::from_secs(15);

/// A program to run under a guard.
pub struct Program<'a> {
    /// What it is called in messages and in its log's name.
    pub name: &'static str,
    /// The executable.
    pub path: &'a Path,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Whom it runs as, when not as us.
    pub user: Option<&'a User>,
    /// Where it runs and where its log is written.
    pub directory: &'a Path,
    /// Whether SIGINT ends it cleanly, as PostgreSQL wants it, rather than SIGTERM.
    pub interrupt: bool,
}

/// A running program. Dropping it ends it.
pub struct Guarded {
    name: &'static str,
    guard: Child,
    log: PathBuf,
}

impl Program<'_> {
    /// Starts the program under a guard.
    ///
    /// # Errors
    /// When the guard cannot be started.
    pub fn start(self, logs: &Path) -> Result<Guarded> {
        let log = logs.join(format!("{}.log", self.name));
        let out = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(own_executable()?);
        command.arg("guard");
        if self.interrupt {
            command.arg("--interrupt");
        }
        if let Some(user) = self.user {
            command.arg("--user").arg(&user.name);
        }
        command
            .arg("--")
            .arg(self.path)
            .args(self.args)
            .env_clear()
            .envs(self.environment)
            .current_dir(self.directory)
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            // Out of the terminal's foreground group: Ctrl-C is for the stack, which then ends its guards.
            .process_group(0);
        let guard = command.spawn().with_context(|| format!("starting {}", self.name))?;
        Ok(Guarded { name: self.name, guard, log })
    }
}

impl Guarded {
    /// The program's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails with the end of the log when the program has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        match self.guard.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended ({status}); its log {} ends with\n{}", self.name, self.log.display(), self.tail())
            }
        }
    }

    /// Waits until the program takes connections at a port of loopback.
    ///
    /// # Errors
    /// When it ends or does not come up, with where its log is.
    pub async fn takes_connections(&mut self, port: u16) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            self.check()?;
            ensure!(begun.elapsed() < PATIENCE, "{} does not answer; see {}", self.name, self.log.display());
            sleep(POLL).await;
        }
        Ok(())
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Tells the program to end, without waiting.
    pub fn release(&mut self) {
        self.guard.stdin = None;
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.release();
        // A guard ends within its own bound, so waiting for it ends too.
        let _ = self.guard.wait();
    }
}

/// The `tenantry` executable: ourselves, or the one beside the test that uses this library.
///
/// # Errors
/// When it is not built.
pub fn own_executable() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    if this.file_stem().is_some_and(|name| name == "tenantry") {
        return Ok(this);
    }
    this.ancestors()
        .map(|directory| directory.join("tenantry"))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("no tenantry executable near {}: run `make build`", this.display()))
}

/// What `tenantry guard` does: runs a program in a process group of its own until it ends or our standard input does.
///
/// # Errors
/// When the program cannot be started.
pub fn watch(program: &[String], user: Option<&str>, interrupt: bool) -> Result<ExitCode> {
    let (path, args) = program.split_first().context("no program to guard")?;
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null()).process_group(0);
    if let Some(name) = user {
        let user = User::from_name(name)?.with_context(|| format!("no user {name}"))?;
        command.uid(Uid::as_raw(user.uid)).gid(Gid::as_raw(user.gid));
    }
    let mut child = command.spawn().with_context(|| format!("starting {path}"))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let (told, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = told.send(());
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if ended.recv_timeout(POLL).is_ok() {
            break None;
        }
    };
    let status = match status {
        Some(status) => status,
        None => end(&mut child, group, if interrupt { Signal::SIGINT } else { Signal::SIGTERM })?,
    };
    // Whatever the program started and left behind.
    let _ = killpg(group, Signal::SIGKILL);
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn end(child: &mut Child, group: Pid, signal: Signal) -> Result<ExitStatus> {
    let _ = killpg(group, signal);
    let begun = Instant::now();
    while begun.elapsed() < GRACE {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(POLL);
    }
    let _ = killpg(group, Signal::SIGKILL);
    Ok(child.wait()?)
}
