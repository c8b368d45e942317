"""Two studies of one name: the second is refused before it replaces anything; an edited or renamed one is not."""

import pytest
from conftest import ROOT, refused

from shadowcore import ownership
from shadowcore.config import load_study
from shadowcore.jobs import Jobs

QUICK = ROOT / "config" / "quick.yaml"


@pytest.fixture
def jobs(tmp_path):
    """The quick study, whose results folder is claimed by quick.yaml."""
    jobs = Jobs(load_study(QUICK), tmp_path)
    ownership.check(jobs, ["config/quick.yaml"])  # nobody's yet
    ownership.claim(jobs, ["config/quick.yaml"])
    return jobs


def edited(jobs):
    return Jobs(jobs.study.model_copy(update={"seed": 1}), jobs.root.parent)


def test_an_edited_a_moved_and_a_renamed_configuration_are_the_same_study(jobs):
    ownership.check(edited(jobs), ["elsewhere/quick.yaml"])
    ownership.check(jobs, ["config/renamed.yaml"])
    ownership.claim(edited(jobs), ["elsewhere/quick.yaml"])
    ownership.check(edited(jobs), ["config/renamed.yaml"])


def test_a_copied_and_edited_configuration_is_another_study_and_is_refused(jobs):
    words = ["quick.yaml", "mine.yaml", str(jobs.root), "`study:`", ownership.RECORD]
    refused(words, ownership.check, edited(jobs), ["config/mine.yaml"])
    (jobs.root / ownership.RECORD).unlink()  # one of the ways on
    ownership.check(edited(jobs), ["config/mine.yaml"])


def test_where_inputs_come_from_makes_no_other_study(jobs):
    offline = Jobs(jobs.study.model_copy(update={"offline": "inputs"}), jobs.root.parent)
    ownership.check(offline, ["config/renamed.yaml"])
