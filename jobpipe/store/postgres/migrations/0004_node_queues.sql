-- older nodes: go on
-- Nodes say which queues they serve, and for which of them they have room.

alter table nodes
    add column queues text[] collate "C",    -- null: all of them
    add column idle_for text[] collate "C";  -- of which queues it found too little, where it is idle; null: of all

-- Ready jobs that stand aside, for claims that name queues.
create index live_aside_by_queue on live (queue, kind, priority desc, run_at, seq)
    where kind is not null and status = 'queued' and node is null;
