"""The machine that is measured on, and what a process takes of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch


def describe_machine() -> str:
    """One line that a table of figures is read with."""
    memory = psutil.virtual_memory().total / 2**30
    threads = os.environ.get("ATTUNE_SERVE_THREADS") or torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    libraries = f"torch {torch.__version__}, transformers {importlib.metadata.version('transformers')}"
    return f"{_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB, {capability}, {threads} threads; {libraries}"


def _cpu() -> str:
    """The processor's name: Linux says it in a file, elsewhere Python knows one."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def resident_of(pid: int) -> int:
    """Resident memory of one process, in bytes."""
    return int(psutil.Process(pid).memory_info().rss)
