"""Baselines of retrieval have no section: the page lists them after the sections."""

from __future__ import annotations

TITLE = "Retrieval without a model"
