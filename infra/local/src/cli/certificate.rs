//! Verifying a certificate of deletion offline: a file, the fingerprint of a key, and nothing else.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use tenantry_core::certificate::{Payload, Refusal, verify as verified};

use crate::progress::print;

/// Prints what the certificate certifies, or why it does not hold; the exit code tells scripts.
pub(super) fn verify(file: &Path, key: &str, json: bool) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    match verified(&text, key) {
        Ok(payload) if json => print(&json!({ "valid": true, "certifies": payload }).to_string()),
        Ok(payload) => print(&words(&payload)),
        Err(refusal) => {
            if json {
                print(&json!({ "valid": false, "why": refusal.to_string() }).to_string());
            } else {
                print(&format!("NOT VALID: {refusal}"));
            }
            return Ok(ExitCode::from(code(&refusal)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn code(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::UnknownKey { .. } => 3,
        Refusal::Changed => 4,
        Refusal::Malformed(_) => 5,
    }
}

/// What is certified, for people.
pub(super) fn words(payload: &Payload) -> String {
    let Payload { tenant_id, deleted_at, kind, reason, backups_gone_by, histories_gone_by, .. } = payload;
    let mut text = format!(
        "VALID: tenant {tenant_id} was deleted at {deleted_at} ({kind}, {reason}).\n\
         Backups with its data are gone by {backups_gone_by}, executions' histories by {histories_gone_by}."
    );
    for system in &payload.downstream {
        text += &match &system.confirmed_at {
            Some(at) => format!("\n{} ({}) confirmed at {at}.", system.system, system.kind),
            None => format!("\n{} ({}) did NOT confirm in time.", system.system, system.kind),
        };
    }
    text
}
