"""Our backends as models, and our cards as tasks, of lm-evaluation-harness.

Releases that load entry points find the models by themselves; 0.4.13 loads none, so `anchoreval lm-eval` registers
them, and in Python `register` does.
"""

from __future__ import annotations

#: The names of our models, and where each class is; imported only when a model is made.
MODELS = {
    "anchoreval": "anchoreval.lm_eval_plugin.model:AnchorEvalLM",
    "anchoreval-vllm": "anchoreval.lm_eval_plugin.model:AnchorEvalVllm",
}
ENGINES = {"anchoreval": "hf", "anchoreval-vllm": "vllm"}  # the backend of each


def register() -> None:
    """Adds our models to lm-eval's registry, once; those it has stay as they are.

    Its own models come first: a registry that already holds something never loads them (0.4.13, `get_model`).
    """
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
