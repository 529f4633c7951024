"""Weights as other libraries store them, packed without another quantization: `gguf`, `gptq`."""
