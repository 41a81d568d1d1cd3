"""Results of evaluations as one HTML file with images, which opens without a network."""

from data_pipeline.errors import UsageError

try:
    from .page import write_report
except ModuleNotFoundError as error:
    # Only these two are an optional extra; any other missing module is a fault to be seen.
    if error.name not in ("jinja2", "matplotlib"):
        raise
    raise UsageError(f'reports and images need {error.name}: pip install "glscl[report]"') from None

__all__ = ["write_report"]
