"""Text -> token ids and back: tokenizer and chat template."""
