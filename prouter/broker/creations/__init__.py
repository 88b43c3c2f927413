"""Creation of jobs, once for each idempotency key."""
