-- How a fleet's Git host is reached, and what was told to it.

-- The webhook's secret before the present one, while both hold.
ALTER TABLE fleets ADD COLUMN webhook_secret_before BLOB;
ALTER TABLE fleets ADD COLUMN webhook_secret_before_until BIGINT;
-- The forge and the credentials, as one encrypted JSON text. Null where Git needs none.
ALTER TABLE fleets ADD COLUMN connection BLOB;
-- Whether the controller hosts the repo itself.
ALTER TABLE fleets ADD COLUMN hosted BIGINT NOT NULL DEFAULT 0;
-- The commit statuses as the forge knows them, as JSON.
ALTER TABLE fleets ADD COLUMN reported TEXT;
