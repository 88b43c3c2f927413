"""The users as which an agent's jobs run: the setting ``jobs.user``, and which job gets which of them."""

from __future__ import annotations

import logging
import os
import pwd
import time
from collections.abc import Iterable, Iterator, Sequence

from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.table import JobTable
from prouter.config import ConfigError
from prouter.config.agent import AgentJobs
from prouter.errors import Limit, LimitReached
from prouter.keeper.isolation import unavailable
from prouter.processes.users import User, kill_processes, missing_capabilities, with_processes

__all__ = ["UserPool", "make_users"]

_LOOKS = 10
_PAUSE = 0.005

_log = logging.getLogger("prouter.agent")


def make_users(jobs: AgentJobs) -> UserPool | None:
    """The users of an agent's jobs by its settings; None for the agent's own user.

    Raises:
        ConfigError: as `UserPool`; or jobs require a /tmp of their own, which the system does not permit.
    """
    if jobs.user is None:
        if os.geteuid() == 0:
            _log.info("event=jobs_run_as_root setting=jobs.user")
        return None
    why_not = None if jobs.private_tmp == "off" else unavailable()
    if why_not is not None:
        if jobs.private_tmp == "required":
            raise ConfigError(f"jobs.private_tmp: this system lets the agent make no namespaces: {why_not}")
        _log.warning("event=no_private_tmp reason=%r setting=jobs.private_tmp", why_not)
    return UserPool(jobs.user, isolated=jobs.private_tmp != "off" and why_not is None)


class UserPool:
    """The users of ``jobs.user``.

    Args:
        setting: one name or uid, which all jobs share; or a list of them, or a range of uids, each for one job at a
            time. A uid of a range has the gid of the same number, and no other group.
        isolated: whether jobs get a /tmp of their own.

    Attributes:
        size: how many jobs may live at the same time; None for any number.
        isolated: as given.

    Raises:
        ConfigError: the agent is not root or lacks capabilities; there is no such user, or it has root's rights.
    """

    def __init__(self, setting: str | Sequence[str], *, isolated: bool) -> None:
        if os.geteuid() != 0:
            raise ConfigError(
                "jobs.user: only root can start jobs as other users; start the agent as root, or remove jobs.user, and "
                "jobs run as the agent's own user"
            )
        missing = missing_capabilities()
        if missing:
            raise ConfigError(
                f"jobs.user: the agent lacks {', '.join(missing)}; give it these capabilities, for example with "
                "CapabilityBoundingSet= in its unit or --cap-add of its container"
            )
        shared = isinstance(setting, str) and _range(setting) is None
        words = [setting] if isinstance(setting, str) else setting
        users = _listed(words, isolated=isolated)
        self._users = [user._replace(alone=not shared) for user in {user.uid: user for user in users}.values()]
        self._shared = shared
        self.isolated = isolated
        os.setgroups(())  # The agent works in sandboxes with its groups, and needs none.
        self._used_before: dict[int, int] = {}
        self._turn = 0

    @property
    def size(self) -> int | None:
        """See the class."""
        return None if self._shared else len(self._users)

    def choose(self, jobs: JobTable) -> User:
        """Choose the user of a new job.

        A user is free once its last job has ended and no process of it is left. Those that ended jobs had, whose
        sandboxes still exist, and those that were used last come last.

        Raises:
            LimitReached: none is free.
        """
        if self._shared:
            return self._users[0]
        open_ones = [job for job in jobs.ended_jobs if not job.sandbox.is_shut]
        taken, resting = _uids([*jobs.living, *open_ones]), _uids(jobs.ended_jobs)
        free = [user for user in self._users if user.uid not in taken]
        free.sort(key=lambda user: (user.uid in resting, self._used_before.get(user.uid, 0)))
        user = self._without_processes(free)
        if user is None:
            raise LimitReached(
                f"the agent has no free user for another job: each of the {len(self._users)} users of jobs.user has a "
                "living job or other processes; wait for a job to end, or add users",
                retry_after=5.0,
                limit=Limit("jobs.user", len(self._users)),
            )
        self._turn += 1
        self._used_before[user.uid] = self._turn
        return user

    def _without_processes(self, users: Sequence[User]) -> User | None:
        busy = with_processes({user.uid for user in users}) if users else {}
        for user in users:
            pids = busy.get(user.uid)
            if pids is None:
                return user
            if _has_account(user.uid):  # Processes of a person, perhaps, who has nothing to do with jobs.
                _log.warning("event=user_has_processes user=%s pids=%s setting=jobs.user", user.name, pids[:5])
                continue
            _log.warning("event=leftovers_of_user_ended user=%s pids=%s", user.name, pids[:5])
            kill_processes(user)
            if _gone_soon(user.uid):
                return user
        return None


def _gone_soon(uid: int) -> bool:
    """Whether killed processes of a user are gone in a moment, during which the event loop waits."""
    for _ in range(_LOOKS):
        if not with_processes({uid}):
            return True
        time.sleep(_PAUSE)
    return False


def _uids(jobs: Iterable[Job]) -> set[int]:
    return {job.sandbox.user.uid for job in jobs if job.sandbox.user is not None}


def _range(word: str) -> tuple[int, int] | None:
    first, dash, last = word.partition("-")
    return (int(first), int(last)) if dash and first.isdecimal() and last.isdecimal() else None


def _listed(words: Sequence[str], *, isolated: bool) -> Iterator[User]:
    for word in words:
        between = _range(word)
        if between is None:
            yield _user(word, isolated=isolated)
        else:
            for uid in range(between[0], between[1] + 1):
                yield _numbered(uid, isolated=isolated)


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _numbered(uid: int, *, isolated: bool) -> User:
    return User(f"job-{uid}", uid, uid, isolated=isolated)


def _user(word: str, *, isolated: bool) -> User:
    """A user by name or uid; a uid without an account is like one of a range.

    Raises:
        ConfigError: there is none, or it has root's rights.
    """
    try:
        entry = pwd.getpwuid(int(word)) if word.isdecimal() else pwd.getpwnam(word)
    except KeyError:
        if word.isdecimal():
            return _numbered(int(word), isolated=isolated)
        raise ConfigError(f"jobs.user: there is no user '{word}' on this machine; make it, or use numbers") from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    if 0 in (entry.pw_uid, entry.pw_gid, *groups):
        raise ConfigError(f"jobs.user: '{word}' has the rights of root, or of root's group; choose another user")
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, isolated=isolated)
