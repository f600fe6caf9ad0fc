"""cogalign aligns multimodal LLMs to clinical cognition in gastrointestinal endoscopy."""

__version__ = "0.1.0"
