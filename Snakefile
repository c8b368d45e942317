import json
import os

# The workflow of a study: configuration, rules of all stages, final outputs.
from shadowcore import ownership, preflight
from shadowcore.config import parse_study
from shadowcore.config_file import read_yaml
from shadowcore.errors import ShadowcoreError
from shadowcore.jobs import Jobs
from shadowcore.terminal import tolerant

tolerant()
if not workflow.configfiles:

    configfile: "config/quick.yaml"


# Jobs on a cluster read this file again; they do not repeat the checks of the main process.
try:
    for path in workflow.configfiles if workflow.is_main_process else ():
        read_yaml(path)  # Snakemake's own reader silently takes the last of two equal keys
    jobs = Jobs(parse_study(config, "configuration"))
    if workflow.is_main_process:
        preflight.check(jobs)
        if workflow.resource_settings.nodes is None:  # set by `jobs: N` in a cluster's profile; then jobs run elsewhere
            preflight.check_machine(jobs)
        ownership.check(jobs, workflow.configfiles)
except ShadowcoreError as error:
    raise WorkflowError(str(error))
study, root = jobs.study, str(jobs.root)
settings = ["HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1"] if study.offline else []  # a missing source is an error
if study.one_model_at_a_time:  # downloads are deleted with the model's weights, so the hub's cache must not keep them
    settings.append("SHADOWCORE_OWN_DOWNLOADS=1")
shell.prefix("".join(f"export {setting}; " for setting in settings))


include: "workflow/rules/common.smk"


wildcard_constraints:
    model=named(study.models),
    text=named(study.texts),
    calibration=named(study.calibrated),
    task=named(study.evaluation.tasks),
    split="train|heldout",
    shard=r"\d+",
    part=r"\d+(-\d+)?",
    published=named(model for model, _ in jobs.timed_dimensions),
    lengths=r"\d+x\d+\+\d+",
    trained=named(one.slug(study.seed) for one in jobs.trained.values() if not jobs.is_tuned(one)),
    tuned=named(one.slug(study.seed) for one in jobs.trained.values() if jobs.is_tuned(one)),
    masking=named(one.slug(study.seed) for one in jobs.trained.values()),


report: "workflow/report/workflow.rst"


if study.one_model_at_a_time:

    include: "workflow/rules/one_model.smk"


include: "workflow/rules/stages.smk"


localrules:
    all,
    tables,
    figures,


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.write_page.output,


onstart:
    if workflow.local_exec:  # also after `--jobs N` without a cluster
        try:
            preflight.check_machine(jobs)
        except ShadowcoreError as error:
            raise WorkflowError(str(error))
    if workflow.storage_settings.default_storage_provider:
        raise WorkflowError(
            "an object store cannot hold a study: evaluations write outcome files that Snakemake does not know, so it "
            "would not store them; use a shared disk, without `--default-storage-provider`"
        )
    place = next(path for path in (jobs.root, *jobs.root.parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise WorkflowError(
            f"{place} cannot be written (read-only, or of another user), but results are written there"
        )
    require_queue()
    notice_interruption()
    show_progress()
    if study.one_model_at_a_time:
        take_turns(workflow.scheduler)
    ownership.claim(jobs, workflow.configfiles)


onsuccess:
    end_progress()
    if (jobs.root / "tables").is_dir():
        shell("python -m shadowcore show --brief {root} || true")


onerror:
    end_progress()
    if interrupted():
        print(
            "The run was interrupted. Start the same command again to continue; `shadowcore status` shows the state."
        )
    else:
        report_what_there_is()
