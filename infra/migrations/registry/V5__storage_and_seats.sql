-- Seats and storage, which are always decided here: who has a seat, what lies in each bucket, what was promised room in it,
-- and the most that a tenant held in each billing cycle.

-- Who has a seat. The user is an id that the product chose, and no address.
CREATE TABLE seats (
    tenant_id  UUID NOT NULL REFERENCES tenants (id),
    user_id    TEXT NOT NULL CHECK (length(user_id) BETWEEN 1 AND 64),
    actor      TEXT NOT NULL,
    taken_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id)
);

-- The ledger: every version of every object that lies in a tenant's bucket, as S3 said when it was last asked. Keys are bytes,
-- because S3 sorts them as bytes, and takes some that text cannot hold. A delete marker takes no room, and is not here.
CREATE TABLE stored_versions (
    tenant_id  UUID NOT NULL REFERENCES tenants (id),
    key        BYTEA NOT NULL CHECK (length(key) BETWEEN 1 AND 1024),
    version    TEXT NOT NULL,
    bytes      BIGINT NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (tenant_id, key, version)
);

-- The ledger's sum, whoever writes the ledger.
CREATE TABLE stored_bytes (
    tenant_id  UUID PRIMARY KEY REFERENCES tenants (id),
    bytes      BIGINT NOT NULL CHECK (bytes >= 0)
);

CREATE FUNCTION sum_stored_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO stored_bytes SELECT DISTINCT tenant_id, 0 FROM arrived ON CONFLICT DO NOTHING;
        UPDATE stored_bytes s SET bytes = s.bytes + a.bytes
            FROM (SELECT tenant_id, sum(bytes) AS bytes FROM arrived GROUP BY tenant_id) a WHERE a.tenant_id = s.tenant_id;
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        UPDATE stored_bytes s SET bytes = s.bytes - g.bytes
            FROM (SELECT tenant_id, sum(bytes) AS bytes FROM gone GROUP BY tenant_id) g WHERE g.tenant_id = s.tenant_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER stored_versions_arrived AFTER INSERT ON stored_versions
    REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION sum_stored_bytes();
CREATE TRIGGER stored_versions_changed AFTER UPDATE ON stored_versions
    REFERENCING OLD TABLE AS gone NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION sum_stored_bytes();
CREATE TRIGGER stored_versions_gone AFTER DELETE ON stored_versions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION sum_stored_bytes();

-- Room that was promised to uploads that have not arrived. One that has expired counts no more, whether it is still here or not.
CREATE TABLE upload_reservations (
    id           UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id    UUID NOT NULL REFERENCES tenants (id),
    key          BYTEA NOT NULL CHECK (length(key) BETWEEN 1 AND 1024),
    bytes        BIGINT NOT NULL CHECK (bytes >= 0),
    reserved_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at   TIMESTAMPTZ NOT NULL
);
CREATE INDEX upload_reservations_by_tenant ON upload_reservations (tenant_id, key);
CREATE INDEX upload_reservations_by_end ON upload_reservations (expires_at);

-- How far each bucket's reconciliation has come, and when the next is due.
CREATE TABLE storage_reconciliations (
    tenant_id  UUID PRIMARY KEY REFERENCES tenants (id),
    reached    BYTEA,
    due_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    done_at    TIMESTAMPTZ
);
COMMENT ON COLUMN storage_reconciliations.reached IS 'the last key that was compared; null where the bucket''s first key is next';
CREATE INDEX storage_reconciliations_due ON storage_reconciliations (due_at);

-- Null until it is known: the first run of ReconcileGate in a cycle carries over what a tenant holds.
ALTER TABLE usage_cycles
    ADD COLUMN storage_bytes BIGINT CHECK (storage_bytes >= 0),
    ADD COLUMN seats BIGINT CHECK (seats >= 0);
COMMENT ON COLUMN usage_cycles.storage_bytes IS 'the most that lay in the bucket at one time in the cycle';
COMMENT ON COLUMN usage_cycles.seats IS 'the most seats that were taken at one time in the cycle';

-- Object keys are the tenant's words, and its users are people: they go with it. What it used stays, for billing.
CREATE FUNCTION forget_holdings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM seats WHERE tenant_id = NEW.id;
    DELETE FROM stored_versions WHERE tenant_id = NEW.id;
    DELETE FROM upload_reservations WHERE tenant_id = NEW.id;
    DELETE FROM storage_reconciliations WHERE tenant_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_forget_holdings AFTER UPDATE OF status ON tenants
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND NEW.status = 'deprovisioned') EXECUTE FUNCTION forget_holdings();
