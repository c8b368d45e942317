rule train_predictor:
    input:
        card=rules.fetch_model.output.card,
        traces=large(trained_on("train")),
        heldout=large(trained_on("heldout")),
        seals=seals(trained_on("train"), trained_on("heldout")),
    output:
        predictor=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.safetensors",
        seal=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.safetensors.sha256",
        quality=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.quality.parquet",
        training=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.training.parquet",
    log:
        f"{root}/logs/train_predictor/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.log",
    benchmark:
        f"{root}/benchmarks/train_predictor/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **asked("train_predictor", "{model}/{calibration}/{method}+{criterion}+{predictor}"),
    params:
        spec=lambda wildcards: trained(wildcards)["spec"],
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
        trained=ancient(rules.train_predictor.output.predictor),
        trained_seal=rules.train_predictor.output.seal,
        traces=large(trained_on("train")),
        heldout=large(trained_on("heldout")),
        seals=seals(trained_on("train"), trained_on("heldout")),
    output:
        predictor=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}@tuned.safetensors",
        seal=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}@tuned.safetensors.sha256",
        quality=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}@tuned.quality.parquet",
        training=f"{root}/predictors/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}@tuned.training.parquet",
    log:
        f"{root}/logs/tune_predictor/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.log",
    benchmark:
        f"{root}/benchmarks/tune_predictor/{{model}}/{{calibration}}/{{method}}+{{criterion}}+{{predictor}}.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **asked("tune_predictor", "{model}/{calibration}/{method}+{criterion}+{predictor}"),
    params:
        spec=lambda wildcards: tuned(wildcards)["spec"],
        code=fingerprint("shadowcore.stages.tune_predictor"),
    shell:
        "python -m shadowcore tune-predictor --spec {params.spec:q} --threads {threads} --devices {resources.devices}"
        " --card {input.card:q} --weights {input.weights:q} --documents {input.documents:q}"
        " --trained {input.trained:q}"
        " --traces {input.traces:q} --heldout {input.heldout:q} --predictor {output.predictor:q}"
        " --quality {output.quality:q} --training {output.training:q} &> {log:q}"
