"""What people and nodes ask of jobs and queues, written once for every database."""
