"""Case files are read strictly: every mistake is a sentence with the file and the line."""

from __future__ import annotations

import re

import pytest

from gptq_diff.cases.read import read_case
from gptq_diff.errors import UsageError
from gptq_diff.models.options import GainShift
from gptq_diff.records import Expectation
from tests.cases.written import BANG, write_case


def test_everything_of_a_case_is_read(tmp_path):
    """Model, prompts, run and expectations come out as they were written, and the digest is of the bytes."""
    case = read_case(write_case(tmp_path / "bang"))
    assert (case.name, case.description) == ("bang", "a tiny model that collapses")
    assert (case.model.build, case.model.path) == ("tiny-qwen2", None)
    assert case.model.options.given() == {"group_size": 64, "gain_shift": "1:2:8"}
    assert case.model.options.gain_shift == GainShift(1, 2, 8)
    assert [p.id for p in case.prompts] == ["short"]
    assert case.prompts[0].token_ids == (510, 40, 41, 42, 43, 44, 45, 46)
    assert (case.backends, case.reference, case.max_new_tokens) == (("hf-fp16", "sim-gptq"), "hf-fp32", 4)
    (expected,) = case.expect
    line = BANG.splitlines().index("[[expect]]") + 1
    assert expected == Expectation(
        "sim-gptq", "short", "overflow", "model.layers.1.mlp.down_proj", "accumulator-overflow", True, line
    )
    assert len(case.digest) == 64


def test_a_directory_stands_for_its_case_file(tmp_path):
    """`check cases/NAME` and `check cases/NAME/case.toml` are one."""
    file = write_case(tmp_path / "bang")
    assert read_case(file.parent) == read_case(file)


def test_another_byte_is_another_case(tmp_path):
    """A comment changes the digest, so that an outcome is never taken for that of an edited case."""
    first = read_case(write_case(tmp_path / "a"))
    second = read_case(write_case(tmp_path / "b", BANG + "# more\n"))
    assert first.digest != second.digest


def test_a_fault_is_read(tmp_path):
    """Kind, layer, where, size and seed; gross and drawn by seed 0 where the case does not say."""
    fault = '[fault]\nkind = "scale-group"\nlayer = "model.layers.0.mlp.up_proj"\nwhere = "kernel"\n\n[[prompt]]'
    case = read_case(write_case(tmp_path, BANG, ("[[prompt]]", fault)))
    assert case.fault is not None
    assert (case.fault.kind, case.fault.where, case.fault.size, case.fault.seed) == ("scale-group", "kernel", 1.0, 0)


FAULT = '[fault]\nkind = "scale-group"\nlayer = "l"\nwhere = "kernel"\n'
MISTAKES = {
    "an unknown key": (("build =", "biuld ="), "biuld =", "unknown key 'biuld'; did you mean 'build'?"),
    "an unknown table": (("[run]", "[ruin]"), "[ruin]", "unknown key 'ruin'"),
    "a wrong type": (("max_new_tokens = 4", 'max_new_tokens = "4"'), "max_new_tokens", "must be an integer"),
    "true for a number": (("max_new_tokens = 4", "max_new_tokens = true"), "max_new_tokens", "must be an integer"),
    "too few tokens": (("max_new_tokens = 4", "max_new_tokens = 0"), "max_new_tokens", "below 1"),
    "an unknown backend": (('"sim-gptq"]', '"sim-gtpq"]'), "backends =", "did you mean 'sim-gptq'?"),
    "a backend twice": (('"sim-gptq"]', '"hf-fp16"]'), "backends =", "named twice"),
    "backends that are a string": (('["hf-fp16", "sim-gptq"]', '"hf-fp16"'), "backends =", "a list of strings"),
    "an unknown status": (('"overflow"', '"overflown"'), "status =", "'overflown' is no status that is known"),
    "an unknown cause": (('"accumulator-overflow"', '"bad luck"'), "cause =", "is no cause that is known"),
    "a prompt that is not there": (('prompt = "short"', 'prompt = "long"'), 'prompt = "long"', "no prompt that is"),
    "collapsed that is a word": (("collapsed = true", 'collapsed = "yes"'), "collapsed =", "must be true or false"),
    "agreeing with a layer": (('"overflow"', '"agree"'), "status =", "has no bad layer"),
    "build and path": (('build = "tiny-qwen2"', 'build = "tiny-qwen2"\npath = "x"'), "[model]", "one of the two"),
    "neither": (('build = "tiny-qwen2"\n', ""), "[model]", "one of the two alone"),
    "a gain that is no power of two": (("gain = 8", "gain = 3"), "gain = 3", "not a power of two"),
    "a shift without a group": (("group = 2\n", ""), "[model.gain_shift]", "'group' is missing"),
    "a bad name": (('name = "bang"', 'name = "../bang"'), "name =", "cannot name a folder"),
    "no name": (('name = "bang"\n', ""), 1, "'name' is missing"),
    "an unknown fault": (("[[prompt]]", FAULT.replace("scale-group", "gremlin") + "[[prompt]]"), "kind =", "gremlin"),
    "a fault that is too large": (("[[prompt]]", FAULT + "size = 2\n[[prompt]]"), "size = 2", "between 0"),
    "a fault elsewhere": (
        ("[[prompt]]", FAULT.replace('"kernel"', '"moon"') + "[[prompt]]"), "where =", "'moon' is no where",
    ),
    "an id of two prompts": (
        ("[run]", '[[prompt]]\nid = "short"\nprompt = "x"\n\n[run]'), '[[prompt]]\nid = "short"\npr', "another prompt",
    ),
    "an empty prompt": (("token_ids = [510, 40, 41, 42, 43, 44, 45, 46]", "token_ids = []"), "[[prompt]]", "no token"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path, what):
    """Exit 2, the file, the line, the reason: strict, since an expectation that is not read is never checked."""
    change, place, reason = MISTAKES[what]
    file = write_case(tmp_path, BANG, change)
    text = file.read_text()
    line = place if isinstance(place, int) else text[: text.index(place)].count("\n") + 1
    with pytest.raises(UsageError, match=re.escape(reason)) as raised:
        read_case(file)
    assert str(raised.value).startswith(f"{file}, line {line}: ")
    assert raised.value.exit_code == 2


def test_two_expectations_of_one_thing_are_refused(tmp_path):
    """Which of them held would depend on who reads."""
    again = '[[expect]]\nbackend = "sim-gptq"\nprompt = "short"\nstatus = "agree"\n'
    with pytest.raises(UsageError, match=r"a second .*expect.* for sim-gptq and short"):
        read_case(write_case(tmp_path, BANG + again))


def test_an_expectation_of_nothing_is_refused(tmp_path):
    """It would hold whatever happens."""
    with pytest.raises(UsageError, match="expects nothing"):
        read_case(write_case(tmp_path, BANG + '[[expect]]\nbackend = "hf-fp16"\n'))


REFUSED = {
    "an interpreter": (('"sim-gptq"]', '"vllm@/usr/bin/python"]'), "backends", "names an interpreter, which can run"),
    "trust in remote code": (("[run]", "[run]\ntrust_remote_code = true"), "trust_remote_code", "can run code"),
    "a download": (('build = "tiny-qwen2"', 'build = "tiny-qwen2"\ndownload = true'), "download", "can run code"),
    "a URL": (('build = "tiny-qwen2"', 'path = "https://example.org/model"'), "path", "holds a URL"),
    "a key file": (("[run]", '[run]\nkey-file = "k"'), "key-file", "can run code or reach out"),
    "python": (("[run]", '[run]\npython = "/usr/bin/python"'), "python", "can run code or reach out"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_run_code_or_reach_out_is_refused(tmp_path, what):
    """A case file comes with other people's code; such things are the command line's."""
    change, key, reason = REFUSED[what]
    file = write_case(tmp_path, BANG, change)
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.startswith(key))
    with pytest.raises(UsageError, match=f"line {line}: .*{reason}"):
        read_case(file)


@pytest.mark.parametrize(
    "text", ["", "name = [", "name = 3", "\ufeffname = 'x'\n[model]", "expect = 3\nname = 'x'", "model = 3\nname='x'"]
)
def test_what_is_no_case_is_one_sentence(tmp_path, text):
    """Whatever the file holds, nobody sees a traceback."""
    (tmp_path / "case.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"case\.toml"):
        read_case(tmp_path)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    """With what to give instead."""
    with pytest.raises(UsageError, match="does not exist"):
        read_case(tmp_path / "nowhere")
