"""The sections of single stages, found by the names of their files: see `eval.report.sections`."""
