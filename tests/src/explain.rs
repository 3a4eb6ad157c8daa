//! What operators are told of a tenant, in the states that a tenant can be in.

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::machine::sign_up;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_tenant_in_service_needs_nothing_and_drift_is_named", |world| Box::pin(in_service(world))),
    ("a_pending_tenant_says_what_it_waits_for", |world| Box::pin(pending(world))),
    ("it_answers_to_one_tenant_and_tells_no_personal_data", |world| Box::pin(asked(world))),
];

async fn explain(world: &World, slug: &str) -> Result<Value> {
    let answer = world.invoke("explain-tenant", &json!({"slug": slug})).await?;
    answer.map_err(|(name, text)| anyhow!("{name}: {text}"))
}

fn resource<'a>(explained: &'a Value, kind: &str) -> &'a Value {
    let resources = explained["resources"].as_array().map_or(&[][..], Vec::as_slice);
    resources.iter().find(|resource| resource["kind"] == kind).unwrap_or(&Value::Null)
}

fn says(explained: &Value, key: &str, text: &str) -> Result<()> {
    let said = explained[key].as_str().unwrap_or_default();
    ensure!(said.contains(text), "{key} must say {text:?}, says {said}");
    Ok(())
}

async fn in_service(world: &World) -> Result<()> {
    let slug = world.fresh_slug("explained");
    world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let explained = explain(world, &slug).await?;
    ensure!(explained["status"] == "active" && explained["held_by"].is_null(), "{explained}");
    let kinds = explained["resources"].as_array().map(Vec::len);
    ensure!(kinds == Some(9) && explained["journal"].as_array().map(Vec::len) == Some(11), "{explained}");
    says(&explained, "next", "nothing")?;
    says(&explained, "text", &format!("{slug} ("))?;

    let bucket = world.record(&slug).await?.tenant.bucket();
    world.s3().delete_public_access_block().bucket(&bucket).send().await?;
    let explained = explain(world, &slug).await?;
    ensure!(resource(&explained, "bucket")["is"] == "drifted", "{explained}");
    says(&explained, "next", "(bucket)")?;
    says(&explained, "text", "bucket         drifted: public access block")
}

async fn pending(world: &World) -> Result<()> {
    let slug = world.fresh_slug("explained");
    let mut request = sign_up(&slug, "starter");
    request["paid"] = json!(false);
    world.provision(&request).await?.succeeded()?;
    let explained = explain(world, &slug).await?;
    ensure!(resource(&explained, "bucket")["is"] == "absent", "{explained}");
    says(&explained, "next", "payment.confirmed")?;

    let tenant = world.record(&slug).await?.tenant;
    world.s3().create_bucket().bucket(tenant.bucket()).send().await?;
    request["paid"] = json!(true);
    ensure!(world.provision(&request).await?.error == "ForeignResource");
    let explained = explain(world, &slug).await?;
    ensure!(resource(&explained, "bucket")["is"] == "foreign", "{explained}");
    ensure!(explained["last_failure"]["step"] == "create-bucket", "{explained}");
    says(&explained, "next", &format!("{{\"tenant_id\": \"{}\"}}", tenant.id))?;
    says(&explained, "text", "last failure: ForeignResource in create-bucket")?;
    world.s3().delete_bucket().bucket(tenant.bucket()).send().await?;
    Ok(())
}

async fn asked(world: &World) -> Result<()> {
    let slug = world.fresh_slug("explained");
    let request = sign_up(&slug, "starter");
    world.provision(&request).await?.succeeded()?;
    let explained = explain(world, &slug).await?.to_string();
    for key in ["name", "email"] {
        let private = request["owner"][key].as_str().unwrap_or("nothing");
        ensure!(!explained.contains(private), "the owner's {key} is told: {explained}");
    }
    for (question, name) in [
        (json!({}), "InvalidRequest"),
        (json!({"slug": slug, "tenant_id": "5d0f9a5c-9c3e-4d52-8f0a-5b1f6c1d2e05"}), "InvalidRequest"),
        (json!({"slug": "no-such-tenant"}), "TenantNotFound"),
    ] {
        match world.invoke("explain-tenant", &question).await? {
            Err((refused, _)) if refused == name => {}
            answer => anyhow::bail!("{question}: {answer:?}"),
        }
    }
    Ok(())
}
