"""The command line of this process, which every user of the machine can read: secrets in it are overwritten.

Whoever looks between the start of the process and `hide_secrets` still sees them: files and variables are better.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from prouter.secret_keys import SECRET_KEYS

__all__ = ["hide_secrets", "secret_parts"]

log = logging.getLogger("prouter.process")

_ARG_START = 47
"""Index of arg_start among the fields of /proc/PID/stat (proc(5)), counted from 0; arg_end follows."""
_VALUED = frozenset({b"--set", b"--join", b"--env", b"-e", b"--token"})
"""Options that a secret may follow, in the same argument after ``=`` or in the next one."""
_JOIN_TOKEN = re.compile(rb"[?&]token=([^&]*)")


def hide_secrets() -> None:
    """Overwrite the values of secret configuration keys, and tokens in URLs to join, in this process's command line."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = (int(field) for field in stat[_ARG_START - 2 : _ARG_START])
        shown = Path("/proc/self/cmdline").read_bytes()
    except (OSError, ValueError) as error:
        log.debug("event=command_line_not_read error=%r", str(error))
        return
    if not start or end - start != len(shown) or ctypes.string_at(start, len(shown)) != shown:
        return  # not Linux as we know it: better a secret there than memory overwritten that is something else
    for offset, length in secret_parts(shown):
        ctypes.memset(start + offset, ord("*"), length)


def secret_parts(command_line: bytes) -> Iterator[tuple[int, int]]:
    """Yield offset and length in bytes of each secret in a command line whose arguments end with NUL."""
    offset, option = 0, b""
    for argument in command_line.split(b"\0"):
        name, equals, value = argument.partition(b"=")
        if equals and name in _VALUED:
            found = _secret_in(name, value)
            at = offset + len(name) + 1
        else:
            found = _secret_in(option, argument)
            at = offset
        if found is not None and found[1]:
            yield at + found[0], found[1]
        option = argument
        offset += len(argument) + 1


def _secret_in(option: bytes, value: bytes) -> tuple[int, int] | None:
    """Return offset and length of the secret in an option's value; None if there is none."""
    if option == b"--token":
        return 0, len(value)
    if option == b"--join":
        token = _JOIN_TOKEN.search(value)
        return (token.start(1), len(token[1])) if token is not None else None
    name, equals, text = value.partition(b"=")
    if equals and (option in (b"--env", b"-e") or (option == b"--set" and _is_secret(name.strip()))):
        return len(name) + 1, len(text)
    return None


def _is_secret(name: bytes) -> bool:
    """Whether the value of a key is secret, or holds the value of such a key: ``server`` holds its accept_tokens."""
    key = name.decode("utf-8", "replace")
    return any(key == secret or key.startswith(f"{secret}.") or secret.startswith(f"{key}.") for secret in SECRET_KEYS)
