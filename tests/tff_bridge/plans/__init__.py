"""Compiled plans; see README.md."""

from pathlib import Path

BREAST_CANCER = Path(__file__).parent / "breast-cancer.tffplan"
SECURE = Path(__file__).parent / "secure.tffplan"
STATISTICS = Path(__file__).parent / "statistics.tffplan"
