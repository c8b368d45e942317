from os.path import relpath

from shadowcore.report import PUBLISHED
from shadowcore.report.captions import CAPTIONS
from shadowcore.schemas import MEASURED_TABLES


rule aggregate:
    input:
        evaluations=jobs.manifests(),
        scores=jobs.scores(),
        qualities=[f"{stem}.quality.parquet" for stem in jobs.predictors()],
        trainings=[f"{stem}.training.parquet" for stem in jobs.predictors()],
        latencies=[f"{stem}.parquet" for stem in jobs.latencies()],
        repeats=[f"{stem}.repeats.parquet" for stem in jobs.latencies()],
        refusals=[f"{stem}.refused.parquet" for stem in jobs.latencies()],
    output:
        **{
            name: report(f"{root}/tables/{name}.parquet", category="Tables", caption="../report/tables.rst")
            for name in MEASURED_TABLES
        },
    log:
        f"{root}/logs/aggregate.log",
    benchmark:
        f"{root}/benchmarks/aggregate.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("aggregate", "aggregate"),
    params:
        code=fingerprint("shadowcore.stages.aggregate"),
        outputs=lambda wildcards, output: " ".join(
            f"--{name.replace('_', '-')} {path}" for name, path in output.items()
        ),
    shell:
        "python -m shadowcore aggregate --evaluations {input.evaluations:q} --scores {input.scores:q}"
        " --qualities {input.qualities:q} --trainings {input.trainings:q} --latencies {input.latencies:q}"
        " --repeats {input.repeats:q} --refusals {input.refusals:q} {params.outputs} &> {log:q}"


rule check_tables:
    input:
        tables=jobs.tables(MEASURED_TABLES),
    output:
        record=f"{root}/checks/tables.json",
    log:
        f"{root}/logs/check_tables.log",
    benchmark:
        f"{root}/benchmarks/check_tables.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("check_tables", "check_tables"),
    params:
        code=fingerprint("shadowcore.stages.check_tables"),
    shell:
        "python -m shadowcore check-tables --tables {input.tables:q} --record {output.record:q} &> {log:q}"


rule judge_claims:
    input:
        tables=jobs.tables(MEASURED_TABLES),
        checked=rules.check_tables.output.record,
        published=local(escaped(relpath(PUBLISHED))),  # a file of this repository, never in an object store
    output:
        claims=report(f"{root}/tables/claims.parquet", category="Tables", caption="../report/tables.rst"),
    log:
        f"{root}/logs/judge_claims.log",
    benchmark:
        f"{root}/benchmarks/judge_claims.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("judge_claims", "judge_claims"),
    params:
        code=fingerprint("shadowcore.stages.judge_claims"),
    shell:
        "python -m shadowcore judge-claims --tables {input.tables:q} --published {input.published:q}"
        " --claims {output.claims:q} &> {log:q}"


# one job per model, because importing the plotting packages takes longer than drawing a figure
rule draw:
    input:
        tables=jobs.tables(MEASURED_TABLES),
        checked=rules.check_tables.output.record,
    output:
        drawn=f"{root}/figures/{{model}}.json",
        figures=report(
            directory(f"{root}/figures/{{model}}"),
            patterns=["{figure}.png"],
            category="Figures",
            labels={"figure": "{figure}", "model": "{model}"},  # the second label becomes a switch between models
            caption="../report/figure.rst",
        ),
    log:
        f"{root}/logs/draw/{{model}}.log",
    benchmark:
        f"{root}/benchmarks/draw/{{model}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("draw", "{model}"),
    params:
        spec=lambda wildcards: json.dumps({"model": wildcards.model}),
        figures=lambda wildcards: jobs.figure_files(wildcards.model),
        captions=CAPTIONS,
        code=fingerprint("shadowcore.stages.draw"),
    shell:
        "python -m shadowcore draw --spec {params.spec:q} --tables {input.tables:q}"
        " --drawn {output.drawn:q} --figures {params.figures:q} &> {log:q}"


rule write_page:
    input:
        tables=jobs.tables(),
        drawn=jobs.drawn(),
        introduction=local(escaped(relpath(f"{workflow.basedir}/workflow/report/workflow.rst"))),
    output:
        page=report(
            f"{root}/index.html",
            category="Page",
            labels={"page": "the study on one page"},
            caption="../report/page.rst",
        ),
    log:
        f"{root}/logs/write_page.log",
    benchmark:
        f"{root}/benchmarks/write_page.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **resources_of("write_page", "write_page"),
    params:
        spec=jobs.write_page()["spec"],
        code=jobs.write_page()["code"],
    shell:
        "python -m shadowcore write-page --spec {params.spec:q} --tables {input.tables:q} --drawn {input.drawn:q}"
        " --introduction {input.introduction:q} --page {output.page:q} &> {log:q}"


rule tables:
    input:
        jobs.tables(),
        rules.check_tables.output.record,


rule figures:
    input:
        jobs.drawn(),
