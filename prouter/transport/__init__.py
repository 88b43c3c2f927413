"""The fabric carried over ZeroMQ on a gevent loop; used by workers and agents."""
