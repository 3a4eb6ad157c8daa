//! The link of an export, opened as its owner does: the page, the files that it leads to, and what the manifest says of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use super::scene::Scene;
use crate::emulator;

/// The file that says what the others are.
const MANIFEST: &str = "manifest.json";
/// What of a token is shown: whoever has all of it has the export.
const SHOWN: usize = 6;

/// A link that was mailed.
pub(super) struct Link {
    url: Url,
}

/// A file as the page shows it.
struct File {
    query: String,
    name: String,
    sha256: String,
}

impl Link {
    /// Takes the link out of the mail to a tenant's owner.
    pub(super) async fn mailed(scene: &Scene<'_>, slug: &str) -> Result<Self> {
        let subject = format!("{slug} is out of service");
        let mails = emulator::mail(scene.export("AWS_ENDPOINT_URL")?).await?;
        let about = |mail: &&Value| mail["Subject"].as_str().is_some_and(|text| text.starts_with(&subject));
        let mail = mails.iter().find(about).with_context(|| format!("the owner of {slug} was not told"))?;
        let text = mail["BodyText"].as_str().unwrap_or_default();
        let link = text.split_whitespace().find(|word| word.contains("?token=")).context("the mail has no link")?;
        Ok(Link { url: link.parse()? })
    }

    /// The link as it may be shown.
    pub(super) fn shown(&self) -> String {
        let whole = self.url.as_str();
        let end = whole.find("token=").map_or(0, |at| at + "token=".len() + SHOWN);
        format!("{}…", whole.get(..end).unwrap_or_default())
    }

    /// Whether the page is there.
    pub(super) async fn works(&self, scene: &Scene<'_>) -> Result<bool> {
        Ok(self.ask(scene, self.url.query().unwrap_or_default()).await?.status() == 200)
    }

    /// Downloads every file, follows its redirect, and compares it with the page and the manifest, which is returned.
    pub(super) async fn download(&self, scene: &Scene<'_>) -> Result<Value> {
        let page = self.ask(scene, self.url.query().unwrap_or_default()).await?;
        ensure!(page.status() == 200, "the link answers {}", page.status());
        let files = files(&page.text().await?);
        let mut contents = BTreeMap::new();
        for File { query, name, sha256 } in files {
            let answer = self.ask(scene, &query).await?;
            ensure!(answer.status() == 303, "{name} answers {}", answer.status());
            let place = answer.headers().get("location").context("a redirect to nowhere")?.to_str()?.to_owned();
            let content = reqwest::get(place).await.and_then(reqwest::Response::error_for_status);
            let content = content.map_err(reqwest::Error::without_url)?.bytes().await?;
            let found = format!("{:x}", Sha256::digest(&content));
            ensure!(found == sha256, "{name} is not what the page says");
            contents.insert(name, (content, found));
        }
        let (text, _) = contents.remove(MANIFEST).context("there is no manifest")?;
        let manifest: Value = serde_json::from_slice(&text)?;
        scene.progress.say("  Each file, as it was downloaded and as the manifest has it:");
        for file in manifest["files"].as_array().context("the manifest lists no files")? {
            let name = file["name"].as_str().context("a file without a name")?;
            let (content, found) = contents.remove(name).with_context(|| format!("{name} is not on the page"))?;
            let same = file["sha256"] == found.as_str() && file["bytes"] == json!(content.len());
            ensure!(same, "{name} is not what the manifest says");
            scene.progress.say(&format!("  {name:<38} {:>6} bytes  SHA-256 {found}", content.len()));
            scene.progress.tell(&json!({ "file": name, "bytes": content.len(), "sha256": found }));
        }
        ensure!(contents.is_empty(), "the manifest does not know {:?}", contents.keys());
        Ok(manifest)
    }

    /// Asks the page, as the function URL's own host, which only the emulator's address leads to.
    async fn ask(&self, scene: &Scene<'_>, query: &str) -> Result<reqwest::Response> {
        let client = reqwest::Client::builder().redirect(Policy::none()).build()?;
        let request = client.get(format!("{}/?{query}", scene.export("AWS_ENDPOINT_URL")?));
        let answer = request.header("host", self.url.host_str().unwrap_or_default()).send().await;
        // Without the URL, whose token opens the export.
        answer.map_err(|error| error.without_url().into())
    }
}

/// The rows of the page's table.
fn files(page: &str) -> Vec<File> {
    let rows = page.split("<tr><td><a href=\"?").skip(1);
    rows.filter_map(|row| {
        let (query, row) = row.split_once("\">")?;
        let (name, row) = row.split_once("</a>")?;
        let sha256 = row.split_once("<code>")?.1.split_once("</code>")?.0;
        Some(File { query: query.replace("&amp;", "&"), name: name.to_owned(), sha256: sha256.to_owned() })
    })
    .collect()
}
