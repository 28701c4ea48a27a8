"""What is asked: prompt files in, one list of token ids a prompt out, the same for every backend."""

from gptq_diff.prompts.entries import Message, PromptEntry, parse_entry
from gptq_diff.prompts.read import read_prompt_file
from gptq_diff.prompts.tokenise import tokenise

__all__ = ["Message", "PromptEntry", "parse_entry", "read_prompt_file", "tokenise"]
