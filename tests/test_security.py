"""Nothing that a configuration, a model or an archive holds is run, and nothing is written outside its folder."""

import ast
import json
import re

import pytest
import yaml
from conftest import QUICK, ROOT, write_words
from test_workflow import prepared, snakemake

from shadowcore.config import parse_study
from shadowcore.errors import ConfigError

SOURCES = sorted((ROOT / "shadowcore").rglob("*.py"))
HOSTILE = [
    "a; touch ran", "$(touch ran)", "`touch ran`", "a' && touch ran '", "../../up", "a b", "a|b", "a\nb", "-rf",
    "*",
]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_call_runs_or_unpickles_what_it_is_given(path):
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        name, keywords = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"), ast.unparse(call)
        assert keywords.get("trust_remote_code", "False") == "False" and keywords.get("shell", "False") == "False"
        if name in ("torch.load", "np.load") or keywords.get("use_safetensors") == "False":
            assert keywords.get("weights_only") == "True", ast.unparse(call)
        assert not name.endswith(("extractall", "unpack_archive")), ast.unparse(call)


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "rules").glob("*.smk")), ids=lambda path: path.stem)
def test_a_command_quotes_all_but_numbers_and_checked_names(path):
    commands = re.findall(r"^    shell:.*?(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL)
    unquoted = {
        field for text in commands for field in re.findall(r"\{([a-z][^{}]*)\}", text) if not field.endswith(":q")
    }
    # options and paths of the final tables: made of names that the schema allows
    assert all(re.fullmatch(r"threads|resources\.\w+|params\.outputs", field) for field in unquoted)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("where", ["study", "models", "texts", "predictors", "tasks"])
def test_a_hostile_name_is_refused(where, name):
    study = json.loads(json.dumps(QUICK))
    if where == "study":
        study["study"] = name
    elif where == "tasks":
        study["evaluation"]["tasks"] = [name]
    else:
        study[where] = {name: next(iter(study[where].values()))}
    with pytest.raises(ConfigError):
        parse_study(study, "config")


@pytest.mark.slow
def test_a_hostile_path_is_a_path_and_no_command(tmp_path):
    folder = prepared(tmp_path)
    place = "words '; touch ran; $(touch ran) `touch ran` {root} \"x"
    write_words(folder / place)
    study = yaml.safe_load((folder / "config" / "tiny.yaml").read_text())
    study["texts"]["words"]["source"]["folder"]["path"] = place
    (folder / "config" / "tiny.yaml").write_text(yaml.safe_dump(study))
    said = snakemake(folder, "results/tiny/texts/words/documents.parquet")
    assert said.returncode == 0, said.stderr[-3000:]
    assert not list(folder.rglob("ran"))


def test_every_packaged_source_is_pinned_by_its_hash():
    from shadowcore.models.sources import PACKAGED_MODELS
    from shadowcore.texts.sources import PACKAGED_TEXTS

    wheels = [one.wheel for one in PACKAGED_MODELS.values()] + [one.wheel for one, _ in PACKAGED_TEXTS.values()]
    assert wheels and all(len(wheel.sha256) == 64 and int(wheel.sha256, 16) for wheel in wheels)
