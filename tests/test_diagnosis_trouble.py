"""The doctor on live runs, shared files, closed folders, strange disks and hostile bytes: it changes nothing, and ends."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import saves
from bounds import cpu_seconds
from incrementals import file_of as file_with
from incrementals import no_links, small_groups
from runs import state
from sickness import Forbidding, file_of, flip, found, killed, obey, saved, snapshot
from stores import MarkedStore, MemoryStore, WrappedStore
from test_posix_disk import as_nobody, open_to_all  # noqa: F401

from ckptmgr import CheckpointManager, Diagnosis, KeepLast, backend, copy, diagnose
from ckptmgr.diagnosis import storing
from ckptmgr.storage import Folder, PosixStore, Upload
