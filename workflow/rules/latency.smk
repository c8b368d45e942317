# All cores: nothing else may run on this machine while time is measured.
rule latency:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{study.evaluation.texts[0]}/documents.parquet",
        scores=f"{root}/scores/{{model}}/{study.calibration[0]}.parquet",
        predictors=unhashed(timed_predictors),
        checksums=checksums_of(timed_predictors),
    output:
        summary=f"{root}/latency/{{model}}.parquet",
        repeats=f"{root}/latency/{{model}}.repeats.parquet",
        refused=f"{root}/latency/{{model}}.refused.parquet",
    log:
        f"{root}/logs/latency/{{model}}.log",
    benchmark:
        f"{root}/benchmarks/latency/{{model}}.tsv"
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        **resources_of("latency", "{model}"),
    params:
        spec=lambda wildcards: jobs.latency(wildcards.model)["spec"],
        code=fingerprint("shadowcore.stages.latency"),
    shell:
        "python -m shadowcore latency --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --card {input.card:q} --weights {input.weights:q} --documents {input.documents:q} --scores {input.scores:q}"
        " --predictors {input.predictors:q} --summary {output.summary:q} --repeats {output.repeats:q}"
        " --refused {output.refused:q} &> {log:q}"


# One GPU to itself where there is one; its weights are made there.
rule latency_random:
    output:
        summary=f"{root}/latency/random/{{published}}/{{lengths}}.parquet",
        repeats=f"{root}/latency/random/{{published}}/{{lengths}}.repeats.parquet",
        refused=f"{root}/latency/random/{{published}}/{{lengths}}.refused.parquet",
    log:
        f"{root}/logs/latency_random/{{published}}/{{lengths}}.log",
    benchmark:
        f"{root}/benchmarks/latency_random/{{published}}/{{lengths}}.tsv"
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        **resources_of("latency_random", "{published}/{lengths}"),
    params:
        spec=lambda wildcards: jobs.latency_random(wildcards.published, wildcards.lengths)["spec"],
        code=fingerprint("shadowcore.stages.latency_random"),
    shell:
        "python -m shadowcore latency-random --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --summary {output.summary:q} --repeats {output.repeats:q} --refused {output.refused:q} &> {log:q}"
