//! The welcome against SES.

use anyhow::{Context, Result, ensure};
use tenantry_core::mail::Mail;
use tenantry_core::registry::contacts::Contact;
use tenantry_local::stack::BASE_DOMAIN;

use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("the_welcome_reaches_the_owner_in_two_forms", |world| Box::pin(reaches(world))),
    ("a_refused_mail_names_the_tenant_and_no_address", |world| Box::pin(refused(world))),
];

async fn reaches(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "mail")?;
    let host = tenant.host(BASE_DOMAIN);
    let owner = Contact { name: "Ada <Lovelace> & Co".into(), email: format!("ada@{}.example", tenant.slug) };
    let sent = Mail::from_env(&world.env)?.send_welcome(&tenant, &owner, &host, None).await?;
    ensure!(sent["sent"] == true && !sent.to_string().contains(&owner.email), "{sent}");
    let kept = world.emails().await?;
    let mail = kept.iter().find(|mail| mail["MessageId"] == sent["message_id"]).context("SES kept no such mail")?;
    ensure!(mail["To"] == serde_json::json!([owner.email]) && mail["Source"] == world.env.required("SENDER_ADDRESS")?);
    let text = |key: &str| mail[key].as_str().unwrap_or_default();
    ensure!(text("Subject").contains(tenant.slug.as_str()), "{mail}");
    ensure!(text("BodyText").contains(&owner.name) && text("BodyText").contains(&format!("https://{host}/")), "{mail}");
    ensure!(text("BodyHtml").contains("Ada &lt;Lovelace&gt; &amp; Co"), "{mail}");
    Ok(())
}

async fn refused(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "mail")?;
    let env = world.env.clone().with("SENDER_ADDRESS", "nobody-verified-this@elsewhere.example");
    let owner = Contact { name: "Ada".into(), email: "ada@private.example".into() };
    let error = Mail::from_env(&env)?.send_welcome(&tenant, &owner, &tenant.host(BASE_DOMAIN), None).await;
    let error = error.err().context("an unverified sender was accepted")?.to_string();
    ensure!(error.contains(&tenant.id.to_string()) && !error.contains("private.example"), "{error}");
    Ok(())
}
