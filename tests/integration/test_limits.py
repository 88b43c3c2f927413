"""Limits over the wire, with a real router of two workers that share their budgets."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import Router, start_agent, start_router, wait_until
from tests.support.raw_http import exchange
from tests.support.worker_clients import clients_of_workers
