//! The tenant registry in PostgreSQL.
