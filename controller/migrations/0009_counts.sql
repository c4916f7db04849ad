-- What counting a fleet's devices needs to know of their conditions: whether the overlay does not build.
ALTER TABLE devices ADD COLUMN unbuilt BIGINT NOT NULL DEFAULT 0;
-- Quotes within a text are escaped in JSON, so this finds members and no messages.
UPDATE devices SET unbuilt = 1
WHERE conditions LIKE '%"type":"Rendered","status":"False",%'
    AND conditions NOT LIKE '%"type":"Rendered","status":"False","reason":"Building",%';
