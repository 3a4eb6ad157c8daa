//! The DDL that goes with the tables, from the catalog: in one file what rows are loaded into, in another what is made of them
//! once they are there. Shared tables are written in the form that a tenant of its own has: without whose row it is.

use std::fmt::Write as _;

use super::parts::{Bounds, Part};
use super::tables::{self, TENANT_COLUMN};
use crate::error::StepError;
use crate::postgres::quote_identifier;
use crate::resource::database::Reader;
use crate::tenant::Tenant;

/// How shared constraints and indexes begin: every key of the pool begins with whose it is.
const SHARED_KEY: &str = "(tenant_id, ";

/// `schema.sql`: the schema, its types, sequences and tables.
pub(super) async fn tables(reader: &Reader, tenant: &Tenant) -> Result<String, StepError> {
    let schema = quote_identifier(&tenant.schema());
    let mut sql = format!(
        "-- The tables of {}, without their rows. restore.sql calls this file.\n\nCREATE SCHEMA {schema};\nSET search_path = {schema};\n\n",
        tenant.slug
    );
    if reader.shared.is_none() {
        sql += &lines(reader, TYPES).await?;
        sql += &lines(reader, SEQUENCES).await?;
        sql += &lines(reader, FUNCTIONS).await?;
    }
    for table in tables::all(reader).await? {
        let columns = own_columns(reader, &table.name).await?;
        let name = quote_identifier(&table.name);
        let _ = write!(sql, "\nCREATE TABLE {name} (\n    {}\n);\n", columns.join(",\n    "));
    }
    sql += &lines(reader, COMMENTS).await?;
    Ok(sql)
}

/// `constraints.sql`: keys, checks, references, indexes, and what looks at the tables.
pub(super) async fn constraints(reader: &Reader) -> Result<String, StepError> {
    let mut sql = "-- What holds of the rows, once they are there. restore.sql calls this file.\n\n".to_owned();
    let names: Vec<String> = tables::all(reader).await?.into_iter().map(|table| table.name).collect();
    let (mut first, mut references) = (Vec::new(), Vec::new());
    for row in reader.client.query(CONSTRAINTS, &[&quote_identifier(&reader.schema), &names]).await? {
        let (table, name, definition): (&str, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let Some(definition) = unshared(reader, table, definition)? else { continue };
        // As PostgreSQL names it where there is no such column.
        let name = if reader.shared.is_some() { name.replacen("_tenant_id", "", 1) } else { name.to_owned() };
        let line = format!(
            "ALTER TABLE {} ADD CONSTRAINT {} {definition};\n",
            quote_identifier(table),
            quote_identifier(&name)
        );
        if row.try_get(3)? { references.push(line) } else { first.push(line) }
    }
    for row in reader.client.query(INDEXES, &[&quote_identifier(&reader.schema), &names]).await? {
        let (table, definition): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        first.extend(unshared(reader, table, definition)?.map(|definition| format!("{definition};\n")));
    }
    sql.extend(first);
    sql.extend(references);
    if reader.shared.is_none() {
        for query in [SEQUENCE_VALUES, VIEWS, TRIGGERS] {
            sql += &lines(reader, query).await?;
        }
    }
    Ok(sql)
}

/// `restore.sql`: for psql, in the directory that the files are in.
pub(super) async fn restore(reader: &Reader, tenant: &Tenant, parts: &[Part]) -> Result<String, StepError> {
    let mut sql = format!(
        "-- Restores {} into an empty database, whole or not at all:\n--     psql --no-psqlrc --file restore.sql <database>\n\n\
         \\set ON_ERROR_STOP on\nSET client_encoding = 'UTF8';\nBEGIN;\n\\ir schema.sql\n",
        tenant.slug
    );
    for part in parts {
        if let Bounds::Table { table, .. } = &part.bounds {
            let columns = tables::columns(reader, table).await?.join(", ");
            let _ = writeln!(
                sql,
                "\\copy {} ({columns}) FROM '{}' WITH (FORMAT csv, HEADER)",
                quote_identifier(table),
                part.name
            );
        }
    }
    sql += "\\ir constraints.sql\nCOMMIT;\n";
    Ok(sql)
}

/// A constraint or an index in the form that a tenant of its own has. `None` for one that says only whose a row is.
fn unshared(reader: &Reader, table: &str, definition: &str) -> Result<Option<String>, StepError> {
    if reader.shared.is_none() {
        return Ok(Some(definition.to_owned()));
    }
    let plain = definition.replace(SHARED_KEY, "(");
    if !plain.contains(TENANT_COLUMN) {
        return Ok(Some(plain));
    }
    if plain.contains(&format!("({TENANT_COLUMN})")) && !plain.contains(&format!(" {TENANT_COLUMN}")) {
        return Ok(None);
    }
    Err(StepError::Unexpected(format!(
        "{}.{table} has {definition:?}, which cannot be written without {TENANT_COLUMN}",
        reader.schema
    )))
}

async fn own_columns(reader: &Reader, table: &str) -> Result<Vec<String>, StepError> {
    let own = reader.shared.is_none();
    let rows = reader.client.query(COLUMNS, &[&tables::qualified(reader, table), &own, &TENANT_COLUMN]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// What a query about the schema answers, line by line.
async fn lines(reader: &Reader, query: &str) -> Result<String, StepError> {
    let names: Vec<String> = tables::all(reader).await?.into_iter().map(|table| table.name).collect();
    let mut text = String::new();
    for row in reader.client.query(query, &[&quote_identifier(&reader.schema), &names]).await? {
        let _ = writeln!(text, "{};", row.try_get::<_, &str>(0)?);
    }
    Ok(text)
}

// Each takes the schema and the names of the tables, and answers statements without their semicolons. The search path is the
// schema, so that pg_get_… and format_type name what is in it without the schema's name.

const COLUMNS: &str = "
    SELECT format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
           || CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
                   THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END
           || CASE WHEN a.attidentity = 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
                   WHEN a.attidentity = 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY'
                   WHEN a.attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(d.adbin, d.adrelid))
                   WHEN d.adbin IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) ELSE '' END
           || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND ($2 OR a.attname <> $3)
    ORDER BY a.attnum";

const TYPES: &str = "
    SELECT format('CREATE TYPE %I AS ENUM (%s)', t.typname, string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder))
    FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid
    WHERE t.typnamespace = $1::text::regnamespace AND $2::text[] IS NOT NULL GROUP BY t.oid, t.typname ORDER BY t.typname";

const SEQUENCES: &str = "
    SELECT format('CREATE SEQUENCE %I AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s', c.relname,
                  format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache,
                  CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END)
    FROM pg_class c JOIN pg_sequence s ON s.seqrelid = c.oid
    WHERE c.relnamespace = $1::text::regnamespace AND $2::text[] IS NOT NULL
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'i')
    ORDER BY c.relname";

const FUNCTIONS: &str = "
    SELECT pg_get_functiondef(p.oid) FROM pg_proc p
    WHERE p.pronamespace = $1::text::regnamespace AND p.prokind IN ('f', 'p') AND $2::text[] IS NOT NULL ORDER BY p.proname, p.oid";

const COMMENTS: &str = "
    SELECT format('COMMENT ON COLUMN %I.%I IS %L', c.relname, a.attname, d.description)
    FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid > 0
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relname = ANY ($2) AND a.attname <> 'tenant_id'
    ORDER BY c.relname, a.attnum";

const CONSTRAINTS: &str = "
    SELECT c.relname, k.conname, pg_get_constraintdef(k.oid, true), k.contype = 'f'
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relname = ANY ($2) AND k.contype IN ('p', 'u', 'c', 'x', 'f')
    ORDER BY c.relname, k.contype <> 'p', k.conname";

const INDEXES: &str = "
    SELECT c.relname, pg_get_indexdef(i.indexrelid, 0, true)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relname = ANY ($2)
        AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
    ORDER BY c.relname, i.indexrelid";

const SEQUENCE_VALUES: &str = "
    SELECT format('SELECT setval(%L, %s)', CASE WHEN d.refobjid IS NULL THEN format('%I', s.sequencename)
                      ELSE pg_get_serial_sequence(format('%I', t.relname), a.attname) END, s.last_value)
    FROM pg_sequences s JOIN pg_class c ON c.relname = s.sequencename AND c.relnamespace = $1::text::regnamespace
        LEFT JOIN pg_depend d ON d.objid = c.oid AND d.deptype = 'i' AND d.refclassid = 'pg_class'::regclass
        LEFT JOIN pg_class t ON t.oid = d.refobjid
        LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE quote_ident(s.schemaname)::regnamespace = $1::text::regnamespace AND s.last_value IS NOT NULL
        AND $2::text[] IS NOT NULL
    ORDER BY s.sequencename";

const VIEWS: &str = "
    SELECT format('CREATE %s %I AS %s', CASE WHEN c.relkind = 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END, c.relname,
                  rtrim(pg_get_viewdef(c.oid, true), ';'))
    FROM pg_class c
    WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('v', 'm') AND $2::text[] IS NOT NULL ORDER BY c.oid";

const TRIGGERS: &str = "
    SELECT pg_get_triggerdef(t.oid, true) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relname = ANY ($2) AND NOT t.tgisinternal ORDER BY c.relname, t.tgname";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lose_whose_they_are() {
        let shared = |definition: &str| definition.replace(SHARED_KEY, "(");
        assert_eq!(
            shared("FOREIGN KEY (tenant_id, owner_id) REFERENCES users(tenant_id, id) ON DELETE SET NULL (owner_id)"),
            "FOREIGN KEY (owner_id) REFERENCES users(id) ON DELETE SET NULL (owner_id)"
        );
        assert_eq!(
            shared("CREATE UNIQUE INDEX users_email ON users USING btree (tenant_id, lower(email))"),
            "CREATE UNIQUE INDEX users_email ON users USING btree (lower(email))"
        );
    }
}
