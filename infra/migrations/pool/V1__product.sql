-- The product's tables of every tenant that shares them: the same product as the tenants' own V1, with tenant_id in every
-- key, divided by row-level security.
--
-- Who may touch which row is decided by the session's context, app.current_tenant_id, for the owner of the tables as well
-- (FORCE): the provisioner names the tenant that it works on, as the product does. No context is no rows; a context that is
-- no UUID is an error. The policies, one set a table:
--   tenant_rows    permissive, everyone: the context's rows
--   app_rows       restrictive, the application: the same again, because permissive policies add up and a later one must not
--                  open the tables to the product
--   app_inserts, app_updates, app_deletes
--                  restrictive, the application: only while the tenant is writable, so that one update freezes a tenant
--   auditor_reads  permissive, the auditor, reading only: every row. The deletion scan and the export read as the auditor,
--                  not through a filter that could hide rows
-- Unique and foreign-key checks look past row-level security, so every key begins with tenant_id.

CREATE TABLE pool.tenants (
    id          UUID PRIMARY KEY,
    slug        VARCHAR(63) NOT NULL UNIQUE,
    owner       TEXT NOT NULL,
    writable    BOOLEAN NOT NULL DEFAULT true,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON COLUMN pool.tenants.owner IS 'the marker of what Tenantry made: tenantry-tenant-id=<id>';
COMMENT ON COLUMN pool.tenants.writable IS 'false freezes the tenant''s rows for the application';

CREATE TABLE pool.permissions (
    tenant_id    UUID NOT NULL REFERENCES pool.tenants (id),
    name         TEXT NOT NULL CHECK (name ~ '^[a-z]+\.[a-z]+$'),
    description  TEXT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE pool.roles (
    tenant_id    UUID NOT NULL REFERENCES pool.tenants (id),
    name         TEXT NOT NULL CHECK (name ~ '^[a-z][a-z0-9_-]{0,62}$'),
    description  TEXT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE pool.role_permissions (
    tenant_id   UUID NOT NULL REFERENCES pool.tenants (id),
    role        TEXT NOT NULL,
    permission  TEXT NOT NULL,
    PRIMARY KEY (tenant_id, role, permission),
    FOREIGN KEY (tenant_id, role) REFERENCES pool.roles (tenant_id, name) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, permission) REFERENCES pool.permissions (tenant_id, name)
);
CREATE INDEX role_permissions_by_permission ON pool.role_permissions (tenant_id, permission);

CREATE TABLE pool.users (
    tenant_id   UUID NOT NULL REFERENCES pool.tenants (id),
    id          UUID NOT NULL DEFAULT gen_random_uuid(),
    email       TEXT NOT NULL,
    name        TEXT NOT NULL,
    role        TEXT NOT NULL DEFAULT 'member',
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, role) REFERENCES pool.roles (tenant_id, name)
);
CREATE UNIQUE INDEX users_email ON pool.users (tenant_id, lower(email));
CREATE INDEX users_by_role ON pool.users (tenant_id, role);

CREATE TABLE pool.projects (
    tenant_id   UUID NOT NULL REFERENCES pool.tenants (id),
    id          UUID NOT NULL DEFAULT gen_random_uuid(),
    name        TEXT NOT NULL,
    owner_id    UUID,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, owner_id) REFERENCES pool.users (tenant_id, id) ON DELETE SET NULL (owner_id)
);
CREATE INDEX projects_by_owner ON pool.projects (tenant_id, owner_id);

CREATE TABLE pool.tasks (
    tenant_id    UUID NOT NULL REFERENCES pool.tenants (id),
    id           UUID NOT NULL DEFAULT gen_random_uuid(),
    project_id   UUID NOT NULL,
    assignee_id  UUID,
    title        TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'doing', 'done')),
    due_on       DATE,
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, project_id) REFERENCES pool.projects (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, assignee_id) REFERENCES pool.users (tenant_id, id) ON DELETE SET NULL (assignee_id)
);
CREATE INDEX tasks_by_project ON pool.tasks (tenant_id, project_id);
CREATE INDEX tasks_by_assignee ON pool.tasks (tenant_id, assignee_id);

CREATE TABLE pool.files (
    tenant_id    UUID NOT NULL REFERENCES pool.tenants (id),
    id           UUID NOT NULL DEFAULT gen_random_uuid(),
    project_id   UUID NOT NULL,
    uploader_id  UUID,
    object_key   TEXT NOT NULL,
    name         TEXT NOT NULL,
    bytes        BIGINT NOT NULL CHECK (bytes >= 0),
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, object_key),
    FOREIGN KEY (tenant_id, project_id) REFERENCES pool.projects (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, uploader_id) REFERENCES pool.users (tenant_id, id) ON DELETE SET NULL (uploader_id)
);
COMMENT ON COLUMN pool.files.object_key IS 'key in the tenant''s bucket';
CREATE INDEX files_by_project ON pool.files (tenant_id, project_id);
CREATE INDEX files_by_uploader ON pool.files (tenant_id, uploader_id);

-- The tenant that the session is working on. Null where none is named.
CREATE FUNCTION pool.current_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('app.current_tenant_id', true), '')::uuid;

-- Divides a table by `tenant_column`; every later migration that adds a table calls it.
CREATE FUNCTION pool.divide(divided regclass, tenant_column name DEFAULT 'tenant_id') RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ours      text := format('%I = (SELECT pool.current_tenant())', tenant_column);
    writable  text := '(SELECT t.writable FROM pool.tenants t WHERE t.id = pool.current_tenant())';
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', divided);
    EXECUTE format('CREATE POLICY tenant_rows ON %s USING (%s) WITH CHECK (%2$s)', divided, ours);
    EXECUTE format('CREATE POLICY app_rows ON %s AS RESTRICTIVE TO tenantry_app USING (%s) WITH CHECK (%2$s)', divided, ours);
    EXECUTE format('CREATE POLICY auditor_reads ON %s FOR SELECT TO tenantry_auditor USING (true)', divided);
    -- The tenants themselves are never written by the application, and a policy on them could not ask them.
    IF divided <> 'pool.tenants'::regclass THEN
        EXECUTE format('CREATE POLICY app_inserts ON %s AS RESTRICTIVE FOR INSERT TO tenantry_app WITH CHECK (%s)',
                       divided, writable);
        -- USING (true): an update of a frozen tenant's row is an error, not a quiet nothing.
        EXECUTE format('CREATE POLICY app_updates ON %s AS RESTRICTIVE FOR UPDATE TO tenantry_app USING (true) WITH CHECK (%s)',
                       divided, writable);
        EXECUTE format('CREATE POLICY app_deletes ON %s AS RESTRICTIVE FOR DELETE TO tenantry_app USING (%s)',
                       divided, writable);
    END IF;
END $$;

SELECT pool.divide('pool.tenants', 'id');
SELECT pool.divide(format('pool.%I', name)::regclass)
    FROM unnest(ARRAY['permissions', 'roles', 'role_permissions', 'users', 'projects', 'tasks', 'files']) AS name;

-- Gives the context's tenant the default roles and permissions, unless it has some.
CREATE FUNCTION pool.seed_defaults() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pool.role_permissions WHERE tenant_id = pool.current_tenant()) THEN
        RETURN;
    END IF;
    INSERT INTO pool.permissions (tenant_id, name, description) VALUES
        (pool.current_tenant(), 'tenant.manage', 'change the plan, pay, close the account'),
        (pool.current_tenant(), 'users.manage', 'invite and remove users, change their roles'),
        (pool.current_tenant(), 'roles.manage', 'define roles and what they may do'),
        (pool.current_tenant(), 'projects.manage', 'create, rename and delete projects'),
        (pool.current_tenant(), 'projects.read', 'see projects'),
        (pool.current_tenant(), 'tasks.manage', 'create, change and delete tasks'),
        (pool.current_tenant(), 'tasks.read', 'see tasks'),
        (pool.current_tenant(), 'files.manage', 'upload and delete files'),
        (pool.current_tenant(), 'files.read', 'download files')
        ON CONFLICT DO NOTHING;
    INSERT INTO pool.roles (tenant_id, name, description) VALUES
        (pool.current_tenant(), 'owner', 'may do everything'),
        (pool.current_tenant(), 'admin', 'may do everything but manage the account itself'),
        (pool.current_tenant(), 'member', 'works in projects that others set up')
        ON CONFLICT DO NOTHING;
    INSERT INTO pool.role_permissions (tenant_id, role, permission)
        SELECT tenant_id, 'owner', name FROM pool.permissions WHERE tenant_id = pool.current_tenant()
        UNION ALL
        SELECT tenant_id, 'admin', name FROM pool.permissions
        WHERE tenant_id = pool.current_tenant() AND name <> 'tenant.manage'
        UNION ALL
        SELECT tenant_id, 'member', name FROM pool.permissions
        WHERE tenant_id = pool.current_tenant() AND (name LIKE '%.read' OR name IN ('tasks.manage', 'files.manage'))
        ON CONFLICT DO NOTHING;
END $$;

-- What is granted is granted here, by name: usage, and reading and writing rows. Never TRUNCATE, which looks past row-level
-- security. The functions are for the provisioner, but the one that the policies call.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pool FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pool.current_tenant() TO tenantry_app, tenantry_auditor;
GRANT USAGE ON SCHEMA pool TO tenantry_app, tenantry_auditor;
GRANT SELECT ON pool.tenants TO tenantry_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    pool.permissions, pool.roles, pool.role_permissions, pool.users, pool.projects, pool.tasks, pool.files TO tenantry_app;
GRANT SELECT ON ALL TABLES IN SCHEMA pool TO tenantry_auditor;
