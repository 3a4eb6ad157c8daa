//! A Redis server of the stack's own, which keeps nothing on disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::guard::{Guarded, Program};
use crate::tools::{Tools, free_port};

const PATIENCE: Duration = Duration::from_secs(15);

/// A running server.
pub struct Redis {
    process: Guarded,
    port: u16,
}

impl Redis {
    /// Starts a server and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(tools: &Tools, directory: &Path, logs: &Path) -> Result<Self> {
        Self::start_at(free_port()?, tools, directory, logs).await
    }

    /// Starts a server at a port that is free, such as that of one that has ended, and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_at(port: u16, tools: &Tools, directory: &Path, logs: &Path) -> Result<Self> {
        let port_text = port.to_string();
        let args = ["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--appendonly", "no"];
        let process = Program {
            name: "redis",
            path: &tools.redis_server,
            args: args.map(str::to_owned).to_vec(),
            environment: Vec::new(),
            user: None,
            directory,
            interrupt: false,
        }
        .start(logs)?;
        let mut server = Redis { process, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            server.check()?;
            ensure!(begun.elapsed() < PATIENCE, "Redis does not answer; see {}", server.process.log().display());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Fails when the server has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}
