rule fetch_model:
    output:
        card=f"{root}/models/{{model}}/card.json",
        weights=deletable(directory(f"{root}/models/{{model}}/weights")),
    log:
        f"{root}/logs/fetch_model/{{model}}.log",
    benchmark:
        f"{root}/benchmarks/fetch_model/{{model}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("fetch_model", "{model}"),
    params:
        spec=lambda wildcards: jobs.fetch_model(wildcards.model)["spec"],
        code=fingerprint("shadowcore.stages.fetch_model"),
    shell:
        # downloads are deleted with the model's weights, so they must not be kept in the hub's cache
        ("export SHADOWCORE_OWN_DOWNLOADS=1; " if study.one_model_at_a_time else "")
        + "python -m shadowcore fetch-model --spec {params.spec:q} --threads {threads}"
        " --card {output.card:q} --weights {output.weights:q} &> {log:q}"


# This rule has the same outputs as `fetch_model`; models that are distilled from another one are made by this rule.
ruleorder: relufy > fetch_model


rule relufy:
    input:
        teacher_card=teacher_of("card.json"),
        teacher_weights=ancient(teacher_of("weights")),
        documents=lambda wildcards: f"{root}/texts/{study.models[wildcards.model].relufied.text}/documents.parquet",
    output:
        card=f"{root}/models/{{model}}/card.json",
        weights=deletable(directory(f"{root}/models/{{model}}/weights")),
    log:
        f"{root}/logs/relufy/{{model}}.log",
    benchmark:
        f"{root}/benchmarks/relufy/{{model}}.tsv"
    wildcard_constraints:
        model=named(name for name, one in study.models.items() if one.relufied),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("relufy", "{model}"),
    params:
        spec=lambda wildcards: jobs.relufy(wildcards.model)["spec"],
        code=fingerprint("shadowcore.stages.relufy"),
    shell:
        "python -m shadowcore relufy --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --teacher-card {input.teacher_card:q} --teacher-weights {input.teacher_weights:q}"
        " --documents {input.documents:q} --card {output.card:q} --weights {output.weights:q} &> {log:q}"


rule prepare_text:
    output:
        documents=f"{root}/texts/{{text}}/documents.parquet",
        tasks=f"{root}/texts/{{text}}/true_continuation.parquet",
    log:
        f"{root}/logs/prepare_text/{{text}}.log",
    benchmark:
        f"{root}/benchmarks/prepare_text/{{text}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("prepare_text", "{text}"),
    params:
        spec=lambda wildcards: jobs.prepare_text(wildcards.text)["spec"],
        code=fingerprint("shadowcore.stages.prepare_text"),
    shell:
        "python -m shadowcore prepare-text --spec {params.spec:q} --threads {threads}"
        " --documents {output.documents:q} --tasks {output.tasks:q} &> {log:q}"


rule prepare_benchmark:
    output:
        documents=f"{root}/tasks/{{task}}.parquet",
    log:
        f"{root}/logs/prepare_benchmark/{{task}}.log",
    benchmark:
        f"{root}/benchmarks/prepare_benchmark/{{task}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("prepare_benchmark", "{task}"),
    params:
        spec=lambda wildcards: jobs.prepare_benchmark(wildcards.task)["spec"],
        code=fingerprint("shadowcore.stages.prepare_benchmark"),
    shell:
        "python -m shadowcore prepare-benchmark --spec {params.spec:q} --threads {threads}"
        " --documents {output.documents:q} &> {log:q}"


# One file for all benchmarks, because Snakemake checks every input of each of twenty thousand jobs for changes.
rule gather_benchmarks:
    input:
        prepared=jobs.benchmarks(study.evaluation.texts[0]),
    output:
        benchmarks=f"{root}/tasks/benchmarks.parquet",
    log:
        f"{root}/logs/gather_benchmarks.log",
    benchmark:
        f"{root}/benchmarks/gather_benchmarks.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("gather_benchmarks", "gather_benchmarks"),
    params:
        code=fingerprint("shadowcore.stages.gather_benchmarks"),
    shell:
        "python -m shadowcore gather-benchmarks --prepared {input.prepared:q} --benchmarks {output.benchmarks:q}"
        " &> {log:q}"


rule check_disjoint:
    input:
        calibrated=f"{root}/texts/{{calibration}}/documents.parquet",
        evaluated=f"{root}/texts/{{text}}/documents.parquet",
        benchmarks=lambda wildcards: jobs.benchmarks(wildcards.text),
    output:
        record=f"{root}/checks/disjoint/{{calibration}}+{{text}}.json",
    log:
        f"{root}/logs/check_disjoint/{{calibration}}+{{text}}.log",
    benchmark:
        f"{root}/benchmarks/check_disjoint/{{calibration}}+{{text}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("check_disjoint", "{calibration}+{text}"),
    params:
        spec=lambda wildcards: jobs.check_disjoint(wildcards.calibration, wildcards.text)["spec"],
        code=fingerprint("shadowcore.stages.check_disjoint"),
    shell:
        "python -m shadowcore check-disjoint --spec {params.spec:q} --calibrated {input.calibrated:q}"
        " --evaluated {input.evaluated:q} --benchmarks {input.benchmarks:q} --record {output.record:q} &> {log:q}"
