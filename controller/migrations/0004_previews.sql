-- What changes would do, as it was told to Git hosts.

CREATE TABLE previews (
    tenant TEXT NOT NULL,
    fleet TEXT NOT NULL,
    -- The pull request's number.
    number BIGINT NOT NULL,
    -- The commits that were compared.
    base TEXT NOT NULL,
    head TEXT NOT NULL,
    -- The report as JSON, compressed; null where the pull request is not rendered.
    report BLOB,
    -- What the host was told, as JSON.
    told TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, fleet, number),
    FOREIGN KEY (tenant, fleet) REFERENCES fleets (tenant, name) ON DELETE CASCADE
);
