-- Changes of tenants' plans, one row each. The row is open until everything of the tenant's has followed: whoever resumes a
-- change finds in it what the tenant comes from.
CREATE TABLE plan_changes (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id     UUID NOT NULL REFERENCES tenants (id),
    from_plan     plan NOT NULL,
    to_plan       plan NOT NULL,
    actor         TEXT NOT NULL,
    reason        TEXT,
    begun_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- When it was told, once, what of the tenant's does not fit the new plan.
    reported_at   TIMESTAMPTZ,
    does_not_fit  JSONB,
    closed_at     TIMESTAMPTZ,
    CHECK ((reported_at IS NULL) = (does_not_fit IS NULL))
);
COMMENT ON COLUMN plan_changes.from_plan IS 'the plan that the tenant''s configuration was seeded from; its own again where nothing changes but is put right';
CREATE UNIQUE INDEX plan_changes_one_open ON plan_changes (tenant_id) WHERE closed_at IS NULL;
CREATE INDEX plan_changes_by_tenant ON plan_changes (tenant_id, id);
