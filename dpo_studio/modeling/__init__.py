"""Base models, chat format and LoRA adapters over transformers and peft."""
