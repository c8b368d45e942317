"""The report of a study: its tables, claims, figures and page."""

from pathlib import Path

PUBLISHED = Path(__file__).with_name("published.csv")  # the published values that claims are compared with
