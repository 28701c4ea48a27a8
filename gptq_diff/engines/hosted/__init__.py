"""A Hugging Face model with another library's quantised linears in it: which they are, their proof, their taps."""
