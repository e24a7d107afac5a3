"""LongBench's files in their real form, with texts of our own: a few records for each data set of both editions."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

CHINESE = {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"}
EXTENDED = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
CLASSES = {
    "trec": ["Food", "Date", "Individual", "Group or organization of person"],
    "lsht": ["体育", "经济", "国际", "农业、农村"],
}
_LINES = [
    "The harbour of Lorn has {n} piers; the oldest is {n}0 years old.",
    "Miss Aude {{keeps}} the light at pier {n}.",
]
_LINES_ZH = ["第{n}号码头建于{n}0年前，由阿德小姐管理。", "会议讨论了第{n}项预算问题。"]


def _prose(seed: int, lines: int, zh: bool) -> str:
    source = _LINES_ZH if zh else _LINES
    return ("" if zh else " ").join(source[i % 2].format(n=seed + i) for i in range(lines))


def _blocks(mark: str, seed: int, zh: bool = False) -> str:
    title = "\n标题：港口\n" if mark == "文章" else "：" if zh else ":\nLorn\n" if mark == "Passage" else ": "
    return "\n\n".join(f"{mark}{'' if zh else ' '}{n}{title}{_prose(seed + n, 6, zh)}" for n in range(1, 4))


def _texts(name: str, i: int) -> tuple[str, str, list[str]]:
    """Input, context and answers."""
    zh = name in CHINESE
    text = _prose(10 * i + 1, 14, zh)
    question = "码头由谁管理？" if zh else "Who {keeps} the light?"
    few = f"Question: What is a pier?\nType: Food\nQuestion: Who is {i}?\nType: Individual\n" * 6
    table: dict[str, tuple[str, str, list[str]]] = {
        "trec": ("Question: Who keeps the light?\nType:", few, ["Individual"]),
        "lsht": ("新闻内容：码头\n类别：", f"新闻内容：{text}\n类别：体育\n" * 2, ["国际"]),
        "triviaqa": (
            "Passage:\nLorn.\nQuestion:\nWho?\nAnswer:",
            f"Passage:\n{text}\nAnswer:\nAude\n",
            ["Aude", "Miss Aude"],
        ),
        "samsum": (
            "Dialogue: A: Hi\r\nB: No.\nSummary: ",
            f"Dialogue: {text}\nSummary: Lorn.\n",
            ["A greets B and B says no."],
        ),
        "gov_report": ("", text, ["The report counts piers. It names Miss Aude."]),
        "multi_news": ("", _blocks("Passage", i), ["Piers are kept. Miss Aude has the light."]),
        "vcsum": ("", text, ["会议讨论预算，码头由阿德小姐管理。"]),
        "passage_count": ("", _blocks("Paragraph", i), [str(i + 2)]),
        "passage_retrieval_en": ("An abstract.", _blocks("Paragraph", i), [f"Paragraph {i + 1}"]),
        "passage_retrieval_zh": ("摘要。", _blocks("段落", i, zh=True), [f"段落{i + 1}"]),
        "dureader": (question, _blocks("文章", i, zh=True), ["阿德小姐管理码头。", "阿德"]),
        "lcc": ("", f"class Lorn {{\n    int piers = {i};\n" + "    // pier\n" * 20, ["    return piers + {};"]),
        "repobench-p": (
            "import lorn\n",
            f"# path: lorn.py\ndef piers():\n    return {{{i}: 1}}\n" * 8,
            ["x = lorn.piers()"],
        ),
    }
    if name in {"hotpotqa", "2wikimqa", "musique"}:
        return question, _blocks("Passage", i), ["Miss Aude"]
    return table.get(name, (question, text, ["阿德小姐"] if zh else ["Miss Aude", "Aude"]))


def record(name: str, i: int, words: int | None = None) -> dict[str, Any]:
    """The record `i` of a data set."""
    question, context, answers = _texts(name, i)
    zh, code = name in CHINESE, name in {"lcc", "repobench-p"}
    return {
        "input": question,
        "context": context,
        "answers": answers,
        "length": words if words is not None else len(context.split()),
        "dataset": name,
        "language": "zh" if zh else "python" if code else "en",
        "all_classes": CLASSES.get(name),
        "_id": f"{name}-{i:04}",
    }


def files(count: int = 2) -> dict[str, list[dict[str, Any]]]:
    """File name without its ending -> its records, LongBench-E's one in each bucket."""
    from anchoreval.suites.longbench.generate import prompts

    made = {name: [record(name, i) for i in range(count)] for name in prompts()}
    words = (3999, 4000, 8000)
    return made | {f"{name}_e": [record(name, i, words[i % 3]) for i in range(count + 1)] for name in EXTENDED}


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_folder(folder: Path, count: int = 2) -> Path:
    """The files apart, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files(count).items():
        (folder / f"{name}.jsonl").write_text(_jsonl(rows), encoding="utf-8")
    return folder


def write_zip(path: Path, count: int = 2) -> Path:
    """The files as upstream packs them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, rows in files(count).items():
            archive.writestr(f"data/{name}.jsonl", _jsonl(rows))
    return path
