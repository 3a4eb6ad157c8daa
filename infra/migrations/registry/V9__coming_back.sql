-- What a hold remembers besides its moves, and that a subscription was ended by us.

ALTER TABLE holds
    ADD COLUMN notified_at TIMESTAMPTZ,
    ADD COLUMN week_reminded_at TIMESTAMPTZ,
    ADD COLUMN day_reminded_at TIMESTAMPTZ,
    ADD COLUMN thawed_at TIMESTAMPTZ,
    ADD CHECK (thawed_at IS NULL OR state = 'cancelled');
COMMENT ON COLUMN holds.notified_at IS 'when the owner was told of the link and of the date of deletion';
COMMENT ON COLUMN holds.week_reminded_at IS 'when the owner was reminded seven days before the deletion';
COMMENT ON COLUMN holds.day_reminded_at IS 'when the owner was reminded a day before the deletion';
COMMENT ON COLUMN holds.thawed_at IS 'when all that the hold had withdrawn was seen to be given back; before, the tenant is not in service';

ALTER TABLE billing_accounts ADD COLUMN cancelled_by_us_at TIMESTAMPTZ;
COMMENT ON COLUMN billing_accounts.cancelled_by_us_at IS 'since when the subscription is ended by us: what is left of its period counts from here';

-- What the sweep looks for: the open holds, and those that were cancelled and not given back yet.
CREATE INDEX holds_to_resume ON holds (tenant_id) WHERE state IN ('exporting', 'deleting') OR state = 'cancelled' AND thawed_at IS NULL;
