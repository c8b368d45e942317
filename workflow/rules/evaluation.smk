def condition(wildcards):
    return jobs.conditions[wildcards.model, wildcards.data, wildcards.setup, int(wildcards.pct)]


def evaluated(stage, wildcards):
    return jobs.evaluate(stage, (wildcards.model, wildcards.data, wildcards.setup, int(wildcards.pct)))


def scores_of(wildcards):
    one = condition(wildcards)
    return [f"{root}/scores/{one.model}/{one.calibration}.parquet"] if one.method == "static" else []


def predictor_of(wildcards):
    one = condition(wildcards)
    if one.predictor is None:
        return []
    return [jobs.predictor(one.model, one.calibration, one.method, one.criterion, one.predictor) + ".safetensors"]


rule evaluate:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{data}}/documents.parquet",
        tasks=f"{root}/texts/{{data}}/true_continuation.parquet",
        scores=scores_of,
        predictor=predictor_of,
    output:
        outcomes=f"{root}/outcomes/{{model}}/{{data}}/{{setup}}/{{pct}}.parquet",
    log:
        f"{root}/logs/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.log",
    benchmark:
        f"{root}/benchmarks/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.tsv"
    wildcard_constraints:
        setup=r"(?!oracle\+).*",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2500,
    params:
        spec=lambda wildcards: evaluated("evaluate", wildcards)["spec"],
        code=lambda wildcards: evaluated("evaluate", wildcards)["code"],
    shell:
        "python -m shadowcore evaluate --spec {params.spec:q} --threads {threads} --card {input.card:q}"
        " --weights {input.weights:q} --documents {input.documents:q} --tasks {input.tasks:q}"
        " --scores {input.scores:q} --predictor {input.predictor:q} --outcomes {output.outcomes:q} &> {log:q}"


rule evaluate_oracle:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{data}}/documents.parquet",
        tasks=f"{root}/texts/{{data}}/true_continuation.parquet",
    output:
        outcomes=f"{root}/outcomes/{{model}}/{{data}}/{{setup}}/{{pct}}.parquet",
    log:
        f"{root}/logs/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.log",
    benchmark:
        f"{root}/benchmarks/evaluate/{{model}}/{{data}}/{{setup}}/{{pct}}.tsv"
    wildcard_constraints:
        setup=r"oracle\+.*",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=3000,
    params:
        spec=lambda wildcards: evaluated("evaluate-oracle", wildcards)["spec"],
        code=lambda wildcards: evaluated("evaluate-oracle", wildcards)["code"],
    shell:
        "python -m shadowcore evaluate-oracle --spec {params.spec:q} --threads {threads} --card {input.card:q}"
        " --weights {input.weights:q} --documents {input.documents:q} --tasks {input.tasks:q}"
        " --outcomes {output.outcomes:q} &> {log:q}"
