"""Speculative decoding: drafters beside plain decoding, on prompts by category."""
