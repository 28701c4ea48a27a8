"""Prompt files: every form that is accepted, and the whole sentence for every one that is not."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_diff.errors import PromptError
from gptq_diff.prompts import Message, PromptEntry, read_prompt_file

FORMS = (
    'An entry is a string, {"prompt": "..."}, {"messages": [...]} or {"token_ids": [...]}, each with an optional "id".'
)
NOTHING = io.BytesIO()


def read(tmp_path: Path, name: str, content: str | bytes) -> tuple[PromptEntry, ...]:
    """The entries of a file with that name and content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompt_file(str(path), NOTHING)


def refused(tmp_path: Path, name: str, content: str | bytes) -> tuple[str, str | None]:
    """The error's sentence, without the directory, and its hint."""
    with pytest.raises(PromptError) as caught:
        read(tmp_path, name, content)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert str(tmp_path / name) in message
    return message.replace(f"{tmp_path}/", ""), caught.value.hint


def one_line_refused(tmp_path: Path, value: object) -> tuple[str, str | None]:
    """The same for a JSON-lines file of that one entry."""
    return refused(tmp_path, "p.jsonl", json.dumps(value))


class TestText:
    """`.txt`: one prompt, the whole file."""

    @pytest.mark.parametrize(
        "text", ["Hello", "Hello\n", "  two\n\nparagraphs\n", "a\r\nb", '{"prompt": "not parsed"}', "中文"]
    )
    def test_the_whole_file_is_the_prompt(self, tmp_path: Path, text: str) -> None:
        """Nothing is trimmed or translated: a newline is a token to the model."""
        path = tmp_path / "p.txt"
        assert read(tmp_path, "p.txt", text) == (PromptEntry("p1", str(path), 1, text=text),)

    def test_a_byte_order_mark_is_no_part_of_the_prompt(self, tmp_path: Path) -> None:
        """Windows editors write one."""
        assert read(tmp_path, "p.txt", b"\xef\xbb\xbfHello")[0].text == "Hello"

    def test_the_ending_may_be_in_capitals(self, tmp_path: Path) -> None:
        """So do Windows editors."""
        assert read(tmp_path, "P.TXT", "Hello")[0].text == "Hello"


class TestLines:
    """`.jsonl`: one entry a line."""

    def test_every_form_of_an_entry(self, tmp_path: Path) -> None:
        """contract.md lists four; each keeps its line."""
        lines = [
            '"plain"',
            '{"prompt": "keyed", "id": "mine"}',
            '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]}',
            '{"token_ids": [1, 0, 7], "id": "ids"}',
        ]
        source = str(tmp_path / "p.jsonl")
        assert read(tmp_path, "p.jsonl", "\n".join(lines)) == (
            PromptEntry("p1", source, 1, text="plain"),
            PromptEntry("mine", source, 2, text="keyed"),
            PromptEntry("p3", source, 3, messages=(Message("system", ""), Message("user", "Hi"))),
            PromptEntry("ids", source, 4, token_ids=(1, 0, 7)),
        )

    def test_blank_lines_are_passed_over_but_counted(self, tmp_path: Path) -> None:
        """Names follow the entries, line numbers the file."""
        entries = read(tmp_path, "p.jsonl", '\n"a"\r\n  \t\n"b"\n\n')
        assert [(entry.id, entry.line, entry.text) for entry in entries] == [("p1", 2, "a"), ("p2", 4, "b")]

    def test_only_a_line_feed_ends_a_line(self, tmp_path: Path) -> None:
        """U+2028 and U+0085 are legal inside a JSON string; str.splitlines would cut there."""
        assert read(tmp_path, "p.jsonl", '"a\u2028b\u0085c"')[0].text == "a\u2028b\u0085c"

    def test_a_byte_order_mark_is_allowed(self, tmp_path: Path) -> None:
        """The first line parses as if it were not there."""
        assert read(tmp_path, "p.jsonl", b'\xef\xbb\xbf"a"')[0].text == "a"


class TestList:
    """`.json`: a list of entries."""

    def test_entries_know_their_lines(self, tmp_path: Path) -> None:
        """An error about the third entry must not send the reader to line 1."""
        text = '[\n  "a",\n  {"id": "b",\n   "token_ids": [1]}, "c"\n\n,\n  {"prompt": "d, ]"}\n]\n'
        entries = read(tmp_path, "p.json", text)
        assert [(entry.id, entry.line) for entry in entries] == [("p1", 2), ("b", 3), ("p3", 4), ("p4", 7)]

    @pytest.mark.parametrize("text", ['["a"]', ' \r\n[\t"a" ] \n', b'\xef\xbb\xbf["a"]'])
    def test_blanks_around_anything_are_allowed(self, tmp_path: Path, text: str | bytes) -> None:
        """As JSON allows them."""
        assert [entry.text for entry in read(tmp_path, "p.json", text)] == ["a"]

    def test_it_agrees_with_the_standard_library_on_what_a_list_is(self, tmp_path: Path) -> None:
        """The elements are read one by one here; json.loads reads the same ones."""
        text = '[ "a\\u0041\\n" ,{"prompt":"[,]"},\n"\\ud83d\\ude00"\t, "x" ]'
        values = [value if isinstance(value, str) else value["prompt"] for value in json.loads(text)]
        assert [entry.text for entry in read(tmp_path, "p.json", text)] == values


class TestStandardInput:
    """`-`: the first character other than white space says which form it is."""

    @pytest.mark.parametrize(
        ("data", "texts"),
        [
            (b"What is 2 + 2?\n", ["What is 2 + 2?\n"]),
            (b'["a", "b"]', ["a", "b"]),
            (b' \n[\n"a"]', ["a"]),
            (b'{"prompt": "a"}\n"b"\n', ["a", "b"]),
            (b'"a"', ["a"]),
            (b"\xef\xbb\xbfHi", ["Hi"]),
        ],
    )
    def test_the_form_is_told_by_the_first_character(self, data: bytes, texts: list[str]) -> None:
        """It has no name whose ending could tell."""
        entries = read_prompt_file("-", io.BytesIO(data))
        assert [entry.text for entry in entries] == texts
        assert {entry.source for entry in entries} == {"standard input"}

    def test_text_that_looks_like_json_is_told_how_to_say_so(self) -> None:
        """Falling back to text in silence would feed a broken JSON file to the model as a prompt."""
        with pytest.raises(PromptError) as caught:
            read_prompt_file("-", io.BytesIO(b"[INST] Hi [/INST]"))
        assert str(caught.value) == "standard input, line 1, column 2: bad JSON: expecting value"
        assert caught.value.hint == (
            'Text that begins with [, { or " is taken for JSON there; write such a prompt as a JSON string.'
        )

    def test_empty_input_is_refused(self) -> None:
        """Most often a pipe whose first command failed."""
        with pytest.raises(PromptError) as caught:
            read_prompt_file("-", io.BytesIO(b""))
        assert str(caught.value) == "standard input is empty"


class TestFilesThatCannotBeUsed:
    """Unreadable, empty, not UTF-8, of no known ending."""

    def test_a_missing_file(self, tmp_path: Path) -> None:
        """The system's own reason is passed on."""
        with pytest.raises(PromptError) as caught:
            read_prompt_file(str(tmp_path / "no.txt"), NOTHING)
        assert str(caught.value) == f"{tmp_path}/no.txt cannot be read: No such file or directory"
        assert caught.value.hint == "Give an existing prompt file."

    def test_a_directory(self, tmp_path: Path) -> None:
        """A name that ends well need not be a file."""
        (tmp_path / "dir.json").mkdir()
        with pytest.raises(PromptError) as caught:
            read_prompt_file(str(tmp_path / "dir.json"), NOTHING)
        assert str(caught.value) == f"{tmp_path}/dir.json cannot be read: Is a directory"

    @pytest.mark.parametrize(
        ("name", "suffix"), [("p.md", ".md"), ("model.safetensors", ".safetensors"), ("prompt", "")]
    )
    def test_another_ending(self, tmp_path: Path, name: str, suffix: str) -> None:
        """Refused before it is read: it may be a checkpoint of many GB."""
        message, hint = refused(tmp_path, name, "Hello")
        assert message == f"{name}: a prompt file ends in .txt, .jsonl or .json, not in {suffix!r}"
        assert hint == "Rename it, or give it on standard input with --prompt-file -."

    @pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json"])
    @pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
    def test_an_empty_file(self, tmp_path: Path, name: str, content: bytes) -> None:
        """Blanks and a byte-order mark are no prompt."""
        assert refused(tmp_path, name, content) == (f"{name} is empty", "Write at least one prompt into it.")

    def test_an_empty_list(self, tmp_path: Path) -> None:
        """A list of nothing compares nothing."""
        assert refused(tmp_path, "p.json", " [ ]\n") == ("p.json holds an empty list", FORMS)

    @pytest.mark.parametrize(
        ("content", "line", "byte", "offset"),
        [
            (b"\xff", 1, "ff", 0),
            (b"one\ntwo\ncaf\xe9\n", 3, "e9", 11),
            (b"\xef\xbb\xbfab\xff", 1, "ff", 5),
            (b"cut \xe4\xb8", 1, "e4", 4),
            (b"\xed\xa0\x80", 1, "ed", 0),
        ],
    )
    def test_bad_utf8(self, tmp_path: Path, content: bytes, line: int, byte: str, offset: int) -> None:
        """The offset is that of the file, its byte-order mark counted: it is what a hex editor shows."""
        message, hint = refused(tmp_path, "p.txt", content)
        assert message == f"p.txt, line {line}: not UTF-8, byte 0x{byte} at offset {offset}"
        assert hint == "Save the file as UTF-8."

    def test_utf16_is_recognised(self, tmp_path: Path) -> None:
        """What an old Windows editor calls Unicode."""
        message, hint = refused(tmp_path, "p.txt", "Hi".encode("utf-16"))
        assert message == "p.txt, line 1: not UTF-8, byte 0xff at offset 0"
        assert hint == "It looks like UTF-16. Save the file as UTF-8."


class TestBadJson:
    """Line and column, counted from 1, of the place where it goes wrong."""

    @pytest.mark.parametrize(
        ("name", "content", "where", "reason"),
        [
            ("p.jsonl", '"a"\nplain text\n', "line 2, column 1", "expecting value"),
            ("p.jsonl", '"a"\n{"prompt": }\n', "line 2, column 12", "expecting value"),
            ("p.jsonl", '"a"\n"b" "c"\n', "line 2, column 5", "something follows the entry"),
            ("p.jsonl", '"a"\n"b",\n', "line 2, column 4", "something follows the entry"),
            ("p.jsonl", '{"prompt": "cut', "line 1, column 12", "unterminated string starting at"),
            ("p.jsonl", '\u00a0"a"', "line 1, column 1", "expecting value"),
            ("p.jsonl", '{"id": "a", "id": "b"}', "line 1, column 1", "the key 'id' is given twice"),
            ("p.json", '{"prompt": "a"}', "line 1, column 1", "expected a list, ["),
            ("p.json", '"a"', "line 1, column 1", "expected a list, ["),
            ("p.json", '\n["a"\n "b"]', "line 3, column 2", "expected , or ]"),
            ("p.json", '["a",\n]', "line 2, column 1", "expecting value"),
            ("p.json", '["a"', "line 1, column 5", "expected , or ]"),
            ("p.json", "[", "line 1, column 2", "expecting value"),
            ("p.json", '["a"]\n["b"]', "line 2, column 1", "something follows the list"),
            ("p.json", '["a", {"prompt": "b"\n  "id": "c"}]', "line 2, column 3", "expecting ',' delimiter"),
        ],
    )
    def test_the_place_is_named(self, tmp_path: Path, name: str, content: str, where: str, reason: str) -> None:
        """An editor can jump there."""
        assert refused(tmp_path, name, content) == (f"{name}, {where}: bad JSON: {reason}", FORMS)

    @pytest.mark.parametrize("content", ["[" * 100_000, '{"prompt":' * 100_000])
    def test_absurd_nesting_is_bad_json_and_no_crash(self, tmp_path: Path, content: str) -> None:
        """A hostile file must not end in a traceback."""
        message, _ = refused(tmp_path, "p.jsonl", content)
        assert message.startswith("p.jsonl, line 1, column 1: bad JSON: ")

    def test_an_integer_of_ten_thousand_digits_is_bad_json_and_no_crash(self, tmp_path: Path) -> None:
        """Python refuses to convert it."""
        message, _ = refused(tmp_path, "p.jsonl", '{"token_ids": [' + "9" * 10_000 + "]}")
        assert message.startswith("p.jsonl, line 1, column 1: bad JSON: exceeds the limit")


class TestBadEntries:
    """Well-formed JSON that is no prompt."""

    @pytest.mark.parametrize(
        ("value", "kind"),
        [(None, "null"), (True, "true or false"), (3, "a number"), (1.5, "a number"), (["a"], "a list")],
    )
    def test_an_entry_of_another_type(self, tmp_path: Path, value: object, kind: str) -> None:
        """Named in JSON's words, not Python's."""
        assert one_line_refused(tmp_path, value) == (f"p.jsonl, line 1: prompt 'p1' is {kind}", FORMS)

    @pytest.mark.parametrize("value", ["", " ", "\n\t", "\u3000"])
    @pytest.mark.parametrize("keyed", [False, True])
    def test_an_empty_prompt(self, tmp_path: Path, value: str, keyed: bool) -> None:
        """Blanks alone are far more often a slip than meant."""
        message, hint = one_line_refused(tmp_path, {"prompt": value} if keyed else value)
        assert message == "p.jsonl, line 1: prompt 'p1' has an empty prompt"
        assert hint == "Write some text, or token ids where blanks alone are meant."

    @pytest.mark.parametrize(
        ("key", "said"),
        [
            ("promt", "has an unknown key 'promt'; did you mean 'prompt'?"),
            ("tokens", "has an unknown key 'tokens'; did you mean 'token_ids'?"),
            ("zzz", "has an unknown key 'zzz'"),
        ],
    )
    def test_an_unknown_key(self, tmp_path: Path, key: str, said: str) -> None:
        """Passing over it could drop what the user meant."""
        assert one_line_refused(tmp_path, {"prompt": "a", key: 1}) == (f"p.jsonl, line 1: prompt 'p1' {said}", FORMS)

    def test_two_forms_at_once(self, tmp_path: Path) -> None:
        """Which one is meant cannot be told."""
        message, hint = one_line_refused(tmp_path, {"prompt": "a", "token_ids": [1]})
        assert (message, hint) == ("p.jsonl, line 1: prompt 'p1' has both 'prompt' and 'token_ids'", FORMS)

    @pytest.mark.parametrize(("value", "name"), [({}, "p1"), ({"id": "mine"}, "mine")])
    def test_no_form_at_all(self, tmp_path: Path, value: object, name: str) -> None:
        """The id that was given names the entry."""
        message, hint = one_line_refused(tmp_path, value)
        assert message == f"p.jsonl, line 1: prompt {name!r} has neither text, messages nor token ids"
        assert hint == FORMS

    @pytest.mark.parametrize(("value", "kind"), [(None, "null"), (["a"], "a list"), (5, "a number")])
    def test_a_prompt_that_is_no_string(self, tmp_path: Path, value: object, kind: str) -> None:
        """A list of parts (images) is not for this tool."""
        message, hint = one_line_refused(tmp_path, {"prompt": value})
        assert (message, hint) == (f"p.jsonl, line 1: prompt 'p1' has {kind} as its prompt", FORMS)

    @pytest.mark.parametrize(
        "value", ["\ud83d", {"prompt": "\ud83d"}, {"messages": [{"role": "user", "content": "\ud83d"}]}]
    )
    def test_half_a_surrogate_pair(self, tmp_path: Path, value: object) -> None:
        """JSON can spell it, and no tokenizer takes it."""
        message, hint = one_line_refused(tmp_path, value)
        assert message == "p.jsonl, line 1: prompt 'p1' holds half a surrogate pair, \\ud83d"
        assert hint == "Write the whole character, as UTF-8."

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../up", "a/b", "a b", "-x", ".hidden", "é", "a\n", "a" * 101, "a\x00"]
    )
    def test_an_id_unfit_for_a_path(self, tmp_path: Path, name: str) -> None:
        """Ids name folders of the run directory."""
        message, hint = one_line_refused(tmp_path, {"prompt": "a", "id": name})
        assert message == f"p.jsonl, line 1: prompt 'p1' has the id {name!r}, which cannot name a folder"
        assert hint == (
            "An id has at most 100 letters, digits, dots, underscores and hyphens, and starts with none of . and -."
        )

    @pytest.mark.parametrize("name", ["a", "short-37_tokens.v2", "0", "_x", "A" * 100])
    def test_an_id_fit_for_a_path(self, tmp_path: Path, name: str) -> None:
        """The other side of the fence."""
        assert read(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "id": name}))[0].id == name

    def test_an_id_that_is_no_string(self, tmp_path: Path) -> None:
        """A number is not turned into one in silence."""
        message, hint = one_line_refused(tmp_path, {"prompt": "a", "id": 7})
        assert message == "p.jsonl, line 1: prompt 'p1' has an id that is a number"
        assert hint == 'Give "id" as a string.'

    @pytest.mark.parametrize(
        ("lines", "line", "first"),
        [
            (['{"id": "x", "prompt": "a"}', '{"id": "x", "prompt": "b"}'], 2, 1),
            (['{"id": "p2", "prompt": "a"}', '"b"'], 2, 1),
        ],
    )
    def test_two_entries_of_one_id(self, tmp_path: Path, lines: list[str], line: int, first: int) -> None:
        """Whether given twice, or given as the name that another entry has by its place."""
        message, hint = refused(tmp_path, "p.jsonl", "\n".join(lines))
        name = json.loads(lines[0])["id"]
        assert message == f"p.jsonl, line {line}: the id {name!r} is already that of line {first}"
        assert hint == "Give each prompt an id of its own; without one it is p1, p2, ... by its place."

    @pytest.mark.parametrize(
        ("value", "said", "hint"),
        [
            ("Hi", "has a string as its messages", 'Write [{"role": "user", "content": "..."}].'),
            ([], "has no messages", 'Write [{"role": "user", "content": "..."}].'),
            (["Hi"], "has a string as message 1", None),
            ([{"role": "user"}], "has no content in message 1", None),
            ([{"content": "Hi"}], "has no role in message 1", None),
            ([{"role": "", "content": "Hi"}], "has an empty role in message 1", None),
            ([{"role": 1, "content": "Hi"}], "has a number as the role of message 1", None),
            ([{"role": "user", "content": ["Hi"]}], "has a list as the content of message 1", None),
            ([{"role": "user", "content": "Hi", "name": "x"}], "has an unknown key 'name' in message 1", None),
            ([{"role": "user", "content": "Hi"}, 7], "has a number as message 2", None),
        ],
    )
    def test_bad_messages(self, tmp_path: Path, value: object, said: str, hint: str | None) -> None:
        """The message is counted from 1."""
        expected = hint or 'A message is {"role": "user", "content": "..."} and nothing else.'
        assert one_line_refused(tmp_path, {"messages": value}) == (f"p.jsonl, line 1: prompt 'p1' {said}", expected)

    @pytest.mark.parametrize(
        ("value", "said", "hint"),
        [
            ("1 2", "has a string as its token_ids", "Write a list of integers: [1, 15, 7]."),
            ([], "has no token ids", "Write a list of integers: [1, 15, 7]."),
            ([1, "2"], "has a string at place 1 of token_ids", "Write a list of integers."),
            ([1.0], "has a number at place 0 of token_ids", "Write a list of integers."),
            ([1, True], "has true or false at place 1 of token_ids", "Write a list of integers."),
            ([None], "has null at place 0 of token_ids", "Write a list of integers."),
        ],
    )
    def test_bad_token_ids(self, tmp_path: Path, value: object, said: str, hint: str) -> None:
        """`true` is an int to Python, and no token."""
        assert one_line_refused(tmp_path, {"token_ids": value}) == (f"p.jsonl, line 1: prompt 'p1' {said}", hint)

    def test_the_line_is_that_of_the_entry(self, tmp_path: Path) -> None:
        """In a list as well, where the entry does not begin its line."""
        message, _ = refused(tmp_path, "p.json", '[\n"a", "b",\n  "c", {"prompt": ""}]')
        assert message == "p.json, line 3: prompt 'p4' has an empty prompt"


def test_reading_prompts_imports_no_tokenizer() -> None:
    """A bad prompt file is refused at once, not after seconds of imports."""
    code = "import sys, gptq_diff.prompts; print({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
