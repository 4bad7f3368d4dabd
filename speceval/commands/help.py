"""What `--help` says beside the flags: their groups, other names that are understood, examples. Imports nothing."""

from __future__ import annotations

ALIASES = {
    "--temperature": "--temp",
    "--num-speculative-tokens": "--k",
    "--model": "--target",
    "--drafter": "--draft",
    "--speculative-model": "--draft",
    "--tasks": "--suite",
    "--suites": "--suite",
    "--dataset": "--suite",
    "--prompts": "--suite",
    "--num-prompts": "--limit",
    "--request-rate": "--rate",
    "--base-url": "--url",
    "--seed": "--seeds",
    "--batch-size": "--batch",
    "--max-num-seqs": "--batch",
    "--concurrency": "--batch",
    "--max-concurrency": "--batch",
    "--output": "--out",
    "--output-path": "--out",
}
"""Names that vLLM, lm-evaluation-harness and others have for a flag; any command that has the flag takes them."""

GROUPS = {
    "What is measured": ("target", "draft", "k", "method", "draft_args", "trust_remote_code"),
    "Sampling": ("temperature", "temp", "top_p", "top_k", "drafting", "draft_truncation", "rejection"),
    "Prompts and samples": (
        *("suites", "suite", "data_dir", "limit", "stratified", "shuffle_seed", "max_tokens", "seeds", "shard"),
        *("chat_template_kwargs", "samples", "n_tokens", "prompt", "seeded", "greedy_share"),
    ),
    "When to stop": ("until", "against", "over"),
    "Engine": (
        "engine",
        "runner",
        "batch",
        "rate",
        "prefix_caching",
        "engine_args",
        "engine_arg",
        "url",
        "api_key_env",
        "dialect",
        "through_server",
    ),
    "Several engines": ("ray", "replicas", "gpus_per_replica"),
    "Server": ("host", "port", "name", "log"),
    "Also": (
        "record",
        "replay",
        "speedup",
        "speedup_batch",
        "reference",
        "bias",
        "kernels",
        "vllm",
        "bursts",
        "answers",
        "beside",
        "confirm",
        "rates",
        "tau",
        "steps",
    ),
    "Output": ("out", "as_json", "junit", "markdown", "plot", "runs", "help"),
}
"""Title of a section of options -> the parameters in it, of every command."""

FEW = 12
"""Options that need no sections."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "speceval run --target zoo --draft lk-eagle3 --temp 1",
        "speceval run --target llama-3.1-8b --draft lk-eagle3 --temp 1 --suite gsm8k",
        "speceval run --target ./model --draft ./head --temp 0 --suite prompts.jsonl",
    ),
    "sweep": ("speceval sweep losses.yaml --dry-run", "speceval sweep losses.yaml --ray auto"),
    "merge": ("speceval merge results/one results/two -o results/whole",),
    "capture": ("speceval capture results/RUN -o captures/RUN",),
    "replay": ("speceval replay captures/RUN --draft lk-eagle3,ngram", "speceval replay captures/RUN --draft ./head"),
    "tune": ("speceval tune --target zoo --draft kl-eagle3,lk-eagle3 --batch 1,8 --k 1-5",),
    "verify": (
        "speceval verify --target zoo --draft lk-eagle3 --temp 1",
        "speceval verify --kernels --vllm vllm-0.33.0.whl",
    ),
    "selftest": ("speceval selftest --target zoo --draft lk-eagle3", "speceval selftest --tau 2.5 --out selftest.json"),
    "serve": (
        "speceval serve --target zoo --draft lk-eagle3 --temp 1",
        "speceval serve --target ./model --draft ./head --k 5 --temp 0 --port 8100",
    ),
    "probe": ("speceval probe http://127.0.0.1:8000",),
    "watch": (
        "speceval watch http://127.0.0.1:8000 --prometheus watch.prom",
        "speceval watch http://127.0.0.1:8000 --baseline normal.json -o slices.parquet",
    ),
    "show": ("speceval show results/RUN",),
    "validate": ("speceval validate results",),
    "compare": ("speceval compare results/OLD results/NEW",),
    "table": ("speceval table results published", "speceval table results --layout paper-mean -o table.tex"),
    "check": ("speceval check results/RUN --baseline base.json --junit check.xml",),
    "baseline": ("speceval baseline results/RUN -o baseline.json",),
    "demo": ("speceval demo",),
    "explain": ("speceval explain results/RUN",),
    "plot": ("speceval plot results/RUN", "speceval plot results/OLD results/NEW --kind forest -o f.pdf"),
    "report": ("speceval report results/RUN -o report.html", "speceval report results/OLD results/NEW"),
    "export": ("speceval export results/RUN --as model-card -o README.md",),
    "ls": ("speceval ls targets", "speceval ls runs --root results"),
}
"""Command -> lines that work, with names of one's own."""
