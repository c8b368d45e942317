# A rule for every stage of a study. Which stages there are, their outputs and what they need of a machine is in
# shadowcore/rules.py; their specifications and inputs are in shadowcore/jobs.py.

# A job's outcome files, one per condition, are in the folder of its manifest. Snakemake does not know them, so it never
# deletes them. If one of them is missing, the manifest is deleted here, so that the job runs again.
for path in map(Path, jobs.manifests() if workflow.is_main_process else ()):
    if path.is_file() and manifests.absent(path):
        with suppress(OSError):  # a read-only folder
            path.unlink()


for name, facts in RULES.items():
    place = f"{name.removesuffix('_oracle')}/{facts.job}" if facts.job else name

    rule:
        name:
            name
        input:
            unpack(inputs_of(name)),
            **{option: local(escaped(path)) for option, path in REPOSITORY.get(name, {}).items()},
        output:
            **outputs_of(name),
        log:
            f"{root}/logs/{place}.log",
        benchmark:
            f"{root}/benchmarks/{place}.tsv"
        # two rules make models
        wildcard_constraints:
            **{"model": named(sum(jobs.names[name], ()))} if "weights" in facts.outputs else {},
        priority: priority_of(name)
        conda:
            ENVIRONMENT
        threads: workflow.cores if facts.timed else 1
        resources:
            **resources_of(name),
        params:
            **params_of(name),
        # evaluated when the job runs, after the loop: `facts` would be those of the last rule
        shell:
            "python -m shadowcore {params.stage} --spec {params.spec:q} --threads {threads} "
            "--devices {resources.devices} {resources.batches} {params.files} &> {log:q}"


rule tables:
    input:
        jobs.tables(),
        jobs.made_by("check_tables", "record"),


rule figures:
    input:
        jobs.made_by("draw", "drawn"),
