"""`shadowcore fetch`: download a study's models, texts and benchmarks into a folder."""

import argparse
from pathlib import Path

from shadowcore import preflight
from shadowcore.config import load_study
from shadowcore.fetch import fetch
from shadowcore.jobs import Jobs


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a configuration, such as config/paper.yaml")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder, for `offline: FOLDER`")


def run(parsed: argparse.Namespace) -> None:
    study = load_study(parsed.config)
    preflight.check(Jobs(study))  # finds mistakes before gigabytes are downloaded
    fetch(study, parsed.to)
