-- What the gate of every request needs: who is in service, why not, how much a tenant may use and where its billing cycles
-- begin. Redis holds a projection of it; this is the truth that the projection is made from.

ALTER TABLE tenants
    ADD COLUMN cycle_anchor TIMESTAMPTZ,
    ADD COLUMN gate_version BIGINT NOT NULL DEFAULT 1;
COMMENT ON COLUMN tenants.cycle_anchor IS 'a moment at which a billing cycle begins; every month from there on another does';
COMMENT ON COLUMN tenants.gate_version IS 'rises with every change that the gate must see: an older projection never replaces a newer one';
UPDATE tenants SET cycle_anchor = date_trunc('second', activated_at);

-- More or less than the plan grants, for one tenant, until a moment.
CREATE TABLE quota_overrides (
    tenant_id   UUID NOT NULL REFERENCES tenants (id),
    resource    TEXT NOT NULL CHECK (resource IN ('api_calls', 'storage_bytes', 'seats')),
    amount      BIGINT NOT NULL CHECK (amount >= 0),
    expires_at  TIMESTAMPTZ NOT NULL,
    actor       TEXT NOT NULL,
    PRIMARY KEY (tenant_id, resource)
);

-- What a tenant used in each billing cycle, as counted in Redis and kept here.
CREATE TABLE usage_cycles (
    tenant_id    UUID NOT NULL REFERENCES tenants (id),
    cycle_start  TIMESTAMPTZ NOT NULL,
    cycle_end    TIMESTAMPTZ NOT NULL,
    api_calls    BIGINT NOT NULL DEFAULT 0 CHECK (api_calls >= 0),
    counted_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, cycle_start),
    CHECK (cycle_end > cycle_start)
);

-- What a tenant was told about its quotas: once a cycle, resource and level, whoever notices, and however often.
CREATE TABLE quota_notices (
    tenant_id    UUID NOT NULL REFERENCES tenants (id),
    resource     TEXT NOT NULL CHECK (resource IN ('api_calls', 'storage_bytes', 'seats')),
    cycle_start  TIMESTAMPTZ NOT NULL,
    level        TEXT NOT NULL CHECK (level IN ('warning', 'exceeded')),
    used         BIGINT NOT NULL,
    quota        BIGINT NOT NULL,
    noticed_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    mailed_at    TIMESTAMPTZ,
    PRIMARY KEY (tenant_id, resource, cycle_start, level)
);
CREATE INDEX quota_notices_to_mail ON quota_notices (noticed_at) WHERE mailed_at IS NULL;

-- The beginning of the cycle that lies `months` after the anchor's own, in UTC whatever the session's time zone is. A month
-- that is too short ends the cycle on its last day, and the next one finds back to the anchor's day: 31 January, 28 February,
-- 31 March.
CREATE FUNCTION cycle_boundary(anchor TIMESTAMPTZ, months INTEGER) RETURNS TIMESTAMPTZ LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((anchor AT TIME ZONE 'UTC') + make_interval(months => months)) AT TIME ZONE 'UTC';

-- How many months after the anchor the cycle begins that holds a moment.
CREATE FUNCTION cycle_number(anchor TIMESTAMPTZ, moment TIMESTAMPTZ) RETURNS INTEGER LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT CASE WHEN cycle_boundary(anchor, apart) > moment THEN apart - 1 ELSE apart END
            FROM (SELECT (12 * (extract(year FROM m) - extract(year FROM a)) + extract(month FROM m) - extract(month FROM a))::integer
                  FROM (SELECT anchor AT TIME ZONE 'UTC', moment AT TIME ZONE 'UTC') AS utc (a, m)) AS months (apart));

-- A tenant that comes into service begins its first cycle. Whatever the gate must see makes a new version.
CREATE FUNCTION keep_gate_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'active' THEN
        NEW.cycle_anchor = coalesce(NEW.cycle_anchor, now());
    END IF;
    -- Billing knows whole seconds, and so do the counters' names.
    NEW.cycle_anchor = date_trunc('second', NEW.cycle_anchor);
    IF (NEW.status, NEW.plan, NEW.cycle_anchor) IS DISTINCT FROM (OLD.status, OLD.plan, OLD.cycle_anchor) THEN
        NEW.gate_version = OLD.gate_version + 1;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tenants_gate_version BEFORE UPDATE ON tenants
    FOR EACH ROW EXECUTE FUNCTION keep_gate_version();

CREATE FUNCTION raise_gate_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tenants SET gate_version = gate_version + 1
        WHERE id = CASE WHEN TG_OP = 'DELETE' THEN OLD.tenant_id ELSE NEW.tenant_id END;
    RETURN NULL;
END $$;
CREATE TRIGGER suspensions_gate_version AFTER INSERT OR DELETE ON suspensions
    FOR EACH ROW EXECUTE FUNCTION raise_gate_version();
CREATE TRIGGER overrides_gate_version AFTER INSERT OR UPDATE OR DELETE ON quota_overrides
    FOR EACH ROW EXECUTE FUNCTION raise_gate_version();

CREATE FUNCTION raise_gate_versions_of_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tenants SET gate_version = gate_version + 1 WHERE plan = NEW.plan;
    RETURN NULL;
END $$;
CREATE TRIGGER plan_quotas_gate_version AFTER UPDATE OF api_calls_per_month ON plan_quotas
    FOR EACH ROW WHEN (OLD.api_calls_per_month <> NEW.api_calls_per_month)
    EXECUTE FUNCTION raise_gate_versions_of_plan();

-- What the gate sees of the registry: one row a tenant, and nothing that is personal.
CREATE SCHEMA gate;
COMMENT ON SCHEMA gate IS 'what the gate of the product''s services reads when Redis cannot tell';

CREATE VIEW gate.tenants AS
SELECT t.slug,
       t.id,
       -- Microseconds since 1970: of two tenants that had one name, the one that came later.
       (extract(epoch FROM t.created_at) * 1000000)::bigint AS registered,
       t.gate_version AS version,
       -- active, or why not: the status, or the suspension that weighs most. Paying lifts no other than the last.
       CASE t.status WHEN 'suspended' THEN coalesce(
           (SELECT s.reason FROM suspensions s WHERE s.tenant_id = t.id
            ORDER BY array_position(ARRAY['offboarding', 'policy_violation', 'admin', 'payment_failure'], s.reason) LIMIT 1),
           'admin') ELSE t.status::text END AS standing,
       q.api_calls_per_month AS api_calls,
       o.amount AS override,
       (extract(epoch FROM o.expires_at) * 1000)::bigint AS override_until,
       -- Where the cycle before this one begins, this one, and the next 13, in milliseconds since 1970.
       ARRAY(SELECT (extract(epoch FROM cycle_boundary(t.cycle_anchor, n)) * 1000)::bigint
             FROM generate_series(cycle_number(t.cycle_anchor, now()) - 1, cycle_number(t.cycle_anchor, now()) + 13) AS n
             WHERE t.cycle_anchor IS NOT NULL ORDER BY n) AS boundaries,
       -- Counted in this cycle, as far as it was kept.
       coalesce((SELECT u.api_calls FROM usage_cycles u WHERE u.tenant_id = t.id
                 AND u.cycle_start = cycle_boundary(t.cycle_anchor, cycle_number(t.cycle_anchor, now()))), 0) AS counted
FROM tenants t
JOIN plan_quotas q USING (plan)
LEFT JOIN quota_overrides o ON o.tenant_id = t.id AND o.resource = 'api_calls'
WHERE t.status <> 'deprovisioned' OR t.activated_at IS NOT NULL;

-- The one way in for the product's own role: by name. It cannot list who else is a tenant.
CREATE FUNCTION gate.tenant(wanted TEXT) RETURNS SETOF gate.tenants LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC SELECT * FROM gate.tenants t WHERE t.slug = wanted; END;

REVOKE ALL ON FUNCTION cycle_boundary, cycle_number, gate.tenant FROM PUBLIC;
GRANT USAGE ON SCHEMA gate TO tenantry_app;
GRANT EXECUTE ON FUNCTION gate.tenant TO tenantry_app;
