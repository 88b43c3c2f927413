"""Uploads, downloads and listings of files over HTTP."""
