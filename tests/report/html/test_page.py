"""report.html: every status, few and many prompts, text that means harm; the same bytes each time."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest

from gptq_diff.records import Finding, Judgement, PromptInfo, Report, RowMap, SkippedBackend, Workaround
from gptq_diff.report.html import Parts, render_html
from gptq_diff.report.html.parts import MOST_PICTURED, PromptText, pictured
from tests.report.build import BAD, HOSTILE, LAYERS, STATUSES, a_report, a_result, an_original, judgements

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&</title>" + HOSTILE


def page(report: Report, **more: Any) -> str:
    return render_html(Parts(report, **{"judged": {("sim-exllama", "short"): judgements()}, **more}))


def data_of(text: str) -> dict[str, Any]:
    """What the page's script would read."""
    found = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', text)
    assert found is not None
    read = json.loads(gzip.decompress(base64.b64decode(found[1])))
    assert isinstance(read, dict)
    return read


def words(text: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status(status: str) -> None:
    """The verdict's sentence stands in the page, in a section of its status, and something to do."""
    text = words(page(a_report(a_result("agree", "hf-fp32"), a_result(status))))
    assert f'<section id="verdict" class="verdict {status}"' in text
    assert "<h1" in text
    todo = text[text.index('<ul class="todo">') :]
    assert "<li>" in todo[: todo.index("</ul>")]


def test_zero_prompts_failing_and_a_single_one() -> None:
    report = replace(a_report(a_result("agree", "hf-fp32")), prompts=(PromptInfo("short", 37, "cd" * 32),))
    text = words(page(report))
    assert "Every backend agrees" in text
    assert "come first" not in text
    assert "Nothing failed" in text


def test_where_all_agrees_a_backend_is_shown_before_the_reference() -> None:
    assert data_of(page(a_report(a_result("agree", "hf-fp32"), a_result())))["selected"] == "sim-exllama|short"


def test_two_hundred_prompts() -> None:
    """All of them are in the matrix, the failing ones have pictures before the others, and the page stays small."""
    prompts = [f"p{i}" for i in range(200)]
    results = [
        a_result("overflow" if (b, p) == ("sim-exllama", "p150") else "agree", b, p)
        for b in ("hf-fp32", "sim-exllama")
        for p in prompts
    ]
    results = [replace(r, headroom_bits=dict.fromkeys(LAYERS, 2.5)) for r in results]
    report = replace(a_report(*results), prompts=tuple(PromptInfo(p, 37, "cd" * 32) for p in prompts))
    shown = pictured(report)
    assert len(shown) == MOST_PICTURED
    assert [(r.backend, r.prompt) for r in shown[:2]] == [("sim-exllama", "p150"), ("hf-fp32", "p150")]
    text = page(report, judged={(r.backend, r.prompt): judgements("ok") for r in shown})
    assert all(f"{p} (37 tokens)" in text for p in prompts)
    assert text.index("p150 (37 tokens)") < text.index("p0 (37 tokens)") < text.index("p199 (37 tokens)")
    assert "Prompts at which something fails come first." in text
    assert "<b>1 overflow, 399 agree</b>" in text
    assert len(text) < 800_000


def test_skipped_backends_alone() -> None:
    """Nothing ran: no pictures, but the reason and the end of the log."""
    skipped = SkippedBackend("hf-fp32", "its worker was killed", "logs/hf-fp32.log", ("line <one>", "out of memory"))
    text = words(render_html(Parts(a_report(skipped=(skipped,)), {})))
    assert "No backend finished a prompt" in text
    assert "its worker was killed" in text
    assert "line &lt;one&gt;\nout of memory" in text
    assert "There are no pictures" in text


def test_a_run_cut_short() -> None:
    """What was whole is shown, and who did not finish is said beside the results."""
    cut = SkippedBackend("sim-gptq", "the run was interrupted when 1 of its 2 captures were whole", "logs/a.log")
    text = words(page(a_report(a_result("agree", "hf-fp32"), a_result("incomplete"), skipped=(cut,))))
    assert "Not in the table: <b>sim-gptq</b>" in text
    assert "? without sim-gptq" not in text  # a verdict of `incomplete` says it itself
    text = words(page(a_report(a_result("agree", "hf-fp32"), a_result("overflow"), skipped=(cut,))))
    assert "? without sim-gptq" in text
    assert "interrupted when 1 of its 2" in text


def test_of_448_linears() -> None:
    """The shape of a 32B model with figures that do not compress: far below 8 MB, and the worst one's map is kept."""
    layers = [f"model.layers.{i // 7}.mlp.part{i % 7}_proj" for i in range(448)]
    rng = random.Random(0)
    code = base64.b64encode(rng.randbytes(2 * 448 * 128)).decode()
    bins = tuple((0, i, i) for i in range(128))
    rows = RowMap(tuple(layers), bins, code, code, code, ())
    judged = [
        replace(judgements("ok")[0], layer=layer, index=i, local_l2_rel=rng.random(), noise_floor=rng.random())
        for i, layer in enumerate(layers)
    ]
    backends = ["hf-fp32", *(f"b{i}" for i in range(7))]
    bits = {layer: rng.random() for layer in layers}
    results = [
        replace(a_result("overflow" if b == "b6" else "agree", b, p), headroom_bits=bits)
        for b in backends for p in ("short", "long")
    ]  # fmt: skip
    keys = [(r.backend, r.prompt) for r in results]
    text = page(a_report(*results), judged=dict.fromkeys(keys, judged), rows=dict.fromkeys(keys, rows))
    assert len(text) < 2_000_000
    captures = data_of(text)["captures"]
    maps = {c["key"]: c["maps"] for c in captures}
    assert maps["b6|short"]["x"] == code
    assert any("keep this file small" in m.get("why", "") for m in maps.values())


@pytest.mark.parametrize("count", [0, 1])
def test_one_prompt_and_nothing_to_press(count: int) -> None:
    """A single prompt is a table of one column; where nothing is pictured nothing invites to press."""
    results = [a_result("agree", "hf-fp32"), a_result("agree")][: 2 * count]
    text = words(render_html(Parts(a_report(*results), {})))
    assert text.count('<th scope="col">short (37 tokens)</th>') == count
    assert "Press a result" not in text
    assert "report of 2026-01-02 03:04 UTC" in text


def test_how_to_see_it_again_and_what_broke() -> None:
    """Who gets the file from a stranger finds the command, the prompts' lengths, the kernel and its release."""
    text = words(page(replace(a_report(a_result("agree", "hf-fp32"), a_result("overflow")), original_model=None)))
    assert "<pre>gptq-diff run --model /models/m --prompt-file prompts.jsonl --backends hf-fp32,sim-exllama" in text
    assert "There were short (37 tokens), long (63 tokens)" in text
    assert "What ran there is exllama, on 37 rows. sim-exllama simulates" in text


def test_without_stored_judgements() -> None:
    text = words(render_html(Parts(a_report(a_result("overflow")), {})))
    assert "the judgements of single linears are not stored" in text


def test_what_the_script_draws() -> None:
    """Column by column as they were judged, of the step at which it broke; the worst capture is chosen."""
    data = data_of(page(a_report(a_result("agree", "hf-fp32"), a_result("overflow"))))
    assert data["selected"] == "sim-exllama|short"
    (capture,) = [c for c in data["captures"] if c["key"] == data["selected"]]
    assert capture["linears"]["layer"] == list(LAYERS)
    assert capture["bad"] == BAD
    assert capture["linears"]["local"][BAD:] == [1e-3, *[None] * 6]
    assert capture["linears"]["note"][BAD] == "overflow: 2 infinite or NaN"
    assert capture["headroom"] == {LAYERS[0]: 2.5}


def test_numbers_that_json_cannot_hold() -> None:
    """Infinite shares (an error where none is expected) are left out of the pictures."""
    rows: list[Judgement] = [replace(j, excess=float("inf"), local_l2_rel=float("nan")) for j in judgements()]
    data = data_of(page(a_report(a_result("overflow")), judged={("sim-exllama", "short"): rows}))
    assert set(data["captures"][0]["linears"]["excess"]) == {None}


def test_text_from_models_prompts_and_logs_is_harmless() -> None:
    """Wherever a string can stand: no tag of its own, no control characters."""
    result = replace(
        a_result("overflow", EVIL, EVIL), text=EVIL, engine=EVIL, kernel={EVIL: EVIL}, versions={EVIL: EVIL},
        findings=(Finding(EVIL, 0.5, (EVIL,), EVIL, EVIL),), workarounds=(Workaround(EVIL, True, True, EVIL),),
        headroom_bits={EVIL: 2.0},
    )  # fmt: skip
    report = replace(
        a_report(result, an_original(), skipped=(SkippedBackend(EVIL, EVIL, EVIL, (EVIL,)),)),
        prompts=(PromptInfo(EVIL, 3, EVIL),), left_out=(EVIL,), environment={EVIL: EVIL}, reference=EVIL, created=EVIL,
    )  # fmt: skip
    judged = {(EVIL, EVIL): [replace(j, layer=EVIL) for j in judgements()]}
    text = page(report, judged=judged, prompts={EVIL: PromptText((1, 2, 3), EVIL)})
    shown = words(text)
    assert "<script" not in shown
    assert "<img" not in shown
    assert not set("\x00\x07\x1b\x7f\x9b\u202e\u200b") & set(text)
    assert "&lt;script&gt;alert(1)" in shown
    assert "<script>alert" not in text


def test_only_its_own_scripts_may_run_and_nothing_may_be_loaded() -> None:
    """The policy names the two scripts by the hash of what is in the page."""
    text = page(a_report(a_result("overflow")))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; script-src ")
    own = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    library = re.search(r'id="library">([^<]*)<', text)
    assert library is not None
    for script in (own.encode(), gzip.decompress(base64.b64decode(library[1]))):
        assert f"&#39;sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}&#39;" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.search(r"(src|href)=.?(https?:)?//", words(text))


def test_the_same_page_each_time() -> None:
    report = a_report(a_result("agree", "hf-fp32"), a_result("overflow"))
    assert page(report) == page(report)
