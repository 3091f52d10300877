"""Compiled plans; see README.md."""

from pathlib import Path

BREAST_CANCER = Path(__file__).parent / "breast-cancer.tffplan"
STATISTICS = Path(__file__).parent / "statistics.tffplan"
