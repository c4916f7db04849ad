-- What it takes to follow large fleets with several replicas.

-- How many changes of its devices a fleet has seen. Whoever changes a device in a way that the fleet's
-- reconciler reads counts it here, in the same transaction, and stamps the device: so a reader asks for what
-- has a higher stamp than what it knows, and never for the whole fleet.
ALTER TABLE fleets ADD COLUMN changes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX devices_changed ON devices (tenant, fleet, changed);

-- Where devices are connected. It moves often, hence a narrow table of its own.
ALTER TABLE devices DROP COLUMN connected;
ALTER TABLE devices DROP COLUMN last_seen;
CREATE TABLE connections (
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    -- Null where it is not connected.
    replica TEXT,
    -- When it came or went.
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, device),
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, id) ON DELETE CASCADE
);
CREATE INDEX connections_replica ON connections (replica);

-- The controllers that work on this database, each alive until an instant of the database's clock.
CREATE TABLE replicas (
    id TEXT NOT NULL PRIMARY KEY,
    alive_until BIGINT NOT NULL
);

-- Which replica reconciles which fleet, until when, for how many changes of hands.
CREATE TABLE leases (
    tenant TEXT NOT NULL,
    fleet TEXT NOT NULL,
    holder TEXT NOT NULL,
    held_until BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    PRIMARY KEY (tenant, fleet),
    FOREIGN KEY (tenant, fleet) REFERENCES fleets (tenant, name) ON DELETE CASCADE
);
