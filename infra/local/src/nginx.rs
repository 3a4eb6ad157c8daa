//! An nginx with a configuration of somebody's, such as the sample that forward-auth ships.

use std::path::Path;

use anyhow::{Context, Result};

use crate::guard::{Guarded, Program};
use crate::tools::Tools;

/// A running server. Dropping it ends it.
pub struct Nginx {
    _process: Guarded,
}

impl Nginx {
    /// Starts a server with what goes into its http block, and waits until it takes connections at the port that this says. All
    /// that it writes stays in the directory, so it needs no root.
    ///
    /// # Errors
    /// When the configuration is refused, with nginx's own words.
    pub async fn start(tools: &Tools, http: &str, port: u16, directory: &Path) -> Result<Self> {
        let mut main =
            "daemon off;\npid nginx.pid;\nworker_processes 1;\nevents {}\nhttp {\naccess_log off;\n".to_owned();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            main.push_str(&format!("{kind}_temp_path {kind};\n"));
        }
        main.push_str("include http.conf;\n}\n");
        for (name, text) in [("nginx.conf", main.as_str()), ("http.conf", http)] {
            std::fs::write(directory.join(name), text).with_context(|| format!("{name} in {}", directory.display()))?;
        }
        // The configuration's own paths, and its includes, are below the prefix. `-e`: before it is read, there is no other log.
        let prefix = directory.display().to_string();
        let args = ["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"];
        let mut process = Program {
            name: "nginx",
            path: &tools.nginx,
            args: args.map(str::to_owned).to_vec(),
            environment: Vec::new(),
            user: None,
            directory,
            interrupt: false,
        }
        .start(directory)?;
        process.takes_connections(port).await?;
        Ok(Nginx { _process: process })
    }
}
