"""The job table: records, creation, placement, waits, history and events."""
