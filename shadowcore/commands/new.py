"""`shadowcore new`: write a commented configuration with defaults for a new study."""

import argparse
from pathlib import Path

import yaml

from shadowcore.config import parse_study
from shadowcore.errors import ConfigError

TEMPLATE = Path(__file__).parent.parent / "template.yaml"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the study; the file is config/NAME.yaml")


def run(parsed: argparse.Namespace) -> None:
    """Write the file; ConfigError for a name that is not allowed, or a file that exists already."""
    line = yaml.safe_dump({"study": parsed.name}).strip()  # with quotes where YAML needs them
    text = TEMPLATE.read_text(encoding="utf-8").replace("/mine", f"/{parsed.name}").replace("study: mine", line, 1)
    parse_study(yaml.safe_load(text), "NAME")
    path = Path("config", f"{parsed.name}.yaml")
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"NAME: {path} exists already; choose another name, or delete the file") from None
    print(f"{path} is written. Change it, then run: shadowcore plan {path}")
