"""Models and tokenizers: loading, adapters, references, fingerprints."""
