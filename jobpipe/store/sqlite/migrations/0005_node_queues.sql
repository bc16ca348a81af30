-- Nodes say which queues they serve.

alter table nodes add column queues text;  -- a JSON array; null: all of them
