"""What users would pick instead, on the same prefill of the same model."""
