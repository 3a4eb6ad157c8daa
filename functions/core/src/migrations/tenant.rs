//! The migrations of a tenant's own schema, as one message: a schema of seven tables is a third as fast when its statements
//! travel one by one, and a crash between two transactions would leave half of it.
//!
//! The history table is refinery's, in refinery's form.

use refinery::Migration;
use time::OffsetDateTime;
use tokio_postgres::GenericClient;

use super::{HISTORY, tenant_sql};
use crate::error::StepError;
use crate::moment;
use crate::postgres::quote_identifier;

/// The migrations that a schema lacks, in order; all of them when it has no history or does not exist.
///
/// # Errors
/// `Unexpected` when the schema's history differs from what this build knows.
pub async fn pending(client: &impl GenericClient, schema: &str) -> Result<Vec<Migration>, StepError> {
    let table = format!("{}.{HISTORY}", quote_identifier(schema));
    let mut migrations = tenant_sql::migrations::runner().get_migrations().clone();
    migrations.sort();
    if !client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await?.try_get::<_, bool>(0)? {
        return Ok(migrations);
    }
    let sql = format!("SELECT version, name, checksum FROM {table} ORDER BY version");
    for row in client.query(&sql, &[]).await? {
        let (version, name, checksum): (i32, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let known = migrations.iter().position(|migration| {
            migration.version() == version && migration.name() == name && migration.checksum().to_string() == checksum
        });
        match known {
            Some(position) => migrations.remove(position),
            None => {
                return Err(StepError::Unexpected(format!(
                    "schema {schema} has migration V{version}__{name}, which this build does not have in that form: an \
                     applied migration is never changed; deploy the build that has it, or add a new one"
                )));
            }
        };
    }
    Ok(migrations)
}

/// One message that applies the migrations to a schema that exists and is on the search path, and records them.
///
/// # Errors
/// `Unexpected` when the clock cannot be written as RFC 3339.
pub fn script(schema: &str, pending: &[Migration]) -> Result<String, StepError> {
    let table = format!("{}.{HISTORY}", quote_identifier(schema));
    let now = moment::text(OffsetDateTime::now_utc())?;
    let mut script = format!(
        "CREATE TABLE IF NOT EXISTS {table} (version int4 PRIMARY KEY, name VARCHAR(255), applied_on VARCHAR(255),
             checksum VARCHAR(255));\n"
    );
    for migration in pending {
        script += migration.sql().unwrap_or_default();
        // The name came through refinery's own rule for file names: letters, digits and underscores.
        script += &format!(
            ";\nINSERT INTO {table} (version, name, applied_on, checksum) VALUES ({}, '{}', '{now}', '{}');\n",
            migration.version(),
            migration.name(),
            migration.checksum()
        );
    }
    Ok(script)
}
