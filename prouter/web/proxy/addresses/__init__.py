"""Who asks from where, and the addresses of a job as its clients and as the job itself see them."""
