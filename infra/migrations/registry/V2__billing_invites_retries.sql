-- What onboarding lacked: billing accounts, invitations, more isolation on request, attempts that try again by themselves,
-- and sign-ups that expire.

ALTER TABLE plan_quotas
    ADD COLUMN max_isolation isolation,
    ADD COLUMN billing_price TEXT;
UPDATE plan_quotas SET
    max_isolation = CASE plan WHEN 'starter' THEN 'schema' ELSE 'database' END::isolation,
    billing_price = plan::text;
ALTER TABLE plan_quotas
    ALTER COLUMN max_isolation SET NOT NULL,
    ALTER COLUMN billing_price SET NOT NULL,
    ADD CHECK (default_isolation <= max_isolation);
COMMENT ON COLUMN plan_quotas.max_isolation IS 'the most isolation that a sign-up on this plan may ask for';
COMMENT ON COLUMN plan_quotas.billing_price IS 'id of the price at Stripe that a subscription to this plan has';

ALTER TABLE tenants
    ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1,
    ADD COLUMN retries INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN retry_at TIMESTAMPTZ;
COMMENT ON COLUMN tenants.attempt IS 'rises when a compensation has finished: part of the idempotency keys sent to Stripe';
COMMENT ON COLUMN tenants.retries IS 'how often the sweep has tried again since the tenant was last asked for';
COMMENT ON COLUMN tenants.retry_at IS 'when the sweep tries again, after a failure that may pass';

-- A sign-up that was never active gives its slug back when it expires; a slug that was ever in service is never given again.
ALTER TABLE tenants DROP CONSTRAINT tenants_slug_key;
CREATE UNIQUE INDEX tenants_slug ON tenants (slug) WHERE status <> 'deprovisioned' OR activated_at IS NOT NULL;
CREATE INDEX tenants_to_sweep ON tenants (status) WHERE status IN ('pending', 'provisioning');

-- What the tenant is at Stripe. An adopted customer was named by the sign-up: it is not ours to delete.
CREATE TABLE billing_accounts (
    tenant_id       UUID PRIMARY KEY REFERENCES tenants (id),
    customer        TEXT,
    adopted         BOOLEAN NOT NULL DEFAULT false,
    payment_method  TEXT,
    subscription    TEXT,
    CHECK (NOT adopted OR customer IS NOT NULL)
);
CREATE INDEX billing_accounts_by_customer ON billing_accounts (customer);
CREATE INDEX billing_accounts_by_subscription ON billing_accounts (subscription);

-- The first administrator's invitation. The link's token is an HMAC of id and generation; only its hash is here.
CREATE TABLE invites (
    id           UUID PRIMARY KEY,
    tenant_id    UUID NOT NULL REFERENCES tenants (id),
    generation   INTEGER NOT NULL DEFAULT 1,
    token_hash   BYTEA NOT NULL CHECK (length(token_hash) = 32),
    expires_at   TIMESTAMPTZ NOT NULL,
    accepted_at  TIMESTAMPTZ,
    revoked_at   TIMESTAMPTZ
);
CREATE INDEX invites_by_tenant ON invites (tenant_id);
