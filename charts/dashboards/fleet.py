"""What the operator knows of all models. A model is chosen by namespace and name."""

from __future__ import annotations

from dashboards.grafana import RANGE, Json, Panel, Query, dashboard, stat, variable

MODEL = 'namespace=~"$namespace", name=~"$name"'
READY = f"namespace_name:sheaf_operator_ready_replicas:leader{{{MODEL}}}"
WANTED = f"namespace_name:sheaf_operator_replicas:leader{{{MODEL}}}"
DESIRED = f"namespace_name:sheaf_operator_desired_replicas:leader{{{MODEL}}}"
NAME = "{{namespace}}/{{name}}"


def condition(matcher: str) -> str:
    return f"namespace_name_type:sheaf_operator_condition:leader{{{MODEL}, {matcher}}} == 1"


def rate(name: str, by: str, legend: str, matcher: str = "") -> Query:
    return f"sum by ({by}) (rate(sheaf_operator_{name}{{{matcher}}}[{RANGE}]))", legend


def p95(name: str) -> Query:
    buckets, legend = rate(f"{name}_bucket", "job, le", "{{job}} p95")
    return f"histogram_quantile(0.95, {buckets})", legend


STALLED = condition('type="Stalled"')
TOKENS = f'sum(rate(vllm:generation_tokens_total{{namespace=~"$namespace"}}[{RANGE}]))'
ROWS = {
    "Now": [
        stat("Models that serve", f"count({READY} > 0) or vector(0)"),
        stat("Models that want replicas and have none", f"count({READY} == 0 and {WANTED} > 0) or vector(0)"),
        stat("Stalled models", f"count({STALLED}) or vector(0)"),
        stat("Tokens per second", TOKENS),
        stat("Operators that hold the Lease", "sum(sheaf_operator_lease_held)"),
    ],
    "Replicas": [
        Panel("Wanted and ready", "none", (WANTED, f"{NAME} wanted"), (READY, f"{NAME} ready")),
        Panel("The scaler's decision", "none", (DESIRED, NAME)),
        Panel("Signals, mean per replica", "none", (f"sheaf_operator_signal{{{MODEL}}}", NAME + " {{type}}")),
        Panel("Conditions that are True", "none", (condition('type!="Ready"'), NAME + " {{type}}")),
    ],
    "The operator": [
        Panel("Runs", "ops", rate("reconciles_total", "job, result", "{{job}} {{result}}")),
        Panel("Duration of a run", "s", p95("reconcile_seconds")),
        Panel("Writes", "ops", rate("writes_total", "job, kind", "{{job}} {{kind}}")),
        Panel(
            "Pods that do not answer", "ops", rate("scrape_failures_total", "namespace, name", NAME, MODEL)
        ),
    ],
}
VARIABLES = [
    variable("namespace", "Namespace", "label_values(sheaf_operator_replicas, namespace)"),
    variable("name", "LLMDeployment", 'label_values(sheaf_operator_replicas{namespace=~"$namespace"}, name)'),
]


def fleet() -> Json:
    return dashboard("sheaf-fleet", "Sheaf / Fleet", VARIABLES, ROWS)
