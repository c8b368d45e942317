# Running one model at a time (`one_model_at_a_time: true`), for which Snakemake has no settings:
# - Jobs of a model start when no job of the models before it is running or can start. Failed jobs of a model, and jobs
#   that need their files, do not delay the next models; therefore files of one model are not inputs of another's jobs.
# - Deleted files are made again for jobs that read them, and only those jobs run. Snakemake would run all jobs again
#   that have ever read such a file, although the new file is the same.
from snakemake.dag import DAG
from snakemake.io import is_flagged


def take_turns(scheduler):
    """Let the scheduler choose only among jobs without a model and jobs of the first model that has jobs."""
    select, order, current = scheduler.job_selector, list(study.models), 0

    def turn(job):
        model = getattr(job, "wildcards_dict", {}).get("model")
        return None if model is None else order.index(model)

    def select_in_turn(ready):
        nonlocal current
        turns = {turn(job) for job in {*ready, *scheduler.running}}
        first = min(turns - {None}, default=current)
        if first < current or None not in turns:  # otherwise jobs of this model may be waiting for a text
            current = first
        chosen = {job for job in ready if turn(job) in (None, current)}
        return select(chosen) if chosen else []

    scheduler.job_selector = select_in_turn


def jobs_to_run(dag):
    """The jobs that must run, of those that Snakemake would run: jobs with a reason of their own, jobs whose inputs
    change, and jobs that make deleted files for them.
    """
    possible = set(dag.needrun_jobs())
    changed = {job for job in possible if dag.reason(job).forced or not dag.reason(job).derived}
    repeated, waiting = set(), list(changed)
    while waiting:
        job = waiting.pop()
        for before, files in dag._dependencies[job].items():
            missing = [path for path in dag.reason(before).missing_output if path in files]
            into = repeated if all(is_flagged(path, "temp") for path in missing) else changed
            if missing and before in possible - into - changed:
                into.add(before)
                waiting.append(before)
        for after, files in dag.depending[job].items() if job in changed else ():
            if after in possible - changed and not all(path.is_ancient for path in files):
                changed.add(after)
                waiting.append(after)
    return changed | repeated


determine_jobs = DAG.update_needrun


async def update_needrun(dag, create_inventory=False):
    await determine_jobs(dag, create_inventory)
    needed = jobs_to_run(dag)
    for job in dag._needrun - needed:
        dag.reason(job).clear()
    dag._needrun &= needed
    for job in dag._needrun:
        dag._n_until_ready[job] = sum(before in dag._needrun for before in dag._dependencies[job])
    dag._len = len(dag._finished | dag._needrun)


if workflow.is_main_process:
    DAG.update_needrun = update_needrun
