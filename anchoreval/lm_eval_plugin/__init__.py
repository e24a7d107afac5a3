"""Offer our backends as models, and our cards as tasks, to lm-evaluation-harness.

Releases that load entry points find the models by themselves. Release 0.4.13 loads none, so `anchoreval lm-eval`
registers them; in Python, call `register`.
"""

from __future__ import annotations

#: The name of each model -> where its class is. The class is imported only when a model is made.
MODELS = {
    "anchoreval": "anchoreval.lm_eval_plugin.model:AnchorEvalLM",
    "anchoreval-vllm": "anchoreval.lm_eval_plugin.model:AnchorEvalVllm",
}
ENGINES = {"anchoreval": "hf", "anchoreval-vllm": "vllm"}  # the name of each model -> its backend


def register() -> None:
    """Add our models to lm-eval's registry, unless it has them.

    lm-eval's own models are loaded first: a registry that is not empty never loads them (0.4.13, `get_model`).
    """
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
