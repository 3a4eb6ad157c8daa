//! The first administrator: invited by a link that works once, for a time, and is kept nowhere.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tenantry_core::resource::invite::Invite;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::{Isolation, Plan, Tenant};

use crate::machine::sign_up;
use crate::registry::registered;
use crate::usage::overridden;
use crate::world::{Case, World, connect};

pub const CASES: &[(&str, Case)] = &[
    ("a_link_makes_the_owner_once_in_shared_tables", |world| Box::pin(accepted(world, "starter"))),
    ("a_link_makes_the_owner_once_in_a_schema", |world| Box::pin(accepted(world, "growth"))),
    ("a_link_makes_the_owner_once_on_a_server_of_its_own", |world| Box::pin(accepted(world, "enterprise"))),
    ("a_link_that_is_wrong_late_or_revoked_does_nothing", |world| Box::pin(refused(world))),
    ("a_new_link_ends_the_old_one", |world| Box::pin(generations(world))),
];

/// An answer of the function URL: status, where it leads, and the page.
type Answer = (u16, String, String);

async fn ask(world: &World, method: &str, token: &str) -> Result<Answer> {
    let url: url::Url = world.outputs.get("AcceptInviteUrl").context("no AcceptInviteUrl")?.parse()?;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("token", token).finish();
    let endpoint = world.export("AWS_ENDPOINT_URL")?;
    let request = match method {
        "GET" => client.get(format!("{endpoint}/?{query}")),
        _ => {
            client.post(format!("{endpoint}/")).header("content-type", "application/x-www-form-urlencoded").body(query)
        }
    };
    let answer = request.header("host", url.host_str().unwrap_or_default()).send().await?;
    let location = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default().to_owned();
    Ok((answer.status().as_u16(), location, answer.text().await?))
}

/// The token in the welcome mail.
async fn mailed(world: &World, slug: &str) -> Result<String> {
    let address = format!("owner@{slug}.example");
    let mails = world.emails().await?;
    let mail = mails.iter().map(Value::to_string).find(|mail| mail.contains(&address)).context("no mail")?;
    let token = mail.split("?token=").nth(1).context("no link")?;
    Ok(token.chars().take_while(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect())
}

async fn owners(world: &World, tenant: &Tenant) -> Result<Vec<(String, String)>> {
    let sql = |table: &str| format!("SELECT email, role FROM {table}.users ORDER BY email");
    let rows = match tenant.isolation {
        Isolation::Shared => {
            let client = world.application().await?;
            client.execute("SELECT set_config('app.current_tenant_id', $1, false)", &[&tenant.id.to_string()]).await?;
            client.query(&sql("pool"), &[]).await?
        }
        Isolation::Schema => world.registry().await?.query(&sql(&tenant.schema()), &[]).await?,
        Isolation::Database => {
            let url = world.export("DEDICATED_DATABASE_URL")?.replace("/postgres", &format!("/{}", tenant.schema()));
            connect(&url).await?.query(&sql(&tenant.schema()), &[]).await?
        }
    };
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn accepted(world: &World, plan: &str) -> Result<()> {
    let slug = world.fresh_slug("invited");
    world.provision(&sign_up(&slug, plan)).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let token = mailed(world, &slug).await?;
    ensure!(owners(world, &tenant).await?.is_empty(), "there is an administrator already");
    // Looked at, as mail programs do by themselves: nothing happens.
    for _ in 0..2 {
        let (status, _, page) = ask(world, "GET", &token).await?;
        ensure!(status == 200 && page.contains("<button>") && page.contains(&slug), "{status}: {page}");
    }
    ensure!(owners(world, &tenant).await?.is_empty(), "looking made an administrator");
    let (status, location, page) = ask(world, "POST", &token).await?;
    ensure!(status == 303 && location == format!("https://{slug}.app.example.com/"), "{status} {location} {page}");
    let owner = vec![(format!("owner@{slug}.example"), "owner".to_owned())];
    ensure!(owners(world, &tenant).await? == owner, "{:?}", owners(world, &tenant).await?);
    let sql = "SELECT s.user_id = i.id::text FROM seats s JOIN invites i USING (tenant_id) WHERE s.tenant_id = $1";
    let seats = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    ensure!(seats.len() == 1 && seats[0].get::<_, bool>(0), "the administrator has no seat, or another: {seats:?}");
    let (status, _, page) = ask(world, "POST", &token).await?;
    ensure!(status == 409 && page.contains("accepted already"), "{status}: {page}");
    ensure!(owners(world, &tenant).await? == owner);

    // No store has the token: the registry has its hash, and the steps' state and journal nothing.
    let registry = world.registry().await?;
    let sql = "SELECT (SELECT string_agg(i::text, ' ') FROM invites i WHERE tenant_id = $1) || ' ' ||
                      (SELECT string_agg(j::text, ' ') FROM step_journal j WHERE tenant_id = $1)";
    let kept: String = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    let proof = token.split('.').nth(1).context("no proof")?;
    ensure!(!kept.contains(proof), "the registry has the token");
    Ok(())
}

async fn refused(world: &World) -> Result<()> {
    let slug = world.fresh_slug("invited");
    world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let token = mailed(world, &slug).await?;
    let mut forged = token.clone();
    let last = if forged.pop() == Some('A') { 'E' } else { 'A' };
    forged.push(last);
    let other = format!("{}.{}", uuid::Uuid::new_v4().simple(), token.split('.').nth(1).unwrap_or_default());
    for wrong in [forged.as_str(), other.as_str(), "", "x", "../../etc/passwd", "' OR 1=1 --"] {
        for method in ["GET", "POST"] {
            let (status, _, page) = ask(world, method, wrong).await?;
            ensure!(status == 404, "{method} {wrong}: {status} {page}");
        }
    }
    let registry = world.registry().await?;
    let set = |what: &str| format!("UPDATE invites SET {what} WHERE tenant_id = $1");
    registry.execute(&set("expires_at = now() - interval '1 second'"), &[&tenant.id.0]).await?;
    ensure!(ask(world, "POST", &token).await?.0 == 410);
    registry.execute(&set("expires_at = now() + interval '1 hour', revoked_at = now()"), &[&tenant.id.0]).await?;
    ensure!(ask(world, "POST", &token).await?.0 == 404);
    registry.execute(&set("revoked_at = NULL"), &[&tenant.id.0]).await?;
    registry.execute("UPDATE tenants SET status = 'suspended' WHERE id = $1", &[&tenant.id.0]).await?;
    ensure!(ask(world, "POST", &token).await?.0 == 403);
    ensure!(owners(world, &tenant).await?.is_empty());
    registry.execute("UPDATE tenants SET status = 'active' WHERE id = $1", &[&tenant.id.0]).await?;
    // Nobody is above the quota.
    overridden(world, &tenant, "seats", 0).await?;
    let (status, _, page) = ask(world, "POST", &token).await?;
    ensure!(status == 409 && page.contains("Every seat is taken"), "{status}: {page}");
    ensure!(owners(world, &tenant).await?.is_empty());
    overridden(world, &tenant, "seats", 1).await?;
    // Twice at the same moment is once.
    let (one, two) = tokio::try_join!(ask(world, "POST", &token), ask(world, "POST", &token))?;
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    ensure!(statuses == [303, 409], "{statuses:?}");
    ensure!(owners(world, &tenant).await?.len() == 1);
    Ok(())
}

async fn generations(world: &World) -> Result<()> {
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant;
    let invite = Invite::from_env(&world.env)?;
    ensure!(invite.inspect(&tenant).await? == Inspection::Absent);
    let made = invite.ensure(&tenant).await?;
    ensure!(invite.ensure(&tenant).await? == made && invite.inspect(&tenant).await? == Inspection::Present);
    let registry = world.registry().await?;
    let read = || async {
        let row = registry
            .query_one("SELECT generation, token_hash FROM invites WHERE tenant_id = $1", &[&tenant.id.0])
            .await?;
        anyhow::Ok((row.get::<_, i32>(0), row.get::<_, Vec<u8>>(1)))
    };
    let (first, hash) = read().await?;
    invite.remove(&tenant).await?;
    invite.remove(&tenant).await?;
    ensure!(invite.inspect(&tenant).await? == Inspection::Absent);
    invite.ensure(&tenant).await?;
    let (second, other) = read().await?;
    ensure!(second == first + 1 && hash != other, "a revoked link works again");
    let late = "UPDATE invites SET expires_at = now() WHERE tenant_id = $1";
    registry.execute(late, &[&tenant.id.0]).await?;
    ensure!(matches!(invite.inspect(&tenant).await?, Inspection::Drifted(_)));
    invite.ensure(&tenant).await?;
    ensure!(read().await?.0 == second + 1 && invite.ensure(&tenant).await? == json!({"invite": made["invite"]}));
    Ok(())
}
