-- The product's tables of a tenant that has its own schema or database. Names are unqualified: the migration runs with the
-- tenant's schema as its search path. The pool's V1 is the same product, shared.

CREATE TABLE permissions (
    name         TEXT PRIMARY KEY CHECK (name ~ '^[a-z]+\.[a-z]+$'),
    description  TEXT NOT NULL
);

CREATE TABLE roles (
    name         TEXT PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]{0,62}$'),
    description  TEXT NOT NULL
);

CREATE TABLE role_permissions (
    role        TEXT NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
    permission  TEXT NOT NULL REFERENCES permissions (name),
    PRIMARY KEY (role, permission)
);
CREATE INDEX role_permissions_by_permission ON role_permissions (permission);

CREATE TABLE users (
    id          UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    email       TEXT NOT NULL,
    name        TEXT NOT NULL,
    role        TEXT NOT NULL DEFAULT 'member' REFERENCES roles (name),
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (lower(email));
CREATE INDEX users_by_role ON users (role);

CREATE TABLE projects (
    id          UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name        TEXT NOT NULL,
    owner_id    UUID REFERENCES users (id) ON DELETE SET NULL,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX projects_by_owner ON projects (owner_id);

CREATE TABLE tasks (
    id           UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id   UUID NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    assignee_id  UUID REFERENCES users (id) ON DELETE SET NULL,
    title        TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'doing', 'done')),
    due_on       DATE,
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX tasks_by_project ON tasks (project_id);
CREATE INDEX tasks_by_assignee ON tasks (assignee_id);

CREATE TABLE files (
    id           UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id   UUID NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    uploader_id  UUID REFERENCES users (id) ON DELETE SET NULL,
    object_key   TEXT NOT NULL UNIQUE,
    name         TEXT NOT NULL,
    bytes        BIGINT NOT NULL CHECK (bytes >= 0),
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON COLUMN files.object_key IS 'key in the tenant''s bucket';
CREATE INDEX files_by_project ON files (project_id);
CREATE INDEX files_by_uploader ON files (uploader_id);

INSERT INTO permissions (name, description) VALUES
    ('tenant.manage', 'change the plan, pay, close the account'),
    ('users.manage', 'invite and remove users, change their roles'),
    ('roles.manage', 'define roles and what they may do'),
    ('projects.manage', 'create, rename and delete projects'),
    ('projects.read', 'see projects'),
    ('tasks.manage', 'create, change and delete tasks'),
    ('tasks.read', 'see tasks'),
    ('files.manage', 'upload and delete files'),
    ('files.read', 'download files');

INSERT INTO roles (name, description) VALUES
    ('owner', 'may do everything'),
    ('admin', 'may do everything but manage the account itself'),
    ('member', 'works in projects that others set up');

INSERT INTO role_permissions (role, permission)
    SELECT 'owner', name FROM permissions
    UNION ALL
    SELECT 'admin', name FROM permissions WHERE name <> 'tenant.manage'
    UNION ALL
    SELECT 'member', name FROM permissions WHERE name LIKE '%.read' OR name IN ('tasks.manage', 'files.manage');
