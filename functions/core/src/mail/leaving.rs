//! What the owner of a tenant on its way out is told: where the export is, when all is deleted, and once more before that.

use serde_json::Value;
use time::OffsetDateTime;

use super::{Letter, Link, Mail, escaped, moment};
use crate::error::StepError;
use crate::registry::contacts::Contact;
use crate::tenant::Tenant;

/// What a letter is about.
enum News {
    /// The tenant is out of service, and the hold has begun.
    Left,
    /// The hold is about to end.
    SoonGone,
}

impl Mail {
    /// Tells the owner that the tenant is out of service, where its export is, and when it is deleted. Returns SES's id of the
    /// message.
    ///
    /// # Errors
    /// When SES does not take the message. The error names the tenant and SES's code, never the address.
    pub async fn send_farewell(
        &self,
        tenant: &Tenant,
        owner: &Contact,
        link: Option<&Link>,
        deleted_at: OffsetDateTime,
    ) -> Result<Value, StepError> {
        self.send(tenant, owner, letter(&News::Left, tenant, owner, link, deleted_at)?).await
    }

    /// Reminds the owner that the tenant is deleted soon.
    ///
    /// # Errors
    /// As [`Mail::send_farewell`].
    pub async fn send_deletion_reminder(
        &self,
        tenant: &Tenant,
        owner: &Contact,
        deleted_at: OffsetDateTime,
    ) -> Result<Value, StepError> {
        self.send(tenant, owner, letter(&News::SoonGone, tenant, owner, None, deleted_at)?).await
    }
}

fn letter(
    news: &News,
    tenant: &Tenant,
    owner: &Contact,
    link: Option<&Link>,
    deleted_at: OffsetDateTime,
) -> Result<Letter, StepError> {
    let slug = &tenant.slug;
    let end = moment(deleted_at)?;
    let (subject, fact) = match news {
        News::Left => (
            format!("{slug} is out of service, and is deleted on {end}"),
            format!("{slug} is out of service. Its data are kept until {end}, and then deleted for good."),
        ),
        News::SoonGone => (
            format!("{slug} is deleted on {end}"),
            format!("{slug} is deleted for good on {end}. The link to its export is in the mail that you got before."),
        ),
    };
    let advice =
        "Until then you can come back, with everything as it was: write to us. Afterwards nobody can bring it back.";
    let (text, html) = match link {
        Some(Link { url, until }) => {
            let until = moment(*until)?;
            (
                format!("All of its data are to be downloaded here, until {until}:\n\n  {url}\n\n"),
                format!("<p><a href=\"{}\">Download all of its data</a>, until {until}.</p>\n", escaped(url)),
            )
        }
        None => (String::new(), String::new()),
    };
    Ok(Letter {
        subject,
        text: format!("Hello {},\n\n{fact}\n\n{text}{advice}\n", owner.name),
        html: format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><body>\n<p>Hello {},</p>\n<p>{fact}</p>\n{html}<p>{advice}</p>\n</body></html>\n",
            escaped(&owner.name)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples;

    #[test]
    fn the_date_and_the_link_are_in_both_forms() {
        let owner = Contact { name: "<i>Ada</i>".into(), email: "ada@acme.example".into() };
        let link = Link { url: "https://x.example/?token=a.b".into(), until: OffsetDateTime::UNIX_EPOCH };
        let end = OffsetDateTime::from_unix_timestamp(1_798_100_000).expect("a time");
        let farewell = letter(&News::Left, &samples::tenant(), &owner, Some(&link), end).expect("a letter");
        let reminder = letter(&News::SoonGone, &samples::tenant(), &owner, None, end).expect("a letter");
        assert!(!farewell.html.contains("<i>"));
        for text in [&farewell.text, &farewell.html] {
            assert!(text.contains("https://x.example/?token=a.b") && text.contains("1970-01-01 00:00 UTC"), "{text}");
        }
        for text in
            [&farewell.subject, &farewell.text, &farewell.html, &reminder.subject, &reminder.text, &reminder.html]
        {
            assert!(text.contains("acme") && text.contains("2026-12-24 08:13 UTC"), "{text}");
        }
        assert!(!reminder.text.contains("token="));
    }
}
