//! Enough rows that reading a whole table costs more than looking into an index.

use sqlx::Executor as _;

use crate::store::database::Database;

/// 100 fleets of ten tenants with 200 devices each, beside the tenants and fleets that are there.
const SEED: &str = "
    INSERT INTO tenants (name, created_at) SELECT 'tenant-' || t, 1 FROM generate_series(1, 10) AS t;
    INSERT INTO fleets (tenant, name, repo, branch, path, trusted, webhook_secret, conditions,
        problems, held, created_at)
    SELECT 'tenant-' || t, 'fleet-' || f, '', 'main', '', 0, '', '[]', '[]', '[]', 1
    FROM generate_series(1, 10) AS t, generate_series(1, 10) AS f;
    INSERT INTO devices (tenant, id, fleet, name, public_key, state, state_reason, token_id,
        branch_pushed, folder_to_delete, labels, facts, conditions, source_address, created_at, changed)
    SELECT fleets.tenant, md5(fleets.tenant || fleets.name || d), fleets.name, 'device-' || d,
        'key-' || d, CASE WHEN d % 50 = 0 THEN 'pending' ELSE 'active' END, '', 'token', 0, 0, '{}',
        '{\"arch\": \"aarch64\", \"os\": \"linux\"}', repeat('x', 200), '', 1, d
    FROM fleets, generate_series(1, 200) AS d WHERE fleets.tenant LIKE 'tenant-%';
    INSERT INTO desired (tenant, device, generation, digest, revision, objects, since)
    SELECT tenant, id, 1, 'digest', 'revision', 20, 1 FROM devices;
    INSERT INTO observed (tenant, device, generation, digest, phase, conditions, reported_at)
    SELECT tenant, id, 1, 'digest', 'Applied', '[]', 1 FROM devices;
    INSERT INTO replicas (id, alive_until, wants) SELECT 'replica-' || r, 1, 1 FROM generate_series(1, 3) AS r;
    INSERT INTO connections (tenant, device, replica, seen_at)
    SELECT tenant, id, 'replica-' || (1 + changed % 3), 1 FROM devices;
    INSERT INTO tokens (tenant, id, fleet, label, hash, approval, uses, revoked, labels, created_at)
    SELECT tenant, 'token-' || name || t, name, '', 'hash-' || tenant || name || t, 'manual', 0, 0, '{}', 1
    FROM fleets, generate_series(1, 20) AS t WHERE name LIKE 'fleet-%';
    INSERT INTO api_tokens (hash, tenant, label, created_at)
    SELECT 'hash-' || t, 'tenant-1', '', 1 FROM generate_series(1, 2000) AS t;
    INSERT INTO revisions (tenant, fleet, seq, commit_id, summary, author, observed_at,
        devices_changed, problems)
    SELECT tenant, name, r, md5(name || r), '', '', 1, 1, 0 FROM fleets, generate_series(1, 50) AS r WHERE name LIKE 'fleet-%';
    INSERT INTO renders (tenant, input_key, objects, created_at)
    SELECT 'tenant-' || t, md5('r' || t || k), '[]', 1
    FROM generate_series(1, 10) AS t, generate_series(1, 1000) AS k;
    INSERT INTO objects (tenant, digest, body)
    SELECT 'tenant-' || t, md5('o' || t || k), '' FROM generate_series(1, 10) AS t, generate_series(1, 1000) AS k;
    INSERT INTO sets (tenant, digest, entries)
    SELECT 'tenant-' || t, md5('s' || t || k), '' FROM generate_series(1, 10) AS t, generate_series(1, 1000) AS k;
    INSERT INTO proposals (tenant, fleet, branch, token_id, opened_at, edited, dressed)
    SELECT tenant, name, 'branch-' || b, 'token', 1, 0, 0 FROM fleets, generate_series(1, 20) AS b WHERE name LIKE 'fleet-%';
    ANALYZE;
";

/// Fills a PostgreSQL database.
pub async fn plenty(database: &Database) {
    let mut db = database.read().await;
    db.execute(SEED).await.unwrap();
}
