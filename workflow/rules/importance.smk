# The weights are `ancient`: the card has their hashes, so a change of the weights changes the card.
rule trace:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{calibration}}/documents.parquet",
    output:
        trace=deletable(f"{root}/traces/{{model}}/{{calibration}}/{{split}}-{{shard}}.safetensors"),
        checksum=f"{root}/traces/{{model}}/{{calibration}}/{{split}}-{{shard}}.safetensors.sha256",
    log:
        f"{root}/logs/trace/{{model}}/{{calibration}}/{{split}}-{{shard}}.log",
    benchmark:
        f"{root}/benchmarks/trace/{{model}}/{{calibration}}/{{split}}-{{shard}}.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("trace", "{model}/{calibration}/{split}-{shard}"),
        batch=halving(study.traces.batch),
    params:
        spec=lambda wildcards: jobs.trace(wildcards.model, wildcards.split, wildcards.shard)["spec"],
        code=fingerprint("shadowcore.stages.trace"),
    shell:
        "python -m shadowcore trace --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --batch {resources.batch} --card {input.card:q} --weights {input.weights:q} --documents {input.documents:q}"
        " --trace {output.trace:q} &> {log:q}"


rule trace_on_policy:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{calibration}}/documents.parquet",
        predictor=ancient(f"{root}/predictors/{{model}}/{{calibration}}/{{masking}}.safetensors"),
        checksum=f"{root}/predictors/{{model}}/{{calibration}}/{{masking}}.safetensors.sha256",
    output:
        trace=deletable(f"{root}/traces/{{model}}/{{calibration}}/{{masking}}/{{split}}-{{shard}}.safetensors"),
        checksum=f"{root}/traces/{{model}}/{{calibration}}/{{masking}}/{{split}}-{{shard}}.safetensors.sha256",
    log:
        f"{root}/logs/trace_on_policy/{{model}}/{{calibration}}/{{masking}}/{{split}}-{{shard}}.log",
    benchmark:
        f"{root}/benchmarks/trace_on_policy/{{model}}/{{calibration}}/{{masking}}/{{split}}-{{shard}}.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("trace_on_policy", "{model}/{calibration}/{masking}/{split}-{shard}"),
    params:
        spec=lambda wildcards: jobs.trace_on_policy(predictor(wildcards, "masking"), wildcards.split, wildcards.shard)[
            "spec"
        ],
        code=fingerprint("shadowcore.stages.trace_on_policy"),
    shell:
        "python -m shadowcore trace-on-policy --spec {params.spec:q} --threads {threads}"
        " --devices {resources.devices} --card {input.card:q} --weights {input.weights:q}"
        " --documents {input.documents:q} --predictor {input.predictor:q}"
        " --trace {output.trace:q} &> {log:q}"


rule average:
    input:
        traces=unhashed(traced),
        checksums=checksums_of(traced),
    output:
        scores=f"{root}/scores/{{model}}/{{calibration}}.parquet",
    log:
        f"{root}/logs/average/{{model}}/{{calibration}}.log",
    benchmark:
        f"{root}/benchmarks/average/{{model}}/{{calibration}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("average", "{model}/{calibration}"),
    params:
        spec=lambda wildcards: jobs.average(wildcards.model, wildcards.calibration)["spec"],
        code=fingerprint("shadowcore.stages.average"),
    shell:
        "python -m shadowcore average --spec {params.spec:q} --threads {threads} --traces {input.traces:q}"
        " --scores {output.scores:q} &> {log:q}"


rule calibrate_thresholds:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{calibration}}/documents.parquet",
    output:
        thresholds=f"{root}/thresholds/{{model}}/{{calibration}}.parquet",
    log:
        f"{root}/logs/calibrate_thresholds/{{model}}/{{calibration}}.log",
    benchmark:
        f"{root}/benchmarks/calibrate_thresholds/{{model}}/{{calibration}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("calibrate_thresholds", "{model}/{calibration}"),
        batch=halving(study.traces.batch),
    params:
        spec=lambda wildcards: jobs.calibrate_thresholds(wildcards.model, wildcards.calibration)["spec"],
        code=fingerprint("shadowcore.stages.calibrate_thresholds"),
    shell:
        "python -m shadowcore calibrate-thresholds --spec {params.spec:q} --threads {threads}"
        " --devices {resources.devices} --batch {resources.batch} --card {input.card:q} --weights {input.weights:q}"
        " --documents {input.documents:q} --thresholds {output.thresholds:q} &> {log:q}"
