//! The forward-auth service, as it would run beside a proxy.

use std::path::Path;

use anyhow::Result;

use crate::functions;
use crate::guard::{Guarded, Program};
use crate::tools::free_port;

/// A running service. Dropping it ends it, as a process manager would: with SIGTERM first.
pub struct ForwardAuth {
    process: Guarded,
    port: u16,
}

impl ForwardAuth {
    /// Starts the service with these settings at a free port, and waits until it takes connections.
    ///
    /// # Errors
    /// When it is not built or does not come up.
    pub async fn start(settings: &[(&str, &str)], directory: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut environment = vec![("LISTEN".to_owned(), format!("127.0.0.1:{port}"))];
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut process = Program {
            name: "forward-auth",
            path: &functions::built()?.join("forward-auth"),
            args: Vec::new(),
            environment,
            user: None,
            directory,
            interrupt: false,
        }
        .start(directory)?;
        process.takes_connections(port).await?;
        Ok(ForwardAuth { process, port })
    }

    /// Where it is asked: address and port.
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Tells it to end, without waiting.
    pub fn release(&mut self) {
        self.process.release();
    }
}
