-- The tenant registry. The rules that must hold whoever writes (which transitions exist, that rows are never deleted, that
-- the audit trail only grows) are kept here, in the database.

CREATE TYPE plan AS ENUM ('starter', 'growth', 'enterprise');
CREATE TYPE isolation AS ENUM ('shared', 'schema', 'database');
CREATE TYPE tenant_status AS ENUM ('pending', 'provisioning', 'active', 'suspended', 'deprovisioned');

-- Where tenants' data is placed. `secret` names the server's credentials in Secrets Manager.
CREATE TABLE database_servers (
    name        VARCHAR(63) PRIMARY KEY,
    isolation   isolation NOT NULL,
    secret      TEXT NOT NULL,
    capacity    INTEGER NOT NULL CHECK (capacity >= 0),
    state       TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'full', 'draining')),
    UNIQUE (name, isolation)
);
COMMENT ON COLUMN database_servers.capacity IS 'tenants this server may hold under this isolation';

-- What each plan grants, and what a new tenant of it starts with.
CREATE TABLE plan_quotas (
    plan                     plan PRIMARY KEY,
    storage_bytes            BIGINT NOT NULL CHECK (storage_bytes > 0),
    api_calls_per_month      BIGINT NOT NULL CHECK (api_calls_per_month > 0),
    seats                    INTEGER NOT NULL CHECK (seats > 0),
    cpu_millis               INTEGER NOT NULL CHECK (cpu_millis > 0),
    memory_mib               INTEGER NOT NULL CHECK (memory_mib > 0),
    max_pods                 INTEGER NOT NULL CHECK (max_pods > 0),
    max_objects              INTEGER NOT NULL CHECK (max_objects > 0),
    noncurrent_version_days  INTEGER NOT NULL CHECK (noncurrent_version_days > 0),
    infrequent_access_days   INTEGER CHECK (infrequent_access_days >= 30),
    default_isolation        isolation NOT NULL,
    flags                    JSONB NOT NULL,
    rate_limits              JSONB NOT NULL,
    settings                 JSONB NOT NULL
);
COMMENT ON COLUMN plan_quotas.infrequent_access_days IS 'S3 takes 30 days at least; null keeps objects in the standard class';

INSERT INTO plan_quotas VALUES
    ('starter', 10737418240, 100000, 5, 1000, 2048, 10, 20, 7, NULL, 'shared',
     '{"sso": false, "audit_log": false, "custom_domain": false, "api_access": true}',
     '{"requests_per_second": 10, "burst": 20}',
     '{"locale": "en-US", "time_zone": "UTC", "session_minutes": 480}'),
    ('growth', 107374182400, 1000000, 50, 4000, 8192, 50, 100, 30, 90, 'schema',
     '{"sso": true, "audit_log": true, "custom_domain": false, "api_access": true}',
     '{"requests_per_second": 100, "burst": 200}',
     '{"locale": "en-US", "time_zone": "UTC", "session_minutes": 480}'),
    ('enterprise', 1099511627776, 50000000, 1000, 32000, 131072, 500, 1000, 90, 90, 'database',
     '{"sso": true, "audit_log": true, "custom_domain": true, "api_access": true}',
     '{"requests_per_second": 1000, "burst": 2000}',
     '{"locale": "en-US", "time_zone": "UTC", "session_minutes": 480}');

CREATE TABLE tenants (
    id                UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    slug              VARCHAR(63) NOT NULL UNIQUE,
    plan              plan NOT NULL DEFAULT 'starter',
    status            tenant_status NOT NULL DEFAULT 'pending',
    region            VARCHAR(32) NOT NULL DEFAULT 'us-east-1',
    created_at        TIMESTAMPTZ NOT NULL DEFAULT now(),
    activated_at      TIMESTAMPTZ,
    suspended_at      TIMESTAMPTZ,
    deprovisioned_at  TIMESTAMPTZ,
    isolation         isolation NOT NULL DEFAULT 'shared',
    database_server   VARCHAR(63) REFERENCES database_servers (name),
    request_id        UUID NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    paid_at           TIMESTAMPTZ,
    -- The fence: the execution that alone may act on this tenant, and since when.
    execution         TEXT,
    execution_since   TIMESTAMPTZ,
    -- How often this tenant's fence was taken over from an execution that had ended without giving it back.
    takeovers         INTEGER NOT NULL DEFAULT 0,
    failed_step       TEXT,
    failed_error      TEXT,
    failed_message    TEXT,
    failed_at         TIMESTAMPTZ,
    -- Why only an operator may go on; null where nothing is wrong.
    needs_operator    TEXT,
    -- Counts this tenant's events: the version of the newest one.
    version           BIGINT NOT NULL DEFAULT 0,
    CHECK ((execution IS NULL) = (execution_since IS NULL)),
    CHECK ((failed_at IS NULL) = (failed_error IS NULL)),
    CHECK (status <> 'active' OR activated_at IS NOT NULL),
    CHECK ((status = 'suspended') = (suspended_at IS NOT NULL)),
    CHECK ((status = 'deprovisioned') = (deprovisioned_at IS NOT NULL))
);
CREATE INDEX tenants_by_execution ON tenants (execution) WHERE execution IS NOT NULL;
CREATE INDEX tenants_by_server ON tenants (database_server) WHERE status <> 'deprovisioned';

-- Refuses what the product's life cycle does not have; keeps the times of what it does.
CREATE FUNCTION enforce_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id <> OLD.id OR NEW.request_id <> OLD.request_id OR NEW.created_at <> OLD.created_at THEN
        RAISE EXCEPTION 'tenant %: id, request_id and created_at never change', OLD.id USING ERRCODE = 'TN002';
    END IF;
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN (
        ('pending', 'provisioning'), ('provisioning', 'active'), ('provisioning', 'pending'),
        ('active', 'suspended'), ('suspended', 'active'),
        ('suspended', 'deprovisioned'), ('pending', 'deprovisioned')
    ) THEN
        RAISE EXCEPTION 'tenant %: % to % is not a transition', OLD.id, OLD.status, NEW.status USING ERRCODE = 'TN001';
    END IF;
    IF NEW.status <> OLD.status THEN
        NEW.activated_at = CASE WHEN NEW.status = 'active' THEN coalesce(OLD.activated_at, now()) ELSE OLD.activated_at END;
        NEW.suspended_at = CASE WHEN NEW.status = 'suspended' THEN now() END;
        NEW.deprovisioned_at = CASE WHEN NEW.status = 'deprovisioned' THEN now() END;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tenants_transition BEFORE UPDATE ON tenants
    FOR EACH ROW EXECUTE FUNCTION enforce_transition();

CREATE FUNCTION refuse_first_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a tenant begins as pending, not %', NEW.status USING ERRCODE = 'TN001';
END $$;
CREATE TRIGGER tenants_first_status BEFORE INSERT ON tenants
    FOR EACH ROW WHEN (NEW.status <> 'pending') EXECUTE FUNCTION refuse_first_status();

CREATE FUNCTION refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: its rows stay for ever', TG_OP, TG_TABLE_NAME USING ERRCODE = 'TN003';
END $$;
CREATE TRIGGER tenants_kept BEFORE DELETE OR TRUNCATE ON tenants
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();

-- Personal data, apart from the tenant's row so that it can be erased while the row stays.
CREATE TABLE contacts (
    tenant_id  UUID PRIMARY KEY REFERENCES tenants (id),
    name       TEXT NOT NULL,
    email      TEXT NOT NULL
);

-- Payments that billing confirmed, kept even when they come before the request they pay for.
CREATE TABLE payments (
    request_id    UUID PRIMARY KEY,
    payment_id    TEXT NOT NULL,
    confirmed_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- What each step did for each tenant: a resumed execution skips what is `done`.
CREATE TABLE step_journal (
    tenant_id    UUID NOT NULL REFERENCES tenants (id),
    step         TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('doing', 'done', 'failed', 'undoing', 'undone', 'undo_failed')),
    execution    TEXT NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 1,
    started_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    finished_at  TIMESTAMPTZ,
    made         JSONB,
    error        TEXT,
    PRIMARY KEY (tenant_id, step)
);

-- Who did what, for ever. No personal data.
CREATE TABLE audit (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    tenant_id  UUID REFERENCES tenants (id),
    actor      TEXT NOT NULL,
    action     TEXT NOT NULL,
    detail     JSONB NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_by_tenant ON audit (tenant_id, id);
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();

-- Every change of status is audited, whoever makes it. `tenantry.actor` is set by our functions for the transaction.
CREATE FUNCTION audit_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (tenant_id, actor, action, detail)
    VALUES (NEW.id, coalesce(nullif(current_setting('tenantry.actor', true), ''), 'database:' || session_user), 'status',
            jsonb_build_object('from', CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, 'to', NEW.status));
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_audit_registered AFTER INSERT ON tenants
    FOR EACH ROW EXECUTE FUNCTION audit_status();
CREATE TRIGGER tenants_audit_status AFTER UPDATE OF status ON tenants
    FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION audit_status();

-- A tenant is active only when it has no suspension.
CREATE TABLE suspensions (
    tenant_id  UUID NOT NULL REFERENCES tenants (id),
    reason     TEXT NOT NULL CHECK (reason IN ('payment_failure', 'policy_violation', 'offboarding', 'admin')),
    since      TIMESTAMPTZ NOT NULL DEFAULT now(),
    actor      TEXT NOT NULL,
    PRIMARY KEY (tenant_id, reason)
);

-- Offboarding's hold: exporting -> held -> cancelled, or -> deleting -> deleted.
CREATE TABLE holds (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   UUID NOT NULL REFERENCES tenants (id),
    state       TEXT NOT NULL DEFAULT 'exporting'
                CHECK (state IN ('exporting', 'held', 'cancelled', 'deleting', 'deleted')),
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at  TIMESTAMPTZ,
    execution   TEXT,
    CHECK (state <> 'held' OR expires_at IS NOT NULL)
);
CREATE UNIQUE INDEX holds_one_open ON holds (tenant_id) WHERE state IN ('exporting', 'held', 'deleting');

-- Events, written in the transaction of what they tell of and published afterwards.
CREATE TABLE outbox (
    id              UUID PRIMARY KEY,
    tenant_id       UUID NOT NULL REFERENCES tenants (id),
    version         BIGINT NOT NULL,
    type            TEXT NOT NULL,
    schema_version  INTEGER NOT NULL DEFAULT 1,
    occurred_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    detail          JSONB NOT NULL,
    published_at    TIMESTAMPTZ,
    UNIQUE (tenant_id, version)
);
CREATE INDEX outbox_unpublished ON outbox (occurred_at) WHERE published_at IS NULL;
