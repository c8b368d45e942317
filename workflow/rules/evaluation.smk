# A job's outcome files, one per condition, are in the folder of its manifest. Snakemake does not know them, so it never
# deletes them. If one of them is missing, the manifest is deleted here, so that the job runs again.
for path in map(Path, jobs.manifests() if workflow.is_main_process else ()):
    if path.is_file() and manifests.absent(path):
        with suppress(OSError):  # a read-only folder
            path.unlink()


rule evaluate:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{data}}/documents.parquet",
        tasks=f"{root}/texts/{{data}}/true_continuation.parquet",
        benchmarks=benchmarks_of,
        disjoint=disjoint_of,
        scores=scores_of,
        thresholds=thresholds_of,
        predictors=unhashed(predictors_of),
        checksums=checksums_of(predictors_of),
    output:
        manifest=f"{root}/outcomes/{{model}}/{{data}}/{{pct}}.json",
    log:
        f"{root}/logs/evaluate/{{model}}/{{data}}/{{pct}}.log",
    benchmark:
        f"{root}/benchmarks/evaluate/{{model}}/{{data}}/{{pct}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("evaluate", "{model}/{data}/{pct}"),
        window_batch=halving(study.evaluation.window_batch),
        request_tokens=halving(study.evaluation.request_tokens),
    params:
        spec=lambda wildcards: jobs.evaluate(jobs.evaluations[evaluation(wildcards)])["spec"],
        code=fingerprint("shadowcore.stages.evaluate"),
    shell:
        "python -m shadowcore evaluate --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --window-batch {resources.window_batch} --request-tokens {resources.request_tokens} --card {input.card:q}"
        " --weights {input.weights:q} --documents {input.documents:q} --tasks {input.tasks:q}"
        " --benchmarks {input.benchmarks:q} --scores {input.scores:q} --thresholds {input.thresholds:q}"
        " --predictors {input.predictors:q} --manifest {output.manifest:q} &> {log:q}"


rule evaluate_oracle:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{data}}/documents.parquet",
        tasks=f"{root}/texts/{{data}}/true_continuation.parquet",
        benchmarks=benchmarks_of,
    output:
        manifest=f"{root}/outcomes/{{model}}/{{data}}/{manifests.ORACLE}.json",
    log:
        f"{root}/logs/evaluate/{{model}}/{{data}}/{manifests.ORACLE}.log",
    benchmark:
        f"{root}/benchmarks/evaluate/{{model}}/{{data}}/{manifests.ORACLE}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("evaluate_oracle", f"{{model}}/{{data}}/{manifests.ORACLE}"),
        window_batch=halving(study.evaluation.window_batch),
        request_tokens=halving(study.evaluation.request_tokens),
    params:
        spec=lambda wildcards: jobs.evaluate(jobs.evaluations[wildcards.model, wildcards.data, manifests.ORACLE])[
            "spec"
        ],
        code=fingerprint("shadowcore.stages.evaluate_oracle"),
    shell:
        "python -m shadowcore evaluate-oracle --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --window-batch {resources.window_batch} --request-tokens {resources.request_tokens} --card {input.card:q}"
        " --weights {input.weights:q} --documents {input.documents:q} --tasks {input.tasks:q}"
        " --benchmarks {input.benchmarks:q} --manifest {output.manifest:q} &> {log:q}"
