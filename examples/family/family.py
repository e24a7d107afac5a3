"""Train and evaluate anchor-tiny under attention variants and RoPE levels, by seed: `make variants`.

python examples/family/family.py --seeds 2 --processes 2
python examples/family/family.py --seeds 6 --results leaderboards/results/family

The same command goes on where it was cut, and does nothing where nothing is left. A second process, also by the same
command in another terminal, takes the models that no process is at.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process is one thread; --processes are several
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from plan import Job, Sizes, core, header, jobs
from report import markdown, picture, read

from anchoreval import AnchorEvalError, evaluate
from anchoreval.errors import RunError
from anchoreval.files import write_whole
from anchoreval.records.header import HEADER
from anchoreval.texts.prose import sentences
from anchoreval.training.recipes import RecipeCard, recipe_of

NEEDLES = os.path.relpath(Path(__file__).with_name("needles.yaml"))
RULER = "ruler/niah_single_2,ruler/niah_multikey_1,ruler/vt"
LEVELS = ("fp32", "bf16")
CHUNK = 128  # tokens: what the questions of one document do not share is shorter
FIRST_TOKEN_SEED, NLL_SEED = 900, 910  # of prose; training text is drawn from seeds above a million
QUESTION, MEASURED, LOSSES, TABLE, PICTURE = "family.json", "measured.json", "nll.csv", "family.md", "family.svg"


@dataclass(frozen=True)
class Family:
    """Where things lie: `output` holds texts and weights, `results` what is committed of them."""

    output: Path
    results: Path
    sizes: Sizes = field(default_factory=Sizes)
    model: str | None = None  # another base than the recipe's
    recipe: RecipeCard | None = None

    @property
    def card(self) -> RecipeCard:
        """The recipe."""
        return self.recipe or recipe_of(self.sizes.recipe)

    @property
    def base(self) -> str:
        """The model that every training starts from."""
        return str(self.model or self.card.model)

    def place(self, job: Job) -> Path:
        """Return the folder of what was measured of a model."""
        return self.results / f"seed{job.seed}" / job.name

    def weights(self, job: Job) -> Path:
        """Return the folder of a trained model."""
        return self.output / "models" / job.name

    def finished(self, job: Job) -> bool:
        """Whether everything of a job was measured."""
        return (self.place(job) / (LOSSES if job.extras else MEASURED)).is_file()


def ask(family: Family) -> None:
    """Write the question before the first step; refuse a folder of another family."""
    path = family.results / QUESTION
    recipe = json.loads(family.card.model_dump_json())
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    asked = json.loads(json.dumps(header(family.sizes, created, base=family.base, recipe=recipe)))
    if not path.is_file():
        write_whole(path, [json.dumps(asked, indent=1) + "\n"])
    elif (there := json.loads(path.read_text("utf-8"))) != asked | {"created": there.get("created")}:
        other = next(key for key in asked if key != "created" and there.get(key) != asked[key])
        raise RunError(f"{path}: {other}: another family lies there: name another --results")


def work(family: Family, seeds: int) -> None:
    """Do every job that is not done; leave to other processes what they are at, and wait for it at the end."""
    waiting = list(jobs(family.sizes, seeds))
    while waiting:
        busy = []
        for job in waiting:
            if family.finished(job):
                continue
            with claimed(family.output / "locks" / f"{job.arm.name}-seed{job.seed}") as mine:
                if not mine:
                    busy.append(job)
                elif not family.finished(job):
                    do(family, job)
        if busy and len(busy) == len(waiting):
            time.sleep(5)
        waiting = busy


@contextlib.contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that ends with its process; yield whether it was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def do(family: Family, job: Job) -> None:
    """Train a model where it is not there, and measure it."""
    began = time.time()
    tell(f"{job.name}{', more of it' if job.extras else ''}")
    if not family.weights(job).is_dir():
        trained(family, job)
    (more if job.extras else measure)(family, job)
    tell(f"{job.name}: {time.time() - began:,.0f} s")


def trained(family: Family, job: Job) -> None:
    """Train to the job's steps, or on to them, and keep the model without the optimizer's state."""
    from anchoreval.training.loop import How, train
    from anchoreval.training.recipes import Training

    card, arm = family.card, job.arm
    training = Training(
        arm.variant, arm.rope, card.length, job.steps, card.batch_tokens, job.seed,
        hyper=card.hyper, recipe=family.sizes.recipe,
    )  # fmt: skip
    how = How(family.output / "training" / arm.corpus, save_every=card.save_every, keep=card.keep)
    folder = train(family.base, store(family, job), training, how, tell)
    for name in ("log.csv", "speed.csv"):
        rows = (folder / name).read_text("utf-8").splitlines(keepends=True)
        write_whole(family.place(job) / name, rows[: job.steps + 1])
    kept, part = family.weights(job), family.output / "models" / f"{job.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    keep = shutil.ignore_patterns("checkpoint-*", "*.csv", "training.json")
    shutil.copytree(folder, part, ignore=keep)
    part.rename(kept)
    if not arm.goes_on or job.steps == family.sizes.equal_time:
        shutil.rmtree(folder)


def store(family: Family, job: Job) -> Path:
    """Return the tokens of a corpus, generated once; a seed draws documents and their order, each arm the same."""
    from anchoreval.tokenizer import load_tokenizer
    from anchoreval.training.checkpoints import folder_of_model
    from anchoreval.training.store import pack
    from anchoreval.training.tiny.examples import generated

    sizes, card, base = family.sizes, family.card, folder_of_model(family.base)
    path, longer = family.output / "stores" / job.arm.corpus, job.arm.corpus == "long"
    with claimed(path.with_name(f"{path.name}.lock"), wait=True):
        if not path.is_dir():
            documents = generated(base, sizes.long_tokens if longer else card.corpus_tokens or 0, card.length)
            pack(documents, load_tokenizer(base), path, upsample=sizes.upsample if longer else None)
    return path


def measure(family: Family, job: Job) -> None:
    """Score the answers at the level of the training, and what the first token gets of attention."""
    evaluated(family, str(family.weights(job)), job.arm.rope, family.results / f"seed{job.seed}")
    share = first_token(family, family.weights(job))
    write_whole(family.place(job) / MEASURED, [json.dumps(share, indent=1) + "\n"])


def evaluated(family: Family, model: str, arms: str, output: Path, tasks: str = NEEDLES, **given: Any) -> None:
    """Run tasks at the family's lengths, in the float32 host."""
    given = dict[str, Any](limit=family.sizes.questions, lengths=family.sizes.lengths) | given
    window = family.card.length  # of the base, which states fewer positions
    evaluate(
        model, tasks, arms=arms, output=output, dtype="float32", haystack="generated", chunk_tokens=CHUNK,
        max_length=window, tell=tell, **given,
    )  # fmt: skip


def more(family: Family, job: Job) -> None:
    """Score the answers at the other level, RULER with generation, and the loss by position."""
    from anchoreval.runs.nll import measure as nll

    sizes, model, seed = family.sizes, str(family.weights(job)), family.results / f"seed{job.seed}"
    for level in LEVELS:
        if job.arm.rope in LEVELS and level != job.arm.rope:
            evaluated(family, model, level, seed)
    evaluated(family, model, job.arm.rope, seed, RULER, limit=sizes.ruler_samples)
    output, longest = family.output / "nll" / job.name, max(sizes.lengths)
    nll(
        model, texts(family, longest), lengths=[longest], arms=job.arm.rope, output=output, limit=1, dtype="float32",
        chunk_tokens=512, watch=unwatched, tell=tell,
    )  # fmt: skip
    for name in ("nll.json", LOSSES):
        write_whole(family.place(job) / name, [(output / name).read_bytes()])


def texts(family: Family, tokens: int) -> Path:
    """Return a folder of prose that no model was trained on."""
    folder = family.output / "texts"
    for number in range(family.sizes.nll_texts):
        path = folder / f"prose-{number}.txt"
        if not path.is_file():
            write_whole(path, [" ".join(islice(sentences(NLL_SEED + number), tokens // 8))])
    return folder


def first_token(family: Family, model: Path) -> dict[str, Any]:
    """Return the weight on the first token, BOS, in prose: the mean over queries, heads and layers, and by layer."""
    import torch
    from transformers import AutoModelForCausalLM

    from anchoreval.tokenizer import load_tokenizer
    from anchoreval.training.store import anchor_of

    tokenizer, tokens = load_tokenizer(model), family.sizes.first_token_tokens
    text = " ".join(islice(sentences(FIRST_TOKEN_SEED), tokens // 8))
    ids = [anchor_of(tokenizer), *tokenizer.encode(text)][:tokens]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        attentions = loaded(torch.tensor([ids]), output_attentions=True).attentions
    layers = [float(each[0, :, 1:, 0].double().mean()) for each in attentions]
    return {"first_token_share": sum(layers) / len(layers), "by_layer": layers, "tokens": len(ids)}


def base(family: Family) -> None:
    """Measure the model before any training."""
    from anchoreval.training.checkpoints import folder_of_model

    place = family.results / "base"
    with claimed(family.output / "locks" / "base") as mine:
        if mine and not (place / MEASURED).is_file():
            tell("the base, before training")
            for level in LEVELS:
                evaluated(family, family.base, level, place)
            share = first_token(family, folder_of_model(family.base))
            write_whole(place / MEASURED, [json.dumps(share, indent=1) + "\n"])


def gather(family: Family, place: Path) -> None:
    """Copy what is committed of whole seeds: no weights, no lock, no run and no model that is still measured."""
    write_whole(place / QUESTION, [(family.results / QUESTION).read_bytes()])
    for measured in sorted(family.results.rglob(MEASURED)):
        folder = measured.parent.relative_to(family.results)
        seed = folder.parts[0].removeprefix("seed")
        if seed.isdigit() and not all(map(family.finished, core(family.sizes, int(seed)))):
            continue
        for path in sorted(family.results.joinpath(folder).rglob("*")):
            beside = path.with_name(HEADER)
            finished = not beside.is_file() or json.loads(beside.read_text("utf-8")).get("finished")
            if path.is_file() and finished and path.name != "lock":
                write_whole(place / path.relative_to(family.results), [path.read_bytes()])


def unwatched(total: int) -> Any:
    """Show no progress: the log has a line a model."""
    return contextlib.nullcontext(lambda done: None)


def tell(line: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Train and measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the six arms (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes of one thread (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/family"), help="texts and weights")
    parser.add_argument("--results", type=Path, help="records and tables (default: OUTPUT/results)")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, measure nothing")
    parser.add_argument("--gather", type=Path, help="copy whole seeds to this folder, measure nothing")
    options = parser.parse_args()
    family = Family(options.output, options.results or options.output / "results")
    try:
        if options.gather:
            gather(family, options.gather)
            family = Family(options.output, options.gather)
        elif not options.table:
            run(family, options.seeds, options.processes)
        print(reported(family))
    except AnchorEvalError as error:
        print(f"family: {error}", file=sys.stderr)
        return 2
    return 0


def reported(family: Family) -> str:
    """Write table and picture of what is there, and return the table."""
    found = read(family.results, family.sizes)
    text = markdown(found)
    write_whole(family.output / TABLE, [text])
    write_whole(family.results / PICTURE, [picture(found)])
    return text


def run(family: Family, seeds: int, processes: int) -> None:
    """Work here and in further processes of the same command."""
    ask(family)
    words = [sys.executable, __file__, "--seeds", str(seeds), "--output", str(family.output)]
    words += ["--results", str(family.results)]
    others = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(processes - 1)]
    try:
        base(family)
        work(family, seeds)
    finally:
        for other in others:
            other.wait()


if __name__ == "__main__":
    sys.exit(main())
