-- Enrollment branches, each with the pull request that people decide it with.

CREATE TABLE proposals (
    tenant TEXT NOT NULL,
    fleet TEXT NOT NULL,
    branch TEXT NOT NULL,
    token_id TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    -- The commit of the tracked branch that it was made on.
    base TEXT,
    -- The tip as the controller wants it, and the one before, which a push that failed leaves in the repo.
    pushed TEXT,
    pushed_before TEXT,
    -- Whether people pushed to the branch: from then on it is theirs.
    edited BIGINT NOT NULL,
    number BIGINT,
    url TEXT,
    -- The digest of the text that the controller wrote last.
    written TEXT,
    -- Whether labels and reviewers were asked for, and what the forge had against them.
    dressed BIGINT NOT NULL,
    warning TEXT,
    PRIMARY KEY (tenant, fleet, branch),
    FOREIGN KEY (tenant, fleet) REFERENCES fleets (tenant, name) ON DELETE CASCADE
);

-- Which enrollment branch carries the device, and the commit that adds it there.
ALTER TABLE devices ADD COLUMN enrollment_branch TEXT;
ALTER TABLE devices ADD COLUMN enrollment_commit TEXT;

-- Whose branches are in the repo already. Nobody remembers their tips, so they count as people's.
INSERT INTO proposals (tenant, fleet, branch, token_id, opened_at, edited, dressed)
SELECT tenant, fleet, 'longshore/enroll/' || name, token_id, created_at, 1, 0
FROM devices WHERE state = 'pending' AND branch_pushed = 1;
UPDATE devices SET enrollment_branch = 'longshore/enroll/' || name
WHERE state = 'pending' AND branch_pushed = 1;
