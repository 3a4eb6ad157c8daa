//! A Redis server of the stack's own, which keeps nothing on disk.

use std::path::Path;

use anyhow::Result;

use crate::guard::{Guarded, Program};
use crate::tools::{Tools, free_port};

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
        let mut process = Program {
            name: "redis",
            path: &tools.redis_server,
            args: args.map(str::to_owned).to_vec(),
            environment: Vec::new(),
            user: None,
            directory,
            interrupt: false,
        }
        .start(logs)?;
        process.takes_connections(port).await?;
        Ok(Redis { process, port })
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
