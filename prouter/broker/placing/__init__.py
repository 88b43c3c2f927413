"""Which agent a job goes to: what agents have, what is taken of it, what an owner may take."""
