"""What the launchers and frameworks of each release declare and read."""

from __future__ import annotations

from mgpu_doctor.knowledge.packages import PackageKnowledge

__all__ = ["PackageKnowledge"]
