-- How many fleets a replica could work for.
ALTER TABLE replicas ADD COLUMN wants BIGINT NOT NULL DEFAULT 0;

-- What all replicas must have in common, encrypted.
CREATE TABLE shared (
    name TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);
