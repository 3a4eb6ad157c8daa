//! Mail to a tenant's people, through SES.

mod leaving;

use aws_sdk_sesv2::Client;
use aws_sdk_sesv2::types::{Body, Content, Destination, EmailContent, Message};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::aws::classify_without_message;
use crate::environment::Environment;
use crate::error::StepError;
use crate::registry::contacts::Contact;
use crate::registry::notices::{Level, Notice};
use crate::tenant::{Metered, Tenant};

/// Writes mail in the name of the stack's sender.
pub struct Mail {
    ses: Client,
    sender: String,
}

/// A link that is to be known to its owner alone, to an invitation or an export. It implements no `Debug`, so that it cannot reach a log by accident.
pub struct Link {
    /// Where it leads.
    pub url: String,
    /// Until when.
    pub until: OffsetDateTime,
}

/// What a mail says, in the two forms it is sent in.
struct Letter {
    subject: String,
    text: String,
    html: String,
}

impl Mail {
    /// Reads SENDER_ADDRESS. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Mail { ses: Client::new(&env.aws), sender: env.required("SENDER_ADDRESS")? })
    }

    /// Tells the owner that the tenant is ready at `host`, with the link by which to become its administrator. Returns SES's id of the message.
    ///
    /// # Errors
    /// When SES does not take the message. The error names the tenant and SES's code, never the address.
    pub async fn send_welcome(
        &self,
        tenant: &Tenant,
        owner: &Contact,
        host: &str,
        link: Option<&Link>,
    ) -> Result<Value, StepError> {
        self.send(tenant, owner, welcome(tenant, owner, host, link)?).await
    }

    /// Tells the owner that a quota is nearly or wholly used up.
    ///
    /// # Errors
    /// As [`Mail::send_welcome`].
    pub async fn send_quota_notice(
        &self,
        tenant: &Tenant,
        owner: &Contact,
        notice: &Notice,
    ) -> Result<Value, StepError> {
        self.send(tenant, owner, quota_notice(tenant, owner, notice)).await
    }

    async fn send(&self, tenant: &Tenant, to: &Contact, letter: Letter) -> Result<Value, StepError> {
        let unbuildable = |error| StepError::Unexpected(format!("a mail could not be put together: {error}"));
        let utf8 = |text: String| Content::builder().data(text).charset("UTF-8").build().map_err(unbuildable);
        let body = Body::builder().text(utf8(letter.text)?).html(utf8(letter.html)?).build();
        let message = Message::builder().subject(utf8(letter.subject)?).body(body).build();
        let sent = self
            .ses
            .send_email()
            .from_email_address(&self.sender)
            .destination(Destination::builder().to_addresses(&to.email).build())
            .content(EmailContent::builder().simple(message).build())
            .send()
            .await;
        let doing = format!("mailing the owner of tenant {} as {}", tenant.id, self.sender);
        // SES's messages repeat the addresses they are about.
        let sent = sent.map_err(|error| classify_without_message(&doing, &error))?;
        Ok(json!({ "sent": true, "message_id": sent.message_id }))
    }
}

fn welcome(tenant: &Tenant, owner: &Contact, host: &str, link: Option<&Link>) -> Result<Letter, StepError> {
    let (name, markup, slug) = (&owner.name, escaped(&owner.name), &tenant.slug);
    let (text, html) = match link {
        Some(Link { url, until }) => {
            let until = moment(*until)?;
            (
                format!("To become its administrator, open this link until {until}; it works once:\n\n  {url}\n\n"),
                format!(
                    "<p><a href=\"{}\">Become its administrator</a>. The link works once, until {until}.</p>\n",
                    escaped(url)
                ),
            )
        }
        None => (String::new(), String::new()),
    };
    Ok(Letter {
        subject: format!("{slug} is ready"),
        text: format!(
            "Hello {name},\n\n{slug} is ready, on the {plan} plan. You reach it at\n\n  https://{host}/\n\n{text}\
             You get this mail once, because you signed up.\n",
            plan = tenant.plan
        ),
        html: format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><body>\n<p>Hello {markup},</p>\n\
             <p>{slug} is ready, on the {plan} plan. You reach it at <a href=\"https://{host}/\">{host}</a>.</p>\n{html}\
             <p>You get this mail once, because you signed up.</p>\n</body></html>\n",
            plan = tenant.plan
        ),
    })
}

fn quota_notice(tenant: &Tenant, owner: &Contact, notice: &Notice) -> Letter {
    let (slug, plan) = (&tenant.slug, tenant.plan);
    let Notice { resource, used, quota, .. } = notice;
    let (what, consequence) = match resource {
        Metered::ApiCalls => ("API calls", "further calls are refused until the next billing cycle"),
        Metered::StorageBytes => ("storage", "uploads that do not fit are refused until something is deleted"),
        Metered::Seats => ("seats", "no further user can be added until a seat is released"),
    };
    let (used, quota, of) = match resource {
        Metered::StorageBytes => (size(*used), size(*quota), "of storage"),
        Metered::ApiCalls | Metered::Seats => (used.to_string(), quota.to_string(), what),
    };
    let (subject, meaning) = match notice.level {
        Level::Warning => {
            (format!("{slug} has used 80 % of its {what}"), format!("When all {quota} are used, {consequence}."))
        }
        Level::Exceeded => (format!("{slug} has used up its {what}"), format!("From now on {consequence}.")),
    };
    let fact = format!("{slug} has used {used} of the {quota} {of} that it may use on its plan, {plan}.");
    let advice = "A larger plan grants more, at once.";
    Letter {
        subject,
        text: format!("Hello {},\n\n{fact} {meaning} {advice}\n", owner.name),
        html: format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><body>\n<p>Hello {},</p>\n<p>{fact} {meaning} {advice}</p>\n</body></html>\n",
            escaped(&owner.name)
        ),
    }
}

/// A number of bytes as people say it, to a tenth.
fn size(bytes: i64) -> String {
    let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// A moment as people read it, to the minute.
fn moment(at: OffsetDateTime) -> Result<String, StepError> {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let written = at.to_offset(time::UtcOffset::UTC).format(format);
    written.map_err(|error| StepError::Unexpected(format!("writing a moment into a mail: {error}")))
}

/// A text inside HTML. Slugs, plans and hosts need none of this: they are DNS labels.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples;

    #[test]
    fn a_notice_says_what_happens_in_the_resources_own_words() {
        let owner = Contact { name: "Ada".into(), email: "ada@acme.example".into() };
        let letter = |resource, level, used, quota| {
            let (tenant, cycle_start) = (samples::tenant(), OffsetDateTime::UNIX_EPOCH);
            let notice = Notice { tenant: tenant.id, resource, level, used, quota, cycle_start };
            quota_notice(&tenant, &owner, &notice)
        };
        let seats = letter(Metered::Seats, Level::Warning, 4, 5);
        assert_eq!(seats.subject, "acme has used 80 % of its seats");
        assert!(
            seats.text.contains("4 of the 5 seats") && seats.text.contains("When all 5 are used"),
            "{}",
            seats.text
        );
        let storage = letter(Metered::StorageBytes, Level::Exceeded, 10_200_547_328, 10_737_418_240);
        assert_eq!(storage.subject, "acme has used up its storage");
        assert!(storage.text.contains("9.5 GiB of the 10.0 GiB of storage"), "{}", storage.text);
        assert!(storage.html.contains("until something is deleted"), "{}", storage.html);
        assert_eq!(
            (size(1023), size(1024), size(i64::MAX).as_str() > ""),
            ("1023 bytes".into(), "1.0 KiB".into(), true)
        );
    }

    #[test]
    fn a_name_is_text_in_both_forms() {
        let owner = Contact { name: "<b onload='x()'>\"Ada\" & Co</b>".into(), email: "ada@acme.example".into() };
        let link = Link { url: "https://x.example/?token=a.b".into(), until: OffsetDateTime::UNIX_EPOCH };
        let letter = welcome(&samples::tenant(), &owner, "acme.app.example.com", Some(&link)).expect("a letter");
        assert!(letter.text.contains(&owner.name));
        assert!(letter.html.contains("Hello &lt;b onload=&#39;x()&#39;&gt;&quot;Ada&quot; &amp; Co&lt;/b&gt;,"));
        assert!(!letter.html.contains("<b "));
        for text in [letter.text, letter.html] {
            assert!(text.contains("https://acme.app.example.com/") && text.contains("starter"));
            assert!(text.contains("https://x.example/?token=a.b") && text.contains("1970-01-01 00:00 UTC"));
        }
    }
}
