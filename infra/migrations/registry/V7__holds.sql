-- Offboarding: what a hold is for, who asked, and the moves that it may make. A hold is one row from the moment a tenant leaves
-- until its deletion, or until it comes back.

ALTER TABLE tenants ADD COLUMN deletion_protection BOOLEAN NOT NULL DEFAULT false;
COMMENT ON COLUMN tenants.deletion_protection IS 'refuses offboarding and erasure until an operator lifts it; on for enterprise';
UPDATE tenants SET deletion_protection = true WHERE plan = 'enterprise';

CREATE FUNCTION protect_enterprise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.deletion_protection = NEW.deletion_protection OR NEW.plan = 'enterprise';
    RETURN NEW;
END $$;
CREATE TRIGGER tenants_protected BEFORE INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION protect_enterprise();

ALTER TABLE holds
    ADD COLUMN kind TEXT NOT NULL CHECK (kind IN ('offboarding', 'erasure')),
    ADD COLUMN reason TEXT NOT NULL
        CHECK (reason IN ('customer_request', 'subscription_cancelled', 'contract_ended', 'data_protection_law', 'duplicate_account')),
    ADD COLUMN requested_by TEXT NOT NULL,
    ADD COLUMN ticket TEXT,
    -- Why there is no export though it is no erasure request: an operator's name, audited.
    ADD COLUMN waived_by TEXT,
    -- When the export's link was published; the hold counts from here.
    ADD COLUMN published_at TIMESTAMPTZ,
    ADD COLUMN ended_at TIMESTAMPTZ,
    ADD CHECK (kind <> 'erasure' OR ticket IS NOT NULL);

-- Each move is one conditional update; what is not a move is refused here, whoever writes. `deleting` is the point of no return,
-- and is reached by nothing but an export whose link was published, an erasure request, or a waiver.
CREATE FUNCTION enforce_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.tenant_id <> OLD.tenant_id OR NEW.kind <> OLD.kind OR NEW.created_at <> OLD.created_at THEN
        RAISE EXCEPTION 'hold %: whose it is and what it is for never change', OLD.id USING ERRCODE = 'TN002';
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('exporting', 'held'), ('exporting', 'cancelled'), ('exporting', 'deleting'),
        ('held', 'cancelled'), ('held', 'deleting'), ('deleting', 'deleted')
    ) THEN
        RAISE EXCEPTION 'hold %: % to % is not a move', OLD.id, OLD.state, NEW.state USING ERRCODE = 'TN001';
    END IF;
    IF NEW.state = 'deleting' AND OLD.state <> 'deleting'
        AND NEW.published_at IS NULL AND NEW.kind <> 'erasure' AND NEW.waived_by IS NULL THEN
        RAISE EXCEPTION 'hold %: nothing is deleted without an export, an erasure request or a waiver', OLD.id
            USING ERRCODE = 'TN001';
    END IF;
    IF NEW.state IN ('cancelled', 'deleted') AND OLD.state <> NEW.state THEN
        NEW.ended_at = now();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER holds_moves BEFORE UPDATE ON holds FOR EACH ROW EXECUTE FUNCTION enforce_hold();
CREATE TRIGGER holds_kept BEFORE DELETE OR TRUNCATE ON holds FOR EACH STATEMENT EXECUTE FUNCTION refuse_removal();
CREATE INDEX holds_to_sweep ON holds (expires_at) WHERE state IN ('held', 'deleting');
