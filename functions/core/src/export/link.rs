//! The link to an export: derived where it is written into a mail, kept nowhere.

use time::OffsetDateTime;
use tokio_postgres::GenericClient;

use crate::environment::Environment;
use crate::error::StepError;
use crate::link::{LinkKey, Token};
use crate::registry::exports::{self, Export};
use crate::tenant::TenantId;

/// The links of exports.
pub struct ExportLinks {
    key: LinkKey,
}

/// A link, and how long it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportLink {
    /// Where it leads.
    pub url: String,
    /// When it ends.
    pub until: OffsetDateTime,
}

impl ExportLinks {
    /// Reads EXPORT_KEY_SECRET. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ExportLinks { key: LinkKey::from_env(env, "EXPORT_KEY_SECRET", "export")? })
    }

    /// The token of one of an export's links.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub async fn token(&self, export: &Export, generation: i32) -> Result<Token, StepError> {
        self.key.token(export.id, generation).await
    }
}

/// The link to the tenant's newest export, for a mail; `page` is the URL of DownloadExport. `None` where no link works: none was
/// published, or it was revoked, or has expired.
///
/// # Errors
/// When the registry or the key cannot be read.
pub async fn url(
    client: &impl GenericClient,
    links: &ExportLinks,
    page: &str,
    tenant: TenantId,
) -> Result<Option<ExportLink>, StepError> {
    let Some(export) = exports::newest_finished(client, tenant).await? else { return Ok(None) };
    let Some(opened) = exports::link(client, export.id).await? else { return Ok(None) };
    let Some(until) = opened.export.link_expires_at.filter(|_| !opened.expired && !opened.revoked) else {
        return Ok(None);
    };
    let token = links.token(&export, export.generation).await?;
    if !token.is(&opened.token_hash) {
        return Err(StepError::Misconfigured(format!(
            "the link of export {} was derived with another key: publish a new one (publish-link by hand)",
            export.id
        )));
    }
    let url = format!("{}/?token={}", page.trim_end_matches('/'), token.as_str());
    Ok(Some(ExportLink { url, until }))
}
