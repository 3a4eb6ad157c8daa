//! SignCertificate: what was deleted, and that nothing is left, signed. GetCertificate gives it to operators.

use async_trait::async_trait;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use aws_sdk_s3::primitives::ByteStream;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::Removal;
use crate::aws::classify;
use crate::certificate::{Downstream, Envelope, FORMAT, Payload, fingerprint};
use crate::environment::Environment;
use crate::error::StepError;
use crate::moment;
use crate::postgres::Database;
use crate::registry::deletions::Deletion;
use crate::registry::holds::Hold;
use crate::registry::{self, Record, deletions, downstream};
use crate::request::tenant_asked_about;
use crate::step::{Step, log_tenant};
use crate::tenant::TenantId;

/// Days that Step Functions keeps the history of an execution that has ended (its quota), with ids and counts.
const HISTORY_DAYS: i64 = 90;

/// Signs, and keeps the certificate in the registry and in its bucket.
pub struct SignCertificate {
    kms: aws_sdk_kms::Client,
    key: String,
    s3: aws_sdk_s3::Client,
    bucket: String,
    backup_days: i64,
}

/// Reads a certificate.
pub struct GetCertificate {
    registry: Database,
}

impl SignCertificate {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SignCertificate {
            kms: aws_sdk_kms::Client::new(&env.aws),
            key: env.required("CERTIFICATE_KEY")?,
            s3: crate::aws::s3(&env.aws),
            bucket: env.required("CERTIFICATES_BUCKET")?,
            backup_days: env.number("BACKUP_RETENTION_DAYS")?,
        })
    }

    /// Signs the very bytes of the text. KMS is given their hash: it takes 4,096 bytes at most.
    async fn sign(&self, payload: String) -> Result<Envelope, StepError> {
        let doing = format!("signing a certificate with key {}", self.key);
        let public = self.kms.get_public_key().key_id(&self.key).send().await;
        let public = public.map_err(|error| classify(&doing, &error))?.public_key;
        let public = public.ok_or_else(|| StepError::Unexpected(format!("{doing}: the key has no public half")))?;
        let sign = self
            .kms
            .sign()
            .key_id(&self.key)
            .message(Blob::new(digest(&SHA256, payload.as_bytes()).as_ref().to_vec()))
            .message_type(MessageType::Digest)
            .signing_algorithm(SigningAlgorithmSpec::EcdsaSha256);
        let signature = sign.send().await.map_err(|error| classify(&doing, &error))?.signature;
        let signature = signature.ok_or_else(|| StepError::Unexpected(format!("{doing}: there is no signature")))?;
        Ok(Envelope::new(payload, signature.as_ref(), public.as_ref()))
    }

    /// Puts the certificate where it is kept. Written again, it is another version of the same.
    async fn store(&self, tenant: TenantId, certificate: &str) -> Result<String, StepError> {
        let key = format!("{tenant}.json");
        let put = self.s3.put_object().bucket(&self.bucket).key(&key).content_type("application/json");
        let put = put.body(ByteStream::from(certificate.as_bytes().to_vec())).send().await;
        put.map_err(|error| classify(&format!("storing a certificate in bucket {}", self.bucket), &error))?;
        Ok(key)
    }

    async fn payload(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Payload, StepError> {
        let client = registry.client().await?;
        let tenant = record.tenant.id;
        let Deletion { begun_at, counts, scan, scanned_at, .. } = deletions::read(&*client, tenant).await?;
        let missing =
            |step: &str| StepError::Conflict(format!("tenant {tenant}: {step} has not run yet: run it first"));
        let deleted_at = scanned_at.ok_or_else(|| missing("scan-tenant"))?;
        let sql =
            "SELECT t.created_at, t.activated_at, t.suspended_at, h.created_at, h.published_at, h.ticket, h.waived_by
                   FROM tenants t, holds h WHERE t.id = $1 AND h.id = $2";
        let row = client.query_one(sql, &[&tenant.0, &hold.id]).await?;
        let optional = |column: usize| -> Result<Option<String>, StepError> {
            row.try_get::<_, Option<OffsetDateTime>>(column)?.map(text).transpose()
        };
        let systems = downstream::requests(&*client, tenant).await?;
        let systems = systems.into_iter().map(|request| {
            Ok(Downstream {
                system: request.system,
                kind: request.kind,
                confirmed_at: request.confirmed_at.map(text).transpose()?,
                records: request.records,
            })
        });
        Ok(Payload {
            format: FORMAT.to_owned(),
            tenant_id: tenant.0,
            plan: record.tenant.plan.to_string(),
            isolation: record.tenant.isolation.to_string(),
            region: record.tenant.region.to_string(),
            registered_at: text(row.try_get(0)?)?,
            activated_at: optional(1)?,
            suspended_at: optional(2)?,
            requested_at: text(row.try_get(3)?)?,
            exported_at: optional(4)?,
            begun_at: text(begun_at)?,
            deleted_at: text(deleted_at)?,
            kind: hold.kind.as_str().to_owned(),
            reason: hold.reason.clone(),
            requested_by: who(&hold.requested_by),
            ticket: row.try_get(5)?,
            export_waived_by: row.try_get(6)?,
            deleted: counts.ok_or_else(|| missing("count-tenant"))?,
            scan: scan.ok_or_else(|| missing("scan-tenant"))?,
            downstream: systems.collect::<Result<_, StepError>>()?,
            backups_gone_by: text(deleted_at + Duration::days(self.backup_days))?,
            histories_gone_by: text(deleted_at + Duration::days(HISTORY_DAYS))?,
        })
    }
}

/// Who asked, without an execution's own name, which may be the tenant's.
fn who(requested_by: &str) -> String {
    let machine = requested_by.split(":execution:").nth(1).and_then(|rest| rest.split(':').next());
    machine.map_or_else(|| requested_by.to_owned(), |machine| format!("an execution of {machine}"))
}

/// A moment, to the second.
fn text(at: OffsetDateTime) -> Result<String, StepError> {
    moment::text(at.replace_nanosecond(0).unwrap_or(at))
}

#[async_trait]
impl Removal for SignCertificate {
    async fn act(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let tenant = record.tenant.id;
        let kept = deletions::read(&*registry.client().await?, tenant).await?.certificate;
        let certificate = match kept {
            Some(kept) => kept,
            None => {
                let payload = self.payload(record, hold, registry).await?;
                let payload = serde_json::to_string(&payload);
                let payload =
                    payload.map_err(|error| StepError::Unexpected(format!("writing a certificate: {error}")))?;
                let envelope = self.sign(payload).await?.to_json()?;
                deletions::keep_certificate(&*registry.client().await?, tenant, &envelope).await?
            }
        };
        let key = self.store(tenant, &certificate).await?;
        let fingerprint = Envelope::parse(&certificate).ok().and_then(|envelope| fingerprint(&envelope.public_key));
        Ok(json!({ "bucket": self.bucket, "key": key, "fingerprint": fingerprint }))
    }
}

impl GetCertificate {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(GetCertificate { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for GetCertificate {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let tenant = tenant_asked_about(input)?;
        let client = self.registry.client().await?;
        let record = registry::read(&*client, &tenant).await?;
        log_tenant(&record.tenant);
        let certificate = deletions::read(&*client, record.tenant.id).await?.certificate;
        let certificate = certificate
            .ok_or_else(|| StepError::Conflict(format!("tenant {} has no certificate yet", record.tenant.id)))?;
        serde_json::from_str(&certificate)
            .map_err(|error| StepError::Unexpected(format!("the certificate that is kept is no JSON: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executions_own_name_is_left_out() {
        assert_eq!(who("manual:ada"), "manual:ada");
        let execution = "arn:aws:states:us-east-1:000000000000:execution:offboard-tenant:acme-1a2b";
        assert_eq!(who(execution), "an execution of offboard-tenant");
    }
}
