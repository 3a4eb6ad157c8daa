//! The certificate of a deletion: fetched, kept, and verified as anybody verifies it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tenantry_core::certificate::{Envelope, Payload, Refusal, fingerprint, verify};

use super::super::certificate::words;
use super::scene::{Member, Scene};
use crate::emulator;

const REPORTS: &str = ".local/reports";

fn path(scene: &Scene<'_>, name: &str) -> PathBuf {
    scene.root.join(REPORTS).join(name)
}

/// Leaves a tenant's certificate under this name, verifies it with the key's fingerprint, and shows it.
pub(super) async fn show(scene: &Scene<'_>, member: &Member, name: &str) -> Result<Payload> {
    let (progress, id) = (scene.progress, member.id());
    let kms = aws_sdk_kms::Client::new(&scene.aws);
    let public = kms.get_public_key().key_id(scene.stack.output("CertificateKeyArn")?).send().await?;
    let key = fingerprint(&STANDARD.encode(public.public_key().context("no public key")?)).context("no fingerprint")?;
    let bucket = scene.stack.output("CertificatesBucketName")?;
    let kept = emulator::s3(&scene.aws).get_object().bucket(bucket).key(format!("{id}.json")).send().await?;
    let text = String::from_utf8(kept.body.collect().await?.to_vec())?;
    std::fs::create_dir_all(scene.root.join(REPORTS))?;
    std::fs::write(path(scene, name), &text)?;

    let payload = verify(&text, &key)?;
    ensure!(payload.tenant_id.to_string() == id, "it is another tenant's: {}", payload.tenant_id);
    ensure!(!text.contains(member.slug()), "the certificate names the tenant");
    let mut changed = Envelope::parse(&text)?;
    changed.payload = changed.payload.replacen(&payload.plan, "another", 1);
    ensure!(verify(&changed.to_json()?, &key) == Err(Refusal::Changed), "a changed certificate verifies");

    progress.say(&format!("\nThe certificate is left at {REPORTS}/{name}"));
    progress.say(&format!("  {:<16} {key}", "signed by"));
    let ticket = payload.ticket.as_ref().map_or_else(String::new, |ticket| format!(", ticket {ticket}"));
    let Payload { reason, requested_by, .. } = &payload;
    progress.say(&format!("  {:<16} {reason}, asked for by {requested_by}{ticket}", "because"));
    for line in words(&payload).lines() {
        progress.say(&format!("  {line}"));
    }
    for (store, counts) in payload.deleted.as_object().into_iter().flatten() {
        let counts: Vec<String> = counts.as_object().into_iter().flatten().filter_map(counted).collect();
        let left = &payload.scan[store];
        ensure!(left.as_object().is_some_and(|left| left.keys().all(|kind| kind == "kept")), "{store}: {left} is left");
        if !counts.is_empty() {
            progress.say(&format!("  {store:<16} had {}; has nothing", counts.join(", ")));
        }
    }
    progress.say(&format!("  Verify it offline:\n    make verify-certificate FILE={REPORTS}/{name} KEY={key}"));
    progress.tell(&json!({ "certificate": format!("{REPORTS}/{name}"), "key": key, "certifies": payload }));
    Ok(payload)
}

/// A count of the certificate's, in words.
fn counted((kind, count): (&String, &Value)) -> Option<String> {
    count.as_i64().map(|count| format!("{count} {kind}"))
}

/// What the certificate says is still there, and why.
pub(super) fn what_stays(scene: &Scene<'_>, name: &str) -> Result<()> {
    let envelope = Envelope::parse(&std::fs::read_to_string(path(scene, name))?)?;
    let payload: Payload = serde_json::from_str(&envelope.payload)?;
    scene.progress.say("\nWhat stays by rule, and why, as the certificate has it");
    for (store, found) in payload.scan.as_object().into_iter().flatten() {
        for kept in found["kept"].as_array().into_iter().flatten() {
            let text = |field: &str| kept[field].as_str().unwrap_or_default();
            let until = kept["until"].as_str().map_or_else(String::new, |until| format!(" (until {until})"));
            scene.progress.say(&format!("  {store:<16} {}: {}{until}", text("what"), text("why")));
        }
    }
    Ok(())
}
