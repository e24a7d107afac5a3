"""The published texts that suites read; none is bundled with the package.

RULER's texts are found in --data-dir or the cache, or else downloaded once. `anchoreval data fetch` fetches those of
the suites that keep files of their own. Every text that is used is recorded (`describe`): its file, its SHA-256 and
whether it is the published file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from anchoreval.errors import SourceError
from anchoreval.files import cache_folder, sha256_of
from anchoreval.schema import Json
from anchoreval.texts.download import download, unconnected
from anchoreval.texts.passage import Split
from anchoreval.texts.questions import Questions, of_hotpot, of_squad
from anchoreval.texts.reading import expected, json_of
from anchoreval.texts.wordlists import WordLists

HaystackKind = Literal["published", "generated"]
RULER_COMMIT = "c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"


@dataclass(frozen=True, slots=True)
class Published:
    """A file as it was published: its hash and the addresses that serve it.

    If no address serves it, `recipe` says how to make it. `revision` is that of its repository. A `sha256` of 40 digits
    is the id of the git blob.
    """

    file: str
    sha256: str
    addresses: tuple[str, ...] = ()
    recipe: str = ""
    revision: str = ""


ESSAYS = Published(
    "PaulGrahamEssays.json",
    "8d31e1b660e0f2180bcca6d238e18f77921df9d158611582b860da1762b6d3dd",
    recipe="no address serves this file: it is scraped by "
    "scripts/data/synthetic/json/download_paulgraham_essay.py of "
    f"https://github.com/NVIDIA/RULER at {RULER_COMMIT[:7]} (html2text 2025.4.15 and beautifulsoup4 4.15.0 "
    "are known to have given the published bytes)",
)
SQUAD = Published(
    "squad.json",
    "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    ("https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",),
)
HOTPOT = Published(
    "hotpotqa.json",
    "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8",
    (
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
        "https://huggingface.co/datasets/namlh2004/hotpotqa/resolve/7e54db4656209750ff487f6fdf8e39a66dba136b/"
        "hotpot_dev_distractor_v1.json",
    ),
)
ENGLISH_WORDS = Published(
    "english_words.json",
    "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca",
    (
        f"https://media.githubusercontent.com/media/NVIDIA/RULER/{RULER_COMMIT}/scripts/data/synthetic/json/english_words.json",
    ),
)
RULER_FILES = (ESSAYS, SQUAD, HOTPOT, ENGLISH_WORDS)
TEXTS = "texts"  # what stands before the names of texts that are scored
_OTHERWISE = "move the file away, or use --haystack generated"
PUNKT = "tokenizers/punkt_tab/english"


class Sources:
    """The texts that prompts are made of, read on first use.

    `haystack="generated"` replaces essays and question sets by generated prose; `context=False` leaves the context out
    of the prompts, a control that only some generators have; `text` is the file or folder of texts that are scored
    themselves. A text that cannot be read or downloaded is a SourceError.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        haystack: HaystackKind = "published",
        wordlists: WordLists = "3.0.1",
        cache: str | Path | None = None,
        offline: bool = False,
        context: bool = True,
        text: str | Path | None = None,
    ) -> None:
        self.text = Path(text).expanduser() if text else None
        self.data_dir = Path(data_dir).expanduser() if data_dir else None
        self.haystack: HaystackKind = haystack
        self.wordlists: WordLists = wordlists
        self.cache = Path(cache).expanduser() if cache else cache_folder()
        self.offline = offline
        self.context = context
        self._used: dict[str, dict[str, Json]] = {}
        self.made: dict[Hashable, Any] = {}  # what a generator made of its files, which are read once

    @property
    def published(self) -> bool:
        """True if every file used so far is the published one, and the prompts have their context."""
        return self.context and all(each["published"] for each in self._used.values())

    @property
    def others(self) -> list[str]:
        """The files read so far that are not published ones, and a context that is left out, in words."""
        chosen = ("haystack", "wordlists", TEXTS)
        lines = {name: str(value) for name, value in self.describe().items() if name not in chosen}
        return [f"{name} {value}" for name, value in lines.items() if not value.startswith("published")]

    def describe(self) -> dict[str, Json]:
        """Return JSON for a run's header: the settings, and for every file read so far whether it is published."""
        files: dict[str, str] = {}
        folders: dict[str, dict[str, dict[str, Json]]] = {}
        for name, used in sorted(self._used.items()):
            if "folder" in used:
                folders.setdefault(str(used["folder"]), {})[name] = used
            else:
                files[name] = "published" if used["published"] else f"not the published file: sha256 {used['sha256']}"
        for folder, members in sorted(folders.items()):  # one line, with a hash over the hashes of its files
            hashes = "\n".join(f"{name} {used['sha256']}" for name, used in members.items())
            kind = "published" if all(used["published"] for used in members.values()) else "unpinned"
            files[folder] = f"{kind} files, {len(members)}: {hashlib.sha256(hashes.encode()).hexdigest()[:16]}"
        left_out = {} if self.context else {"context": "left out (--no-context)"}
        return {"haystack": self.haystack, "wordlists": f"wonderwords {self.wordlists}", **left_out, **files}

    def files(self) -> dict[str, Json]:
        """Return every file read so far: its SHA-256, size, and whether it is the published one."""
        return dict(sorted(self._used.items()))

    def essay(self) -> str:
        """Return the essays as one text."""
        value = self._read(ESSAYS)
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise SourceError(f'{self._find(ESSAYS)}: expected {{"text": "..."}} with a text; {_OTHERWISE}')
        return text

    @cached_property
    def squad(self) -> Questions:
        """SQuAD's answerable questions, with the paragraphs of all articles as documents."""
        value = self._read(SQUAD)
        with expected(str(self._find(SQUAD)), f"SQuAD 2.0's own articles; {_OTHERWISE}"):
            return of_squad(value)

    @cached_property
    def hotpot(self) -> Questions:
        """HotpotQA's questions (distractor setting), each with its ten paragraphs."""
        value = self._read(HOTPOT)
        with expected(str(self._find(HOTPOT)), f"HotpotQA's own questions; {_OTHERWISE}"):
            return of_hotpot(value)

    @cached_property
    def english_words(self) -> list[str]:
        """The long word list, which only common-words texts of more than about 8,000 words use."""
        value = self._read(ENGLISH_WORDS)
        with expected(str(self._find(ENGLISH_WORDS)), "words under numbers, as RULER has them"):
            return [str(word) for word in value.values()]

    def sentence_splitter(self) -> Split:
        """Return nltk's English sentence splitter (importing nltk costs about one CPU second)."""
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        splitter = PunktSentenceTokenizer()
        splitter._params = _punkt_parameters(self.places())

        def split(text: str) -> list[tuple[int, int]]:
            return list(splitter.span_tokenize(text))

        return split

    def places(self) -> list[Path]:
        """Return the folders that are searched, in order."""
        return [*([self.data_dir] if self.data_dir else []), self.cache]

    def note(self, file: str, path: Path, published: str | None, **more: Json) -> None:
        """Note a file that is read; `published` is the SHA-256 of the published file, or None if it is unknown.

        A `revision` among `more` is that of the published file, and is left out if `path` is another file.
        """
        sha256 = sha256_of(path)
        used = {"sha256": sha256, "published": sha256 == published, "bytes": path.stat().st_size}
        kept = {name: value for name, value in more.items() if name != "revision" or used["published"]}
        self._used[file] = used | kept

    def note_rows(self, name: str, sha256: str, rows: int, published: bool, **more: Json) -> None:
        """Note rows of a data set that are read; `published` is True if they came from the data set's publisher."""
        self._used[name] = {"sha256": sha256, "published": published, "rows": rows} | more

    def note_text(self, name: str, sha256: str, size: int, tokens: int) -> None:
        """Remembers a text of the user's that is scored."""
        about = {"published": False, "bytes": size, "tokens": tokens, "folder": TEXTS}
        self._used[f"{TEXTS}/{name}"] = {"sha256": sha256, **about}

    def _read(self, source: Published) -> Any:
        """Return the parsed file and note its hash."""
        path = self._find(source)
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        self._used[source.file] = {"sha256": sha256, "published": sha256 == source.sha256, "bytes": len(content)}
        return json_of(content, str(path))

    def _find(self, source: Published) -> Path:
        for place in self.places():
            if (place / source.file).is_file():
                return place / source.file
        reasons = []
        for address in source.addresses:
            if self.offline:
                break
            try:
                return download(address, self.cache / source.file, source.sha256)
            except (OSError, SourceError) as error:
                reasons.append(f"{address}: {error}")
                self.offline = self.offline or unconnected(error)  # and no other file is waited for
        tried = "; ".join(reasons) or source.recipe or f"published at {' or '.join(source.addresses)}"
        raise SourceError(
            f"{source.file} is missing (looked in {' and '.join(map(str, self.places()))}; {tried}): put the file "
            "there and name the folder with --data-dir, or use --haystack generated"
        )


def _punkt_parameters(places: Sequence[Path]) -> Any:
    """Return nltk's PunktParameters from the four text files of the punkt_tab folder.

    That is under --data-dir or the cache, else on nltk's own search path, which is all that nltk itself reads.
    """
    import nltk.data
    from nltk.tokenize.punkt import PunktParameters

    roots = [root / inner for root in places for inner in ("nltk", "nltk_data", ".")]
    folders = [root / PUNKT for root in (*roots, *map(Path, nltk.data.path))]
    folder = next((folder for folder in folders if (folder / "abbrev_types.txt").is_file()), None)
    if folder is None:
        raise SourceError(
            f"nltk's sentence model is missing: expected nltk/{PUNKT} under --data-dir or an nltk_data "
            "folder (python -m nltk.downloader punkt_tab), or use --haystack generated"
        )
    rows = {}
    for name in ("abbrev_types.txt", "sent_starters.txt", "collocations.tab", "ortho_context.tab"):
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        rows[name] = [line.split("\t") for line in lines if line]
    parameters = PunktParameters()
    parameters.abbrev_types = {row[0] for row in rows["abbrev_types.txt"]}
    parameters.sent_starters = {row[0] for row in rows["sent_starters.txt"]}
    parameters.collocations = {(row[0], row[1]) for row in rows["collocations.tab"]}
    for word, flags in rows["ortho_context.tab"]:
        parameters.ortho_context[word] = int(flags)
    return parameters
