-- What billing last said of a tenant's subscription, and how long a plan waits for a payment that failed.

ALTER TABLE plan_quotas
    ADD COLUMN payment_grace_seconds INTEGER NOT NULL DEFAULT 0 CHECK (payment_grace_seconds >= 0);
UPDATE plan_quotas SET payment_grace_seconds = CASE plan WHEN 'growth' THEN 259200 WHEN 'enterprise' THEN 1209600 ELSE 0 END;
COMMENT ON COLUMN plan_quotas.payment_grace_seconds IS 'how long after a failed payment the tenant stays in service';

ALTER TABLE billing_accounts
    ADD COLUMN standing TEXT CHECK (standing IN ('open', 'paid', 'owing', 'lapsed', 'cancelled')),
    ADD COLUMN prices TEXT[] NOT NULL DEFAULT '{}',
    ADD COLUMN period_start TIMESTAMPTZ,
    ADD COLUMN sequence BIGINT,
    ADD COLUMN past_due_since TIMESTAMPTZ,
    ADD COLUMN cancelled_by_us TEXT,
    ADD COLUMN looked_at TIMESTAMPTZ NOT NULL DEFAULT now();
COMMENT ON COLUMN billing_accounts.standing IS 'what billing last said of the subscription; null before it said anything';
COMMENT ON COLUMN billing_accounts.prices IS 'ids of the prices that it is billed at, as far as billing says';
COMMENT ON COLUMN billing_accounts.period_start IS 'when its current billing period began';
COMMENT ON COLUMN billing_accounts.sequence IS 'of the newest event in our own form, where the event is all there is; null where Stripe is asked';
COMMENT ON COLUMN billing_accounts.past_due_since IS 'when it was first seen past due; null while it is paid';
COMMENT ON COLUMN billing_accounts.cancelled_by_us IS 'the subscription that we are about to cancel, or did: what billing says of it is our own doing';
COMMENT ON COLUMN billing_accounts.looked_at IS 'when billing was last followed: a day later it is asked again, should an event have been lost';
CREATE INDEX billing_accounts_past_due ON billing_accounts (past_due_since) WHERE past_due_since IS NOT NULL;
CREATE INDEX billing_accounts_looked_at ON billing_accounts (looked_at) WHERE subscription IS NOT NULL;

-- What was said of one subscription says nothing of the next.
CREATE FUNCTION forget_subscription() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.standing = NULL;
    NEW.prices = '{}';
    NEW.period_start = NULL;
    NEW.sequence = NULL;
    NEW.past_due_since = NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_accounts_subscription BEFORE UPDATE OF subscription ON billing_accounts
    FOR EACH ROW WHEN (OLD.subscription IS DISTINCT FROM NEW.subscription) EXECUTE FUNCTION forget_subscription();
