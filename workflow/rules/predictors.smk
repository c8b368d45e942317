rule train_predictor:
    input:
        card=rules.fetch_model.output.card,
        traces=unhashed(trained_on("train", "trained")),
        heldout=unhashed(trained_on("heldout", "trained")),
        checksums=checksums_of(trained_on("train", "trained"), trained_on("heldout", "trained")),
    output:
        predictor=f"{root}/predictors/{{model}}/{{calibration}}/{{trained}}.safetensors",
        checksum=f"{root}/predictors/{{model}}/{{calibration}}/{{trained}}.safetensors.sha256",
        quality=f"{root}/predictors/{{model}}/{{calibration}}/{{trained}}.quality.parquet",
        training=f"{root}/predictors/{{model}}/{{calibration}}/{{trained}}.training.parquet",
    log:
        f"{root}/logs/train_predictor/{{model}}/{{calibration}}/{{trained}}.log",
    benchmark:
        f"{root}/benchmarks/train_predictor/{{model}}/{{calibration}}/{{trained}}.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("train_predictor", "{model}/{calibration}/{trained}"),
    params:
        spec=lambda wildcards: jobs.train_predictor(predictor(wildcards, "trained"))["spec"],
        code=fingerprint("shadowcore.stages.train_predictor"),
    shell:
        "python -m shadowcore train-predictor --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --card {input.card:q} --traces {input.traces:q} --heldout {input.heldout:q} --predictor {output.predictor:q}"
        " --quality {output.quality:q} --training {output.training:q} &> {log:q}"


rule tune_predictor:
    input:
        card=rules.fetch_model.output.card,
        weights=ancient(rules.fetch_model.output.weights),
        documents=f"{root}/texts/{{calibration}}/documents.parquet",
        trained=unhashed(begun_with),
        trained_checksum=checksums_of(begun_with),
        traces=unhashed(trained_on("train", "tuned")),
        heldout=unhashed(trained_on("heldout", "tuned")),
        checksums=checksums_of(trained_on("train", "tuned"), trained_on("heldout", "tuned")),
    output:
        predictor=f"{root}/predictors/{{model}}/{{calibration}}/{{tuned}}.safetensors",
        checksum=f"{root}/predictors/{{model}}/{{calibration}}/{{tuned}}.safetensors.sha256",
        quality=f"{root}/predictors/{{model}}/{{calibration}}/{{tuned}}.quality.parquet",
        training=f"{root}/predictors/{{model}}/{{calibration}}/{{tuned}}.training.parquet",
    log:
        f"{root}/logs/tune_predictor/{{model}}/{{calibration}}/{{tuned}}.log",
    benchmark:
        f"{root}/benchmarks/tune_predictor/{{model}}/{{calibration}}/{{tuned}}.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("tune_predictor", "{model}/{calibration}/{tuned}"),
    params:
        spec=lambda wildcards: jobs.tune_predictor(predictor(wildcards, "tuned"))["spec"],
        code=fingerprint("shadowcore.stages.tune_predictor"),
    shell:
        "python -m shadowcore tune-predictor --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --card {input.card:q} --weights {input.weights:q} --documents {input.documents:q}"
        " --trained {input.trained:q}"
        " --traces {input.traces:q} --heldout {input.heldout:q} --predictor {output.predictor:q}"
        " --quality {output.quality:q} --training {output.training:q} &> {log:q}"
