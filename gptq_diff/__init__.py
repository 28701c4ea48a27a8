"""Find the first layer at which a GPTQ model breaks in one inference engine and not in another."""

__version__ = "0.1.0"
