-- One schema for SQLite and PostgreSQL. Types are TEXT, BIGINT and BLOB (BYTEA on PostgreSQL) and nothing
-- else; truth values are 0 or 1; instants are milliseconds since the Unix epoch; lists are JSON text.

CREATE TABLE tenants (
    name TEXT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
);

-- Operators' tokens. A null tenant means every tenant.
CREATE TABLE api_tokens (
    hash TEXT NOT NULL PRIMARY KEY,
    tenant TEXT REFERENCES tenants (name) ON DELETE CASCADE,
    label TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE fleets (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    repo TEXT NOT NULL,
    branch TEXT NOT NULL,
    path TEXT NOT NULL,
    -- Whether Git may use the controller's own credentials and read local paths: only for an administrator's.
    trusted BIGINT NOT NULL,
    webhook_secret BLOB NOT NULL,
    revision TEXT,
    conditions TEXT NOT NULL,
    problems TEXT NOT NULL,
    held TEXT NOT NULL,
    confirmed_revision TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);

CREATE TABLE revisions (
    tenant TEXT NOT NULL,
    fleet TEXT NOT NULL,
    seq BIGINT NOT NULL,
    commit_id TEXT NOT NULL,
    summary TEXT NOT NULL,
    author TEXT NOT NULL,
    observed_at BIGINT NOT NULL,
    devices_changed BIGINT NOT NULL,
    problems BIGINT NOT NULL,
    PRIMARY KEY (tenant, fleet, seq),
    FOREIGN KEY (tenant, fleet) REFERENCES fleets (tenant, name) ON DELETE CASCADE
);

-- Provisioning tokens.
CREATE TABLE tokens (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    fleet TEXT NOT NULL,
    label TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    approval TEXT NOT NULL,
    uses BIGINT NOT NULL,
    max_uses BIGINT,
    expires_at BIGINT,
    revoked BIGINT NOT NULL,
    overlay TEXT,
    labels TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, fleet) REFERENCES fleets (tenant, name) ON DELETE CASCADE
);

CREATE TABLE devices (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    fleet TEXT NOT NULL,
    name TEXT NOT NULL,
    public_key TEXT NOT NULL,
    state TEXT NOT NULL,
    state_reason TEXT NOT NULL,
    token_id TEXT NOT NULL,
    -- Whether the controller pushed the enrollment branch: from then on, its absence means a rejection.
    branch_pushed BIGINT NOT NULL,
    -- Whether the device's folder is still to be deleted from the tracked branch.
    folder_to_delete BIGINT NOT NULL,
    labels TEXT NOT NULL,
    facts TEXT NOT NULL,
    conditions TEXT NOT NULL,
    source_address TEXT NOT NULL,
    connected BIGINT NOT NULL,
    last_seen BIGINT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, fleet) REFERENCES fleets (tenant, name) ON DELETE CASCADE
);

CREATE UNIQUE INDEX devices_id ON devices (id);
CREATE UNIQUE INDEX devices_key ON devices (tenant, fleet, public_key);
CREATE UNIQUE INDEX devices_name ON devices (tenant, fleet, name) WHERE state IN ('pending', 'active');

-- What a device should run.
CREATE TABLE desired (
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    generation BIGINT NOT NULL,
    digest TEXT NOT NULL,
    revision TEXT NOT NULL,
    objects BIGINT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (tenant, device),
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, id) ON DELETE CASCADE
);

-- What a device holds and reports.
CREATE TABLE observed (
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    generation BIGINT NOT NULL,
    digest TEXT NOT NULL,
    phase TEXT NOT NULL,
    conditions TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, device),
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, id) ON DELETE CASCADE
);

-- Content: builds by input key, objects and sets by digest.
CREATE TABLE renders (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    input_key TEXT NOT NULL,
    -- Null where the build failed.
    objects TEXT,
    error TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, input_key)
);

CREATE TABLE objects (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (tenant, digest)
);

CREATE TABLE sets (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    entries BLOB NOT NULL,
    PRIMARY KEY (tenant, digest)
);
