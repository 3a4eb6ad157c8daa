//! AcceptInvite: the page that an invitation's link leads to, and what its button does. Behind a function URL, for people.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::environment::Environment;
use crate::error::StepError;
use crate::link::Token;
use crate::mail::escaped;
use crate::page::{method, page, queried, see_other};
use crate::postgres::Database;
use crate::registry::invites::{self, State};
use crate::registry::quotas::Decision;
use crate::registry::{self, Record, Selector, audit, contacts, seats};
use crate::resource::database::TenantDatabase;
use crate::step::{Step, log_tenant};
use crate::tenant::{Status, Tenant};

/// The longest body that is read: a form with one token.
const MOST_BYTES: usize = 1024;
/// Who acts, in the audit trail.
const ACTOR: &str = "accept-invite";

/// Answers the requests of a function URL (payload format 2.0).
pub struct AcceptInvite {
    registry: Database,
    database: TenantDatabase,
    base_domain: String,
}

/// Why a link does not work, as its owner is told. The statuses are HTTP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// No invitation, or not its token. Which of the two is nobody's business.
    Unknown,
    Expired,
    Accepted,
    /// The tenant is not in service.
    Closed,
    /// Every seat is taken.
    Full,
}

impl Refusal {
    fn page(self) -> Value {
        let (status, title, text) = match self {
            Refusal::Unknown => (404, "This link is not known", "Open it as it is in the mail, whole."),
            Refusal::Expired => (410, "This link has expired", "Ask for a new invitation."),
            Refusal::Accepted => (409, "This invitation was accepted already", "Log in with your account."),
            Refusal::Closed => (403, "This workspace is not open", "Ask whoever invited you."),
            Refusal::Full => (409, "Every seat is taken", "Ask for one to be released. This link goes on working."),
        };
        page(status, title, &format!("<p>{text}</p>"))
    }
}

impl AcceptInvite {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(AcceptInvite {
            registry: Database::registry(env)?,
            database: TenantDatabase::from_env(env)?,
            base_domain: env.required("BASE_DOMAIN")?,
        })
    }

    /// The invitation that a token opens, and its tenant.
    async fn opened(&self, text: &str) -> Result<Result<(invites::Invite, Record), Refusal>, StepError> {
        let Some(token) = Token::parse(text) else { return Ok(Err(Refusal::Unknown)) };
        let client = self.registry.client().await?;
        let found = invites::find(&*client, token.id).await?;
        let Some(invite) = found.filter(|invite| token.is(&invite.token_hash)) else {
            return Ok(Err(Refusal::Unknown));
        };
        let record = registry::read(&*client, &Selector::Id(invite.tenant)).await?;
        log_tenant(&record.tenant);
        Ok(match (invite.state, record.tenant.status) {
            (State::Revoked, _) => Err(Refusal::Unknown),
            (State::Expired, _) => Err(Refusal::Expired),
            (State::Accepted, _) => Err(Refusal::Accepted),
            (State::Open, Status::Active) => Ok((invite, record)),
            (State::Open, _) => Err(Refusal::Closed),
        })
    }

    /// Takes a seat, makes the administrator, then uses the invitation up: a crash in between leaves a link that still works, and
    /// the same administrator on the same seat.
    async fn accept(&self, text: &str) -> Result<Value, StepError> {
        let (invite, record) = match self.opened(text).await? {
            Ok(opened) => opened,
            Err(refusal) => return Ok(refusal.page()),
        };
        let owner = contacts::owner(&*self.registry.client().await?, record.tenant.id).await?;
        let Some(owner) = owner else { return Ok(Refusal::Unknown.page()) };
        if !self.seat(&record.tenant, invite.id).await? {
            return Ok(Refusal::Full.page());
        }
        let user = self.database.add_owner(&record.tenant, invite.id, &owner).await?;
        if user != invite.id {
            // The product has that address already: the seat is that user's.
            let (tenant, mut client) = (Selector::Id(record.tenant.id), self.registry.client().await?);
            seats::release(&mut client, &tenant, &invite.id.to_string(), ACTOR).await?;
            drop(client);
            if !self.seat(&record.tenant, user).await? {
                return Ok(Refusal::Full.page());
            }
        }
        let client = self.registry.client().await?;
        if !invites::accept(&*client, &invite).await? {
            return Ok(Refusal::Accepted.page());
        }
        let detail = json!({ "invite": invite.id });
        audit::record(&*client, record.tenant.id, ACTOR, "invite accepted", &detail).await?;
        tracing::info!(invite = %invite.id, "an invitation was accepted");
        let host = record.tenant.host(&self.base_domain);
        Ok(see_other(&format!("https://{host}/")))
    }

    /// Whether a user has a seat now.
    async fn seat(&self, tenant: &Tenant, user: Uuid) -> Result<bool, StepError> {
        let mut client = self.registry.client().await?;
        let (_, decision) = seats::reserve(&mut client, &Selector::Id(tenant.id), &user.to_string(), ACTOR).await?;
        Ok(matches!(decision, Decision::Granted(_)))
    }

    async fn show(&self, text: &str) -> Result<Value, StepError> {
        let record = match self.opened(text).await? {
            Ok((_, record)) => record,
            Err(refusal) => return Ok(refusal.page()),
        };
        // A button, because mail programs open links by themselves, and would use the invitation up.
        let form = format!(
            "<p>You will be the owner of {}.</p><form method=\"post\"><input type=\"hidden\" name=\"token\" value=\"{}\">\
             <button>Accept</button></form>",
            record.tenant.slug,
            escaped(text)
        );
        Ok(page(200, "Accept the invitation", &form))
    }
}

#[async_trait]
impl Step for AcceptInvite {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let answer = match method(input) {
            "GET" => self.show(queried(input, "token")).await,
            "POST" => self.accept(&posted(input).unwrap_or_default()).await,
            _ => Ok(page(405, "Not here", "<p>Open the link of your invitation.</p>")),
        };
        // A person reads this: what went wrong is for the log.
        answer.or_else(|error| {
            tracing::error!(error = error.name(), %error, "an invitation could not be handled");
            Ok(page(503, "That did not work", "<p>Try again in a minute. Your invitation was not used up.</p>"))
        })
    }
}

/// The token of a posted form.
fn posted(input: &Value) -> Option<String> {
    let body = input["body"].as_str().filter(|body| body.len() <= MOST_BYTES)?;
    let body = match input["isBase64Encoded"].as_bool() {
        Some(true) => String::from_utf8(STANDARD.decode(body).ok()?).ok()?,
        _ => body.to_owned(),
    };
    url::form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "token").map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_posted_form_is_read_in_both_encodings() {
        let plain = json!({"body": "token=a.b"});
        let encoded = json!({"body": STANDARD.encode("x=1&token=a.b"), "isBase64Encoded": true});
        for input in [plain, encoded] {
            assert_eq!(posted(&input).as_deref(), Some("a.b"));
        }
        assert_eq!(posted(&json!({"body": format!("token={}", "a".repeat(MOST_BYTES))})), None);
        assert_eq!(posted(&json!({})), None);
    }

    #[test]
    fn every_refusal_is_a_page_that_nobody_keeps() {
        for refusal in [Refusal::Unknown, Refusal::Expired, Refusal::Accepted, Refusal::Closed, Refusal::Full] {
            let page = refusal.page();
            assert!(page["statusCode"].as_u64().is_some_and(|status| (400..500).contains(&status)));
            assert_eq!(page["headers"]["cache-control"], "no-store");
        }
    }
}
