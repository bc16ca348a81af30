// What somebody writes in TypeScript against the generated client: it must compile, and do what it says.
import assert from "node:assert/strict";
import { client } from "./client/client.gen.js";
import { cancelJob, deleteJob, enqueueJob, enqueueJobs, getJob, listJobs, pauseQueue } from "./client/index.js";
import type { EnqueueRequest } from "./client/index.js";

client.setConfig({ baseUrl: process.argv[2]! });

// Only what this job is about: everything else may be left out.
const job: EnqueueRequest = { id: "ts-1", payload: { to: "a@b.c" } };
const enqueued = await enqueueJob({ body: job });
assert.equal(enqueued.response?.status, 202);
assert.equal(enqueued.data?.id, "ts-1");

const ended = await getJob({ path: { job_id: "ts-1" }, query: { wait: 10 } });
assert.equal(ended.data?.status, "done");
assert.deepEqual(ended.data?.result, { to: "a@b.c" });

const backoff = { id: "ts-2", delay: 60, backoff: { base: 5 }, tags: ["weekly"] };
const several = await enqueueJobs({ body: [backoff, { id: "ts-3", run_at: "2099-01-01T00:00:00Z" }] });
assert.deepEqual(several.data, { enqueued: 2, existing: 0, replaced: 0, rejected: 0 });

const page = await listJobs({ query: { tag: "weekly" } });
assert.deepEqual(page.data?.jobs.map((one) => one.id), ["ts-2"]);
assert.equal(page.data?.next_cursor, null);

const refused = await enqueueJob({ body: { id: "ts-1", payload: "another" } });
assert.equal(refused.error?.code, "id_conflict");

assert.equal((await pauseQueue({ path: { name: "mail" } })).data?.paused, true);
assert.equal((await cancelJob({ path: { job_id: "ts-2" } })).data?.status, "cancelled");
assert.equal((await deleteJob({ path: { job_id: "ts-2" } })).response?.status, 204);
console.log("works");
