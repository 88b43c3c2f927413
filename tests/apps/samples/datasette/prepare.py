"""Writes a small database."""

import sqlite3

with sqlite3.connect("sample.db") as database:
    database.execute("create table answers (question text, answer integer)")
    database.execute("insert into answers values ('six times seven', 42)")
