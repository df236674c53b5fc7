"""Requests to a loaded package: each by itself, or many that come and go."""

from avl_runtime.requests.request import Request
from avl_runtime.requests.scheduler import Scheduler

__all__ = ["Request", "Scheduler"]
