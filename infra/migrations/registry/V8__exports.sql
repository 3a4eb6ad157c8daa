-- Exports: what was exported of a tenant, part by part, the link that leads to it, and who followed the link when.

CREATE TABLE exports (
    id               UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id        UUID NOT NULL REFERENCES tenants (id),
    -- The hold that it was made for; null where a person made it by hand.
    hold_id          BIGINT REFERENCES holds (id),
    -- `spoiled`: something was written while it was made. It is kept, and another one is made.
    state            TEXT NOT NULL DEFAULT 'planning' CHECK (state IN ('planning', 'exporting', 'finished', 'spoiled')),
    started_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    planned_at       TIMESTAMPTZ,
    finished_at      TIMESTAMPTZ,
    -- A transaction id of the tenant's database server: no row of the tenant may be of this one or a later one.
    horizon          BIGINT,
    -- The last key of the bucket that the plan has reached.
    listed_upto      TEXT,
    manifest_sha256  TEXT,
    -- Counts the export's links: only the token of the newest works, and its hash is all that is kept of it.
    generation       INTEGER NOT NULL DEFAULT 0,
    token_hash       BYTEA,
    link_expires_at  TIMESTAMPTZ,
    revoked_at       TIMESTAMPTZ,
    CHECK (state = 'planning' OR horizon IS NOT NULL),
    CHECK (state <> 'finished' OR (finished_at IS NOT NULL AND manifest_sha256 IS NOT NULL)),
    CHECK (token_hash IS NULL OR (state = 'finished' AND generation > 0 AND link_expires_at IS NOT NULL))
);
CREATE UNIQUE INDEX exports_one_for_a_hold ON exports (hold_id) WHERE state <> 'spoiled';
CREATE UNIQUE INDEX exports_one_by_hand ON exports (tenant_id) WHERE hold_id IS NULL AND state IN ('planning', 'exporting');
CREATE INDEX exports_by_tenant ON exports (tenant_id, started_at);
CREATE TRIGGER exports_kept BEFORE DELETE OR TRUNCATE ON exports FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();

CREATE TABLE export_parts (
    export_id    UUID NOT NULL REFERENCES exports (id),
    number       INTEGER NOT NULL CHECK (number > 0),
    kind         TEXT NOT NULL CHECK (kind IN
                     ('table', 'objects', 'piece', 'schema', 'constraints', 'restore', 'config', 'audit', 'manifest')),
    -- The file's name; its key in the exports bucket is exports/{tenant}/{export}/{name}.
    name         TEXT NOT NULL,
    -- The table that its rows are of.
    source       TEXT,
    -- Where it begins and ends: keys of rows and objects, which are the tenant's own words. Gone when the export is over.
    bounds       JSONB,
    bytes        BIGINT,
    -- Rows of a table, objects of an archive, entries of the audit trail.
    items        BIGINT,
    sha256       TEXT,
    etag         TEXT,
    -- SHA-256 of the keys, sizes and ETags that an archive was made of.
    listing      TEXT,
    done_at      TIMESTAMPTZ,
    verified_at  TIMESTAMPTZ,
    PRIMARY KEY (export_id, number),
    UNIQUE (export_id, name),
    CHECK (done_at IS NULL OR (bytes IS NOT NULL AND sha256 IS NOT NULL AND etag IS NOT NULL))
);

-- Every click on a part, before its download begins. Nothing is kept of who clicked: whoever had the link.
CREATE TABLE export_downloads (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    export_id  UUID NOT NULL,
    part       INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    FOREIGN KEY (export_id, part) REFERENCES export_parts (export_id, number)
);
CREATE TRIGGER export_downloads_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON export_downloads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();

-- The tenant's own words go when an export is over, however it ends.
CREATE FUNCTION forget_bounds(finished UUID) RETURNS void LANGUAGE sql AS $$
    UPDATE export_parts SET bounds = NULL WHERE export_id = finished AND bounds IS NOT NULL;
    UPDATE exports SET listed_upto = NULL WHERE id = finished AND listed_upto IS NOT NULL;
$$;
CREATE FUNCTION forget_bounds_of_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM forget_bounds(id) FROM exports WHERE hold_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER holds_forget_bounds AFTER UPDATE OF state ON holds
    FOR EACH ROW WHEN (NEW.state IN ('cancelled', 'deleting', 'deleted')) EXECUTE FUNCTION forget_bounds_of_hold();
CREATE FUNCTION forget_bounds_of_tenant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM forget_bounds(id) FROM exports WHERE tenant_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_forget_bounds AFTER UPDATE OF status ON tenants
    FOR EACH ROW WHEN (NEW.status = 'deprovisioned') EXECUTE FUNCTION forget_bounds_of_tenant();
