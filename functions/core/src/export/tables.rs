//! Tables: found in the catalog, divided, copied out as CSV, and checked for rows that were written meanwhile.

use futures::{StreamExt, pin_mut};
use postgres_protocol::escape::escape_literal;

use super::parts::Range;
use super::upload::Upload;
use crate::error::StepError;
use crate::migrations::roles::AUDITOR_ROLE;
use crate::postgres::quote_identifier;
use crate::resource::database::Reader;

/// The column that says whose a row of a shared table is.
pub(super) const TENANT_COLUMN: &str = "tenant_id";
/// The relations of the pool that are Tenantry's own, not the product's.
const NOT_THE_PRODUCTS: &[&str] = &["tenants", crate::migrations::HISTORY];

/// A table that has rows of the tenant's, or could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    /// Blocks of its file.
    blocks: i64,
    /// Bytes of its file, with what is stored apart from it.
    bytes: i64,
}

impl Table {
    /// Bytes of its file, with what is stored apart from it.
    pub(super) fn bytes(&self) -> i64 {
        self.bytes
    }
}

/// What a check found in one part of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Rows that are there.
    pub(super) rows: i64,
    /// Of them, those that were written since the horizon.
    pub(super) written: i64,
}

/// Every table of the schema, by name; of the shared ones those whose rows say whose they are.
///
/// # Errors
/// `Unexpected` for a kind of table that cannot be divided, or when a policy could hide rows from the auditor.
pub(super) async fn all(reader: &Reader) -> Result<Vec<Table>, StepError> {
    let sql = "SELECT c.relname, pg_relation_size(c.oid) / current_setting('block_size')::bigint, pg_table_size(c.oid),
                      c.relkind <> 'r' OR EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent))
               FROM pg_class c
               WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p', 'f')
                   AND (NOT $2 OR (c.relname <> ALL ($3) AND EXISTS (
                       SELECT FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attname = $4 AND a.atttypid = 'uuid'::regtype AND NOT a.attisdropped)))
               ORDER BY c.relname";
    let schema = quote_identifier(&reader.schema);
    let shared = reader.shared.is_some();
    let mut tables = Vec::new();
    for row in reader.client.query(sql, &[&schema, &shared, &NOT_THE_PRODUCTS, &TENANT_COLUMN]).await? {
        let name: String = row.try_get(0)?;
        if row.try_get(3)? {
            return Err(StepError::Unexpected(format!(
                "table {schema}.{name} is partitioned, inherits or is foreign: the export cannot divide such a table"
            )));
        }
        tables.push(Table { name, blocks: row.try_get(1)?, bytes: row.try_get(2)? });
    }
    if shared {
        see_all(reader, &tables).await?;
    }
    Ok(tables)
}

/// Makes sure that the auditor's policies hide nothing: one shows it every row, and none takes any away.
async fn see_all(reader: &Reader, tables: &[Table]) -> Result<(), StepError> {
    let sql = "SELECT c.relname FROM pg_class c, pg_roles r
               WHERE c.relnamespace = $1::text::regnamespace AND c.relname = ANY ($2) AND r.rolname = $3 AND c.relrowsecurity
                   AND (NOT EXISTS (
                       SELECT FROM pg_policy p
                       WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('r', '*')
                           AND r.oid = ANY (p.polroles) AND pg_get_expr(p.polqual, p.polrelid) = 'true')
                   OR EXISTS (
                       SELECT FROM pg_policy p
                       WHERE p.polrelid = c.oid AND NOT p.polpermissive AND p.polcmd IN ('r', '*')
                           AND p.polroles && ARRAY[r.oid, 0::oid]))";
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let hidden = reader.client.query(sql, &[&quote_identifier(&reader.schema), &names, &AUDITOR_ROLE]).await?;
    match hidden.first() {
        None => Ok(()),
        Some(row) => Err(StepError::Unexpected(format!(
            "the policies of {}.{} may hide rows from {AUDITOR_ROLE}: an export would not be whole",
            reader.schema,
            row.try_get::<_, String>(0)?
        ))),
    }
}

/// Divides a table into ranges of about `most` bytes.
///
/// A table of the tenant's own is cut by the blocks of its file, which nobody has to read: nothing moves in it while it is
/// frozen. One tenant's rows of a shared table lie anywhere in it: they are read once, in the order of their key.
pub(super) async fn divide(reader: &Reader, table: &Table, most: i64) -> Result<Vec<Range>, StepError> {
    if table.bytes <= most {
        return Ok(vec![Range::Whole]);
    }
    if reader.shared.is_none() {
        let step = (most * table.blocks / table.bytes).max(1);
        let starts = (0..table.blocks).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        let end = |from: i64| Some(from + step).filter(|to| *to < table.blocks);
        return Ok(starts.map(|from| Range::Blocks { from, to: end(from) }).collect());
    }
    let key = key(reader, table).await?;
    if key.is_empty() {
        return Ok(vec![Range::Whole]);
    }
    let names: Vec<String> = key.iter().map(|(name, _)| quote_identifier(name)).collect();
    let texts: Vec<String> = names.iter().map(|name| format!("{name}::text")).collect();
    let (order, texts) = (names.join(", "), texts.join(", "));
    let descending: Vec<String> = names.iter().map(|name| format!("{name} DESC")).collect();
    let sql = format!(
        "SELECT DISTINCT ON (upto / $1::bigint) ARRAY[{texts}]
         FROM (SELECT {order}, sum(pg_column_size(t)) OVER (ORDER BY {order}) AS upto FROM {} t WHERE {}) AS rows
         ORDER BY upto / $1::bigint, {}",
        qualified(reader, &table.name),
        condition(reader, &Range::Whole),
        descending.join(", "),
    );
    let rows = reader.client.query(&sql, &[&most]).await?;
    let mut ranges = Vec::with_capacity(rows.len());
    let mut after = None;
    for (index, row) in rows.iter().enumerate() {
        let last: Vec<String> = row.try_get(0)?;
        let upto = Some(last).filter(|_| index + 1 < rows.len());
        ranges.push(Range::Keys { key: key.clone(), after: after.take(), upto: upto.clone() });
        after = upto;
    }
    Ok(if ranges.is_empty() { vec![Range::Whole] } else { ranges })
}

/// The columns of the primary key with their types, without the tenant's.
async fn key(reader: &Reader, table: &Table) -> Result<Vec<(String, String)>, StepError> {
    let sql = "SELECT a.attname, format_type(a.atttypid, a.atttypmod)
               FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (number, place), pg_attribute a
               WHERE i.indrelid = $1::text::regclass AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.number
                   AND a.attname <> $2
               ORDER BY k.place";
    let rows = reader.client.query(sql, &[&qualified(reader, &table.name), &TENANT_COLUMN]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The columns that are exported, quoted: not those that are computed from others, and of a shared table not whose row it is.
pub(super) async fn columns(reader: &Reader, table: &str) -> Result<Vec<String>, StepError> {
    let sql = "SELECT attname FROM pg_attribute
               WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                   AND ($2 OR attname <> $3)
               ORDER BY attnum";
    let own = reader.shared.is_none();
    let rows = reader.client.query(sql, &[&qualified(reader, table), &own, &TENANT_COLUMN]).await?;
    rows.iter().map(|row| Ok(quote_identifier(row.try_get(0)?))).collect()
}

/// Streams rows as CSV with a header. Returns how many.
pub(super) async fn copy(reader: &Reader, table: &str, range: &Range, upload: &mut Upload) -> Result<i64, StepError> {
    let columns = columns(reader, table).await?.join(", ");
    let (name, condition) = (qualified(reader, table), condition(reader, range));
    let sql = format!("COPY (SELECT {columns} FROM {name} t WHERE {condition}) TO STDOUT WITH (FORMAT csv, HEADER)");
    let rows = reader.client.copy_out(&sql).await?;
    pin_mut!(rows);
    // The server sends each line, the header too, in a message of its own.
    let mut lines = 0;
    while let Some(line) = rows.next().await {
        upload.write(&line?).await?;
        lines += 1;
    }
    Ok(lines - 1)
}

/// Looks at the rows of a range again. `horizon` is a transaction id; rows carry the lower half of theirs, so that what is
/// counted is how far it is past the horizon's, round the clock of 2^32.
pub(super) async fn check(reader: &Reader, table: &str, range: &Range, horizon: i64) -> Result<Found, StepError> {
    let sql = format!(
        "SELECT count(*), count(*) FILTER (WHERE (t.xmin::text::bigint - $1::bigint % 4294967296 + 4294967296) % 4294967296
             <= least(txid_snapshot_xmax(txid_current_snapshot()) - $1::bigint, 2147483647))
         FROM {} t WHERE {}",
        qualified(reader, table),
        condition(reader, range),
    );
    let row = reader.client.query_one(&sql, &[&horizon]).await?;
    Ok(Found { rows: row.try_get(0)?, written: row.try_get(1)? })
}

/// A transaction id that every later write is after.
pub(super) async fn now(reader: &Reader) -> Result<i64, StepError> {
    let sql = "SELECT txid_snapshot_xmax(txid_current_snapshot())";
    Ok(reader.client.query_one(sql, &[]).await?.try_get(0)?)
}

/// Whether every transaction from before the horizon has ended: none of them can still bring rows that nobody has seen.
pub(super) async fn settled(reader: &Reader, horizon: i64) -> Result<bool, StepError> {
    let sql = "SELECT txid_snapshot_xmin(txid_current_snapshot()) >= $1";
    Ok(reader.client.query_one(sql, &[&horizon]).await?.try_get(0)?)
}

pub(super) fn qualified(reader: &Reader, table: &str) -> String {
    format!("{}.{}", quote_identifier(&reader.schema), quote_identifier(table))
}

/// The rows of a range that are the tenant's, as SQL about `t`. COPY takes no bound values, so these are quoted.
fn condition(reader: &Reader, range: &Range) -> String {
    let mut conditions = Vec::new();
    if let Some(tenant) = reader.shared {
        conditions.push(format!("t.{TENANT_COLUMN} = '{tenant}'::uuid"));
    }
    match range {
        Range::Whole => {}
        Range::Blocks { from, to } => {
            conditions.push(format!("t.ctid >= '({from},0)'::tid"));
            conditions.extend(to.map(|to| format!("t.ctid < '({to},0)'::tid")));
        }
        Range::Keys { key, after, upto } => {
            let names: Vec<String> = key.iter().map(|(name, _)| format!("t.{}", quote_identifier(name))).collect();
            let bound = |values: &Vec<String>| {
                let typed = values.iter().zip(key).map(|(value, (_, of))| format!("{}::{of}", escape_literal(value)));
                typed.collect::<Vec<_>>().join(", ")
            };
            let names = names.join(", ");
            conditions.extend(after.as_ref().map(|after| format!("ROW({names}) > ROW({})", bound(after))));
            conditions.extend(upto.as_ref().map(|upto| format!("ROW({names}) <= ROW({})", bound(upto))));
        }
    }
    if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") }
}
