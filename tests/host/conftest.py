"""Lets the tests of this folder import the tables that they share, such as `kfac_cases`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
