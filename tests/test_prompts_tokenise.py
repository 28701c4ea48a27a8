"""Entries to token ids, with a real tokenizer of transformers built here: 256 bytes and three special tokens.

Ids of text are checked against the bytes themselves, since in this vocabulary a token's id is its byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from gptq_diff.errors import PromptError, UsageError
from gptq_diff.prompts import Message, PromptEntry, tokenise
from gptq_diff.records import Prompt

START, END, BEGIN = 256, 257, 258
VOCAB = 259
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}:{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
STRICT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + TEMPLATE
)


def byte_tokens() -> dict[str, int]:
    """GPT-2's table of bytes as printable characters, written from its definition: token -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


def write_model(directory: Path, template: str | None, *, bos: bool = False) -> Path:
    """A directory with that tokenizer, as transformers saves it, and the config it is found by."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=byte_tokens(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|start|>", "<|end|>", "<|begin|>")])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = template
    fast.save_pretrained(str(directory))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": VOCAB}))
    return directory


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template."""
    return write_model(tmp_path_factory.mktemp("chat"), TEMPLATE)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template, whose tokenizer puts a special token before bare text."""
    return write_model(tmp_path_factory.mktemp("base"), None, bos=True)


def text(value: str, name: str = "p1") -> PromptEntry:
    """A plain string, as read from line 4 of a file."""
    return PromptEntry(name, "f.jsonl", 4, text=value)


def chat(*messages: tuple[str, str]) -> PromptEntry:
    """A list of messages."""
    return PromptEntry("p1", "f.jsonl", 4, messages=tuple(Message(*message) for message in messages))


def ids(*token_ids: int) -> PromptEntry:
    """Bare token ids."""
    return PromptEntry("p1", "f.jsonl", 4, token_ids=token_ids)


def tokens(entry: PromptEntry, model: Path, **changed: Any) -> Prompt:
    """One entry, with the options that do not matter to a test."""
    options: dict[str, Any] = {
        "system": None,
        "chat_template": True,
        "trust_remote_code": False,
        "vocab_size": VOCAB,
        "context_length": None,
    }
    (prompt,) = tokenise([entry], model, **(options | changed))
    return prompt


def refused(entry: PromptEntry, model: Path, **changed: Any) -> tuple[str, str | None]:
    """The error's sentence and hint; exit code 2."""
    with pytest.raises(UsageError) as caught:
        tokens(entry, model, **changed)
    assert caught.value.exit_code == 2
    return str(caught.value), caught.value.hint


def fed(value: str) -> tuple[int, ...]:
    """The ids of a text with special tokens in it, computed from its bytes."""
    for token, code in (("<|start|>", 0xF000), ("<|end|>", 0xF001)):
        value = value.replace(token, chr(code))
    specials = {chr(0xF000): START, chr(0xF001): END}
    return tuple(i for c in value for i in ([specials[c]] if c in specials else c.encode()))


class TestText:
    """A plain string."""

    def test_it_becomes_one_user_message_of_a_chat_model(self, chat_model: Path) -> None:
        """That is how the model is used, and how the reported bug was met."""
        expected = "<|start|>user:Wo? 中文<|end|><|start|>assistant:"
        prompt = tokens(text("Wo? 中文"), chat_model)
        assert prompt.text == expected
        assert prompt.token_ids == fed(expected)

    def test_no_chat_template_feeds_it_bare(self, chat_model: Path) -> None:
        """`--no-chat-template`."""
        prompt = tokens(text("Hi\n"), chat_model, chat_template=False)
        assert (prompt.text, prompt.token_ids) == ("Hi\n", (72, 105, 10))

    def test_without_a_template_it_is_fed_bare_with_the_tokenizers_own_special_tokens(self, base_model: Path) -> None:
        """Llama-like base models expect their <s>."""
        prompt = tokens(text("Hi"), base_model)
        assert (prompt.text, prompt.token_ids) == ("Hi", (BEGIN, 72, 105))

    def test_the_template_writes_the_special_tokens_and_they_are_not_added_twice(self, tmp_path: Path) -> None:
        """A doubled <s> is a common mistake, and changes what is measured."""
        model = write_model(tmp_path, "<|begin|>{{ messages[0]['content'] }}", bos=True)
        assert tokens(text("Hi"), model).token_ids == (BEGIN, 72, 105)

    def test_system_goes_before_it(self, chat_model: Path) -> None:
        """`--system TEXT`."""
        prompt = tokens(text("Hi"), chat_model, system="Be brief.")
        assert prompt.text == "<|start|>system:Be brief.<|end|><|start|>user:Hi<|end|><|start|>assistant:"

    @pytest.mark.parametrize(
        ("model", "chat_template", "why"),
        [("base_model", True, "the model has no chat template"), ("chat_model", False, "--no-chat-template is given")],
    )
    def test_system_needs_a_chat_template(
        self, request: pytest.FixtureRequest, model: str, chat_template: bool, why: str
    ) -> None:
        """Dropping it in silence would compare another prompt than the one asked for."""
        message, hint = refused(text("Hi"), request.getfixturevalue(model), system="S", chat_template=chat_template)
        assert message == f"f.jsonl, line 4: prompt 'p1' cannot take --system: {why}"
        assert hint == "Leave --system out, or write it into the prompt."


class TestMessages:
    """A list of messages."""

    def test_they_go_through_the_template_with_a_generation_prompt(self, chat_model: Path) -> None:
        """contract.md says so."""
        prompt = tokens(chat(("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")), chat_model)
        expected = "<|start|>system:S<|end|><|start|>user:Q<|end|><|start|>assistant:A<|end|><|start|>user:R<|end|>"
        assert prompt.text == expected + "<|start|>assistant:"
        assert prompt.token_ids == fed(expected + "<|start|>assistant:")

    def test_system_goes_before_them(self, chat_model: Path) -> None:
        """`--system TEXT` is for every prompt of the file."""
        prompt = tokens(chat(("user", "Q")), chat_model, system="S")
        assert prompt.text == "<|start|>system:S<|end|><|start|>user:Q<|end|><|start|>assistant:"

    def test_two_system_messages_are_refused(self, chat_model: Path) -> None:
        """Which one is meant cannot be told."""
        message, hint = refused(chat(("system", "A"), ("user", "Q")), chat_model, system="B")
        assert message == "f.jsonl, line 4: prompt 'p1' begins with a system message, and --system gives another"
        assert hint == "Leave one of the two out."

    def test_a_model_without_a_template_is_refused(self, base_model: Path) -> None:
        """No template is made up for it."""
        message, hint = refused(chat(("user", "Q")), base_model)
        assert message == "f.jsonl, line 4: prompt 'p1' holds messages, and the model has no chat template"
        assert hint == "Give plain text or token ids."

    def test_no_chat_template_is_refused(self, chat_model: Path) -> None:
        """The option and the prompt contradict each other."""
        message, hint = refused(chat(("user", "Q")), chat_model, chat_template=False)
        assert message == "f.jsonl, line 4: prompt 'p1' holds messages, and --no-chat-template is given"
        assert hint == "Leave the option out, or give plain text."

    def test_a_template_that_refuses_them_is_quoted(self, tmp_path: Path) -> None:
        """Gemma's refuses the system role, Mistral's two user messages in a row."""
        model = write_model(tmp_path, STRICT_TEMPLATE)
        message, hint = refused(chat(("user", "Q")), model, system="S")
        assert message == "f.jsonl, line 4: prompt 'p1' is refused by the model's chat template: no system role here"
        assert hint == "Change its messages, or give the text itself with --no-chat-template."

    @pytest.mark.parametrize("template", ["{% if %}", "{{ messages[9]['content'] }}", "{{ messages + 1 }}"])
    def test_a_broken_template_is_no_crash(self, tmp_path: Path, template: str) -> None:
        """It comes with the checkpoint, so it is bad input."""
        message, _ = refused(chat(("user", "Q")), write_model(tmp_path, template))
        assert message.startswith("f.jsonl, line 4: prompt 'p1' is refused by the model's chat template: ")

    def test_a_hostile_template_reaches_nothing(self, tmp_path: Path) -> None:
        """Templates run in transformers' sandbox; a checkpoint's code never runs unasked."""
        model = write_model(tmp_path, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
        message, _ = refused(chat(("user", "Q")), model)
        assert "unsafe" in message


class TestTokenIds:
    """Bare token ids."""

    def test_they_are_fed_as_they_are_without_a_tokenizer(self, tmp_path: Path) -> None:
        """The directory does not even exist: text is null in the report."""
        prompt = tokens(ids(5, 0, 258), tmp_path / "none", vocab_size=259)
        assert (prompt.id, prompt.token_ids, prompt.text, prompt.tokens) == ("p1", (5, 0, 258), None, 3)

    def test_the_sha256_is_of_the_ids_as_little_endian_int64(self, tmp_path: Path) -> None:
        """Written out by hand, so that another program can compute it."""
        data = b"\x01\0\0\0\0\0\0\0" + b"\x02\x01\0\0\0\0\0\0"
        assert tokens(ids(1, 258), tmp_path).sha256 == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize(("token", "place"), [(-1, 0), (259, 0), (10**30, 2)])
    def test_an_id_outside_the_vocabulary(self, tmp_path: Path, token: int, place: int) -> None:
        """The embedding would read beyond its end, or wrap."""
        message, hint = refused(ids(*[0] * place, token), tmp_path)
        assert message == (
            f"f.jsonl, line 4: prompt 'p1' has the id {token} at place {place}; the vocabulary is 0 to 258"
        )
        assert hint == "Take the ids from this model's own tokenizer."

    def test_system_with_nothing_but_token_ids_is_refused(self, tmp_path: Path) -> None:
        """It would be dropped without a word."""
        message, hint = refused(ids(1), tmp_path, system="S")
        assert message == "--system has no prompt to go before: all of them are token ids"
        assert hint == "Leave --system out."


class TestLimits:
    """What the model cannot take."""

    def test_a_prompt_as_long_as_the_context_is_taken(self, chat_model: Path) -> None:
        """The limit itself is allowed."""
        assert tokens(text("abcd"), chat_model, chat_template=False, context_length=4).tokens == 4

    @pytest.mark.parametrize("entry", [text("abcde"), ids(1, 2, 3, 4, 5)])
    def test_a_longer_one_is_refused(self, chat_model: Path, entry: PromptEntry) -> None:
        """Cutting it would be another prompt."""
        message, hint = refused(entry, chat_model, chat_template=False, context_length=4)
        assert message == "f.jsonl, line 4: prompt 'p1' has 5 tokens; the model takes 4 at most"
        assert hint == "Shorten it."

    def test_text_whose_ids_the_model_does_not_have(self, chat_model: Path) -> None:
        """A tokenizer of another model, or one with tokens added after training."""
        message, hint = refused(text("Hi"), chat_model, vocab_size=256)
        assert message == "f.jsonl, line 4: prompt 'p1' has the id 256 at place 0; the vocabulary is 0 to 255"
        assert hint == "The tokenizer does not belong to this model."

    def test_text_of_no_tokens(self, tmp_path: Path) -> None:
        """A template may drop the only message."""
        message, hint = refused(text("Hi"), write_model(tmp_path, "{# nothing #}"))
        assert message == "f.jsonl, line 4: prompt 'p1' gives no tokens at all"
        assert hint == "Write some text that the tokenizer knows."


class TestTokenizerFiles:
    """What a checkpoint's directory may lack."""

    @pytest.mark.parametrize("files", [[], ["config.json"], ["config.json", "tokenizer_config.json"]])
    def test_no_tokenizer(self, chat_model: Path, tmp_path: Path, files: list[str]) -> None:
        """transformers would build an empty one from tokenizer_config.json alone."""
        for name in files:
            shutil.copy(chat_model / name, tmp_path)
        message, hint = refused(text("Hi"), tmp_path)
        assert message == f"f.jsonl, line 4: prompt 'p1' is text, and {tmp_path} has no tokenizer"
        assert hint == ('Add the tokenizer\'s files to the checkpoint, or give the prompt as {"token_ids": [...]}.')

    @pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"version": "1.0", "model": {"type": "none"}}'])
    def test_a_damaged_tokenizer(self, chat_model: Path, tmp_path: Path, content: str) -> None:
        """The tokenizers library raises a bare Exception for some of these."""
        model = shutil.copytree(chat_model, tmp_path / "m")
        (model / "tokenizer.json").write_text(content)
        message, hint = refused(text("Hi"), model)
        assert message.startswith(f"the tokenizer of {model} cannot be loaded: ")
        assert "\n" not in message
        assert hint == 'Repair its tokenizer files, or give prompts as {"token_ids": [...]}.'

    @pytest.mark.parametrize("content", ["{", "[]", '{"tokenizer_class": 7}'])
    def test_a_damaged_tokenizer_config(self, chat_model: Path, tmp_path: Path, content: str) -> None:
        """The other file of the two."""
        model = shutil.copytree(chat_model, tmp_path / "m")
        (model / "tokenizer_config.json").write_text(content)
        message, _ = refused(text("Hi"), model)
        assert message.startswith(f"the tokenizer of {model} cannot be loaded: ")

    def test_code_of_a_checkpoint_does_not_run_unasked(self, chat_model: Path, tmp_path: Path) -> None:
        """`--trust-remote-code` is the only way, and the sentence says so."""
        model = shutil.copytree(chat_model, tmp_path / "m")
        mark = tmp_path / "ran"
        (model / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
        config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        message, hint = refused(text("Hi"), model)
        assert message.startswith(f"the tokenizer of {model} cannot be loaded: ")
        assert hint == "It comes with code of its own; --trust-remote-code runs that code."
        assert not mark.exists()

    def test_nothing_reaches_out(self, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only `--download` may; transformers has asked the Hub about local directories before."""

        def refuse(*args: object) -> None:
            raise AssertionError("a connection was tried")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        assert tokens(text("Hi"), chat_model).tokens > 2

    def test_it_is_loaded_once_for_many_prompts(self, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loading takes longer than tokenising a thousand prompts."""
        import transformers

        calls = []
        load = transformers.AutoTokenizer.from_pretrained
        monkeypatch.setattr(
            transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: (calls.append(a), load(*a, **k))[1]
        )
        entries = [text("a", "p1"), ids(1), text("b", "p3")]
        prompts = tokenise(
            entries,
            chat_model,
            system="S",
            chat_template=True,
            trust_remote_code=False,
            vocab_size=VOCAB,
            context_length=None,
        )
        assert len(calls) == 1
        assert [prompt.id for prompt in prompts] == ["p1", "p1", "p3"]
        assert prompts[1].token_ids == (1,)


def test_every_error_here_is_a_prompt_error(chat_model: Path) -> None:
    """Callers that read case files tell a bad prompt from other bad usage by it."""
    with pytest.raises(PromptError):
        tokens(ids(-1), chat_model)
