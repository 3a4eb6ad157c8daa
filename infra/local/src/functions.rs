//! The functions' code, in the form that Lambda takes: a zip that holds one executable, `bootstrap`.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Longer than any function of the template runs.
const PATIENCE: Duration = Duration::from_secs(900);
/// How many zips are made at once.
const AT_ONCE: usize = 4;

/// A function's code in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// The function's name without the stack's prefix, which is its binary's.
    pub name: String,
    /// The object's key, which holds the code's hash: other code is another object, so a deployment sees the difference.
    pub key: String,
}

/// Zips the binaries of these names and puts them into a bucket.
///
/// # Errors
/// When one is not built.
pub async fn upload(s3: &Client, bucket: &str, binaries: &Path, names: &[String]) -> Result<Vec<Code>> {
    stream::iter(names.iter().cloned())
        .map(|name| async move {
            let binary = binaries.join(&name);
            let (key, zip) = tokio::task::spawn_blocking(move || pack(&binary)).await??;
            s3.put_object().bucket(bucket).key(&key).body(ByteStream::from(zip)).send().await?;
            Ok(Code { name, key })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// A zip of one binary as `bootstrap`, and the key that its content gives it. The same binary makes the same bytes.
fn pack(binary: &Path) -> Result<(String, Vec<u8>)> {
    ensure!(binary.is_file(), "{} is not built: run `make build`", binary.display());
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    // Light compression: the emulator unpacks it on this machine.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(1))
        .last_modified_time(DateTime::default())
        .unix_permissions(0o755);
    zip.start_file("bootstrap", options)?;
    let code = std::fs::read(binary).with_context(|| binary.display().to_string())?;
    zip.write_all(&code)?;
    let bytes = zip.finish()?.into_inner();
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let hash: String = Sha256::digest(&bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("functions/{name}/{hash}.zip"), bytes))
}

/// The directory that cargo built into: that of the `tenantry` executable.
///
/// # Errors
/// When there is none.
pub fn built() -> Result<PathBuf> {
    let own = crate::guard::own_executable()?;
    Ok(own.parent().context("an executable is in a directory")?.to_path_buf())
}

/// A client that waits for a function's answer as long as functions may run, and calls it once.
pub fn client(aws: &SdkConfig) -> aws_sdk_lambda::Client {
    let patience = TimeoutConfig::builder().operation_timeout(PATIENCE).operation_attempt_timeout(PATIENCE).build();
    let config = aws_sdk_lambda::config::Builder::from(aws).timeout_config(patience);
    aws_sdk_lambda::Client::from_conf(config.retry_config(RetryConfig::disabled()).build())
}

/// The most memory, in bytes, that a process of a deployed function ever had, of those that run on this machine. `name` is the
/// function's whole name.
///
/// # Errors
/// When none runs: it was not called, or its sandbox has ended.
pub fn peak_memory(name: &str) -> Result<f64> {
    let marker = format!("AWS_LAMBDA_FUNCTION_NAME={name}\0");
    let mut most = 0.0_f64;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        if environment.windows(marker.len()).any(|window| window == marker.as_bytes()) {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib: Option<f64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            most = most.max(kib.unwrap_or_default() * 1024.0);
        }
    }
    ensure!(most > 0.0, "no process of {name} runs");
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_code_makes_the_same_key_and_other_code_another() {
        let directory = std::env::temp_dir().join(format!("tenantry-pack-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let binary = directory.join("create-bucket");
        let mut keys = Vec::new();
        for code in ["one", "one", "two"] {
            std::fs::File::create(&binary).and_then(|mut file| file.write_all(code.as_bytes())).expect("a binary");
            keys.push(pack(&binary).expect("a zip").0);
        }
        std::fs::remove_dir_all(&directory).expect("removed");
        assert!(keys[0].starts_with("functions/create-bucket/"), "{keys:?}");
        assert_eq!(keys[0], keys[1]);
        assert_ne!(keys[0], keys[2]);
    }

    #[test]
    fn what_is_not_built_is_named_with_what_to_do() {
        let error = pack(Path::new("/nowhere/create-bucket")).expect_err("nothing there");
        assert!(error.to_string().contains("make build"), "{error}");
    }
}
