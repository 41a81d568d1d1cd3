"""Results as one HTML file with pictures, which opens without a network."""

from data_pipeline.errors import UsageError

try:
    from .page import write_report
except ModuleNotFoundError as error:
    if error.name not in ("jinja2", "matplotlib"):
        raise
    raise UsageError(
        f'reports and pictures need {error.name}: pip install "glscl[report]"'
    ) from None

__all__ = ["write_report"]
