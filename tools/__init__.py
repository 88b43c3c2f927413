"""Scripts that the Makefile and continuous integration call."""
