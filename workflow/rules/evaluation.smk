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
        predictor=large(predictor_of),
        seal=seals(predictor_of),
    output:
        outcomes=f"{root}/outcomes/{{model}}/{{data}}/{{setup}}/{{pct}}.parquet",
    log:
        f"{root}/logs/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.log",
    benchmark:
        f"{root}/benchmarks/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.tsv"
    wildcard_constraints:
        setup=r"(?!oracle\+).*",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **asked("evaluate", "{model}/{data}/{setup}/{pct}"),
        window_batch=halving(study.evaluation.window_batch),
        request_batch=halving(study.evaluation.request_batch),
    params:
        spec=lambda wildcards: jobs.evaluate("evaluate", condition_key(wildcards))["spec"],
        code=fingerprint("shadowcore.stages.evaluate"),
    shell:
        "python -m shadowcore evaluate --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --window-batch {resources.window_batch} --request-batch {resources.request_batch} --card {input.card:q}"
        " --weights {input.weights:q} --documents {input.documents:q} --tasks {input.tasks:q}"
        " --benchmarks {input.benchmarks:q} --scores {input.scores:q} --thresholds {input.thresholds:q}"
        " --predictor {input.predictor:q} --outcomes {output.outcomes:q} &> {log:q}"


rule evaluate_oracle:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{data}}/documents.parquet",
        tasks=f"{root}/texts/{{data}}/true_continuation.parquet",
        benchmarks=benchmarks_of,
    output:
        outcomes=f"{root}/outcomes/{{model}}/{{data}}/{{setup}}/{{pct}}.parquet",
    log:
        f"{root}/logs/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.log",
    benchmark:
        f"{root}/benchmarks/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.tsv"
    wildcard_constraints:
        setup=r"oracle\+.*",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **asked("evaluate_oracle", "{model}/{data}/{setup}/{pct}"),
        window_batch=halving(study.evaluation.window_batch),
        request_batch=halving(study.evaluation.request_batch),
    params:
        spec=lambda wildcards: jobs.evaluate("evaluate-oracle", condition_key(wildcards))["spec"],
        code=fingerprint("shadowcore.stages.evaluate_oracle"),
    shell:
        "python -m shadowcore evaluate-oracle --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --window-batch {resources.window_batch} --request-batch {resources.request_batch} --card {input.card:q}"
        " --weights {input.weights:q} --documents {input.documents:q} --tasks {input.tasks:q}"
        " --benchmarks {input.benchmarks:q} --outcomes {output.outcomes:q} &> {log:q}"
