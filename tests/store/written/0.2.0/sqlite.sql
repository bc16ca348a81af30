BEGIN TRANSACTION;
CREATE TABLE attempts (
    seq         integer not null,
    claim       integer not null,
    number      integer not null,
    node        integer,
    started_at  real,  -- null: put aside without having begun
    finished_at real not null,
    outcome     text not null,
    error       blob,
    primary key (seq, claim)
) strict, without rowid;
INSERT INTO "attempts" VALUES(2,1,1,1,1700000000.0,1700000000.0,'fail',X'7B2274797065223A2256616C75654572726F72222C226D657373616765223A226E6F20737563682066696C65222C2274726163656261636B223A2254726163656261636B202E2E2E227D');
INSERT INTO "attempts" VALUES(2,2,1,1,1700000007.0,1700000007.0,'fail',X'7B2274797065223A2256616C75654572726F72222C226D657373616765223A226E6F20737563682066696C65222C2274726163656261636B223A2254726163656261636B202E2E2E227D');
INSERT INTO "attempts" VALUES(3,1,1,1,1700000000.0,1700000000.0,'retry',X'7B2274797065223A2256616C75654572726F72222C226D657373616765223A226E6F20737563682066696C65222C2274726163656261636B223A2254726163656261636B202E2E2E227D');
CREATE TABLE counts (
    queue text not null,
    state text not null,
    jobs  integer not null,
    size  integer not null,
    primary key (queue, state)
) strict, without rowid;
INSERT INTO "counts" VALUES('default','cancelled',1,7);
INSERT INTO "counts" VALUES('default','done',1,7);
INSERT INTO "counts" VALUES('default','expired',1,7);
INSERT INTO "counts" VALUES('default','failed',1,7);
INSERT INTO "counts" VALUES('default','held',3,0);
INSERT INTO "counts" VALUES('default','queued',3,0);
INSERT INTO "counts" VALUES('default','retrying',1,0);
INSERT INTO "counts" VALUES('default','scheduled',2,0);
INSERT INTO "counts" VALUES('night','queued',1,0);
CREATE TABLE jobs (
    seq         integer primary key autoincrement,  -- never used again, so that a late write finds no other job
    id          text not null unique,
    kind        text not null,
    queue       text not null,
    status      text not null check (status in
        ('scheduled', 'queued', 'running', 'retrying', 'cancelling', 'done', 'failed', 'cancelled', 'expired')),
    priority    integer not null,
    run_at      real not null,
    attempt     integer not null default 0 check (attempt >= 0),
    max_retries integer check (max_retries >= 0),
    claim       integer not null default 0,
    node        integer,
    held        integer not null default 0,
    aside       integer not null default 0,  -- 1: its kind is not served by every node, so it stands in an index by kind
    rescued     integer not null default 0,
    created_at  real not null,
    started_at  real,
    finished_at real,
    expires_at  real,
    size        integer not null default 0,
    options     blob,
    payload     blob not null,
    result      blob,
    error       blob,
    original    blob                -- what was asked first, where it was edited since
) strict;
INSERT INTO "jobs" VALUES(1,'done','echo','default','done',0,1700000000.0,1,3,1,1,0,0,0,1700000000.0,1700000000.0,1700000000.0,NULL,7,X'7B2274696D656F7574223A352E302C226261636B6F6666223A7B2262617365223A322E302C22666163746F72223A322E302C22636170223A333630302E302C226A6974746572223A2266756C6C227D2C226F6E5F6372617368223A226661696C222C2274616773223A5B22726564222C22626C7565225D2C2264656C6179223A312E307D',X'7B226E223A317D',X'226F6B22',NULL,NULL);
INSERT INTO "jobs" VALUES(2,'failed','echo','default','failed',0,1700000000.0,1,3,2,1,0,0,0,1700000000.0,1700000007.0,1700000007.0,NULL,7,X'7B2274696D656F7574223A352E302C226261636B6F6666223A7B2262617365223A322E302C22666163746F72223A322E302C22636170223A333630302E302C226A6974746572223A2266756C6C227D2C226F6E5F6372617368223A226661696C222C2274616773223A5B22726564222C22626C7565225D2C2264656C6179223A312E307D',X'7B226E223A317D',NULL,X'7B2274797065223A2256616C75654572726F72222C226D657373616765223A226E6F20737563682066696C65222C2274726163656261636B223A2254726163656261636B202E2E2E227D',NULL);
INSERT INTO "jobs" VALUES(3,'retrying','echo','default','retrying',0,1700000010.0,1,3,1,1,0,0,0,1700000000.0,1700000000.0,NULL,NULL,0,X'7B2274696D656F7574223A352E302C226261636B6F6666223A7B2262617365223A322E302C22666163746F72223A322E302C22636170223A333630302E302C226A6974746572223A2266756C6C227D2C226F6E5F6372617368223A226661696C222C2274616773223A5B22726564222C22626C7565225D2C2264656C6179223A312E307D',X'7B226E223A317D',NULL,X'7B2274797065223A2256616C75654572726F72222C226D657373616765223A226E6F20737563682066696C65222C2274726163656261636B223A2254726163656261636B202E2E2E227D',NULL);
INSERT INTO "jobs" VALUES(4,'cancelled','echo','default','cancelled',0,1700000000.0,0,3,0,NULL,0,0,0,1700000000.0,NULL,1700000000.0,NULL,7,X'7B2274696D656F7574223A352E302C226261636B6F6666223A7B2262617365223A322E302C22666163746F72223A322E302C22636170223A333630302E302C226A6974746572223A2266756C6C227D2C226F6E5F6372617368223A226661696C222C2274616773223A5B22726564222C22626C7565225D2C2264656C6179223A312E307D',X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(5,'expired','echo','default','expired',0,1700000009.0,0,3,0,NULL,0,0,0,1700000000.0,NULL,1700000006.0,1700000005.0,7,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(6,'waits','echo','default','queued',9,1700000000.0,0,3,0,NULL,0,0,0,1700000000.0,NULL,NULL,NULL,0,X'7B2274696D656F7574223A352E302C226261636B6F6666223A7B2262617365223A322E302C22666163746F72223A322E302C22636170223A333630302E302C226A6974746572223A2266756C6C227D2C226F6E5F6372617368223A226661696C222C2274616773223A5B22726564222C22626C7565225D2C2264656C6179223A312E307D',X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(7,'paused','echo','night','queued',0,1700000000.0,0,3,0,NULL,0,0,0,1700000000.0,NULL,NULL,NULL,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(8,'later','echo','default','scheduled',0,1700001000.0,0,3,0,NULL,0,0,0,1700000000.0,NULL,NULL,NULL,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(9,'expires','echo','default','scheduled',0,1700001000.0,0,3,0,NULL,0,0,0,1700000000.0,NULL,NULL,1700000500.0,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(10,'unserved','unknown','default','queued',100,1700000000.0,0,3,0,NULL,0,1,0,1700000000.0,NULL,NULL,NULL,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(11,'by the handler','echo','default','queued',0,1700000000.0,0,NULL,0,NULL,0,0,0,1700000000.0,NULL,NULL,NULL,0,NULL,X'7B2274657874223A2022C3A9E282AC227D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(12,'held','echo','default','queued',1000,1700000000.0,0,3,1,2,1,0,0,1700000000.0,NULL,NULL,NULL,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(13,'running','echo','default','running',1000,1700000000.0,1,3,1,2,1,0,0,1700000000.0,1700000000.0,NULL,NULL,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(14,'cancelling','echo','default','cancelling',1000,1700000000.0,1,3,1,2,1,0,0,1700000000.0,1700000000.0,NULL,NULL,0,NULL,X'7B226E223A317D',NULL,NULL,NULL);
CREATE TABLE nodes (
    node        integer primary key,
    name        text not null unique,
    lease_until real,
    kinds       text not null default '[]'  -- what it serves, as a JSON array; none: it only adds jobs
) strict;
INSERT INTO "nodes" VALUES(1,'node',1700000015.0,'["demo","echo","k","k2","l"]');
INSERT INTO "nodes" VALUES(2,'dead',1700000015.0,'["demo","echo","k","k2","l"]');
CREATE TABLE queues (
    name   text primary key,
    paused integer not null default 0
) strict, without rowid;
INSERT INTO "queues" VALUES('night',1);
CREATE TABLE tags (
    tag        text not null,
    created_at real not null,  -- of the job
    seq        integer not null,
    primary key (tag, created_at, seq)
) strict, without rowid;
INSERT INTO "tags" VALUES('blue',1700000000.0,1);
INSERT INTO "tags" VALUES('blue',1700000000.0,2);
INSERT INTO "tags" VALUES('blue',1700000000.0,3);
INSERT INTO "tags" VALUES('blue',1700000000.0,4);
INSERT INTO "tags" VALUES('blue',1700000000.0,6);
INSERT INTO "tags" VALUES('red',1700000000.0,1);
INSERT INTO "tags" VALUES('red',1700000000.0,2);
INSERT INTO "tags" VALUES('red',1700000000.0,3);
INSERT INTO "tags" VALUES('red',1700000000.0,4);
INSERT INTO "tags" VALUES('red',1700000000.0,6);
CREATE TABLE totals (
    state text primary key,
    jobs  integer not null,
    size  integer not null
) strict, without rowid;
INSERT INTO "totals" VALUES('cancelled',1,7);
INSERT INTO "totals" VALUES('done',1,7);
INSERT INTO "totals" VALUES('expired',1,7);
INSERT INTO "totals" VALUES('failed',1,7);
INSERT INTO "totals" VALUES('held',3,0);
INSERT INTO "totals" VALUES('queued',4,0);
INSERT INTO "totals" VALUES('retrying',1,0);
INSERT INTO "totals" VALUES('scheduled',2,0);
CREATE INDEX jobs_ready on jobs (priority desc, run_at, seq, queue) where status = 'queued' and held = 0 and aside = 0;
CREATE INDEX jobs_ready_by_queue on jobs (queue, aside, priority desc, run_at, seq) where status = 'queued' and held = 0;
CREATE INDEX jobs_aside on jobs (kind, priority desc, run_at, seq, queue) where aside = 1 and status = 'queued' and held = 0;
CREATE INDEX jobs_later on jobs (run_at) where status in ('scheduled', 'retrying');
CREATE INDEX jobs_expiring on jobs (expires_at) where expires_at is not null and finished_at is null and held = 0;
CREATE INDEX jobs_held on jobs (node) where held = 1;
CREATE INDEX jobs_ended on jobs (status, finished_at) where finished_at is not null;
CREATE INDEX jobs_by_status on jobs (status, created_at);
CREATE INDEX jobs_by_queue on jobs (queue, status, created_at);
CREATE INDEX jobs_by_kind on jobs (kind, status, created_at);
CREATE INDEX queues_paused on queues (name) where paused = 1;
CREATE INDEX queues_unset on queues (name) where paused = 0;
CREATE INDEX counts_empty on counts (queue, state) where jobs = 0 and size = 0;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',14);
COMMIT;
pragma application_id = 1785684592;
pragma user_version = 2;
