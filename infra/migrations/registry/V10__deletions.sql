-- Deletion for good: what there was, who confirmed that it is gone, what the scan found, and the certificate of it.

-- Systems outside this stack that hold tenants' data, such as a search index. Each is asked when a tenant is deleted.
CREATE TABLE downstream_systems (
    name        VARCHAR(63) PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9-]*[a-z0-9]$'),
    kind        VARCHAR(63) NOT NULL CHECK (kind ~ '^[a-z][a-z0-9-]*[a-z0-9]$'),
    since       TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- From then on it is not asked any more.
    retired_at  TIMESTAMPTZ
);

-- One row a tenant: there is one deletion, however many executions work on it. It stays for ever, with the certificate.
CREATE TABLE deletions (
    tenant_id            UUID PRIMARY KEY REFERENCES tenants (id),
    hold_id              BIGINT NOT NULL REFERENCES holds (id),
    begun_at             TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- What there was before anything was deleted, by store; counted once.
    counts               JSONB,
    counted_at           TIMESTAMPTZ,
    -- What the tenant was at Stripe: the scan asks for it by these, and they go when the deletion ends.
    customer             TEXT,
    adopted              BOOLEAN,
    subscription         TEXT,
    downstream_asked_at  TIMESTAMPTZ,
    -- How often the scan found something and everything was removed once more.
    rounds               INTEGER NOT NULL DEFAULT 0,
    -- What the newest scan found (nothing, where it is clean) and what stays by rule.
    scan                 JSONB,
    scanned_at           TIMESTAMPTZ,
    clean                BOOLEAN NOT NULL DEFAULT false,
    -- The envelope, as it was signed.
    certificate          TEXT,
    signed_at            TIMESTAMPTZ,
    CHECK (certificate IS NULL OR clean)
);
CREATE TRIGGER deletions_kept BEFORE DELETE OR TRUNCATE ON deletions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();

-- Which systems were asked about which tenant, and when they confirmed.
CREATE TABLE downstream_requests (
    tenant_id     UUID NOT NULL REFERENCES tenants (id),
    system        VARCHAR(63) NOT NULL REFERENCES downstream_systems (name),
    asked_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    confirmed_at  TIMESTAMPTZ,
    records       BIGINT CHECK (records >= 0),
    PRIMARY KEY (tenant_id, system)
);
COMMENT ON COLUMN downstream_requests.records IS 'how many records the system says it deleted, if it says so';
