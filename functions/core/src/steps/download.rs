//! PublishLink, DownloadExport and RevokeLink: the way from an export to whoever it belongs to.

use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::presigning::PresigningConfig;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::export::link::ExportLinks;
use crate::export::parts::Part;
use crate::export::{self, hold_of};
use crate::link::Token;
use crate::mail::escaped;
use crate::page::{method, page, queried, see_other};
use crate::postgres::Database;
use crate::registry::exports::{self, Export, State};
use crate::registry::fence::{self, Actor};
use crate::registry::{self, Record, holds};
use crate::request::StepCall;
use crate::step::{Step, log_tenant};
use crate::tenant::Status;

/// How long the address that a click leads to works: for as long as a download takes to begin.
const DOWNLOAD: Duration = Duration::from_secs(300);

/// Makes the export's link work, and lets the hold count from there.
pub struct PublishLink {
    registry: Database,
    links: ExportLinks,
    link_seconds: f64,
    hold_seconds: f64,
}

impl PublishLink {
    /// Reads REGISTRY_SECRET, EXPORT_KEY_SECRET, LINK_SECONDS and HOLD_SECONDS.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing or no number.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(PublishLink {
            registry: Database::registry(env)?,
            links: ExportLinks::from_env(env)?,
            link_seconds: env.number("LINK_SECONDS")?,
            hold_seconds: env.number("HOLD_SECONDS")?,
        })
    }

    /// The machine's way: the link of the hold's export, then the hold. Again changes nothing.
    async fn publish(&self, record: &Record, execution: &str, actor: &Actor) -> Result<Value, StepError> {
        let tenant = &record.tenant;
        let client = self.registry.client().await?;
        let hold = holds::open_hold(&*client, tenant.id).await?;
        let published = hold.is_some_and(|hold| hold.state == holds::State::Held);
        drop(client);
        if !published {
            let hold = hold_of(&self.registry, record, actor).await?;
            let client = self.registry.client().await?;
            let export = exports::current(&*client, tenant.id, hold).await?;
            let Some(export) = export.filter(|export| export.state == State::Finished) else {
                return Err(StepError::Conflict(format!(
                    "tenant {} ({}) has no finished export for its hold: there is nothing to link to",
                    tenant.slug, tenant.id
                )));
            };
            if export.generation == 0 {
                drop(client);
                self.open(&export, actor).await?;
            }
        }
        let client = self.registry.client().await?;
        let hold = holds::publish(&client, tenant.id, execution, self.hold_seconds).await?;
        Ok(json!({ "tenant_id": tenant.id, "expires_at": hold.expires_at }))
    }

    /// By hand: another link to the newest export, where the one there was was lost or revoked. The old one ends. The hold stays,
    /// and its owner may be told anew.
    async fn renew(&self, record: &Record, actor: &Actor) -> Result<Value, StepError> {
        let tenant = &record.tenant;
        let export = exports::newest_finished(&*self.registry.client().await?, tenant.id).await?;
        let Some(export) = export else {
            return Err(StepError::Conflict(format!("tenant {} ({}) has no finished export", tenant.slug, tenant.id)));
        };
        self.open(&export, actor).await?;
        holds::untold(&*self.registry.client().await?, tenant.id).await?;
        let opened = exports::link(&*self.registry.client().await?, export.id).await?;
        let generation = opened.map(|opened| opened.export.generation);
        Ok(json!({ "tenant_id": tenant.id, "export_id": export.id, "generation": generation }))
    }

    async fn open(&self, export: &Export, actor: &Actor) -> Result<(), StepError> {
        let generation = export.generation + 1;
        let token = self.links.token(export, generation).await?;
        let client = self.registry.client().await?;
        exports::open_link(&*client, export, generation, &token.hash(), self.link_seconds, &actor.to_string()).await
    }
}

#[async_trait]
impl Step for PublishLink {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        match &call.actor {
            Actor::Execution(execution) => {
                fence::check(&record, &call.actor, &[Status::Suspended])?;
                self.publish(&record, execution, &call.actor).await
            }
            // No fence, which an execution holds for all of the hold: a link changes nothing of the tenant's.
            Actor::Manual(_) => self.renew(&record, &call.actor).await,
        }
    }
}

/// Ends the links to a tenant's exports at once, for operators. What is being downloaded goes on for minutes at most.
pub struct RevokeLink {
    registry: Database,
}

impl RevokeLink {
    /// Reads REGISTRY_SECRET.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(RevokeLink { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for RevokeLink {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        if !matches!(call.actor, Actor::Manual(_)) {
            let rule = "must be manual:<who>: only a person revokes a link".to_owned();
            return Err(StepError::InvalidRequest(vec![Problem { field: "execution".into(), rule }]));
        }
        let client = self.registry.client().await?;
        let record = registry::read(&*client, &call.tenant).await?;
        log_tenant(&record.tenant);
        // No fence: it changes nothing of the tenant's, whose export outlives it.
        let revoked = exports::revoke_links(&*client, record.tenant.id, &call.actor.to_string()).await?;
        let outcome = if revoked.is_empty() { "no link was working" } else { "revoked" };
        Ok(json!({ "tenant_id": record.tenant.id, "outcome": outcome, "exports": revoked }))
    }
}

/// The page behind an export's link. It knows the export alone: the tenant may be gone.
pub struct DownloadExport {
    registry: Database,
    s3: aws_sdk_s3::Client,
    bucket: String,
}

/// Why a link does not work, as its owner is told. The statuses are HTTP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// No export, or not its token. Which of the two is nobody's business.
    Unknown,
    Expired,
    Revoked,
    /// The link is good, and there is no such part.
    NoSuchPart,
}

impl Refusal {
    fn page(self) -> Value {
        let (status, title, text) = match self {
            Refusal::Unknown => (404, "This link is not known", "Open it as it is in the mail, whole."),
            Refusal::Expired => (410, "This link has expired", "The export is deleted."),
            Refusal::Revoked => (410, "This link was revoked", "Ask whoever sent it to you for another one."),
            Refusal::NoSuchPart => (404, "There is no such file", "Go back to the list of files."),
        };
        page(status, title, &format!("<p>{text}</p>"))
    }
}

impl DownloadExport {
    /// Reads REGISTRY_SECRET and EXPORTS_BUCKET.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(DownloadExport {
            registry: Database::registry(env)?,
            s3: crate::aws::s3(&env.aws),
            bucket: env.required("EXPORTS_BUCKET")?,
        })
    }

    /// The export that a token opens.
    async fn opened(&self, text: &str) -> Result<Result<Export, Refusal>, StepError> {
        let Some(token) = Token::parse(text) else { return Ok(Err(Refusal::Unknown)) };
        let found = exports::link(&*self.registry.client().await?, token.id).await?;
        Ok(match found.filter(|link| token.is(&link.token_hash)) {
            None => Err(Refusal::Unknown),
            Some(link) if link.revoked => Err(Refusal::Revoked),
            Some(link) if link.expired => Err(Refusal::Expired),
            Some(link) => Ok(link.export),
        })
    }

    async fn answer(&self, request: &Value, looks_only: bool) -> Result<Value, StepError> {
        let text = queried(request, "token");
        let export = match self.opened(text).await? {
            Ok(export) => export,
            Err(refusal) => return Ok(refusal.page()),
        };
        let number = queried(request, "part");
        let client = self.registry.client().await?;
        if number.is_empty() {
            return Ok(listing(&exports::parts(&*client, export.id).await?, text));
        }
        let part = match number.parse() {
            Ok(number) => exports::part_of(&*client, export.id, number).await?,
            Err(_) => None,
        };
        let Some(part) = part.filter(|part| part.made.is_some()) else { return Ok(Refusal::NoSuchPart.page()) };
        if looks_only {
            return Ok(page(200, "Ready", ""));
        }
        let address = self.address(&export, &part).await?;
        exports::record_download(&*client, &export, part.number).await?;
        tracing::info!(export = %export.id, part = part.number, "a part of an export is downloaded");
        Ok(see_other(&address))
    }

    /// An address of the part's object that works for minutes.
    async fn address(&self, export: &Export, part: &Part) -> Result<String, StepError> {
        let unsigned = |error: &dyn std::fmt::Display| StepError::Unexpected(format!("signing a download: {error}"));
        let expiry = PresigningConfig::expires_in(DOWNLOAD).map_err(|error| unsigned(&error))?;
        let key = export::prefix_of(&export.tenant.to_string(), &export.id.to_string()) + &part.name;
        let get = self.s3.get_object().bucket(&self.bucket).key(key);
        let get = get.response_content_disposition(format!("attachment; filename=\"{}\"", part.name));
        let signed =
            get.response_cache_control("no-store").presigned(expiry).await.map_err(|error| unsigned(&error))?;
        Ok(signed.uri().to_owned())
    }
}

#[async_trait]
impl Step for DownloadExport {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let answer = match method(input) {
            "GET" => self.answer(input, false).await,
            // Mail programs look before a person does: that is no click.
            "HEAD" => self.answer(input, true).await.map(|mut answer| {
                answer["body"] = json!("");
                answer
            }),
            _ => Ok(page(405, "Not here", "<p>Open the link as it is in the mail.</p>")),
        };
        // A person reads this: what went wrong is for the log.
        answer.or_else(|error| {
            tracing::error!(error = error.name(), %error, "an export could not be handed out");
            Ok(page(503, "That did not work", "<p>Try again in a minute.</p>"))
        })
    }
}

/// The page with all files.
fn listing(parts: &[Part], token: &str) -> Value {
    let mut rows = String::new();
    for part in parts {
        let Some(made) = &part.made else { continue };
        let _ = writeln!(
            rows,
            "<tr><td><a href=\"?token={}&amp;part={}\">{}</a></td><td>{}</td><td><code>{}</code></td></tr>",
            escaped(token),
            part.number,
            escaped(&part.name),
            made.bytes,
            escaped(&made.sha256)
        );
    }
    let content = format!(
        "<p>Save all files in one directory. <code>manifest.json</code> says what is in them; \
         <code>psql --no-psqlrc --file restore.sql</code>, run there, restores the tables into an empty database.</p>\n\
         <table><thead><tr><th>File</th><th>Bytes</th><th>SHA-256</th></tr></thead><tbody>\n{rows}</tbody></table>"
    );
    page(200, "Your data", &content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::parts::{Bounds, Uploaded};

    #[test]
    fn every_refusal_is_a_page_that_nobody_keeps() {
        for refusal in [Refusal::Unknown, Refusal::Expired, Refusal::Revoked, Refusal::NoSuchPart] {
            let page = refusal.page();
            assert!(matches!(page["statusCode"].as_u64(), Some(404 | 410)));
            assert_eq!(page["headers"]["cache-control"], "no-store");
        }
    }

    #[test]
    fn names_are_text_on_the_page() {
        let mut part = Part::new("<b>\"&.csv".to_owned(), Bounds::Schema);
        part.made = Some(Uploaded { bytes: 1, sha256: "ab".into(), etag: String::new(), items: None, listing: None });
        let page = listing(&[part], "t\"><script>");
        let body = page["body"].as_str().expect("a body");
        assert!(
            body.contains("&lt;b&gt;&quot;&amp;.csv") && !body.contains("<b>") && !body.contains("<script>"),
            "{body}"
        );
    }
}
