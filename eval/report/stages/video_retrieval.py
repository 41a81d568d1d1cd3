"""Video retrieval is shown as image retrieval is, with a frame for each video."""

from __future__ import annotations

from .retrieval import content, headlines

__all__ = ["content", "headlines"]

TITLE = "Video retrieval"
RANK = 70
TEMPLATE = "retrieval.html.j2"
