"""Option names of other trainers, for the message about an unknown option."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rayff.config.errors import near

OTHER_NAMES = {
    "arch": "model model-name model-name-or-path network backbone model-type",
    "task": "dataset dataset-name data",
    "data-dir": "data-path data-root dataset-dir dataset-path train-dir root",
    "loss": "criterion loss-fn loss-function local-loss",
    "augment": "augmentation augmentations aug data-augmentation transforms",
    "limit": "max-train-samples limit-train-batches max-samples num-train-samples",
    "width": "hidden-size hidden-dim channels num-channels",
    "epochs": "num-train-epochs max-epochs num-epochs n-epochs total-epochs",
    "batch-size": "per-device-train-batch-size per-gpu-train-batch-size train-batch-size "
    "local-batch-size global-batch-size bs b",
    "lr": "learning-rate base-lr max-lr lr-max initial-lr",
    "lr-min": "min-lr eta-min min-learning-rate final-lr",
    "lr-schedule": "lr-scheduler lr-scheduler-type scheduler sched lr-decay-style",
    "lr-steps": "milestones lr-milestones lr-decay-milestones decay-epochs decay-milestones",
    "lr-decay": "gamma lr-gamma decay-rate lr-decay-rate lr-decay-fact",
    "warmup-epochs": "warmup warmup-steps num-warmup-steps warmup-iters lr-warmup-epochs",
    "lr-scale": "layer-decay layerwise-lr-decay",
    "weight-decay": "wd l2",
    "clip-norm": "max-grad-norm clip-grad grad-clip gradient-clip-val clip-grad-norm max-norm",
    "dropout": "drop drop-rate dropout-rate",
    "optimizer": "optim opt optimizer-name",
    "seed": "random-seed manual-seed random-state data-seed",
    "precision": "dtype mixed-precision training-dtype amp-dtype",
    "precision bf16": "bf16 fp16 half amp use-amp",
    "autotune": "cudnn-benchmark benchmark",
    "device": "accelerator",
    "device cpu": "cpu use-cpu no-cuda no-gpu",
    "device cuda": "cuda use-cuda gpu use-gpu",
    "stages": "gpus num-gpus devices num-devices num-workers nproc-per-node num-processes "
    "world-size pp pipeline-parallel-degree pipeline-parallel-size num-stages",
    "cuts": "split-points pipeline-parallel-split-points balance",
    "gpus-per-stage": "gpus-per-worker num-gpus-per-worker",
    "cpus-per-stage": "cpus-per-worker num-cpus-per-worker threads num-threads",
    "threads": "num-threads torch-threads",
    "run-dir": "output-dir output out out-dir save-dir log-dir logging-dir work-dir "
    "experiment-dir default-root-dir checkpoint-dir dump-folder",
    "storage-path": "remote-dir upload-dir",
    "resume": "resume-from-checkpoint resume-from ckpt-path auto-resume load-checkpoint",
    "config": "config-file cfg yaml",
    "checkpoint-every": "save-every save-steps save-freq save-interval checkpoint-interval "
    "checkpoint-frequency every-n-epochs",
    "keep-checkpoints": "save-total-limit save-top-k num-to-keep checkpoint-hist keep-latest-k",
    "max-failures": "max-restarts max-retries",
    "log-every": "log-interval log-freq log-steps logging-steps log-every-n-steps print-freq "
    "print-every",
    "logger": "report-to log-to loggers trackers",
    "logger wandb": "wandb use-wandb log-wandb",
    "logger mlflow": "mlflow use-mlflow",
    "samples": "num-samples num-trials n-trials",
    "max-concurrent": "max-concurrent-trials",
}
"""Ours, with the value where their name implies one, and what Hugging Face, Lightning, torchtitan,
timm, Ray and command lines of papers call it."""


def near_option(name: str, known: Collection[str]) -> str | None:
    """Return the option that the user may mean by `name`, such as `lr` or `precision bf16`.

    Args:
        name: an unknown option, with or without leading dashes; of `optimizer.lr` and the like
            the last part counts.
        known: the options there are, without leading dashes.
    """
    plain = name.lstrip("-").replace("_", "-").lower().rpartition(".")[2]
    for ours, theirs in OTHER_NAMES.items():
        if plain in theirs.split() and ours.split()[0] in known:
            return ours
    negative = plain.startswith("no-")
    return near(plain, (option for option in known if option.startswith("no-") == negative))


def nearest_option(name: str, fields: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)" for the field of a configuration that is near, or nothing."""
    found = near_option(name, {field.replace("_", "-") for field in fields})
    return "" if found is None else f" (did you mean {found.split()[0].replace('-', '_')!r}?)"
