"""Fine-tune, evaluate and compare vision-language models on product categorisation."""

__version__ = "0.2.0"
