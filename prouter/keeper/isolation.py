"""What separates a job that runs as a user of its own: it gives up root, and gets a /tmp and IPC objects of its own.

All of this happens in the forked child, before it executes the job's command. Standard library only; sources:
mount_namespaces(7), mount(2), close_range(2), credentials(7), PR_SET_NO_NEW_PRIVS in prctl(2), keyrings(7).
"""

from __future__ import annotations

import ctypes
import errno
import os

from prouter.processes.users import User

__all__ = ["become", "close_descriptors", "isolate", "unavailable"]

_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
_PR_SET_NO_NEW_PRIVS = 38
_SYS_CLOSE_RANGE = 436  # The same number on every architecture.
_CLOSE_RANGE_CLOEXEC = 4
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_UMASK = 0o077
_SCRATCH = ".pagent.tmp"
_SHARED = ("/tmp", "/var/tmp")  # noqa: S108 - the directories to be replaced
_MEMORY = "/dev/shm"  # noqa: S108 - likewise
_QUEUES = "/dev/mqueue"
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def close_descriptors() -> None:
    """Have every descriptor but 0, 1 and 2 closed when the command is executed.

    The keeper opens none without O_CLOEXEC; this holds for libraries as well. Kernels before 5.11 do nothing here.
    """
    _libc.syscall(
        ctypes.c_long(_SYS_CLOSE_RANGE), ctypes.c_uint(3), ctypes.c_uint(2**32 - 1), ctypes.c_uint(_CLOSE_RANGE_CLOEXEC)
    )


def become(user: User) -> None:
    """Give up root for good: become the user, whom no setuid program can promote.

    Raises:
        OSError: the system refuses.
    """
    os.umask(_UMASK)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:  # Root's session keyring would stay open to the job. Containers may forbid keyrings at all.
        _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def isolate(sandbox: str, user: User) -> None:
    """Move this process into namespaces of its own, in which it has its own /tmp, /var/tmp, /dev/shm and IPC objects.

    The job's directory for temporary files is mounted on /tmp and /var/tmp. Of the directory of all sandboxes, and of
    directories above it that the user may not enter, the job sees only the way to its own sandbox.

    Raises:
        OSError: the system refuses.
    """
    _leave_namespaces()
    own = os.open(sandbox, _OPEN)
    scratch = os.open(_SCRATCH, _OPEN, dir_fd=own)
    if os.fstat(scratch).st_uid != user.uid:
        raise OSError(errno.EPERM, f"{_SCRATCH} is not a directory of user {user.uid}")
    hidden = _first_closed(sandbox)
    for place in dict.fromkeys(map(os.path.realpath, _SHARED)):
        if _is_inside(sandbox, place):
            hidden = place
        elif os.path.isdir(place):
            _bind(scratch, place)
    _mount_empty(hidden, "1777" if hidden in _SHARED else "0711")
    os.umask(0)
    below = hidden
    for name in sandbox[len(hidden) :].strip("/").split("/"):
        below = f"{below.rstrip('/')}/{name}"
        os.mkdir(below, 0o711)
    _bind(own, sandbox)
    if os.path.isdir(_MEMORY):
        _mount_empty(_MEMORY, "1777")
    if os.path.ismount(_QUEUES):  # It would still show the machine's queues.
        _mount("mqueue", _QUEUES, "mqueue", _MS_NOSUID | _MS_NODEV, None)
    os.close(own)
    os.close(scratch)


def unavailable() -> str | None:
    """Why this process may not give jobs namespaces of their own; None if it may. A forked child tries it."""
    pid = os.fork()
    if pid == 0:
        code = errno.EINVAL
        try:
            _leave_namespaces()
            _mount_empty(os.path.realpath(_SHARED[0]), "1777")
            code = 0
        except OSError as error:
            code = error.errno or errno.EINVAL
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:
        return None
    return os.strerror(status) if status > 0 else f"ended by signal {-status}"


def _leave_namespaces() -> None:
    _check(_libc.unshare(ctypes.c_int(_CLONE_NEWNS | _CLONE_NEWIPC)))
    # Mounts of the machine still arrive; those that follow here stay here.
    _mount(None, "/", None, _MS_REC | _MS_SLAVE, None)


def _first_closed(sandbox: str) -> str:
    """The topmost directory above the sandbox that others may not enter; at the latest the one of all sandboxes."""
    parent = os.path.dirname(sandbox)
    path = ""
    for name in parent.strip("/").split("/"):
        path = f"{path}/{name}"
        if not os.stat(path).st_mode & 0o001:
            return path
    return parent


def _is_inside(path: str, directory: str) -> bool:
    return path.startswith(f"{directory}/")


def _bind(fd: int, target: str) -> None:
    _mount(f"/proc/self/fd/{fd}", target, None, _MS_BIND, None)


def _mount_empty(target: str, mode: str) -> None:
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    _check(_libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(options)), target)


def _check(result: int, path: str | None = None) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
