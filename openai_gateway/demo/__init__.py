"""The embedded model: a very small gpt-oss with its tokenizer, chat template and model card."""
