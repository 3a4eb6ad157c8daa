//! What an export is divided into. A part becomes one file, made by one call of ExportPart.

use serde::{Deserialize, Serialize};

/// A part of an export.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// From 1. 0 before it is in the plan.
    pub number: i32,
    /// The file's name: no directories, so that a browser saves them all side by side, as `restore.sql` looks for them.
    pub name: String,
    /// What is in it.
    pub bounds: Bounds,
    /// What was put into the bucket, once it was.
    pub made: Option<Uploaded>,
    /// Whether it was found as it was made, and what it was made of unchanged.
    pub verified: bool,
    /// Whether it was made so long ago that the bucket deletes it before a link of today ends.
    pub aged: bool,
}

impl Part {
    /// A part that is to be planned.
    pub(crate) fn new(name: String, bounds: Bounds) -> Self {
        Part { number: 0, name, bounds, made: None, verified: false, aged: false }
    }
}

/// What was put into the exports bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// The file's size.
    pub bytes: i64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// The ETag that S3 gave it.
    pub etag: String,
    /// Rows of a table, objects of an archive, entries of the audit trail.
    pub items: Option<i64>,
    /// SHA-256 of the keys, sizes and ETags that an archive was made of.
    pub listing: Option<String>,
}

/// What a part holds: from where to where, of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Bounds {
    /// Rows of one table.
    Table {
        /// Its name.
        table: String,
        /// Which of its rows.
        range: Range,
    },
    /// Objects of the bucket, in one archive: those whose keys lie after the one and up to the other, in S3's order.
    Objects {
        /// The key before the first one.
        after: Option<String>,
        /// The last one's key.
        upto: String,
    },
    /// Bytes of one object that is too large for an archive.
    Piece {
        /// Its key.
        key: String,
        /// Its ETag: another object under the key is not the one that was planned.
        etag: String,
        /// The first byte.
        from: i64,
        /// How many.
        bytes: i64,
    },
    /// The tables, without their rows.
    Schema,
    /// What is made of the tables once their rows are there.
    Constraints,
    /// The script that restores all of it.
    Restore,
    /// Flags, limits and settings.
    Config,
    /// What was done to the tenant, up to this entry.
    Audit {
        /// The entry's id.
        upto: i64,
    },
    /// What the registry no longer says, of an export that is over.
    #[serde(skip)]
    Forgotten {
        /// The kind of the part.
        kind: String,
        /// The table that its rows are of.
        source: Option<String>,
    },
}

/// Which rows of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// All of them.
    Whole,
    /// Those in blocks of the table's file: how a table that is the tenant's own is divided, without reading it.
    Blocks {
        /// The first block.
        from: i64,
        /// The block after the last one; `None` where it goes to the end.
        to: Option<i64>,
    },
    /// Those with keys after the one and up to the other: how one tenant's rows of a shared table are divided.
    Keys {
        /// The columns of the key, and their types.
        key: Vec<(String, String)>,
        /// The key before the first one.
        after: Option<Vec<String>>,
        /// The last one's.
        upto: Option<Vec<String>>,
    },
}

impl Bounds {
    /// The kind's name in the registry and in the manifest.
    pub fn kind(&self) -> &str {
        match self {
            Bounds::Table { .. } => "table",
            Bounds::Objects { .. } => "objects",
            Bounds::Piece { .. } => "piece",
            Bounds::Schema => "schema",
            Bounds::Constraints => "constraints",
            Bounds::Restore => "restore",
            Bounds::Config => "config",
            Bounds::Audit { .. } => "audit",
            Bounds::Forgotten { kind, .. } => kind,
        }
    }

    /// The table that its rows are of.
    pub fn source(&self) -> Option<&str> {
        match self {
            Bounds::Table { table, .. } => Some(table),
            Bounds::Forgotten { source, .. } => source.as_deref(),
            _ => None,
        }
    }
}
